"""Temporal segment networks (Wang et al., ECCV 2016, https://arxiv.org/abs/1608.00859): single frames and short stacks.

A clip longer than a net's stack is cut into stacks, and their features are averaged: TSN's segmental consensus.
"""

import torch
from torch import Tensor, nn

from data.crops import ORDERS
from data.types import FeatureSpec
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.catalogue import WeightsError
from extract.flow import ALGORITHMS
from extract.nets.bn_inception import BNInception, from_published, inflate
from extract.nets.resnet import ResNet50, from_mmaction2


def _classes(state: dict[str, Tensor], default: int) -> int:
    """How many classes renamed weights tell apart: ImageNet's, Kinetics', those of a user's own checkpoint."""
    return state["fc.bias"].numel() if "fc.bias" in state else default


class _BNInception(Net):
    weight_files = ("tsn_bninception_imagenet",)
    crop_order = "caffe"
    paper = "https://arxiv.org/abs/1608.00859"
    licence = "BSD-2-Clause (code); none is stated for the weights"

    def build(self) -> nn.Module:
        """The net for single frames, with as many classes as the weights have."""
        return BNInception(classes=_classes(from_published(self.state or {}), 1000))

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """ImageNet weights by TSN's authors or in Cadene's copy, or a TSN checkpoint with any number of classes."""
        return from_published(state)


@backbones.register("tsn_bninception")
class TsnBNInception(_BNInception):
    """TSN's BN-Inception on single frames (ImageNet, or a TSN checkpoint of yours), ten crops, 1024-d.

    As the GCN label-noise cleaner's extractor (Zhong et al., CVPR 2019): 340 x 256 whatever the aspect, BGR minus
    (104, 117, 128), one frame in five. Its dense mode averages all five frames: clip_len=5. Its Caffe model is a
    fine-tune whose blue, green and red mean is (104, 117, 123).
    """

    gmac = 2.04
    params_m = 11.295
    recipe = FeatureSpec(
        backbone="tsn_bninception",
        dim=1024,
        clip_len=1,
        stride=5,
        resize="340x256:cv2_linear",
        color="bgr",
        crops=ORDERS["caffe"],
        mean=(104.0, 117.0, 128.0),
    )


@backbones.register("tsn_bninception_flow")
class TsnBNInceptionFlow(_BNInception):
    """TSN's BN-Inception on stacks of five flow maps (a TSN checkpoint of yours), ten crops, 1024-d.

    TV-L1 at 340 x 256, clipped to 20 pixels, 0..255 minus 128; five flows x1, y1, x2, y2, ... every five frames. No
    trained flow net is published. `inflate` starts one from RGB weights (paper, section 3.2, "cross modality
    pre-training"): a starting point for training and a baseline, it has learned nothing about flow.
    """

    gmac = 2.31
    params_m = 11.317
    min_frames = 5
    switches = {"flow": "tvl1", "quantise": "denseflow", "flow_weights": "", "inflate": False}  # noqa: RUF012  # as the base declares it
    recipe = FeatureSpec(
        backbone="tsn_bninception_flow",
        dim=1024,
        modality="flow",
        clip_len=5,
        stride=5,
        resize="340x256:cv2_linear",
        crops=ORDERS["caffe"],
        mean=(128.0, 128.0),
    )

    def build(self) -> nn.Module:
        """The net for stacks of five flows, with as many classes as the weights have."""
        return BNInception(channels=2, stack=5, classes=_classes(from_published(self.state or {}), 1000))

    def check(self, spec: FeatureSpec) -> None:
        """Whole stacks of five, step by step, of a flow that exists."""
        super().check(spec)
        if spec.clip_len % 5:
            raise BackboneError(f"{spec.backbone} stacks 5 flows: clip_len must be a multiple, got {spec.clip_len}")
        # the eight bits that the mean of 128 belongs to
        for name, values in (("flow", tuple(ALGORITHMS)), ("quantise", ("denseflow", "round128"))):
            if spec.options[name] not in values:
                wanted = ", ".join(values)
                raise BackboneError(f"{spec.backbone}: {name} must be one of {wanted}, got '{spec.options[name]}'")

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 flow (K, T, h, w, 2) -> (K, 2, T, h, w) around 0. Raises ValueError on flow in pixels."""
        if crops.dtype != torch.uint8:
            raise ValueError(
                f"{self.spec.backbone} takes flow in eight bits, got {crops.dtype}; read it with "
                f"extract.flow.FlowReader and quantise={self.options['quantise']}"
            )
        return super().normalise(crops)

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As of RGB; with `inflate`, weights for RGB become a start for flow. Raises WeightsError without it."""
        named = super().rename(state)
        first = named.get("conv1_7x7_s2.weight")
        is_rgb = first is not None and first.ndim == 4 and first.shape[1] == 3
        if is_rgb and not self.options["inflate"]:
            raise WeightsError(
                f"{self.spec.backbone} was given weights of an RGB net: pass --weights FILE with a TSN checkpoint for "
                "flow, or the option inflate=yes to start from these"
            )
        if self.options["inflate"] and not is_rgb:
            raise WeightsError(
                f"{self.spec.backbone} was given weights of no RGB net: leave out inflate, which makes flow weights of "
                "RGB weights"
            )
        return inflate(named, 10) if is_rgb else named


@backbones.register("tsn_r50")
class TsnR50(Net):
    """TSN's ResNet-50 on single frames (mmaction2, Kinetics-400; or torchvision's ImageNet), ten crops, 2048-d.

    Short side 256, mmaction2's TenCrop, ImageNet's mean and deviation; the first frame of every 16. mmaction2 tests
    with 25 frames spread over the video, which tells nothing about when.
    """

    weight_files = ("tsn_r50_kinetics400", "resnet50_v1", "resnet50_v2")
    crop_order = "tsn"
    gmac = 4.11
    params_m = 25.557
    paper = "https://arxiv.org/abs/1608.00859"
    licence = "Apache-2.0 (mmaction2), BSD-3-Clause (torchvision)"
    recipe = FeatureSpec(
        backbone="tsn_r50",
        dim=2048,
        clip_len=1,
        stride=16,
        resize="short256:cv2_linear",
        crops=ORDERS["tsn"],
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )

    def build(self) -> nn.Module:
        """The net with as many classes as the weights have."""
        return ResNet50(classes=_classes(from_mmaction2(self.state or {}), 1000))

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """mmaction2's or torchvision's names."""
        return from_mmaction2(state)
