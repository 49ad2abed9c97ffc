"""Crops as further videos: (B, K, T, D) <-> (B * K, T, D), a video's crops side by side."""

import torch
from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """(B, K, T, ...) -> (B * K, T, ...)."""
    return x.flatten(0, 1)


def unfold(x: Tensor, crops: int) -> Tensor:
    """(B * K, ...) -> (B, K, ...)."""
    return x.reshape(len(x) // crops, crops, *x.shape[1:])


def spread(x: Tensor, crops: int) -> Tensor:
    """What belongs to a video, given to each of its crops: (B, ...) -> (B * K, ...). For masks and labels."""
    return x.repeat_interleave(crops, dim=0)


def of_crops(videos: Tensor, crops: int) -> Tensor:
    """Indices of videos (A,) -> those of all their crops after `fold`, (A * K,)."""
    return (videos[:, None] * crops + torch.arange(crops, device=videos.device)).flatten()


def crop_mean(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores of every crop (B, K, T) and mask (B, T) -> the video's (B, T), 0 where padded."""
    return scores.mean(dim=1) * mask
