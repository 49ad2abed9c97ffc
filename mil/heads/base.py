"""What a head is: scores for every segment of a bag, and the loss that trains them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from data.registry import Registry
from mil.bag import Bag
from mil.published import Published

# what the modalities of sound and captions are called; everything else is seen
HEARD_OR_READ = ("audio", "text")


@dataclass(frozen=True)
class HeadOutput:
    """scores (B, T), 0 where the mask is False; `aux` holds what that head's own loss needs beside them."""

    scores: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where training is: `step` of `steps` steps are done; an epoch, one pass over the videos, takes `per_epoch`."""

    step: int
    steps: int
    per_epoch: int

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return self.step // self.per_epoch


Scan = Callable[[], Iterator[Bag]]
"""A pass over the training videos, one Bag of B = 1 each, with `index` set, as the head sees them, all crops."""


class Head(nn.Module, ABC):
    """A MIL head. Its constructor takes the feature size, then keyword options.

    Adding one: a file in `mil/heads/` with a class under `@heads.register("name")`, whose docstring's first line
    `wsvad ls heads` shows. The contract tests run over everything registered: any number of crops K, any T from 1,
    padding and order of the batch change nothing, gradients reach every parameter, it learns the toy.

    Class attributes:
        paper: authors, venue and year.
        modalities: () for a head that takes all modalities side by side, of one size `dim`. A head that keeps them
            apart names its parts, e.g. ("visual", "audio"), and its constructor takes one size for each, in that order;
            "visual" is every modality that is neither audio nor text, "text|audio" the first of two that is there.
        compares: its loss needs videos of both classes in every batch.
        takes_classes: its loss uses the classes of the training videos (`bag.classes`), video-level labels too; its
            option `classes` names them in order, and is filled from the training videos when a run begins.
        reads: options that name files, read when a head is made. Their content lies in buffers, so that a checkpoint
            needs the files no more.
        remembers: it keeps values for the segments of every training video, which must be the same at every step.
        causal_options: options under which `lookback` is a number, for a head of which that depends on options; the
            weights are the same.
    """

    paper: ClassVar[str] = ""
    modalities: ClassVar[tuple[str, ...]] = ()
    compares: ClassVar[bool] = True
    takes_classes: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    remembers: ClassVar[bool] = False
    causal_options: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def forward(self, bag: Bag) -> HeadOutput:
        """Scores every segment of every video."""

    @abstractmethod
    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Terms by name, already weighted; the trainer minimises their sum and logs each."""

    @property
    def lookback(self) -> int | None:
        """A score tells of so many segments, its own the last; None where later ones matter, or all that came before.

        With a number, a video can be scored while it runs, from the last `lookback` segments, as if it were whole.
        """
        return None

    # -- of several stages: what these keep lies in buffers, so that a resumed run goes on exactly ---------------------

    def after_step(self, progress: Progress) -> None:  # a hook, not a duty
        """After each update of the parameters, without gradients: moving averages, teachers, counters.

        `progress.step` is at least 1. A buffer that grows needs a `_load_from_state_dict` that lets it
        (mil/layers/kept.py).
        """

    def refresh_due(self, progress: Progress) -> bool:
        """Whether `refresh` is to be called before the next step. Also asked before the first one."""
        return False

    def refresh(self, progress: Progress, scan: Scan) -> None:
        """A look at all training videos between two steps, without gradients: dictionaries, pseudo labels, rounds.

        Called in evaluation mode; must depend on nothing but the state and the videos, for a resumed run calls it anew.
        """

    # -- modalities ----------------------------------------------------------------------------------------------------

    @classmethod
    def sizes(cls, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The constructor's feature sizes for stores of those modalities. Raises ValueError where one is wanting."""
        if not cls.modalities:
            return (sum(dims.values()),)
        return tuple(sum(dims[name] for name in members(part, list(dims), cls.__name__)) for part in cls.modalities)

    @classmethod
    def parts(cls, bag: Bag) -> tuple[Tensor, ...]:
        """One (B, K, T, D_part) for each of `modalities`; where one has a single crop, it is given to all K."""
        return tuple(bag.joined(members(part, list(bag.features), cls.__name__)) for part in cls.modalities)

    def exceptions(self) -> Mapping[str, str]:
        """{name of a contract test in tests/test_head_contract.py: why the paper forces this head to fail it}."""
        return {}

    # -- the authors' files --------------------------------------------------------------------------------------------

    def published(self) -> Published | None:
        """How the authors' state dict maps to this head's; None where no weights or code were published."""
        return None

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature sizes by modality, and options, that the shapes of an authors' state dict tell.

        A head with `published` overrides this. Raises KeyError where the names are another head's.
        """
        raise KeyError(f"{cls.__name__} has no published format")


def members(part: str, names: Sequence[str], wanted_by: str) -> list[str]:
    """Which of the modalities `names` make up a part: "visual", one of them, or alternatives like "text|audio".

    Raises ValueError where none does.
    """
    for choice in part.split("|"):
        if found := [n for n in names if (n not in HEARD_OR_READ if choice == "visual" else n == choice)]:
            return found
    raise ValueError(
        f"{wanted_by} takes {part.replace('|', ' or ')} features, but these are {', '.join(names)}; pass a store of "
        f"{part.replace('|', ' or ')} features with --features"
    )


heads: Registry[type[Head]] = Registry("head", "mil.heads")
