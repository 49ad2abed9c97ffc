"""From a run to honest numbers: score every clip, spread to frames, join by id, apply a named protocol."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import manifest
from data.files import aside, write_text
from data.store import FeatureStore
from data.types import FrameScores, SpecMismatchError
from mil import bootstrap, checkpoint, metrics
from mil.rundir import RunDir
from mil.scored import Scored, check_annotated, scored
from mil.train import load_videos, open_stores

__all__ = ["Evaluation", "Scored", "evaluate_run", "read_scores", "scored", "write_scores"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """`numbers` as they are printed and stored, and the frame scores behind them."""

    numbers: dict[str, Any]
    videos: tuple[FrameScores, ...]
    path: Path


def evaluate_run(
    run: RunDir,
    *,
    split: str = "test",
    protocol_name: str | None = None,
    manifest_path: Path | None = None,
    feature_roots: Sequence[Path] = (),
    allow_missing: bool = False,
    crop: str | None = None,
    resamples: int = 0,
    device: str = "cpu",
    rule: str | None = None,
    precision: str = "fp32",
) -> Evaluation:
    """Scores a split with a run's checkpoint and writes eval/<split>-<protocol>.json and ..._scores.npz.

    Args:
        run: a finished run.
        split: "test" or "train".
        protocol_name: the recipe's when None.
        manifest_path: other videos than the run's own.
        feature_roots: other stores than those it was trained on; their specs must be the same.
        allow_missing: leave out videos without features, and list them beside the numbers.
        crop: score this crop alone, by name; None: the head's scores are the mean over all crops.
        resamples: bootstrap draws of whole videos for 95 % intervals; 0: none.
        device: where torch runs.
        rule: whose weights, of those that the run followed; None: the one that it is judged by.
        precision: "fp32" or "bf16", of the head's layers.

    Raises:
        ValueError: no videos in the split, lengths that disagree or are unknown, missing features, no such crop,
            an anomalous video without events.
        SpecMismatchError: features made otherwise than those the head was trained on.
    """
    judged_by = run.config.select.rule
    chosen = rule or judged_by
    kept = checkpoint.load(run.checkpoint_of(chosen), device)
    stores = open_stores(list(feature_roots) or run.feature_roots)
    if not stores:
        raise ValueError(f"{run.root} names no features, as it was imported; pass them with --features STORE")
    _check_specs(stores, kept)
    source = manifest_path or run.root / "manifest.csv"
    wanted = [v for v in manifest.read(source) if v.split == split]
    if not wanted:
        raise ValueError(f"{source} has no videos in the {split} split; index the dataset with its {split} list")
    check_annotated(wanted, source)
    present = load_videos(wanted, stores, allow_missing=allow_missing)
    rules = kept.config.evaluate
    result = scored(
        kept.model,
        rules,
        present,
        stores,
        protocol_name=protocol_name,
        crop=crop,
        device=device,
        precision=precision,
    )
    for video_id in result.clamped:
        log.warning("%s: an annotated event ends behind the last frame; cut at the end", video_id)
    frames = result.protocol
    numbers: dict[str, Any] = {
        **metrics.evaluate(result.videos, events=result.events),
        "protocol": frames.name,
        "protocol_about": frames.about,
        "smooth_clips": rules.smooth,
        "smoothing": rules.smoothing if rules.smooth > 1 else "none",
        "crops": crop or f"mean of {max(len(s.spec.crops) for s in stores)}",
        "lengths_from": sorted(result.origins),
        "ap_definitions": {"ap": "stepwise average precision", "pr_auc": "trapezoid under the precision-recall curve"},
        "selected_by": kept.selected_by,
        "rule": chosen,
        "optimistic": chosen == "test",
        "precision": precision,
        "split": split,
        "recipe": kept.config.recipe,
        "head": kept.config.head.name,
        "seed": kept.config.seed,
        "step": kept.step,
        "features": [store.spec.id for store in stores],
        "random_weights": any(store.spec.is_random for store in stores),
        "manifest": str(source),
        "clamped_events": list(result.clamped),
        "missing": sorted({v.id for v in wanted} - {v.id for v in present}),
        "trained_without": _left_out_of_training(run),
    }
    if resamples:
        drawn = bootstrap.resample(result.videos, resamples=resamples, seed=kept.config.seed)
        numbers["ci95"] = {name: bootstrap.interval(values) for name, values in drawn.items()}
        numbers["ci95_about"] = f"percentiles of {resamples} bootstrap draws of whole videos"
    # what was evaluated otherwise than the run's own videos has a name of its own, and replaces nothing
    apart = [f"by_{chosen}"] * (chosen != judged_by) + [precision] * (precision != "fp32")
    apart += [*([f"crop_{crop}"] if crop else []), *([_name_of(manifest_path)] if manifest_path else [])]
    name = "-".join([split, frames.name, *apart, *(["partial"] if numbers["missing"] else [])])
    path = run.root / "eval" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # a kill never leaves numbers beside other scores
    write_scores(path.with_name(path.stem + "_scores.npz"), result.videos)
    write_text(path, json.dumps(numbers, indent=2) + "\n")
    return Evaluation(numbers, result.videos, path)


def write_scores(path: Path, videos: Sequence[FrameScores]) -> None:
    """Frame scores and labels of every video in one npz: ids (V,), lengths (V,), scores and labels end to end."""
    with aside(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            ids=np.array([v.video_id for v in videos]),
            lengths=np.array([len(v.scores) for v in videos]),
            scores=np.concatenate([v.scores for v in videos]),
            labels=np.concatenate([v.labels for v in videos]),
        )


def read_scores(path: Path) -> tuple[FrameScores, ...]:
    """Reads what `write_scores` wrote."""
    with np.load(path, allow_pickle=False) as found:
        ends = np.cumsum(found["lengths"])
        starts = ends - found["lengths"]
        scores, labels = found["scores"], found["labels"]
        return tuple(
            FrameScores(str(i), scores[a:b], labels[a:b]) for i, a, b in zip(found["ids"], starts, ends, strict=True)
        )


def _left_out_of_training(run: RunDir) -> list[str]:
    """Training videos that the run did without, having no features."""
    gone = run.left_out
    return sorted(v.id for v in run.videos if v.split == "train" and v.id in gone) if gone else []


def _name_of(path: Path) -> str:
    """A manifest in the name of a file: two of one stem differ."""
    return f"manifest_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def _check_specs(stores: Sequence[FeatureStore], kept: checkpoint.Checkpoint) -> None:
    if not kept.specs:  # imported: nobody recorded what made its features
        log.warning("this checkpoint does not say which features it was trained on; they are taken as they are")
        return
    if len(stores) != len(kept.specs):
        raise SpecMismatchError(
            f"the head was trained on {len(kept.specs)} feature stores, got {len(stores)}; pass each with --features"
        )
    for store, spec in zip(stores, kept.specs, strict=True):
        store.spec.check_equal(spec, f"the store {store.root}")
