"""A comparison for programs: every number that its tables round, and the difference of every pair of rows."""

import json
import math
from typing import Any

from mil.compare import Comparison
from mil.compare_rank import Difference
from mil.compare_read import Group
from mil.compare_rules import RulesComparison

OPTIMISTIC = "OPTIMISTIC"


def as_json(found: Comparison | RulesComparison) -> str:
    """The text; what has no number is null."""
    values = _rules_as_dict(found) if isinstance(found, RulesComparison) else _as_dict(found)
    return json.dumps(_without_nan(values), indent=2, allow_nan=False)


def weights(rule: str) -> str:
    """A rule of selection as it is shown wherever a number of its weights is."""
    return f"{rule} {OPTIMISTIC}" if rule == "test" else rule


def _as_dict(found: Comparison) -> dict[str, Any]:
    names = [row.group.name for row in found.rows]
    differences: dict[str, dict[str, Any]] = {name: {} for name in names}
    for (i, j), one in found.differences.items():
        differences[names[i]][names[j]] = _difference_as_dict(one)
        differences[names[j]][names[i]] = _difference_as_dict(one.reversed())
    return {
        **_common(found),
        "rules": list(dict.fromkeys(row.group.rule for row in found.rows)),
        "rows": [
            {
                "name": row.group.name,
                **_group_as_dict(row.group),
                "mean": {m: row.group.mean(m) for m in row.group.values},
                "deviation": {m: row.group.deviation(m) for m in row.group.values},
                "ci95": {m: list(v) if v else None for m, v in row.intervals.items()},
                "letters": row.letters,
                "behind": row.behind.value if row.behind else 0.0,
                "behind_ci95": list(row.behind.interval) if row.behind and row.behind.interval else None,
                "within_noise": row.within_noise,
            }
            for row in found.rows
        ],
        "differences": differences,
    }


def _rules_as_dict(found: RulesComparison) -> dict[str, Any]:
    def cell(group: Group, interval: tuple[float, float] | None) -> dict[str, Any]:
        mean, deviation = group.mean(found.metric), group.deviation(found.metric)
        return {**_group_as_dict(group), "mean": mean, "deviation": deviation, "ci95": list(interval or ()) or None}

    return {
        **_common(found),
        "rows": [
            {
                "name": row.name,
                "rules": {rule: cell(group, row.intervals[rule]) for rule, group in row.groups.items()},
                "differences": {f"{a} - {b}": _difference_as_dict(one) for (a, b), one in row.gains.items()},
            }
            for row in found.rows
        ],
    }


def _common(found: Comparison | RulesComparison) -> dict[str, Any]:
    names = ("metric", "protocol", "precision", "videos", "resamples")
    return {**{name: getattr(found, name) for name in names}, "left_out": list(found.left_out)}


def _group_as_dict(group: Group) -> dict[str, Any]:
    return {
        "head": group.head,
        "features": list(group.features),
        "rule": group.rule,
        "optimistic": group.optimistic,
        "weights": weights(group.rule),
        "selected_by": group.selected_by,
        "seeds": list(group.seeds),
        "values": {m: v.tolist() for m, v in group.values.items()},
    }


def _difference_as_dict(one: Difference) -> dict[str, Any]:
    interval = list(one.interval) if one.interval else None
    return {"difference": one.value, "ci95": interval, "apart": one.apart, "paired_by_seed": one.paired_by_seed}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
