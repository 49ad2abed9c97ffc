"""Whether the frames of a video come at a constant rate, told from their time stamps in constant memory."""

import math


class Times:
    """Time stamps of frames, added one by one.

    A rate is constant when there is one at which every frame lies within half a frame of its place, counted from the
    first. Frame i at time t allows durations of one frame from t / (i + 1/2) to t / (i - 1/2); what is kept is the
    intersection of these intervals.

    Args:
        trusted: False where the container has no time stamps of frames and others make them up (H.264 in AVI); such
            may be out of order in a sound file.
    """

    def __init__(self, *, trusted: bool = True) -> None:
        self.trusted = trusted
        self.count = 0
        """Frames with a time stamp so far."""
        self.span = 0.0
        """Seconds from the first frame to the last one."""
        self.ordered = True
        """Whether every frame is later than the one before."""
        self._first = 0.0
        self._first_index = self._last_index = 0
        self._shortest, self._longest = 0.0, math.inf

    def add(self, index: int, seconds: float) -> None:
        """The time stamp of frame `index`, which is above that of the frame added before."""
        if self.count == 0:
            self._first, self._first_index = seconds, index
        else:
            i, t = index - self._first_index, seconds - self._first
            if t <= self.span:
                self.ordered = False
            self._shortest = max(self._shortest, t / (i + 0.5))
            self._longest = min(self._longest, t / (i - 0.5))
            self.span = t
        self._last_index = index
        self.count += 1

    @property
    def constant(self) -> bool:
        """Whether some constant rate explains them all."""
        return self.ordered and self._shortest <= self._longest

    @property
    def rate(self) -> float | None:
        """Frames per second between the first and the last frame; None for fewer than two."""
        return (self._last_index - self._first_index) / self.span if self.count > 1 and self.span > 0 else None

    def fits(self, fps: float) -> bool:
        """Whether every frame lies within half a frame of its place at `fps`."""
        return self.ordered and self._shortest <= 1 / fps <= self._longest

    def notes(self, fps: float | None) -> list[str]:
        """What is unusual about them in a file whose header says `fps`."""
        if fps is None or self.rate is None or self.suits(fps):
            return []
        if not self.ordered:
            return ["time stamps out of order: nobody knows whether frames are missing between them"]
        if self.constant:
            return [f"the header says {fps:.5g} frames/s, the time stamps {self.rate:.5g}"]
        return [f"variable frame rate, {self.rate:.5g} frames/s on average: clips count frames, not seconds"]

    def suits(self, fps: float) -> bool:
        """Whether they fit `fps`, or cannot say."""
        return self.fits(fps) if self.ordered else not self.trusted
