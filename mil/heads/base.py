"""What a head is: scores for every segment of a bag, and the loss that trains them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from data.registry import Registry
from mil.bags import Bag


@dataclass(frozen=True)
class HeadOutput:
    """scores (B, T), 0 where the mask is False; `aux` holds what that head's own loss needs beside them."""

    scores: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)


class Head(nn.Module, ABC):
    """A MIL head. Its constructor takes `dim`, the summed feature size, and keyword options.

    Adding one: a file in `mil/heads/` with a class under `@heads.register("name")`, whose docstring's first line
    `wsvad ls heads` shows. The contract tests run over everything registered: any number of crops K, any T from 1,
    padding and order of the batch change nothing, gradients reach every parameter, it learns the toy.
    """

    paper: ClassVar[str] = ""

    @abstractmethod
    def forward(self, bag: Bag) -> HeadOutput:
        """Scores every segment of every video."""

    @abstractmethod
    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Terms by name, already weighted; the trainer minimises their sum and logs each."""


heads: Registry[type[Head]] = Registry("head", "mil.heads")
