"""Where clips come from: decoded in a thread beside the forward pass, or by processes into shared memory."""

import contextlib
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from data.types import FeatureSpec, Video
from extract.streams import Facts, Reading, clips_from


@dataclass(frozen=True)
class Clip:
    """One clip of the video with that number; `release` gives its memory back to whoever made it."""

    number: int
    data: NDArray[Any]
    fps: float
    release: Callable[[], None]


@dataclass(frozen=True)
class End:
    """A video has no more clips: it was read to its end, or `error` says why not."""

    number: int
    facts: Facts | None = None
    error: BaseException | None = None


Piece = Clip | End
Take = Callable[[], tuple[int, Video] | End | None]
"""The next video to decode with its number, or the end of one that is not to be decoded, which is passed on; None when
there are no more. May block; is called by one thread only."""


class Source(ABC):
    """Pieces of several videos. Those of one video come in order; those of different videos may mix."""

    @abstractmethod
    def get(self, *, wait: bool) -> Piece | None:
        """The next piece; None when all videos are through, or when `wait` is false and none is ready."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all videos are through."""

    @abstractmethod
    def close(self) -> None:
        """Stops decoding, wherever it is."""


class ThreadSource(Source):
    """Decodes one video after the other in a thread of its own, some clips ahead of who takes them.

    Args:
        take: gives the videos.
        spec: what the clips are made by.
        reading: how damaged files are read.
        ahead: clips that wait at most, so that memory does not grow with the video.
    """

    def __init__(self, take: Take, spec: FeatureSpec, reading: Reading, ahead: int) -> None:
        self._ready: queue.Queue[Piece | BaseException | None] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._taking = False
        self._finished = False
        self._thread = threading.Thread(target=self._decode, args=(take, spec, reading), daemon=True)
        self._thread.start()

    def get(self, *, wait: bool) -> Piece | None:
        """See Source."""
        if self._finished:
            return None
        try:
            piece = self._ready.get(block=wait)
        except queue.Empty:
            return None
        if piece is None or isinstance(piece, BaseException):
            self._finished = True
            if piece is not None:
                raise piece
            return None
        return piece

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._finished

    def close(self) -> None:
        """See Source."""
        self._stop.set()
        while self._thread.is_alive() and not self._taking:
            self._thread.join(timeout=0.1)
        self._thread.join(timeout=1.0)  # it may wait for a video that never comes; the thread is a daemon

    def _put(self, piece: Piece | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(piece, timeout=0.1)
            except queue.Full:
                continue
            return

    def _decode(self, take: Take, spec: FeatureSpec, reading: Reading) -> None:
        try:
            while not self._stop.is_set():
                self._taking = True
                taken = take()
                self._taking = False
                if isinstance(taken, tuple):
                    self._decode_one(*taken, spec, reading)
                    continue
                self._put(taken)
                if taken is None:
                    return
        except BaseException as error:  # of `take`: it is raised where the pieces are taken
            self._put(error)

    def _decode_one(self, number: int, video: Video, spec: FeatureSpec, reading: Reading) -> None:
        # closed here, by the thread that reads: a file must not be closed under a decoder
        with contextlib.closing(clips_from(video, spec, reading)) as clips:
            try:
                while not self._stop.is_set():
                    self._put(Clip(number, *next(clips), _nothing))
            except StopIteration as done:
                self._put(End(number, done.value))
            except Exception as error:
                self._put(End(number, error=error))


def _nothing() -> None:
    pass
