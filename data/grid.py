"""Which frames each clip shows, and how clip scores become frame scores. Time is our type.

Conventions: frames are 0-based, spans are half-open [start, stop), N clips, F frames of the decoded video.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

TAILS = ("drop", "drop_one", "repeat", "loop", "given", "equal")


@dataclass(frozen=True)
class ClipGrid:
    """The clips of one video: clip i starts at frame `i * stride` and shows `clip_len` frames, `step` apart.

    Args:
        num_frames: F, the decoded length of the video, at least 1.
        clip_len: frames shown to the backbone per clip.
        stride: frames from one clip's start to the next one's.
        tail: what becomes of the frames behind the last whole clip.
            `drop`: no clip of their own, floor rule (T = floor(F/16) at 16/16).
            `drop_one`: the floor rule on F - 1 frames, of features whose flow has one frame less (T = (F-1)//16).
            `repeat`: one more clip, filled by repeating the last frame (T = ceil(F/16)).
            `loop`: one more clip, filled by looping its own frames (T = ceil(F/16)).
            `given`: exactly `count` clips, for features someone else made by a rule of their own.
            `equal`: the video in `count` equal parts, whatever `clip_len` and `stride` say: features that are
            published as 32 segments. Part i covers [floor(i F / N), floor((i + 1) F / N)), at least one frame.
        count: N for `given` and `equal`, None for the rules that compute it.
        step: frames from one shown frame to the next; a clip covers `clip_len * step` frames.
        rate: resampled frames per frame of the video, for features made at a frame rate of their own (24 of 30 frames
            per second: 0.8). `clip_len`, `stride`, `step` and the tail then count resampled frames; `num_frames`,
            `spans`, `frame_indices` and `to_frames` stay in the video's own.

    A video shorter than one clip has one clip all the same, filled as `repeat` does for the dropping rules, because
    every frame gets a score. Raises ValueError on lengths below 1, an unknown tail, or more clips than frames allow.
    """

    num_frames: int
    clip_len: int = 16
    stride: int = 16
    tail: str = "repeat"
    count: int | None = None
    step: int = 1
    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0.001 <= self.rate <= 1000:
            raise ValueError(f"ClipGrid.rate must lie in [0.001, 1000], got {self.rate}")
        for name in ("num_frames", "clip_len", "stride", "step"):
            if getattr(self, name) < 1:
                raise ValueError(f"ClipGrid.{name} must be at least 1, got {getattr(self, name)}")
        if self.tail not in TAILS:
            raise ValueError(f"ClipGrid.tail must be one of {', '.join(TAILS)}, got '{self.tail}'")
        if (self.tail in ("given", "equal")) != (self.count is not None):
            raise ValueError(
                f"ClipGrid.count goes with tail='given' or 'equal' alone, got tail='{self.tail}', count={self.count}"
            )
        if self.tail == "equal":
            if self.count is not None and self.count < 1:
                raise ValueError(f"a video is cut in at least 1 part, got {self.count}")
        elif self.count is not None and not 1 <= self.count <= -(-self.num_shown // self.stride):
            most = -(-self.num_shown // self.stride)
            raise ValueError(
                f"a video of {self.num_frames} frames holds 1 to {most} clips at stride {self.stride}, got {self.count}"
            )

    def __len__(self) -> int:
        """N, at least 1."""
        if self.count is not None:
            return self.count
        frames = self.num_shown - (self.tail == "drop_one")
        beyond = frames - self.extent
        if self.tail in ("drop", "drop_one"):
            return max(beyond // self.stride + 1, 1)
        # ceil: further clips until the last one reaches the end; a stride above the clip length must not start past it
        return max(min(-(-beyond // self.stride), (frames - 1) // self.stride) + 1, 1)

    @property
    def num_shown(self) -> int:
        """Frames after resampling, `num_frames` where the video is taken as it is."""
        return resampled_length(self.num_frames, self.rate)

    @property
    def extent(self) -> int:
        """Frames from a clip's first to behind its last: `clip_len * step`."""
        return self.clip_len * self.step

    @property
    def starts(self) -> NDArray[np.int64]:
        """First frame of each clip, (N,)."""
        parts = np.arange(len(self), dtype=np.int64)
        if self.tail == "equal":
            return parts * self.num_frames // len(self)
        return np.minimum(self._first_of(parts * self.stride), self.num_frames - 1)

    @property
    def spans(self) -> NDArray[np.int64]:
        """Frames of the video that each clip covers, (N, 2) half-open, cut at the end of the video."""
        starts = self.starts
        if self.tail == "equal":  # a video shorter than its parts: several show the same frame
            stops = np.maximum(np.append(starts[1:], self.num_frames), starts + 1)
        else:
            ends = self._first_of(np.arange(len(self), dtype=np.int64) * self.stride + self.extent)
            stops = np.maximum(np.minimum(ends, self.num_frames), starts + 1)
        return np.stack([starts, stops], axis=1)

    def frame_indices(self, clip: int) -> NDArray[np.int64]:
        """The frames shown to the backbone for clip `clip`, (clip_len,), with the tail filled by its rule.

        Raises IndexError outside [0, N).
        """
        return np.minimum(source_frames(self.shown_indices(clip), self.rate), self.num_frames - 1)

    def shown_indices(self, clip: int) -> NDArray[np.int64]:
        """As `frame_indices`, in frames after resampling."""
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} of a grid of {len(self)} clips")
        if self.tail == "equal":
            raise ValueError("the frames of an equal part are not known: somebody else pooled them")
        start = clip * self.stride
        wanted = start + np.arange(self.clip_len, dtype=np.int64) * self.step
        if self.tail == "loop":
            own = -(-(self.num_shown - start) // self.step)  # frames of its own that the clip can show
            return start + (np.arange(self.clip_len) % own) * self.step
        return np.minimum(wanted, self.num_shown - 1)

    def to_frames(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Clip scores (N,) -> frame scores (F,): the mean over the clips that cover a frame.

        Frames that no clip covers (a dropped tail, a stride above the clip length) take the score of the clip before
        them. Equal inputs give equal outputs to the bit, so that ties stay ties in a ranking metric.
        Raises ValueError when there is not one score per clip.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(self),):
            raise ValueError(f"scores must be ({len(self)},), one per clip of the grid, got {scores.shape}")
        frames = np.arange(self.num_frames)
        if self.tail == "equal":
            return np.asarray(scores[np.searchsorted(self.starts, frames, side="right") - 1], dtype=np.float64)
        if self.rate != 1.0:  # each frame has the score of the resampled frame nearest in time
            ratio = ratio_of(self.rate)
            frames = (2 * frames * ratio.numerator + ratio.denominator) // (2 * ratio.denominator)
            frames = np.minimum(frames, self.num_shown - 1)
        last = np.minimum(frames // self.stride, len(self) - 1)  # the latest clip that starts at or before the frame
        first = np.maximum(-(-(frames - self.extent + 1) // self.stride), 0)  # the earliest one that still covers it
        first = np.minimum(first, last)  # uncovered frames: the clip before them alone
        total, low, high = scores[first], scores[first], scores[first]
        for offset in range(1, int((last - first).max()) + 1):
            inside = first + offset <= last
            more = scores[(first + offset)[inside]]
            total[inside] += more
            low[inside] = np.minimum(low[inside], more)
            high[inside] = np.maximum(high[inside], more)
        # three times 0.1 is not 0.3: unclipped, a constant's mean would depend on how many clips cover the frame
        return np.asarray(np.clip(total / (last - first + 1), low, high), dtype=np.float64)

    def _first_of(self, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first frame of the video for which resampled frame `shown`, or a later one, is the nearest in time."""
        if self.rate == 1.0:
            return shown
        ratio = ratio_of(self.rate)
        return np.maximum(-((1 - 2 * shown) * ratio.denominator // (2 * ratio.numerator)), 0)


def ratio_of(rate: float) -> Fraction:
    """The fraction that a rate stands for: 24 / (30000 / 1001) is 1001/1250, not the nearest float."""
    return Fraction(rate).limit_denominator(100_000)


def resampled_length(num_frames: int, rate: float) -> int:
    """Frames of a video of `num_frames` after resampling: its duration, rounded to the nearest, at least 1."""
    ratio = ratio_of(rate)
    return max((2 * num_frames * ratio.numerator + ratio.denominator) // (2 * ratio.denominator), 1)


def source_frames(shown: NDArray[np.int64], rate: float) -> NDArray[np.int64]:
    """For resampled frames their frames of the video, the nearest in time; may lie one behind the last frame."""
    ratio = ratio_of(rate)
    return (2 * shown * ratio.denominator + ratio.numerator) // (2 * ratio.numerator)
