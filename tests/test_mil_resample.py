"""The younger ways to resample a training bag, against loops in exact arithmetic and numbers made by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.resample import RESAMPLE, random_rows, repeat, resize, segments, shrink

shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 6), st.integers(1, 40), st.integers(0, 999))


def clips(k, n, d, seed):
    return np.random.default_rng(seed).standard_normal((k, n, d)).astype(np.float32)


def row(*values):
    """One crop, one feature: what a resampling does to numbers that one can check by eye."""
    return np.array(values, np.float32).reshape(1, -1, 1)


# -- resize -----------------------------------------------------------------------------------------------------------


@given(shapes)
@settings(max_examples=100, deadline=None)
def test_resize_is_linear_between_the_two_clips_around_a_segments_centre(shape):
    """Centres of pixels, ends repeated: segment i lies at (i + 1/2) N / count - 1/2, here in fractions."""
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    found = resize(x, count)
    assert found.shape == (k, count, d)
    assert found.dtype == np.float32
    for i in range(count):
        at = (Fraction(2 * i + 1, 2) * n) / count - Fraction(1, 2)
        low = at.numerator // at.denominator
        weight = float(at - low)
        below, above = (x[:, min(max(j, 0), n - 1)].astype(np.float64) for j in (low, low + 1))
        assert np.abs(found[:, i] - ((1 - weight) * below + weight * above)).max() < 2e-5  # weights are float32


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ((0, 1, 2, 3), 2, (0.5, 2.5)),
        ((0, 1), 4, (0, 0.25, 0.75, 1)),  # the ends lie outside and take the first and the last clip
        ((0, 3, 6, 9, 12), 3, (1, 6, 11)),  # at 1/3, 2, 11/3
        ((0, 0, 0, 8, 8, 0, 0, 0), 2, (0, 0)),  # at 1.5 and 5.5: what lies between is stepped over, not averaged
        ((7,), 3, (7, 7, 7)),
    ],
)
def test_resize_by_hand(values, count, expected):
    assert resize(row(*values), count).ravel().tolist() == pytest.approx(expected, abs=1e-6)


def test_resize_leaves_every_feature_and_every_crop_to_itself():
    """OpenCV resizes both sides of a picture; here one of them must stay, whatever its size."""
    x = np.zeros((2, 64, 64), np.float32)
    x[1, :, 5] = 1
    found = resize(x, 32)
    assert (found[1, :, 5] == 1).all()
    found[1, :, 5] = 0
    assert not found.any()


def test_resize_of_a_long_video_and_of_large_features():
    x = np.broadcast_to(np.arange(40_000, dtype=np.float32)[None, :, None], (1, 40_000, 3)).copy()
    assert np.abs(resize(x, 32)[0, :, 0] - (1250 * (np.arange(32) + 0.5) - 0.5)).max() < 0.01
    wide = clips(1, 5, 4096, 0)
    assert resize(wide, 7).shape == (1, 7, 4096)


# -- shrink, repeat ---------------------------------------------------------------------------------------------------


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_shrink_takes_means_of_long_videos_and_leaves_short_ones(shape):
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    found = shrink(x, count)
    if n <= count:
        assert np.array_equal(found, x)
    else:
        assert np.array_equal(found, segments(x, count))
        assert found.shape[1] == count
        # equal parts lose no clip: weighted by their clips, the means give the video's mean
        bounds = [int(v) for v in np.linspace(0, n, count + 1)]
        sizes = np.diff(bounds)[None, :, None]
        assert np.abs((found * sizes).sum(1) / n - x.mean(1, dtype=np.float64)).max() < 1e-5


@given(shapes)
@settings(max_examples=80, deadline=None)
def test_repeat_fills_up_with_the_last_clip_and_takes_means_of_equal_parts(shape):
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    found = repeat(x, count)
    padded = [x[:, i].astype(np.float64) for i in range(n)]
    while len(padded) % count:
        padded.append(padded[n - 1])
    each = len(padded) // count
    assert found.dtype == np.float32
    assert found.shape == (k, count, d)
    for i in range(count):
        assert np.abs(found[:, i] - sum(padded[i * each : (i + 1) * each]) / each).max() < 1e-6


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ((0, 1, 2, 3, 4), 3, (0.5, 2.5, 4)),  # 0 1 | 2 3 | 4 4
        ((5, 9), 4, (5, 9, 9, 9)),
        ((0, 1, 2, 3, 4, 5, 6), 3, (1, 4, 6)),  # 0 1 2 | 3 4 5 | 6 6 6
        ((0, 1, 2, 3), 2, (0.5, 2.5)),
    ],
)
def test_repeat_by_hand(values, count, expected):
    assert repeat(row(*values), count).ravel().tolist() == list(expected)


def test_repeat_sums_in_double_precision():
    x = np.full((1, 32 * 3000, 1), 1000.1, np.float32)
    assert np.array_equal(repeat(x, 32), np.full((1, 32, 1), np.float32(1000.1)))


def test_full_is_the_video_itself():
    x = clips(2, 9, 3, 0)
    assert RESAMPLE["full"](x, 4) is x


# -- random -----------------------------------------------------------------------------------------------------------


def draws(length, count, anomalous, times):
    return np.array([random_rows(length, count, anomalous, np.random.default_rng([7, i])) for i in range(times)])


@given(st.integers(1, 300), st.integers(1, 60), st.booleans(), st.integers(0, 999))
@settings(max_examples=150, deadline=None)
def test_random_rows(length, count, anomalous, seed):
    rows = random_rows(length, count, anomalous, np.random.default_rng(seed))
    assert np.array_equal(rows, random_rows(length, count, anomalous, np.random.default_rng(seed)))
    if length <= count:
        assert rows.tolist() == list(range(length))
        return
    assert len(rows) == count
    assert rows.min() >= 0
    assert rows.max() < length
    if not anomalous:
        assert (np.diff(rows) == 1).all()
        return
    step = length / count
    for i, r in enumerate(rows.tolist()):
        assert int(i * step) <= r < int((i + 1) * step) or r == int(i * step)


def test_every_clip_of_an_anomalous_video_can_be_drawn_and_all_of_a_part_alike():
    """7 clips in 3 parts: floor(0, 7/3, 14/3, 7) = 0 2 4 7."""
    found = draws(7, 3, True, 1200)
    for i, part in enumerate(((0, 1), (2, 3), (4, 5, 6))):
        values, counts = np.unique(found[:, i], return_counts=True)
        assert tuple(values) == part
        # deviations of 17 around 600, or of 16 around 400
        assert np.abs(counts - 1200 / len(part)).max() < 90


def test_every_window_of_a_normal_video_can_be_drawn_the_last_one_too():
    starts, counts = np.unique(draws(9, 6, False, 1200)[:, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3]
    assert np.abs(counts - 300).max() < 90  # deviation 15
