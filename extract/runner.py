"""Runs a backbone over many videos: decode | batch | forward | write, in several processes, resumable at any moment.

Every worker walks the same list and claims videos with flock, so workers may be killed, added and removed at will,
on one machine or on many. What is in the store is complete; a rerun does what is missing.
"""

import contextlib
import logging
import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.files import cores
from data.registry import load_plugin
from data.store import FeatureStore
from data.types import Video, VideoFeatures
from extract.backbones import Backbone, create
from extract.clips import clips_of
from extract.decode import VideoReader

log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0


@dataclass
class ExtractReport:
    """What a run did: ids written, ids that were there already, `failures` as {id: message}, notes, frames, seconds."""

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, failures and notes, for --json."""
        counts = {"written": len(self.written), "present": len(self.present), "elsewhere": len(self.elsewhere)}
        rate = self.frames / self.seconds if self.seconds else 0.0
        return {
            **counts,
            "failures": self.failures,
            "notes": self.notes,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "frames_per_s": round(rate, 1),
        }

    def describe(self, root: Path) -> str:
        """Lines for a person; the failures once more, since they scrolled by long ago."""
        rate = f", {self.frames / self.seconds:.0f} frames/s" if self.frames else ""
        lines = [f"{len(self.written)} videos extracted, {len(self.present)} were there already{rate}: {root}"]
        if self.elsewhere:
            lines.append(f"{len(self.elsewhere)} videos are in the hands of other workers")
        if self.failures:
            lines.append(f"{len(self.failures)} videos failed (see failures.jsonl); the same command tries them again:")
            lines += [f"  {video_id}: {error}" for video_id, error in sorted(self.failures.items())]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Outcome:
    """One video, done or failed or left to another worker, as sent from a worker to the parent."""

    video_id: str
    frames: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    elsewhere: bool = False


@dataclass(frozen=True)
class _Job:
    """What a worker process needs to start."""

    root: str
    backbone: str
    options: dict[str, Any]
    batch: int
    threads: int
    plugins: tuple[str, ...]


def extract_video(video: Video, backbone: Backbone, *, batch: int = 8) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Features of one video, and notes on what is unusual about its file.

    Decoding runs in a thread beside the forward pass, two batches ahead at most, so that memory does not grow with
    the video. Raises DecodeError on a file that cannot be read whole, ValueError on a length the manifest denies.
    """
    spec = backbone.spec
    with VideoReader(video.path, resize=spec.resize, color=spec.color) as reader:
        # closed before the reader: its thread must not decode from a closed file
        with contextlib.closing(_prefetch(_batches(clips_of(reader, spec), batch))) as batches:
            parts = [backbone.extract(clips, np.full(len(clips), reader.fps or 25.0)) for clips in batches]
        frames, fps = reader.num_frames, reader.fps
        notes = tuple(reader.notes)
    if video.num_frames is not None and video.num_frames != frames:
        raise ValueError(
            f"{video.path}: the manifest says {video.num_frames} frames, decoding gave {frames}; correct the manifest, "
            "or the file is another one"
        )
    if frames < spec.clip_len * spec.step:
        notes += (
            f"{frames} frames, shorter than one clip of {spec.clip_len * spec.step}: filled by rule '{spec.tail}'",
        )
    if fps is None:
        notes += ("no frame rate in the file: 25 taken",)
    x = np.concatenate(parts).transpose(1, 0, 2)  # (N, K, D) -> (K, N, D)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which VideoFeatures refuses by name
        x = np.ascontiguousarray(x, dtype=spec.dtype)
    size = Path(video.path).stat().st_size
    return VideoFeatures(video.id, x, spec.grid(frames), fps, spec.crops, size), notes


