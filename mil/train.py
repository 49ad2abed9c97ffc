"""The training loop. It sees training videos and their video-level labels, and nothing else."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from data.files import aside
from data.store import FeatureStore
from data.types import Video
from mil import checkpoint
from mil.bags import ANOMALY, Bag, BagDataset, collate, read_features
from mil.config import Config, HeadConfig
from mil.heads import Progress, heads
from mil.model import Model
from mil.optim import Schedule, make_optimizer
from mil.rundir import RunDir
from mil.samplers import balanced_batch, mixed_batch, passes_batch, per_epoch

log = logging.getLogger(__name__)


_AT_ONCE = 8192  # crops times clips that are scored in one pass
_DIVERGED = "lower train.optimizer.lr, or set train.clip_norm"


class TrainError(ValueError):
    """Training cannot start or go on; the message says what was found and what to change."""


def fit(
    config: Config,
    videos: Sequence[Video],
    stores: Sequence[FeatureStore],
    run: RunDir,
    *,
    device: str = "cpu",
    resume: bool = False,
) -> dict[str, Any]:
    """Trains a head and writes `run.checkpoint`.

    Args:
        config: the experiment.
        videos: training videos only; their events, if any, are taken away before anything else happens.
        stores: one feature store per modality, in the order in which the head sees them.
        run: where checkpoints, metrics and the state to resume from go.
        device: where torch runs.
        resume: continue from run's last state; on a CPU the result is the same, byte for byte.

    Returns:
        {"step", "selected_by", "seconds", last losses by name}.

    Raises:
        TrainError: a test video among `videos`, one class only, a loss that is not finite.
    """
    check(config, videos, stores)
    config = resolved(config, videos)
    videos = [replace(v, events=()) for v in videos]  # labels of whole videos are all that supervision has
    held_out = _hold_out(videos, config) if config.select.rule == "val" else []
    held_ids = {v.id for v in held_out}
    kept = [v for v in videos if v.id not in held_ids]

    torch.manual_seed(config.seed)
    classes = config.head.options.get("classes", ()) if heads.get(config.head.name).takes_classes else ()
    bags = BagDataset(kept, stores, config.data.resample, config.data.count, classes=classes)
    model = Model(config, {s.spec.modality: s.spec.dim for s in stores})
    for name, scaler in model.scalers.items():
        scaler.fit(item[name] for item in bags.clips())  # type: ignore[operator]
    model.to(device)
    loop = _Loop(config, model, bags, run, stores, device)
    if held_out:
        loop.held_out = _clips(held_out, stores)
        loop.held_labels = np.array([v.label for v in held_out])
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
    if config.select.rule == "val":
        _hold_out(videos, config)
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


class _Loop:
    """State of one training run: what resume.pt holds, and the steps on it."""

    def __init__(
        self, config: Config, model: Model, bags: BagDataset, run: RunDir, stores: Sequence[FeatureStore], device: str
    ) -> None:
        self.config, self.model, self.bags, self.run, self.device = config, model, bags, run, torch.device(device)
        self.specs = [s.spec for s in stores]
        self.optimizer = make_optimizer(config.train.optimizer, model.head)
        train = config.train
        # what is drawn: videos, or each of their crops
        self.crops = bags.crops if train.samples == "crops" else 1
        self.units = np.repeat(bags.labels, self.crops)
        size = train.batch if train.sampler == "mixed" else train.pairs
        self.schedule = Schedule(train, per_epoch(self.units, train.sampler, size))
        self.average = _copy(model.state_dict()) if config.train.ema else None
        self.best: dict[str, Tensor] | None = None
        self.best_value, self.best_step, self.step = -1.0, 0, 0
        self.held_out: list[dict[str, NDArray[np.float32]]] = []
        self.held_labels: NDArray[np.int64] = np.zeros(0, np.int64)

    def run_all(self) -> dict[str, Any]:
        train, began = self.config.train, time.monotonic()
        losses: dict[str, Tensor] = {}
        self.run.set_status("running")
        total = self.schedule.steps
        steps = range(self.step + 1, total + 1)
        try:
            with _interrupt_held() as interrupted:
                for step in tqdm(steps, initial=self.step, total=total, disable=None, desc="train"):
                    losses = self._update(step)
                    self.step = step
                    if step % train.log_every == 0 or step == total:
                        self._log(step, losses)
                    if self.held_out and (step % self.config.select.every == 0 or step == total):
                        self._validate(step)
                    if step % train.save_every == 0 or step == total or interrupted():
                        self.save()
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            # one that came in the middle of a step is not saved: resume goes on from the last whole state
            self.run.set_status("interrupted", step=self.step)
            raise
        except Exception as error:
            self.run.set_status("failed", step=self.step, reason=str(error))
            raise
        weights = self.best if self.best is not None else self._weights()
        selected_by = self._rule()
        step = self.best_step if self.best is not None else self.step
        dims = self.model.dims
        checkpoint.save(self.run.checkpoint, weights, self.config, dims, self.specs, selected_by=selected_by, step=step)
        summary = {"step": step, "selected_by": selected_by, "seconds": round(time.monotonic() - began, 3)}
        self.run.set_status("done", **summary)
        return {**summary, "losses": {name: float(value) for name, value in losses.items()}}

    def _update(self, step: int) -> dict[str, Tensor]:
        config, model = self.config, self.model
        self._refresh(self._progress(step - 1))
        model.train()
        self.schedule.apply(self.optimizer, step)
        bag = self._draw(step).to(self.device)
        scaled = model.scaled(bag)
        terms = model.head.loss(model.head(scaled), scaled)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if config.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.head.parameters(), config.train.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            model.head.after_step(self._progress(step))
        if self.average is not None and config.train.ema:
            # a short memory at first, so that the random start is forgotten
            decay = min(config.train.ema, step / (step + 10))
            for name, value in model.state_dict().items():
                old = self.average[name]
                # what is counted or kept for every video, and may grow, is no average
                averaged = value.is_floating_point() and old.shape == value.shape
                self.average[name] = old.lerp_(value, 1 - decay) if averaged else value.detach().clone()
        return {**{name: term.detach() for name, term in terms.items()}, "total": total.detach()}

    def _draw(self, step: int) -> Bag:
        """The bag of that step, from the seed and the step alone."""
        train, seed = self.config.train, self.config.seed
        if train.sampler == "mixed":
            units = mixed_batch(len(self.units), train.batch, seed, step, shuffle=train.shuffle)
        elif train.sampler == "passes":
            units = passes_batch(self.units, train.pairs, seed, step, shuffle=train.shuffle)
        else:
            units = balanced_batch(self.units, train.pairs, seed, step)
        crops = units % self.crops if train.samples == "crops" else None
        return self.bags.bag(units // self.crops, crops, seed=(seed, step))

    def _progress(self, step: int) -> Progress:
        return Progress(step, self.schedule.steps, self.schedule.per_epoch)

    @torch.no_grad()
    def _refresh(self, progress: Progress) -> None:
        """The head's look at all training videos, where one is due."""
        head = self.model.head
        if not head.refresh_due(progress):
            return

        def scan() -> Iterator[Bag]:
            for i in range(len(self.bags)):
                yield self.model.scaled(self.bags.bag([i], seed=(self.config.seed, progress.step)).to(self.device))

        self.model.eval()
        head.refresh(progress, scan)

    def _log(self, step: int, losses: Mapping[str, Tensor]) -> None:
        values = {name: float(value) for name, value in losses.items()}
        if not np.isfinite(values["total"]):
            raise TrainError(f"the loss is {values['total']} at step {step} ({values}); {_DIVERGED}")
        rate = self.schedule.apply(self.optimizer, step)
        self.run.log(step=step, lr=rate, **{f"loss/{k}": v for k, v in values.items()})

    def _validate(self, step: int) -> None:
        """Video-level AUC of the held-out training videos, each scored by its highest clip."""
        weights, own = self._weights(), _copy(self.model.state_dict())
        self.model.load_state_dict(weights)
        best = [float(score_clips(self.model, item, self.device).max()) for item in self.held_out]
        self.model.load_state_dict(own)
        if not np.isfinite(best).all():
            raise TrainError(f"the scores of held-out videos are {max(best)} after step {step}; {_DIVERGED}")
        value = float(roc_auc_score(self.held_labels, best))
        self.run.log(step=step, **{"val/video_auc": value})
        if value > self.best_value:
            self.best, self.best_value, self.best_step = _copy(weights), value, step

    def _weights(self) -> dict[str, Tensor]:
        return self.average if self.average is not None else self.model.state_dict()

    def _rule(self) -> str:
        kind = f", weights averaged (EMA {self.config.train.ema})" if self.average is not None else ""
        if self.best is None:
            return f"last step ({self.step}), fixed beforehand{kind}"
        return (
            f"best video-level AUC ({self.best_value:.4f}, step {self.best_step} of {self.step}) on "
            f"{len(self.held_out)} held-out training videos{kind}"
        )

    def save(self) -> None:
        """Writes the state to resume from. Raises TrainError when the weights are not finite."""
        if bad := [name for name, value in self.model.state_dict().items() if not torch.isfinite(value).all()]:
            raise TrainError(f"{bad[0]} holds values that are not finite after step {self.step}; {_DIVERGED}")
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with aside(self.run.root / "resume.pt") as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        """Goes back to the last state, or starts at the beginning when the run had none yet."""
        path = self.run.root / "resume.pt"
        if not path.is_file():
            self.run.keep_metrics(0)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.best = state["average"], state["best"]
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([r.cpu() for r in state["cuda_rng"]])
        self.run.keep_metrics(self.step)


