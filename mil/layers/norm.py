"""Normalisations that take no notice of padding."""

import torch
from torch import Tensor, nn


def batch_norm(layer: nn.BatchNorm1d, x: Tensor, mask: Tensor) -> Tensor:
    """A BatchNorm1d over the rows that are there: (N, T, D), (N, T) bool -> (N, T, D), 0 where padded.

    In training its statistics, running ones included, are those of the unpadded rows of all videos.
    """
    if not layer.training or bool(mask.all()):
        y: Tensor = layer(x.flatten(0, 1)).view_as(x)
        return y * mask[..., None]
    return torch.zeros_like(x).masked_scatter(mask[..., None], layer(x[mask]))


def group_norm(layer: nn.GroupNorm, x: Tensor, mask: Tensor) -> Tensor:
    """A GroupNorm over the rows that are there: (N, T, D), (N, T) bool -> (N, T, D), 0 where padded."""
    there = mask[:, :, None, None]
    grouped = x.reshape(*mask.shape, layer.num_groups, -1) * there  # (N, T, G, D / G)
    count = (mask.sum(1).clamp(min=1) * grouped.shape[-1])[:, None, None, None]
    centred = (grouped - grouped.sum((1, 3), keepdim=True) / count) * there
    variance = centred.square().sum((1, 3), keepdim=True) / count
    y = (centred / (variance + layer.eps).sqrt()).flatten(2)
    return (y * layer.weight + layer.bias) * mask[..., None]
