"""torchvision's video nets up to their features.

Each class takes over the parts of a whole net of `torchvision.models.video`, the classifier among them, under the names
that its published weights use, and stops in front of that classifier.
"""

from typing import Any

from torch import Tensor, nn


class Swin3d(nn.Module):
    """Video Swin (Liu et al., CVPR 2022, https://arxiv.org/abs/2106.13230): its last norm, then mean over T, H, W."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.patch_embed = whole.patch_embed
        self.features = whole.features
        self.norm = whole.norm
        self.head = whole.head

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, T, h, w) -> features (M, D)."""
        tokens: Tensor = self.norm(self.features(self.patch_embed(x)))  # (M, T/2, h/32, w/32, D)
        return tokens.mean(dim=(1, 2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """features (M, D) -> logits (M, 400) of Kinetics-400."""
        logits: Tensor = self.head(features)
        return logits


class S3d(nn.Module):
    """S3D (Xie et al., ECCV 2018, https://arxiv.org/abs/1712.04851): mean over its (2, 7, 7) average pooling."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.features = whole.features
        self.avgpool = whole.avgpool
        self.classifier = whole.classifier

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, T, h, w) -> features (M, 1024)."""
        # in float32: on a CPU average pooling has no kernel for bfloat16 and float16
        pooled: Tensor = self.avgpool(self.features(x).float())
        return pooled.mean(dim=(2, 3, 4)).to(x.dtype)

    def classify(self, features: Tensor) -> Tensor:
        """features (M, 1024) -> logits (M, 400) of Kinetics-400."""
        logits: Tensor = self.classifier(features[:, :, None, None, None])
        return logits.flatten(1)


class ResNet18(nn.Module):
    """R3D, MC3 and R(2+1)D of 18 layers (Tran et al., CVPR 2018, https://arxiv.org/abs/1711.11248): mean of layer4."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.stem = whole.stem
        self.layer1 = whole.layer1
        self.layer2 = whole.layer2
        self.layer3 = whole.layer3
        self.layer4 = whole.layer4
        self.fc = whole.fc

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, T, h, w) -> features (M, 512)."""
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return last.mean(dim=(2, 3, 4))

    def classify(self, features: Tensor) -> Tensor:
        """features (M, 512) -> logits (M, 400) of Kinetics-400."""
        logits: Tensor = self.fc(features)
        return logits


class Mvit(nn.Module):
    """MViTv2 (Li et al., CVPR 2022, https://arxiv.org/abs/2112.01526): its class token after the last norm.

    T, h and w are those of its position tables.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.conv_proj = whole.conv_proj
        self.pos_encoding = whole.pos_encoding
        self.blocks = whole.blocks
        self.norm = whole.norm
        self.head = whole.head

    def forward(self, x: Tensor) -> Tensor:
        """x (M, 3, 16, 224, 224) -> features (M, 768)."""
        x = self.pos_encoding(self.conv_proj(x).flatten(2).transpose(1, 2))
        shape = (self.pos_encoding.temporal_size, *self.pos_encoding.spatial_size)
        for block in self.blocks:
            x, shape = block(x, shape)
        tokens: Tensor = self.norm(x)
        return tokens[:, 0]

    def classify(self, features: Tensor) -> Tensor:
        """features (M, 768) -> logits (M, 400) of Kinetics-400."""
        logits: Tensor = self.head(features)
        return logits
