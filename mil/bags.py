"""From feature stores to bags.

Letters: B videos, K crops, N clips of a video, T segments after resampling, D_m feature size of one modality.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.mapped import mapped, maps_at_once
from data.packed import Packed, packed
from data.store import FeatureStore
from data.types import Video
from mil.bag import Bag, collate
from mil.resample import RESAMPLE, Array, random_rows
from mil.segments import DeviceSegments, HostSegments

__all__ = ["ANOMALY", "VARIABLE", "Bag", "BagDataset", "collate", "pack_segments", "read_features"]

ANOMALY = "anomaly"  # the class of an anomalous video that names none
VARIABLE = ("full", "random")  # resamplings that a pack cannot hold
_MAPS = 8192  # videos whose files stay mapped, at most


def read_features(stores: Sequence[FeatureStore], video_id: str) -> tuple[dict[str, Array], ClipGrid, float | None]:
    """All modalities of one video, {modality: (K, N, D_m)}, cut to the shortest N, with the first store's grid and fps.

    Flow and audio often have one clip less than RGB. Raises ValueError when clips of the stores start at different
    frames, or lengths differ by more than one clip.
    """
    _one_each(stores)
    found = [store.read(video_id) for store in stores]
    grid = shared_grid(stores, video_id, [f.grid for f in found])
    features = {s.spec.modality: f.x[:, : len(grid)].astype(np.float32) for s, f in zip(stores, found, strict=True)}
    return features, grid, found[0].fps


def shared_grid(stores: Sequence[FeatureStore], video_id: str, grids: Sequence[ClipGrid]) -> ClipGrid:
    """The first of one video's grids, one per store, cut to the fewest clips. Raises ValueError as `read_features`."""
    counts = [len(g) for g in grids]
    if max(counts) - min(counts) > 1 or any(g.stride != grids[0].stride for g in grids):
        lines = ", ".join(
            f"{s.spec.id}: {n} clips, stride {g.stride}" for s, n, g in zip(stores, counts, grids, strict=True)
        )
        raise ValueError(f"{video_id}: the stores do not show the same clips ({lines}); extract them with one stride")
    return grids[0] if min(counts) == counts[0] else replace(grids[0], tail="given", count=min(counts))


def _one_each(stores: Sequence[FeatureStore]) -> None:
    names = [store.spec.modality for store in stores]
    if twice := [n for n in names if names.count(n) > 1]:
        raise ValueError(f"two stores hold the modality '{twice[0]}'; pass one store per modality")


