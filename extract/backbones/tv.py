"""torchvision's video nets, trained on Kinetics-400 (https://docs.pytorch.org/vision/stable/models.html).

Sizes, means and deviations are those of the transforms that torchvision documents with each file of weights; it tests
them at 15 frames/s (MViT 7.5), here every second (fourth) frame of 30. torchvision resizes these nets' frames without
antialiasing, and so do we, at most one grey level off (`resize="short256:pil_bilinear"` for PIL's antialiased filter).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from data.types import FeatureSpec
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.nets.tv import Mvit, ResNet18, S3d, Swin3d
from extract.shim import import_torchvision

_Values = Mapping[str, tuple[float, ...]]
_KINETICS: _Values = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
_IMAGENET: _Values = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_GRAY: _Values = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


def _recipe(name: str, dim: int, frames: int, rate: int, resize: str, values: _Values) -> FeatureSpec:
    return FeatureSpec(
        backbone=name,
        dim=dim,
        clip_len=frames,
        step=rate,
        stride=frames * rate,
        fps=30.0,
        resize=f"{resize}:cv2_linear",
        crops=("center",),
        mean=tuple(round(255 * v, 6) for v in values["mean"]),
        std=tuple(round(255 * v, 6) for v in values["std"]),
    )


class _TorchVision(Net):
    crop_order = "torchvision"
    licence = "BSD-3-Clause (torchvision)"

    def whole(self) -> Any:
        """The net as torchvision makes it; a preset has the name of torchvision's function."""
        import_torchvision()
        from torchvision.models import video

        return getattr(video, self.recipe.backbone)()


class _Swin3d(_TorchVision):
    paper = "https://arxiv.org/abs/2106.13230"

    def build(self) -> nn.Module:
        """The net up to the norm in front of its classifier."""
        return Swin3d(self.whole())


@backbones.register("swin3d_t")
class Swin3dT(_Swin3d):
    """Video Swin-T 32x2 of torchvision (Kinetics-400), 224 px centre crop of a 256 px short side, 768-d."""

    recipe = _recipe("swin3d_t", 768, 32, 2, "short256", _IMAGENET)
    weight_files = ("swin3d_t",)
    gmac = 87.76
    params_m = 28.158


@backbones.register("swin3d_s")
class Swin3dS(_Swin3d):
    """Video Swin-S 32x2 of torchvision (Kinetics-400), 224 px centre crop of a 256 px short side, 768-d."""

    recipe = _recipe("swin3d_s", 768, 32, 2, "short256", _IMAGENET)
    weight_files = ("swin3d_s",)
    gmac = 165.68
    params_m = 49.817


@backbones.register("swin3d_b")
class Swin3dB(_Swin3d):
    """Video Swin-B 32x2 of torchvision (Kinetics-400), 224 px centre crop of a 256 px short side, 1024-d.

    Takes the weights that were first trained on ImageNet-22k (swin3d_b_22k-7c6ae6fa.pth) as well.
    """

    recipe = _recipe("swin3d_b", 1024, 32, 2, "short256", _IMAGENET)
    weight_files = ("swin3d_b",)
    gmac = 281.33
    params_m = 88.049


@backbones.register("s3d")
class S3dNet(_TorchVision):
    """S3D of torchvision (Kinetics-400), 16x2 at 224 px, centre crop of 256x256 pixels whatever the aspect, 1024-d.

    torchvision tests it on clips of 128 frames; its head averages over time, `clip_len=128` does so too.
    """

    recipe = _recipe("s3d", 1024, 16, 2, "256x256", _KINETICS)
    weight_files = ("s3d",)
    min_frames = 13
    gmac = 17.98
    params_m = 8.320
    paper = "https://arxiv.org/abs/1712.04851"

    def build(self) -> nn.Module:
        """The net up to the pooling in front of its classifier."""
        return S3d(self.whole())


class _ResNet18(_TorchVision):
    crop_size = 112
    paper = "https://arxiv.org/abs/1711.11248"

    def build(self) -> nn.Module:
        """The net up to the pooling in front of its classifier."""
        return ResNet18(self.whole())


@backbones.register("r3d_18")
class R3d18(_ResNet18):
    """R3D-18 of torchvision (Kinetics-400), 16x2, 112 px centre crop of 171x128 pixels, 512-d."""

    recipe = _recipe("r3d_18", 512, 16, 2, "171x128", _KINETICS)
    weight_files = ("r3d_18",)
    gmac = 40.70
    params_m = 33.371


@backbones.register("mc3_18")
class Mc318(_ResNet18):
    """MC3-18 of torchvision (Kinetics-400), 16x2, 112 px centre crop of 171x128 pixels, 512-d."""

    recipe = _recipe("mc3_18", 512, 16, 2, "171x128", _KINETICS)
    weight_files = ("mc3_18",)
    gmac = 43.34
    params_m = 11.695


@backbones.register("r2plus1d_18")
class R2Plus1d18(_ResNet18):
    """R(2+1)D-18 of torchvision (Kinetics-400), 16x2, 112 px centre crop of 171x128 pixels, 512-d."""

    recipe = _recipe("r2plus1d_18", 512, 16, 2, "171x128", _KINETICS)
    weight_files = ("r2plus1d_18",)
    gmac = 40.52
    params_m = 31.505


@backbones.register("mvit_v2_s")
class MvitV2S(_TorchVision):
    """MViTv2-S 16x4 of torchvision (Kinetics-400), 224 px centre crop of a 256 px short side, 768-d."""

    recipe = _recipe("mvit_v2_s", 768, 16, 4, "short256", _GRAY)
    weight_files = ("mvit_v2_s",)
    min_frames = 16
    gmac = 64.22
    params_m = 34.538
    paper = "https://arxiv.org/abs/2112.01526"

    def check(self, spec: FeatureSpec) -> None:
        """Its position tables are for 16 frames."""
        if spec.clip_len != 16:
            raise BackboneError(f"{spec.backbone} takes clips of 16 frames alone, got clip_len={spec.clip_len}")

    def build(self) -> nn.Module:
        """The net up to its class token."""
        return Mvit(self.whole())
