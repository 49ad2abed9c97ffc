"""What runs on a node of a Ray cluster: one actor, with the engine in a thread; videos in, messages out."""

import contextlib
import os
import queue
import socket
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.types import Video
from extract.cluster_offer import ClusterError
from extract.engine import Outcome, Progress
from extract.workers import Job, prepared, run_here

_DECIDING = ("wsvad", "torch", "torchvision", "av", "numpy", "opencv-contrib-python-headless")


def versions() -> dict[str, str]:
    """Of everything that decides on the numbers, as installed here. Builds of torch for CPU and GPU count as one."""
    found = {}
    for name in _DECIDING:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def actor_class(ray: Any) -> Any:
    """The class of the actors, as Ray wants it."""

    class WsvadExtractor:
        """Travels as code, since wsvad is still to be found where it arrives."""

        def __init__(self, folder: str) -> None:
            import sys

            sys.path.insert(0, folder)
            from extract.cluster_node import Extraction

            self.extraction = Extraction()

        def start(self, *given: Any) -> Any:
            return self.extraction.start(*given)

        def step(self, videos: Any) -> Any:
            return self.extraction.step(videos)

    return ray.remote(WsvadExtractor)


class Extraction:
    """One actor's work: the engine in a thread, videos in, messages out."""

    def __init__(self) -> None:
        self._videos: queue.SimpleQueue[Video | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Outcome | Progress | Exception] = queue.SimpleQueue()
        self._threads = contextlib.ExitStack()

    def start(self, job: Job, wanted: dict[str, str], mark: str, folder: str) -> None:
        """Makes the backbone. Raises ClusterError with this machine's name on whatever stands against it."""
        try:
            ours = versions()
            if differ := [f"{name} {ours.get(name)}, not {v}" for name, v in wanted.items() if ours.get(name) != v]:
                raise ClusterError(f"has {', '.join(differ)}: numbers could differ; install the same everywhere")
            if not Path(mark).is_file():
                raise ClusterError(f"does not see the store {job.root}; it must lie on a disk that all nodes share")
            with contextlib.suppress(OSError):  # for relative paths in options
                os.chdir(folder)
            backbone = self._threads.enter_context(prepared(job))  # for as long as the actor lives
        except Exception as error:  # any, since it is about this node
            raise ClusterError(f"node {socket.gethostname()}: {error}") from error

        def run() -> None:
            try:
                for message in run_here(iter(self._videos.get, None), job, backbone):
                    self._messages.put(message)
            except Exception as error:
                self._messages.put(error)

        threading.Thread(target=run, daemon=True).start()

    def step(self, videos: list[Video]) -> list[Outcome | Progress]:
        """Takes further videos, waits for news and returns them. Raises what went wrong in the engine itself."""
        for video in videos:
            self._videos.put(video)
        messages = [self._messages.get()]
        while not self._messages.empty():
            messages.append(self._messages.get())
        found: list[Outcome | Progress] = []
        for message in messages:
            if isinstance(message, Exception):
                raise message
            found.append(message)
        return found
