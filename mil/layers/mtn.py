"""The multi-scale temporal network (Tian et al., ICCV 2021, section 3.2), skeleton of RTFM, TEVAD and S3R.

Three dilated convolutions see near, wider and far neighbours, a non-local block the whole video; a last convolution
mixes the four and is added to what came in. Sequences are (N, T, D): N videos or crops.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.layers.conv import conv, same_conv
from mil.layers.dropout import Dropout
from mil.layers.norm import batch_norm, group_norm


class MTN(nn.Module):
    """(N, T, D), (N, T) bool -> (N, T, D), 0 where padded.

    Args:
        dim: D.
        width: channels of each of the four branches; published: D // 4.
        groups: 0: ReLU, then batch normalisation, as RTFM; else group normalisation, then ReLU, as S3R.
    """

    def __init__(self, dim: int, width: int, groups: int = 0) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_Unit(dim, width, groups, dilation=d) for d in (1, 2, 4))
        self.reduce = nn.Conv1d(dim, width, 1, bias=False)
        self.non_local = NonLocal(width)
        self.fuse = _Unit(4 * width, dim, groups, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D)."""
        x = x * mask[..., None]
        seen = [branch(x, mask) for branch in self.branches]
        seen.append(self.non_local(conv(self.reduce, x, mask).relu(), mask))
        fused: Tensor = self.fuse(torch.cat(seen, dim=-1), mask)
        return fused + x


class NonLocal(nn.Module):
    """Attention over the whole video without a softmax: x + W((theta phi^T / T) g), and at first x alone.

    W ends in a batch normalisation whose scale and shift begin at 0, so that the block starts as the identity and its
    other parameters receive a gradient from the second step on.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = max(dim // 2, 1)
        self.theta, self.phi, self.g = (nn.Conv1d(dim, inner, 1) for _ in range(3))
        self.out = nn.Conv1d(inner, dim, 1)
        self.norm = nn.BatchNorm1d(dim)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, D)."""
        theta, phi, g = (conv(layer, x, mask) for layer in (self.theta, self.phi, self.g))
        length = mask.sum(1).clamp(min=1)[:, None, None]
        # without a softmax the product may be taken from the right: T x T weights of long videos never exist
        y = theta @ (phi.transpose(1, 2) @ g / length)
        return x + batch_norm(self.norm, conv(self.out, y, mask), mask)


class _Unit(nn.Module):
    """Convolution of kernel 3, normalisation and ReLU, in the order of the paper that the norm belongs to."""

    def __init__(self, dim: int, width: int, groups: int, *, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, width, 3, padding=dilation, dilation=dilation, bias=bias)
        # sizes that the groups do not divide take as many as do
        self.norm = nn.GroupNorm(math.gcd(groups, width), width) if groups else nn.BatchNorm1d(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # x is 0 where padded; what the convolution leaves there, the normalisation takes away
        h = same_conv(self.conv, x)
        if isinstance(self.norm, nn.GroupNorm):
            return group_norm(self.norm, h, mask).relu()
        return batch_norm(self.norm, h.relu(), mask)


def scorer(dim: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Three fully connected layers D -> hidden -> 1, ReLU and dropout after the first two; logits (..., 1)."""
    first, second = hidden
    return nn.Sequential(
        nn.Linear(dim, first),
        nn.ReLU(),
        Dropout(dropout),
        nn.Linear(first, second),
        nn.ReLU(),
        Dropout(dropout),
        nn.Linear(second, 1),
    )


def xavier(module: nn.Module) -> None:
    """Xavier-uniform kernels and zero biases in every layer; normalisations stay as they are. For `apply`."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def published_names(theirs: str, ours: str, *, groups: bool = False) -> dict[str, str]:
    """{name in the authors' block `theirs`: name in the MTN `ours`}, of RTFM and TEVAD, or with groups of S3R."""
    batch = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norm = {f"1.{p}": f"norm.{p}" for p in ("weight", "bias")} if groups else {f"2.{p}": f"norm.{p}" for p in batch}
    names = {"conv_4.0.weight": "reduce.weight", "conv_5.0.weight": "fuse.conv.weight"}
    for i in (1, 2, 3):
        names |= {f"conv_{i}.0.{p}": f"branches.{i - 1}.conv.{p}" for p in ("weight", "bias")}
        names |= {f"conv_{i}.{a}": f"branches.{i - 1}.{b}" for a, b in norm.items()}
    names |= {f"conv_5.{a}": f"fuse.{b}" for a, b in norm.items()}
    layers = ("query", "key", "value", "alter") if groups else ("theta", "phi", "g", "W")
    for a, b in zip(layers, ("theta", "phi", "g", "out"), strict=True):
        inner = f"{a}.0" if b == "out" else a
        names |= {f"non_local.{inner}.{p}": f"non_local.{b}.{p}" for p in ("weight", "bias")}
    names |= {f"non_local.{layers[-1]}.1.{p}": f"non_local.norm.{p}" for p in batch}
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in names.items()}
