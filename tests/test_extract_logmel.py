"""VGGish's front-end against a Fourier transform and mel bands written by their definitions, and against scipy."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from extract import logmel


def noise(count, seed=0, scale=0.1):
    return (np.random.default_rng(seed).normal(size=count) * scale).astype(np.float32)


def slow_log_mel(samples):
    """By definition, in float64: rows, window, transform, triangles by 2595 log10(1 + f / 700), logarithm."""
    rows = []
    for start in range(0, len(samples) - 400 + 1, 160):
        row = [samples[start + i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / 400)) for i in range(400)]
        rows.append(row)
    times = np.arange(400)
    spectrum = np.array(
        [[abs((row * np.exp(-2j * np.pi * k * times / 512)).sum()) for k in range(257)] for row in np.array(rows)]
    )

    def mel(hertz):
        return 2595 * math.log10(1 + hertz / 700)

    edges = [mel(125) + i * (mel(7500) - mel(125)) / 65 for i in range(66)]
    found = np.zeros((len(rows), 64))
    for band in range(64):
        low, middle, high = edges[band : band + 3]
        for k in range(1, 257):
            at = mel(k * 16000 / 512)
            if low < at <= middle:
                found[:, band] += spectrum[:, k] * (at - low) / (middle - low)
            elif middle < at < high:
                found[:, band] += spectrum[:, k] * (high - at) / (high - middle)
    return np.log(found + 0.01)


def test_against_the_definition():
    samples = noise(15600, scale=0.3)[: 400 + 160 * 9]
    wanted = slow_log_mel(samples.astype(np.float64))
    np.testing.assert_allclose(logmel.log_mel(samples), wanted, atol=1e-6)  # float32 on the way out
    np.testing.assert_allclose(logmel.log_mel_on_device(torch.from_numpy(samples)), wanted, atol=1e-5)


def test_against_scipy():
    samples = noise(15600, seed=1)
    window = scipy.signal.get_window("hann", 400)  # periodic, as its default is
    np.testing.assert_allclose(logmel.hann(), window, atol=1e-15)
    _, _, found = scipy.signal.stft(
        samples.astype(np.float64), window=window, nperseg=400, noverlap=240, nfft=512, boundary=None, padded=False
    )
    np.testing.assert_allclose(logmel.magnitudes(samples), np.abs(found.T) * window.sum(), atol=1e-10)


def test_an_example_is_cut_from_a_longer_spectrogram():
    """95 * 160 + 400 samples have the 96 rows that the release cuts, one example every 0.96 s."""
    assert logmel.EXAMPLE == 15600
    samples = noise(4 * 16000, seed=2)
    whole = logmel.log_mel(samples)
    assert len(whole) == 1 + (64000 - 400) // 160
    for i in range(4):
        example = logmel.log_mel(samples[15360 * i : 15360 * i + 15600])
        assert example.shape == (96, 64)
        np.testing.assert_allclose(example, whole[96 * i : 96 * i + 96], atol=1e-6)


@pytest.mark.parametrize("hertz", [200, 1000, 4000, 7000])
def test_a_tone_is_in_the_band_of_its_frequency(hertz):
    t = np.arange(15600) / 16000
    row = logmel.log_mel(np.sin(2 * np.pi * hertz * t).astype(np.float32)).mean(axis=0)
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + np.array([125, 7500]) / 700)), 66) / 2595) - 1)
    assert edges[row.argmax()] < hertz < edges[row.argmax() + 2]


def test_silence_is_the_logarithm_of_the_offset():
    np.testing.assert_array_equal(logmel.log_mel(np.zeros(15600, np.float32)), np.float32(math.log(0.01)))


def test_sound_shorter_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"needs \(400,\) samples or more, got \(399,\)"):
        logmel.log_mel(np.zeros(399, np.float32))
