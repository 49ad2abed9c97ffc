"""Frame-level metrics against slow references: pairs for the ROC, a walk over the thresholds for precision-recall."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.types import FrameScores
from mil import metrics


def slow_auc(scores, labels):
    """Over all pairs of an anomalous and a normal frame: won 1, tied 1/2."""
    won, pairs = Fraction(0), 0
    for s, a in zip(scores, labels, strict=True):
        for t, b in zip(scores, labels, strict=True):
            if a == 1 and b == 0:
                pairs += 1
                won += 1 if s > t else Fraction(1, 2) if s == t else 0
    return float(won / pairs) if pairs else None


def slow_curve(scores, labels):
    """(recall, precision) at each distinct score as threshold, from the highest one down."""
    points = []
    total = sum(int(x) for x in labels)
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 1)
        false = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 0)
        points.append((Fraction(hits, total), Fraction(hits, hits + false)))
    return points


def slow_ap(scores, labels):
    area, before = Fraction(0), Fraction(0)
    for recall, precision in slow_curve(scores, labels):
        area += (recall - before) * precision
        before = recall
    return float(area)


def slow_pr_auc(scores, labels):
    """The curve begins at recall 0 with precision 1, as scikit-learn and all repositories that print it have it."""
    area, before, height = Fraction(0), Fraction(0), Fraction(1)
    for recall, precision in slow_curve(scores, labels):
        area += (recall - before) * (precision + height) / 2
        before, height = recall, precision
    return float(area)


def video(name, scores, labels):
    return FrameScores(name, np.asarray(scores, np.float64), np.asarray(labels, np.uint8))


# few distinct scores, so that ties are the rule
frames = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 1)), min_size=1, max_size=12
)
splits = st.lists(frames, min_size=1, max_size=5)


def as_videos(split):
    return [video(f"v{i}", [s for s, _ in f], [y for _, y in f]) for i, f in enumerate(split)]


@given(splits)
@settings(max_examples=150, deadline=None)
def test_all_metrics_equal_the_slow_ones_on_pooled_frames(split):
    videos = as_videos(split)
    found = metrics.evaluate(videos)
    scores = [s for f in split for s, _ in f]
    labels = [y for f in split for _, y in f]
    inside = [(s, y) for f in split if any(y for _, y in f) for s, y in f]
    quiet = [s for f in split if not any(y for _, y in f) for s, _ in f]
    expected = {
        "auc": slow_auc(scores, labels),
        "ap": slow_ap(scores, labels) if any(labels) else None,
        "pr_auc": slow_pr_auc(scores, labels) if any(labels) else None,
        "ano_auc": slow_auc([s for s, _ in inside], [y for _, y in inside]),
        "far": sum(s >= 0.5 for s in quiet) / len(quiet) if quiet else None,
    }
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name
    assert found["frames"] == len(labels)
    assert found["positives"] == sum(labels)
    assert found["videos"] == len(split)
    assert found["anomalous_videos"] == sum(any(y for _, y in f) for f in split)


@given(splits)
@settings(max_examples=60, deadline=None)
def test_clip_scores_repeated_sixteen_times_change_no_metric(split):
    """What every repository does to go from snippets to frames; a metric that breaks ties by position would move."""
    videos = as_videos(split)
    repeated = [video(v.video_id, np.repeat(v.scores, 16), np.repeat(v.labels, 16)) for v in videos]
    once, often = metrics.evaluate(videos), metrics.evaluate(repeated)
    for name in ("auc", "ap", "pr_auc", "ano_auc", "far"):
        assert often[name] == (None if once[name] is None else pytest.approx(once[name], abs=1e-12)), name
    assert often["frames"] == 16 * once["frames"]


@given(splits, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_videos_and_of_frames_changes_nothing(split, random):
    shuffled = [list(f) for f in split]
    for f in shuffled:
        random.shuffle(f)
    random.shuffle(shuffled)
    one, other = metrics.evaluate(as_videos(split)), metrics.evaluate(as_videos(shuffled))
    for result in (one, other):  # a delay is about the order of frames, and there are no classes here
        del result["delay_frames"], result["classes"]
    assert {k: v for k, v in one.items() if v is not None} == pytest.approx(
        {k: v for k, v in other.items() if v is not None}, abs=1e-12
    )
    assert [k for k, v in one.items() if v is None] == [k for k, v in other.items() if v is None]


@given(splits, st.sampled_from([lambda s: 3 * s - 7, lambda s: s**3, np.expm1]))
@settings(max_examples=40, deadline=None)
def test_ranking_metrics_see_only_the_order_of_the_scores(split, stretch):
    videos = as_videos(split)
    one = metrics.evaluate(videos)
    other = metrics.evaluate([video(v.video_id, stretch(v.scores), v.labels) for v in videos])
    for name in ("auc", "ap", "pr_auc", "ano_auc"):
        assert other[name] == (None if one[name] is None else pytest.approx(one[name], abs=1e-12)), name


def test_golden_by_hand():
    """Scores .9 .8 .8 .3 .1 with labels 1 0 1 0 1, on paper.

    AUC: pairs won 2 (.9) + 1.5 (.8, one tie) + 0 (.1) of 6.
    Curve (recall, precision): (1/3, 1) (2/3, 2/3) (2/3, 1/2) (1, 3/5).
    AP = 1/3 * 1 + 1/3 * 2/3 + 1/3 * 3/5.  Trapezoids from (0, 1) = 1/3 + 1/3 * 5/6 + 1/3 * 11/20.
    """
    found = metrics.evaluate([video("a", [0.9, 0.8, 0.8, 0.3, 0.1], [1, 0, 1, 0, 1])])
    assert found["auc"] == pytest.approx(3.5 / 6, abs=1e-15)
    assert found["ap"] == pytest.approx(34 / 45, abs=1e-15)
    assert found["pr_auc"] == pytest.approx(1 / 3 + 5 / 18 + 11 / 60, abs=1e-15)
    assert found["far"] is None


def test_the_two_aps_differ_by_as_much_as_papers_claim_to_gain():
    """Few snippets, each score held for 16 frames: the trapezoid is the optimistic one (heads.md 3.2)."""
    rng = np.random.default_rng(3)
    scores = np.repeat(rng.random(60).round(1), 16)
    labels = np.repeat((rng.random(60) < 0.3).astype(np.uint8), 16)
    ap, area = metrics.average_precision(scores, labels), metrics.pr_auc(scores, labels)
    assert ap == pytest.approx(slow_ap(scores, labels), abs=1e-12)
    assert area == pytest.approx(slow_pr_auc(scores, labels), abs=1e-12)
    assert area - ap > 0.005


def test_pooled_is_not_the_mean_over_videos():
    """Each video is ranked perfectly by itself (mean AUC 1), but their scales differ: pooled, 3 of 4 pairs are won."""
    videos = [video("a", [0.2, 0.1], [1, 0]), video("b", [0.9, 0.8], [1, 0])]
    assert metrics.evaluate(videos)["auc"] == 0.75


@pytest.mark.parametrize(
    ("labels", "undefined"),
    [([0, 0, 0], {"auc", "ap", "pr_auc", "ano_auc"}), ([1, 1, 1], {"auc", "ano_auc", "far"})],
)
def test_one_class_leaves_none_and_never_a_number(labels, undefined):
    found = metrics.evaluate([video("a", [0.1, 0.6, 0.6], labels)])
    assert {name for name in ("auc", "ap", "pr_auc", "ano_auc", "far") if found[name] is None} == undefined


def test_false_alarms_count_normal_videos_only_and_the_threshold_itself():
    """A normal frame inside an anomalous video is no frame of a normal video; .5 is an alarm at threshold .5."""
    videos = [video("bad", [0.9, 0.9], [1, 0]), video("calm", [0.5, 0.49, 0.0, 0.51], [0, 0, 0, 0])]
    assert metrics.evaluate(videos)["far"] == 0.5
    assert metrics.evaluate(videos, threshold=0.51)["far"] == 0.25
    assert metrics.evaluate(videos, threshold=0.51)["far_threshold"] == 0.51


def test_a_video_given_twice_is_refused_by_name():
    twice = [video("a", [0.1], [0]), video("b", [0.9], [1]), video("b", [0.9], [1])]
    with pytest.raises(ValueError, match="'b' is given twice"):
        metrics.evaluate(twice)


def test_no_videos_are_refused():
    with pytest.raises(ValueError, match="no videos to evaluate"):
        metrics.evaluate([])
