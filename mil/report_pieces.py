"""Frame scores of many runs in few bytes: each video is cut where the score of any run changes.

A clip's score stands on all its frames, so that a video of F frames has far fewer pieces. Scores are whole numbers from
0 to 65535 between the lowest and the highest of their run; pieces that these do not tell apart are one.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores

LEVELS = 65535


@dataclass(frozen=True)
class Levels:
    """Frame scores of one run: score = low + level / LEVELS * (high - low), within half a level of the true one.

    Beside a threshold it may be a whole level: which side a score lies on is exact.

    Args:
        low, high: the lowest and the highest score.
        levels: of all frames of all videos, end to end, uint16.
        reach: a score reaches the threshold where its level is >= it; None without a threshold.
    """

    low: float
    high: float
    levels: NDArray[np.uint16]
    reach: int | None = None

    @classmethod
    def of(cls, videos: Sequence[FrameScores], threshold: float | None = None) -> "Levels":
        """All frames of some videos, at least one."""
        scores = np.concatenate([v.scores for v in videos])
        low, high = float(scores.min()), float(scores.max())
        scores -= low
        if high > low:
            scores *= LEVELS / (high - low)
        levels = np.rint(scores)
        if threshold is None:
            return cls(low, high, levels.astype(np.uint16))
        if not low < threshold <= high:
            return cls(low, high, levels.astype(np.uint16), 0 if threshold <= low else LEVELS + 1)
        reach = max(1, math.ceil(LEVELS * ((threshold - low) / (high - low))))
        reached = np.concatenate([v.scores for v in videos]) >= threshold
        levels = np.where(reached, np.maximum(levels, reach), np.minimum(levels, reach - 1))
        return cls(low, high, levels.astype(np.uint16), reach)


@dataclass(frozen=True)
class Pieces:
    """Spans of frames in which no run changes, M of them, video by video.

    Args:
        stops: (M,) frame behind each piece, counted in its video, uint32.
        counts: (V,) pieces of each video.
        last: (M,) place of each piece's last frame among all frames of all videos.
    """

    stops: NDArray[np.uint32]
    counts: NDArray[np.int64]
    last: NDArray[np.int64]


def pieces(lengths: Sequence[int], runs: Sequence[NDArray[np.uint16]]) -> Pieces:
    """The fewest pieces of videos of those lengths, whose frames lie end to end in each of `runs`."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    stop = np.zeros(int(ends[-1]), dtype=bool)
    stop[ends - 1] = True
    for levels in runs:
        stop[:-1] |= levels[1:] != levels[:-1]
    last = np.flatnonzero(stop)
    video = np.searchsorted(ends, last, side="right")
    starts = ends - np.asarray(lengths)
    counts = np.bincount(video, minlength=len(ends))
    return Pieces((last + 1 - starts[video]).astype(np.uint32), counts, last)


def packed(values: NDArray[Any]) -> str:
    """Whole numbers as base64 of their bytes, little endian, in their own size."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
