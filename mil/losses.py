"""Loss terms shared by heads: pure functions of scores, with shapes. B videos, T segments, A anomalous, N normal."""

import torch
from torch import Tensor


def topk_mean(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """Mean of each video's k highest scores, or of all where it has fewer; (B, T), (B, T) -> (B,)."""
    k = min(k, scores.shape[1])
    top, where = scores.masked_fill(~mask, -torch.inf).topk(k, dim=1)
    kept = mask.gather(1, where)
    return top.masked_fill(~kept, 0).sum(1) / kept.sum(1)


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
