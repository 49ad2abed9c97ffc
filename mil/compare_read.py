"""Evaluations of runs, read from disk and put into groups: a group's runs differ by their seed alone.

Only what was scored on the same frames with the same labels, under one protocol and in one precision, is put together;
of runs that are done, trained on the same videos, with weights selected in the same way.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil import bootstrap, evaluations
from mil.config import Config
from mil.evaluate import read_scores
from mil.evaluations import Found
from mil.rundir import RunDir

METRICS = ("auc", "ap", "pr_auc", "ano_auc")
DRAWN = ("auc", "ap", "pr_auc")  # those that the bootstrap gives


class CompareError(ValueError):
    """Runs cannot be compared; the message names two that differ, and in what."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone.

    Args:
        name: the recipe, and the values that set it apart from other groups of that recipe.
        head: its head.
        features: ids of the feature specs.
        rule: of selection, whose weights were evaluated.
        optimistic: whether test labels chose them.
        selected_by: what chose the weights, without its numbers.
        seeds: in order.
        values: {metric: (S,)}, one number for each seed; NaN where a metric has none.
        draws: {metric: (S, R)}, that seed's number on each draw of videos, of the metrics that were drawn.
    """

    name: str
    head: str
    features: tuple[str, ...]
    rule: str
    optimistic: bool
    selected_by: str
    seeds: tuple[int, ...]
    values: dict[str, NDArray[np.float64]]
    draws: dict[str, NDArray[np.float64]]

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return float(self.values[metric].mean())

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over the seeds, with n - 1; None for a single one."""
        values = self.values[metric]
        return float(values.std(ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Which:
    """What evaluations are looked for: as `mil.evaluations.find` takes it."""

    split: str = "test"
    rule: str | None = None
    protocol: str | None = None
    precision: str = "fp32"

    def describe(self) -> str:
        """For messages."""
        rule = f", weights by rule {self.rule}" if self.rule else ""
        return f"the {self.split} split{rule}, protocol {self.protocol or 'of the recipe'}, {self.precision}"


@dataclass(frozen=True)
class Evaluated:
    """A run and its evaluation."""

    root: Path
    config: Config
    found: Found

    @property
    def rule(self) -> str:
        """What selected its weights."""
        return str(self.found.numbers.get("rule") or self.config.select.rule)


def find_runs(roots: Sequence[Path]) -> tuple[dict[Path, Config], dict[Path, str]]:
    """The runs at or right below some folders: those that are done, with their configurations; the others, and why.

    Raises CompareError where none is done.
    """
    found: list[Path] = []
    for root in roots:
        if (root / "config.yaml").is_file():
            found.append(root)
        elif root.is_dir():
            found += sorted(p.parent for p in root.glob("*/config.yaml"))
        else:
            raise CompareError(f"no run and no folder of runs at {root}")
    if not found:
        raise CompareError(f"no runs below {', '.join(map(str, roots))}; wsvad sweep makes some")
    done: dict[Path, Config] = {}
    others: dict[Path, str] = {}
    for root in found:
        try:
            if RunDir(root).status.get("state") == "done":
                done[root] = RunDir(root).config
            else:
                others[root] = "unfinished"
        except (ValueError, OSError) as error:  # one damaged run, or one of another version, costs the others nothing
            others[root] = f"cannot be read: {' '.join(str(error).split())}"
    if not done:
        raise CompareError(
            f"none of {len(found)} runs is done, e.g. {found[0]} ({others[found[0]]}); repeat wsvad sweep, or wsvad "
            "train with --resume"
        )
    return done, others


def find_evaluations(runs: Mapping[Path, Config], *wanted: Which) -> list[Evaluated]:
    """All that there are of those. Raises CompareError where there is none, with what there is instead."""
    found = [
        Evaluated(root, config, one)
        for which in wanted
        for root, config in runs.items()
        if (one := evaluations.find(root, config, **vars(which))) is not None
    ]
    if found:
        return found
    there = sorted({name for root in runs for name in evaluations.others(root, wanted[0].split)})
    instead = f"there are: {', '.join(there)} (--rule, --protocol, --precision)" if there else "wsvad eval RUN"
    raise CompareError(f"none of {len(runs)} runs is evaluated on {wanted[0].describe()}; {instead}")


def grouped(
    evaluated: Sequence[Evaluated],
    names: Mapping[Path, str],
    *,
    resamples: int,
    seed: int,
    metrics: Sequence[str] = DRAWN,
) -> list[Group]:
    """Groups by name and rule, with draws of some of DRAWN.

    Raises CompareError when two runs of one have one seed, or differ in what selected their weights, and when any were
    scored on other frames.
    """
    first: tuple[Evaluated, dict[str, bytes]] | None = None
    members: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, NDArray[np.float64]]]]] = {}
    for one in evaluated:
        # by id: draws are of places in this order, and must mean the same video in every run
        scored = sorted(read_scores(one.found.scores), key=lambda v: v.video_id)
        labels = {v.video_id: v.labels.tobytes() for v in scored}
        if first is None:
            first = (one, labels)
        _check_same(first, (one, labels))
        draws = bootstrap.resample(scored, resamples=resamples, seed=seed, names=metrics)
        members.setdefault((names[one.root], one.rule), []).append((one.found.numbers, draws))
    return [_group(name, rule, runs) for (name, rule), runs in members.items()]


