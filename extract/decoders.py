"""Decoding in processes of their own, into shared memory: a GPU takes clips faster than one core decodes them."""

import contextlib
import mmap
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec, Video
from extract.sources import Clip, End, Piece, Source, Take
from extract.streams import Facts, Reading, clips_from

_BYTES = 256 << 20  # of shared memory for each process; touched as far as it is used
_PAGE = 4096
_MOST_PLACES = 64  # so that all their messages fit into a pipe: or both sides could wait for the other one to read
_STILLBORN = 3  # processes in a row that die before they are ready


class ProcessSource(Source):
    """Clips of several videos at once, each decoded by a process of its own.

    Args:
        take: gives the videos.
        spec: what the clips are made by.
        reading: how damaged files are read.
        processes: how many.
        memory: bytes that the clips of one process may take before somebody releases them. A clip of which it does not
            hold two is sent through a pipe.
    """

    def __init__(self, take: Take, spec: FeatureSpec, reading: Reading, processes: int, memory: int = _BYTES) -> None:
        self._job = (spec, reading)
        self._memory = memory
        self._idle: queue.SimpleQueue[_Decoder | None] = queue.SimpleQueue()
        self._news, self._bell = multiprocessing.Pipe(duplex=False)
        self._decoders: dict[Connection, _Decoder] = {}
        self._ready: deque[Piece] = deque()
        self._no_more = False
        self._stillborn = 0
        self._failure: BaseException | None = None
        for _ in range(processes):
            self._idle.put(self._start())
        self._taker = threading.Thread(target=self._give, args=(take,), daemon=True)
        self._taker.start()

    def get(self, *, wait: bool) -> Piece | None:
        """See Source."""
        while not self._ready and not self.finished:
            if not self._listen(wait) and not wait:
                break
        if self._failure is not None:
            raise self._failure
        return self._ready.popleft() if self._ready else None

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._no_more and not self._ready and all(d.given is None for d in self._decoders.values())

    def close(self) -> None:
        """See Source."""
        self._idle.put(None)
        for decoder in self._decoders.values():
            decoder.bury()
        self._taker.join(timeout=1.0)  # it may wait for a video that never comes; the thread is a daemon

    def _start(self) -> "_Decoder":
        decoder = _Decoder(*self._job, self._memory)
        self._decoders[decoder.pipe] = decoder
        return decoder

    def _give(self, take: Take) -> None:
        """The taker's thread: a video for every process that has none."""
        try:
            while (decoder := self._idle.get()) is not None and (taken := take()) is not None:
                if isinstance(taken, End):
                    self._ready.append(taken)
                    self._idle.put(decoder)
                    self._ring()
                    continue
                while decoder is not None and not decoder.give(*taken):  # it died in idleness
                    decoder = self._idle.get()
        except BaseException as error:
            self._failure = error
        self._no_more = True
        self._ring()

    def _ring(self) -> None:
        """Has whoever listens look up."""
        with contextlib.suppress(OSError):
            self._bell.send_bytes(b"!")

    def _listen(self, wait_for: bool) -> bool:
        heard = wait([*self._decoders, self._news], None if wait_for else 0)
        for pipe in heard:
            if pipe is self._news:
                self._news.recv_bytes()
                continue
            decoder = self._decoders[pipe]  # type: ignore[index]
            try:
                message = decoder.pipe.recv()
            except (EOFError, OSError):
                self._replace(decoder)
                continue
            if message is None:
                decoder.ready = True
                self._stillborn = 0
                continue
            if isinstance(message, tuple):
                self._ready.append(decoder.clip(*message))
                continue
            number = decoder.end()
            failed = isinstance(message, str)
            self._ready.append(End(number, error=ValueError(message)) if failed else End(number, message))
            self._idle.put(decoder)
        return bool(heard)

    def _replace(self, decoder: "_Decoder") -> None:
        """A process died: its video is lost, the others go on.

        Raises ChildProcessError where several in a row did not even start.
        """
        del self._decoders[decoder.pipe]
        decoder.process.join()
        given, code = decoder.bury(), decoder.process.exitcode
        if not decoder.ready:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN:
                raise ChildProcessError(f"no decoding process can start (exit code {code}); see its message above")
        elif given is not None:
            number, video = given
            reason = f"{video.path}: its decoder died (exit code {code}); out of memory? --decoders 1"
            self._ready.append(End(number, error=ChildProcessError(reason)))
            given = None
        new = self._start()
        if given is None:
            self._idle.put(new)
        else:
            new.give(*given)


