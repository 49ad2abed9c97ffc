"""Bags: a video is a bag, its clips or segments are the instances.

Letters: B videos, K crops, N clips of a video, T segments after resampling, D_m feature size of one modality.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import Video

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Bag:
    """A batch of videos.

    Args:
        features: {modality: (B, K, T, D_m)}; a modality with K = 1 (audio) is shared by the crops of the others.
        mask: (B, T) bool, False where a shorter video is padded.
        labels: (B,) float, 1 anomalous, 0 normal. Videos are told apart by these values, never by their position.
    """

    features: Mapping[str, Tensor]
    mask: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, x in self.features.items():
            if x.ndim != 4 or x.shape[0] != len(self.labels) or x.shape[2] != self.mask.shape[1]:
                raise ValueError(
                    f"features '{name}' must be (B, K, T, D) with B={len(self.labels)}, T={self.mask.shape[1]}, "
                    f"got {tuple(x.shape)}"
                )

    @property
    def x(self) -> Tensor:
        """All modalities side by side, (B, K, T, sum of D_m), in the order of `features`."""
        parts = list(self.features.values())
        crops = max(p.shape[1] for p in parts)
        if bad := [p.shape[1] for p in parts if p.shape[1] not in (1, crops)]:
            raise ValueError(
                f"modalities of {bad[0]} and {crops} crops cannot be joined; extract both with the same crops"
            )
        return torch.cat([p.expand(-1, crops, -1, -1) for p in parts], dim=-1) if len(parts) > 1 else parts[0]

    def to(self, device: torch.device) -> "Bag":
        """The bag on another device."""
        return Bag({n: x.to(device) for n, x in self.features.items()}, self.mask.to(device), self.labels.to(device))


def segments(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D), the mean over equal parts; a part without a clip of its own takes the one it is in.

    Bounds are floor(linspace(0, N, count + 1)), as in RTFM and UR-DMU; Sultani et al. round instead.
    """
    bounds = np.linspace(0, x.shape[1], count + 1).astype(np.int64)
    starts, stops = bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1)
    sums = np.concatenate([np.zeros_like(x[:, :1], dtype=np.float64), np.cumsum(x, axis=1, dtype=np.float64)], axis=1)
    means: NDArray[np.float64] = (sums[:, stops] - sums[:, starts]) / (stops - starts)[None, :, None]
    return means.astype(np.float32)


def pick(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, min(N, count), D): evenly spaced clips as they are; shorter videos stay whole (padded later).

    Indices are floor(linspace(0, N - 1, count)), as HL-Net and its descendants take them.
    """
    if x.shape[1] <= count:
        return x
    return x[:, np.linspace(0, x.shape[1] - 1, count).astype(np.int64)]


def interpolate(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D): linear between the clips, ends kept."""
    at = np.linspace(0, x.shape[1] - 1, count)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, x.shape[1] - 1)
    weight = (at - low)[None, :, None]
    between: NDArray[np.float64] = (1 - weight) * x[:, low] + weight * x[:, high]
    return between.astype(np.float32)


def full(x: Array, count: int) -> Array:
    """(K, N, D) as it is, whatever `count`."""
    return x


RESAMPLE: Mapping[str, Callable[[Array, int], Array]] = {
    "segments": segments,
    "pick": pick,
    "interpolate": interpolate,
    "full": full,
}


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
    """Training bags, read and resampled once and kept in memory: (K, T, D_m) float32 per video and modality.

    Args:
        videos: training videos with features in every store.
        stores: one per modality.
        resample: "segments", "pick", "interpolate" or "full", to at most `count` segments.
    """

    def __init__(self, videos: Sequence[Video], stores: Sequence[FeatureStore], resample: str, count: int) -> None:
        self.videos = tuple(videos)
        self.labels = np.array([v.label for v in videos])
        change = RESAMPLE[resample]
        self.items: list[dict[str, Array]] = []
        for video in videos:
            features, _, _ = read_features(stores, video.id)
            self.items.append({name: change(x, count) for name, x in features.items()})

    def __len__(self) -> int:
        return len(self.videos)

    def bag(self, indices: Sequence[int] | NDArray[np.int64]) -> Bag:
        """The videos of those indices as one bag, padded with zeros to the longest."""
        return collate([self.items[i] for i in indices], self.labels[np.asarray(indices)])

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


def balanced_batch(labels: NDArray[np.int64], pairs: int, seed: int, step: int) -> NDArray[np.int64]:
    """Indices of `pairs` anomalous and `pairs` normal videos, (<= 2 * pairs,), drawn without replacement.

    A fresh draw for every step, from (seed, step) alone, so that a resumed run draws the same ones (Sultani et al.
    permute anew in each iteration too). Takes all videos of a class that has fewer than `pairs`.
    """
    rng = np.random.default_rng([seed, step])
    high, low = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    return np.concatenate([rng.permutation(high)[:pairs], rng.permutation(low)[:pairs]])
