"""A small untrained 3-D net: real convolutions in milliseconds, for tests and for trying things out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.types import FeatureSpec
from extract.backbones.base import Backbone, BackboneError, backbones
from extract.device import torch_device

_DIM = 32


@backbones.register("tiny")
class Tiny(Backbone):
    """Small untrained 3-D convolution net, 32-d; for tests, it has learned nothing.

    Args:
        weights: "random:SEED".
        device: where torch runs.
        dtype: what is stored.
    """

    licence = "Apache-2.0"

    def __init__(self, *, weights: str = "random:0", device: str = "cpu", dtype: str = "float32") -> None:
        kind, _, seed = weights.partition(":")
        if kind != "random" or not (seed or "0").isdecimal():
            raise BackboneError(f"tiny is never trained: --weights random or random:SEED, got '{weights}'")
        self.device = torch_device(device)
        self.spec = FeatureSpec(
            backbone="tiny",
            dim=_DIM,
            weights=f"random:{int(seed or 0)}",
            resize="32x32:area",
            mean=(127.5,) * 3,
            std=(127.5,) * 3,
            dtype=dtype,
        )
        generator = torch.Generator().manual_seed(int(seed or 0))
        self.net = nn.Sequential(
            nn.Conv3d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv3d(16, _DIM, 3, stride=2, padding=1), nn.ReLU()
        )
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
        self.net.to(self.device).eval().requires_grad_(False)

    def extract(self, clips: NDArray[np.uint8], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """clips (B, 16, 32, 32, 3) -> (B, 1, 32)."""
        if clips.shape[1:] != (16, 32, 32, 3):
            raise ValueError(f"tiny wants clips (B, 16, 32, 32, 3), got {clips.shape}")
        x = torch.from_numpy(clips).to(self.device).permute(0, 4, 1, 2, 3).float().sub_(127.5).div_(127.5)
        # one clip at a time: a convolution may take another path, with other roundings, for another batch size
        features: Tensor = torch.cat([self.net(clip[None]).mean(dim=(2, 3, 4)) for clip in x])
        return np.asarray(features[:, None].cpu().numpy(), dtype=np.float32)
