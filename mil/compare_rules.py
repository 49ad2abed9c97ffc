"""The rules of selection side by side: what one training is worth by the last step, by held-out videos, by test videos.

The last of the three is the habit of the field and OPTIMISTIC; how much so is the difference in its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from mil.compare import check_metric, group_difference, group_interval, left_out, rank_key
from mil.compare_rank import Difference
from mil.compare_read import Group, Which, find_evaluations, find_runs, grouped, names_of
from mil.rules import RULES


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
    """Recipes, the best by the last weights first, those without such weights at the end; columns are the rules.

    `left_out`: runs that are not done, or are not evaluated by a rule that they follow.
    """

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
    runs, undone = find_runs(roots)
    every = find_evaluations(runs, *(Which(split, rule, protocol, precision) for rule in RULES))
    cells: dict[str, dict[str, Group]] = {}
    for group in grouped(every, names_of(every), resamples=resamples, seed=seed, metrics=[metric]):
        cells.setdefault(group.name, {})[group.rule] = group
    rows = [_rules_row(name, groups, metric, seed) for name, groups in cells.items()]
    rows.sort(key=lambda row: _place(row, metric))
    have = {(one.root, one.rule) for one in every}
    lacking = {
        root: [r for r in RULES if r in config.select.rules and (root, r) not in have] for root, config in runs.items()
    }
    numbers = every[0].found.numbers
    return RulesComparison(
        tuple(rows),
        metric,
        numbers["protocol"],
        precision,
        numbers["videos"],
        resamples,
        left_out(undone, {root: f"not by {', '.join(rules)}" for root, rules in lacking.items() if rules}),
    )


def _place(row: RulesRow, metric: str) -> tuple[int, tuple[bool, float, str]]:
    """By the first rule that it has, then the best: a number that test labels chose never ranks before another."""
    first = next(rule for rule in RULES if rule in row.groups)
    return RULES.index(first), rank_key(row.groups[first], metric)


def _rules_row(name: str, groups: Mapping[str, Group], metric: str, seed: int) -> RulesRow:
    there: dict[str, Group] = {rule: groups[rule] for rule in RULES if rule in groups}
    gains = {
        (late, early): group_difference(there[late], there[early], metric, seed)
        for early, late in combinations(there, 2)
    }
    return RulesRow(name, there, {rule: group_interval(group, metric, seed) for rule, group in there.items()}, gains)
