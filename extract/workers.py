"""Extraction in this process or in several, one pipe to each: a worker that is killed costs neither video nor worker.

What happens to the videos of a worker that dies stands in `extract.worklist`.
"""

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from data.registry import load_plugin
from data.store import FeatureStore
from data.types import Video
from extract.backbones import Backbone, create
from extract.decoders import ProcessSource
from extract.engine import Engine, Messages, Outcome, Progress
from extract.sources import Source, Take, ThreadSource
from extract.streams import Reading
from extract.worklist import Hands, WorkList

log = logging.getLogger(__name__)
_STILLBORN = 3  # workers in a row that die before they are ready


@dataclass(frozen=True)
class Job:
    """What a worker needs to start.

    Args:
        root: the store.
        backbone, options, plugins: what to create.
        threads: of torch; 0 leaves it as it is.
        decoders: processes that decode; 0 decodes in a thread.
        batch: clips of a forward pass; 0 leaves it to the backbone.
        reading: how damaged files are read.
    """

    root: str
    backbone: str
    options: dict[str, Any]
    threads: int = 0
    decoders: int = 0
    batch: int = 0
    reading: Reading = field(default_factory=Reading)
    plugins: tuple[str, ...] = ()


def run_here(videos: Iterator[Video], job: Job, backbone: Backbone) -> Messages:
    """In this process."""
    return _engine(job, backbone).run(videos)


def _engine(job: Job, backbone: Backbone) -> Engine:
    spec, batch = backbone.spec, job.batch or backbone.batch

    def source(take: Take) -> Source:
        if job.decoders:
            return ProcessSource(take, spec, job.reading, job.decoders)
        return ThreadSource(take, spec, job.reading, ahead=2 * batch)

    return Engine(FeatureStore(job.root, spec), backbone, source, batch)


def run_alone(videos: Iterator[Video], job: Job) -> Messages:
    """In this process, with the job's threads as long as it runs."""
    with prepared(job) as backbone:
        yield from run_here(videos, job, backbone)


@contextlib.contextmanager
def prepared(job: Job) -> Iterator[Backbone]:
    """The backbone of a job, made in the process that runs it; that has the job's threads while the block runs."""
    import cv2

    for plugin in job.plugins:
        load_plugin(Path(plugin))
    backbone = create(job.backbone, **job.options)
    with contextlib.ExitStack() as stack:
        if backbone.uses_torch and job.threads:
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(job.threads)
        if job.threads or not backbone.uses_torch:
            stack.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(max(job.threads, 1))  # of optical flow; every worker would take all cores
        yield backbone


def run_workers(todo: Sequence[Video], jobs: Sequence[Job]) -> Messages:
    """One process for each job, all walking one list."""
    if not todo:
        return
    pool = _Pool(todo, jobs)
    try:
        yield from pool.run()
    finally:
        pool.stop()


class _Pool:
    """One pipe per worker and no shared queue: a worker killed at any moment harms nobody else's channel."""

    def __init__(self, todo: Sequence[Video], jobs: Sequence[Job]) -> None:
        self._list = WorkList(todo)
        self._workers: dict[Connection, _Worker] = {}
        self._jobs = jobs
        self._stillborn = 0

    def run(self) -> Messages:
        for job in self._jobs:  # here, so that whoever stops the pool stops all that were started
            self._fill(self._start(job))
        while self._workers:
            for pipe in wait(list(self._workers)):
                worker = self._workers[pipe]  # type: ignore[index]
                try:
                    message: Outcome | Progress | None = worker.pipe.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    yield from self._buried(worker)
                    continue
                if message is None:
                    worker.ready = True
                    self._stillborn = 0
                    continue
                if isinstance(message, Outcome):
                    worker.hands.videos.pop(message.video_id, None)
                    self._fill(worker)
                yield message
            for worker in list(self._workers.values()):
                if not worker.hands.videos and not self._fill(worker):
                    del self._workers[worker.pipe]
                    worker.stop()

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.stop()

    def _start(self, job: Job) -> "_Worker":
        worker = _Worker(job)
        self._workers[worker.pipe] = worker
        return worker

    def _fill(self, worker: "_Worker") -> bool:
        """Gives a worker what it has room for; False when it has nothing to do."""
        for video in self._list.take(worker.hands):
            worker.give(video)
        return bool(worker.hands.videos)

    def _buried(self, worker: "_Worker") -> Iterator[Outcome]:
        del self._workers[worker.pipe]
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode
        if not worker.ready:
            self._stillborn += 1
            self._list.give_back(worker.hands)
            if self._stillborn >= _STILLBORN:  # another one in its place would not start either
                if not self._workers:
                    reason = f"no worker process could start (exit code {code}); see its message above"
                    yield from (Outcome(video.id, error=reason) for video in self._list.rest())
                return
        else:
            count, alone = len(worker.hands.videos), worker.hands.alone
            for video in self._list.bury(worker.hands):
                reason = f"its worker died (exit code {code}); out of memory? --workers 1"
                yield Outcome(video.id, error=f"{video.path}: {reason}")
            if not alone:
                log.warning("a worker died (exit code %s): its %d videos are done again", code, count)
        if self._list:
            self._fill(self._start(worker.job))


class _Worker:
    """One process, as seen by the parent."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.hands = Hands(room=2 + job.decoders)
        self.ready = False
        context = multiprocessing.get_context("spawn")  # fork would copy threads and handles in unknown states
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(job, theirs), daemon=not job.decoders)
        self.process.start()
        theirs.close()  # or a dead worker's pipe would never read as closed

    def give(self, video: Video) -> None:
        with contextlib.suppress(ConnectionError):  # it died: the next recv says so
            self.pipe.send(video)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _work(job: Job, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    # without the parent, the next run goes on from the store
    with contextlib.suppress(ConnectionError), prepared(job) as backbone:
        pipe.send(None)
        for message in run_here(_received(pipe), job, backbone):
            pipe.send(message)


def _received(pipe: Connection) -> Iterator[Video]:
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe, or was killed
        while True:
            yield pipe.recv()
