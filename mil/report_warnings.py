"""What a report warns of: its runs, and those that are not in it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mil import evaluations
from mil.compare_read import Which
from mil.config import Config


def of_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each warning once, with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run in runs:
        for warning in run["warnings"]:
            about.setdefault(warning, []).append(run["name"])
    every = len(runs)
    found = []
    for warning, names in about.items():
        who = "all runs" if len(names) == every > 1 else ", ".join(names[:3])
        found.append(f"{who}{f' and {len(names) - 3} more' if 3 < len(names) < every else ''}: {warning}")
    return found


def left_out(undone: Mapping[Path, str], done: Mapping[Path, Config], evaluated: set[Path], which: Which) -> list[str]:
    """Runs that are not in the report, why, and what to type."""
    remedy = {"unfinished": "; wsvad train with --resume goes on"}
    found = [f"{root.name} is left out: {why}{remedy.get(why, '')}" for root, why in undone.items()]
    for root, config in done.items():
        if root in evaluated:
            continue
        if which.rule and which.rule not in config.select.rules:
            why = f"it kept no weights by {which.rule}; train with --also {which.rule}"
        else:
            there = evaluations.others(root, which.split)
            but = f", there is {', '.join(there)}" if there else ""
            why = f"not evaluated on {which.describe()}{but}; type: {_command(root, which)}"
        found.append(f"{root.name} is left out: {why}")
    return found


def _command(root: Path, which: Which) -> str:
    asked = {"--rule": which.rule, "--protocol": which.protocol}
    asked |= {"--split": which.split if which.split != "test" else None}
    asked |= {"--precision": which.precision if which.precision != "fp32" else None}
    return " ".join(
        ["wsvad eval", shlex.quote(str(root)), *(f"{option} {value}" for option, value in asked.items() if value)]
    )