def names_of(evaluated: Sequence[Evaluated]) -> dict[Path, str]:
    """The recipe of each run; where runs of one recipe differ in more than the seed, with the values that differ."""
    flat = {}
    for one in {one.root: one for one in evaluated}.values():
        values = _flat(one.config.model_dump(mode="json", exclude={"seed", "about"}))
        numbers = one.found.numbers
        flat[one.root] = values | {"features": "+".join(numbers["features"]), "trained_on": _training(one.root)}
    names = {}
    for root, values in flat.items():
        same = [v for v in flat.values() if v["recipe"] == values["recipe"]]
        keys = sorted({k for v in same for k in v})
        apart = [k for k in keys if len({json.dumps(v.get(k)) for v in same}) > 1]
        names[root] = " ".join([values["recipe"] or values["head.name"], *(f"{k}={values.get(k)}" for k in apart)])
    return names


def _check_same(first: tuple[Evaluated, dict[str, bytes]], second: tuple[Evaluated, dict[str, bytes]]) -> None:
    (a, frames), (b, others) = first, second
    mine, theirs = a.found.numbers["protocol"], b.found.numbers["protocol"]
    if mine != theirs:
        raise CompareError(
            f"{a.root} was evaluated under protocol '{mine}', {b.root} under '{theirs}'; evaluate both with one "
            "--protocol, and compare with it"
        )
    if frames != others:
        odd = min(name for name in {*frames, *others} if frames.get(name) != others.get(name))
        raise CompareError(f"{a.root} and {b.root} were not scored on the same frames and labels: see '{odd}'")


def _group(name: str, rule: str, runs: list[tuple[dict[str, Any], dict[str, NDArray[np.float64]]]]) -> Group:
    runs.sort(key=lambda run: run[0]["seed"])
    one = runs[0][0]
    seeds = tuple(int(numbers["seed"]) for numbers, _ in runs)
    if len(set(seeds)) < len(seeds):
        raise CompareError(f"two runs of '{name}' have the seed {max(seeds, key=seeds.count)}; pass one of them")
    kinds = {_briefly(numbers["selected_by"]): seed for seed, (numbers, _) in zip(seeds, runs, strict=True)}
    if len(kinds) > 1:
        said = ", ".join(f"of seed {seed} by '{kind}'" for kind, seed in kinds.items())
        raise CompareError(f"runs of '{name}' have weights that were selected in different ways: {said}; pass one kind")
    return Group(
        name,
        one["head"],
        tuple(one["features"]),
        rule,
        rule == "test",
        next(iter(kinds)),
        seeds,
        {m: np.array([np.nan if n[m] is None else n[m] for n, _ in runs], dtype=np.float64) for m in METRICS},
        {m: np.stack([draws[m] for _, draws in runs]) for m in runs[0][1]},
    )


def _training(root: Path) -> str:
    """Which videos a run was trained on: how many, and a digest of their ids and labels."""
    run = RunDir(root)
    gone = run.left_out
    kept = sorted((v.id, v.label) for v in run.videos if v.split == "train" and v.id not in gone)
    return f"{len(kept)} videos {hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:8]}"


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _briefly(selected_by: str) -> str:
    """What selected the weights, without the step and the value in brackets: runs of a group differ in those."""
    return re.sub(r" \((step )?-?\d[^)]*\)", "", selected_by)
