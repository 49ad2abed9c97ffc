"""Protocols against loops written from the reference's words, and the frame counts of the published ground truths."""

import csv
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets.sources import read_annotations
from data.grid import ClipGrid
from data.registry import UnknownNameError
from data.types import Event, Video
from mil import protocol
from tests.helpers import shared

BY_TRUE_LENGTH = ("frames", "ratio", "ratio32", "shots32")


def video_of(spans, name="v", num_frames=None):
    events = tuple(Event(a, b, k) for a, b, k in sorted(spans))
    return Video(name, "", "test", int(bool(events)), num_frames=num_frames, events=events)


def apply(name, scores, grid, spans=()):
    return protocol.get(name).frame_scores(video_of(spans), np.asarray(scores, np.float64), grid)


def distinct(count, seed=0):
    """Scores that cannot be confused, so that one wrong frame shows."""
    return np.random.default_rng(seed).permutation(count).astype(np.float64)


def slow_labels(spans, total, first, last):
    """`first` and `last` as the annotated s and e move: a frame at a time."""
    return [int(any(s + first <= f < e + last for s, e, _ in spans)) for f in range(total)]


lengths = st.integers(1, 700)
tails = st.sampled_from(["drop", "drop_one", "repeat", "loop"])
annotated = st.lists(
    st.tuples(st.integers(0, 800), st.integers(1, 300), st.sampled_from(["", "Arson"])).map(
        lambda t: (t[0], t[0] + t[1], t[2])
    ),
    max_size=3,
)


@given(lengths, tails, annotated)
@settings(max_examples=80, deadline=None)
def test_snippets_and_rtfm(frames, tail, spans):
    """stride x T frames, each snippet's score 16 times; [s, e) or, RTFM, [s, e]. True lengths do not matter."""
    grid = ClipGrid(frames, tail=tail)
    scores = distinct(len(grid))
    for name, last in (("snippets", 0), ("rtfm", 1)):
        found = apply(name, scores, grid, spans)
        assert found.scores.tolist() == [s for s in scores.tolist() for _ in range(16)]
        assert found.labels.tolist() == slow_labels(spans, 16 * len(scores), 0, last)


