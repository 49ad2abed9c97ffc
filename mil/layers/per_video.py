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
        videos = len(self.values)
        if not videos:
            return self.values.new_zeros(len(index), length)
        found = self.values[index.clamp(max=videos - 1), :length].masked_fill((index >= videos)[:, None], 0)
        return nn.functional.pad(found, (0, length - found.shape[1]))

    def write(self, index: Tensor | None, values: Tensor) -> None:
        """Puts (B, T) at the videos (B,), each named once. Further segments that a video may have stay.

        Waits for the device, which knows how many videos there are: not for a step.
        """
        if index is None:
            raise ValueError("labels of segments are kept by bag.index, and this bag has none; training bags have it")
        self._grow(int(index.max()) + 1, values.shape[1])
        self.put(index, values)

    def put(self, index: Tensor, values: Tensor) -> None:
        """`write` to videos that have been written before; the rows of one that is named twice must be equal."""
        self._grow(0, values.shape[1])
        self.values[index, : values.shape[1]] = values.detach().to(self.values.dtype)

    def _grow(self, videos: int, segments: int) -> None:
        more = (max(segments - self.values.shape[1], 0), max(videos - len(self.values), 0))
        if any(more):
            self.values = nn.functional.pad(self.values, (0, more[0], 0, more[1]))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found = state.get(prefix + "values")
        if isinstance(found, Tensor) and found.ndim == 2:
            self.values = self.values.new_zeros(found.shape)
        super()._load_from_state_dict(state, prefix, *rest)
