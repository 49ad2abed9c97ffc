"""I3D Inception-V1 (Carreira and Zisserman, CVPR 2017, https://arxiv.org/abs/1705.07750) as six projects run it.

One net, and features that do not mix: the presets differ in resizing, crops and their order, frame rate, length, tail,
and in the ports' two departures from the trained net. Ports before September 2020 have batch norms with an epsilon of
1e-5 instead of 1e-3 (kinetics_i3d_pytorch, pull request 27), and padding that does not depend on the input's size,
which matters where 4 does not divide the clip's length.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data.crops import ORDERS
from data.types import FeatureSpec
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.flow import ALGORITHMS, BOUND, QUANTISATIONS
from extract.nets.i3d import PADDINGS, InceptionI3D, rename

_TRAINED = {"bn_eps": 1e-3, "padding": "same"}
_OLD_PORT = {"bn_eps": 1e-5, "padding": "static"}
_TVL1 = {"flow": "tvl1", "quantise": "denseflow", "flow_weights": ""}
_SCALE: dict[str, Any] = {"mean": (127.5,) * 3, "std": (127.5,) * 3}  # x * 2 / 255 - 1


class _I3D(Net):
    """What the presets share. Tap: Mixed_5c, mean over space and over the published head's windows of time."""

    weight_files = ("i3d_rgb_imagenet", "i3d_rgb_hassony", "i3d_rgb_charades")
    switches = _TRAINED
    min_frames = 9  # below, Mixed_5c has one step of time, and the head's windows hold two
    gmac = 27.83
    params_m = 12.697
    paper = "https://arxiv.org/abs/1705.07750"
    licence = "Apache-2.0"

    def build(self) -> nn.Module:
        """The 400-class net."""
        return self._inception(3)

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """piergiaj's or hassony2's names, of a net with any number of classes."""
        named = rename(state)
        bias = named.get("logits.conv3d.bias")
        if bias is not None and isinstance(self.net, InceptionI3D):
            self.net.fit_classifier(bias.numel())
        return named

    def check(self, spec: FeatureSpec) -> None:
        """An epsilon, a padding, and a clip that is long enough for it."""
        super().check(spec)
        eps, padding = spec.options["bn_eps"], spec.options["padding"]
        if isinstance(eps, (str, bool)) or not 0 < eps < 1:
            raise BackboneError(f"{spec.backbone}: bn_eps must be a number such as 1e-3 or 1e-5, got {eps!r}")
        _one_of(spec, "padding", PADDINGS)
        if padding == "static" and spec.clip_len < 10:
            raise BackboneError(
                f"{spec.backbone} with padding=static needs clips of 10 frames or more, got clip_len={spec.clip_len}"
            )

    def _inception(self, channels: int) -> InceptionI3D:
        return InceptionI3D(channels, bn_eps=float(self.options["bn_eps"]), padding=str(self.options["padding"]))


class _I3DFlow(_I3D):
    """The flow stream: `flow` names the algorithm, `quantise` what is done to its pixels (extract.flow)."""

    weight_files = ("i3d_flow_imagenet", "i3d_flow_hassony", "i3d_flow_charades")
    switches = {**_TRAINED, **_TVL1}  # noqa: RUF012  # as the base declares it
    gmac = 25.63
    params_m = 12.675

    def build(self) -> nn.Module:
        """The 400-class net of two channels."""
        return self._inception(2)

    def check(self, spec: FeatureSpec) -> None:
        """Also a flow that exists. Completes the spec: eight bits become 2 q / 255 - 1, pixels are divided by 20."""
        super().check(spec)
        _one_of(spec, "flow", tuple(ALGORITHMS))
        _one_of(spec, "quantise", QUANTISATIONS)
        mean, std = ((), (BOUND,) * 2) if self._in_pixels else ((127.5,) * 2, (127.5,) * 2)
        self.spec = replace(spec, mean=mean, std=std)

    def normalise(self, crops: Tensor) -> Tensor:
        """(K, T, h, w, 2), float32 pixels in [-20, 20] for quantise="none" and uint8 else -> (K, 2, T, h, w) in
        [-1, 1], in the net's precision. Raises ValueError on the other kind."""
        wanted = torch.float32 if self._in_pixels else torch.uint8
        if crops.dtype != wanted:
            raise ValueError(
                f"{self.spec.backbone} with quantise={self.options['quantise']} takes flow as {wanted}, "
                f"got {crops.dtype}; read it with extract.flow.FlowReader and the same quantise"
            )
        return super().normalise(crops.clamp(-BOUND, BOUND) if self._in_pixels else crops)

    @property
    def _in_pixels(self) -> bool:
        return self.options["quantise"] == "none"


def _one_of(spec: FeatureSpec, name: str, allowed: tuple[str, ...]) -> None:
    if spec.options[name] not in allowed:
        raise BackboneError(f"{spec.backbone}: {name} must be one of {', '.join(allowed)}, got '{spec.options[name]}'")


