"""What a backbone is: a named, complete recipe from uint8 clips to features."""

import inspect
from abc import ABC, abstractmethod
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
    uses_torch: ClassVar[bool] = True
    """False: plain CPU code on one thread, so that extraction starts one worker per core."""

    @abstractmethod
    def extract(self, clips: NDArray[np.uint8], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """Features of a batch; each clip's depend on that clip alone.

        Args:
            clips: (B, T, H, W, 3) in `spec.color`, or (B, T, H, W) when that is gray; resized as `spec.resize` says.
            fps: (B,) frames per second of the clips' videos.

        Returns:
            (B, K, D) float32, finite.
        """


backbones: Registry[type[Backbone]] = Registry("backbone", "extract.backbones")


def create(name: str, **options: Any) -> Backbone:
    """Makes the backbone `name`; options that are None count as not given.

    Raises UnknownNameError for a name, BackboneError for an option, that it does not know.
    """
    cls = backbones.get(name)
    given = {k: v for k, v in options.items() if v is not None}
    known = [p for p in inspect.signature(cls).parameters if p != "self"]
    if unknown := [k for k in given if k not in known]:
        raise BackboneError(f"backbone {name} takes no option '{unknown[0]}'.{suggest(unknown[0], known)}")
    return cls(**given)
