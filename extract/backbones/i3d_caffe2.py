"""I3D on ResNet-50 with Caffe2's Kinetics weights: the features of RTFM, S3R, MGFN and TEVAD.

Two recipes go by one name in the field. RTFM's author feeds the net as it was trained (RTFM issues 21, 33, 46). The
extractor that most people use instead (GowthamGottimukkala's) scales to [-1, 1], where the net was trained on
[-2, 2.4], and squeezes the picture to 340 x 256. Their features do not mix.
"""

from typing import ClassVar

from torch import Tensor, nn

from data.crops import ORDERS
from data.types import FeatureSpec
from extract.backbones.base import backbones
from extract.backbones.net import Net
from extract.nets.i3d_r50 import I3DResNet50, from_caffe2


class _I3DResNet50(Net):
    """What the presets share. Tap: the mean over time and space, before dropout and classifier."""

    non_local: ClassVar[bool] = False
    weight_files = ("i3d_r50_caffe2",)
    min_frames = 7  # below, nothing is left of time behind the second max-pool
    gmac = 16.49
    params_m = 28.04
    paper = "https://arxiv.org/abs/1711.07971"
    licence = "CC-BY-NC-4.0 (the weights)"

    def build(self) -> nn.Module:
        """The net, with as many classes as the weights have."""
        bias = from_caffe2(self.state or {}).get("fc.bias")
        return I3DResNet50(non_local=self.non_local, classes=400 if bias is None else bias.numel())

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Caffe2's blobs, or weights converted to torch (Tushar-N/pytorch-resnet3d's names)."""
        return from_caffe2(state)


@backbones.register("i3d_rtfm")
class I3DRtfm(_I3DResNet50):
    """I3D ResNet-50 (Caffe2, Kinetics-400) fed as RTFM's author did, ten crops, 2048-d.

    Short side 256, torchvision's TenCrop, (x - 114.75) / 57.375; 16 frames, a short last clip loops: T = ceil(n / 16).
    """

    crop_order = "torchvision"
    recipe = FeatureSpec(
        backbone="i3d_rtfm",
        dim=2048,
        tail="loop",
        resize="short256:pil_bilinear",
        crops=ORDERS["torchvision"],
        mean=(114.75,) * 3,
        std=(57.375,) * 3,
    )


@backbones.register("i3d_rtfm_nl")
class I3DRtfmNonLocal(_I3DResNet50):
    """I3D ResNet-50 with non-local blocks (Caffe2, Kinetics-400), fed as `i3d_rtfm`, ten crops, 2048-d.

    The zoo's better classifier (Kinetics-400 top-1 74.9 % against 73.6 %); no published features are known to be its.
    """

    non_local = True
    weight_files = ("i3d_r50_nl_caffe2",)
    gmac = 19.81
    params_m = 35.40
    crop_order = "torchvision"
    recipe = FeatureSpec(
        backbone="i3d_rtfm_nl",
        dim=2048,
        tail="loop",
        resize="short256:pil_bilinear",
        crops=ORDERS["torchvision"],
        mean=(114.75,) * 3,
        std=(57.375,) * 3,
    )


@backbones.register("i3d_gowtham")
class I3DGowtham(_I3DResNet50):
    """I3D ResNet-50 (Caffe2, Kinetics-400) fed as GowthamGottimukkala's extractor does, ten crops, 2048-d.

    For comparison with features made by that extractor (TEVAD's, many a reimplementation's): 340 x 256 whatever the
    aspect, by Pillow's ANTIALIAS, which means Lanczos; x * 2 / 255 - 1, which is 2.22 times smaller than in training;
    T = floor(n / 16). One step is not reproduced: the original goes through JPEG files at ffmpeg's default quality
    (4.6 to 6.1 grey levels of mean error). It refuses videos of 16 frames or fewer, which have one clip here.
    """

    crop_order = "oversample"
    recipe = FeatureSpec(
        backbone="i3d_gowtham",
        dim=2048,
        tail="drop",
        resize="340x256:pil_lanczos",
        crops=ORDERS["oversample"],
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
    )
