"""ROC and precision-recall over millions of frames: runs are counted, not repeated; scores are sorted once.

A clip's score stands on all its frames, so a video of F frames holds far fewer runs of equal scores. A Tally keeps, for
each run of each video, how many normal and how many anomalous frames it has. Every area below is exact: the value that
sklearn gives for the frames written out.

Conventions: P and N are anomalous and normal frames; a threshold admits scores >= it; R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Runs of equally scored frames, highest score first.

    Args:
        scores: (M,) descending, of M runs.
        video: (M,) index of the video.
        positives, negatives: (M,) anomalous and normal frames of the run.
        ends: (U,) index of the last run of each different score: ties are passed in one step.
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
        order = np.argsort(-joined)
        joined = joined[order]
        ends = np.append(np.flatnonzero(joined[1:] != joined[:-1]), len(joined) - 1)
        where, high, low = (np.concatenate(parts)[order] for parts in (index, positives, negatives))
        return cls(joined, where, high, low, ends)

    def counts(self) -> tuple[Floats, Floats]:
        """True and false positives at each different score, (U,) each."""
        high, low = np.cumsum(self.positives)[self.ends], np.cumsum(self.negatives)[self.ends]
        return high.astype(np.float64), low.astype(np.float64)

    def weighted_counts(self, weights: Ints) -> tuple[Floats, Floats]:
        """The same with every video counted `weights` times, (R, V) -> (R, C) each, at the `corners` alone."""
        found = []
        for videos, counts, until in self._corners:
            sums = np.zeros((len(weights), len(videos) + 1), dtype=np.int64)  # whole numbers add up nine times as fast
            np.cumsum(np.take(weights, videos, axis=1) * counts, axis=1, out=sums[:, 1:])
            found.append(np.take(sums, until, axis=1).astype(np.float64))
        return found[0], found[1]

    @property
    def corners(self) -> Ints:
        """Thresholds, (C,) indices into U, that no area below can do without: those that admit anomalous frames, the
        ones before those, and the last. At the others nothing but normal frames is added, between two that are kept."""
        admits = np.diff(np.cumsum(self.positives)[self.ends], prepend=0) > 0
        return np.flatnonzero(admits | np.append(admits[1:], True))

    @cached_property
    def _corners(self) -> tuple[tuple[Ints, Ints, Ints], ...]:
        """For anomalous, then normal frames: video and number of each run with some, runs down to each corner."""
        ends, found = self.ends[self.corners], []
        for counts in (self.positives, self.negatives):
            some = np.flatnonzero(counts)
            found.append((self.video[some], counts[some], np.searchsorted(some, ends, side="right")))
        return tuple(found)

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
    """Score, number of frames and of anomalous frames of each run of equal scores."""
    changes = np.flatnonzero(video.scores[1:] != video.scores[:-1]) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.append(starts, len(video.scores)))
    return video.scores[starts], lengths, np.add.reduceat(video.labels, starts, dtype=np.int64)
