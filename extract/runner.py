"""Runs a backbone over many videos: decode | batch | forward | write, in several processes, resumable at any moment.

Every worker walks the same list and claims videos with flock, so workers may be killed, added and removed at will,
on one machine or on many. What is in the store is complete; a rerun does what is missing.
"""

import logging
import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

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


@dataclass(frozen=True)
class _Outcome:
    """One video, done or failed or left to another worker, as sent from a worker to the parent."""

    video_id: str
    worker: int
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
        parts = [
            backbone.extract(clips, np.full(len(clips), reader.fps or 25.0))
            for clips in _prefetch(_batches(clips_of(reader, spec), batch))
        ]
        frames, fps = reader.num_frames, reader.fps
        notes = tuple(reader.notes)
    if video.num_frames is not None and video.num_frames != frames:
        raise ValueError(
            f"{video.path}: the manifest says {video.num_frames} frames, decoding gave {frames}; correct the manifest, "
            "or the file is another one"
        )
    if frames < spec.clip_len * spec.step:
        notes += (f"{frames} frames, shorter than one clip of {spec.clip_len * spec.step}: filled by rule '{spec.tail}'",)
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
        backbone: registered name, with `options` for its constructor.
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
    net = create(backbone, **(options or {}))
    store = FeatureStore(root, net.spec)
    store.sweep()
    mine = list(videos)[index - 1 :: count]
    todo = [v for v in mine if v.id not in store]
    report = ExtractReport(present=[v.id for v in mine if v.id in store])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(min(workers or (1 if net.uses_torch else cores), len(todo)), 1)
    job = _Job(
        str(root), backbone, options or {}, batch, max(cores // workers, 1), tuple(str(p) for p in plugins)
    )
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


def _one(video: Video, store: FeatureStore, backbone: Backbone, batch: int, worker: int) -> _Outcome:
    with store.claim(video.id) as mine:
        if not mine or video.id in store:
            return _Outcome(video.id, worker, elsewhere=True)
        try:
            features, notes = extract_video(video, backbone, batch=batch)
            store.write(features)
        except Exception as error:  # whatever one video does must not cost the others
            log.debug("%s", traceback.format_exc())
            return _Outcome(video.id, worker, error=f"{error}" or type(error).__name__)
        return _Outcome(video.id, worker, features.grid.num_frames, notes=notes)


def _run_here(todo: Sequence[Video], job: _Job, backbone: Backbone) -> Iterator[_Outcome]:
    store = FeatureStore(job.root)
    for video in todo:
        yield _one(video, store, backbone, job.batch, 0)


def _run_workers(todo: Sequence[Video], job: _Job, workers: int) -> Iterator[_Outcome]:
    context = multiprocessing.get_context("spawn")  # fork would copy threads and handles in unknown states
    tasks: multiprocessing.Queue[Video] = context.Queue()
    results: multiprocessing.Queue[_Outcome | int] = context.Queue()
    for video in todo:
        tasks.put(video)
    # an unbuffered record of who works on what, so that a killed worker's video can be named
    current = context.Array("i", [-1] * workers)
    place = {video.id: i for i, video in enumerate(todo)}
    processes = [
        context.Process(target=_worker, args=(n, job, tasks, results, current, place), daemon=True) for n in range(workers)
    ]
    for process in processes:
        process.start()
    waiting = {video.id for video in todo}
    alive = set(range(workers))
    try:
        while waiting:
            try:
                outcome = results.get(timeout=0.5)
            except queue.Empty:
                for n in [n for n in alive if processes[n].exitcode is not None]:
                    alive.discard(n)
                    video = todo[current[n]] if current[n] >= 0 else None
                    if video is not None and video.id in waiting:
                        waiting.discard(video.id)
                        code = processes[n].exitcode
                        yield _Outcome(video.id, n, error=f"{video.path}: its worker died (exit code {code}); out of memory?")
                if not alive:
                    for video_id in sorted(waiting):
                        yield _Outcome(video_id, -1, error="no worker is left to extract it; run the command again")
                    return
                continue
            if isinstance(outcome, _Outcome) and outcome.video_id in waiting:
                waiting.discard(outcome.video_id)
                yield outcome
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _worker(
    number: int,
    job: _Job,
    tasks: "multiprocessing.Queue[Video]",
    results: "multiprocessing.Queue[_Outcome | int]",
    current: Any,
    place: dict[str, int],
) -> None:
    for plugin in job.plugins:
        load_plugin(Path(plugin))
    backbone = create(job.backbone, **job.options)
    if backbone.uses_torch:
        import torch

        torch.set_num_threads(job.threads)
    store = FeatureStore(job.root)
    parent = os.getppid()
    while True:
        try:
            video = tasks.get(timeout=1.0)
        except queue.Empty:
            if os.getppid() != parent:  # the parent was killed: stop, the next run goes on
                return
            continue
        current[number] = place[video.id]
        results.put(_one(video, store, backbone, job.batch, number))


def _batches(clips: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    batch: list[NDArray[np.uint8]] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _prefetch(items: Iterator[NDArray[np.uint8]], ahead: int = 2) -> Iterator[NDArray[np.uint8]]:
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
