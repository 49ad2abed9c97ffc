"""The pictures of a running source: decoded once, made as large and coloured as each spec wants them, handed round."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

from data.types import FeatureSpec
from extract.decode import Frame, Reader, VideoReader
from extract.live_clock import LiveClock

_NO_PICTURE = np.zeros((1, 1), np.uint8)


class LivePictures(VideoReader):
    """The first picture track of a container that somebody else reads: packets go in, pictures come out of its taps.

    Damaged frames are kept in their place, as `extract.decode.Reader` says of "keep".

    Args:
        container: open; stays the giver's.
        name: of the source, for messages.
        fps: frames per second to count by where the source does not say.
    """

    def __init__(self, container: "av.container.InputContainer", name: str, fps: float) -> None:
        Reader.__init__(self, name, damaged="keep")
        self._begin(container)
        start_s = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        trusted = self._ledger.times.trusted
        self.clock = LiveClock(self.fps, self.fps or fps, container.format.name, start_s, trusted=trusted)
        self.times = self._ledger.times = self.clock
        self._taps: list[Tap] = []
        self._came: deque[float] = deque()
        self._first = 0  # frame of _came[0]
        self._damage = ""

    def tap(self, spec: FeatureSpec, more: Callable[[], bool]) -> "Tap":
        """Another taker of all pictures; `more` as in Tap."""
        tap = (Pace if spec.modality == "audio" else Tap)(self.path, spec, more)
        self._taps.append(tap)
        return tap

    def decode(self, packet: "av.Packet[av.VideoStream]") -> list[av.VideoFrame]:
        """The frames that come out when a packet goes in, for `take`."""
        return self._decode(packet)

    def flush(self) -> list[av.VideoFrame]:
        """The frames that the decoder still holds when packets stop coming, for `take`."""
        try:
            return self._stream.codec_context.decode(None)
        except (av.error.FFmpegError, OSError):  # it was told already
            return []

    def take(self, frames: Sequence[av.VideoFrame]) -> tuple[str, Sequence[av.VideoFrame]]:
        """Hands frames round. One at a time that has nothing to do with the last frame's stays, with those behind it.

        Returns why ("" where all were handed round), and the frames that stayed.
        """
        for i, frame in enumerate(frames):
            stamp = None if frame.pts is None else float(frame.pts * (self._stream.time_base or 0))
            if stamp is not None and (reason := self.clock.leap(stamp)):
                return reason, frames[i:]
            missing = self._ledger.come(self.num_frames, frame.pts, marked=frame.is_corrupt)
            made: dict[tuple[str, str], Frame] = {}
            for tap in self._taps:
                if tap.key not in made:
                    made[tap.key] = tap.picture(frame)
                tap.take(made[tap.key], missing)
            self._count(missing + 1)
        return "", ()

    def end(self) -> None:
        """No more frames come."""
        behind = self._ledger.end(self.num_frames)
        for tap in self._taps:
            tap.repeat(behind)
        self._count(behind)
        self.notes += self.clock.notes(self.fps)

    def came(self, frame: int) -> float:
        """When a frame was decoded, by `time.monotonic`."""
        return self._came[min(max(frame - self._first, 0), len(self._came) - 1)]

    def forget(self, before: int) -> None:
        """Frames before that one are not asked for any more."""
        self.clock.forget(before)
        while len(self._came) > 1 and self._first < before:
            self._came.popleft()
            self._first += 1

    def take_notes(self) -> list[str]:
        """What is unusual, said once."""
        said = self.notes[:]
        self.notes.clear()
        for tap in self._taps:
            said += tap.notes
            tap.notes.clear()
        return said

    @property
    def damage(self) -> tuple[int, str]:
        """How many frames so far are missing or not whole, and what FFmpeg said first."""
        return self._ledger.lost, self._ledger.reason

    def _count(self, frames: int) -> None:
        self.num_frames += frames
        self._came.extend([time.monotonic()] * frames)
        self.clock.count_to(self.num_frames)


class Tap(Reader):
    """The pictures as one spec wants them, waiting to be taken.

    Args:
        more: has the source give more pictures; False when there are none, and none came.
    """

    def __init__(self, path: object, spec: FeatureSpec, more: Callable[[], bool]) -> None:
        super().__init__(str(path), resize=spec.resize, color=spec.color, damaged="keep")
        self.key = (spec.resize, spec.color)
        """Taps of one key have one picture."""
        self._more = more
        self._waiting: deque[Frame] = deque()
        self._last: Frame | None = None

    def __iter__(self) -> Iterator[Frame]:
        while self._waiting or self._more():
            if self._waiting:
                yield self._waiting.popleft()

    def picture(self, frame: av.VideoFrame) -> Frame:
        """The frame as the spec wants it."""
        return self._upright(frame, f"frame {self.num_frames}")

    def take(self, image: Frame, missing: int) -> None:
        """A picture, with `missing` before it that show the last one, or at the start this one."""
        if self._last is None:
            self._last = image
        self.repeat(missing)
        self._last = image
        self.repeat(1)

    def repeat(self, count: int) -> None:
        """Shows the last picture again."""
        if self._last is not None:
            self._waiting.extend([self._last] * count)
            self.num_frames += count


class Pace(Tap):
    """Counts the pictures, for a spec that wants none."""

    def __init__(self, path: object, spec: FeatureSpec, more: Callable[[], bool]) -> None:
        super().__init__(path, spec, more)
        self.key = ("", "")

    def picture(self, frame: av.VideoFrame) -> Frame:
        """No picture."""
        return _NO_PICTURE
