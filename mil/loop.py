"""The loop over the steps of a run: its state, what is logged, when the rules look at it and when it saves."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.files import aside, sweep
from data.types import FeatureSpec
from mil import checkpoint
from mil.bag import Bag
from mil.bags import BagDataset
from mil.config import Config
from mil.errors import TrainError
from mil.heads import Progress
from mil.interrupt import interrupt_held
from mil.loader import Loader
from mil.model import Model
from mil.optim import Schedule
from mil.rundir import RunDir
from mil.selection import Selection
from mil.step import Step
from mil.tracking import Tracker

FORMAT = 2  # of resume.pt

_DIVERGED = "lower train.optimizer.lr, or set train.clip_norm"


class Loop:
    """State of one training run: what resume.pt holds, and the steps on it.

    Args:
        config: the experiment.
        model: on `device`, its scalers fitted.
        bags: the training videos.
        run: where states, metrics and checkpoints go.
        specs: of the features, one per modality, for the checkpoint.
        selection: whose weights are kept beside the last ones.
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
        selection: Selection,
        device: torch.device,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.config, self.model, self.run, self.specs, self.device = config, model, run, specs, device
        self.selection, self.trackers = selection, trackers
        self.take_step = Step(config.train, model)
        self.loader = Loader(bags, config, device)
        self.schedule = Schedule(config.train, self.loader.per_epoch)
        self.step = 0

    def run_all(self) -> dict[str, Any]:
        """The steps that are left; writes the checkpoints and returns what `fit` returns."""
        train, select, began = self.config.train, self.config.select, time.monotonic()
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
                    if step % select.every == 0 or step == total:
                        self._look(step)
                    stop = interrupted()  # asked once: what comes while it saves waits for the next step
                    if stop or (step % train.save_every == 0 and step < total):
                        self.save()
                    if stop:
                        raise KeyboardInterrupt
                self.save()
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
            self.loader.close()
        said = {rule: self.selection.said(rule, total, total) for rule in select.rules}
        summary = {
            "step": self._kept(select.rule)[0],
            "steps": total,
            "selected_by": said[select.rule],
            "rules": said,
            "seconds": round(time.monotonic() - began, 3),
        }
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

    def _look(self, step: int) -> None:
        """Lets every rule that looks see the weights as they are now."""
        if self.selection.looks:
            self._check_finite()
        for rule in self.selection.looks:
            name, value = self.selection.look(rule, self.take_step.weights, step)
            if not np.isfinite(value):
                raise TrainError(f"the scores that {rule} looks at are not finite after step {step}; {_DIVERGED}")
            self._tell({name: value}, step)

    def _kept(self, rule: str) -> tuple[int, Mapping[str, Tensor] | None]:
        """The step and the weights that a rule keeps now; None where it has not looked yet."""
        if rule == "last":
            return self.step, self.take_step.weights
        best = self.selection.best[rule]
        return best.step, best.weights

    def _check_finite(self) -> None:
        if bad := [name for name, value in self.model.state_dict().items() if not torch.isfinite(value).all()]:
            raise TrainError(f"{bad[0]} holds values that are not finite after step {self.step}; {_DIVERGED}")

    def save(self) -> None:
        """Writes the state to resume from, then the checkpoint of every rule. Raises TrainError when not finite."""
        self._check_finite()
        state = {
            "format": FORMAT,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.take_step.optimizer.state_dict(),
            "average": self.take_step.average,
            "selection": self.selection.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with aside(self.run.root / "resume.pt") as temporary:
            torch.save(state, temporary)
        for rule in self.config.select.rules:
            step, weights = self._kept(rule)
            if weights is not None:
                said = self.selection.said(rule, self.step, self.schedule.steps)
                path, dims = self.run.checkpoint_of(rule), self.model.dims
                checkpoint.save(path, weights, self.config, dims, self.specs, selected_by=said, step=step)

    def restore(self) -> None:
        """Goes back to the last state, or starts at the beginning when the run had none yet. Raises TrainError."""
        sweep(self.run.root)  # what the killed one was writing
        path = self.run.root / "resume.pt"
        if not path.is_file():
            self.run.keep_metrics(0)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state.get("format") != FORMAT:
            raise TrainError(f"{path} was written by another wsvad, which can go on with it; or train anew with --out")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.take_step.optimizer.load_state_dict(state["optimizer"])
        self.take_step.average = state["average"]
        self.selection.load_state_dict(state["selection"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([r.cpu() for r in state["cuda_rng"]])
        self.run.keep_metrics(self.step)
