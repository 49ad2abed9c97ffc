"""One step of training: scores, loss, gradient, the optimizer's update, the average of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mil.bag import Bag
from mil.config import TrainConfig
from mil.heads import Progress
from mil.model import Model
from mil.optim import make_optimizer
from mil.precision import Forward


class Step:
    """The updates of one model. What a resumed run needs of it is in `state_dict`.

    Args:
        config: the optimizer, clipping and averaging, precision and compilation.
        model: on its device.

    Raises:
        CompileError: the head cannot be compiled as asked.
    """

    def __init__(self, config: TrainConfig, model: Model) -> None:
        self.config, self.model = config, model
        self.forward = Forward(model.head, config.precision, config.compile)
        self.optimizer = make_optimizer(config.optimizer, model.head)
        self.average = copied(model.state_dict()) if config.ema else None

    def __call__(self, bag: Bag, progress: Progress) -> dict[str, Tensor]:
        """Takes the step that makes `progress.step` steps done; terms of the loss by name, and "total".

        They lie on the device: reading one waits for it, and nothing else here does.
        """
        model, config = self.model, self.config
        model.train()
        scaled = model.scaled(bag)
        terms = model.head.loss(self.forward(scaled), scaled)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.head.parameters(), config.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            model.head.after_step(progress)
        self._update_average(progress.step)
        return {**{name: term.detach() for name, term in terms.items()}, "total": total.detach()}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Those to score with: the averaged ones where there are any."""
        return self.average if self.average is not None else self.model.state_dict()

    def _update_average(self, step: int) -> None:
        if self.average is None or not self.config.ema:
            return
        # a short memory at first, so that the random start is forgotten
        decay = min(self.config.ema, step / (step + 10))
        average, own = self.average, self.model.state_dict()
        # what is counted or kept for every video, and may grow, is no average
        averaged = [n for n, x in own.items() if x.is_floating_point() and average[n].shape == x.shape]
        if averaged:
            torch._foreach_lerp_([average[n] for n in averaged], [own[n] for n in averaged], 1 - decay)
        average.update({name: own[name].detach().clone() for name in own.keys() - set(averaged)})


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of its own memory."""
    return {name: value.detach().clone() for name, value in state.items()}
