"""Where the segments of packed videos are taken from: a map of the file, or the device's own memory."""

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.packed import Packed

Indices = NDArray[np.int64]


class Buffers:
    """Memory for batches, used again once nothing holds the batch any more.

    Fresh memory of that size costs several times what filling it does: the system hands it out page by page.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.lock = keep, threading.Lock()
        self.held: list[tuple[NDArray[np.float32], weakref.ref[NDArray[np.float32]]]] = []

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor of that shape with arbitrary values."""
        size = int(np.prod(shape))
        with self.lock:
            free = [n for n, (_, user) in enumerate(self.held) if user() is None]
            fits = [n for n in free if len(self.held[n][0]) >= size]
            place = fits or free
            if place:
                memory, _ = self.held.pop(min(place, key=lambda n: len(self.held[n][0])))
            if not fits:
                memory = np.empty(size, np.float32)
            view = memory[:size].reshape(shape)  # a tensor made of it, and all that share its memory, keep it alive
            self.held = [*self.held, (memory, weakref.ref(view))][-self.keep :]
        return torch.from_numpy(view)


class HostSegments:
    """Takes batches out of packs that lie in files or in memory.

    Args:
        packs: one per modality, of the same videos.
        pinned: batches go to a GPU: they are given as stored, in memory that it copies from without waiting.
    """

    def __init__(self, packs: Mapping[str, Packed], *, pinned: bool = False) -> None:
        self.packs, self.pinned, self.buffers = packs, pinned, Buffers(2 * len(packs))

    def take(self, videos: Indices, crops: Indices | None, longest: int) -> dict[str, Tensor]:
        """{modality: (B, K, longest, D_m)} of those videos; K = 1 where `crops` names one of each."""
        return {name: self._take(pack, videos, crops, longest) for name, pack in self.packs.items()}

    def _take(self, pack: Packed, videos: Indices, crops: Indices | None, longest: int) -> Tensor:
        x, rows = pack.x, pack.rows[videos]
        kept = x.shape[1] if crops is None else 1
        first = np.zeros(len(rows), np.int64) if crops is None or x.shape[1] == 1 else crops
        parts = (x[row, k : k + kept, :longest] for row, k in zip(rows.tolist(), first.tolist(), strict=True))
        shape = (len(rows), kept, longest, x.shape[3])
        if self.pinned:
            out = torch.empty(shape, dtype=_kind(x), pin_memory=True)
            for target, part in zip(out.numpy(), parts, strict=True):
                np.copyto(target, part)
            return out
        out = self.buffers.empty(shape)
        # through memory that the cache holds: torch converts float16 several times faster than numpy, but takes no
        # read-only map
        stage = np.empty(shape[1:], x.dtype)
        staged = torch.from_numpy(stage)
        for place, part in enumerate(parts):
            np.copyto(stage, part)
            out[place].copy_(staged)
        return out


class DeviceSegments:
    """Takes batches out of packs that lie on the device whole.

    Args:
        packs: one per modality, of the same videos.
        device: where they are copied to, as they are stored.
    """

    def __init__(self, packs: Mapping[str, Packed], device: torch.device) -> None:
        self.device = device
        self.held: dict[str, Tensor] = {}
        for name, pack in packs.items():
            whole = torch.empty((len(pack.rows), *pack.x.shape[1:]), dtype=_kind(pack.x), device=device)
            for place, row in enumerate(pack.rows):
                whole[place] = torch.from_numpy(np.array(pack.x[row]))
            self.held[name] = whole

    @staticmethod
    def size(packs: Mapping[str, Packed]) -> int:
        """Bytes that packs take on a device."""
        return sum(len(p.rows) * int(np.prod(p.x.shape[1:])) * p.x.itemsize for p in packs.values())

    def take(self, videos: Indices, crops: Indices | None, longest: int) -> dict[str, Tensor]:
        """{modality: (B, K, longest, D_m)} float32 on the device; K = 1 where `crops` names one of each."""
        out = {}
        for name, whole in self.held.items():
            count = whole.shape[1]
            rows = videos if crops is None else videos * count + (crops if count > 1 else 0)
            chosen = torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(self.device, non_blocking=True)
            units = whole if crops is None else whole.flatten(0, 1)[:, None]
            out[name] = units[:, :, :longest].index_select(0, chosen).float()
        return out


def _kind(x: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, x.dtype)).dtype
