"""What a backbone is: a named, complete recipe from uint8 clips to features."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.registry import Registry, suggest
from data.types import FeatureSpec


class BackboneError(ValueError):
    """A backbone cannot be made or run here; the message says what to install, pass or change."""


class Backbone(ABC):
    """Turns clips into features. The constructor builds `spec`, which says everything that makes the numbers.

    Adding one: a file in `extract/backbones/` with a class under `@backbones.register("name")`, whose docstring's
    first line `wsvad ls backbones` shows. The tests run over everything registered.
    """

    spec: FeatureSpec
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    gmac: ClassVar[float] = 0.0
    """10^9 multiply-accumulates for one crop of one clip (1 MAC = 2 FLOP); 0 for a descriptor."""
    params_m: ClassVar[float] = 0.0
    """Millions of parameters."""
    uses_torch: ClassVar[bool] = True
    """False: plain CPU code on one thread, so that extraction starts one worker per core."""
    switches: ClassVar[Mapping[str, Any]] = {}
    """Options beside those of the constructor, and their defaults; their values stand in `spec.options`."""

    batch: int = 1
    """Clips that `submit` should be given at once; more than 1 only where that is faster: nets on a GPU."""

    @classmethod
    def plan(cls, **options: Any) -> FeatureSpec:
        """The spec that these options give, without making the backbone where that can be avoided."""
        return cls(**options).spec

    @classmethod
    def default_spec(cls) -> FeatureSpec:
        """The spec with default options, without loading or making weights; `weights` in it says nothing."""
        return cls().spec

    @abstractmethod
    def extract(self, clips: NDArray[Any], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """Features of a batch; each clip's depend on that clip alone.

        Args:
            clips: by `spec.modality`.
                rgb: (B, T, H, W, 3) uint8 in `spec.color`, or (B, T, H, W) when that is gray. Resized as `spec.resize`
                says where its filter is one of the decoder's, at the video's size where it is one of
                `extract.transforms`.
                flow: (B, T, H, W, 2), x and y, uint8 or float32 as the quantisation in `spec.options` says; or
                pictures as above for a backbone that computes its own.
                audio: (B, S) float32 samples in [-1, 1], at the rate and of the length that `spec.options` says.
            fps: (B,) frames per second of the clips' videos.

        Returns:
            (B, K, D) float32, finite.
        """

    def submit(self, clips: Sequence[NDArray[Any]], fps: Sequence[float]) -> Callable[[], NDArray[np.float32]]:
        """Starts on clips of one or several videos, of one size or of several; what it returns waits for the result
        (B, K, D). A net on a GPU thereby works on one batch while the next is being made."""
        parts = [self.extract(clip[None], np.array([rate])) for clip, rate in zip(clips, fps, strict=True)]
        done = np.concatenate(parts)
        return lambda: done

    def take_notes(self) -> list[str]:
        """What went differently than asked since the last call (a batch that had to be halved), for the log."""
        return []


backbones: Registry[type[Backbone]] = Registry("backbone", "extract.backbones")


def create(name: str, **options: Any) -> Backbone:
    """Makes the backbone `name`; options that are None count as not given.

    Raises UnknownNameError for a name, BackboneError for an option, that it does not know.
    """
    return backbones.get(name)(**_known(name, options))


def plan(name: str, **options: Any) -> FeatureSpec:
    """The spec of what `create` would make. Raises the same."""
    return backbones.get(name).plan(**_known(name, options))


def _known(name: str, options: dict[str, Any]) -> dict[str, Any]:
    cls = backbones.get(name)
    given = {k: v for k, v in options.items() if v is not None}
    known = option_names(cls)
    if unknown := [k for k in given if k not in known]:
        raise BackboneError(f"backbone {name} takes no option '{unknown[0]}'.{suggest(unknown[0], known)}")
    return given


def option_names(cls: type[Backbone]) -> list[str]:
    """What `create` takes for this backbone: the constructor's arguments, then the preset's own switches."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD] + list(cls.switches)
