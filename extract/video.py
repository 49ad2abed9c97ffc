"""One video to its features: frames, clips, batches, forward pass, with decoding in a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from data.types import Video, VideoFeatures
from extract.backbones import Backbone
from extract.clips import clips_of
from extract.decode import slow
from extract.pictures import open_video


def extract_video(video: Video, backbone: Backbone, *, batch: int = 8) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Features of one video, and notes on what is unusual about its file.

    Decoding runs in a thread beside the forward pass, two batches ahead at most, so that memory does not grow with
    the video. Raises DecodeError on a file that cannot be read whole, ValueError on a length the manifest denies.
    """
    spec = backbone.spec
    with open_video(video.path, resize=spec.resize, color=spec.color) as reader:
        fps = reader.fps or video.fps  # a folder of pictures has none of its own
        # closed before the reader: its thread must not decode from a closed file
        with contextlib.closing(_prefetch(_batches(clips_of(reader, spec), batch))) as batches:
            parts = [backbone.extract(clips, np.full(len(clips), fps or 25.0)) for clips in batches]
        frames = reader.num_frames
        notes = tuple(reader.notes if reader.fps else [*reader.notes, *slow(fps)])
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
        notes += ("no frame rate in the file or the manifest: 25 taken",)
    x = np.concatenate(parts).transpose(1, 0, 2)  # (N, K, D) -> (K, N, D)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which VideoFeatures refuses by name
        x = np.ascontiguousarray(x, dtype=spec.dtype)
    return VideoFeatures(video.id, x, spec.grid(frames), fps, spec.crops, reader.num_bytes), notes


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
