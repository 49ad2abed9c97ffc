"""Bags: a video is a bag, its clips or segments are the instances.

Letters: B videos, K crops, N clips of a video, T segments after resampling, D_m feature size of one modality.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import Video
from mil.resample import RESAMPLE, Array, random_rows

ANOMALY = "anomaly"  # the class of an anomalous video that names none


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
    """

    features: Mapping[str, Tensor]
    mask: Tensor
    labels: Tensor
    classes: Tensor | None = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
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
        return replace(self, features=features)

    def to(self, device: torch.device) -> "Bag":
        """The bag on another device."""
        moved = {n: x.to(device) for n, x in self.features.items()}
        classes, index = (None if t is None else t.to(device) for t in (self.classes, self.index))
        return Bag(moved, self.mask.to(device), self.labels.to(device), classes, index)


def read_features(stores: Sequence[FeatureStore], video_id: str) -> tuple[dict[str, Array], ClipGrid, float | None]:
    """All modalities of one video, {modality: (K, N, D_m)}, cut to the shortest N, with the first store's grid and fps.

    Flow and audio often have one clip less than RGB. Raises ValueError when clips of the stores start at different
    frames, or lengths differ by more than one clip.
    """
    found = [store.read(video_id) for store in stores]
    grid = found[0].grid
    counts = [f.x.shape[1] for f in found]
    if max(counts) - min(counts) > 1 or any(f.grid.stride != grid.stride for f in found):
        lines = ", ".join(
            f"{s.spec.id}: {n} clips, stride {f.grid.stride}" for s, n, f in zip(stores, counts, found, strict=True)
        )
        raise ValueError(f"{video_id}: the stores do not show the same clips ({lines}); extract them with one stride")
    if min(counts) != len(grid):
        grid = replace(grid, tail="given", count=min(counts))
    features: dict[str, Array] = {}
    for store, f in zip(stores, found, strict=True):
        if store.spec.modality in features:
            raise ValueError(f"two stores hold the modality '{store.spec.modality}'; pass one store per modality")
        features[store.spec.modality] = f.x[:, : min(counts)].astype(np.float32)
    return features, grid, found[0].fps


class BagDataset:
    """Training bags: features read once and kept in memory, resampled (K, T, D_m) float32 per video and modality.

    Args:
        videos: training videos with features in every store.
        stores: one per modality.
        resample: a name in `mil.resample`, to `count` segments; "random" is drawn anew for every step.
        classes: names of the classes that a head is to be told of, in order.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        stores: Sequence[FeatureStore],
        resample: str,
        count: int,
        *,
        classes: Sequence[str] = (),
    ) -> None:
        self.videos = tuple(videos)
        self.labels = np.array([v.label for v in videos])
        self.count, self.random = count, resample == "random"
        named = [v.classes or ((ANOMALY,) if v.label else ()) for v in videos]
        self.classes = np.array([[float(c in own) for c in classes] for own in named], np.float32)
        self.items: list[dict[str, Array]] = []
        for video in videos:
            features, _, _ = read_features(stores, video.id)
            change = RESAMPLE["full" if self.random else resample]
            self.items.append({name: change(x, count) for name, x in features.items()})

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def crops(self) -> int:
        """K, the most of any modality."""
        return max(len(x) for x in self.items[0].values())

    def bag(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        crops: Sequence[int] | NDArray[np.int64] | None = None,
        *,
        seed: Sequence[int] = (0,),
    ) -> Bag:
        """The videos of those indices as one bag, padded with zeros to the longest.

        `crops` names one crop of each video, which the bag then holds alone (K = 1); None: all. `seed` draws the
        segments where the resampling is random.
        """
        items = []
        for place, i in enumerate(indices):
            item: dict[str, Array] = self.items[i]
            if crops is not None:
                one = int(crops[place])
                item = {n: x if len(x) == 1 else x[one : one + 1] for n, x in item.items()}
            if self.random:
                n = next(iter(item.values())).shape[1]
                rows = random_rows(n, self.count, bool(self.labels[i]), np.random.default_rng([*seed, place]))
                item = {name: x[:, rows] for name, x in item.items()}
            items.append(item)
        chosen = np.asarray(indices, np.int64)
        classes = torch.from_numpy(self.classes[chosen]) if self.classes.size else None
        return replace(collate(items, self.labels[chosen]), classes=classes, index=torch.from_numpy(chosen))

    def clips(self) -> Iterator[dict[str, Array]]:
        """The features of one video after another, {modality: (K, T, D_m)}."""
        return iter(self.items)


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
