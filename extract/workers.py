"""Extraction in this process or in several, one pipe to each: a worker that is killed costs the video it was on."""

import contextlib
import logging
import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from data.registry import load_plugin
from data.store import FeatureStore
from data.types import Video
from extract.backbones import Backbone, create
from extract.video import extract_video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One video, done or failed or left to another worker, as sent from a worker to the parent."""

    video_id: str
    frames: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    elsewhere: bool = False


@dataclass(frozen=True)
class Job:
    """What a worker process needs to start."""

    root: str
    backbone: str
    options: dict[str, Any]
    batch: int
    threads: int
    plugins: tuple[str, ...]


def run_here(todo: Sequence[Video], job: Job, backbone: Backbone) -> Iterator[Outcome]:
    """One after the other, in this process."""
    store = FeatureStore(job.root)
    for video in todo:
        yield extract_one(video, store, backbone, job.batch)


def run_workers(todo: Sequence[Video], job: Job, workers: int) -> Iterator[Outcome]:
    """One pipe per worker and no shared queue: a worker killed at any moment harms nobody else's channel."""
    left = list(reversed(todo))
    pool = {}
    try:
        for _ in range(workers):
            worker = _start(job, left.pop())
            pool[worker.pipe] = worker
        while pool:
            for pipe in wait(list(pool)):
                worker = pool[pipe]  # type: ignore[index]
                try:
                    outcome: Outcome = worker.pipe.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    worker.process.join()
                    code = worker.process.exitcode
                    outcome = Outcome(
                        worker.video.id,
                        error=f"{worker.video.path}: its worker died (exit code {code}); out of memory? --workers 1",
                    )
                    del pool[worker.pipe]
                    if left:
                        worker = _start(job, left.pop())
                        pool[worker.pipe] = worker
                else:
                    if left:
                        worker.give(left.pop())
                    else:
                        del pool[worker.pipe]
                        worker.stop()
                yield outcome
    finally:
        for worker in pool.values():
            worker.stop()


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: "Connection[Video, Outcome]"
    video: Video

    def give(self, video: Video) -> None:
        self.video = video
        with contextlib.suppress(BrokenPipeError):  # it died: the next recv says so
            self.pipe.send(video)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _start(job: Job, video: Video) -> _Worker:
    context = multiprocessing.get_context("spawn")  # fork would copy threads and handles in unknown states
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()  # or a dead worker's pipe would never read as closed
    worker = _Worker(process, ours, video)
    worker.give(video)
    return worker


def _work(job: Job, pipe: "Connection[Outcome, Video]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    for plugin in job.plugins:
        load_plugin(Path(plugin))
    backbone = create(job.backbone, **job.options)
    if backbone.uses_torch:
        import torch

        torch.set_num_threads(job.threads)
    store = FeatureStore(job.root)
    while True:
        try:
            video = pipe.recv()
        except (EOFError, OSError):  # the parent closed the pipe, or was killed: the next run goes on from the store
            return
        try:
            pipe.send(extract_one(video, store, backbone, job.batch))
        except BrokenPipeError:
            return


def extract_one(video: Video, store: FeatureStore, backbone: Backbone, batch: int) -> Outcome:
    """Claims, extracts and stores one video; whatever goes wrong is in the outcome."""
    with store.claim(video.id) as mine:
        if not mine or video.id in store:
            return Outcome(video.id, elsewhere=True)
        try:
            features, notes = extract_video(video, backbone, batch=batch)
            store.write(features)
        except Exception as error:  # whatever one video does must not cost the others
            log.debug("%s", traceback.format_exc())
            return Outcome(video.id, error=f"{error}" or type(error).__name__)
        return Outcome(video.id, features.grid.num_frames, notes=notes)
