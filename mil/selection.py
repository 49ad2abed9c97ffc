"""Which step's weights are kept: the rules, what each of them keeps, and what is said of it.

last    those of the last step, fixed beforehand
val     the best by videos of the training split that are held out, with their video-level labels
test    the best by the test videos: the field's habit, OPTIMISTIC wherever it is shown
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from data.store import FeatureStore
from data.types import Video
from mil.bags import read_features
from mil.config import Config
from mil.errors import TrainError
from mil.model import Model
from mil.scoring import Item, score_videos
from mil.step import copied

Look = Callable[[Model], float]
"""A number for a model, higher is better; the model is in evaluation mode and belongs to the caller."""


def hold_out(videos: Sequence[Video], config: Config) -> list[Video]:
    """A share of each class, at least one video, drawn by the seed; every class must keep one. Raises TrainError."""
    rng = np.random.default_rng([config.seed, 2**31])
    held: list[Video] = []
    for label in (0, 1):
        group = [v for v in videos if v.label == label]
        if len(group) < 2:
            raise TrainError(
                f"selection by val needs two videos of each class, found {len(group)} of label {label}; take val out "
                "of select.rule and select.also"
            )
        count = min(max(round(config.select.fraction * len(group)), 1), len(group) - 1)
        held += [group[i] for i in rng.permutation(len(group))[:count]]
    return held


def held_out_look(videos: Sequence[Video], stores: Sequence[FeatureStore], device: torch.device) -> Look:
    """Video-level AUC of held-out training videos, each scored by its highest clip. NaN when a score is not finite.

    Features are read anew at every look: all crops of a fifth of a dataset may not fit in memory.
    """
    labels = [v.label for v in videos]
    lengths = {v.id: min(len(store.length(v.id)[0]) for store in stores) for v in videos}
    crops = max(len(store.spec.crops) for store in stores)

    def read(video_id: str) -> Item:
        return read_features(stores, video_id)[0]

    def look(model: Model) -> float:
        scores = dict(score_videos(model, lengths, read, crops=crops, device=device))
        best = [float(scores[v.id].max()) for v in videos]
        return float(roc_auc_score(labels, best)) if np.isfinite(best).all() else float("nan")

    return look


@dataclass
class Best:
    """The best weights that a rule has seen; ties keep the earlier ones. None before its first look."""

    value: float = float("-inf")
    step: int = 0
    weights: dict[str, Tensor] | None = None


class Selection:
    """What the rules of one run keep. Looking changes nothing in the model that is trained, and draws no random number.

    Args:
        config: the experiment; `select` names the rules.
        dims: {modality: D_m} of the features.
        looks: {rule: its look}, of every rule that is followed but last.
        device: where torch runs.
        videos, held_out: how many training videos there are, and how many of them take no part in training.
    """

    def __init__(
        self,
        config: Config,
        dims: Mapping[str, int],
        looks: Mapping[str, Look],
        device: torch.device,
        *,
        videos: int,
        held_out: int,
    ) -> None:
        self.config, self.dims, self.looks, self.device = config, dims, looks, device
        self.videos, self.held_out = videos, held_out
        self.best = {rule: Best() for rule in looks}
        self.model: Model | None = None  # another than the one in training, made at the first look

    def look(self, rule: str, weights: Mapping[str, Tensor], step: int) -> tuple[str, float]:
        """Looks at those weights, and keeps a copy where they are the best. Gives the number's name in logs, and it."""
        with self._apart(), torch.no_grad():
            if self.model is None:
                self.model = Model(self.config, self.dims, filled=True).to(self.device)
            self.model.load_state_dict(weights)
            value = self.looks[rule](self.model.eval())
        if value > self.best[rule].value:
            self.best[rule] = Best(value, step, copied(weights))
        # of test's numbers none is to be seen without that word, in a tracker neither
        return ("val/video_auc" if rule == "val" else f"OPTIMISTIC/test_{self.config.select.metric}"), value

    def said(self, rule: str, step: int, steps: int) -> str:
        """What selected the weights of a rule, when `step` of `steps` steps are done."""
        best = self.best.get(rule)
        if best is None:
            text = f"last step ({step}), fixed beforehand" if step == steps else f"step {step} of {steps}, unfinished"
        else:
            rest = "" if step == steps else f", unfinished: {steps} planned"
            where = f"({best.value:.4f}, step {best.step} of {step}{rest})"
            if rule == "val":
                text = f"best video-level AUC {where} on {self.held_out} held-out training videos"
            else:
                metric = self.config.select.metric.upper()
                text = f"OPTIMISTIC: best test frame {metric} {where}, chosen on the test videos it is judged by"
        if self.config.train.ema:
            text += f", weights averaged (EMA {self.config.train.ema})"
        if self.held_out:
            share = f"{100 * self.config.select.fraction:g} % held out"
            text += f"; trained on {self.videos - self.held_out} of {self.videos} videos: {share}"
        return text

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {rule: dict(vars(best)) for rule, best in self.best.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.best = {rule: Best(**values) for rule, values in state.items()}

    def _apart(self) -> Any:
        """Puts torch's random numbers back: a head may draw some even in evaluation."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])
