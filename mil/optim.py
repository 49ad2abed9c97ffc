"""Optimizers, their parameter groups and learning rates, as a recipe names them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mil.config import ConfigError, GroupConfig, OptimizerConfig, TrainConfig

_KINDS: Mapping[str, Any] = {
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
}


def make_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a recipe names, over the parameters of a head.

    `config.groups` gives parameters whose name begins with a prefix a rate or decay of their own; the longest prefix
    wins. Raises ConfigError for a prefix that no parameter has.
    """
    options: dict[str, Any] = {}
    if config.name == "sgd":
        options["momentum"] = config.momentum
    elif config.eps is not None:
        options["eps"] = config.eps
    sorted_out: dict[str, list[nn.Parameter]] = {}
    names = []
    for name, parameter in module.named_parameters():
        names.append(name)
        if parameter.requires_grad:
            prefix = max((p for p in config.groups if name.startswith(p)), key=len, default="")
            sorted_out.setdefault(prefix, []).append(parameter)
    if unused := [p for p in config.groups if not any(n.startswith(p) for n in names)]:
        raise ConfigError(
            f"train.optimizer.groups: no parameter of the head begins with '{unused[0]}'; it has {', '.join(names)}"
        )
    groups = []
    for prefix, parameters in sorted_out.items():
        own = config.groups.get(prefix, GroupConfig())
        lr = config.lr if own.lr is None else own.lr
        decay = config.weight_decay if own.weight_decay is None else own.weight_decay
        groups.append({"params": parameters, "lr": lr, "weight_decay": decay, "base_lr": lr})
    return _KINDS[config.name](groups, lr=config.lr, **options)  # type: ignore[no-any-return]


class Schedule:
    """How long training takes, and what share of the learning rate each step has.

    Args:
        config: counts in steps, or where `epochs` is given, in epochs.
        per_epoch: steps of one epoch.
    """

    def __init__(self, config: TrainConfig, per_epoch: int) -> None:
        self.config, self.per_epoch = config, per_epoch
        self.steps = config.total(per_epoch)

    def factor(self, step: int) -> float:
        """Of the base rate, at that step (from 1)."""
        config = self.config
        done = step - 1 if config.epochs is None else (step - 1) // self.per_epoch
        if config.lr_schedule == "cosine":
            length = config.t_max or config.epochs or config.steps
            return 0.5 * (1 + math.cos(math.pi * done / length))
        if config.lr_schedule == "milestones":
            return float(config.gamma ** sum(done >= m for m in config.milestones))
        return 1.0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets every group's rate; returns the first group's."""
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(step)
        return float(optimizer.param_groups[0]["lr"])