class _Decoder:
    """One process, as seen by whoever uses it."""

    def __init__(self, spec: FeatureSpec, reading: Reading, memory: int) -> None:
        self.given: tuple[int, Video] | None = None
        self.ready = False
        self._dead = False
        self._sending = threading.Lock()  # the taker gives videos, another thread gives memory back
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, spec, reading), daemon=True)
        self.process.start()
        theirs.close()
        with _unnamed(memory) as handle:
            self._memory = mmap.mmap(handle, memory)
            with contextlib.suppress(ConnectionError):  # it died: listening notices
                send_handle(self.pipe, handle, self.process.pid)

    def give(self, number: int, video: Video) -> bool:
        """Has it decode a video; False when it is known to be dead."""
        with self._sending:
            if self._dead:
                return False
            self.given = number, video
            with contextlib.suppress(ConnectionError):
                self.pipe.send((number, video))
            return True

    def clip(
        self, place: int | None, shape: tuple[int, ...], dtype: str, fps: float, sent: NDArray[Any] | None
    ) -> Clip:
        if self.given is None:
            raise RuntimeError("a decoder sent a clip of a video that was never given")
        number = self.given[0]
        if sent is not None:
            return Clip(number, sent, fps, _nothing)
        data: NDArray[Any] = np.ndarray(shape, dtype, buffer=self._memory, offset=place or 0)
        return Clip(number, data, fps, lambda: self._release(place))

    def end(self) -> int:
        given, self.given = self.given, None
        if given is None:
            raise RuntimeError("a decoder ended a video that was never given")
        return given[0]

    def bury(self) -> tuple[int, Video] | None:
        """Ends it, if it still lives; returns the video that it was at."""
        with self._sending:
            self._dead = True
            self.pipe.close()
        self.process.terminate()
        self.process.join()
        return self.given

    def _release(self, place: int | None) -> None:
        with self._sending, contextlib.suppress(OSError):  # it has gone, and its places with it
            self.pipe.send(place)


@contextlib.contextmanager
def _unnamed(size: int) -> Iterator[int]:
    """A file in memory without a name: it goes when the last process has gone that holds it, whatever kills them."""
    with os.fdopen(os.memfd_create("clips"), "wb") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), size)
        yield file.fileno()


def _nothing() -> None:
    pass


# -- in the process ----------------------------------------------------------------------------------------------------


def _work(pipe: Connection, spec: FeatureSpec, reading: Reading) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    if "flow" in spec.options:
        import cv2

        cv2.setNumThreads(1)  # there is a process for every core
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        handle = recv_handle(pipe)
        memory = mmap.mmap(handle, os.fstat(handle).st_size)
        os.close(handle)
        pipe.send(None)
        places = _Places(pipe, len(memory))
        while True:
            video = places.next_video()
            try:
                pipe.send(_decode(video, spec, reading, memory, places, pipe))
            except Exception as error:  # its text: not every error survives a pipe
                pipe.send(f"{error}" or type(error).__name__)


def _decode(
    video: Video, spec: FeatureSpec, reading: Reading, memory: mmap.mmap, places: "_Places", pipe: Connection
) -> Facts:
    with contextlib.closing(clips_from(video, spec, reading)) as clips:
        while True:
            try:
                clip, fps = next(clips)
            except StopIteration as done:
                facts: Facts = done.value
                return facts
            place = places.take(clip.nbytes)
            if place is None:
                pipe.send((None, clip.shape, clip.dtype.str, fps, clip))
                continue
            np.ndarray(clip.shape, clip.dtype, buffer=memory, offset=place)[...] = clip
            pipe.send((place, clip.shape, clip.dtype.str, fps, None))


class _Places:
    """Parts of the shared memory, all of one size at a time; waits until one is free."""

    def __init__(self, pipe: Connection, size: int) -> None:
        self._pipe = pipe
        self._size = size
        self._part = 0
        self._free: list[int] = []
        self._out: set[int] = set()
        self._videos: deque[Video] = deque()

    def next_video(self) -> Video:
        while not self._videos:
            self._hear()
        return self._videos.popleft()

    def take(self, size: int) -> int | None:
        """Where the next clip of `size` bytes goes; None when the memory does not hold two."""
        part = -(-size // _PAGE) * _PAGE
        if 2 * part > self._size:
            return None
        if part != self._part:
            while self._out:  # clips of another size are still in use
                self._hear()
            self._part = part
            self._free = [i * part for i in range(min(self._size // part, _MOST_PLACES))]
        while not self._free:
            self._hear()
        place = self._free.pop(0)
        self._out.add(place)
        return place

    def _hear(self) -> None:
        message = self._pipe.recv()
        if isinstance(message, tuple):
            self._videos.append(message[1])
        else:
            self._out.discard(message)
            self._free.append(message)
