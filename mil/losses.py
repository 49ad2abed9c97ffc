"""Loss terms shared by heads: pure functions of scores, with shapes. B videos, T segments, A anomalous, N normal."""

import torch
from torch import Tensor, nn

from mil.bag import Bag


def topk_mean(scores: Tensor, mask: Tensor, k: int | Tensor) -> Tensor:
    """Mean of each video's k highest scores, or of all where it has fewer; (B, T), (B, T) -> (B,).

    `k` is one number, or one for each video, (B,) integers of at least 1. A video without a segment gives 0.
    """
    counts = mask.sum(1)
    if isinstance(k, int):
        top = scores.masked_fill(~mask, -torch.inf).topk(min(k, scores.shape[1]), dim=1).values
        counts = counts.clamp(max=k)
    else:
        top = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True).values
        counts = torch.minimum(counts, k)
    taken = torch.arange(top.shape[1], device=top.device) < counts[:, None]
    return top.masked_fill(~taken, 0).sum(1) / counts.clamp(min=1)


def sixteenth(mask: Tensor) -> Tensor:
    """k = L // 16 + 1 of every video of L segments, as HL-Net and its descendants take it; (B, T) -> (B,)."""
    return mask.sum(1) // 16 + 1


def topk_bce(logits: Tensor, mask: Tensor, labels: Tensor, k: int | Tensor) -> Tensor:
    """Cross entropy of the mean of each video's k highest logits; (B, T), (B, T), (B,) -> ().

    Named CLAS in HL-Net's code (Wu et al., ECCV 2020, equation 9): the mean comes before the sigmoid.
    """
    return nn.functional.binary_cross_entropy_with_logits(topk_mean(logits, mask, k), labels)


def hinge(high: Tensor, low: Tensor, margin: float = 1.0, *, paired: bool = False) -> Tensor:
    """relu(margin - high + low) of anomalous (A,) against normal (N,) video scores.

    Every pair, (A, N), as Sultani et al. 2018 compute equation 6 over a batch; `paired` compares the i-th with the
    i-th, (min(A, N),), as the I3D port does.
    """
    if paired:
        n = min(len(high), len(low))
        return (margin - high[:n] + low[:n]).relu()
    return (margin - high[:, None] + low).relu()


def smoothness(scores: Tensor, mask: Tensor) -> Tensor:
    """Sum of squared steps inside each video; (B, T), (B, T) -> (B,). Never across two videos or into the padding."""
    return (scores.diff(dim=1).square() * (mask[:, 1:] & mask[:, :-1])).sum(1)


def sparsity(scores: Tensor, mask: Tensor) -> Tensor:
    """Sum of the scores of each video; (B, T), (B, T) -> (B,)."""
    return (scores * mask).sum(1)


def both_classes(bag: Bag, head: str) -> tuple[Tensor, Tensor]:
    """Indices of the anomalous (A,) and of the normal (N,) videos. Raises ValueError where a class is wanting."""
    if not (len(bag.high) and len(bag.low)):
        found = f"{len(bag.high)} anomalous and {len(bag.low)} normal videos"
        raise ValueError(f"{head} compares two classes, this batch has {found}; use the balanced sampler")
    return bag.high, bag.low
