"""A bag: videos as a head sees them, their clips or segments the instances.

Letters: B videos, K crops, T segments or clips, D_m feature size of one modality.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.resample import Array


@dataclass(frozen=True)
class Bag:
    """A batch of videos.

    Args:
        features: {modality: (B, K, T, D_m)}; a modality with K = 1 (audio) is shared by the crops of the others.
        mask: (B, T) bool, False where a shorter video is padded.
        labels: (B,) float, 1 anomalous, 0 normal. Videos are told apart by these values, never by their position.
        classes: (B, C) float, 1 where a training video is said to show that class; a head's option `classes` names
            them. None where the head takes none, and always outside training.
        index: (B,) int64, which training video each is; what a head keeps for every video it keeps by this. None
            outside training.
        high, low: int64 indices of the anomalous and of the normal videos, in the order of the batch. Taken from
            `labels` where they lie on the host, so that nobody has to ask a GPU how many there are.
        unnamed: whether an anomalous video shows none of the `classes`; False without classes. Found on the host too.
    """

    features: Mapping[str, Tensor]
    mask: Tensor
    labels: Tensor
    classes: Tensor | None = None
    index: Tensor | None = None
    high: Tensor = field(init=False)
    low: Tensor = field(init=False)
    unnamed: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, label in (("high", 1), ("low", 0)):
            object.__setattr__(self, name, (self.labels == label).nonzero()[:, 0])
        object.__setattr__(self, "unnamed", self.classes is not None and not self.classes[self.high].any(1).all())
        for name, x in self.features.items():
            if x.ndim != 4 or x.shape[0] != len(self.labels) or x.shape[2] != self.mask.shape[1]:
                raise ValueError(
                    f"features '{name}' must be (B, K, T, D) with B={len(self.labels)}, T={self.mask.shape[1]}, "
                    f"got {tuple(x.shape)}"
                )

    @property
    def crops(self) -> int:
        """K, the most of any modality."""
        return max(x.shape[1] for x in self.features.values())

    @property
    def x(self) -> Tensor:
        """All modalities side by side, (B, K, T, sum of D_m), in the order of `features`."""
        return self.joined(list(self.features))

    def joined(self, names: Sequence[str]) -> Tensor:
        """Those modalities side by side, (B, K, T, sum of D_m); one of a single crop is given to all K crops."""
        crops = self.crops
        if bad := [x.shape[1] for x in self.features.values() if x.shape[1] not in (1, crops)]:
            raise ValueError(
                f"modalities of {bad[0]} and {crops} crops cannot be joined; extract both with the same crops"
            )
        parts = [self.features[n].expand(-1, crops, -1, -1) for n in names]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def crop(self, k: int) -> "Bag":
        """The bag of one crop, K = 1; a modality of a single crop stays as it is."""
        features = {n: x if x.shape[1] == 1 else x[:, k : k + 1] for n, x in self.features.items()}
        return self.with_features(features)

    def to(self, device: torch.device) -> "Bag":
        """The bag on another device."""
        names = ("mask", "labels", "classes", "index", "high", "low")
        own = {n: getattr(self, n) for n in names}
        moved = {n: None if x is None else x.to(device, non_blocking=True) for n, x in own.items()}
        return self._but(features={n: x.to(device, non_blocking=True) for n, x in self.features.items()}, **moved)

    def with_features(self, features: Mapping[str, Tensor]) -> "Bag":
        """The same videos with other features."""
        return self._but(features=features)

    def _but(self, **values: object) -> "Bag":
        """dataclasses.replace, past __post_init__, which would wait for the device."""
        other = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(other, name, value)
        return other


def collate(items: Sequence[Mapping[str, Array]], labels: NDArray[np.int64]) -> Bag:
    """Videos of {modality: (K, T_i, D_m)} -> one Bag, zero-padded to the longest T with a mask."""
    lengths = [next(iter(item.values())).shape[1] for item in items]
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    features: dict[str, Tensor] = {}
    for name, first in items[0].items():
        x = np.zeros((len(items), first.shape[0], longest, first.shape[2]), np.float32)
        for row, item in zip(x, items, strict=True):
            row[:, : item[name].shape[1]] = item[name]
        features[name] = torch.from_numpy(x)
    return Bag(features, mask, torch.from_numpy(labels.astype(np.float32)))
