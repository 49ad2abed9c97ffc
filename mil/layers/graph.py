"""Graphs over the segments of a video, and convolution on them, as HL-Net (Wu et al., ECCV 2020) and VadCLIP have it.

An adjacency is (N, T, T) or (T, T): row i holds the weights with which segment i takes from the others.
"""

import math

import torch
from torch import Tensor, nn

from mil.layers.causal import gaps
from mil.layers.conv import conv


def row_softmax(weights: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each row over a video's own segments; (N, T, T), (N, T) -> (N, T, T), 0 where either is padded."""
    own = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    # a padded row still sees itself, so that no softmax is over nothing; it is zeroed right after
    out = weights.masked_fill(~(mask[:, None, :] | own), -torch.inf).softmax(dim=-1)
    return out * mask[:, :, None] * mask[:, None, :]


def similarity(x: Tensor, mask: Tensor, threshold: float = 0.7) -> Tensor:
    """Segments that look alike: row softmax of their cosines; (N, T, D), (N, T) -> (N, T, T).

    Cosines up to the threshold count as 0 but stay in the softmax, as in the authors' code: whatever else there is,
    each segment takes a little from every other one.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    cosine = x @ x.transpose(1, 2) / (norm @ norm.transpose(1, 2) + 1e-20)
    return row_softmax(torch.where(cosine > threshold, cosine, torch.zeros_like(cosine)), mask)


def proximity(x: Tensor) -> Tensor:
    """Segments that are near: exp(-|i - j| / e), rows do not sum to 1; (N, T, D) -> (T, T) of the same type."""
    return (-gaps(x.shape[1], x) / math.e).exp().to(x.dtype)


class GraphConvolution(nn.Module):
    """A x W + residual, without a bias: the input itself, or a convolution over 5 segments where sizes differ.

    Args:
        dim, out: feature sizes; W is (dim, out), Xavier uniform.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, out))
        nn.init.xavier_uniform_(self.weight)
        self.residual = nn.Conv1d(dim, out, 5, padding=2) if dim != out else None

    def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
        """(N, T, dim), (N, T, T) or (T, T), (N, T) -> (N, T, out), 0 where padded. Nothing is taken from there."""
        x = x * mask[..., None]
        rest = x if self.residual is None else conv(self.residual, x, mask)
        return (adjacency @ (x @ self.weight) + rest) * mask[..., None]
