"""Confidence intervals over videos: whole videos are drawn, since the frames of one depend on each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores
from mil.curves import Tally, roc_area, step_precision, trapezoid_precision

_AREAS = {"auc": roc_area, "ap": step_precision, "pr_auc": trapezoid_precision}
_CHUNK_BYTES = 1e6  # of one (resamples, scores) array: what stays in the cache costs half


def resample(videos: Sequence[FrameScores], *, resamples: int = 1000, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """AUC, AP and PR-AUC of `resamples` draws of as many videos with replacement, {name: (R,)}.

    Scores are sorted once; a draw only changes how often each video counts. Draws without an anomalous or without a
    normal frame leave NaN.
    """
    tally = Tally.of(videos)
    rng = np.random.default_rng(seed)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _AREAS}
    rows = max(int(_CHUNK_BYTES // (8 * len(tally.scores))), 1)
    for start in range(0, resamples, rows):
        number = min(rows, resamples - start)
        weights = rng.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=number)
        high, low = tally.weighted_counts(weights)
        for name, area in _AREAS.items():
            found[name].append(area(high, low))
    return {name: np.concatenate(values) for name, values in found.items()}


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of resampled values, NaN left out; None when nothing is left."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
