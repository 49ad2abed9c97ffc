"""A video at another frame rate, as a stream: which of its frames are shown is `data.grid`'s rule.

Output frame j stands for the time j / fps_out and shows the input frame nearest to it. Frames are repeated or left out,
never mixed. The rate is a fraction, so that no length and no index depends on rounding.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from data.grid import ratio_of
from extract.decode import DecodeError, Frame, Reader
from extract.wrapped import WrappedReader

Item = TypeVar("Item")


def resampled(items: Iterable[Item], rate: float) -> Iterator[Item]:
    """Frames of a video -> the frames that `ClipGrid(number of frames, rate=rate)` shows, `num_shown` of them.

    `rate` is output frames per input frame. How long the video is need not be known: one or two frames are held.
    """
    ratio = ratio_of(rate)
    p, q = ratio.numerator, ratio.denominator
    held: deque[Item] = deque()  # shown by frames that count only when the video goes on long enough
    last: Item | None = None
    given = length = 0
    for index, item in enumerate(items):
        while (2 * (given + len(held)) * q + p) // (2 * p) <= index:
            held.append(item)
        length = max((2 * (index + 1) * p + q) // (2 * q), 1)
        while held and given < length:
            given += 1
            yield held.popleft()
        last = item
    for _ in range(given, length):  # the last moment may be nearest to a frame behind the end
        yield held.popleft() if held else last  # type: ignore[misc]  # there was a frame


class ResampledReader(WrappedReader):
    """A reader at another frame rate: the same protocol. `num_frames`, `fps` and all it says are the video's own.

    Raises DecodeError at the end of a video whose frames are not at the constant rate that its header says: the frames
    shown are then not those of their time.
    """

    def __init__(self, reader: Reader, rate: float) -> None:
        super().__init__(reader)
        self.ratio = rate

    def __iter__(self) -> Iterator[Frame]:
        yield from resampled(self.reader, self.ratio)
        check_constant(self.reader)


def check_constant(reader: Reader | WrappedReader) -> None:
    """Raises DecodeError when a video that was read to its end is not at the constant rate that its header says."""
    times, fps = reader.times, reader.fps
    if fps is None or times.rate is None or times.suits(fps):
        return
    found = f"is {times.rate:.5g} frames/s by its time stamps, {fps:.5g} by its header" if times.constant else "varies"
    raise DecodeError(
        reader.path,
        f"its frame rate {found}, and the recipe resamples in time",
        f"make it constant: ffmpeg -i IN -vf fps={fps:.5g} -c:v libx264 -crf 18 OUT.mp4",
    )
