"""Which videos a step sees: a function of the seed and the step alone, so that a resumed run draws the same ones.

A unit is what is drawn: a video, or one crop of a video where a paper takes crops for samples of their own.
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def balanced_batch(labels: Indices, pairs: int, seed: int, step: int) -> Indices:
    """Indices of `pairs` anomalous and `pairs` normal units, (<= 2 * pairs,), drawn without replacement.

    A fresh draw for every step, as Sultani et al. permute anew in each iteration. Takes all units of a class that has
    fewer than `pairs`.
    """
    rng = np.random.default_rng([seed, step])
    high, low = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    return np.concatenate([rng.permutation(high)[:pairs], rng.permutation(low)[:pairs]])


def passes_batch(labels: Indices, pairs: int, seed: int, step: int, *, shuffle: bool = True) -> Indices:
    """`pairs` anomalous and `pairs` normal units; each class goes through its own passes, without a remainder.

    What two shuffled loaders with drop_last give (RTFM, UR-DMU, ...): no unit is seen twice before its class is
    through. `step` counts from 1. Without `shuffle`, always in the order of the manifest.
    """
    chosen = []
    for label in (1, 0):
        units = np.flatnonzero(labels == label)
        number, place = divmod(step - 1, max(len(units) // pairs, 1))
        if shuffle:
            units = np.random.default_rng([seed, label, number]).permutation(units)
        chosen.append(units[place * pairs : (place + 1) * pairs])
    return np.concatenate(chosen)


def mixed_batch(count: int, batch: int, seed: int, step: int, *, shuffle: bool = True) -> Indices:
    """`batch` units of either class: one shuffled pass after another, the last batch of a pass may be smaller."""
    number, place = divmod(step - 1, -(-count // batch))
    units = np.random.default_rng([seed, number]).permutation(count) if shuffle else np.arange(count)
    return units[place * batch : (place + 1) * batch]


def per_epoch(labels: Indices, sampler: str, size: int) -> int:
    """Steps of one pass over the units: `size` pairs, or for "mixed" `size` units, a step."""
    if sampler == "mixed":
        return int(-(-len(labels) // size))
    return max(int(min((labels == 0).sum(), (labels == 1).sum())) // size, 1)
