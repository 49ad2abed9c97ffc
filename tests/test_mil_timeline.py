"""Pictures of scores: what is drawn lies where it should, names are shown as they are, long rows lose no extreme."""

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from data.types import FrameScores
from mil.clock import clock, stretch
from mil.drawing import extent, limits, literal, thinned
from mil.events import EventRule, Span, find_events
from mil.plots import timelines
from mil.timeline import figure, timeline

ODD = '<script>alert("x")</script> $x_1^2$ \\alpha_視頻 ${ vidéo & co'


def wave(count=300, fps=25.0):
    scores = 0.5 - 0.4 * np.cos(np.arange(count) // 16 * 16 / count * 4 * np.pi)
    return scores, np.arange(count + 1) / fps


def texts_of(path):
    return ["".join(e.itertext()) for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def spans_of(axis, colour):
    """[start, stop) of the shaded parts of a colour, seconds."""
    shaded = [p for p in axis.patches if hasattr(p, "get_width") and mpl.colors.to_hex(p.get_facecolor()) == colour]
    return sorted((p.get_x(), p.get_x() + p.get_width()) for p in shaded)


def marks_of(axis):
    marks = [c for c in axis.collections if isinstance(c, LineCollection)]
    return [tuple(segment[0]) for c in marks for segment in c.get_segments()]


@pytest.mark.parametrize("name", ["t.png", "t.SVG"])
def test_a_picture_is_whole_and_always_the_same(tmp_path, name):
    scores, times = wave()
    shown = {"title": ODD, "events": [Span(2.0, 4.0, 0.9, 3.0)], "threshold": 0.6, "labels": scores > 0.8}
    path = timeline(tmp_path / name, scores, times, **shown)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if name == "t.png" else b"<?xml")
    assert timeline(path, scores, times, **shown).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match=r"a \.png or an \.svg, got 't\.pdf'"):
        timeline(tmp_path / "t.pdf", scores, times, **shown)


def test_names_are_shown_as_they_are(tmp_path):
    scores, times = wave()
    path = timeline(tmp_path / "t.svg", scores, times, title=ODD)
    assert ODD in texts_of(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    path = timelines(tmp_path / "all.svg", [FrameScores(ODD, scores, (scores > 0.8).astype(np.uint8))], {}, title=ODD)
    assert ODD in texts_of(path)
    assert sum(ODD in text for text in texts_of(path)) == 2
    assert literal("a\nb\x00\udcff") == "a\ufffdb\ufffd\ufffd"
    assert re.fullmatch(r"x{66}…y{33}", literal("x" * 90 + "y" * 90))


def test_what_is_drawn_lies_where_it_should():
    scores, times = wave()
    events = find_events(scores, times, EventRule(0.6, 0.4))
    labels = np.zeros(300, np.uint8)
    labels[100:150] = labels[299:] = 1
    drawn = figure(scores, times, events=events, threshold=0.6, low=0.4, clips=times[:-1:16], labels=labels)
    axis, strip = drawn.axes
    assert len(events) == 2
    assert spans_of(axis, "#c0392b") == [(s.start_s, s.stop_s) for s in events]
    np.testing.assert_allclose(spans_of(strip, "#2a9d8f"), [(4.0, 6.0), (11.96, 12.0)])
    levels = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() in ("--", ":")]
    assert levels == [0.6, 0.4]
    said = [text.get_text() for text in axis.texts]
    assert {"threshold 0.6", "ends below 0.4", "0:01.9\N{EN DASH}0:05.1", "0:08.3\N{EN DASH}0:10.9"} <= set(said)
    assert axis.get_xlim() == (0, 12)
    assert axis.get_ylim()[0] < 0 < 1 < axis.get_ylim()[1]
    (line,) = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    edges, values = line.get_data()
    for second in np.arange(0.02, 12, 0.04):  # the middle of every frame
        at = np.searchsorted(edges, second, side="right") - 1
        assert values[at] == scores[int(second * 25)]
    assert marks_of(axis) == [(t, 0) for t in times[:-1:16]]
    assert marks_of(figure(scores, times, clips=np.linspace(0, 12, 300)).axes[0]) == []  # they would run together


def test_labels_of_events_never_overlap():
    scores, times = wave(3000)
    events = [Span(float(i), i + 0.5, 0.5 + 0.001 * i, float(i)) for i in range(0, 100, 2)]
    drawn = figure(scores, times, events=events)
    drawn.draw_without_rendering()
    axis = drawn.axes[0]
    boxes = sorted((t.get_window_extent() for t in axis.texts), key=lambda box: box.x0)
    assert len(boxes) > 5
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    assert boxes[0].x0 > 0
    assert "1:38.0\N{EN DASH}1:38.5" in [t.get_text() for t in axis.texts]  # the highest peak has one
    assert len(spans_of(axis, "#c0392b")) == 50


