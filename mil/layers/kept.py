"""What a head keeps beside its parameters and learns the size of only while it trains."""

from typing import Any

from torch import Tensor, nn


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
