"""Starting and resuming a training run: what `wsvad train` does."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import manifest
from data.store import FeatureStore
from data.types import Video
from mil import config as configs
from mil.config import Config
from mil.heads import heads
from mil.heads.base import members
from mil.precision import check_compiled
from mil.rundir import RunDir, RunError
from mil.selection import Look
from mil.tracking import check_trackers, make_trackers
from mil.train import check, fit, load_videos, open_stores, resolved

log = logging.getLogger(__name__)


def start_run(
    recipe: str,
    overrides: Sequence[str],
    manifest_path: Path,
    feature_roots: Sequence[Path],
    out: Path,
    *,
    seed: int | None = None,
    device: str = "cpu",
    allow_missing: bool = False,
    command: Sequence[str] = (),
    track: Sequence[str] = (),
) -> tuple[RunDir, dict[str, Any]]:
    """Checks everything, makes the run's folder, trains. Returns the run and what `fit` returns.

    `track` names trackers beside metrics.jsonl: "tensorboard", "wandb".
    """
    check_trackers(track)
    config = configs.load(recipe, overrides, seed=seed)
    check_compiled(config.train.compile, device)
    videos = manifest.read(manifest_path)
    given = open_stores(feature_roots)
    stores = chosen(config, given)
    for store in given:
        if store not in stores:
            log.info("%s: %s features are not used (data.modalities)", store.root, store.spec.modality)
    wanted = _used(config, videos)
    present = load_videos(wanted, stores, allow_missing=allow_missing)
    train = [v for v in present if v.split == "train"]
    check(config, train, stores)
    config = resolved(config, train)
    observer = _observer(config, present, stores, device)
    left_out = sorted({v.id for v in wanted} - {v.id for v in present})
    run = RunDir.create(out, config, videos, stores, command, left_out=left_out)
    with run.claimed():
        trackers = make_trackers(track, run, config)
        return run, fit(config, train, stores, run, device=device, observer=observer, trackers=trackers)


def resume_run(
    recipe: str, out: Path, *, device: str = "cpu", track: Sequence[str] = ()
) -> tuple[RunDir, dict[str, Any]]:
    """Continues a run from its last state; `track` as for `start_run`, a tracker goes on where it was.

    Raises RunError when it is of another recipe, or done already.
    """
    check_trackers(track)
    run = RunDir(out)
    config = run.config
    if Path(recipe).stem != config.recipe:
        raise RunError(f"the run {out} is of recipe '{config.recipe}', not '{recipe}'; resume it by its own name")
    if run.status["state"] == "done":
        raise RunError(f"the run {out} is done ({run.status['selected_by']}); now: wsvad eval {out}")
    stores = run.open_stores()
    # the same videos as at the start: a lost feature file or a late one would change every batch
    left_out = run.left_out
    present = load_videos([v for v in _used(config, run.videos) if v.id not in left_out], stores)
    train, observer = [v for v in present if v.split == "train"], _observer(config, present, stores, device)
    with run.claimed():
        trackers = make_trackers(track, run, config)
        return run, fit(config, train, stores, run, device=device, resume=True, observer=observer, trackers=trackers)


def _used(config: Config, videos: Sequence[Video]) -> list[Video]:
    """Training videos; those of the test split only where they select."""
    return [v for v in videos if v.split == "train" or (v.split == "test" and "test" in config.select.rules)]


def _observer(config: Config, videos: Sequence[Video], stores: Sequence[FeatureStore], device: str) -> Look | None:
    """What the rule test looks by, where it is followed: the only thing of test videos that training is given."""
    if "test" not in config.select.rules:
        return None
    from mil.optimistic import optimistic_look  # late: it evaluates, and evaluation imports training

    return optimistic_look(config, [v for v in videos if v.split == "test"], stores, device)


def chosen(config: Config, stores: Sequence[FeatureStore]) -> list[FeatureStore]:
    """Of the stores given, those whose modality the head's parts or `data.modalities` name; all where neither does.

    Raises ValueError where one that is named is wanting.
    """
    named = config.data.modalities or heads.get(config.head.name).modalities
    if not named:
        return list(stores)
    kept = {name for part in named for name in members(part, [s.spec.modality for s in stores], config.recipe)}
    return [s for s in stores if s.spec.modality in kept]
