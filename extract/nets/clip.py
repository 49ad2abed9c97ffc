"""The image side of CLIP (Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020) with OpenAI's key names."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from extract.catalogue import WeightsError

_PREFIX = "visual."
_BLOCK = (
    *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
TEXT_SIDE = frozenset(
    {
        *("positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias"),
        *("text_projection", "logit_scale"),
        *(
            "input_resolution",
            "context_length",
            "vocab_size",
        ),  # numbers that the TorchScript archives hold beside these
        *(f"transformer.resblocks.{i}.{name}" for i in range(12) for name in _BLOCK),
    }
)
"""Tensors of a whole CLIP that its image side does not need; the same names for B/16, B/32 and L/14."""


def visual_side(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole CLIP's tensors, or the `visual.` ones alone -> the image side's in float32, without that prefix.

    Raises WeightsError on a tensor that belongs to neither side.
    """
    if strange := [key for key in state if not key.startswith(_PREFIX) and key not in TEXT_SIDE]:
        raise WeightsError(
            f"not one of OpenAI's CLIP files with a vision transformer: {len(strange)} unknown tensors, the first is "
            f"'{strange[0]}'; wanted 'visual.conv1.weight' and so on"
        )
    return {key.removeprefix(_PREFIX): x.float() for key, x in state.items() if key.startswith(_PREFIX)}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): what CLIP was trained with. The exact GELU gives other features."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention of `heads` heads: (B, N, W) -> (B, N, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to every token."""
        B, N, W = x.shape
        qkv = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.reshape(B, N, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)  # (B, heads, N, W / heads)
        mixed: Tensor = self.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, W))
        return mixed


class Block(nn.Module):
    """Norms before, residuals around, attention and a two-layer perceptron: (B, N, W) -> (B, N, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """`layers` blocks, one after another."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        out: Tensor = self.resblocks(x)
        return out


class VisionTransformer(nn.Module):
    """CLIP's vision transformer. A clip's feature is the mean of its frames'.

    Args:
        patch: side of the square patches, in pixels.
        width: W, size of a token.
        layers: blocks.
        dim: D, size of the feature: the space that CLIP shares with texts.
        side: of the frame, in pixels; 224 in the published files.
        heads: of the attention; the published ones have one for 64 of the width.
    """

    def __init__(
        self, *, patch: int, width: int, layers: int, dim: int, side: int = 224, heads: int | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads or width // 64)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(M, 3, T, side, side) -> (M, D), not L2-normalised."""
        M, _, T = x.shape[:3]
        patches = self.conv1(x.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)  # (M T, N - 1, W)
        first = self.class_embedding.expand(M * T, 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        seen: Tensor = self.ln_post(self.transformer(tokens)[:, 0]) @ self.proj
        return seen.reshape(M, T, -1).mean(dim=1)
