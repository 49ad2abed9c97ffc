"""What training is given and refuses. It sees training videos and their video-level labels, and nothing else."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.store import FeatureStore
from data.types import Video
from mil.bags import ANOMALY, BagDataset
from mil.config import Config, HeadConfig
from mil.errors import TrainError
from mil.heads import heads
from mil.loop import Loop
from mil.model import Model
from mil.optim import make_optimizer
from mil.rundir import RunDir
from mil.selection import Look, Selection, held_out_look, hold_out
from mil.tracking import Tracker

__all__ = ["TrainError", "check", "fit", "load_videos", "open_stores", "resolved"]

log = logging.getLogger(__name__)


def fit(
    config: Config,
    videos: Sequence[Video],
    stores: Sequence[FeatureStore],
    run: RunDir,
    *,
    device: str = "cpu",
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    observer: Look | None = None,
) -> dict[str, Any]:
    """Trains a head and writes a checkpoint for every rule of `config.select`.

    Args:
        config: the experiment.
        videos: training videos only; their events, if any, are taken away before anything else happens.
        stores: one feature store per modality, in the order in which the head sees them.
        run: where checkpoints, metrics and the state to resume from go.
        device: where torch runs.
        resume: continue from run's last state; on a CPU the result is the same, byte for byte.
        trackers: told every number that metrics.jsonl holds; closed at the end.
        observer: for the rule test: gives a number for a model. What it looks at, and with which labels, stays its own.

    Returns:
        {"step": of the weights that the run is judged by, "steps", "selected_by", "rules": {rule: selected by},
        "seconds", "losses": the last ones by name}.

    Raises:
        TrainError: a test video among `videos`, one class only, a loss that is not finite, a rule without its observer.
    """
    check(config, videos, stores)
    if ("test" in config.select.rules) != (observer is not None):
        raise TrainError("fit takes an observer where select.rule or select.also names test, and only there")
    config = resolved(config, videos)
    videos = [replace(v, events=()) for v in videos]  # labels of whole videos are all that supervision has
    held_out = hold_out(videos, config) if "val" in config.select.rules else []
    held_ids = {v.id for v in held_out}
    kept = [v for v in videos if v.id not in held_ids]

    torch.manual_seed(config.seed)
    classes = config.head.options.get("classes", ()) if heads.get(config.head.name).takes_classes else ()
    data = config.data
    bags = BagDataset(kept, stores, data.resample, data.count, classes=classes, dtype=data.dtype, among=videos)
    model = Model(config, {s.spec.modality: s.spec.dim for s in stores})
    for name, scaler in model.scalers.items():
        scaler.fit(lambda name=name: (item[name] for item in bags.clips()))  # type: ignore[operator]
    model.to(device)
    place = torch.device(device)
    looks = {"val": held_out_look(held_out, stores, place)} if held_out else {}
    if observer is not None:
        looks["test"] = observer
    selection = Selection(config, model.dims, looks, place, videos=len(videos), held_out=len(held_out))
    loop = Loop(config, model, bags, run, [s.spec for s in stores], selection, place, trackers)
    if resume:
        loop.restore()
    return loop.run_all()


def check(config: Config, videos: Sequence[Video], stores: Sequence[FeatureStore]) -> None:
    """What can be refused before a run's folder is made: a wrong split, one class only, options of the head.

    Raises TrainError, or what the head raises.
    """
    if leaked := [v.id for v in videos if v.split != "train"]:
        raise TrainError(f"fit takes training videos only, '{leaked[0]}' is of the test split; select them by v.split")
    counts = [sum(v.label == label for v in videos) for label in (0, 1)]
    if min(counts) == 0:
        raise TrainError(
            f"training compares two classes, but the manifest has {counts[0]} normal and {counts[1]} anomalous videos"
        )
    if "val" in config.select.rules:
        hold_out(videos, config)
    kind = heads.get(config.head.name)
    if kind.compares and config.train.sampler == "mixed":
        raise TrainError(
            f"{config.head.name} compares two classes in every batch, train.sampler=mixed draws batches that may hold "
            "one; use balanced or passes"
        )
    if kind.takes_classes and config.head.options.get("classes"):
        known = config.head.options["classes"]
        for video in videos:
            if other := [c for c in video.classes if c not in known]:
                raise TrainError(f"{video.id} shows '{other[0]}', head.classes are {', '.join(known)}; add it there")
    if kind.remembers and config.data.resample == "random":
        raise TrainError(
            f"{config.head.name} keeps labels for the segments of every video, data.resample=random draws others at "
            "every step; use segments, shrink or pick"
        )
    modalities = [s.spec.modality for s in stores]
    if twice := [m for m in modalities if modalities.count(m) > 1]:
        raise TrainError(f"two stores hold the modality '{twice[0]}'; pass --features once per modality")
    model = Model(resolved(config, videos), {s.spec.modality: s.spec.dim for s in stores})
    make_optimizer(config.train.optimizer, model.head)


def resolved(config: Config, videos: Sequence[Video]) -> Config:
    """The config with what a head takes from the training videos written into it: the names of their classes.

    A video-level label, not an annotation. An anomalous video that names no class is of the class "anomaly".
    """
    if not heads.get(config.head.name).takes_classes or config.head.options.get("classes"):
        return config
    named = {c for v in videos if v.label for c in v.classes or (ANOMALY,)}
    head = HeadConfig(name=config.head.name, **{**config.head.options, "classes": tuple(sorted(named))})
    return config.model_copy(update={"head": head})


def load_videos(videos: Sequence[Video], stores: Sequence[FeatureStore], *, allow_missing: bool = False) -> list[Video]:
    """The videos that have features in every store. Raises TrainError naming those that have not, unless allowed."""
    missing = {i for store in stores for i in store.missing(v.id for v in videos)}
    if videos and len(missing) == len(videos):
        raise TrainError(
            f"none of the {len(videos)} videos, e.g. '{videos[0].id}', has features in "
            f"{' and '.join(str(s.root) for s in stores)}; --features or --manifest is another dataset's"
        )
    if missing and not allow_missing:
        raise TrainError(
            f"{len(missing)} of {len(videos)} videos have no features, e.g. '{min(missing)}'; extract them "
            "(failures.jsonl in the store says what went wrong), take them out of the manifest, or pass --allow-missing"
        )
    if missing:
        log.warning(
            "%d of %d videos have no features and are left out: %s",
            len(missing),
            len(videos),
            ", ".join(sorted(missing)[:5]),
        )
    return [v for v in videos if v.id not in missing]


def open_stores(roots: Sequence[Path]) -> list[FeatureStore]:
    """Opens one store per modality."""
    return [FeatureStore(root) for root in roots]
