"""Convolutions that look back only, and attention weights: of other segments by how far away they are, of padding none.

N videos or crops, T segments.
"""

import torch
from torch import Tensor, nn


def left_conv(layer: nn.Conv1d, x: Tensor, mask: Tensor) -> Tensor:
    """A Conv1d of kernel k over a segment and the k - 1 before it; (N, T, D_in), (N, T) bool -> (N, T, D_out).

    Before the first segment lie zeros; 0 where padded. The layer itself must not pad.
    """
    before = (layer.kernel_size[0] - 1) * layer.dilation[0]
    padded = nn.functional.pad((x * mask[..., None]).transpose(1, 2), (before, 0))
    y: Tensor = layer(padded).transpose(1, 2)
    return y * mask[..., None]


def distance_term(length: int, slope: Tensor, offset: Tensor) -> Tensor:
    """exp(-|slope d² + offset|) for segments d apart, (T, T) in (0, 1]; two numbers as (1,) tensors."""
    return (-(slope * gaps(length, slope).square() + offset).abs()).exp().to(slope.dtype)


def gaps(length: int, like: Tensor) -> Tensor:
    """|i - j| of segments i and j, (T, T), exact: of `counting(like.dtype)`, on the device of `like`."""
    at = torch.arange(length, device=like.device, dtype=counting(like.dtype))
    return (at[:, None] - at).abs()


def counting(dtype: torch.dtype) -> torch.dtype:
    """For numbers of segments: float32, or float64 as it is; bfloat16 and float16 miss some after 256 and 2048."""
    return torch.promote_types(dtype, torch.float32)


def recent(length: int, past: int, device: torch.device) -> Tensor:
    """Whether segment j is i or one of the `past` - 1 before it, (T, T) bool for (i, j)."""
    at = torch.arange(length, device=device)
    apart = at[:, None] - at
    return (apart >= 0) & (apart < past)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, without the keys that are padded; (N, ..., T), (N, T) bool -> (N, ..., T).

    A row that may see no key at all weighs all of them equally: it is padded itself, and finite.
    """
    keys = mask.reshape(len(mask), *(1,) * (logits.ndim - 2), -1)
    return logits.masked_fill(~keys, torch.finfo(logits.dtype).min).softmax(dim=-1)
