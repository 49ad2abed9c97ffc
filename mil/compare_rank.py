"""Which groups of runs can be told apart: paired differences on shared draws, and letters for those that cannot.

A draw is one set of videos, the same for every group, and one set of seeds, the same for every group of those seeds:
what the same videos or the same seed do to two groups alike cancels in their difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from mil import bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean of one group minus that of another.

    Args:
        value: of the means over the seeds.
        interval: 95 % of the draws; None where no draw gave a number.
        paired_by_seed: whether the seeds are the same, so that the same ones were drawn.
    """

    value: float
    interval: tuple[float, float] | None
    paired_by_seed: bool

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def reversed(self) -> "Difference":
        """The second minus the first."""
        interval = (-self.interval[1], -self.interval[0]) if self.interval else None
        return Difference(-self.value, interval, self.paired_by_seed)


def seed_draws(seeds: Sequence[int], resamples: int, seed: int) -> NDArray[np.int64]:
    """Which of S seeds each draw takes, (max(S - 1, 1), R) indices; the same for the same seeds.

    One less is drawn than there are: S of S seeds vary by (S - 1) / S of what their mean varies, a fifth too little of
    five; S - 1 of them by as much (Rao and Wu 1988).
    """
    rng = np.random.default_rng([seed, 1, *seeds])
    return rng.integers(0, len(seeds), (max(len(seeds) - 1, 1), resamples))


def over_seeds(draws: Floats, seeds: Sequence[int], seed: int) -> Floats:
    """(S, R) numbers of each seed on each draw of videos -> (R,): mean over the seeds that go with that draw."""
    return np.asarray(np.take_along_axis(draws, seed_draws(seeds, draws.shape[1], seed), axis=0).mean(axis=0))


def difference(
    values: tuple[Floats, Floats], averages: tuple[Floats, Floats], seeds: tuple[Sequence[int], Sequence[int]]
) -> Difference:
    """The first minus the second: `values` (S,) each, `averages` (R,) each, on the same draws."""
    value = float(values[0].mean() - values[1].mean())
    return Difference(value, bootstrap.interval(averages[0] - averages[1]), tuple(seeds[0]) == tuple(seeds[1]))


def letters(apart: NDArray[np.bool_]) -> list[str]:
    """Letters for rows, the best first: two rows share one exactly when they are not told apart (Piepho 2004).

    Args:
        apart: (G, G), symmetric: whether two rows are told apart.
    """
    columns = [frozenset(range(len(apart)))]
    for i, j in np.argwhere(np.triu(apart, 1)):
        split = [c - {k} for c in columns if {i, j} <= c for k in (i, j)]
        whole = [c for c in columns if not {i, j} <= c]
        for column in sorted(split, key=len, reverse=True):
            if not any(column <= other for other in whole):
                whole.append(column)
        columns = whole
    columns.sort(key=lambda c: sorted(c))
    return ["".join(_letter(n) for n, c in enumerate(columns) if row in c) for row in range(len(apart))]


def _letter(number: int) -> str:
    """a to z, then a1 to z1 and so on."""
    return ascii_lowercase[number % 26] + (str(number // 26) if number >= 26 else "")
