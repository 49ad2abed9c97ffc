"""One evaluated run in a report: its numbers as `wsvad eval` wrote them, curves, loss, and what to know about it."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from data.types import FeatureSpec, FrameScores
from mil.compare_read import Evaluated
from mil.report_curves import curves, histogram, per_video
from mil.report_log import loss_lines
from mil.rundir import RunDir
from mil.threshold import training_threshold

log = logging.getLogger(__name__)

DEFAULT = 0.5  # of scores between 0 and 1
_NOT_METRICS = ("seed", "step", "smooth_clips")
_SHOWN = ("backbone", "modality", "dim", "weights", "clip_len", "stride", "step", "tail", "fps", "resize", "color")


def run_data(
    one: Evaluated, videos: Sequence[FrameScores], *, name: str, group: str, device: str = "cpu"
) -> dict[str, Any]:
    """All of a run but the scores themselves.

    Args:
        one: the run and its evaluation.
        videos: its frame scores.
        name: what the report calls it.
        group: its group's name.
        device: where training videos are scored, which a threshold is chosen by.
    """
    run, numbers = RunDir(one.root), one.found.numbers
    threshold, about = missed_below(run, one.rule, videos, device)
    specs = _specs(run)
    return {
        "name": name,
        "group": group,
        "recipe": numbers.get("recipe") or one.config.recipe,
        "head": numbers["head"],
        "seed": numbers["seed"],
        "rule": one.rule,
        "selected_by": numbers["selected_by"],
        "step": numbers["step"],
        "optimistic": one.rule == "test",
        "random_weights": bool(numbers.get("random_weights")),
        "features": numbers["features"],
        "specs": [{"id": spec.id, "text": in_words(spec)} for spec in specs],
        "crops": numbers.get("crops", ""),
        "smooth": numbers.get("smooth_clips", 1),
        "warnings": _warnings(one),
        "numbers": {key: value for key, value in numbers.items() if _is_metric(key, value)},
        "threshold": threshold,
        "threshold_about": about,
        "classes": [{"kind": kind, **values} for kind, values in numbers.get("classes", {}).items()],
        **curves(videos),
        "loss": loss_lines(run.root / "metrics.jsonl"),
        "histogram": histogram(videos),
        "per_video": per_video(videos, threshold),
    }


def missed_below(
    run: RunDir, rule: str, videos: Sequence[FrameScores], device: str = "cpu"
) -> tuple[float | None, str]:
    """The score below which an anomalous frame is missed, and how it was chosen: never by the videos evaluated.

    By the training videos; where their features cannot be reached, 0.5 for scores between 0 and 1, else None.
    """
    try:
        found = training_threshold(run, rule, device)
        return found.value, found.about
    except (ValueError, OSError) as error:
        log.info("%s", error)
    if all(v.scores.min() >= 0 and v.scores.max() <= 1 for v in videos):
        return DEFAULT, f"{DEFAULT}: training features not reachable"
    return None, "none: scores are not between 0 and 1, and training features not reachable"


def in_words(spec: FeatureSpec) -> str:
    """The fields of a spec that tell one from another, in one line."""
    values = json.loads(spec.to_json())
    shown = [f"{key} {values[key]}" for key in _SHOWN if values[key] is not None]
    crops = f"crops {len(spec.crops)}" + (f" ({spec.crops[0]})" if len(spec.crops) == 1 else "")
    options = [f"{key}={value}" for key, value in sorted(spec.options.items())]
    return ", ".join([*shown, crops, f"{spec.compute}, stored as {spec.dtype}", f"decoded by {spec.decoder}", *options])


def _is_metric(key: str, value: Any) -> bool:
    plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return plain and key not in _NOT_METRICS


def _warnings(one: Evaluated) -> list[str]:
    numbers = one.found.numbers
    found = []
    if one.rule == "test":
        found.append("OPTIMISTIC: these weights were chosen on the test videos; compare with the like alone")
    if numbers.get("random_weights"):
        found.append("features of a net with random weights: the numbers say nothing about it")
    if without := numbers.get("trained_without"):
        found.append(f"trained without {len(without)} videos that had no features, e.g. '{without[0]}'")
    if cut := numbers.get("clamped_events"):
        found.append(f"{len(cut)} videos, e.g. '{cut[0]}', have an event that ends behind the last frame; cut there")
    if "features" in numbers["lengths_from"]:
        found.append("true lengths are unknown: a video counts for the frames of its features")
    if numbers.get("score_gap") == 0:
        found.append("anomalous and normal frames score alike: training may have diverged")
    return found


def _specs(run: RunDir) -> list[FeatureSpec]:
    """Of the features it was trained on; none of a run that was imported."""
    path = run.root / "features.json"
    if not path.is_file():
        return []
    return [FeatureSpec.from_json(json.dumps(found["spec"])) for found in json.loads(path.read_text(encoding="utf-8"))]
