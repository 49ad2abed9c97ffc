"""Temporal detection against a slow one: frames as sets, spans found frame by frame, precision by exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.types import Event
from mil import detection
from mil.detection import Span, class_precision, detection_map, overlap, spans


def slow_spans(scores):
    """[(set of frames, score)] of one class and video, highest first."""
    cut = max(scores) - 0.6 * (max(scores) - min(scores))
    many = max(len(scores) // 16, 1)
    level = sum(sorted(scores, reverse=True)[:many]) / many
    found, run = [], []
    for frame, score in enumerate([*scores, float("-inf")]):
        if score > cut:
            run.append(frame)
            continue
        if len(run) >= 2:
            found.append((set(run), max(scores[f] for f in run) + 0.7 * level))
        run = []
    return found


def slow_iou(a, b):
    return Fraction(len(a & b), len(a | b))


def slow_class_ap(found, truth, threshold):
    """`found` {video: [(frames, score)]}, `truth` {video: [frames]}. Each true span is found once at most."""
    total = sum(len(list_) for list_ in truth.values())
    if total == 0:
        return None
    ranked = sorted(((score, name, frames) for name in found for frames, score in found[name]), key=lambda row: -row[0])
    taken, hits = set(), []
    for _, name, frames in ranked:
        best, at = Fraction(-1), None
        for i, true in enumerate(truth.get(name, [])):
            if (name, i) not in taken and slow_iou(frames, true) > best:
                best, at = slow_iou(frames, true), (name, i)
        right = at is not None and float(best) >= threshold
        hits.append(right)
        if right:
            taken.add(at)
    area = Fraction(0)
    for rank, right in enumerate(hits, 1):
        area += Fraction(sum(hits[:rank]), rank) * right
    return float(area / total)


# 1/64 steps: sums and thresholds are exact, and distinct levels per video make ties between videos rare
levels = st.integers(0, 64).map(lambda k: k / 64)
clips = st.lists(levels, min_size=1, max_size=12)
events = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30), st.sampled_from(["Arson", "Abuse"])), max_size=4)


@given(clips, st.sampled_from([1, 2, 16]))
@settings(max_examples=200, deadline=None)
def test_spans_equal_those_found_frame_by_frame(drawn, repeat):
    scores = [s for s in drawn for _ in range(repeat)]
    found = spans(np.array(scores))
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    expected = slow_spans(scores)
    by_start = {s.start: s for s in found}
    assert len(found) == len(by_start) == len(expected)
    for frames, score in expected:
        span = by_start[min(frames)]
        assert set(range(span.start, span.stop)) == frames
        assert span.score == pytest.approx(score, abs=1e-12)


@given(clips)
@settings(max_examples=60, deadline=None)
def test_spans_of_one_threshold_never_overlap(drawn):
    """Why the published non-maximum suppression has nothing to do."""
    found = spans(np.repeat(np.array(drawn), 16))
    for i, a in enumerate(found):
        assert all(overlap(a, b) == 0 for b in found[i + 1 :])


def test_spans_by_hand():
    """32 frames: max .9, min .1, so above .42. The top sixteenth is two frames, mean .9: .63 is added."""
    scores = np.full(32, 0.1)
    scores[4:8] = 0.9
    scores[20:23] = 0.5
    scores[28] = 0.8  # one frame: too short
    scores[30:] = 0.42  # not above
    assert spans(scores) == [Span(4, 8, pytest.approx(1.53)), Span(20, 23, pytest.approx(1.13))]


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_constant_scores_have_no_span(score):
    """Nothing lies above max - 0.6 * 0, by the strict comparison."""
    assert spans(np.full(64, score)) == []


def test_single_frames_are_dropped_and_spans_reach_both_ends():
    assert spans(np.array([1.0, 0.0, 1.0, 0.0])) == []
    assert [(s.start, s.stop) for s in spans(np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))] == [(0, 2), (3, 6)]


def test_a_video_below_sixteen_frames_is_scored_by_its_highest():
    (span,) = spans(np.array([0.5, 1.0, 0.0]))
    assert span == Span(0, 2, pytest.approx(1.7))


@given(*[st.tuples(st.integers(0, 20), st.integers(1, 20)) for _ in range(2)])
def test_overlap_equals_that_of_sets(a, b):
    first, other = Span(a[0], sum(a), 0.0), Event(b[0], sum(b))
    expected = slow_iou(set(range(a[0], sum(a))), set(range(b[0], sum(b))))
    assert overlap(first, other) == overlap(other, first) == float(expected)


@given(st.lists(st.tuples(clips, clips, events), min_size=1, max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_map_equals_the_slow_one(drawn, vadclip):
    scores, truth = {"Arson": {}, "Abuse": {}}, {}
    for i, (arson, abuse, found) in enumerate(drawn):
        # a scale of its own for each video: equal scores of two videos may be ranked either way
        for kind, values in (("Arson", arson), ("Abuse", abuse)):
            scores[kind][f"v{i}"] = np.repeat(values, 4) + 10 * i
        truth[f"v{i}"] = [Event(a, a + n, k) for a, n, k in found]
    result = detection_map(scores, truth, vadclip=vadclip)
    found = {k: {n: slow_spans(s.tolist()) for n, s in by_video.items()} for k, by_video in scores.items()}
    none = any(not any(by_video.values()) for by_video in found.values())
    means = []
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
        values = []
        for kind in scores:
            true = {n: [set(range(e.start, e.stop)) for e in list_ if e.kind == kind] for n, list_ in truth.items()}
            # equal scores within a video are ranked in time, here as there
            values.append(slow_class_ap(found[kind], true, threshold))
        if vadclip:
            expected = 0.0 if none else sum(v or 0 for v in values) / len(values)
        else:
            kept = [v for v in values if v is not None]
            expected = sum(kept) / len(kept) if kept else None
        assert result[f"map_iou_{threshold}"] == (None if expected is None else pytest.approx(expected, abs=1e-12))
        means.append(expected)
    overall = None if None in means else sum(means) / 5
    assert result["map_iou"] == (None if overall is None else pytest.approx(overall, abs=1e-12))


def test_class_precision_by_hand():
    """Ranked: a right (IoU 1), the same true span again (wrong: taken), b right (IoU 1/2), c wrong; one is never found.

    Precisions at the right ones 1/1 and 2/3; three true spans: (1 + 2/3) / 3.
    """
    found = {"x": [Span(0, 10, 0.9), Span(1, 10, 0.8)], "y": [Span(0, 5, 0.7), Span(30, 40, 0.6)]}
    truth = {"x": [Event(0, 10)], "y": [Event(0, 10), Event(100, 110)]}
    assert class_precision(found, truth, 0.5) == pytest.approx(5 / 9, abs=1e-15)
    assert class_precision(found, truth, 0.51) == pytest.approx(1 / 3, abs=1e-15)


def test_a_span_takes_the_true_one_it_overlaps_most():
    """[0, 12) overlaps [0, 4) by 1/3 and [2, 12) by 5/6: the first stays free for the next one."""
    truth = {"x": [Event(0, 4), Event(2, 12)]}
    assert class_precision({"x": [Span(0, 12, 0.9), Span(0, 4, 0.8)]}, truth, 0.3) == 1.0


def test_true_spans_of_another_video_or_class_are_no_match():
    scores = {"Arson": {"x": np.repeat([0.0, 1.0], 16), "y": np.repeat([0.5, 0.6], 16)}}
    found = detection_map(scores, {"x": [Event(16, 32, "Abuse")], "y": [Event(0, 16, "Arson")]})
    assert found["map_iou"] == 0.0


def test_no_true_span_anywhere_leaves_none():
    found = detection_map({"Arson": {"x": np.repeat([0.0, 1.0], 16)}}, {})
    assert set(found) == {f"map_iou_{t}" for t in detection.THRESHOLDS} | {"map_iou"}
    assert set(found.values()) == {None}


def test_a_class_without_detections_as_published_and_mended():
    """Perfect Arson; Abuse is constant. Published: 0 for everything. Mended: the mean of 1 and 0."""
    scores = {"Arson": {"x": np.repeat([0.0, 1.0], 16)}, "Abuse": {"x": np.full(32, 0.5)}}
    truth = {"x": [Event(0, 8, "Abuse"), Event(16, 32, "Arson")]}
    assert set(detection_map(scores, truth).values()) == {0.5}
    assert set(detection_map(scores, truth, vadclip=True).values()) == {0.0}


def test_a_class_without_truth_counts_as_published_only():
    """UCF-Crime's Normal, whose true spans bear another name in the published ground truth: 13 classes over 14."""
    scores = {"Arson": {"x": np.repeat([0.0, 1.0], 16)}, "Normal": {"x": np.repeat([1.0, 0.0], 16)}}
    truth = {"x": [Event(16, 32, "Arson")]}
    assert set(detection_map(scores, truth).values()) == {1.0}
    assert set(detection_map(scores, truth, vadclip=True).values()) == {0.5}
