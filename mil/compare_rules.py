"""The rules of selection side by side: what one training is worth by the last step, by held-out videos, by test videos.

The last of the three is the habit of the field and OPTIMISTIC; how much so is the difference in its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from mil import bootstrap
from mil.compare import check_metric, group_difference, left_out, rank_key
from mil.compare_rank import Difference, over_seeds
from mil.compare_read import Group, Which, find_evaluations, find_runs, grouped, names_of

RULES = ("last", "val", "test")


@dataclass(frozen=True)
class RulesRow:
    """One recipe under each rule that it was evaluated by.

    Args:
        groups: {rule: the runs}.
        intervals: {rule: 95 % interval of `metric`}.
        gains: {(rule, rule): the first minus the second}, in the order of RULES from behind.
    """

    name: str
    groups: Mapping[str, Group]
    intervals: Mapping[str, tuple[float, float] | None]
    gains: Mapping[tuple[str, str], Difference]


@dataclass(frozen=True)
class RulesComparison:
    """Recipes, the best by the last weights first; columns are the rules of selection."""

    rows: tuple[RulesRow, ...]
    metric: str
    protocol: str
    precision: str
    videos: int
    resamples: int
    left_out: tuple[str, ...] = ()


def compare_rules(
    roots: Sequence[Path],
    *,
    metric: str = "auc",
    split: str = "test",
    resamples: int = 1000,
    seed: int = 0,
    protocol: str | None = None,
    precision: str = "fp32",
) -> RulesComparison:
    """The rules of selection of each recipe side by side; arguments and errors as those of `compare`."""
    check_metric(metric)
    runs = find_runs(roots)
    every = find_evaluations(runs, *(Which(split, rule, protocol, precision) for rule in RULES))
    cells: dict[str, dict[str, Group]] = {}
    for group in grouped(every, names_of(every), resamples=resamples, seed=seed):
        cells.setdefault(group.name, {})[group.rule] = group
    rows = [_rules_row(name, groups, metric, seed) for name, groups in cells.items()]
    rows.sort(key=lambda row: rank_key(next(row.groups[r] for r in RULES if r in row.groups), metric))
    numbers = every[0].found.numbers
    return RulesComparison(
        tuple(rows),
        metric,
        numbers["protocol"],
        precision,
        numbers["videos"],
        resamples,
        left_out(runs, every),
    )


def _rules_row(name: str, groups: Mapping[str, Group], metric: str, seed: int) -> RulesRow:
    there = {rule: groups[rule] for rule in RULES if rule in groups}
    averages = {rule: over_seeds(group.draws[metric], group.seeds, seed) for rule, group in there.items()}
    gains = {
        (late, early): group_difference(there[late], there[early], (averages[late], averages[early]), metric)
        for early, late in combinations(there, 2)
    }
    return RulesRow(name, there, {rule: bootstrap.interval(drawn) for rule, drawn in averages.items()}, gains)
