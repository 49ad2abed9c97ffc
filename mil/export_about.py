"""What an exported model says of itself: what a program without this code needs from a video to frame scores."""

import json
from importlib.metadata import version
from typing import Any

import torch

from mil import checkpoint
from mil.config import Config
from mil.heads import heads
from mil.heads.base import HEARD_OR_READ
from mil.protocol import AUTO, get


def kept_shared(kept: checkpoint.Checkpoint) -> dict[str, bool]:
    """Which modalities have one crop that the K of the others share: sound and captions, or by their specs."""
    dims = kept.model.dims
    crops = {s.modality: len(s.crops) for s in kept.specs} or dict.fromkeys(dims, 1)
    several = max(crops.values()) > 1
    seen = any(n not in HEARD_OR_READ for n in dims)
    return {n: crops[n] == 1 and (several or (seen and n in HEARD_OR_READ)) for n in dims}


def describe(kept: checkpoint.Checkpoint, rule: str, dtype: str, *, unfinished: bool = False) -> dict[str, Any]:
    """What somebody must know to go from a video to frame scores with the file alone."""
    config, head, shared = kept.config, kept.model.head, kept_shared(kept)
    reads = heads.get(config.head.name).reads  # files, whose content the weights hold
    options = {n: v for n, v in config.model_dump(mode="json")["head"].items() if n not in reads}
    specs = {s.modality: json.loads(s.to_json()) for s in kept.specs}
    inputs = [
        {"name": n, "shape": [1, 1 if shared[n] else "K", "T", d], "dtype": dtype, "features": specs.get(n)}
        for n, d in kept.model.dims.items()
    ]
    return {
        "format": 1,
        "wsvad": version("wsvad"),
        "torch": torch.__version__,
        "recipe": config.recipe,
        "head": config.head.name,
        "head_options": {n: v for n, v in options.items() if n != "name"},
        "seed": config.seed,
        "rule": rule,
        "selected_by": kept.selected_by,
        "step": kept.step,
        "inputs": inputs,
        "input_is": "one video: the features of all T clips of K crops, as extracted; not scaled, padded or resampled",
        "output": {"name": "scores", "shape": [1, "T"], "is": "a score for each clip, the mean over the crops"},
        "bounded": "test_scores_lie_between_0_and_1" not in head.exceptions(),
        "lookback": head.lookback,
        "lookback_is": "a score tells of so many clips, its own the last; null: of others too",
        **_afterwards(config, kept),
        "warnings": _warnings(kept, rule, unfinished),
    }


def _afterwards(config: Config, kept: checkpoint.Checkpoint) -> dict[str, Any]:
    rules = config.evaluate
    protocol = None if rules.protocol == AUTO else {"name": rules.protocol, "is": get(rules.protocol).about}
    how = rules.smoothing if rules.smooth > 1 else "none"
    grid = None
    if kept.specs:
        grid = {name: getattr(kept.specs[0], name) for name in ("clip_len", "stride", "step", "tail", "fps")}
    return {
        "smoothing": {"how": how, "clips": rules.smooth, "is": f"not in this file; {_SMOOTHING[how]}"},
        "clip_grid": grid,
        "frames_are": "not in this file; clip i covers frames [i * stride, i * stride + clip_len * step); a frame has "
        "the mean of the clips that cover it, one that none covers the score of the clip before it; fps: the rate that "
        "the video is resampled to first, null: its own frames",
        "protocol": protocol,
    }


_SMOOTHING = {
    "none": "clip scores are taken as they are",
    "centred": "mean of so many clips around each, fewer at the ends",
    "ahead": "mean of a clip and those behind it, zeros behind the end",
    "blocks": "one mean for each so many clips, zeros behind the end",
}


def _warnings(kept: checkpoint.Checkpoint, rule: str, unfinished: bool) -> list[str]:
    found = []
    if rule == "test":
        found.append("OPTIMISTIC: these weights were chosen on the test videos")
    if any(s.is_random for s in kept.specs):
        found.append("the features come from a net with random weights; scores say nothing")
    if not kept.specs:
        found.append("the checkpoint was imported: what made the features it was trained on is not recorded")
    if unfinished:
        found.append(f"training is not done, these weights are of step {kept.step}")
    return found