@torch.no_grad()
def score_clips(model: Model, features: Mapping[str, NDArray[np.float32]], device: torch.device) -> NDArray[np.float64]:
    """Scores of every clip of one video; {modality: (K, N, D_m)} -> (N,) float64. Nothing is resampled.

    Of a long video the crops go one by one: attention over N clips needs N^2 numbers for each.
    """
    model.eval()
    bag = collate([features], np.zeros(1, np.int64)).to(device)
    crops = bag.crops
    if crops * bag.mask.shape[1] <= _AT_ONCE:
        return np.asarray(model(bag).scores[0].double().cpu().numpy(), dtype=np.float64)
    scores = torch.stack([model(bag.crop(k)).scores[0].double() for k in range(crops)]).mean(0)
    return np.asarray(scores.cpu().numpy(), dtype=np.float64)


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


def _clips(videos: Sequence[Video], stores: Sequence[FeatureStore]) -> list[dict[str, NDArray[np.float32]]]:
    return [read_features(stores, v.id)[0] for v in videos]


def _hold_out(videos: Sequence[Video], config: Config) -> list[Video]:
    """A share of each class, at least one video, drawn by the seed; every class must keep one."""
    rng = np.random.default_rng([config.seed, 2**31])
    held: list[Video] = []
    for label in (0, 1):
        group = [v for v in videos if v.label == label]
        if len(group) < 2:
            raise TrainError(
                f"select.rule=val needs two videos of each class, found {len(group)} of label {label}; use rule=last"
            )
        count = min(max(round(config.select.fraction * len(group)), 1), len(group) - 1)
        held += [group[i] for i in rng.permutation(len(group))[:count]]
    return held


@contextmanager
def _interrupt_held() -> Iterator[Callable[[], bool]]:
    """Holds the first Ctrl-C back until the step is whole; the second one comes through at once."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