@given(lengths, tails, annotated)
@settings(max_examples=80, deadline=None)
def test_frames(frames, tail, spans):
    """Every frame has the score of its own snippet; a dropped tail that of the last one."""
    grid = ClipGrid(frames, tail=tail)
    scores = distinct(len(grid))
    found = apply("frames", scores, grid, spans)
    assert found.scores.tolist() == [scores[min(f // 16, len(scores) - 1)] for f in range(frames)]
    assert found.labels.tolist() == slow_labels(spans, frames, 0, 0)


@given(lengths, tails, annotated)
@settings(max_examples=80, deadline=None)
def test_ratio(frames, tail, spans):
    """Segment i covers frames [round(i r), round((i + 1) r)), r = n / segments; labels [s - 1, e)."""
    grid = ClipGrid(frames, tail=tail)
    scores = distinct(len(grid))
    found = apply("ratio", scores, grid, spans)
    expected = [None] * frames
    r = frames / len(scores)  # in Python's floats, as published: 15 * (388 / 24) rounds up, 242.5 would not
    for i in range(len(scores)):
        for f in range(round(i * r), round((i + 1) * r)):
            assert expected[f] is None
            expected[f] = scores[i]
    assert found.scores.tolist() == expected
    assert found.labels.tolist() == slow_labels(spans, frames, -1, 0)


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 80, 16, 48, 1793, 107_997])
def test_ratio_over_thirty_two_equal_parts(frames):
    """WSAL's 32 segments; at 16, 48 or 80 frames the bounds are halves, which Python's round takes to the even one."""
    grid = ClipGrid(frames, tail="equal", count=32)
    found = apply("ratio", distinct(32), grid).scores
    expected = np.empty(frames)
    for i in range(32):
        expected[round(i * (frames / 32)) : round((i + 1) * (frames / 32))] = distinct(32)[i]
    assert np.array_equal(found, expected)


def slow_shots(clips):
    """[(s, e)] of the 32 shots, 1-based and inclusive as in the MATLAB code: s_i to s_{i+1} - 1; half rounds up."""
    bounds = [int(Fraction(1) + Fraction((clips - 1) * i, 32) + Fraction(1, 2)) for i in range(33)]
    return [(bounds[i], bounds[i + 1] - 1) for i in range(32)]


@given(st.integers(1, 400), st.integers(0, 15), annotated)
@settings(max_examples=80, deadline=None)
def test_shots_written_over_the_frames_as_sultani_does(clips, more, spans):
    """Shot after shot into an array of frames; an empty one over its first clip; the last score over the rest."""
    frames = 16 * clips + more
    scores = distinct(32)
    expected = np.full(frames, np.nan)
    written = 0
    for (s, e), score in zip(slow_shots(clips), scores, strict=True):
        stop = 16 * (s if e < s else e)
        expected[16 * (s - 1) : stop] = score
        written = max(written, stop)
    expected[written:] = expected[written - 1]
    own = ClipGrid(frames, tail="drop")
    published = ClipGrid(frames, tail="equal", count=32)  # the same shots, pooled by somebody else
    for grid in (own, published):
        found = apply("shots32", scores, grid, spans)
        assert np.array_equal(found.scores, expected), grid.tail
        assert found.labels.tolist() == slow_labels(spans, frames, -1, 0)


@given(st.integers(1, 300))
@settings(max_examples=80, deadline=None)
def test_pooled_shots_are_means_of_their_clips(clips):
    x = np.random.default_rng(clips).normal(size=(2, clips, 3)).astype(np.float32)
    found = protocol.pool_shots(x, 32)
    assert found.shape == (2, 32, 3)
    for i, (s, e) in enumerate(slow_shots(clips)):
        own = [c - 1 for c in range(s, e + 1)] or [s - 1]
        expected = [[sum(float(x[k, c, d]) for c in own) / len(own) for d in range(3)] for k in range(2)]
        assert found[:, i] == pytest.approx(np.array(expected), abs=1e-5)  # float32 means


@pytest.mark.parametrize(
    ("clips", "bounds"),
    [
        (33, list(range(33))),  # shot i is clip i, the 33rd is never used
        (1, [0] * 33),
        (17, [(i + 1) // 2 for i in range(33)]),  # halves: 1, 1.5, 2, 2.5 ... -> 1, 2, 2, 3, 3: up, as MATLAB does
    ],
)
def test_shot_bounds_by_hand(clips, bounds):
    assert protocol.shot_bounds(clips, 32).tolist() == bounds


def test_the_last_clip_is_in_no_shot():
    x = np.zeros((1, 100, 1), np.float32)
    x[0, -1] = 1
    assert not protocol.pool_shots(x, 32).any()


def test_segments_that_somebody_pooled_are_not_pooled_again():
    shots = protocol.get("shots32")
    x = np.random.default_rng(0).normal(size=(1, 32, 4)).astype(np.float32)
    assert shots.pool(x, ClipGrid(1000, tail="equal", count=32)) is x
    assert protocol.get("frames").pool(x, ClipGrid(512)) is x
    assert not np.array_equal(shots.pool(x, ClipGrid(512)), x)  # 32 clips are clips: pooled, the last one left out
    with pytest.raises(ValueError, match=r"'shots32' pools clips into 32 segments, but .* 16 equal parts"):
        shots.pool(x[:, :16], ClipGrid(1000, tail="equal", count=16))


def test_equal_parts_keep_the_true_length_whatever_the_protocol():
    """32 published segments of 1,000 frames are no 512 frames."""
    grid = ClipGrid(1000, tail="equal", count=32)
    for name in protocol.PROTOCOLS:
        assert len(apply(name, distinct(32), grid).scores) == 1000


def test_overlapping_clips_count_stride_frames_each():
    grid = ClipGrid(100, clip_len=16, stride=8)
    assert len(apply("snippets", distinct(len(grid)), grid).scores) == 8 * len(grid)


@pytest.mark.parametrize("name", protocol.PROTOCOLS)
def test_events_are_cut_at_the_end_and_left_out_behind_it(name):
    """Published annotations end behind the video in places. The first frame does not move below 0."""
    grid = ClipGrid(160)
    rule = protocol.get(name)
    video = video_of([(0, 5, "A"), (150, 400, "B"), (200, 210, "C")])
    found = rule.events(video, 160)
    assert found == (Event(0, 5 + rule.last, "A"), Event(150 + rule.first, 160, "B"))
    labels = rule.frame_scores(video, distinct(len(grid) if rule.shots is None else 32), grid).labels
    assert labels.sum() == sum(e.stop - e.start for e in found)


def test_auto_takes_frames_where_lengths_are_known_and_snippets_where_not():
    assert protocol.choose("auto", True).name == "frames"
    assert protocol.choose("auto", False).name == "snippets"
    for name in protocol.PROTOCOLS:
        assert protocol.choose(name, True).name == name


@pytest.mark.parametrize("name", protocol.PROTOCOLS)
def test_who_counts_true_frames_needs_true_lengths(name):
    if name not in BY_TRUE_LENGTH:
        assert protocol.choose(name, False).name == name
        return
    with pytest.raises(ValueError, match=f"protocol '{name}' counts every frame, .*use --protocol snippets"):
        protocol.choose(name, False)


def test_an_unknown_protocol_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"no protocol called 'snipets'. Did you mean 'snippets'"):
        protocol.get("snipets")


# -- smoothing --------------------------------------------------------------------------------------------------------

some_scores = st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]), min_size=1, max_size=40).map(np.array)


