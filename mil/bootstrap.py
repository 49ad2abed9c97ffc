"""Confidence intervals over videos: whole videos are drawn, since the frames of one depend on each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores
from mil.curves import Floats, Ints, Tally, step_precision, trapezoid_precision

NAMES = ("auc", "ap", "pr_auc")
_AREAS = {"ap": step_precision, "pr_auc": trapezoid_precision}
_CHUNK_BYTES = 1e6  # of one (resamples, scores) array: what stays in the cache costs half


def resample(
    videos: Sequence[FrameScores], *, resamples: int = 1000, seed: int = 0, names: Sequence[str] = NAMES
) -> dict[str, NDArray[np.float64]]:
    """AUC, AP and PR-AUC of `resamples` draws of as many videos with replacement, {name: (R,)}.

    Scores are sorted once; a draw only changes how often each video counts. Draws without an anomalous or without a
    normal frame leave NaN. `names` are those that are wanted: AUC alone is a hundred times as fast as all three.
    """
    tally = Tally.of(videos)
    count = len(videos)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    found = {"auc": _auc(tally, weights)} if "auc" in names else {}
    areas = {name: area for name, area in _AREAS.items() if name in names}
    if areas:
        parts: dict[str, list[Floats]] = {name: [] for name in areas}
        rows = max(int(_CHUNK_BYTES // (8 * len(tally.scores))), 1)
        for start in range(0, resamples, rows):
            high, low = tally.weighted_counts(weights[start : start + rows])
            for name, area in areas.items():
                parts[name].append(area(high, low))
        found |= {name: np.concatenate(values) for name, values in parts.items()}
    return found


def _auc(tally: Tally, weights: Ints) -> Floats:
    """Area under the ROC curve of each draw, (R, V) -> (R,): the share of pairs of frames that are in order.

    Pairs are counted once for each pair of videos; a draw weighs those counts. All are whole or half numbers, exact.
    """
    count = weights.shape[1]
    positives, negatives = (
        np.bincount(tally.video, kind, minlength=count) for kind in (tally.positives, tally.negatives)
    )
    high = np.flatnonzero(tally.positives)
    wins = np.empty((count, count))
    order = np.argsort(tally.video, kind="stable")
    for video, runs in enumerate(np.split(order, np.cumsum(np.bincount(tally.video, minlength=count))[:-1])):
        # downwards are upwards of the negative; before[k]: normal frames of this video in its k highest runs
        down, before = -tally.scores[runs], np.append(0, np.cumsum(tally.negatives[runs]))
        above, not_below = (before[np.searchsorted(down, -tally.scores[high], side)] for side in ("left", "right"))
        won = tally.positives[high] * (negatives[video] - (above + not_below) / 2)
        wins[:, video] = np.bincount(tally.video[high], won, minlength=count)
    drawn = weights.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(((drawn @ wins) * drawn).sum(axis=1) / ((drawn @ positives) * (drawn @ negatives)))


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled values, NaN left out; None when nothing is left."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
