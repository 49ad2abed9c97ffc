"""The extraction loop: clips of several videos -> batches -> forward pass -> each video's file, all overlapped.

While a batch is on its way through the net, the next is decoded and the one before it is written. Memory does not grow
with the length of a video: its features wait in a spool.
"""

import contextlib
import errno
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data.spool import FeatureSpool, SpooledFeatures
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract.backbones import Backbone
from extract.sources import Clip, End, Source, Take
from extract.streams import Facts

log = logging.getLogger(__name__)
_SAY_EVERY_S = 10.0
_MOST_WRITING = 16  # videos that wait for a slow disk, each with its features and an open file or two
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Outcome:
    """One video, done or failed or left to another worker, as sent from a worker to the parent."""

    video_id: str
    frames: int = 0
    clips: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()
    elsewhere: bool = False
    fatal: bool = False
    """The disk is full: further videos would be computed for nothing."""


@dataclass(frozen=True)
class Progress:
    """A long video that is not through yet: clips done so far, of how many frames of it."""

    video_id: str
    clips: int
    frames: int


Messages = Generator[Outcome | Progress, None, None]


@dataclass
class _Work:
    """One video under way: clips are sent to the backbone, arrive in the spool, and end with its last one."""

    video: Video
    claim: contextlib.ExitStack
    spool: FeatureSpool
    sent: int = 0
    facts: Facts | None = None
    ended: bool = False
    elsewhere: bool = False
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)
    said: float = field(default_factory=time.monotonic)


_Result = Callable[[], NDArray[np.float32]]


