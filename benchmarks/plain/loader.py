"""The field's loader: at every step the .npy files of the batch are read whole and pooled crop by crop.

A file is (T, 10, 2048) float32. Segment i of 32 is the mean of rows r[i] to r[i + 1], r = floor(linspace(0, T, 33)), or
row r[i] where there are none. Two shuffled torch loaders without workers give normal and anomalous videos.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def pool(x: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(T, D) -> (count, D), in a loop over the segments."""
    out = np.zeros((count, x.shape[1]), np.float32)
    bounds = np.linspace(0, len(x), count + 1, dtype=int)
    for i in range(count):
        first, stop = bounds[i], bounds[i + 1]
        out[i] = x[first:stop].mean(0) if stop > first else x[first]
    return out


class Videos(Dataset[Tensor]):
    """(10, 32, 2048) of one file, read when it is asked for."""

    def __init__(self, paths: Sequence[Path], count: int) -> None:
        self.paths, self.count = paths, count

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        crops = np.load(self.paths[i]).transpose(1, 0, 2)
        return torch.from_numpy(np.stack([pool(crop, self.count) for crop in crops]))


def batches(normal: Sequence[Path], anomalous: Sequence[Path], pairs: int, count: int) -> Callable[[], Tensor]:
    """Each call: the next `pairs` normal and `pairs` anomalous videos, (2 * pairs, 10, count, 2048)."""
    loaders = [
        DataLoader(Videos(paths, count), batch_size=pairs, shuffle=True, drop_last=True, num_workers=0)
        for paths in (normal, anomalous)
    ]
    running: list[Iterator[Tensor]] = [iter(loader) for loader in loaders]

    def following(k: int) -> Tensor:
        try:
            return next(running[k])
        except StopIteration:
            running[k] = iter(loaders[k])
            return next(running[k])

    return lambda: torch.cat([following(0), following(1)])
