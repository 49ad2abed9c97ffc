"""Counted runs against the frames written out, and weighted videos against videos really given several times."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.types import FrameScores
from mil.curves import Tally, roc_area, step_precision, trapezoid_precision

AREAS = (roc_area, step_precision, trapezoid_precision)
levels = st.sampled_from([-1.0, 0.0, 0.125, 0.5, 0.75, 1.0])
runs = st.lists(st.tuples(levels, st.integers(0, 1), st.integers(1, 20)), min_size=1, max_size=8)
splits = st.lists(runs, min_size=1, max_size=5)


def as_videos(split):
    videos = []
    for i, list_ in enumerate(split):
        lengths = [n for _, _, n in list_]
        scores, labels = np.repeat([s for s, _, _ in list_], lengths), np.repeat([y for _, y, _ in list_], lengths)
        videos.append(FrameScores(f"v{i}", scores.astype(np.float64), labels.astype(np.uint8)))
    return videos


def slow_counts(videos, thresholds):
    """Frames at or above each threshold, one by one: (anomalous, normal)."""
    high, low = [], []
    for t in thresholds:
        admitted = [y for v in videos for s, y in zip(v.scores.tolist(), v.labels.tolist(), strict=True) if s >= t]
        high.append(sum(admitted))
        low.append(len(admitted) - sum(admitted))
    return high, low


@given(splits)
@settings(max_examples=150, deadline=None)
def test_a_tally_counts_the_frames_written_out(split):
    videos = as_videos(split)
    tally = Tally.of(videos)
    thresholds = sorted({s for list_ in split for s, _, _ in list_}, reverse=True)
    assert tally.thresholds.tolist() == thresholds
    high, low = tally.counts()
    assert (high.tolist(), low.tolist()) == slow_counts(videos, thresholds)
    found = Counter()
    for score, index, positives, negatives in zip(
        tally.scores, tally.video, tally.positives, tally.negatives, strict=True
    ):
        found[int(index), float(score), 1] += int(positives)
        found[int(index), float(score), 0] += int(negatives)
    written = Counter(
        (i, s, y) for i, v in enumerate(videos) for s, y in zip(v.scores.tolist(), v.labels.tolist(), strict=True)
    )
    assert +found == written
    assert len(tally.scores) <= sum(map(len, split))  # runs, not frames


@given(splits, st.data())
@settings(max_examples=150, deadline=None)
def test_weights_equal_videos_given_so_many_times(split, data):
    """Counts at the corners, and every area, also where the videos with the highest scores are not drawn at all."""
    videos = as_videos(split)
    tally = Tally.of(videos)
    row = st.lists(st.integers(0, 3), min_size=len(videos), max_size=len(videos)).filter(any)
    weights = np.array(data.draw(st.lists(row, min_size=1, max_size=3)))
    high, low = tally.weighted_counts(weights)
    at = tally.thresholds[tally.corners]
    for r, times in enumerate(weights.tolist()):
        drawn = [v for v, n in zip(videos, times, strict=True) for _ in range(n)]
        assert (high[r].tolist(), low[r].tolist()) == slow_counts(drawn, at.tolist())
        again = Tally.of(drawn).counts()
        for area in AREAS:
            expected = float(area(*again))
            assert float(area(high, low)[r]) == pytest.approx(expected, abs=1e-12, nan_ok=True), area.__name__


@given(splits)
@settings(max_examples=60, deadline=None)
def test_the_thresholds_left_out_change_no_area(split):
    tally = Tally.of(as_videos(split))
    all_ = tally.counts()
    kept = tally.weighted_counts(np.ones((1, len(split)), dtype=np.int64))
    assert kept[0][0].tolist() == all_[0][tally.corners].tolist()
    for area in AREAS:
        assert float(area(*kept)[0]) == pytest.approx(float(area(*all_)), abs=1e-12, nan_ok=True)


def test_thresholds_that_admit_only_normal_frames_are_left_out():
    """Anomalous at .7 and .2: needed are .7, the one before it, .2, the one before it, and the last."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05])
    labels = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0], np.uint8)
    tally = Tally.of([FrameScores("a", scores, labels)])
    assert tally.thresholds[tally.corners].tolist() == [0.8, 0.7, 0.4, 0.2, 0.05]


def test_areas_are_undefined_without_a_class():
    one = np.array([[1.0, 3.0]])
    none = np.zeros((1, 2))
    assert np.isnan([roc_area(one, none)[0], roc_area(none, one)[0], step_precision(none, one)[0]]).all()
    assert np.isnan(trapezoid_precision(none, one)[0])
    assert step_precision(one, none)[0] == trapezoid_precision(one, none)[0] == 1
