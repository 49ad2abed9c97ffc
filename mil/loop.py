"""The loop over the steps of a run: its state, what is logged, when it looks at held-out videos and when it saves."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from data.files import aside
from data.types import FeatureSpec
from mil import checkpoint
from mil.bag import Bag
from mil.bags import BagDataset
from mil.config import Config
from mil.heads import Progress
from mil.interrupt import interrupt_held
from mil.loader import Loader
from mil.model import Model
from mil.optim import Schedule
from mil.rundir import RunDir
from mil.scoring import score_clips
from mil.step import Step, copied
from mil.tracking import Tracker

_DIVERGED = "lower train.optimizer.lr, or set train.clip_norm"


class TrainError(ValueError):
    """Training cannot start or go on; the message says what was found and what to change."""


class Loop:
    """State of one training run: what resume.pt holds, and the steps on it.

    Args:
        config: the experiment.
        model: on `device`, its scalers fitted.
        bags: the training videos.
        run: where states, metrics and checkpoints go.
        specs: of the features, one per modality, for the checkpoint.
        device: where torch runs.
        trackers: where numbers go beside metrics.jsonl.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        bags: BagDataset,
        run: RunDir,
        specs: Sequence[FeatureSpec],
        device: torch.device,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.config, self.model, self.run, self.specs, self.device = config, model, run, specs, device
        self.trackers = trackers
        self.take_step = Step(config.train, model)
        self.loader = Loader(bags, config, device)
        self.schedule = Schedule(config.train, self.loader.per_epoch)
        self.best: dict[str, Tensor] | None = None
        self.best_value, self.best_step, self.step = -1.0, 0, 0
        self.held_out: list[dict[str, NDArray[np.float32]]] = []
        self.held_labels: NDArray[np.int64] = np.zeros(0, np.int64)

    def run_all(self) -> dict[str, Any]:
        """The steps that are left; writes the checkpoint and returns what `fit` returns."""
        train, began = self.config.train, time.monotonic()
        losses: dict[str, Tensor] = {}
        self.run.set_status("running")
        total = self.schedule.steps
        steps = range(self.step + 1, total + 1)
        try:
            with interrupt_held() as interrupted:
                for step in tqdm(steps, initial=self.step, total=total, disable=None, desc="train"):
                    losses = self.update(step)
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
        finally:
            for tracker in self.trackers:
                tracker.close()
        weights = self.best if self.best is not None else self.take_step.weights
        selected_by = self._rule()
        step = self.best_step if self.best is not None else self.step
        dims = self.model.dims
        checkpoint.save(self.run.checkpoint, weights, self.config, dims, self.specs, selected_by=selected_by, step=step)
        summary = {"step": step, "selected_by": selected_by, "seconds": round(time.monotonic() - began, 3)}
        self.run.set_status("done", **summary)
        return {**summary, "losses": {name: float(value) for name, value in losses.items()}}

    def update(self, step: int) -> dict[str, Tensor]:
        """The step of that number, from 1; terms of the loss by name."""
        self._refresh(self._progress(step - 1))
        self.schedule.apply(self.take_step.optimizer, step)
        return self.take_step(self.loader.draw(step), self._progress(step))

    def _progress(self, step: int) -> Progress:
        return Progress(step, self.schedule.steps, self.schedule.per_epoch)

    @torch.no_grad()
    def _refresh(self, progress: Progress) -> None:
        """The head's look at all training videos, where one is due."""
        head = self.model.head
        if not head.refresh_due(progress):
            return

        def scan() -> Iterator[Bag]:
            return map(self.model.scaled, self.loader.each(progress.step))

        self.model.eval()
        head.refresh(progress, scan)

    def _log(self, step: int, losses: Mapping[str, Tensor]) -> None:
        values = {name: float(value) for name, value in losses.items()}
        if not np.isfinite(values["total"]):
            raise TrainError(f"the loss is {values['total']} at step {step} ({values}); {_DIVERGED}")
        rate = self.schedule.apply(self.take_step.optimizer, step)
        self._tell({"lr": rate, **{f"loss/{k}": v for k, v in values.items()}}, step)

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(step=step, **values)
        for tracker in self.trackers:
            tracker.log(values, step)

    def _validate(self, step: int) -> None:
        """Video-level AUC of the held-out training videos, each scored by its highest clip."""
        weights, own = self.take_step.weights, copied(self.model.state_dict())
        self.model.load_state_dict(weights)
        best = [float(score_clips(self.model, item, self.device).max()) for item in self.held_out]
        self.model.load_state_dict(own)
        if not np.isfinite(best).all():
            raise TrainError(f"the scores of held-out videos are {max(best)} after step {step}; {_DIVERGED}")
        value = float(roc_auc_score(self.held_labels, best))
        self._tell({"val/video_auc": value}, step)
        if value > self.best_value:
            self.best, self.best_value, self.best_step = copied(weights), value, step

    def _rule(self) -> str:
        kind = f", weights averaged (EMA {self.config.train.ema})" if self.config.train.ema else ""
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
            "optimizer": self.take_step.optimizer.state_dict(),
            "average": self.take_step.average,
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
        self.take_step.optimizer.load_state_dict(state["optimizer"])
        self.take_step.average = state["average"]
        self.best, self.best_value, self.best_step = state["best"], state["best_value"], state["best_step"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([r.cpu() for r in state["cuda_rng"]])
        self.run.keep_metrics(self.step)