class BagDataset:
    """Training bags: what a step is given of the videos it names, (B, K, T, D_m) float32 per modality.

    Segments whose number the resampling fixes are packed once beside their store (`data/packed.py`) and taken from
    there. "full" and "random" have no fixed number, or are drawn anew: they are taken from the stored clips, of which
    only what a bag holds is read.

    Args:
        videos: training videos with features in every store.
        stores: one per modality.
        resample: a name in `mil.resample`, to `count` segments; "random" is drawn anew for every step.
        count: T at most.
        classes: names of the classes that a head is to be told of, in order.
        dtype: "float16" or "float32", of the packed segments.
        among: all videos that are worth packing with these, so that runs on other parts of them share one pack.

    Raises:
        StoreError: a video without features, or with damaged ones.
        ValueError: stores that do not show the same clips.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        stores: Sequence[FeatureStore],
        resample: str,
        count: int,
        *,
        classes: Sequence[str] = (),
        dtype: str = "float32",
        among: Sequence[Video] = (),
    ) -> None:
        self.videos, self.stores = tuple(videos), tuple(stores)
        self.labels = np.array([v.label for v in videos])
        self.count, self.random = count, resample == "random"
        named = [v.classes or ((ANOMALY,) if v.label else ()) for v in videos]
        self.classes = np.array([[float(c in own) for c in classes] for own in named], np.float32)
        _one_each(stores)
        self.packs: dict[str, Packed] = {}
        self.segments: HostSegments | DeviceSegments | None = None
        if resample not in VARIABLE:
            place = {v.id: 0 for v in (*among, *videos)}
            place = {video_id: row for row, video_id in enumerate(place)}
            whole = pack_segments(list(place), stores, resample, count, dtype)
            here = np.array([place[v.id] for v in videos], np.int64)
            self.packs = {n: replace(p, rows=p.rows[here], lengths=p.lengths[here]) for n, p in whole.items()}
            self.segments = HostSegments(self.packs)
        else:
            for video in videos:
                shared_grid(stores, video.id, [store.length(video.id)[0] for store in stores])
            # open maps of the stored clips; the system decides what of them stays in memory
            self._stored = lru_cache(maps_at_once(min(len(videos), _MAPS), len(stores)))(self._open)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def crops(self) -> int:
        """K, the most of any modality."""
        return max(len(store.spec.crops) for store in self.stores)

    def place(self, device: torch.device, share: float = 0.5) -> bool:
        """Prepares for bags on that device: packed segments that fit into `share` of a GPU's free memory are put there.

        Returns whether bags cost the processor nothing worth doing ahead.
        """
        if not self.packs:
            return False
        if device.type != "cuda":
            self.segments = HostSegments(self.packs)
            return True
        free, _ = torch.cuda.mem_get_info(device)
        fits = DeviceSegments.size(self.packs) <= share * free
        self.segments = DeviceSegments(self.packs, device) if fits else HostSegments(self.packs, pinned=True)
        return fits

    def bag(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        crops: Sequence[int] | NDArray[np.int64] | None = None,
        *,
        seed: Sequence[int] = (0,),
    ) -> Bag:
        """The videos of those indices as one bag, padded with zeros to the longest.

        `crops` names one crop of each video, which the bag then holds alone (K = 1); None: all. `seed` draws the
        segments where the resampling is random. Features lie where `place` has put them, labels and mask on the host.
        """
        chosen = np.asarray(indices, np.int64)
        one = None if crops is None else np.asarray(crops, np.int64)
        if self.segments is None:
            bag = self._from_stores(chosen, one, seed)
        else:
            lengths = next(iter(self.packs.values())).lengths[chosen]
            longest = int(lengths.max())
            mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
            labels = torch.from_numpy(self.labels[chosen].astype(np.float32))
            bag = Bag(self.segments.take(chosen, one, longest), mask, labels)
        classes = torch.from_numpy(self.classes[chosen]) if self.classes.size else None
        return replace(bag, classes=classes, index=torch.from_numpy(chosen))

    def clips(self) -> Iterator[dict[str, Array]]:
        """The features of one video after another, {modality: (K, T, D_m)} float32, read as they are asked for."""
        for i in range(len(self)):
            if self.packs:
                found = {n: p.x[p.rows[i], :, : p.lengths[i]] for n, p in self.packs.items()}
            else:
                found = self._stored(i)
            yield {name: x.astype(np.float32) for name, x in found.items()}

    def _from_stores(self, chosen: NDArray[np.int64], crops: NDArray[np.int64] | None, seed: Sequence[int]) -> Bag:
        items = []
        for place, i in enumerate(chosen.tolist()):
            item = self._stored(i)
            if crops is not None:
                one = int(crops[place])
                item = {n: x if len(x) == 1 else x[one : one + 1] for n, x in item.items()}
            if self.random:
                n = next(iter(item.values())).shape[1]
                rows = random_rows(n, self.count, bool(self.labels[i]), np.random.default_rng([*seed, place]))
                item = {name: x[:, rows] for name, x in item.items()}
            items.append(item)
        return collate(items, self.labels[chosen])

    def _open(self, i: int) -> dict[str, NDArray[Any]]:
        """The stored clips of a video, {modality: (K, N, D_m)} as stored; checked when first touched."""
        video_id = self.videos[i].id
        count = len(shared_grid(self.stores, video_id, [store.read(video_id).grid for store in self.stores]))
        return {store.spec.modality: mapped(store.path(video_id))[:, :count] for store in self.stores}


def pack_segments(
    ids: Sequence[str], stores: Sequence[FeatureStore], resample: str, count: int, dtype: str
) -> dict[str, Packed]:
    """{modality: segments of those videos}, opened or made, of each store as a training bag holds them.

    `resample` is a name in `mil.resample.RESAMPLE`, but for "full". Raises what `read_features` and `packed` raise.
    """
    _one_each(stores)
    found = {}
    for store in stores:
        name = store.spec.modality
        beside = [s for s in stores if s is not store]

        def read(video_id: str, name: str = name) -> Array:
            return read_features(stores, video_id)[0][name]

        found[name] = packed(store, ids, resample, RESAMPLE[resample], count, dtype, beside=beside, read=read)
    return found
