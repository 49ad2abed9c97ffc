"""Log-mel spectrograms as VGGish takes them (Hershey et al., ICASSP 2017; the AudioSet release's front-end).

16 kHz sound in windows of 25 ms every 10 ms, under a periodic Hann window; the magnitude (not the power) of a 512-point
Fourier transform; 64 triangular bands, evenly spaced on HTK's mel scale from 125 to 7500 Hz, triangular in mel too and
not normalised by their width; the logarithm of 0.01 more than a band's sum.

An example is 96 rows, called 0.96 s. The samples under them span 0.975 s, since the last row's window is longer than
its hop: 95 * 160 + 400 = 15,600. The release cuts examples from the spectrogram of a whole file, so that every one
has its 96 rows; `EXAMPLE` samples give the same rows, and no more.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RATE = 16_000
WINDOW = 400
HOP = 160
FFT = 512
BANDS = 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
OFFSET = 0.01
ROWS = 96
EXAMPLE = (ROWS - 1) * HOP + WINDOW
"""Samples under one example, 15,600."""


@cache
def hann() -> NDArray[np.float64]:
    """(400,) the periodic Hann window: its period is 400 samples, so that the last one is not 0."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    window.flags.writeable = False
    return window


@cache
def mel_weights() -> NDArray[np.float64]:
    """(257, 64) what each frequency of the transform gives to each band.

    A band rises in mel from the centre of the one below to its own and falls to that of the one above.
    """
    mel = _mel(np.arange(FFT // 2 + 1) * (RATE / FFT))[:, None]
    ends = _mel(np.array([LOW_HZ, HIGH_HZ]))
    edges = np.linspace(ends[0], ends[1], BANDS + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weights: NDArray[np.float64] = np.maximum(
        0, np.minimum((mel - low) / (middle - low), (high - mel) / (high - middle))
    )
    weights.flags.writeable = False
    return weights


def magnitudes(samples: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sound (S,) at 16 kHz -> (R, 257), R = 1 + (S - 400) // 160. Raises ValueError on less than 400 samples."""
    if samples.ndim != 1 or len(samples) < WINDOW:
        raise ValueError(f"a spectrogram needs ({WINDOW},) samples or more, got {samples.shape}")
    rows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), WINDOW)[::HOP]
    return np.abs(np.fft.rfft(rows * hann(), FFT))


def log_mel(samples: NDArray[np.floating]) -> NDArray[np.float32]:
    """Sound (S,) in [-1, 1] at 16 kHz -> log-mel rows (R, 64), in float64 until the end."""
    # einsum without BLAS: the same bits for any number of threads
    bands = np.einsum("rf,fb->rb", magnitudes(samples), mel_weights())
    return np.asarray(np.log(bands + OFFSET), np.float32)


def log_mel_on_device(samples: Tensor) -> Tensor:
    """As `log_mel`, on the tensor's device and in float32: (S,) -> (R, 64)."""
    window, weights = _constants(samples.device)
    rows = samples.float().unfold(0, WINDOW, HOP) * window
    return torch.log(torch.fft.rfft(rows, FFT).abs() @ weights + OFFSET)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    made = (torch.tensor(values, dtype=torch.float32) for values in (hann(), mel_weights()))
    window, weights = (values.to(device) for values in made)
    return window, weights


def _mel(hertz: NDArray[np.floating]) -> NDArray[np.float64]:
    """HTK's mel scale."""
    return np.asarray(1127.0 * np.log1p(hertz / 700.0))
