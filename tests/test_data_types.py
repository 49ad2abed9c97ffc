"""What the frozen values refuse, and what survives a trip through JSON."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.grid import ClipGrid
from data.types import Event, FeatureSpec, FrameScores, SpecMismatchError, Video, VideoFeatures
from tests.helpers import spec_of

VIDEO = Video("v", "v.mp4", "test", 1, ("B1",), 100, 25.0, (Event(10, 20), Event(50, 100)))


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_event_spans(start, stop):
    with pytest.raises(ValueError, match=rf"0 <= start < stop, got \[{start}, {stop}\)"):
        Event(start, stop)


@pytest.mark.parametrize("kind", ["a b", "a;b", "a:b", "a|b", "a,b", "\t"])
def test_event_kinds(kind):
    with pytest.raises(ValueError, match="an event's kind holds no spaces"):
        Event(0, 1, kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "non-empty UTF-8"),
        ({"id": " v"}, "spaces around it, got ' v'; rename"),
        ({"id": "a\nb"}, r"without control characters .* got 'a\\nb'"),
        ({"id": "caf\udce9"}, "non-empty UTF-8"),  # a Latin-1 file name, as Python reads it
        ({"split": "val"}, "v: split must be train or test, got 'val'"),
        ({"label": 2}, r"v: label must be 0 \(normal\) or 1 \(anomalous\), got 2"),
        ({"classes": ("ok", "not ok")}, "v: a class holds no spaces .* got 'not ok'"),
        ({"num_frames": 0}, "v: num_frames must be at least 1 or unknown, got 0"),
        ({"fps": 0.0}, r"v: fps must lie in \(0, 1000\)"),
        ({"fps": float("nan")}, "v: fps must lie"),
        ({"label": 0}, r"v: a normal video \(label 0\) has no events, got 2"),
        ({"events": (Event(50, 60), Event(10, 20))}, r"v: events must be in order, \[10, ...\) follows \[50"),
        ({"num_frames": 99}, "v: an event ends at frame 100, behind the end at 99; use Video.with_length"),
    ],
)
def test_video_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        replace(VIDEO, **change)


def test_with_length_clamps_and_counts():
    video = replace(VIDEO, num_frames=None, fps=None)
    clamped, count = video.with_length(70, 30.0)
    assert (clamped.events, count) == ((Event(10, 20), Event(50, 70)), 1)
    assert (clamped.num_frames, clamped.fps) == (70, 30.0)
    same, count = video.with_length(100)
    assert (same.events, count, same.fps) == (video.events, 0, None)
    with pytest.raises(ValueError, match="v: an event starts at frame 50, but the video has 50 frames"):
        video.with_length(50)


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(1, 60)), max_size=5), st.integers(81, 150))
def test_frame_labels_equal_the_walk(spans, length):
    events = tuple(sorted(Event(start, start + size) for start, size in spans))
    video, _ = Video("v", "", "test", 1, events=events).with_length(length)
    walked = [any(e.start <= frame < e.stop for e in events) for frame in range(length)]
    assert video.frame_labels().tolist() == walked


def test_frame_labels_want_a_length():
    with pytest.raises(ValueError, match="v: the length is unknown"):
        replace(VIDEO, num_frames=None).frame_labels()


# -- specs ------------------------------------------------------------------------------------------------------------

CHANGES = {
    "backbone": "other",
    "dim": 6,
    "weights": "sha",
    "modality": "flow",
    "clip_len": 8,
    "stride": 8,
    "step": 2,
    "tail": "loop",
    "fps": 24,
    "resize": "160x120:area",
    "color": "gray",
    "crops": ("left", "right"),
    "mean": (127,),
    "std": (0.5,),
    "compute": "bfloat16",
    "dtype": "float16",
    "decoder": "opencv",
    "options": {"bins": 8, "fast": True},
    "revision": 2,
}


def test_the_table_of_changes_is_complete():
    assert set(CHANGES) == {f.name for f in fields(FeatureSpec)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts(name):
    spec, other = spec_of(), spec_of(**{name: CHANGES[name]})
    assert spec.id != other.id
    assert spec.to_json() != other.to_json()
    with pytest.raises(SpecMismatchError, match=f"^the store X has {name}="):
        spec.check_equal(other, "the store X")
    assert FeatureSpec.from_json(other.to_json()) == other
    assert FeatureSpec.from_json(other.to_json()).id == other.id
    other.check_equal(FeatureSpec.from_json(other.to_json()), "itself")


def test_equal_specs_have_one_id():
    """127 == 127.0, so both must hash alike: the store's digest is taken of the text."""
    whole, real = spec_of(mean=(127,), std=(64,), fps=25), spec_of(mean=(127.0,), std=(64.0,), fps=25.0)
    assert whole == real
    assert (whole.id, whole.to_json()) == (real.id, real.to_json())


def test_random_weights_stand_in_the_id():
    assert "-random-" in spec_of(weights="random:3").id
    assert "random" not in spec_of(weights="none").id


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.booleans(), st.integers(), st.floats(0, 1))))
def test_options_survive_json(options):
    spec = spec_of(options=options)
    back = FeatureSpec.from_json(spec.to_json())
    assert back == spec
    assert back.id == spec.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "a b"}, "a backbone's name holds letters"),
        ({"backbone": "../x"}, "a backbone's name holds letters"),
        ({"modality": "smell"}, "modality must be one of rgb, flow"),
        ({"dtype": "float64"}, "stored as float16 or float32, got 'float64'"),
        ({"dim": 0}, "dim >= 1"),
        ({"crops": ()}, "distinct crop names"),
        ({"crops": ("a", "a")}, "distinct crop names"),
        ({"stride": 0}, "ClipGrid.stride must be at least 1"),
        ({"tail": "pad"}, "ClipGrid.tail must be one of"),
    ],
)
def test_spec_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        spec_of(**change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a feature spec"),
        ("[]", "not a feature spec"),
        ("3", "not a feature spec"),
        ('{"backbone": "x"}', "not a feature spec: .*dim"),
        (json.dumps({**json.loads(spec_of().to_json()), "zoom": 2}), "unknown field zoom: .* upgrade"),
    ],
)
def test_from_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec.from_json(text)


# -- features and scores ----------------------------------------------------------------------------------------------


def test_features_accept_what_fits():
    for dtype in ("float16", "float32"):
        assert VideoFeatures("v", np.zeros((1, 3, 5), dtype), ClipGrid(40)).x.dtype == dtype


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 5), np.float32), r"v: x must be \(K, N, D\)"),
        (np.zeros((1, 3, 5)), "v: x must be .* float64"),
        (np.zeros((1, 4, 5), np.float32), "v: 4 clips in x, 3 in its grid"),
        (np.zeros((2, 3, 5), np.float32), "v: 2 crops in x, but names"),
    ],
)
def test_features_refuse(x, message):
    with pytest.raises(ValueError, match=message):
        VideoFeatures("v", x, ClipGrid(40))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite_and_say_where(value):
    x = np.zeros((2, 3, 5), np.float32)
    x[1, 2, 4] = value
    with pytest.raises(ValueError, match=rf"v: feature 4 of clip 2, crop 'b', is {value}"):
        VideoFeatures("v", x, ClipGrid(40), crops=("a", "b"))


def test_frame_scores_refuse():
    with pytest.raises(ValueError, match=r"v: \(3,\) frame scores for \(4,\) frame labels"):
        FrameScores("v", np.zeros(3), np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="v: a frame score is NaN or infinite"):
        FrameScores("v", np.array([0.0, np.nan]), np.zeros(2, np.uint8))
