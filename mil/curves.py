"""ROC and precision-recall over millions of frames: runs are counted, not repeated; scores are sorted once.

A clip's score stands on all its frames, so a video of F frames holds far fewer different scores. A Tally keeps, for
each different score of each video, how many normal and how many anomalous frames carry it. Every area below is exact:
the value that sklearn gives for the frames written out.

Conventions: P and N are anomalous and normal frames; a threshold admits scores >= it; R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Frames counted by score, highest score first.

    Args:
        scores: (M,) descending; equal ones stand together, one per video.
        video: (M,) index of the video.
        positives, negatives: (M,) frames of that video with that score.
        ends: (U,) index of the last entry of each different score: ties are passed in one step.
    """

    scores: Floats
    video: Ints
    positives: Ints
    negatives: Ints
    ends: Ints

    @classmethod
    def of(cls, videos: Sequence[FrameScores]) -> "Tally":
        """Counts the frames of some videos."""
        scores, index, positives, negatives = [], [], [], []
        for i, video in enumerate(videos):
            values, counts, high = _runs(video)
            scores.append(values)
            index.append(np.full(len(values), i, dtype=np.int64))
            positives.append(high)
            negatives.append(counts - high)
        joined = np.concatenate(scores)
        order = np.argsort(-joined, kind="stable")
        joined = joined[order]
        ends = np.append(np.flatnonzero(np.diff(joined)), len(joined) - 1)
        where, high, low = (np.concatenate(parts)[order] for parts in (index, positives, negatives))
        return cls(joined, where, high, low, ends)

    def counts(self) -> tuple[Floats, Floats]:
        """True and false positives at each different score, (U,) each."""
        high, low = np.cumsum(self.positives)[self.ends], np.cumsum(self.negatives)[self.ends]
        return high.astype(np.float64), low.astype(np.float64)

    def weighted_counts(self, weights: NDArray[np.float64]) -> tuple[Floats, Floats]:
        """The same with every video counted `weights` times, (R, V) -> (R, U) each."""
        per_entry = weights[:, self.video]
        high = np.cumsum(per_entry * self.positives, axis=1)[:, self.ends]
        low = np.cumsum(per_entry * self.negatives, axis=1)[:, self.ends]
        return high, low

    @property
    def thresholds(self) -> Floats:
        """The different scores, descending, (U,)."""
        return self.scores[self.ends]


def roc_area(high: Floats, low: Floats) -> Floats:
    """Area under the ROC curve from cumulative counts (..., U); NaN where a class has no frames. Ties count half."""
    step = np.diff(low, axis=-1, prepend=0.0)
    before = np.concatenate([np.zeros_like(high[..., :1]), high[..., :-1]], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((step * (high + before) / 2).sum(-1) / (high[..., -1] * low[..., -1]))


def step_precision(high: Floats, low: Floats) -> Floats:
    """Stepwise average precision, sum of precision times growth of recall; NaN without anomalous frames."""
    growth = np.diff(high, axis=-1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((_precision(high, low) * growth).sum(-1) / high[..., -1])


def trapezoid_precision(high: Floats, low: Floats) -> Floats:
    """Area under straight lines between the points of the precision-recall curve, from (recall 0, precision 1) on."""
    growth = np.diff(high, axis=-1, prepend=0.0)
    precision = _precision(high, low)
    before = np.concatenate([np.ones_like(precision[..., :1]), precision[..., :-1]], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((precision + before) / 2 * growth).sum(-1) / high[..., -1])


def _precision(high: Floats, low: Floats) -> Floats:
    total = high + low
    # a resample may hold none of the videos with the highest scores: nothing is admitted yet, nothing grows
    return np.divide(high, total, out=np.ones_like(total), where=total > 0)


def _runs(video: FrameScores) -> tuple[Floats, Ints, Ints]:
    """Different scores of a video, ascending, with the number of frames and of anomalous frames that carry each."""
    changes = np.flatnonzero(np.diff(video.scores)) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.append(starts, len(video.scores)))
    high = np.add.reduceat(video.labels.astype(np.int64), starts)
    values, where = np.unique(video.scores[starts], return_inverse=True)
    counts = np.zeros((2, len(values)), dtype=np.int64)
    np.add.at(counts[0], where, lengths)
    np.add.at(counts[1], where, high)
    return values, counts[0], counts[1]
