"""Statistics of a spectrogram, the parts that the `logmel_stats` descriptor is made of.

Pure functions on small arrays. Letters: R rows of the spectrogram, 10 ms apart; 16 bands, each four of the 64 mel bands
of `extract.logmel`, from 125 to 7500 Hz.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from extract.logmel import FFT, HOP, RATE, hann, magnitudes, mel_weights

Array = NDArray[np.float64]

BANDS = 16
LAGS = (1, 4, 16)
"""Rows between which a change is taken: 10, 40 and 160 ms; a crack, a blow, a door."""
OCTAVES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0)
"""Edges of the modulation's octaves, Hz: speech has its syllables at 2 to 8, rough voices flutter at 16 and more."""
PITCH_HZ = (80.0, 1000.0)
"""Where a voice's pitch is looked for; a scream's lies in the upper half."""

ROW_STATS = ("mean", "std", "max", "top")
BAND_STATS = (*ROW_STATS, "change", "trend")
FORM_CHANNELS = ("centroid", "spread", "flatness", "treble", "voicing", "pitch")

_FLOOR = 1e-3  # of a band's magnitude, -70 dB: below it recordings hold noise, and dither
_ENERGY_FLOOR = 1e-5  # of a row's samples under its window, likewise
_DEPTH = 0.01  # what is 40 dB below the window's mean counts as nothing
_OCTAVE_COST = 0.05  # twice the period fits as well
_TOP = 10  # one row in ten


def bands_of(spectrum: Array) -> Array:
    """Magnitudes (R, 257) -> means over the mel bands (R, 16)."""
    weights = mel_weights().reshape(FFT // 2 + 1, BANDS, -1).sum(axis=2)
    # einsum without BLAS: the same bits for any number of threads
    return np.asarray(np.einsum("rf,fb->rb", spectrum, weights / weights.sum(axis=0)))


def relative(bands: Array) -> Array:
    """(R, ...) -> logarithms relative to the window's mean, which hardly depend on the recording's level."""
    return np.asarray(np.log(bands / (bands.mean() + _FLOOR) + _DEPTH))


def pool_rows(x: Array) -> Array:
    """(R, C) -> (C, 4): ROW_STATS, `top` being the mean of the largest tenth."""
    top = np.sort(x, axis=0)[-max(len(x) // _TOP, 1) :]
    return np.stack([x.mean(axis=0), x.std(axis=0), x.max(axis=0), top.mean(axis=0)], axis=1)


def band_stats(levels: Array) -> Array:
    """Logarithms (R, 16) -> (16, 6): BAND_STATS; the mean step between rows, the second half less the first."""
    half = len(levels) // 2
    trend = levels[half:].mean(axis=0) - levels[: max(half, 1)].mean(axis=0)
    change = np.abs(np.diff(levels, axis=0, append=levels[-1:])).mean(axis=0)
    return np.column_stack([pool_rows(levels), change, trend])


def change_channels(levels: Array) -> Array:
    """Logarithms (R, 16) -> (R, 6): for each lag how much bands rise (onset strength) and fall, their mean."""
    channels = []
    for lag in LAGS:
        step = np.zeros_like(levels)
        step[lag:] = levels[lag:] - levels[:-lag]
        channels += [np.maximum(step, 0).mean(axis=1), np.maximum(-step, 0).mean(axis=1)]
    return np.stack(channels, axis=1)


def form_channels(spectrum: Array, bands: Array) -> Array:
    """Magnitudes (R, 257) and bands (R, 16) -> (R, 6): FORM_CHANNELS, what a row sounds like, whatever its level.

    Centroid and spread in bands; flatness, the geometric by the arithmetic mean; the share above 2 kHz; voicing and
    pitch, see `voice`.
    """
    share = (bands + _FLOOR) / (bands + _FLOOR).sum(axis=1, keepdims=True)
    place = np.arange(BANDS)
    centroid = (share * place).sum(axis=1)
    spread = np.sqrt((share * (place - centroid[:, None]) ** 2).sum(axis=1))
    flatness = np.exp(np.log(share).mean(axis=1)) * BANDS
    treble = share[:, BANDS * 5 // 8 :].sum(axis=1)
    return np.column_stack([centroid, spread, flatness, treble, voice(spectrum)])


def voice(spectrum: Array) -> Array:
    """Magnitudes (R, 257) -> (R, 2): how periodic a row is, 0 to about 1, and its pitch in octaves below 1 kHz.

    The height and the place of the highest peak of the autocorrelation within PITCH_HZ, divided by the window's own
    autocorrelation, which falls with the lag (Boersma, IFA Proceedings 1993); 0 and 0 where there is no peak.
    """
    shortest, longest = (int(RATE / hertz) for hertz in reversed(PITCH_HZ))
    window = np.fft.irfft(np.abs(np.fft.rfft(hann(), FFT)) ** 2, FFT)
    found = np.fft.irfft(spectrum**2, FFT)
    found = (found / (found[:, :1] + _ENERGY_FLOOR) / (window / window[0]))[:, shortest - 1 : longest + 2]
    before, here, behind = found[:, :-2], found[:, 1:-1], found[:, 2:]
    heights = np.where((here > before) & (here >= behind), np.maximum(here, 0), 0)
    octaves = np.log2(np.arange(shortest, longest + 1) / shortest)
    best = (heights - _OCTAVE_COST * octaves).argmax(axis=1)
    height = np.take_along_axis(heights, best[:, None], axis=1)[:, 0]
    return np.column_stack([height, octaves[best]])


def modulation(levels: Array) -> Array:
    """Logarithms (R, 16) -> (4, 6): how strongly four broad bands go up and down at the rates of OCTAVES."""
    broad = levels.reshape(len(levels), 4, -1).mean(axis=2)
    broad = (broad - broad.mean(axis=0)) * np.hanning(len(broad))[:, None]
    strength = np.abs(np.fft.rfft(broad, axis=0)) / len(broad)
    hertz = np.fft.rfftfreq(len(broad), HOP / RATE)
    found = np.zeros((4, len(OCTAVES) - 1))
    for i, (low, high) in enumerate(pairwise(OCTAVES)):
        inside = (hertz >= low) & (hertz < high)
        found[:, i] = np.sqrt((strength[inside] ** 2).sum(axis=0))
    return found


def describe(samples: NDArray[np.floating]) -> Array:
    """Sound (S,) at 16 kHz -> (172,), in the order of `layout`. Every number is finite for samples in [-1, 1]."""
    spectrum = magnitudes(samples)
    bands = bands_of(spectrum)
    levels = relative(bands)
    loudness = relative(bands.mean(axis=1))[:, None]
    parts = [
        band_stats(levels),
        pool_rows(change_channels(levels)),
        pool_rows(loudness),
        pool_rows(form_channels(spectrum, bands)),
        modulation(levels),
    ]
    return np.concatenate([part.ravel() for part in parts])


def layout() -> Mapping[str, slice]:
    """Where each group of the descriptor lies in its D dimensions."""
    sizes = {f"band{i}": len(BAND_STATS) for i in range(BANDS)}
    sizes |= {f"{way}{10 * lag}": len(ROW_STATS) for lag in LAGS for way in ("rise", "fall")}
    sizes |= dict.fromkeys(("loudness", *FORM_CHANNELS), len(ROW_STATS))
    sizes |= {f"modulation{i}": len(OCTAVES) - 1 for i in range(4)}
    groups, start = {}, 0
    for name, size in sizes.items():
        groups[name] = slice(start, start + size)
        start += size
    return groups
