"""Normalisations that take no notice of padding."""

from typing import cast

import torch
from torch import Tensor, nn


def batch_norm(layer: nn.BatchNorm1d, x: Tensor, mask: Tensor) -> Tensor:
    """A BatchNorm1d over the rows that are there: (N, T, D), (N, T) bool -> (N, T, D), 0 where padded.

    In training its statistics, running ones included, are those of the unpadded rows of all videos. Which rows these
    are is asked where it costs nothing, on a CPU; elsewhere the host would wait for the device.
    """
    if layer.training and (x.device.type != "cpu" or torch.compiler.is_compiling()):
        return batch_norm_by_sums(layer, x, mask)
    if not layer.training or bool(mask.all()):
        y: Tensor = layer(x.flatten(0, 1)).view_as(x)
        return y * mask[..., None]
    return torch.zeros_like(x).masked_scatter(mask[..., None], layer(x[mask]))


def batch_norm_by_sums(layer: nn.BatchNorm1d, x: Tensor, mask: Tensor) -> Tensor:
    """`batch_norm` in training by masked sums, in float32 at least: no row is taken out, nothing is asked.

    The layer must keep running statistics and have a number as its momentum. A single row normalises to its bias.
    """
    there = mask[..., None]
    rows = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~there, 0)
    count = mask.sum().to(rows.dtype)
    mean = rows.sum((0, 1)) / count
    centred = (rows - mean) * there
    variance = centred.square().sum((0, 1)) / count
    with torch.no_grad():
        cast(Tensor, layer.num_batches_tracked).add_(1)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for kept, value in ((layer.running_mean, mean), (layer.running_var, unbiased)):
            kept = cast(Tensor, kept)
            kept.lerp_(value.to(kept.dtype), cast(float, layer.momentum))
    y = centred * (variance + layer.eps).rsqrt() * layer.weight + layer.bias
    return (y * there).to(x.dtype)


def group_norm(layer: nn.GroupNorm, x: Tensor, mask: Tensor) -> Tensor:
    """A GroupNorm over the rows that are there: (N, T, D), (N, T) bool -> (N, T, D), 0 where padded.

    Statistics are taken in float32 at least.
    """
    there = mask[:, :, None, None]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    grouped = wide.reshape(*mask.shape, layer.num_groups, -1) * there  # (N, T, G, D / G)
    count = (mask.sum(1).clamp(min=1) * grouped.shape[-1])[:, None, None, None]
    centred = (grouped - grouped.sum((1, 3), keepdim=True) / count) * there
    variance = centred.square().sum((1, 3), keepdim=True) / count
    y = (centred / (variance + layer.eps).sqrt()).flatten(2)
    return ((y * layer.weight + layer.bias) * mask[..., None]).to(x.dtype)
