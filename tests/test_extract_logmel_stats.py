"""The weight-free sound descriptor: every statistic against a plain loop, and what it hears in made-up sounds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract import sound_stats
from extract.audio import SoundRule
from extract.backbones import BackboneError, create
from extract.logmel import log_mel, magnitudes

RATE = 16000
T = np.arange(RATE) / RATE


@pytest.fixture(scope="module")
def net():
    return create("logmel_stats")


def features(net, samples):
    return net.extract(np.asarray(samples, np.float32)[None], np.array([25.0]))[0, 0]


def hiss(seed=0, level=0.05):
    return np.random.default_rng(seed).normal(size=RATE) * level


def sounds(seed=0):
    """A row of levels (R, 16) as relative logarithms are."""
    return np.random.default_rng(seed).normal(size=(37, 16))


# ---- against plain loops --------------------------------------------------------------------------------------------


def test_bands_are_means_over_four_mel_bands():
    samples = hiss().astype(np.float32)
    mel = np.exp(log_mel(samples).astype(np.float64)) - 0.01  # 64 sums, each over its triangle
    found = sound_stats.bands_of(magnitudes(samples))
    weights = sound_stats.mel_weights()
    for band in range(16):
        sums = mel[:, 4 * band : 4 * band + 4].sum(axis=1)
        np.testing.assert_allclose(found[:, band], sums / weights[:, 4 * band : 4 * band + 4].sum(), rtol=1e-4)


def test_pooling():
    x = sounds()[:, :3]
    for c, (mean, std, high, top) in enumerate(sound_stats.pool_rows(x)):
        values = sorted(x[:, c], reverse=True)
        assert mean == pytest.approx(sum(values) / 37)
        assert std == pytest.approx((sum((v - mean) ** 2 for v in values) / 37) ** 0.5)
        assert high == values[0]
        assert top == pytest.approx(sum(values[:3]) / 3)  # a tenth of 37 rows


def test_band_statistics():
    levels = sounds(1)
    found = sound_stats.band_stats(levels)
    for band in range(16):
        x = list(levels[:, band])
        steps = [abs(b - a) for a, b in pairwise(x)]
        assert found[band, 4] == pytest.approx(sum(steps) / 37)
        assert found[band, 5] == pytest.approx(sum(x[18:]) / 19 - sum(x[:18]) / 18)


def test_changes():
    levels = sounds(2)
    found = sound_stats.change_channels(levels)
    for i, lag in enumerate((1, 4, 16)):
        for row in range(37):
            steps = [levels[row, b] - levels[row - lag, b] for b in range(16)] if row >= lag else [0] * 16
            assert found[row, 2 * i] == pytest.approx(sum(max(s, 0) for s in steps) / 16)
            assert found[row, 2 * i + 1] == pytest.approx(sum(max(-s, 0) for s in steps) / 16)


def test_modulation():
    levels = np.random.default_rng(3).normal(size=(98, 16))
    found = sound_stats.modulation(levels)
    edges = (1, 2, 4, 8, 16, 32, 50)
    for broad in range(4):
        x = [levels[r, 4 * broad : 4 * broad + 4].mean() for r in range(98)]
        x = [(v - sum(x) / 98) * (0.5 - 0.5 * np.cos(2 * np.pi * r / 97)) for r, v in enumerate(x)]
        wanted = np.zeros(6)
        for k in range(50):
            hertz = k * 100 / 98
            strength = abs(sum(v * np.exp(-2j * np.pi * k * r / 98) for r, v in enumerate(x))) / 98
            for octave in range(6):
                wanted[octave] += strength**2 * (edges[octave] <= hertz < edges[octave + 1])
        np.testing.assert_allclose(found[broad], np.sqrt(wanted), rtol=1e-9)


def test_form():
    samples = hiss(4).astype(np.float32)
    spectrum = magnitudes(samples)
    bands = sound_stats.bands_of(spectrum)
    found = sound_stats.form_channels(spectrum, bands)
    for row in (0, 40, 97):
        b = bands[row] + 1e-3
        p = b / b.sum()
        centroid = sum(i * p[i] for i in range(16))
        assert found[row, 0] == pytest.approx(centroid)
        assert found[row, 1] == pytest.approx(sum((i - centroid) ** 2 * p[i] for i in range(16)) ** 0.5)
        assert found[row, 2] == pytest.approx(np.prod(b) ** (1 / 16) / b.mean())
        assert found[row, 3] == pytest.approx(p[10:].sum())
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        own, ours = (circular(x) for x in (window, samples[160 * row : 160 * row + 400] * window))
        heights = {k: ours[k] / (ours[0] + 1e-5) / (own[k] / own[0]) for k in range(15, 202)}
        peaks = [k for k in range(16, 201) if heights[k - 1] < heights[k] >= heights[k + 1] and heights[k] > 0]
        best = max(peaks, key=lambda k: heights[k] - 0.05 * np.log2(k / 16))
        assert found[row, 4] == pytest.approx(heights[best], rel=1e-6)
        assert found[row, 5] == pytest.approx(np.log2(best / 16))


def circular(x):
    """The autocorrelation of 400 numbers and 112 zeros, by its definition."""
    padded = np.concatenate([np.asarray(x, np.float64), np.zeros(112)])
    return [float((padded * np.roll(padded, k)).sum()) for k in range(202)]


def test_no_peak_is_no_voice():
    """Rumble below every pitch: its autocorrelation falls all the way."""
    t = np.arange(400) / RATE
    found = sound_stats.voice(magnitudes(np.cos(2 * np.pi * 30 * t)))
    np.testing.assert_array_equal(found, [[0, 0]])


def test_groups_are_where_the_layout_says(net):
    """Each group changes with its part alone, and together they are the whole."""
    samples = hiss(5)
    samples[8000:9000] *= 8
    x = features(net, samples)
    spectrum = magnitudes(samples.astype(np.float32))
    bands = sound_stats.bands_of(spectrum)
    levels = sound_stats.relative(bands)
    changes, form = sound_stats.change_channels(levels), sound_stats.form_channels(spectrum, bands)
    loud = np.log(bands.mean(axis=1) / (bands.mean() + 1e-3) + 0.01)
    parts = {f"band{i}": sound_stats.band_stats(levels)[i] for i in range(16)}
    names = ("rise10", "fall10", "rise40", "fall40", "rise160", "fall160")
    parts |= {n: sound_stats.pool_rows(changes)[i] for i, n in enumerate(names)}
    parts["loudness"] = sound_stats.pool_rows(loud[:, None])[0]
    names = ("centroid", "spread", "flatness", "treble", "voicing", "pitch")
    parts |= {n: sound_stats.pool_rows(form)[i] for i, n in enumerate(names)}
    parts |= {f"modulation{i}": sound_stats.modulation(levels)[i] for i in range(4)}
    assert set(net.groups) == set(parts)
    for name, part in parts.items():
        np.testing.assert_allclose(x[net.groups[name]], part, rtol=1e-5, atol=1e-7)
    assert sorted(i for g in net.groups.values() for i in range(g.start, g.stop)) == list(range(net.spec.dim))


# ---- what it hears --------------------------------------------------------------------------------------------------


def test_the_level_of_a_recording_cancels_out(net):
    samples = hiss(6, 0.02)
    samples[4000:5000] += np.sin(2 * np.pi * 700 * T[:1000]) * 0.2
    quiet, loud = features(net, samples / 4), features(net, samples * 4)
    other = features(net, hiss(7, 0.02))
    assert np.abs(quiet - loud).max() < 0.3
    assert np.abs(quiet - loud).mean() < 0.03 * np.abs(quiet - other).mean()


def test_a_blow_is_a_rise_and_steady_noise_is_none(net):
    blow = hiss(8, 0.01)
    blow[8000:8800] += hiss(9, 0.5)[:800] * np.exp(-T[:800] * 60)
    steady = features(net, hiss(8, 0.01))
    found = features(net, blow)
    for name in ("rise10", "rise40", "fall40", "loudness"):
        high = net.groups[name].start + 2  # the maximum
        assert found[high] > steady[high] + 1
    assert found[net.groups["rise10"].start + 2] > found[net.groups["fall10"].start + 2]  # it decays slower


def test_sound_played_backwards_swaps_rises_and_falls(net):
    samples = hiss(10) * np.exp(-((T * 4) % 1) * 4)
    forward, back = features(net, samples), features(net, samples[::-1])
    for lag in (10, 40):
        rise, fall = net.groups[f"rise{lag}"].start, net.groups[f"fall{lag}"].start
        assert forward[rise] == pytest.approx(back[fall], rel=0.1)
        assert forward[rise + 2] > 1.2 * forward[fall + 2]
        assert back[fall + 2] > 1.2 * back[rise + 2]


@pytest.mark.parametrize("hertz", [100, 250, 500, 1000])
def test_a_voice_is_voiced_at_its_pitch(net, hertz):
    voice = sum(np.sin(2 * np.pi * hertz * h * T) / h for h in range(1, 5)) * 0.1
    found, noise = features(net, voice), features(net, hiss())
    assert found[net.groups["voicing"].start] > 2 * noise[net.groups["voicing"].start]
    assert found[net.groups["pitch"].start] == pytest.approx(np.log2(1000 / hertz), abs=0.1)


@pytest.mark.parametrize(("hertz", "octave"), [(3, 1), (6, 2), (12, 3), (24, 4)])
def test_sound_that_goes_up_and_down_is_in_its_octave(net, hertz, octave):
    found = features(net, hiss(11) * (1 + 0.9 * np.sin(2 * np.pi * hertz * T)))
    for broad in range(4):
        assert found[net.groups[f"modulation{broad}"]].argmax() == octave


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 1e-30])
def test_silence_and_constants_are_finite(net, level):
    x = features(net, np.full(RATE, level))
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 100


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 1.0]), st.integers(0, RATE), st.integers(0, RATE))
@settings(max_examples=30, deadline=None)
def test_any_sound_gives_moderate_numbers(seed, level, start, stop):
    samples = np.clip(np.random.default_rng(seed).normal(size=RATE) * level, -1, 1)
    samples[min(start, stop) : max(start, stop)] = 0  # codecs and cuts leave digital silence
    x = sound_stats.describe(samples.astype(np.float32))
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 100


def test_a_clip_depends_on_itself_alone(net):
    clips = np.stack([hiss(i) for i in range(4)]).astype(np.float32)
    together = net.extract(clips, np.full(4, 25.0))
    assert together.shape == (4, 1, net.spec.dim)
    assert together.dtype == np.float32
    assert net.spec.dim == 172
    for i in range(4):
        np.testing.assert_array_equal(net.extract(clips[i : i + 1], np.array([12.0]))[0], together[i])


def test_spec_and_options(net):
    rule = SoundRule.of(net.spec)
    assert (rule.rate, rule.window, rule.align, rule.missing) == (RATE, RATE, "center", "error")
    assert create("logmel_stats", align="end", missing="silence", stride=8).spec.options["align"] == "end"
    for options, message in (
        ({"align": "middle"}, "logmel_stats: align must be one of"),
        ({"missing": "no"}, "logmel_stats: missing must be one of"),
        ({"weights": "x.pt"}, "logmel_stats has no weights"),
        ({"device": "cuda"}, "logmel_stats runs on the CPU only"),
    ):
        with pytest.raises(BackboneError, match=message):
            create("logmel_stats", **options)


def test_windows_of_another_kind_are_refused(net):
    for clips in (np.zeros((1, 15600), np.float32), np.zeros((1, RATE), np.int16), np.zeros(RATE, np.float32)):
        with pytest.raises(ValueError, match=r"logmel_stats wants float32 windows \(B, 16000\)"):
            net.extract(clips, np.array([25.0]))
