"""Frames at another rate are those that the grid says, streamed; rates that vary are noticed."""

import gc
import math
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.grid import ClipGrid
from data.types import FeatureSpec
from extract.decode import DecodeError, VideoReader
from extract.resample import ResampledReader, check_constant, resampled
from extract.times import Times
from tests.helpers import number_of, numbered_frames, write_numbered

RATES = st.sampled_from([Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), 60, 8])


def by_the_moments(count, fps_in, fps_out):
    """Which frames are shown, in exact fractions: to each moment the nearest frame, of two the later."""
    length = max(math.floor(Fraction(count) * fps_out / fps_in + Fraction(1, 2)), 1)
    moments = [Fraction(j) / fps_out for j in range(length)]
    return [max(range(count), key=lambda i: (-abs(Fraction(i) / fps_in - moment), i)) for moment in moments]


@settings(deadline=None)
@given(st.integers(1, 60), RATES, RATES)
@example(4, Fraction(30), Fraction(10))
@example(1, Fraction(60), 8)
@example(1, 8, Fraction(60))
def test_the_nearest_frame_to_each_moment(count, fps_in, fps_out):
    found = list(resampled(range(count), float(Fraction(fps_out) / fps_in)))
    assert found == by_the_moments(count, Fraction(fps_in), Fraction(fps_out))


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0.02, 20))
def test_as_the_grid_says(count, rate):
    """The grid places scores by the same rule; were the two to differ, frames and scores would drift apart."""
    grid = ClipGrid(count, 1, 1, "drop", None, 1, rate)
    found = list(resampled(range(count), rate))
    assert len(found) == grid.num_shown
    assert found == [int(grid.frame_indices(j)[0]) for j in range(len(grid))]


@given(st.integers(0, 100))
def test_the_same_rate_changes_nothing(count):
    assert list(resampled(range(count), 1.0)) == list(range(count))


def test_an_hour_of_ntsc_does_not_drift():
    """30000/1001 to 25 for an hour: 107,892 frames are 90,000 moments, and frame 107,892 - 1 is at 3599.96 s."""
    shown = list(resampled(range(107_892), float(25 / Fraction(30000, 1001))))
    assert len(shown) == 90_000
    for j in (0, 1, 45_000, 89_998, 89_999):
        assert shown[j] == math.floor(Fraction(j, 25) * Fraction(30000, 1001) + Fraction(1, 2))


@pytest.mark.parametrize(("fps", "changed"), [(23.976, False), (24000 / 1001, False), (24.04, False), (24.06, True)])
def test_rates_within_two_thousandths_are_one(fps, changed):
    assert (FeatureSpec(backbone="x", dim=1, fps=24.0).rate(fps) != 1.0) == changed


@pytest.mark.parametrize("rate", [0.1, 0.8, 1.25, 4.0])
def test_memory_does_not_grow(rate):
    class Frame:
        pass

    alive: weakref.WeakSet = weakref.WeakSet()

    def frames():
        for _ in range(300):
            frame = Frame()
            alive.add(frame)
            yield frame
            del frame

    most = 0
    for frame in resampled(frames(), rate):
        del frame
        gc.collect(0)
        most = max(most, len(alive))
    assert most <= 4


# -- the reader -------------------------------------------------------------------------------------------------------


def test_reader(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 50, fps=25)
    with ResampledReader(VideoReader(path), 10 / 25) as reader:
        found = [number_of(f) for f in reader]
        assert found == by_the_moments(50, Fraction(25), Fraction(10))
        assert (reader.num_frames, reader.fps, reader.lost, reader.notes) == (50, 25.0, 0, [])
        assert reader.num_bytes == path.stat().st_size
        assert reader.path == path
    with pytest.raises(AttributeError, match="volume"):
        _ = reader.volume


def variable(path, stamps):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, image in zip(stamps, numbered_frames(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_rate_that_varies_is_noted_and_not_resampled(tmp_path, suffix):
    path = variable(tmp_path / f"v{suffix}", [40 * i + 400 * (i > 20) for i in range(40)])
    with VideoReader(path) as reader:
        assert len(list(reader)) == 40
    assert ["variable frame rate" in note for note in reader.notes] == [True]
    with pytest.raises(DecodeError, match=r"its frame rate varies.*; make it constant: ffmpeg -i IN -vf fps="):
        check_constant(reader)
    with ResampledReader(VideoReader(path), 0.5) as halved, pytest.raises(DecodeError, match="frame rate varies"):
        list(halved)


@pytest.mark.parametrize(
    "stamps",
    [
        [round(1000 * i / 30) for i in range(200)],  # milliseconds, as Matroska and Flash have them
        [int(1000 * i * 1001 / 30000) for i in range(200)],
        [40 * i + (15 if i % 2 else 0) for i in range(60)],  # less than half a frame to and fro
    ],
)
def test_rounded_and_trembling_time_stamps_are_constant(tmp_path, stamps):
    with VideoReader(variable(tmp_path / "v.mkv", stamps)) as reader:
        list(reader)
    assert reader.times.constant
    assert not any("variable" in note for note in reader.notes)


# -- time stamps by hand ----------------------------------------------------------------------------------------------


def constant_by_search(stamps):
    """Whether a rate explains them, by trying 20,000 of them."""
    index = np.arange(len(stamps))
    moments = np.array(stamps, float) - stamps[0]
    durations = np.linspace(0.2, 3, 20_001)
    return bool((np.abs(moments - index * durations[:, None]) <= durations[:, None] / 2 + 1e-9).all(axis=1).any())


@settings(deadline=None)
@given(st.lists(st.floats(0.3, 2.0), min_size=1, max_size=30))
def test_constant_means_that_some_rate_fits(steps):
    stamps = [0.0, *np.cumsum(steps)]
    times = Times()
    for i, stamp in enumerate(stamps):
        times.add(i, 7.0 + stamp)
    searched = constant_by_search(stamps)
    if searched:  # the search may step over a narrow interval, never see one that is not there
        assert times.constant
    for fps in (0.5, 0.9, 1.0, 1.1, 2.0):
        fits = all(abs(stamp - i / fps) <= 0.5 / fps for i, stamp in enumerate(stamps))
        near = any(abs(abs(stamp - i / fps) - 0.5 / fps) < 1e-6 for i, stamp in enumerate(stamps))
        assert times.fits(fps) == fits or near
    assert times.rate == pytest.approx(len(steps) / stamps[-1])


@pytest.mark.parametrize("trusted", [True, False])
def test_time_that_runs_backwards_is_never_constant(trusted):
    times = Times(trusted=trusted)
    for i, stamp in enumerate((0.0, 0.08, 0.12, 0.04, 0.16)):
        times.add(i, stamp)
    assert not times.ordered
    assert not times.constant
    assert times.suits(25.0) != trusted
    assert ["out of order" in note for note in times.notes(25.0)] == [True] * trusted


def test_a_header_that_names_another_rate():
    times = Times()
    for i in range(100):
        times.add(i, i / 24)
    assert times.notes(25.0) == ["the header says 25 frames/s, the time stamps 24"]
    assert times.notes(24.0) == times.notes(24.05) == times.notes(None) == []