@pytest.mark.parametrize(
    ("values", "lines", "wanted"),
    [
        ([0.2, 0.7], (), (0, 1)),
        ([0.0, 0.0], (), (0, 1)),
        ([0.0, 0.03], (0.5,), (0, 1)),
        ([0.0, 0.03], (0.02, None), (0, 0.03)),
        ([3.0, 40.0], (), (0, 40)),
        ([30.0, 40.0], (), (30, 40)),
        ([-2.0, 0.5], (), (-2, 0.5)),
        ([-5.0, -4.0], (-3.0,), (-5, -3)),
        ([0.2, 0.7], (1.5,), (0, 1.5)),
    ],
)
def test_the_range_suits_the_scores(values, lines, wanted):
    assert extent(np.array(values), *lines) == wanted
    low, high = limits(np.array(values), *lines)
    assert low < wanted[0]
    assert high > wanted[1]


@pytest.mark.parametrize("value", [0.0, 7.0, -7.0, 1e-30])
def test_one_frame_and_constants(tmp_path, value):
    low, high = limits(np.array([value]))
    assert low < value < high
    timeline(tmp_path / "t.png", np.array([value]), np.array([0, 0.04]), title="", threshold=value, low=value)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.01, 5)), min_size=1, max_size=80), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_thinned_rows_lose_no_extreme(drawn, columns):
    scores = np.array([s for s, _ in drawn])
    times = np.cumsum([0.0, *(d for _, d in drawn)])
    values, edges = thinned(scores, times, columns)
    assert len(edges) == len(values) + 1 <= 2 * columns + 1
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (times[0], times[-1])
    # slowly: every column has, of the frames that begin in it, the lowest and the highest and no other
    length = times[-1] - times[0]
    whole = len(set(np.flatnonzero(np.diff(scores)))) + 1 <= 2 * columns
    for begin, score in zip(times[:-1].tolist(), scores.tolist(), strict=True):
        near = [
            v for v, a, b in zip(values, edges[:-1], edges[1:], strict=True)
            if b > begin - length / columns and a < begin + length / columns
        ]  # fmt: skip
        assert min(near) <= score <= max(near)
    assert set(values) <= set(scores)
    if whole:
        middles = (times[:-1] + times[1:]) / 2
        np.testing.assert_array_equal(values[np.searchsorted(edges, middles, side="right") - 1], scores)


def test_a_single_peak_of_six_hours_is_seen(tmp_path):
    scores = np.random.default_rng(0).uniform(0.1, 0.11, 540_000)
    scores[333_333] = 1.0
    times = np.arange(540_001) / 25
    values, edges = thinned(scores, times)
    assert len(values) <= 4000
    at = int(np.argmax(values))
    assert (values[at], values.min()) == (1.0, scores.min())
    assert abs(edges[at] - 333_333 / 25) < 20  # of 21,600 s: less than a pixel or two
    path = timeline(tmp_path / "t.png", scores, times, title="six hours")
    assert path.stat().st_size < 200_000
    ticks = [t.get_text() for t in figure(scores, times).axes[0].get_xticklabels()]
    assert ticks == ["0:00", "1:00:00", "2:00:00", "3:00:00", "4:00:00", "5:00:00", "6:00:00"]


def test_clock():
    found = [clock(s) for s in (0, 7.4, 59.6, 65, 3599.7, 3600, 90_061, -3)]
    assert found == ["0:00", "0:07", "1:00", "1:05", "1:00:00", "1:00:00", "25:01:01", "-0:03"]
    assert [clock(s, 1) for s in (0.04, 59.96, 61.25, -0.01)] == ["0:00.0", "1:00.0", "1:01.2", "0:00.0"]
    assert clock(1.5, 2) == "0:01.50"
    assert stretch(59.5, 69.4) == "0:59.5\N{EN DASH}1:09.4"
    assert stretch(59.5, 69.5) == "1:00\N{EN DASH}1:10"


def test_what_is_refused():
    scores, times = wave()
    with pytest.raises(ValueError, match=r"times \(F \+ 1,\), got \(300,\) and \(300,\)"):
        figure(scores, times[:-1])
    with pytest.raises(ValueError, match="finite numbers"):
        figure(np.where(scores > 0.8, np.nan, scores), times)
    with pytest.raises(ValueError, match=r"labels must be \(F,\), one per score, got \(10,\)"):
        figure(scores, times, labels=np.zeros(10))


def test_a_notebook_gets_a_png_even_of_letters_that_no_font_has():
    scores, times = wave()
    assert figure(scores, times, title="\U00013080 " + ODD)._repr_png_().startswith(b"\x89PNG")


def test_the_demos_picture_shows_both_kinds_and_any_range(tmp_path):
    scores = [np.linspace(0, top, 50) for top in (1.0, 30.0, 2.0)]
    labels = [np.zeros(50, np.uint8) for _ in scores]
    labels[1][10:20] = 1
    videos = [FrameScores(f"v{i}", s, y) for i, (s, y) in enumerate(zip(scores, labels, strict=True))]
    path = timelines(tmp_path / "t.svg", videos, {"v0": 25.0, "v1": 25.0, "v2": None}, title="demo", most=2)
    said = texts_of(path)
    assert [text for text in said if text in ("v0", "v1", "v2")] == ["v1", "v0"]
    assert {"30", "20"} & set(said)
