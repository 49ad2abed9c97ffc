"""Which groups of runs can be told apart: paired differences with the noise of videos and of seeds, and letters.

A draw is one set of videos, the same for every group: what they do to two groups alike cancels in their difference. The
noise of the seeds is too small a sample to be drawn from: two or three values never reach 95 %. It is Student's t
instead, of the seed-wise differences where two groups have the same seeds, and Welch's where they have not.
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
        interval: 95 % of the replicates; None where none gave a number. Over videos alone where a group has one seed.
        paired_by_seed: whether the seeds are the same, so that they are compared one by one.
        seeds_known: whether both groups have two seeds or more, so that the noise of seeds is known.
    """

    value: float
    interval: tuple[float, float] | None
    paired_by_seed: bool
    seeds_known: bool = True

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out 0; never where the noise of the seeds is unknown."""
        return self.seeds_known and self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def reversed(self) -> "Difference":
        """The second minus the first."""
        interval = (-self.interval[1], -self.interval[0]) if self.interval else None
        return Difference(-self.value, interval, self.paired_by_seed, self.seeds_known)


def over_seeds(draws: Floats, values: Floats, seed: int) -> Floats:
    """Replicates of a group's mean, (R,): mean over its seeds of each draw of videos, plus the noise of the seeds.

    Kept within 0 to 1, as the numbers are.

    Args:
        draws: (S, R), of each seed on each draw of videos.
        values: (S,), of each seed on all videos.
        seed: of the noise.
    """
    error, freedom = _error(values)
    return np.asarray(np.clip(draws.mean(axis=0) + _noise(error, freedom, draws.shape[1], seed), 0, 1))


def difference(
    values: tuple[Floats, Floats], draws: tuple[Floats, Floats], seeds: tuple[Sequence[int], Sequence[int]], seed: int
) -> Difference:
    """The first group minus the second: `values` (S,) and `draws` (S, R) of each, on the same draws of videos."""
    first, second = values
    paired = tuple(seeds[0]) == tuple(seeds[1])
    error, freedom = _error(first - second) if paired else _welch(first, second)
    replicates = draws[0].mean(axis=0) - draws[1].mean(axis=0) + _noise(error, freedom, draws[0].shape[1], seed)
    value, known = float(first.mean() - second.mean()), min(len(first), len(second)) > 1
    return Difference(value, bootstrap.interval(replicates), paired, known)


def _error(values: Floats) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom; of a single value (0, 0), as nobody knows it."""
    count = len(values)
    return (float(values.std(ddof=1)) / count**0.5, count - 1) if count > 1 else (0.0, 0)


def _welch(first: Floats, second: Floats) -> tuple[float, float]:
    """Standard error of the difference of two means, with degrees of freedom by Welch and Satterthwaite."""
    (a, free_a), (b, free_b) = _error(first), _error(second)
    parts = [(error**4, freedom) for error, freedom in ((a, free_a), (b, free_b)) if freedom]
    below = sum(fourth / freedom for fourth, freedom in parts)
    return (a**2 + b**2) ** 0.5, (a**2 + b**2) ** 2 / below if below else 0.0


def _noise(error: float, freedom: float, resamples: int, seed: int) -> Floats:
    """(R,) draws of Student's t times a standard error; 0 where there is none."""
    if not (error > 0 and freedom > 0):  # NaN, too
        return np.zeros(resamples)
    return error * np.random.default_rng([seed, 1]).standard_t(freedom, resamples)


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