def extract_all(
    videos: Sequence[Video],
    root: Path,
    backbone: str,
    options: dict[str, Any] | None = None,
    *,
    workers: int = 0,
    batch: int = 8,
    shard: tuple[int, int] = (1, 1),
    plugins: Sequence[Path] = (),
) -> ExtractReport:
    """Extracts what is missing of `videos` into the store at `root`.

    Args:
        videos: the manifest's rows.
        root: the store; made when it is not there.
        backbone: registered name.
        options: for the backbone's constructor.
        workers: processes; 0 chooses one per core for CPU descriptors and one for nets.
        batch: clips per forward pass.
        shard: (i, n), 1 <= i <= n: every n-th video from the i-th on, for job arrays.
        plugins: files that register further backbones.

    Raises SpecMismatchError when the store was made otherwise. A video that fails is reported, recorded in
    failures.jsonl, and does not stop the others.
    """
    began = time.monotonic()
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"--shard I/N counts from 1: 1/{count} to {count}/{count}, got {index}/{count}")
    for plugin in plugins:
        load_plugin(plugin)
    net = create(backbone, **(options or {}))
    store = FeatureStore(root, net.spec)
    store.sweep()
    mine = list(videos)[index - 1 :: count]
    todo = [v for v in mine if v.id not in store]
    report = ExtractReport(present=[v.id for v in mine if v.id in store])
    workers = max(min(workers or (1 if net.uses_torch else cores()), len(todo)), 1)
    job = _Job(str(root), backbone, options or {}, batch, max(cores() // workers, 1), tuple(str(p) for p in plugins))
    with tqdm(total=len(todo), unit="video", disable=None, desc=f"extract {net.spec.id}") as bar:
        said = time.monotonic()
        outcomes = _run_here(todo, job, net) if workers == 1 else _run_workers(todo, job, workers)
        for done, outcome in enumerate(outcomes, 1):
            _note(report, store, outcome)
            bar.update(1)
            if bar.disable and time.monotonic() - said > _LOG_EVERY_S:
                said = time.monotonic()
                log.info("%d of %d videos, %.0f frames/s", done, len(todo), report.frames / (said - began))
    store.link()
    report.seconds = time.monotonic() - began
    return report


def _note(report: ExtractReport, store: FeatureStore, outcome: _Outcome) -> None:
    report.frames += outcome.frames
    report.notes += [f"{outcome.video_id}: {note}" for note in outcome.notes]
    for note in outcome.notes:
        log.warning("%s: %s", outcome.video_id, note)
    if outcome.elsewhere:
        report.elsewhere.append(outcome.video_id)
    elif outcome.error:
        log.error("%s: %s", outcome.video_id, outcome.error)
        report.failures[outcome.video_id] = outcome.error
        store.record_failure(outcome.video_id, outcome.error, backbone=store.spec.id)
    else:
        report.written.append(outcome.video_id)


def _one(video: Video, store: FeatureStore, backbone: Backbone, batch: int) -> _Outcome:
    with store.claim(video.id) as mine:
        if not mine or video.id in store:
            return _Outcome(video.id, elsewhere=True)
        try:
            features, notes = extract_video(video, backbone, batch=batch)
            store.write(features)
        except Exception as error:  # whatever one video does must not cost the others
            log.debug("%s", traceback.format_exc())
            return _Outcome(video.id, error=f"{error}" or type(error).__name__)
        return _Outcome(video.id, features.grid.num_frames, notes=notes)


def _run_here(todo: Sequence[Video], job: _Job, backbone: Backbone) -> Iterator[_Outcome]:
    store = FeatureStore(job.root)
    for video in todo:
        yield _one(video, store, backbone, job.batch)


def _run_workers(todo: Sequence[Video], job: _Job, workers: int) -> Iterator[_Outcome]:
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
                    outcome: _Outcome = worker.pipe.recv()
                except (EOFError, OSError):  # OSError: it died in the middle of a message
                    worker.process.join()
                    code = worker.process.exitcode
                    outcome = _Outcome(
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
    pipe: "Connection[Video, _Outcome]"
    video: Video

    def give(self, video: Video) -> None:
        self.video = video
        with contextlib.suppress(BrokenPipeError):  # it died: the next recv says so
            self.pipe.send(video)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _start(job: _Job, video: Video) -> _Worker:
    context = multiprocessing.get_context("spawn")  # fork would copy threads and handles in unknown states
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()  # or a dead worker's pipe would never read as closed
    worker = _Worker(process, ours, video)
    worker.give(video)
    return worker


def _work(job: _Job, pipe: "Connection[_Outcome, Video]") -> None:
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
            pipe.send(_one(video, store, backbone, job.batch))
        except BrokenPipeError:
            return


def _batches(clips: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    batch: list[NDArray[np.uint8]] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _prefetch(items: Iterator[NDArray[np.uint8]], ahead: int = 2) -> Generator[NDArray[np.uint8], None, None]:
    """The same items, made in a thread, `ahead` of them at most in waiting; its error is raised here."""
    ready: queue.Queue[NDArray[np.uint8] | BaseException | None] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: NDArray[np.uint8] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
