"""CLIP's image side as a backbone (Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020)."""

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from data.types import FeatureSpec
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.nets.clip import VisionTransformer, visual_side

FRAMES = ("middle", "first", "mean")


class Clip(Net):
    """One of OpenAI's vision transformers; the presets below say which.

    Switch `frames`, because nobody agrees on it: "middle", the frame clip_len // 2 of a clip; "first"; or "mean", the
    mean of all its frames' features. Features are not L2-normalised: heads that want it do it.

    Frames are prepared as in the official code: short side 224 by PIL's bicubic filter, torchvision's centre crop.
    """

    crop_order = "torchvision"
    switches: ClassVar[dict[str, str]] = {"frames": "middle"}
    paper = "https://arxiv.org/abs/2103.00020"
    licence = "MIT"
    patch: ClassVar[int]
    width: ClassVar[int]
    layers: ClassVar[int]

    def build(self) -> nn.Module:
        """The image side."""
        return VisionTransformer(patch=self.patch, width=self.width, layers=self.layers, dim=self.recipe.dim)

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `visual.` tensors of a published file, in float32."""
        return visual_side(state)

    def check(self, spec: FeatureSpec) -> None:
        """Raises BackboneError on a switch `frames` that does not exist."""
        super().check(spec)
        if spec.options["frames"] not in FRAMES:
            raise BackboneError(f"frames must be one of {', '.join(FRAMES)}, got '{spec.options['frames']}'")

    def prepare(self, clip: Tensor) -> Tensor:
        """(T, H, W, 3) -> (K, 3, 1, 224, 224), or (K, 3, T, 224, 224) for the mean."""
        # chosen before resizing: 1 of 16 frames is all the work there is
        if self.options["frames"] == "middle":
            clip = clip[len(clip) // 2, None]
        elif self.options["frames"] == "first":
            clip = clip[:1]
        return super().prepare(clip)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, 3, T, 224, 224) with T the frames that the module sees."""
        return (1, 3, self.spec.clip_len if self.options["frames"] == "mean" else 1, self.crop_size, self.crop_size)


_RECIPE = FeatureSpec(
    backbone="clip_b16",
    dim=512,
    resize="short224:pil_bicubic",
    crops=("center",),
    mean=tuple(255 * v for v in (0.48145466, 0.4578275, 0.40821073)),
    std=tuple(255 * v for v in (0.26862954, 0.26130258, 0.27577711)),
)


@backbones.register("clip_b16")
class ClipB16(Clip):
    """CLIP ViT-B/16's image side (OpenAI), 512-d: one frame of 16, or their mean; as in VadCLIP."""

    recipe = _RECIPE
    weight_files = ("clip_vit_b16",)
    patch, width, layers = 16, 768, 12
    gmac, params_m = 17.56, 86.19


@backbones.register("clip_b32")
class ClipB32(Clip):
    """CLIP ViT-B/32's image side (OpenAI), 512-d: one frame of 16, or their mean."""

    recipe = replace(_RECIPE, backbone="clip_b32")
    weight_files = ("clip_vit_b32",)
    patch, width, layers = 32, 768, 12
    gmac, params_m = 4.41, 87.85


@backbones.register("clip_l14")
class ClipL14(Clip):
    """CLIP ViT-L/14's image side (OpenAI), 768-d: one frame of 16, or their mean."""

    recipe = replace(_RECIPE, backbone="clip_l14", dim=768)
    weight_files = ("clip_vit_l14",)
    patch, width, layers = 14, 1024, 24
    gmac, params_m = 81.01, 303.97
