"""A weight-free descriptor of sound: how suddenly, how roughly and in which bands it rises, whatever its level.

One second around the middle of each clip, as a spectrogram of 16 mel bands every 10 ms (`extract.logmel`), in
logarithms relative to the window's own mean down to 40 dB below it: the gain of a camera's microphone cancels out, as
far as the sound lies above -60 dB of full scale. What is pooled over the window (mean, deviation, maximum, mean of the
largest tenth):

- the bands, with the mean step between rows and the trend from the first half to the second;
- rises and falls over 10, 40 and 160 ms: onsets of blows and cracks, and how fast they decay (spectral flux; Bello et
  al., IEEE TSAP 2005);
- loudness against the window's mean: one blow against steady noise;
- the form of the spectrum: centroid, spread, flatness, the share above 2 kHz, and how periodic it is at which pitch: a
  scream is loud, high and voiced (Valenzise et al., AVSS 2007);
- the modulation of four broad bands by octaves from 1 to 50 Hz: speech has its syllables at 2 to 8 Hz, a crowd is
  smoother, a scream rougher (Arnal et al., Current Biology 2015).
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract.audio import SoundRule
from extract.backbones.base import Backbone, BackboneError, backbones
from extract.logmel import RATE
from extract.sound_stats import describe, layout


@backbones.register("logmel_stats")
class LogmelStats(Backbone):
    """Log-mel statistics of sound, its onsets, form and modulation, 172-d; no weights, runs anywhere.

    A clip is 16 frames and a last, shorter one counts, as in `motion`: the two can be fused.

    Args:
        weights: none exist.
        device: "cpu"; others are refused.
        dtype: what is stored.
        align: how the second of sound lies to its clip, "center", "end", "start" or "hop"; see `extract.audio`.
        missing: "error" or "silence", for a video without sound.
        clip_len, stride, tail, fps: of the clips, to line up with other features.
    """

    paper = "Bello et al., IEEE TSAP 2005; Valenzise et al., AVSS 2007; Arnal et al., Current Biology 2015"
    licence = "Apache-2.0"
    uses_torch = False
    window: ClassVar[int] = RATE

    def __init__(
        self,
        *,
        weights: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        align: str = "center",
        missing: str = "error",
        clip_len: int = 16,
        stride: int = 16,
        tail: str = "repeat",
        fps: float | None = None,
    ) -> None:
        if weights not in (None, "none"):
            raise BackboneError(f"logmel_stats has no weights, got '{weights}'; leave --weights out")
        if device not in ("auto", "cpu"):
            raise BackboneError(f"logmel_stats runs on the CPU only, got device '{device}'; leave --device out")
        self.groups = layout()
        self.spec = FeatureSpec(
            backbone="logmel_stats",
            dim=max(group.stop for group in self.groups.values()),
            modality="audio",
            clip_len=clip_len,
            stride=stride,
            tail=tail,
            fps=fps,
            dtype=dtype,
            options={
                "rate": RATE,
                "window": self.window,
                "resampler": "swr",
                "align": align,
                "missing": missing,
                "hop": self.window,
            },
        )
        try:
            SoundRule.of(self.spec)
        except ValueError as error:
            raise BackboneError(f"logmel_stats: {error}") from error

    def extract(self, clips: NDArray[Any], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """clips (B, 16000) float32 at 16 kHz -> (B, 1, 172); `groups` says which dimension means what."""
        if clips.ndim != 2 or clips.shape[1] != self.window or clips.dtype != np.float32:
            raise ValueError(f"logmel_stats wants float32 windows (B, {self.window}), got {clips.shape} {clips.dtype}")
        return np.stack([describe(clip) for clip in clips])[:, None].astype(np.float32)