@given(some_scores, st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_ahead_is_the_mean_of_a_clip_and_those_behind_it(scores, clips):
    """PEL4VAD: zeros stand behind the last clip, and count."""
    found = protocol.smooth(scores, clips, "ahead")
    padded = [*scores.tolist(), *[0.0] * clips]
    assert found.tolist() == pytest.approx([sum(padded[i : i + clips]) / clips for i in range(len(scores))], abs=1e-12)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_blocks_have_one_mean_each(blocks, clips, seed):
    scores = np.random.default_rng(seed).random(blocks * clips)
    found = protocol.smooth(scores, clips, "blocks")
    expected = [sum(scores[i * clips : (i + 1) * clips].tolist()) / clips for i in range(blocks) for _ in range(clips)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_last_block_is_filled_up_with_zeros():
    """PEL4VAD, fixed smoothing: 5 clips in blocks of 3 are (1 + 2 + 3) / 3 and (4 + 5 + 0) / 3."""
    assert protocol.smooth(np.arange(1.0, 6), 3, "blocks").tolist() == pytest.approx([2, 2, 2, 3, 3])


def test_smoothing_by_hand():
    scores = np.array([0.0, 3.0, 6.0, 0.0, 9.0])
    assert protocol.smooth(scores, 3, "ahead").tolist() == pytest.approx([3, 3, 5, 3, 3])
    assert protocol.smooth(scores[:4], 2, "blocks").tolist() == pytest.approx([1.5, 1.5, 3, 3])
    assert protocol.smooth(scores, 3).tolist() == pytest.approx([1.5, 3, 3, 5, 4.5])
    for how in ("centred", "ahead", "blocks"):
        assert protocol.smooth(scores, 1, how).tolist() == scores.tolist()
        assert protocol.smooth(scores[1:2], 1, how).tolist() == [3]
    assert protocol.smooth(scores[1:2], 3, "ahead").tolist() == pytest.approx([1])


@given(st.floats(0, 1), st.integers(1, 30), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_equal_neighbours_stay_equal_to_the_bit(value, length, clips):
    """A mean that is off by a rounding would break ties in a ranking metric."""
    scores = np.full(length, value)
    assert protocol.smooth(scores, clips, "ahead")[: max(length - clips + 1, 0)].tolist() == [value] * max(
        length - clips + 1, 0
    )
    whole = length // clips * clips
    assert protocol.smooth(scores, clips, "blocks")[:whole].tolist() == [value] * whole


# -- the published ground truths --------------------------------------------------------------------------------------


def snippet_counts(dataset):
    with shared("official", dataset, "test_snippets.csv").open(newline="") as file:
        return {row["video"]: int(row["snippets"]) for row in csv.DictReader(file)}


def joined(name):
    """One spelling of Normal_Videos_944_x264 and Normal_Videos944_x264, without folder and extension."""
    return name.split("/")[-1].removesuffix(".mp4").replace("Normal_Videos_", "Normal_Videos")


def true_counts():
    """{video: (frames, [(s, e)])}, read with nothing but split: folder/name.mp4 frames Class s1 e1 s2 e2."""
    found = {}
    for line in shared("official", "ucf-crime", "UCF_Annotation_with_frame_counts.txt").read_text().splitlines():
        entry, frames, _, *numbers = line.split()
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        found[joined(entry)] = int(frames), [(int(s), int(e)) for s, e in pairs if s != "-1"]
    return found


def spans_by_hand(dataset):
    """{video: [(s, e)]} of the official annotation, again with nothing but split."""
    found = {}
    name = {"ucf-crime": "Temporal_Anomaly_Annotation.txt", "xd-violence": "annotations.txt"}[dataset]
    for line in shared("official", dataset, name).read_text().splitlines():
        entry, *numbers = line.split()
        numbers = [int(n) for n in (numbers[1:] if dataset == "ucf-crime" else numbers)]
        found[joined(entry)] = [(s, e) for s, e in zip(numbers[::2], numbers[1::2], strict=True) if s >= 0]
    return found


def official_videos(dataset, file):
    """The videos as the product reads the annotation, {name: Video}."""
    annotations, problems = read_annotations(shared("official", dataset, file))
    assert not problems
    return {
        joined(name): video_of([(e.start, e.stop, e.kind) for e in a.events], name) for name, a in annotations.items()
    }


@pytest.mark.parametrize(
    ("dataset", "file", "videos", "frames", "positives"),
    [
        ("ucf-crime", "Temporal_Anomaly_Annotation.txt", 290, 1_109_680, 84_128),  # gt-ucf.npy, blob 17b93404
        ("xd-violence", "annotations.txt", 800, 2_330_384, 537_805),  # gt.npy, blob 8d47b9be
    ],
)
def test_snippets_give_the_reference_ground_truth(dataset, file, videos, frames, positives):
    """Per video, and in total, from nothing but T and the annotation; heads.md 3.1 and 3.2."""
    counts, official, by_hand = snippet_counts(dataset), official_videos(dataset, file), spans_by_hand(dataset)
    assert len(counts) == videos
    total = anomalous = 0
    for name, clips in counts.items():
        video = official.pop(joined(name), None) or video_of([], name)
        grid = ClipGrid(16 * clips, tail="given", count=clips)
        scores = distinct(clips)
        found = protocol.get("snippets").frame_scores(video, scores, grid)
        expected = np.zeros(16 * clips, np.uint8)
        for s, e in by_hand.get(joined(name), []):
            expected[s:e] = 1
        assert np.array_equal(found.labels, expected), name
        assert np.array_equal(found.scores, np.repeat(scores, 16)), name
        total, anomalous = total + len(found.labels), anomalous + int(found.labels.sum())
    assert not official  # every annotated video was met
    assert (total, anomalous) == (frames, positives)


@pytest.mark.parametrize(
    ("name", "frames", "positives"),
    [
        ("frames", 1_111_808, 84_182),  # [s, e) on every true frame
        ("snippets", 1_109_680, 84_128),  # true lengths do not move the reference
        ("ratio", 1_111_808, 84_338),  # [s - 1, e)
        ("shots32", 1_111_808, 84_338),
    ],
)
def test_ucf_crime_with_its_true_lengths(name, frames, positives):
    """Figures of heads.md 3.1."""
    counts, official = snippet_counts("ucf-crime"), true_counts()
    rule = protocol.get(name)
    total = anomalous = 0
    for video_id, clips in counts.items():
        length, spans = official[joined(video_id)]
        video = video_of([(s, e, "") for s, e in spans]).with_length(length)[0]
        scores = distinct(clips if rule.shots is None else 32)
        found = rule.frame_scores(video, scores, ClipGrid(length, tail="given", count=clips))
        assert len(found.labels) == (16 * clips if rule.by_snippet else length), video_id
        total, anomalous = total + len(found.labels), anomalous + int(found.labels.sum())
    assert (total, anomalous) == (frames, positives)


def test_rtfm_counts_ceil_and_includes_the_end():
    """T = ceil(n / 16): 1,114,144 frames, and the 84,343 positives that its script makes (heads.md 3.1)."""
    total = anomalous = 0
    for length, spans in true_counts().values():
        grid = ClipGrid(length, tail="loop")
        found = apply("rtfm", distinct(len(grid)), grid, [(s, e, "") for s, e in spans])
        total, anomalous = total + len(found.labels), anomalous + int(found.labels.sum())
    assert (total, anomalous) == (1_114_144, 84_343)


def test_no_official_event_begins_behind_its_features():
    """Evaluation takes such an event for another video's; it must never say so of the reference features."""
    for dataset in ("ucf-crime", "xd-violence"):
        by_hand = spans_by_hand(dataset)
        for name, clips in snippet_counts(dataset).items():
            assert all(s < 16 * clips for s, _ in by_hand.get(joined(name), [])), name


def test_ratio32_pools_a_video_into_32_parts_and_stretches_them():
    """WSAL: 41 clips become 64 by repeating the last, in 32 pairs; part i stands on round(i r) to round((i + 1) r)."""
    rule = protocol.get("ratio32")
    grid = ClipGrid(650, 16, 16, "repeat")
    x = np.random.default_rng(0).standard_normal((2, len(grid), 3)).astype(np.float32)
    parts = rule.pool(x, grid)
    rows = [min(i, len(grid) - 1) for i in range(64)]
    expected = np.stack([(x[:, rows[2 * i]].astype(np.float64) + x[:, rows[2 * i + 1]]) / 2 for i in range(32)], axis=1)
    assert np.abs(parts - expected).max() < 1e-6
    video = Video("v", "", "test", 1, num_frames=650, events=(Event(100, 200, "a"),))
    found = rule.frame_scores(video, np.arange(32.0), grid)
    ratio = 650 / 32
    for i in range(32):
        assert (found.scores[round(i * ratio) : round((i + 1) * ratio)] == i).all()
    assert (np.flatnonzero(found.labels)[0], found.labels.sum()) == (99, 101)
    with pytest.raises(ValueError, match="pools clips into 32 segments, but these features are 40 equal parts"):
        rule.pool(x[:, :40], ClipGrid(650, 16, 16, "equal", count=40))
