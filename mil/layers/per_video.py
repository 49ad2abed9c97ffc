"""What a head of several stages keeps about its training videos: a number for every segment of each."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PerVideo(nn.Module):
    """A table of numbers, (V, T): pseudo labels, predictions; rows are addressed by `bag.index`.

    It grows with what is written, 0 where nothing was, and is a buffer: a resumed run finds it as it was, and a strict
    `load_state_dict` takes a table of any size. Segments are counted as the bags hold them, so that a recipe's
    resampling must cut a video the same way each time: anything but "random".
    """

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(0, 0))

    def read(self, index: Tensor | None, length: int) -> Tensor:
        """The first `length` numbers of those videos, (B,) -> (B, length). Raises ValueError where `index` is None."""
        if index is None:
            raise ValueError("labels of segments are kept by bag.index, and this bag has none; training bags have it")
        out = self.values.new_zeros(len(index), length)
        videos, segments = self.values.shape
        known, segments = index < videos, min(segments, length)
        out[known, :segments] = self.values[index[known], :segments]
        return out

    def write(self, index: Tensor | None, values: Tensor) -> None:
        """Puts (B, T) at the videos (B,), each named once. Further segments that a video may have stay."""
        if index is None:
            raise ValueError("labels of segments are kept by bag.index, and this bag has none; training bags have it")
        old = self.values
        videos, segments = max(len(old), int(index.max()) + 1), max(old.shape[1], values.shape[1])
        if (videos, segments) != tuple(old.shape):
            self.values = old.new_zeros(videos, segments)
            self.values[: len(old), : old.shape[1]] = old
        self.values[index, : values.shape[1]] = values.detach().to(old.dtype)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found = state.get(prefix + "values")
        if isinstance(found, Tensor) and found.ndim == 2:
            self.values = self.values.new_zeros(found.shape)
        super()._load_from_state_dict(state, prefix, *rest)
