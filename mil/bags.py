"""From feature stores to bags.

Letters: B videos, K crops, N clips of a video, T segments after resampling, D_m feature size of one modality.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import Video
from mil.bag import Bag, collate
from mil.resample import RESAMPLE, Array, random_rows

__all__ = ["ANOMALY", "Bag", "BagDataset", "collate", "read_features"]

ANOMALY = "anomaly"  # the class of an anomalous video that names none


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
