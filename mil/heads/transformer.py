"""A plain transformer encoder over segments (Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762), trained by top-k MIL cross entropy: a control, published nowhere as such."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.causal import counting
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.losses import sixteenth, topk_bce


@heads.register("transformer")
class TransformerHead(Head):
    """A plain pre-norm transformer over the segments, cross entropy of the highest logits' mean; a control.

    What segments know of each other with nothing added: a linear embedding, sinusoidal positions, `layers` blocks that
    normalise before attention and before the feed-forward net, a last normalisation, one logit for each segment. The
    positions are computed, so that no number of segments is too many; padding is never attended to.

    Args:
        dim: feature size D.
        width: of the embedding, a multiple of twice `heads`.
        layers: blocks.
        heads: attention heads of each block.
        feedforward: inner width of the feed-forward net, with GELU.
        dropout: of the embedding, the attention, and each branch before it is added.
        positions: "sinusoidal", or "none": the order of the segments then means nothing.
        topk: a video stands for the mean of its k highest logits; None for L // 16 + 1 of L segments.
    """

    paper = "a control, after Vaswani et al., NeurIPS 2017"
    compares = False

    def __init__(
        self,
        dim: int,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.1,
        positions: Literal["sinusoidal", "none"] = "sinusoidal",
        topk: int | None = None,
    ) -> None:
        super().__init__()
        if min(width, layers, heads, feedforward) < 1 or width % (2 * heads) or (topk is not None and topk < 1):
            raise ValueError(
                "transformer needs a width that is a multiple of 2 * heads, and layers, feedforward and topk of at "
                f"least 1, got width={width}, heads={heads}, layers={layers}, feedforward={feedforward}, topk={topk}"
            )
        self.positions, self.topk = positions, topk
        self.embed = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]; aux: every crop's logits (B, K, T)."""
        mask = spread(bag.mask, bag.crops)
        h: Tensor = self.embed(fold(bag.x))  # (B K, T, width)
        if self.positions == "sinusoidal":
            h = h + sinusoids(h.shape[1], h.shape[2], h)
        h = self.drop(h)
        for block in self.blocks:
            h = block(h, mask)
        logits = unfold(self.classify(self.norm(h)).squeeze(-1), bag.crops)  # (B, K, T)
        return HeadOutput(crop_mean(logits.sigmoid(), bag.mask), {"logits": logits})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of every crop's mean of its k highest logits with the video's label."""
        logits = out.aux["logits"]
        mask, labels = spread(bag.mask, logits.shape[1]), spread(bag.labels, logits.shape[1])
        return {"bce": topk_bce(fold(logits), mask, labels, self.topk or sixteenth(mask))}


class _Block(nn.Module):
    """h + attention(norm(h)), then h + feedforward(norm(h)); (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.drop(self.attend(self.norm1(h), mask))
        inner = self.drop(gelu(self.up(self.norm2(h))))
        added: Tensor = h + self.drop(self.down(inner))
        return added

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        """Softmax attention of every segment to the video's own, (N, T, width), (N, T) bool -> (N, T, width)."""
        n, t, width = h.shape
        q, k, v = self.to_qkv(h).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads)
        dropped = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=dropped)
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return joined


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Positions 0, 1, ..., (length, width): sin(t / 10000^(2i / width)) at 2i, the cosine at 2i + 1 (section 3.5)."""
    t = torch.arange(length, device=like.device, dtype=counting(like.dtype))
    even = torch.arange(0, width, 2, device=like.device, dtype=t.dtype)
    angles = t[:, None] * (even * (-math.log(10000) / width)).exp()
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)
