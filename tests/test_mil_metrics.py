"""Frame-level metrics against slow references: pairs for the ROC, a walk over the thresholds for precision-recall."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from data.types import Event, FrameScores
from mil import metrics
from mil.curves import Tally


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


def slow_eer(scores, labels):
    """Walks the ROC from the highest threshold down and intersects each of its segments with missed = alarmed."""
    total, quiet = sum(labels), len(labels) - sum(labels)
    before = (Fraction(1), Fraction(0))  # missed, alarmed: nothing is admitted
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 1)
        false = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 0)
        after = (1 - Fraction(hits, total), Fraction(false, quiet))
        if after[1] >= after[0]:
            # before + t (after - before): missed(t) = alarmed(t)
            t = (before[0] - before[1]) / ((before[0] - before[1]) + (after[1] - after[0]))
            return float(before[1] + t * (after[1] - before[1]))
        before = after
    raise AssertionError("at the lowest threshold every normal frame is an alarm")


def slow_best_f1(scores, labels):
    """The best of all thresholds, the highest one where several are equally good."""
    best = (Fraction(-1), None)
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 1)
        false = sum(1 for s, y in zip(scores, labels, strict=True) if s >= threshold and y == 0)
        if not hits:
            f1 = Fraction(0)
        else:
            precision, recall = Fraction(hits, hits + false), Fraction(hits, sum(labels))
            f1 = 2 * precision * recall / (precision + recall)
        if f1 > best[0]:
            best = (f1, threshold)
    return float(best[0]), best[1]


def slow_delay(split, threshold):
    """Walks each video frame by frame; (mean delay or None, share detected or None)."""
    delays, missed = [], 0
    for f in split:
        started = found = None
        for frame, (score, label) in enumerate([*f, (0.0, 0)]):
            if label and started is None:
                started, found = frame, None
            if label and found is None and score >= threshold:
                found = frame - started
            if not label and started is not None:
                delays, missed = (delays, missed + 1) if found is None else ([*delays, found], missed)
                started = None
    events = len(delays) + missed
    return (sum(delays) / len(delays) if delays else None), (len(delays) / events if events else None)


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
    for result in (one, other):  # events are runs of frames, which their order makes; there are no classes here
        del result["delay_frames"], result["events_detected"], result["classes"]
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


# -- what else is printed ---------------------------------------------------------------------------------------------


def close(value):
    return None if value is None else pytest.approx(value, abs=1e-12)


@given(splits, st.sampled_from([0.0, 0.25, 0.5, 0.51, 1.0]), st.sampled_from([1, 16]))
@settings(max_examples=150, deadline=None)
def test_the_other_metrics_equal_the_slow_ones(split, threshold, repeat):
    split = [[row for row in f for _ in range(repeat)] for f in split]
    videos = as_videos(split)
    found = metrics.evaluate(videos, threshold=threshold)
    scores = [s for f in split for s, _ in f]
    labels = [y for f in split for _, y in f]
    both = 0 < sum(labels) < len(labels)
    inside = [(s, y) for f in split if any(y for _, y in f) for s, y in f]
    quiet = [s for f in split if not any(y for _, y in f) for s, _ in f]
    f1, f1_threshold = slow_best_f1(scores, labels) if any(labels) else (None, None)
    delay, share = slow_delay(split, threshold)
    high, low = ([s for s, y in zip(scores, labels, strict=True) if y == k] for k in (1, 0))
    tops, kinds = [max(s for s, _ in f) for f in split], [int(any(y for _, y in f)) for f in split]
    expected = {
        "ano_ap": slow_ap([s for s, _ in inside], [y for _, y in inside]) if inside else None,
        "far": sum(s >= threshold for s in quiet) / len(quiet) if quiet else None,
        "far_strict": sum(s > threshold for s in quiet) / len(quiet) if quiet else None,
        "eer": slow_eer(scores, labels) if both else None,
        "best_f1": f1,
        "best_f1_threshold": f1_threshold,
        "score_gap": sum(high) / len(high) - sum(low) / len(low) if both else None,
        "video_auc": slow_auc(tops, kinds),
        "delay_frames": delay,
        "events_detected": share,
    }
    for name, value in expected.items():
        assert found[name] == close(value), name


kinds = st.sampled_from(["Arson", "Abuse", ""])
spans = st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), kinds), max_size=3)


@given(st.lists(st.tuples(frames, spans), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_classes_by_both_definitions_equal_the_slow_ones(drawn):
    """Overlapping events of two kinds, events of no kind, videos with several: the traps of XD-Violence."""
    videos, events = [], {}
    for i, (f, found) in enumerate(drawn):
        kept = [Event(a, min(a + n, len(f)), k) for a, n, k in found if a < len(f)]
        labels = [int(any(e.start <= j < e.stop for e in kept)) for j in range(len(f))]
        videos.append(video(f"v{i}", [s for s, _ in f], labels))
        events[f"v{i}"] = kept
    result = metrics.evaluate(videos, events=events)
    named = {e.kind for list_ in events.values() for e in list_} - {""}
    assert list(result["classes"]) == sorted(named)
    for kind in named:
        own, rest = [], []
        for v in videos:
            held = [e for e in events[v.video_id] if e.kind == kind]
            for j, (s, y) in enumerate(zip(v.scores.tolist(), v.labels.tolist(), strict=True)):
                rest.append((s, int(any(e.start <= j < e.stop for e in held))))
                if held:
                    own.append((s, y))
        assert result["classes"][kind] == {
            "videos": sum(any(e.kind == kind for e in list_) for list_ in events.values()),
            "auc_own": close(slow_auc(*zip(*own, strict=True))),
            "ap_own": close(slow_ap(*zip(*own, strict=True))),
            "auc_rest": close(slow_auc(*zip(*rest, strict=True))),
            "ap_rest": close(slow_ap(*zip(*rest, strict=True))),
        }
    for name in ("auc_own", "ap_own", "auc_rest", "ap_rest"):
        values = [c[name] for c in result["classes"].values() if c[name] is not None]
        assert result[f"class_{name}"] == close(sum(values) / len(values) if values else None)


def test_the_two_per_class_definitions_by_hand():
    """Arson in video a: own .9 > .2; against the rest it also loses to b's .95 (an abuse), and beats .1."""
    videos = [video("a", [0.9, 0.2], [1, 0]), video("b", [0.95, 0.1], [1, 0])]
    events = {"a": [Event(0, 1, "Arson")], "b": [Event(0, 1, "Abuse")], "not evaluated": [Event(0, 1, "Arson")]}
    found = metrics.evaluate(videos, events=events)["classes"]
    assert found["Arson"] == {"videos": 1, "auc_own": 1.0, "ap_own": 1.0, "auc_rest": close(2 / 3), "ap_rest": 0.5}
    assert found["Abuse"]["auc_rest"] == 1.0


