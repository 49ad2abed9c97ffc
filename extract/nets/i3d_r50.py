"""I3D on ResNet-50, plain and with non-local blocks (Wang et al., CVPR 2018, https://arxiv.org/abs/1711.07971).

Caffe2's 32 x 2 net of the video-nonlocal-net zoo: time is halved in the stem and by both max-pools, space as in
ResNet-50.
"""

import re

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

_EPS = 1.0000001e-5  # Caffe2's, just above cuDNN's least, 1e-5
_TEMPORAL = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))
"""For each block of the four stages whether its first convolution sees 3 frames or 1."""
_NON_LOCAL = ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5))
"""(stage, block) pairs that a non-local block follows."""


class NonLocal(nn.Module):
    """Adds to every position what it attends to in the whole clip: equations 3 and 6 of the paper (embedded Gaussian).

    x (M, C, T, h, w) -> the same shape. Keys and values are max-pooled 2 x 2 in space (section 3.3), C / 2 wide, and
    dot products are divided by sqrt(C / 2), which the zoo's configuration does and the paper's equation does not.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 2
        self.theta = nn.Conv3d(width, inner, 1)
        self.phi = nn.Conv3d(width, inner, 1)
        self.g = nn.Conv3d(width, inner, 1)
        self.out = nn.Conv3d(inner, width, 1)
        self.bn = nn.BatchNorm3d(width, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """The residual is added without a ReLU behind it."""
        pooled = F.max_pool3d(x, (1, 2, 2))
        found = F.scaled_dot_product_attention(_rows(self.theta(x)), _rows(self.phi(pooled)), _rows(self.g(pooled)))
        found = found[:, 0].transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        added: Tensor = self.bn(self.out(found))
        return x + added


def _rows(x: Tensor) -> Tensor:
    """(M, C, T, h, w) -> (M, 1, T h w, C), one head of attention."""
    return x.flatten(2).transpose(1, 2)[:, None]


class Bottleneck(nn.Module):
    """Residual block: (3 or 1, 1, 1), (1, 3, 3) with the stride, (1, 1, 1). x (M, C, T, h, w) -> (M, 4 width, ...)."""

    def __init__(self, inputs: int, width: int, *, temporal: int, stride: int, non_local: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv3d(inputs, width, (1 + 2 * temporal, 1, 1), padding=(temporal, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(width, _EPS)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width, _EPS)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs, _EPS)
        self.downsample = None
        if inputs != outputs:
            shortcut = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(outputs, _EPS))
        self.nl = NonLocal(outputs) if non_local else None

    def forward(self, x: Tensor) -> Tensor:
        """The non-local block follows the last ReLU."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = F.relu(self.bn3(self.conv3(out)) + residual, inplace=True)
        return out if self.nl is None else self.nl(out)


class I3DResNet50(nn.Module):
    """(M, 3, T, h, w) -> (M, 2048), T >= 7. Key names are those of the converted weights: `layer1.0.conv1.weight`."""

    def __init__(self, *, non_local: bool = False, classes: int = 400) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (5, 7, 7), 2, (2, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64, _EPS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (_stage(stage, non_local) for stage in (1, 2, 3, 4))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features: the mean over what is left of time and space, before dropout and classifier."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool3d(x, (2, 3, 3), 2)
        x = F.max_pool3d(self.layer1(x), (2, 1, 1))
        return torch.mean(self.layer4(self.layer3(self.layer2(x))), dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:
        """(M, 2048) -> logits (M, classes)."""
        logits: Tensor = self.fc(features)
        return logits


def _stage(stage: int, non_local: bool) -> nn.Sequential:
    width = 32 << stage
    inputs = 64 if stage == 1 else 2 * width
    blocks = nn.Sequential()
    for block, temporal in enumerate(_TEMPORAL[stage - 1]):
        stride = 2 if stage > 1 and block == 0 else 1
        attends = non_local and (stage, block) in _NON_LOCAL
        blocks.append(Bottleneck(inputs, width, temporal=temporal, stride=stride, non_local=attends))
        inputs = 4 * width
    return blocks


_WHOLE = {"conv1": "conv1", "res_conv1_bn": "bn1", "pred": "fc"}
_PARTS = {
    "branch1": "downsample.0",
    "branch1_bn": "downsample.1",
    **{f"branch2{letter}": f"conv{i}" for i, letter in enumerate("abc", 1)},
    **{f"branch2{letter}_bn": f"bn{i}" for i, letter in enumerate("abc", 1)},
    **{part: f"nl.{part}" for part in ("theta", "phi", "g", "out", "bn")},
}
# "riv" abbreviates "running inverse variance", and Caffe2 keeps the running variance in it
_KINDS = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_TRAINING = ("lr", "model_iter")  # where Caffe2's training stood


def from_caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's blobs, or a state dict with our names already -> a state dict with our names.

    A name that is neither stays as it is, for strict loading to refuse.
    """
    if "conv1_w" not in state:
        return state
    return {_key_of(name): blob for name, blob in state.items() if name not in _TRAINING}


def _key_of(name: str) -> str:
    layer, _, kind = name.rpartition("_")
    found = re.fullmatch(r"(?:res|nonlocal_conv)([2-5])_(\d)_(\w+)", layer)
    if found and found[3] in _PARTS:
        layer = f"layer{int(found[1]) - 1}.{found[2]}.{_PARTS[found[3]]}"
    else:
        layer = _WHOLE.get(layer, "")
    return f"{layer}.{_KINDS[kind]}" if layer and kind in _KINDS else name