class Engine:
    """Extracts videos into a store, as they come.

    Args:
        store: where features go, and where videos are claimed.
        backbone: what makes them.
        source: makes the source of clips from a function that gives videos.
        batch: clips of one forward pass, of several videos where one has no more.
    """

    def __init__(self, store: FeatureStore, backbone: Backbone, source: Callable[[Take], Source], batch: int) -> None:
        self.store = store
        self.backbone = backbone
        self.batch = batch
        self._source = source
        self._works: dict[int, _Work] = {}
        self._waiting: list[Clip] = []
        self._flying: deque[tuple[list[Clip], _Result]] = deque()
        self._writing: deque[Future[Outcome]] = deque()
        self._count = 0

    def run(self, videos: Iterator[Video]) -> Messages:
        """One outcome for every video, in the order in which they are through; progress of long ones in between.

        Raises what `videos` raises. A video that fails costs the others nothing.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._drop_all)
            writer = stack.enter_context(ThreadPoolExecutor(1))
            source = self._source(lambda: self._take(videos))
            stack.callback(source.close)
            while True:
                busy = bool(self._waiting or self._flying or self._writing)
                piece = source.get(wait=not busy)
                if isinstance(piece, Clip):
                    yield from self._clip(piece)
                elif isinstance(piece, End):
                    self._end(piece)
                elif self._waiting:
                    self._launch()  # nothing is there to fill the batch: better now than later
                elif self._flying:
                    self._collect()
                elif self._writing:
                    yield self._writing.popleft().result()
                elif self._works:
                    raise RuntimeError(f"clips are missing of {', '.join(w.video.id for w in self._works.values())}")
                else:
                    break
                while len(self._flying) > 1:
                    self._collect()
                self._write_finished(writer)
                while self._writing and (self._writing[0].done() or len(self._writing) > _MOST_WRITING):
                    yield self._writing.popleft().result()

    # -- the stages ----------------------------------------------------------------------------------------------------

    def _take(self, videos: Iterator[Video]) -> tuple[int, Video] | End | None:
        """The next video, or its end at once where somebody else has it; called by the source, perhaps in a thread."""
        video = next(videos, None)
        if video is None:
            return None
        spec, claim = self.store.spec, contextlib.ExitStack()
        spool = FeatureSpool(spec.crops, spec.dim, spec.dtype, self.store.root)
        claim.callback(spool.close)
        self._count += 1
        work = self._works[self._count] = _Work(video, claim, spool)
        try:
            work.elsewhere = not claim.enter_context(self.store.claim(video.id)) or video.id in self.store
        except OSError as error:
            return End(self._count, error=error)
        if not work.elsewhere:
            return self._count, video
        claim.close()  # at once: a list that others have been through would hold more open files than a process may
        return End(self._count)

    def _clip(self, clip: Clip) -> Iterator[Progress]:
        work = self._works[clip.number]
        if work.error is not None:  # what was decoded ahead is of no use
            clip.release()
            return
        work.sent += 1
        self._waiting.append(clip)
        if len(self._waiting) >= self.batch:
            self._launch()
        if time.monotonic() - work.said > _SAY_EVERY_S:
            work.said = time.monotonic()
            yield Progress(work.video.id, work.sent, work.sent * self.store.spec.stride)

    def _end(self, end: End) -> None:
        work = self._works[end.number]
        work.ended, work.facts = True, end.facts
        work.error = work.error or end.error

    def _launch(self) -> None:
        clips, self._waiting = self._waiting, []
        try:
            result = self.backbone.submit([c.data for c in clips], [c.fps for c in clips])
        except Exception as error:
            result = partial(_raise, error)  # when its turn comes: what flies before it is not lost
        self._flying.append((clips, result))

    def _collect(self) -> None:
        clips, result = self._flying.popleft()
        try:
            features = result()
            if len(features) != len(clips):
                raise ValueError(f"the backbone made features of {len(features)} clips from {len(clips)}")
        except Exception as error:
            self._failed(clips, error)
            return
        notes = self.backbone.take_notes()
        for clip, row in zip(clips, features, strict=True):
            work = self._works.get(clip.number)  # None: the video has failed, and that is written
            if work is not None and work.error is None:
                work.notes += notes
                notes = []
                try:
                    work.spool.append(row[None])
                except Exception as error:  # of this video only
                    work.error = error
            clip.release()

    def _failed(self, clips: list[Clip], error: Exception) -> None:
        if len(clips) > 1:  # one of them is at fault: each once more, alone and in order
            self._flying.extendleft(([clip], partial(self._alone, clip)) for clip in reversed(clips))
            return
        clip = clips[0]
        if (work := self._works.get(clip.number)) is not None:
            work.error = work.error or error
        clip.release()

    def _alone(self, clip: Clip) -> NDArray[np.float32]:
        return self.backbone.submit([clip.data], [clip.fps])()

    def _write_finished(self, writer: ThreadPoolExecutor) -> None:
        for number, work in list(self._works.items()):
            if work.ended and (work.error is not None or work.spool.clips == work.sent):
                del self._works[number]
                self._writing.append(writer.submit(self._write, work))

    def _write(self, work: _Work) -> Outcome:
        video = work.video
        with work.claim:
            if work.elsewhere:
                return Outcome(video.id, elsewhere=True)
            try:
                if work.error is not None or work.facts is None:
                    raise work.error or RuntimeError("the video ended without its length")
                features, notes = described(video, self.store.spec, work.spool, work.facts)
                self.store.write(features)
            except Exception as error:  # whatever one video does must not cost the others
                log.debug("%s", "".join(traceback.format_exception(error)))
                full = isinstance(error, OSError) and error.errno in _DISK_FULL
                return Outcome(video.id, error=f"{error}" or type(error).__name__, fatal=full)
            return Outcome(video.id, features.grid.num_frames, len(features.grid), notes=(*notes, *work.notes))

    def _drop_all(self) -> None:
        for work in self._works.values():
            work.claim.close()
        self._works.clear()


def _raise(error: Exception) -> NDArray[np.float32]:
    raise error


def described(
    video: Video, spec: FeatureSpec, spool: FeatureSpool, facts: Facts
) -> tuple[SpooledFeatures, tuple[str, ...]]:
    """The features of a video that was read to its end, and notes on what is unusual about it.

    Raises ValueError on a length that the manifest denies.
    """
    if video.num_frames is not None and video.num_frames != facts.num_frames:
        raise ValueError(
            f"{video.path}: the manifest says {video.num_frames} frames, decoding gave {facts.num_frames}; correct the "
            "manifest, or the file is another one"
        )
    notes = list(facts.notes)
    grid = spec.grid(facts.num_frames, fps=facts.fps)
    if grid.num_shown < grid.extent:
        notes.append(f"{facts.num_frames} frames, shorter than one clip of {grid.extent}: filled by rule '{spec.tail}'")
    return SpooledFeatures(video.id, spool, grid, facts.fps, facts.num_bytes, lost=facts.lost), tuple(notes)