def test_classes_of_videos_that_are_not_there_are_not_listed():
    found = metrics.evaluate([video("a", [0.1], [0])], events={"b": [Event(0, 1, "Arson")]})
    assert found["classes"] == {}
    assert found["class_auc_own"] is None


def test_equal_error_rate_by_hand():
    """Thresholds .9 .8 .4 .2: (missed, alarmed) (1/2, 0) (1/2, 1/2): equal at 1/2. With the middle two tied:
    from (1/2, 0) to (0, 1/2), met half way at 1/4."""
    assert metrics.evaluate([video("a", [0.9, 0.8, 0.4, 0.2], [1, 0, 1, 0])])["eer"] == 0.5
    assert metrics.evaluate([video("a", [0.9, 0.4, 0.4, 0.2], [1, 0, 1, 0])])["eer"] == 0.25
    assert metrics.evaluate([video("a", [0.9, 0.1], [1, 0])])["eer"] == 0
    assert metrics.evaluate([video("a", [0.1, 0.9], [1, 0])])["eer"] == 1


def test_delay_counts_from_each_events_own_start():
    """Found after 2 frames, at once, never; a score before the event is no detection."""
    scores = [0.9, 0.1, 0.1, 0.7, 0.0, 0.5, 0.5, 0.0, 0.2]
    labels = [0, 1, 1, 1, 0, 1, 1, 0, 1]
    found = metrics.evaluate([video("a", scores, labels)])
    assert (found["delay_frames"], found["events_detected"]) == (1.0, close(2 / 3))


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def assert_equals_sklearn(scores, labels):
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert metrics.roc_auc(scores, labels) == close(roc_auc_score(labels, scores))
    assert metrics.average_precision(scores, labels) == close(average_precision_score(labels, scores))
    assert metrics.pr_auc(scores, labels) == close(auc(recall, precision))


@given(frames.filter(lambda f: 0 < sum(y for _, y in f) < len(f)), st.sampled_from([1, 16]))
@settings(max_examples=100, deadline=None)
def test_areas_equal_scikit_learns_with_heavy_ties(f, repeat):
    scores, labels = (np.repeat([row[k] for row in f], repeat) for k in (0, 1))
    assert_equals_sklearn(scores.astype(np.float64), labels.astype(np.uint8))


@pytest.mark.parametrize("decimals", [None, 3, 1])
@pytest.mark.parametrize("repeat", [1, 16])
def test_areas_equal_scikit_learns_on_many_frames(decimals, repeat):
    """200,000 frames, labels that do not end with a clip, scores that know a little."""
    rng = np.random.default_rng(decimals or 0)
    labels = (np.repeat(rng.random(2000), 100) < 0.08).astype(np.uint8)
    noise = np.repeat(rng.normal(size=len(labels) // repeat), repeat)
    scores = 1 / (1 + np.exp(-noise - labels[repeat - 1 :: repeat].repeat(repeat)))
    scores = scores if decimals is None else scores.round(decimals)
    assert_equals_sklearn(scores, labels)


def test_scores_a_bit_apart_are_not_tied():
    """A metric that rounds, or joins scores that are close, gives 1/2."""
    low = np.float64(0.3)
    high = np.nextafter(low, 1)
    assert metrics.roc_auc(np.array([high, low]), np.array([1, 0], np.uint8)) == 1
    assert metrics.equal_error_rate(Tally.of([video("a", [high, low], [1, 0])])) == 0


def test_scores_of_any_scale_are_ranked():
    """Logits and distances are scores too: negative, huge, and both zeros."""
    scores = np.array([-1.7e308, -3.0, -0.0, 0.0, 1e-310, 1.7e308])
    labels = np.array([0, 1, 0, 1, 0, 1], np.uint8)
    assert metrics.roc_auc(scores, labels) == close(slow_auc(scores.tolist(), labels.tolist()))
    assert metrics.average_precision(scores, labels) == close(slow_ap(scores.tolist(), labels.tolist()))
