"""Transformer whose attention has a second branch that looks at distance in time alone.

GL-MHSA of UR-DMU (Zhou, Yu, Yang, AAAI 2023, https://arxiv.org/abs/2302.05160): the first branch sees the whole video,
the second what is near. BN-WVAD takes the same encoder over.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mil.layers.conv import conv
from mil.layers.dropout import Dropout
from mil.layers.graph import proximity

# what the authors call the parts of a layer, and what they are called here
_PARTS = {
    "0.norm.weight": "attention.norm.weight",
    "0.norm.bias": "attention.norm.bias",
    "0.fn.to_qkv.weight": "attention.project.weight",
    "0.fn.to_out.0.weight": "attention.out.weight",
    "0.fn.to_out.0.bias": "attention.out.bias",
    "1.norm.weight": "feed.norm.weight",
    "1.norm.bias": "feed.norm.bias",
    "1.fn.net.0.weight": "feed.wide.weight",
    "1.fn.net.0.bias": "feed.wide.bias",
    "1.fn.net.3.weight": "feed.narrow.weight",
    "1.fn.net.3.bias": "feed.narrow.bias",
}


class DistanceEncoder(nn.Module):
    """Convolution over three segments, ReLU, then pre-norm layers of attention and feed-forward with residuals.

    Args:
        dim: feature size of a segment, D.
        hidden: feature size inside and of the result, H.
        layers: how many.
        heads: of the attention.
        attention: size of the queries of all heads together.
        ffn: inner size of the feed-forward.
        dropout: after the attention, and twice in the feed-forward.

    Raises:
        ValueError: `attention` cannot be shared among `heads`.
    """

    def __init__(
        self, dim: int, *, hidden: int, layers: int, heads: int, attention: int, ffn: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(dim, hidden, 3, padding=1)
        self.layers = nn.ModuleList(_Layer(hidden, heads, attention, ffn, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> (N, T, H), 0 where padded."""
        x = conv(self.embed, x, mask).relu()
        for layer in self.layers:
            x = layer(x, mask)
        return x * mask[..., None]


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, attention: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.attention = DistanceAttention(dim, heads, attention, dropout)
        self.feed = _FeedForward(dim, ffn, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(x, mask)
        return x + self.feed(x)  # type: ignore[no-any-return]


class DistanceAttention(nn.Module):
    """In each head [softmax(q k^T / sqrt(d)) v ; A t], where A falls with the distance between two segments.

    Args:
        dim: feature size of input and result.
        heads: their results lie side by side, each with both branches.
        width: size of q, k, v and t, of all heads together.
        dropout: of the result.
    """

    def __init__(self, dim: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"attention of size {width} cannot be shared among {heads} heads")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 4 * width, bias=False)
        self.out = nn.Linear(2 * width, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, dim), (N, T) bool -> (N, T, dim); padded segments are seen by none."""
        width = self.out.in_features // 2
        of_qkv, of_t = torch.split(self.project.weight, [3 * width, width])
        of_far, of_near = self.out.weight.view(-1, self.heads, 2, width // self.heads).unbind(2)  # (dim, heads, d)
        # A is the same in all heads: what meets t before it and after it is one matrix
        parts = linear(self.norm(x), torch.cat([of_qkv, of_near.flatten(1) @ of_t]))
        *far, near = torch.split(parts, [width, width, width, len(of_near)], dim=-1)
        q, k, v = (part.reshape(*mask.shape, self.heads, -1).transpose(1, 2) for part in far)  # (N, heads, T, d)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        result = linear(seen.transpose(1, 2).flatten(2), of_far.flatten(1), self.out.bias) + near_mean(near, mask)
        return self.drop(result)  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.wide = nn.Linear(dim, width)
        self.narrow = nn.Linear(width, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(nn.functional.gelu(self.wide(self.norm(x))))
        return self.drop(self.narrow(h))  # type: ignore[no-any-return]


def near_mean(t: Tensor, mask: Tensor) -> Tensor:
    """A t for A_ij = exp(-|i - j| / e) / sum_i exp(-|i - j| / e); (N, T, D), (N, T) bool -> (N, T, D).

    The columns of A sum to 1, not its rows, as the authors divide. Sums run over the segments that are not padded.
    """
    weight = proximity(t)  # (T, T), the same for all videos
    columns = mask.to(t.dtype) @ weight  # (N, T), each greater than 0
    return weight @ (t * (mask / columns)[..., None])


def encoder_names(ours: str, layers: int) -> dict[str, str]:
    """{the authors' name: our name} of a DistanceEncoder that a head has as its `ours`."""
    names = {f"embedding.conv_1.0.{p}": f"{ours}.embed.{p}" for p in ("weight", "bias")}
    for i in range(layers):
        names |= {f"selfatt.layers.{i}.{theirs}": f"{ours}.layers.{i}.{own}" for theirs, own in _PARTS.items()}
    return names


def encoder_options(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, dict[str, Any]]:
    """Feature size D and the options of the encoder, all but `heads`, from the authors' shapes."""
    hidden, dim, _ = shapes["embedding.conv_1.0.weight"]
    layers = len({name.split(".")[2] for name in shapes if name.startswith("selfatt.layers.")})
    return dim, {
        "hidden": hidden,
        "layers": layers,
        "attention": shapes["selfatt.layers.0.0.fn.to_qkv.weight"][0] // 4,
        "ffn": shapes["selfatt.layers.0.1.fn.net.0.weight"][0],
    }
