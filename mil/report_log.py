"""A run's metrics.jsonl as lines to draw: the terms of its loss, and what rules of selection saw."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mil.report_curves import brief

MOST = 400  # points of a line
_LOSS = "loss/"
_LOOKS = ("val/", "OPTIMISTIC/")


def loss_lines(path: Path) -> dict[str, Any]:
    """{"steps": [S], "terms": {name: [S]}, "looks": {name: {"steps", "values"}}} of a metrics.jsonl; empty without one.

    Where a step was logged twice, by a run that was resumed, the later line counts. More than MOST logged steps are put
    into MOST equal bins: a bin stands at its last step, with the mean of what was logged in it. Numbers that were not
    finite are None, and so are their bins. Looks keep their own values: the best of them, and about MOST others.
    """
    by_step: dict[int, dict[str, float | None]] = {}
    for values in _logged(path):
        by_step.setdefault(values["step"], {}).update(
            (name, _finite(value)) for name, value in values.items() if name.startswith((_LOSS, *_LOOKS))
        )
    rows = sorted(by_step.items())
    losses = [(step, row) for step, row in rows if any(name.startswith(_LOSS) for name in row)]
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    bins = _bins(losses)
    return {
        "steps": [part[-1][0] for part in bins],
        "terms": {
            name.removeprefix(_LOSS): [_mean([row[name] for _, row in part if name in row]) for part in bins]
            for name in names
            if name.startswith(_LOSS)
        },
        "looks": {
            name: _look([(step, row[name]) for step, row in rows if name in row])
            for name in names
            if name.startswith(_LOOKS)
        },
    }


def _logged(path: Path) -> list[dict[str, Any]]:
    """Lines that are whole; a kill may tear one."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def _finite(value: Any) -> float | None:
    return brief(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _bins(rows: Sequence[tuple[int, Any]]) -> list[Sequence[tuple[int, Any]]]:
    """Rows in MOST bins whose sizes differ by one at most, or each in its own."""
    count = min(MOST, len(rows))
    return [rows[i * len(rows) // count : (i + 1) * len(rows) // count] for i in range(count)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return brief(math.fsum(known) / len(known)) if known and len(known) == len(values) else None


def _look(rows: Sequence[tuple[int, float | None]]) -> dict[str, list[Any]]:
    every = -(-len(rows) // MOST)
    best = max(range(len(rows)), key=lambda i: -math.inf if rows[i][1] is None else rows[i][1])  # type: ignore[arg-type, return-value]
    kept = sorted({*range(0, len(rows), every), best, len(rows) - 1})
    return {"steps": [rows[i][0] for i in kept], "values": [rows[i][1] for i in kept]}
