"""When each frame of a running source is due, in constant memory: the rule of `extract.audio` without its end."""

from collections import deque

import numpy as np

from extract.times import Times

_UNSTAMPED = ("avi", "mxf")  # FFmpeg guesses their presentation times, wrongly where frames are reordered
_BACK_S = 1.0  # frames may be a little out of order
_AHEAD_S, _AHEAD_FRAMES = 10.0, 30  # frames may pause; behind a longer pause nobody knows what happened


class LiveClock(Times):
    """The time stamps of frames, of which those are kept that are still asked for.

    Time 0 is the first frame. Frames are due by the frame rate as long as every one so far lies within half a frame of
    its place, and by their own time stamps from the first one on that does not.

    Args:
        rate: frames per second by the header, None where it does not say.
        fps: to count by: `rate`, or what is taken in its place.
        container: FFmpeg's name of the format.
        start_s: where the file's clock starts, by the header.
        trusted: as in `Times`.
    """

    def __init__(self, rate: float | None, fps: float, container: str, start_s: float, *, trusted: bool) -> None:
        super().__init__(trusted=trusted)
        self._rate, self._fps, self._start_s = rate, fps, start_s
        self._guessed = container in _UNSTAMPED
        self._index: deque[int] = deque()
        self._seconds: deque[float] = deque()  # since time 0; never falling
        self._stamp = 0.0
        self.frames = 0
        """Frames so far, those without a time stamp included."""
        self.zero: float | None = start_s if self._guessed else None
        """Time 0 on the source's own clock, seconds; None before the first frame."""

    def add(self, index: int, seconds: float) -> None:
        """See Times."""
        super().add(index, seconds)
        if self.zero is None:
            self.zero = seconds - (index / self._rate if self._rate else 0)
        since = seconds - self.zero
        self._stamp = seconds
        self._index.append(index)
        self._seconds.append(max(since, self._seconds[-1]) if self._seconds else since)

    def count_to(self, frames: int) -> None:
        """There are so many frames now."""
        self.frames = frames
        if self.zero is None and frames:  # no time stamps
            self.zero = self._start_s

    def leap(self, seconds: float) -> str:
        """What to say of the next frame's time stamp if it leaps to another time; "" where it does not."""
        by = seconds - self._stamp
        if self._guessed or not self.count or -_BACK_S <= by <= max(_AHEAD_S, _AHEAD_FRAMES / self._fps):
            return ""
        return f"the time of the frames jumps {'back' if by < 0 else 'ahead'} by {abs(by):.2f} s"

    @property
    def strayed(self) -> bool:
        """Whether a frame so far was half a frame off a constant rate."""
        return not self._guessed and self.count > 0 and not self.fits(self._fps)

    @property
    def latest_s(self) -> float:
        """When the latest frame was due, seconds since time 0."""
        return self._seconds[-1] if self._seconds and not self._guessed else self.frames / self._fps

    def knows(self, frame: float) -> bool:
        """Whether it is known when a frame is due, that behind the last one included: no later frame changes it."""
        return not self.strayed or frame < self.frames

    def due(self, frame: float) -> float:
        """When a frame is due, seconds since time 0; may lie between two, or behind the last."""
        if not self.strayed:
            return frame / self._fps
        inside = float(np.interp(frame, self._index, self._seconds))
        return inside + max(frame - self._index[-1], 0) / self._fps

    def forget(self, before: int) -> None:
        """Frames before that one are not asked for any more."""
        while len(self._index) > 1 and self._index[1] <= before:
            self._index.popleft()
            self._seconds.popleft()
