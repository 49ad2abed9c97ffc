"""ResNet-50 over single frames (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385), TSN's net in mmaction2."""

import re

import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3 with the stride (torchvision's "v1.5"), 1x1. x (N, C, h, w) -> (N, 4 width, ...)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The ReLU behind the sum is part of the block."""
        residual = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + residual, inplace=True)


class ResNet50(nn.Module):
    """(M, 3, T, h, w) -> (M, 2048), the mean over the frames. Key names are torchvision's.

    The mean of features has the mean of the frames' logits: it is TSN's average consensus.
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = (_stage(i, n) for i, n in enumerate((3, 4, 6, 3)))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features, before dropout and classifier."""
        clips, frames = x.shape[0], x.shape[2]
        x = x.movedim(2, 1).flatten(0, 1)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3)).reshape(clips, frames, -1).mean(dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """(M, 2048) -> logits (M, classes)."""
        logits: Tensor = self.fc(features)
        return logits


def _stage(stage: int, count: int) -> nn.Sequential:
    width = 64 << stage
    first = Bottleneck(2 * width, width, 2) if stage else Bottleneck(64, width, 1)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(count - 1)))


def from_mmaction2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmaction2's names (`backbone.layer1.0.conv1.bn.weight`, `cls_head.fc_cls.weight`) -> torchvision's.

    Names that are torchvision's stay as they are, and so do unknown ones, for strict loading to refuse.
    """
    return {_key_of(name): value for name, value in state.items()}


def _key_of(name: str) -> str:
    if name.startswith("cls_head.fc_cls."):
        return name.replace("cls_head.fc_cls", "fc")
    name = name.removeprefix("backbone.")
    name = re.sub(r"\bdownsample\.(conv|bn)\.", lambda found: f"downsample.{int(found[1] == 'bn')}.", name)
    name = re.sub(r"\bconv(\d)\.conv\.", r"conv\1.", name)
    return re.sub(r"\bconv(\d)\.bn\.", r"bn\1.", name)
