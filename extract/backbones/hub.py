"""The video nets of pytorchvideo's hub, trained on Kinetics-400 (https://pytorch.org/hub/facebookresearch_pytorchvideo_x3d).

Frames x rate are of 30 frames/s, RGB / 255 with mean 0.45 and deviation 0.225, short side and centre crop as the zoo
tested them. As pytorchvideo resizes, without antialiasing; its frames stay floats, ours are bytes, at most one grey
level off (`resize="short256:pil_bilinear"` for PIL's antialiased filter). Its sampler spreads the frames over a clip
from the first to the very last; here they are `step` apart, at most `step` - 1 frames earlier.
"""

from typing import Any

from torch import nn

from data.types import FeatureSpec
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.nets.hub import Blocks, Mvit, SlowFast
from extract.shim import import_pytorchvideo_hub


def _recipe(name: str, frames: int, rate: int, *, short: int = 256, dim: int = 2048) -> FeatureSpec:
    return FeatureSpec(
        backbone=name,
        dim=dim,
        clip_len=frames,
        step=rate,
        stride=frames * rate,
        fps=30.0,
        resize=f"short{short}:cv2_linear",
        crops=("center",),
        mean=(114.75,) * 3,
        std=(57.375,) * 3,
    )


class _Hub(Net):
    crop_order = "torchvision"
    crop_size = 256
    licence = "Apache-2.0 (pytorchvideo)"

    def whole(self) -> Any:
        """The net as the hub makes it; a preset has the name of the hub's function."""
        return getattr(import_pytorchvideo_hub(), self.recipe.backbone)()

    def build(self) -> nn.Module:
        """The net up to its head's pooling."""
        return Blocks(self.whole())


@backbones.register("i3d_r50")
class I3dR50(_Hub):
    """I3D ResNet-50 8x8 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2048-d.

    Not the net of the published "I3D" features: that one is Caffe2's and has other keys (`i3d_rtfm`).
    """

    recipe = _recipe("i3d_r50", 8, 8)
    weight_files = ("i3d_r50_hub",)
    min_frames = 8
    gmac = 37.10
    params_m = 28.043
    paper = "https://arxiv.org/abs/1705.07750"


@backbones.register("slow_r50")
class SlowR50(_Hub):
    """Slow pathway ResNet-50 8x8 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2048-d."""

    recipe = _recipe("slow_r50", 8, 8)
    weight_files = ("slow_r50_hub",)
    min_frames = 8
    gmac = 54.52
    params_m = 32.454
    paper = "https://arxiv.org/abs/1812.03982"


@backbones.register("slowfast_r50")
class SlowFastR50(_Hub):
    """SlowFast ResNet-50 8x8 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2304-d.

    A clip holds the fast pathway's frames, 32 at every second; the slow one sees 8 of them.
    """

    recipe = _recipe("slowfast_r50", 32, 2, dim=2304)
    weight_files = ("slowfast_r50_hub",)
    min_frames = 32
    gmac = 65.71
    params_m = 34.566
    paper = "https://arxiv.org/abs/1812.03982"

    def check(self, spec: FeatureSpec) -> None:
        """The fast pathway has four frames to each of the slow one."""
        super().check(spec)
        if spec.clip_len % 4:
            raise BackboneError(f"{spec.backbone} needs clips of a multiple of 4 frames, got clip_len={spec.clip_len}")

    def build(self) -> nn.Module:
        """Both pathways up to their concatenated pooling."""
        return SlowFast(self.whole(), self.spec.clip_len)


class _X3d(_Hub):
    paper = "https://arxiv.org/abs/2004.04730"


@backbones.register("x3d_xs")
class X3dXs(_X3d):
    """X3D-XS 4x12 of pytorchvideo's hub (Kinetics-400), 182 px centre crop, 2048-d."""

    recipe = _recipe("x3d_xs", 4, 12, short=182)
    weight_files = ("x3d_xs_hub",)
    crop_size = 182
    min_frames = 4
    gmac = 0.84
    params_m = 3.794


@backbones.register("x3d_s")
class X3dS(_X3d):
    """X3D-S 13x6 of pytorchvideo's hub (Kinetics-400), 182 px centre crop, 2048-d."""

    recipe = _recipe("x3d_s", 13, 6, short=182)
    weight_files = ("x3d_s_hub",)
    crop_size = 182
    min_frames = 13
    gmac = 2.72
    params_m = 3.794


@backbones.register("x3d_m")
class X3dM(_X3d):
    """X3D-M 16x5 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2048-d."""

    recipe = _recipe("x3d_m", 16, 5)
    weight_files = ("x3d_m_hub",)
    min_frames = 16
    gmac = 6.18
    params_m = 3.794


@backbones.register("x3d_l")
class X3dL(_X3d):
    """X3D-L 16x5 of pytorchvideo's hub (Kinetics-400), 312 px centre crop of a 356 px short side, 2048-d.

    The hub documents no transform for it. The sizes are those of PySlowFast, where it was trained, for a single crop.
    """

    recipe = _recipe("x3d_l", 16, 5, short=356)
    weight_files = ("x3d_l_hub",)
    crop_size = 312
    min_frames = 16
    gmac = 18.37
    params_m = 6.153


@backbones.register("c2d_r50")
class C2dR50(_Hub):
    """C2D ResNet-50 8x8 of pytorchvideo's hub (Kinetics-400), no temporal convolution, 256 px centre crop, 2048-d."""

    recipe = _recipe("c2d_r50", 8, 8)
    weight_files = ("c2d_r50_hub",)
    min_frames = 8
    gmac = 25.46
    params_m = 24.328
    paper = "https://arxiv.org/abs/1711.07971"


@backbones.register("csn_r101")
class CsnR101(_Hub):
    """Channel-separated ResNet-101 32x2 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2048-d."""

    recipe = _recipe("csn_r101", 32, 2)
    weight_files = ("csn_r101_hub",)
    min_frames = 25
    gmac = 73.75
    params_m = 22.214
    paper = "https://arxiv.org/abs/1904.02811"


@backbones.register("r2plus1d_r50")
class R2Plus1dR50(_Hub):
    """R(2+1)D ResNet-50 16x4 of pytorchvideo's hub (Kinetics-400), 256 px centre crop, 2048-d."""

    recipe = _recipe("r2plus1d_r50", 16, 4)
    weight_files = ("r2plus1d_r50_hub",)
    min_frames = 13
    gmac = 75.15
    params_m = 28.108
    paper = "https://arxiv.org/abs/1711.11248"


@backbones.register("mvit_base_16x4")
class MvitBase16x4(_Hub):
    """MViT-B 16x4 of pytorchvideo's hub (Kinetics-400), 224 px centre crop of a 256 px short side, 768-d."""

    recipe = _recipe("mvit_base_16x4", 16, 4, dim=768)
    weight_files = ("mvit_base_16x4_hub",)
    crop_size = 224
    min_frames = 16
    gmac = 70.60
    params_m = 36.611
    paper = "https://arxiv.org/abs/2104.11227"

    def check(self, spec: FeatureSpec) -> None:
        """Its position table is for 16 frames."""
        if spec.clip_len != 16:
            raise BackboneError(f"{spec.backbone} takes clips of 16 frames alone, got clip_len={spec.clip_len}")

    def build(self) -> nn.Module:
        """The net up to its class token."""
        return Mvit(self.whole())
