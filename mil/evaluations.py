"""Which of a run's evaluations is meant: by split, rule of selection, protocol and precision; whole or not at all.

A run may be evaluated in many ways, each in a file of its own below eval/. Numbers of weights that another rule chose,
of one crop, of another manifest, in another precision or of a part of the videos never stand in for the ones asked for,
nor do those of weights that the run has replaced since: an evaluation counts while its checkpoint is the one on disk.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mil.config import Config
from mil.protocol import AUTO

_AUTOMATIC = ("frames", "snippets")  # what "auto" may turn into


@dataclass(frozen=True)
class Found:
    """An evaluation on disk.

    Args:
        path: of its numbers.
        numbers: what `evaluate_run` returned.
    """

    path: Path
    numbers: dict[str, Any]

    @property
    def scores(self) -> Path:
        """The frame scores behind the numbers; `mil.evaluate.read_scores` reads them."""
        return self.path.with_name(f"{self.path.stem}_scores.npz")


def find(
    root: Path,
    config: Config,
    *,
    split: str = "test",
    rule: str | None = None,
    protocol: str | None = None,
    precision: str = "fp32",
    partial: bool = False,
) -> Found | None:
    """The evaluation of the mean over all crops, on the run's own videos; None when there is none.

    Args:
        root: the run.
        config: its configuration.
        split: "test" or "train".
        rule: "last", "val" or "test", whose weights; None: the rule that the run is judged by.
        protocol: its name; None: the recipe's own.
        precision: "fp32" or "bf16", of the layers while it was scored.
        partial: take one that lacks videos where there is no whole one.
    """
    judged_by = config.select.rule
    rule = rule or judged_by
    if (weights := _selected(root, rule)) is None:
        return None
    own = _AUTOMATIC if config.evaluate.protocol == AUTO else (config.evaluate.protocol,)
    apart = [f"by_{rule}"] * (rule != judged_by) + [precision] * (precision != "fp32")
    for ending in ([], ["partial"])[: 1 + partial]:
        for name in (protocol,) if protocol else own:
            found = Found(root / "eval" / f"{'-'.join([split, name, *apart, *ending])}.json", {})
            # both files, or a kill came between them
            if not (found.path.is_file() and found.scores.is_file()):
                continue
            numbers: dict[str, Any] = json.loads(found.path.read_text(encoding="utf-8"))
            says = (numbers.get("rule", rule), numbers.get("precision", precision), bool(numbers["missing"]))
            fits = says == (rule, precision, bool(ending)) and (numbers["selected_by"], numbers["step"]) == weights
            # one that was asked for by name is not what "auto" would have taken
            by_frames = "features" not in numbers.get("lengths_from", ())
            if fits and (protocol or len(own) == 1 or by_frames == (name == "frames")):
                return Found(found.path, numbers)
    return None


def _selected(root: Path, rule: str) -> tuple[str, int] | None:
    """What selected the weights that a rule keeps now, and their step; None where there are none."""
    path = root / "checkpoints" / f"{rule}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["selected_by"], found["step"]


def others(root: Path, split: str) -> list[str]:
    """Names of all evaluations of a split, for messages that say what there is instead."""
    return sorted(path.stem for path in (root / "eval").glob(f"{split}-*.json"))
