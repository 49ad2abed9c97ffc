"""What a head keeps beside its parameters: a tensor whose size it learns while it trains, and its stage."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Staged(nn.Module):
    """A head that trains in stages, before `Head` among its bases.

    Which stage it is in, `stage` () int64, from 0, is part of the state dict. It stays on the host wherever the head
    goes, so that no step has to ask a device.
    """

    stage: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stage", torch.tensor(0))

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        stage = self.stage
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.stage = stage
        return self


class Kept(nn.Module):
    """A tensor without gradient, in the state dict, that takes the shape of whatever is assigned or loaded.

    Args:
        value: what stands there at first.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value)

    def keep(self, value: Tensor) -> None:
        """Replaces the tensor, of whatever shape; device and type stay."""
        self.value = value.detach().to(self.value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        found = state_dict.get(f"{prefix}value")
        if isinstance(found, Tensor) and found.shape != self.value.shape:
            self.value = self.value.new_empty(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
