"""Where events begin: a threshold for frame scores, chosen on a run's training videos and their video-level labels.

A training video counts as found when its highest frame score reaches the threshold. What counts is to find many of the
anomalous videos and leave many of the normal ones alone, both kinds weighing the same (balanced accuracy; Youden,
Cancer 1950). Of all thresholds within one standard error of the best (Breiman et al., Classification and Regression
Trees, 1984), the one with the most room around it is taken, midway between the two scores that it separates: a head
that has learned its training videos by heart scores the normal ones 1e-9, and one anomalous video at 1e-7 is not to
pull the threshold down there. Frame labels and events are never read, nor is a video of the test split.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.files import write_text
from data.store import StoreError
from data.types import Video
from mil import checkpoint, protocol
from mil.bags import read_features, shared_grid
from mil.checkpoint import Checkpoint
from mil.errors import TrainError
from mil.events import EventRule
from mil.resample import Array
from mil.rundir import RunDir
from mil.scoring import score_videos
from mil.selection import hold_out
from mil.train import load_videos

log = logging.getLogger(__name__)

FORMAT = 2
WAY = 0.8
"""An event goes on until the score has lost a fifth of what the threshold lies above the usual score."""
MIN_S = 1.0
"""Events shorter than that, seconds, are dropped."""
MERGE_S = 2.0
"""Events less than that apart, seconds, are one."""
_ROUNDING = 1e-12  # accuracies closer than that are equal: shares of videos are no exact numbers


@dataclass(frozen=True)
class Threshold:
    """Where events begin and end.

    Args:
        value: frame scores from here on begin an event.
        about: where it comes from, with numbers, for people.
        low: an event goes on while scores are >= `low`; at most `value`.
    """

    value: float
    about: str
    low: float

    @classmethod
    def given(cls, value: float) -> "Threshold":
        """One that a person chose; events go on down to 0.8 of it (down to itself where it is negative)."""
        return cls(value, "given by the user", WAY * value if value > 0 else value)

    def rule(self, *, low: float | None = None, min_s: float | None = None, merge_s: float | None = None) -> EventRule:
        """What counts as an event; None: `self.low`, 1 s and 2 s. Raises ValueError on numbers that make no sense."""
        return EventRule(
            self.value,
            self.low if low is None else low,
            MIN_S if min_s is None else min_s,
            MERGE_S if merge_s is None else merge_s,
        )


def training_threshold(run: RunDir, rule: str | None = None, device: str = "cpu", *, online: bool = False) -> Threshold:
    """The threshold of a run's training videos, kept in RUN/threshold-<rule>.json while the weights are the same.

    Args:
        run: its manifest and the features that it was trained on.
        rule: whose weights, of those that the run followed; None: the one that it is judged by.
        device: where the head runs.
        online: for scores of what came before alone; kept in RUN/threshold-<rule>-online.json.

    Raises:
        ValueError: the training videos or their features are not there, or all score alike; pass a threshold instead.
    """
    rule = rule or run.config.select.rule
    kept = (checkpoint.load_online if online else checkpoint.load)(run.checkpoint_of(rule), device)
    path = run.root / f"threshold-{rule}{'-online' * online}.json"
    key = {"format": FORMAT, "rule": rule, "step": kept.step, "selected_by": kept.selected_by}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found[name] == value for name, value in key.items()):
            return Threshold(float(found["threshold"]), str(found["about"]), float(found["low"]))
    except (OSError, ValueError, KeyError, TypeError):
        log.debug("%s is not there, or of other weights", path)
    try:
        chosen = _of_training(run, kept, device)
    except (StoreError, TrainError, OSError, ValueError) as error:
        raise ValueError(
            f"no threshold can be chosen on the training videos of {run.root} ({error}); say where events begin: "
            "--threshold SCORE"
        ) from error
    values = {"threshold": chosen.value, "low": chosen.low, "about": chosen.about}
    try:
        write_text(path, json.dumps({**key, **values}, indent=2) + "\n")
    except OSError as error:  # a run that others may only read
        log.debug("%s is not kept: %s", path, error)
    return chosen


def _of_training(run: RunDir, kept: Checkpoint, device: str) -> Threshold:
    stores = run.open_stores()
    if not stores:
        raise ValueError("it was imported, and names no features")
    gone = run.left_out
    wanted = [v for v in run.videos if v.split == "train" and v.id not in gone]
    labels = {v.id: v.label for v in load_videos(wanted, stores, allow_missing=True)}  # of a video nothing else is used
    if len(set(labels.values())) < 2:
        raise ValueError(
            f"it takes videos of both classes, there are {sum(labels.values())} anomalous of {len(labels)}"
        )
    grids = {i: shared_grid(stores, i, [store.length(i)[0] for store in stores]) for i in labels}

    def read(video_id: str) -> Mapping[str, Array]:
        return read_features(stores, video_id)[0]

    peaks: dict[int, list[float]] = {0: [], 1: []}
    usual: list[NDArray[np.float64]] = []
    scores = score_videos(
        kept.model,
        {i: len(grid) for i, grid in grids.items()},
        read,
        crops=max(len(store.spec.crops) for store in stores),
        device=torch.device(device),
    )
    # once for a run, but minutes where its training videos are many
    for video_id, clips in tqdm(scores, total=len(labels), unit="video", disable=None, desc=f"threshold of {run.root}"):
        rules = kept.config.evaluate
        frames = grids[video_id].to_frames(protocol.smooth(clips, rules.smooth, rules.smoothing))
        peaks[labels[video_id]].append(float(frames.max()))
        if not labels[video_id]:
            usual.append(np.asarray(frames, np.float32))
    value, hit, quiet = separating(peaks[1], peaks[0])
    base = float(np.median(np.concatenate(usual)))
    about = (
        f"chosen on the training videos by their video-level labels: separates {_share(hit)} of {len(peaks[1])} "
        f"anomalous from {_share(quiet)} of {len(peaks[0])} normal ones by their highest frame score"
    )
    return Threshold(value, about + _remarks(run, wanted, len(labels)), min(base + WAY * (value - base), value))


def separating(anomalous: Sequence[float], normal: Sequence[float]) -> tuple[float, float, float]:
    """A threshold of high balanced accuracy, and which shares of both kinds lie on the right side of it.

    The widest gap between neighbouring scores of which the accuracy is the best, less one standard error of it; that of
    shares (k + 1) / (n + 2), so that it is not 0 where none is wrong.

    Args:
        anomalous: scores of which many should be >= the threshold.
        normal: scores of which many should be below it.

    Raises ValueError where a score is not finite, or all are equal.
    """
    high, low = np.sort(np.asarray(anomalous, np.float64)), np.sort(np.asarray(normal, np.float64))
    values = np.unique(np.concatenate([high, low]))
    if not np.isfinite(values).all():
        raise ValueError("a training video's score is NaN or infinite; the head diverged, train it again")
    if len(values) < 2:
        raise ValueError(f"all training videos score {values[0]:g}; has training diverged? See metrics.jsonl")
    middles = (values[:-1] + values[1:]) / 2
    middles = np.where(middles > values[:-1], middles, values[1:])  # two neighbouring floats have nothing between them
    hits = 1 - np.searchsorted(high, middles) / len(high)
    quiet = np.searchsorted(low, middles) / len(low)
    accuracy = (hits + quiet) / 2
    best = int(np.flatnonzero(accuracy > accuracy.max() - _ROUNDING)[0])
    variances = (_variance(share[best], len(kind)) for share, kind in ((hits, high), (quiet, low)))
    good = np.flatnonzero(accuracy >= accuracy[best] - math.sqrt(sum(variances)) / 2 - _ROUNDING)
    widest = good[np.argmax(np.diff(values)[good])]
    return float(middles[widest]), float(hits[widest]), float(quiet[widest])


def _variance(share: float, count: int) -> float:
    """Of the share of a sample that is on the right side."""
    p = (share * count + 1) / (count + 2)
    return p * (1 - p) / count


def _share(part: float) -> str:
    return f"{100 * part:.3g} %"


def _remarks(run: RunDir, videos: Sequence[Video], present: int) -> str:
    config = run.config
    found = ""
    if "val" in config.select.rules:
        found += f"; {len(hold_out(videos, config))} of them were held out of training"
    if absent := len(videos) - present:
        found += f"; left out for want of features: {absent}"
    return found
