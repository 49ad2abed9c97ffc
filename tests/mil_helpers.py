"""Stores and manifests of planted Gaussian features: what the tests of `mil` train on, without any video."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result

from data import manifest
from data.store import FeatureStore
from data.types import Event, FeatureSpec, Video, VideoFeatures
from mil import config as configs
from mil.bags import Bag
from mil.cli import main
from mil.config import Config
from mil.rundir import RunDir

CLIP = 16
DIM = 8


@dataclass(frozen=True)
class World:
    """A manifest and the stores that hold its features."""

    root: Path
    videos: tuple[Video, ...]
    stores: tuple[FeatureStore, ...]

    @property
    def train(self) -> list[Video]:
        return [v for v in self.videos if v.split == "train"]

    @property
    def test(self) -> list[Video]:
        return [v for v in self.videos if v.split == "test"]

    @property
    def manifest(self) -> Path:
        return self.root / "videos.csv"

    def run(self, name: str, config: Config) -> RunDir:
        return RunDir.create(self.root / name, config, self.videos, self.stores)


def make_world(
    root: Path,
    *,
    train: int = 8,
    test: int = 4,
    crops: int = 1,
    modalities: Sequence[str] = ("rgb",),
    shift: float = 4.0,
    seed: int = 0,
    test_seed: int = 1,
    weights: str = "none",
) -> World:
    """`train` and `test` videos per class. Anomalous clips are `shift` away from the others in two dimensions.

    Events begin and end with a clip, so that a good head can reach a frame AUC of 1.
    """
    stores = {
        m: FeatureStore(
            root / f"store_{m}",
            FeatureSpec(
                "planted",
                DIM if m == "rgb" else 3,
                weights=weights,
                modality=m,
                crops=("full",) if m == "audio" or crops == 1 else tuple(f"crop{k}" for k in range(crops)),
            ),
        )
        for m in modalities
    }
    videos = []
    for split, count, number in (("train", train, seed), ("test", test, test_seed)):
        rng = np.random.default_rng([number, 5])
        for i in range(2 * count):
            label = i % 2
            clips = int(rng.integers(5, 20))
            frames = CLIP * clips - int(rng.integers(0, CLIP))
            first = int(rng.integers(0, clips - 3))
            last = first + int(rng.integers(2, 4))
            events = (Event(CLIP * first, min(CLIP * last, frames), "Planted"),) if label else ()
            classes = ("Planted",) if label else ()
            name = f"{'abnormal' if label else 'normal'}_{split}_{i:03d}"
            for store in stores.values():
                spec = store.spec
                x = rng.standard_normal((len(spec.crops), clips, spec.dim)).astype(np.float32)
                if label:
                    x[:, first:last, :2] += shift
                store.write(VideoFeatures(name, x, spec.grid(frames), 25.0, spec.crops))
            videos.append(Video(name, "", split, label, classes, num_frames=frames, fps=25.0, events=events))
    manifest.write(root / "videos.csv", videos)
    return World(root, tuple(videos), tuple(stores.values()))


def small_config(*overrides: str, recipe: str = "motion_ranking", **top: Any) -> Config:
    """A quick configuration: narrow layers, few steps; what a recipe may tune is fixed here."""
    quick = (
        "head.hidden=[16, 8]",
        "head.topk=1",
        "data.count=8",
        "data.scale=standardize",
        "data.clamp=null",
        "data.dtype=float32",  # so that references in numpy see the same numbers
        "evaluate.smooth=1",
        "train.steps=12",
        "train.pairs=4",
        "train.log_every=2",
        "train.optimizer={name: adam, lr: 1e-3, weight_decay: 1e-3}",
    )
    return configs.load(recipe, [*quick, *overrides], **top)


def without_events(videos: Sequence[Video]) -> list[Video]:
    return [replace(v, events=()) for v in videos]


def random_bag(
    lengths: Sequence[int],
    labels: Sequence[int],
    *,
    dims: Mapping[str, int] | None = None,
    crops: Mapping[str, int] | None = None,
    pad: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Bag:
    """Gaussian features, zero-padded; each video's numbers do not depend on `pad` or on the other videos."""
    dims, crops = dims or {"rgb": 6}, crops or {}
    longest = max(lengths) + pad
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    features = {}
    for m, (name, dim) in enumerate(dims.items()):
        x = torch.zeros(len(lengths), crops.get(name, 1), longest, dim, dtype=dtype)
        for b, n in enumerate(lengths):
            rng = np.random.default_rng([seed, m, b])
            x[b, :, :n] = torch.from_numpy(rng.standard_normal((x.shape[1], n, dim)))
        features[name] = x
    return Bag(features, mask, torch.tensor(labels, dtype=dtype))


def take(bag: Bag, rows: Sequence[int]) -> Bag:
    """The bag's videos of those rows, in that order."""
    index = torch.tensor(rows)
    classes, numbers = (None if t is None else t[index] for t in (bag.classes, bag.index))
    return Bag({n: x[index] for n, x in bag.features.items()}, bag.mask[index], bag.labels[index], classes, numbers)


def metrics_lines(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]


def call_wsvad(*arguments: object) -> Result:
    """call_wsvad("ls", "heads") -> the result; a traceback is a failure of the test, whatever the test expects."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="wsvad")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
