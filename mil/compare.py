"""Runs side by side: mean and deviation over seeds, intervals over videos and seeds, and which differences are noise.

Runs of one recipe and one set of values are a group; its runs differ by their seed. Only runs of the same videos under
the same protocol are compared. An interval is over draws of whole videos with replacement, the same for every group, so
that the difference of two groups is judged on the videos that both were scored on; and over seeds by Student's t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mil import bootstrap
from mil.compare_rank import Difference, difference, letters, over_seeds
from mil.compare_read import (
    DRAWN,
    METRICS,
    CompareError,
    Group,
    Which,
    find_evaluations,
    find_runs,
    grouped,
    names_of,
)

__all__ = ["DRAWN", "METRICS", "CompareError", "Comparison", "Group", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """A group with its intervals, and its difference from the best group.

    Args:
        group: the runs.
        intervals: {metric: 95 % interval}, of those that the bootstrap gives.
        letters: rows that share one are not told apart.
        behind: the best group minus this one; None for the best.
    """

    group: Group
    intervals: dict[str, tuple[float, float] | None]
    letters: str
    behind: Difference | None

    @property
    def within_noise(self) -> bool:
        """Whether it is not told apart from the best group."""
        return self.behind is None or not self.behind.apart


@dataclass(frozen=True)
class Comparison:
    """Rows, the best first; how each differs from each; what they have in common.

    Args:
        rows: the groups.
        differences: {(i, j)} for places i < j: row i minus row j, in `metric`.
        metric: "auc", "ap" or "pr_auc", by which rows are ranked.
        protocol, precision, videos: of all evaluations.
        resamples: draws.
        left_out: runs that are not done, or have no such evaluation.
    """

    rows: tuple[Row, ...]
    differences: dict[tuple[int, int], Difference]
    metric: str
    protocol: str
    precision: str
    videos: int
    resamples: int
    left_out: tuple[str, ...] = ()


def compare(
    roots: Sequence[Path],
    *,
    metric: str = "auc",
    split: str = "test",
    resamples: int = 1000,
    seed: int = 0,
    rule: str | None = None,
    protocol: str | None = None,
    precision: str = "fp32",
) -> Comparison:
    """Reads the evaluations of runs, or of all runs below folders, and ranks their groups by the mean of `metric`.

    Args:
        roots: runs, or folders of them.
        metric: "auc", "ap" or "pr_auc".
        split: "test" or "train".
        resamples: draws of videos, and of Student's t.
        seed: of the draws.
        rule: "last", "val" or "test": whose weights; None: those that each run is judged by.
        protocol: its name; None: each recipe's own.
        precision: "fp32" or "bf16", in which the weights were evaluated.

    Raises CompareError where nothing is evaluated like that, or videos, labels or protocols differ.
    """
    check_metric(metric)
    runs, undone = find_runs(roots)
    evaluated = find_evaluations(runs, Which(split, rule, protocol, precision))
    groups = grouped(evaluated, names_of(evaluated), resamples=resamples, seed=seed)
    ranked = sorted(groups, key=lambda group: rank_key(group, metric))
    differences = {
        (i, j): group_difference(ranked[i], ranked[j], metric, seed) for i, j in combinations(range(len(ranked)), 2)
    }
    apart = np.zeros((len(ranked), len(ranked)), dtype=bool)
    for (i, j), found in differences.items():
        apart[i, j] = apart[j, i] = found.apart
    rows = [
        Row(group, {m: group_interval(group, m, seed) for m in DRAWN}, shared, differences.get((0, i)))
        for i, (group, shared) in enumerate(zip(ranked, letters(apart), strict=True))
    ]
    numbers = evaluated[0].found.numbers
    return Comparison(
        tuple(rows),
        differences,
        metric,
        numbers["protocol"],
        precision,
        numbers["videos"],
        resamples,
        left_out(undone, {root: "" for root in runs if root not in {one.root for one in evaluated}}),
    )


def check_metric(metric: str) -> None:
    """Raises CompareError for one that the bootstrap does not give."""
    if metric not in DRAWN:
        raise CompareError(f"runs are ranked by one of {', '.join(DRAWN)}, got '{metric}'")


def rank_key(group: Group, metric: str) -> tuple[bool, float, str]:
    """The best first; what has no number last."""
    mean = group.mean(metric)
    return bool(np.isnan(mean)), -mean, group.name


def group_interval(group: Group, metric: str, seed: int) -> tuple[float, float] | None:
    """95 % of the replicates of its mean."""
    return bootstrap.interval(over_seeds(group.draws[metric], group.values[metric], seed))


def group_difference(first: Group, second: Group, metric: str, seed: int) -> Difference:
    """The first minus the second."""
    values, draws = ((getattr(first, kind)[metric], getattr(second, kind)[metric]) for kind in ("values", "draws"))
    return difference(values, draws, (first.seeds, second.seeds), seed)


def left_out(undone: Mapping[Path, str], others: Mapping[Path, str]) -> tuple[str, ...]:
    """Names of the runs that are not done, and of `others`; each with what is to be said of it."""
    return tuple(f"{root.name} ({about})" if about else root.name for root, about in {**undone, **others}.items())
