"""A transformer whose attention stays inside windows of a video, with CLIP's activation (VadCLIP, AAAI 2024)."""

from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as CLIP."""
    return x * (1.702 * x).sigmoid()


class Perceptron(nn.Module):
    """Two layers, four times as wide between them: (..., width) -> (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape."""
        out: Tensor = self.back(quick_gelu(self.wide(x)))
        return out


class WindowAttention(nn.Module):
    """Self-attention of segments to those of their own window: (M, T, width), (M, T) -> (M, T, width)."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.inputs, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)  # queries, keys, values
        nn.init.xavier_uniform_(self.inputs.weight)
        nn.init.zeros_(self.inputs.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Only segments that are `seen` are attended to."""
        M, T, width = x.shape
        extra = -T % self.window
        x = pad(x, (0, 0, 0, extra)).reshape(-1, self.window, width)
        keys = pad(seen, (0, extra)).reshape(-1, 1, 1, self.window)
        keys = keys | ~keys.any(dim=-1, keepdim=True)  # a window without any: whatever comes out is left out later
        parts = self.inputs(x).reshape(len(x), self.window, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=keys)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(M, T + extra, width)[:, :T])
        return out


class WindowBlock(nn.Module):
    """Norms before, residuals around, attention in windows and a perceptron."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = WindowAttention(width, heads, window), Perceptron(width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """(M, T, width), (M, T) -> (M, T, width)."""
        x = x + self.attention(self.norm1(x), seen)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
