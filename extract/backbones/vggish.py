"""VGGish on the sound of a video, one example per clip, as XD-Violence's audio features are made."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from data.types import FeatureSpec
from extract.audio import SoundRule
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.backbones.settings import Option
from extract.logmel import EXAMPLE, HOP, RATE, ROWS, log_mel_on_device
from extract.nets.vggish import VGGish as VGGishNet

_FIXED: dict[str, Option] = {"rate": RATE, "window": EXAMPLE, "resampler": "swr"}


@backbones.register("vggish")
class VGGish(Net):
    """VGGish on log-mel sound, 128-d behind the last ReLU, without PCA; one 0.96 s window per 16 frames.

    A window ends where its clip does and overlaps the one before it, as in the features published with XD-Violence
    (Wu et al., ECCV 2020); `align` and `missing` are explained in `extract.audio`. With align="hop" the examples are
    those of the AudioSet release, one after the other, and each clip has the one that its middle lies in.

    A clip is 16 frames and a last, shorter one counts, so that a video has at least as many as in any other preset at
    16 frames; what has fewer (features of XD-Violence: (F - 1) // 16) is fused by leaving out the surplus at the end.
    """

    paper = "https://arxiv.org/abs/1609.09430"
    licence = "Apache-2.0"
    gmac = 0.864
    params_m = 72.14
    recipe: ClassVar[FeatureSpec] = FeatureSpec(
        "vggish",
        128,
        modality="audio",
        options={**_FIXED, "align": "end", "missing": "error", "hop": ROWS * HOP},
    )
    switches: ClassVar[dict[str, Option]] = dict(recipe.options)
    weight_files: ClassVar[tuple[str, ...]] = ("vggish",)

    def build(self) -> nn.Module:
        """The net with its published key names."""
        return VGGishNet()

    def check(self, spec: FeatureSpec) -> None:
        """Refuses another front-end than the one the net was trained on, and windows that cannot be cut."""
        super().check(spec)
        for name, found in (("decoder", spec.decoder), ("resize", spec.resize)):
            if found != getattr(self.recipe, name):
                raise BackboneError(f"vggish hears sound, {name}={found} is for pictures; leave it out")
        for name, value in _FIXED.items():
            if spec.options[name] != value:
                raise BackboneError(f"vggish was trained with {name}={value}, got {spec.options[name]}; leave it out")
        try:
            SoundRule.of(spec)
        except ValueError as error:
            raise BackboneError(f"vggish: {error}") from error

    def prepare(self, clip: Tensor) -> Tensor:
        """A window (15600,) float32 -> log-mel (1, 1, 96, 64)."""
        if clip.shape != (EXAMPLE,) or clip.dtype != torch.float32:
            raise ValueError(f"vggish wants float32 windows ({EXAMPLE},), got {tuple(clip.shape)} {clip.dtype}")
        return log_mel_on_device(clip)[None, None].to(self._dtype)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, 1, 96, 64)."""
        return (1, 1, ROWS, 64)
