"""Runs side by side: mean and deviation over seeds, intervals over videos and seeds, and which differences are noise.

Runs of one recipe and one set of values are a group; its runs differ by their seed. Only runs of the same videos under
the same protocol are compared. An interval comes from drawing whole videos and seeds with replacement: the same videos
for every group, so that the difference of two groups is judged on the videos that both were scored on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil import bootstrap
from mil.evaluate import read_scores
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
        selected_by: what chose the weights, without its numbers.
        seeds: in order.
        values: {metric: (S,)}, one number for each seed.
        draws: {metric: (S, R)}, that seed's number on each draw of videos.
    """

    name: str
    head: str
    features: tuple[str, ...]
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
class Row:
    """A group with its intervals, and its difference from the best group."""

    group: Group
    intervals: dict[str, tuple[float, float] | None]
    behind: float
    behind_interval: tuple[float, float] | None

    @property
    def within_noise(self) -> bool:
        """Whether the interval of its difference from the best group reaches 0."""
        return self.behind == 0 or self.behind_interval is None or self.behind_interval[0] <= 0


@dataclass(frozen=True)
class Comparison:
    """Rows, the best first; what they have in common."""

    rows: tuple[Row, ...]
    metric: str
    protocol: str
    videos: int
    resamples: int


def compare(
    roots: Sequence[Path], *, metric: str = "auc", split: str = "test", resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Reads the evaluations of runs, or of all runs below folders, and ranks their groups by the mean of `metric`.

    Raises CompareError where nothing is evaluated, or videos, frames or protocols differ.
    """
    if metric not in DRAWN:
        raise CompareError(f"runs are ranked by one of {', '.join(DRAWN)}, got '{metric}'")
    found = [(root, _evaluation(root, split)) for root in _runs(roots)]
    if not found:
        raise CompareError(f"no runs below {', '.join(map(str, roots))}; wsvad sweep makes some")
    evaluated = [(root, *one) for root, one in found if one is not None]
    if not evaluated:
        raise CompareError(
            f"none of {len(found)} runs below {', '.join(map(str, roots))} is evaluated on the {split} split; "
            "wsvad eval RUN"
        )
    groups = _grouped(evaluated, resamples, seed)
    ranked = sorted(groups, key=lambda g: -g.mean(metric))
    rng = np.random.default_rng([seed, 1])
    averages = {g.name: {m: _over_seeds(g.draws[m], rng) for m in DRAWN} for g in ranked}
    best = ranked[0]
    rows = []
    for group in ranked:
        gap = averages[best.name][metric] - averages[group.name][metric]
        rows.append(
            Row(
                group,
                {m: bootstrap.interval(averages[group.name][m]) for m in DRAWN},
                best.mean(metric) - group.mean(metric),
                bootstrap.interval(gap) if group is not best else None,
            )
        )
    numbers = evaluated[0][2]
    return Comparison(tuple(rows), metric, numbers["protocol"], numbers["videos"], resamples)


def _runs(roots: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for root in roots:
        if (root / "config.yaml").is_file():
            found.append(root)
        elif root.is_dir():
            found += sorted(p.parent for p in root.glob("*/config.yaml"))
        else:
            raise CompareError(f"no run and no folder of runs at {root}")
    return list(dict.fromkeys(found))


def _evaluation(root: Path, split: str) -> tuple[Path, dict[str, Any]] | None:
    """The first evaluation of a whole split: its file, and what it says."""
    for path in sorted((root / "eval").glob(f"{split}-*.json")):
        numbers: dict[str, Any] = json.loads(path.read_text())
        if not numbers["missing"]:
            return path, numbers
    return None


def _grouped(evaluated: Sequence[tuple[Path, Path, dict[str, Any]]], resamples: int, seed: int) -> list[Group]:
    """Groups of runs. Raises CompareError when two were not scored on the same frames."""
    first: tuple[Path, dict[str, int], str] | None = None
    members: dict[str, list[tuple[dict[str, Any], dict[str, NDArray[np.float64]]]]] = {}
    names = _names([root for root, _, _ in evaluated])
    for root, path, numbers in evaluated:
        # by id: draws are of places in this order, and must mean the same video in every run
        scored = sorted(read_scores(path.with_name(path.stem + "_scores.npz")), key=lambda v: v.video_id)
        lengths = {v.video_id: len(v.labels) for v in scored}
        if first is None:
            first = (root, lengths, numbers["protocol"])
        elif numbers["protocol"] != first[2]:
            raise CompareError(
                f"{first[0]} was evaluated under protocol '{first[2]}', {root} under '{numbers['protocol']}'; "
                "evaluate both with one --protocol"
            )
        elif lengths != first[1]:
            odd = sorted(set(lengths.items()) ^ set(first[1].items()))[0][0]
            raise CompareError(f"{first[0]} and {root} were not scored on the same frames: see '{odd}'")
        draws = bootstrap.resample(scored, resamples=resamples, seed=seed)
        members.setdefault(names[root], []).append((numbers, draws))
    groups = []
    for name, runs in members.items():
        runs.sort(key=lambda run: run[0]["seed"])
        one = runs[0][0]
        seeds = tuple(int(numbers["seed"]) for numbers, _ in runs)
        if len(set(seeds)) < len(seeds):
            raise CompareError(f"two runs of '{name}' have the seed {max(seeds, key=seeds.count)}; pass one of them")
        groups.append(
            Group(
                name,
                one["head"],
                tuple(one["features"]),
                _rule(one["selected_by"]),
                seeds,
                {m: np.array([_value(numbers[m]) for numbers, _ in runs]) for m in METRICS},
                {m: np.stack([draws[m] for _, draws in runs]) for m in DRAWN},
            )
        )
    return groups


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """The recipe of each run; where runs of one recipe differ in more than the seed, with the values that differ."""
    flat = {root: _flat(RunDir(root).config.model_dump(mode="json", exclude={"seed", "about"})) for root in roots}
    names = {}
    for root, values in flat.items():
        same = [v for v in flat.values() if v["recipe"] == values["recipe"]]
        keys = sorted({k for v in same for k in v})
        apart = [k for k in keys if len({json.dumps(v.get(k)) for v in same}) > 1]
        names[root] = " ".join([values["recipe"] or values["head.name"], *(f"{k}={values.get(k)}" for k in apart)])
    return names


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _over_seeds(draws: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(S, R) -> (R,): on each draw of videos, the mean over seeds that are drawn with replacement too."""
    seeds, resamples = draws.shape
    chosen = rng.integers(0, seeds, (seeds, resamples))
    return np.asarray(np.take_along_axis(draws, chosen, axis=0).mean(axis=0))


def _value(number: float | None) -> float:
    return float("nan") if number is None else number


def _rule(selected_by: str) -> str:
    """What selected the weights, short: runs of a group differ in its numbers."""
    return selected_by.split(" (")[0].split(",")[0]
