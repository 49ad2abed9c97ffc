"""A weight-free motion descriptor: how much, how fast and how disorderly things move in a clip, wherever they do.

Optical flow is computed on every second frame (DIS, Kroeger et al., ECCV 2016) and read as velocity in frame heights
per second, so that neither the resolution nor the frame rate matters. The median velocity, a moving camera, is
subtracted. Pairs across a hard cut and repeated frames are left out. Per pair and cell of a 6 x 8 grid:

- speed, its square, and the shares of pixels faster than three limits (the magnitude histogram);
- motion boundaries: the gradients of both flow components, whole and by direction (MBH: Dalal et al., ECCV 2006);
- divergence, curl and shear (Jain, Jegou, Bouthemy, CVPR 2013);
- acceleration (compare the magnitude changes of ViF: Hassner, Itcher, Kliper-Gross, CVPRW 2012);
- common motion: the speed and the vertical speed of the cell's mean velocity, and of its mean over the clip (drift);
- change and flicker of the grey levels, in grey levels and as shares of changed pixels.

Each is pooled over time (mean, deviation, maximum) and over the cells (mean, weighted by speed, maximum, the fastest 4
and 12), which forgets where it happened; then the logarithm is taken. Beside them stand histograms of local binary
patterns in space-time (LBP-TOP: Zhao and Pietikainen, PAMI 2007) of the pixels that change, as square roots.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract.backbones.base import Backbone, BackboneError, backbones
from extract.flow_stats import (
    GRID,
    Array,
    cuts_and_repeats,
    layout,
    moving_patterns,
    pair_channels,
    pool_space,
    pool_time,
    step_channels,
)

_LINES, _COLUMNS = 120, 160
_GAP = 2  # flow over two frames: half the work, and twice the motion against the same noise
_FLOOR = np.float32(1e-3)  # below every quantity's noise; keeps the logarithm finite


@backbones.register("motion")
class Motion(Backbone):
    """Optical flow and space-time texture statistics, 470-d; no weights, runs anywhere.

    Args:
        weights: none exist.
        device: "cpu"; others are refused.
        dtype: what is stored.
    """

    paper = "Dalal et al., ECCV 2006; Hassner et al., CVPRW 2012; Zhao and Pietikainen, PAMI 2007"
    licence = "Apache-2.0"
    uses_torch = False

    def __init__(self, *, weights: str | None = None, device: str = "cpu", dtype: str = "float32") -> None:
        if weights not in (None, "none"):
            raise BackboneError(f"motion has no weights, got '{weights}'; leave --weights out")
        if device not in ("auto", "cpu"):
            raise BackboneError(f"motion runs on the CPU only, got device '{device}'; leave --device out")
        self.groups = layout()
        self.spec = FeatureSpec(
            backbone="motion",
            dim=max(group.stop for group in self.groups.values()),
            modality="flow",
            resize=f"{_COLUMNS}x{_LINES}:area",
            color="gray",
            dtype=dtype,
        )
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        # down to full resolution, which blurs motion boundaries least, and paid for by sparser patches
        self._flow.setFinestScale(0)
        self._flow.setPatchSize(8)
        self._flow.setPatchStride(5)
        self._flow.setGradientDescentIterations(6)
        self._flow.setVariationalRefinementIterations(0)

    def extract(self, clips: NDArray[np.uint8], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """clips (B, T, H, W) gray or (B, T, H, W, 3) RGB of any size, fps (B,) -> (B, 1, 470)."""
        if clips.ndim not in (4, 5) or clips.dtype != np.uint8:
            raise ValueError(
                f"motion wants uint8 clips (B, T, H, W) or (B, T, H, W, 3), got {clips.shape} {clips.dtype}"
            )
        features = [self.describe(clip, float(rate)) for clip, rate in zip(clips, fps, strict=True)]
        return np.stack(features)[:, None]

    def describe(self, clip: NDArray[np.uint8], fps: float) -> Array:
        """One clip (T, H, W) or (T, H, W, 3) -> (470,); `groups` says which dimension means what."""
        frames = [_to_size(_to_gray(frame), _COLUMNS, _LINES) for frame in clip]
        small = np.stack([_to_size(frame, GRID[1], GRID[0]) for frame in frames])  # (T, 60, 80)
        cut, repeat = cuts_and_repeats(small, _GAP)
        starts = np.arange(0, len(frames) - _GAP, _GAP)
        broken = cut[starts] | cut[starts + 1] | repeat[starts]
        valid = starts[~broken]
        unit = fps / (_GAP * _LINES) if np.isfinite(fps) and fps > 0 else 25 / (_GAP * _LINES)
        if len(valid):
            velocity = np.stack([self._pair_flow(frames[i], frames[i + _GAP]) for i in valid]) * np.float32(unit)
            change = small[valid + _GAP].astype(np.float32) - small[valid]
        else:  # nothing to go by counts as nothing moving
            velocity = np.zeros((1, *GRID, 2), np.float32)
            change = np.zeros((1, *GRID), np.float32)
        still = np.median(velocity[:, ::4, ::4], axis=(1, 2), keepdims=True)
        u, v = np.moveaxis(velocity - still, -1, 0).copy()
        pairs, drift = pair_channels(u, v, change)
        adjacent = np.flatnonzero(np.diff(valid) == _GAP)
        steps = step_channels(u, v, change)[:, adjacent]
        speed = pairs[0].mean(axis=0)
        pooled = np.concatenate([pool_time(pairs), pool_time(steps)])  # (24, 3, 48)
        energies = np.concatenate([pool_space(pooled, speed).ravel(), pool_space(drift, speed)])
        return np.concatenate([np.log(energies + _FLOOR), np.sqrt(moving_patterns(small, cut)).ravel()])

    def _pair_flow(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Array:
        """Two frames (120, 160) -> displacement (60, 80, 2) in pixels of those frames."""
        # OpenCV ships no usable types for this call
        flow: Array = self._flow.calc(first, second, None)  # type: ignore[call-overload]
        return np.asarray(cv2.resize(flow, GRID[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _to_gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frame if frame.ndim == 2 else np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def _to_size(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if frame.shape == (height, width):
        return frame
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