@backbones.register("i3d_rocng")
class I3DRocng(_I3D):
    """I3D Inception RGB (Kinetics-400), as Roc-Ng's UCF-Crime features, ten crops, 1024-d.

    The features of DeepMIL, UR-DMU, PEL4VAD, BN-WVAD: 16 frames, T = floor(n / 16), crop 0 the centre, 1 to 4 the
    corners, 5 to 9 their mirrors. Their author documents neither the resizing nor which corner is which: short side
    256 as in Kinetics' own recipe, corners in reading order. Nine of the published 290 test videos have one clip less.
    """

    crop_order = "center_first"
    recipe = FeatureSpec(
        backbone="i3d_rocng",
        dim=1024,
        tail="drop",
        resize="short256:pil_bilinear",
        crops=ORDERS["center_first"],
        **_SCALE,
    )


@backbones.register("i3d_rocng_flow")
class I3DRocngFlow(_I3DFlow):
    """I3D Inception flow (Kinetics-400), the companion of `i3d_rocng`, ten crops, 1024-d.

    TV-L1 at the resized size, which Kinetics' flow net was trained on, as eight bits; n frames have n - 1 flows:
    T = (n - 1) // 16, one clip less than RGB has where 16 divides n.
    """

    crop_order = "center_first"
    recipe = replace(I3DRocng.recipe, backbone="i3d_rocng_flow", modality="flow", tail="drop_one", mean=(), std=())


@backbones.register("i3d_xd")
class I3DXd(_I3D):
    """I3D Inception RGB (Kinetics-400), as the XD-Violence features, at 24 frames/s, five crops, 1024-d.

    Centre and corners, no mirrors; T = (n - 1) // 16, which is the flow's count, so that the two streams agree. Their
    authors document neither the resizing nor which corner is which: as `i3d_rocng`.
    """

    crop_order = "center_first"
    recipe = replace(I3DRocng.recipe, backbone="i3d_xd", tail="drop_one", fps=24.0, crops=ORDERS["center_first"][:5])


@backbones.register("i3d_xd_flow")
class I3DXdFlow(_I3DFlow):
    """I3D Inception flow (Kinetics-400), as the XD-Violence features, at 24 frames/s, five crops, 1024-d.

    As `i3d_xd`, on TV-L1 flow of the resized frames as eight bits. The algorithm's parameters are OpenCV's.
    """

    crop_order = "center_first"
    recipe = replace(I3DXd.recipe, backbone="i3d_xd_flow", modality="flow", mean=(), std=())


@backbones.register("i3d_vf")
class I3DVideoFeatures(_I3D):
    """I3D Inception RGB (Kinetics-400), as video_features runs it by default, centre crop, 1024-d.

    Stacks of 64 frames that must be followed by one more, the last partial stack dropped; batch norms with epsilon
    1e-5 and static padding, as in the port it uses. clip_len=16, stride=16 and crops=10 for what PEL4VAD's ShanghaiTech
    features were made with (its order of crops is another one).
    """

    weight_files = ("i3d_rgb_hassony", "i3d_rgb_imagenet", "i3d_rgb_charades")
    switches = _OLD_PORT
    gmac = 111.33
    crop_order = "center_first"
    recipe = replace(I3DRocng.recipe, backbone="i3d_vf", clip_len=64, stride=64, tail="drop_one", crops=("center",))


@backbones.register("i3d_vf_flow")
class I3DVideoFeaturesFlow(_I3DFlow):
    """I3D Inception flow (Kinetics-400), as video_features runs it, on RAFT flow, centre crop, 1024-d.

    As `i3d_vf`; flow of the resized frames, round(128 + 255 / 40 f). Its RAFT was trained by the authors of RAFT on
    Sintel; flow=raft is torchvision's RAFT-large, another training of the same net.
    """

    weight_files = ("i3d_flow_hassony", "i3d_flow_imagenet", "i3d_flow_charades")
    switches = {**_OLD_PORT, **_TVL1, "flow": "raft", "quantise": "round128"}  # noqa: RUF012  # as the base declares it
    gmac = 102.52
    crop_order = "center_first"
    recipe = replace(I3DVideoFeatures.recipe, backbone="i3d_vf_flow", modality="flow", mean=(), std=())


@backbones.register("i3d_urdmu")
class I3DUrdmu(_I3D):
    """I3D Inception RGB (Kinetics-400), as UR-DMU's own extractor runs it, ten crops, 1024-d.

    340 x 256 whatever the aspect, crops in the order of `oversample`, the last frame repeated: T = ceil(n / 16); batch
    norms with epsilon 1e-5 and static padding; its filter is Pillow's ANTIALIAS, which means Lanczos. One step is not
    reproduced: the original goes through JPEG files of quality 95 (1.0 grey level of mean error). It refuses videos of
    16 frames or fewer, which have one clip here.
    """

    weight_files = ("i3d_rgb_hassony", "i3d_rgb_imagenet", "i3d_rgb_charades")
    switches = _OLD_PORT
    crop_order = "oversample"
    recipe = FeatureSpec(
        backbone="i3d_urdmu",
        dim=1024,
        tail="repeat",
        resize="340x256:pil_lanczos",
        crops=ORDERS["oversample"],
        **_SCALE,
    )
