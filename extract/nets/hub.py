"""pytorchvideo's hub nets up to their features (Fan et al., ACM MM 2021, https://arxiv.org/abs/2111.09887).

Each class takes over the parts of a whole net of `pytorchvideo.models.hub`, the classifier among them, under the names
that its published weights use, and stops in front of that classifier. The whole nets cannot end there: those of the
ResNet kind classify each position of the last map and average afterwards, X3D and R(2+1)D with a softmax in between.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FloatAvgPool3d(nn.AvgPool3d):
    """Average pooling in float32 whatever the net's precision: on a CPU it has no kernel for bfloat16 and float16."""

    def forward(self, x: Tensor) -> Tensor:
        """x (M, C, T, h, w) -> pooled, in the precision of x."""
        return super().forward(x.float()).to(x.dtype)


class Blocks(nn.Module):
    """A net of `blocks`, the last of them a head of pooling and classifier: I3D, Slow, C2D, CSN, R(2+1)D, X3D.

    The features are the mean over what the head's pooling leaves, in X3D after its 432 -> 2048 convolution and ReLU.
    """

    blocks: nn.ModuleList

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.blocks = whole.blocks
        _pool_in_float32(self)
        _with_plain_numbers(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, T, h, w) -> features (M, D)."""
        *body, head = self.blocks
        for block in body:
            x = block(x)
        pooled: Tensor = head.get_submodule("pool")(x)
        return pooled.mean(dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:
        """features (M, D) -> logits (M, 400) of Kinetics-400, before the softmax of X3D and R(2+1)D."""
        logits: Tensor = self.blocks[-1].get_submodule("proj")(features)
        return logits


class SlowFast(Blocks):
    """Both pathways of SlowFast from one clip (Feichtenhofer et al., ICCV 2019, https://arxiv.org/abs/1812.03982).

    Args:
        whole: the hub's net.
        clip_len: T, frames of the fast pathway. The slow one sees T/4 of them, evenly spaced from the first to the
            last and rounded down, as pytorchvideo's PackPathway has it: 0 4 8 13 17 22 26 31 of 32, not every fourth.
    """

    slow: Tensor

    def __init__(self, whole: Any, clip_len: int) -> None:
        super().__init__(whole)
        frames = torch.linspace(0, clip_len - 1, clip_len // 4).long()
        self.register_buffer("slow", frames, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, clip_len, h, w) -> features (M, 2304), 2048 of the slow pathway and 256 of the fast one."""
        pathways = [x.index_select(2, self.slow), x]  # a fresh list: the blocks write their outputs into it
        *body, concatenate, _ = self.blocks
        for block in body:
            pathways = block(pathways)
        pooled: Tensor = concatenate(pathways)
        return pooled.mean(dim=(2, 3, 4))


class Mvit(nn.Module):
    """Multiscale vision transformer (Fan et al., ICCV 2021, https://arxiv.org/abs/2104.11227): its class token.

    T, h and w are those of its position table.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.patch_embed = whole.patch_embed
        self.cls_positional_encoding = whole.cls_positional_encoding
        self.blocks = whole.blocks
        self.norm_embed = whole.norm_embed
        self.head = whole.head

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, 16, 224, 224) -> features (M, 768)."""
        x = self.cls_positional_encoding(self.patch_embed(x))
        shape = self.cls_positional_encoding.patch_embed_shape
        for block in self.blocks:
            x, shape = block(x, shape)
        token: Tensor = self.head.sequence_pool(self.norm_embed(x))
        return token

    def classify(self, features: Tensor) -> Tensor:
        """features (M, 768) -> logits (M, 400) of Kinetics-400."""
        logits: Tensor = self.head.proj(features)
        return logits


def _pool_in_float32(net: nn.Module) -> None:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AvgPool3d:
                setattr(parent, name, FloatAvgPool3d(child.kernel_size, child.stride, child.padding))


def _with_plain_numbers(net: nn.Module) -> None:
    """X3D's strides and kernels are numpy's numbers. torch.compile takes them for tensors and breaks at every block."""
    for module in net.modules():
        for name in ("kernel_size", "stride"):
            sides = getattr(module, name, None)
            if isinstance(sides, tuple):
                setattr(module, name, tuple(int(side) for side in sides))
