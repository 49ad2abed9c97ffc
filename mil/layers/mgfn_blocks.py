"""Blocks of the glance-and-focus network (Chen et al., AAAI 2023): attention over all segments, then over near ones.

All take (N, T, D) and a mask (N, T), and give (N, T, D), 0 where padded.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mil.layers.conv import conv
from mil.layers.norm import batch_norm


class ChannelNorm(nn.Module):
    """Each segment over its features: (x - mean) / (std + eps), biased; nn.LayerNorm has eps under the root."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, dim, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D), statistics in float32 at least."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        # the root has no slope at 0, where padded segments lie
        std = centred.square().mean(-1, keepdim=True).clamp(min=1e-30).sqrt()
        return (centred / (std + self.eps) * self.g[0, :, 0] + self.b[0, :, 0]).to(x.dtype)


class Glance(nn.Module):
    """Multi-head attention of every segment to all segments of its video."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(dim)
        self.qkv = nn.Conv1d(dim, 3 * dim, 1, bias=False)
        self.out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Padded segments are no keys."""
        qkv = conv(self.qkv, self.norm(x), mask)
        n, t = mask.shape
        q, k, v = (part.reshape(n, t, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return conv(self.out, seen.transpose(1, 2).flatten(2), mask)


class Focus(nn.Module):
    """A convolution along time whose kernel all channels of a head share; channel c belongs to head c % heads."""

    def __init__(self, dim: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.value = nn.Conv1d(dim, dim, 1, bias=False)
        self.near = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads)
        self.out = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Padded segments take no part in the statistics of the batch."""
        v = conv(self.value, batch_norm(self.norm, x, mask), mask).transpose(1, 2)
        times = v.shape[1] // self.near.groups
        bias = None if self.near.bias is None else self.near.bias.repeat(times)
        weight, pad = self.near.weight.repeat(times, 1, 1), self.near.padding[0]
        near = nn.functional.conv1d(v, weight, bias, padding=pad, groups=v.shape[1])
        return conv(self.out, near.transpose(1, 2), mask)


class Block(nn.Module):
    """A convolution of three segments, an attention, and two layers for each segment; each adds to what it is given."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.shift = nn.Conv1d(dim, dim, 3, padding=1)
        self.attention = attention
        self.norm = ChannelNorm(dim)
        self.wide = nn.Conv1d(dim, 4 * dim, 1)
        self.narrow = nn.Conv1d(4 * dim, dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), 0 where padded -> the same."""
        x = x + conv(self.shift, x, mask)
        x = x + self.attention(x, mask)
        h = nn.functional.gelu(conv(self.wide, self.norm(x), mask))
        return x + conv(self.narrow, h, mask)


class Stage(nn.Module):
    """Blocks of one width, then a norm and a layer to the next stage's; the last stage has neither."""

    def __init__(self, dim: int, blocks: list[Block], following: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = None if following is None else ChannelNorm(dim)
        self.change = None if following is None else nn.Conv1d(dim, following, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, following)."""
        for block in self.blocks:
            x = block(x, mask)
        return x if self.norm is None or self.change is None else conv(self.change, self.norm(x), mask)


_AFFINE, _NORM = ("weight", "bias"), ("g", "b")
_COUNTED = (*_AFFINE, "running_mean", "running_var", "num_batches_tracked")
_BLOCK: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "0": ("shift", _AFFINE),
    "1.to_out": ("attention.out", _AFFINE),
    "2.0": ("norm", _NORM),
    "2.1": ("wide", _AFFINE),
    "2.4": ("narrow", _AFFINE),
}
_GLANCE = {"1.norm": ("attention.norm", _NORM), "1.to_qkv": ("attention.qkv", ("weight",))}
_FOCUS = {
    "1.norm": ("attention.norm", _COUNTED),
    "1.to_v": ("attention.value", ("weight",)),
    "1.rel_pos": ("attention.near", _AFFINE),
}


def authors_names(depths: Sequence[int]) -> dict[str, str]:
    """{the authors' name: ours} of all tensors of the stages, of which the first glances and the others focus."""
    names: dict[str, str] = {}
    for s, depth in enumerate(depths):
        for i in range(depth):
            for theirs, (ours, parts) in {**_BLOCK, **(_FOCUS if s else _GLANCE)}.items():
                names |= {f"stages.{s}.0.layers.{i}.{theirs}.{p}": f"stages.{s}.blocks.{i}.{ours}.{p}" for p in parts}
        if s + 1 < len(depths):
            names |= {f"stages.{s}.1.0.{p}": f"stages.{s}.norm.{p}" for p in _NORM}
            names |= {f"stages.{s}.1.1.{p}": f"stages.{s}.change.{p}" for p in _AFFINE}
    return names
