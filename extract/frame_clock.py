"""When each frame of a video is due, without making pictures of them."""

from array import array
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from extract.decode import Frame, VideoReader
from extract.times import Times

_BACK_S = 1.0  # frames may be a little out of order; more is another recording's clock
_NO_PICTURE = np.zeros((1, 1), np.uint8)


class _AllTimes(Times):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.index = array("q")
        self.seconds = array("d")

    def add(self, index: int, seconds: float) -> None:
        super().add(index, seconds)
        self.index.append(index)
        self.seconds.append(seconds)


class FrameClock(VideoReader):
    """Counts the frames of a video as `VideoReader` does and keeps their times, without making pictures of them."""

    def __init__(self, path: Path | str, *, damaged: str) -> None:
        super().__init__(path, damaged=damaged)
        self.notes.clear()  # on the frame rate, which matters to motion
        codec = self._stream.codec_context
        codec.options = {**codec.options, "skip_loop_filter": "all"}  # blocky pictures, in 4/5 of the time
        self._all = self.times = self._ledger.times = _AllTimes()
        # AVI and MXF have no presentation times: FFmpeg guesses them, wrongly where frames are reordered
        self._guessed = self._container.format.name in ("avi", "mxf")

    @property
    def zero(self) -> float:
        """The time of the first frame on the file's clock, seconds."""
        if self._guessed or not self._all.count:
            return float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        return self._all.seconds[0] - (self._all.index[0] / self.fps if self.fps else 0)

    def strayed(self, fps: float) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Numbers of frames and their seconds since `zero`, if one is half a frame off a constant rate; else None.

        Raises DecodeError where time runs backwards.
        """
        if self._guessed or not self._all.count or self._all.fits(fps):
            return None
        times = np.frombuffer(self._all.seconds, np.float64) - self.zero
        upto = np.maximum.accumulate(times)
        if (back := float((upto - times).max())) > _BACK_S:
            raise self._damaged(f"the time of the frames jumps back by {back:.2f} s")
        return np.frombuffer(self._all.index, np.int64), upto

    def _convert(self, frame: av.VideoFrame, width: int, height: int, rotation: int) -> Frame:
        return _NO_PICTURE
