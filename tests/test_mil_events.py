"""Events against a slow reference of masks and lists in whole numbers of time, whole and in pieces."""

from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mil.events import EventFinder, EventRule, Span, find_events

LEVELS = (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 7.0)
PER_SECOND = 25  # k / 25 s is no float: the limits are hit only as well as floats can
units = st.integers(0, 6)
frames = st.lists(st.tuples(st.sampled_from(LEVELS), st.integers(1, 4)), max_size=24)
thresholds = st.tuples(st.sampled_from(LEVELS), st.sampled_from(LEVELS)).map(sorted)


def rule_of(limits, min_units, merge_units):
    low, high = limits
    return EventRule(high, low, min_units / PER_SECOND, merge_units / PER_SECOND)


def edges_of(durations):
    """Edges in whole units, and as floats with the rounding that sums have."""
    whole = np.cumsum([0, *durations])
    return whole.tolist(), np.cumsum([0.0, *(d / PER_SECOND for d in durations)])


def slow(scores, edges, limits, min_units, merge_units):
    """(first frame, frame behind the last) of the events, in exact arithmetic on whole arrays."""
    low, high = limits
    inside = [
        any(scores[j] >= high and min(scores[j : i + 1]) >= low for j in range(i + 1)) for i in range(len(scores))
    ]
    spans = [[i, i + 1] for i, yes in enumerate(inside) if yes]
    joined = True
    while joined:
        joined = False
        for k in range(len(spans) - 1):
            gap = edges[spans[k + 1][0]] - edges[spans[k][1]]
            if gap == 0 or gap < merge_units:
                spans[k : k + 2] = [[spans[k][0], spans[k + 1][1]]]
                joined = True
                break
    return [(a, b) for a, b in spans if edges[b] - edges[a] >= min_units]


@given(frames, thresholds, units, units)
@settings(max_examples=200, deadline=None)
@example([(1.0, 1), (0.0, 2), (1.0, 1)], [0.5, 0.5], 0, 2)  # just merge_s apart: two
@example([(0.0, 1), (1.0, 2), (0.0, 1)], [0.5, 0.5], 2, 0)  # just min_s long: kept
def test_events_are_those_of_the_slow_reference(drawn, limits, min_units, merge_units):
    scores, durations = [s for s, _ in drawn], [d for _, d in drawn]
    whole, edges = edges_of(durations)
    found = find_events(np.array(scores), edges, rule_of(limits, min_units, merge_units))
    wanted = []
    for a, b in slow(scores, whole, limits, min_units, merge_units):
        top = a + int(np.argmax(scores[a:b]))
        wanted.append((edges[a], edges[b], scores[top], edges[top]))
    assert [astuple(span) for span in found] == wanted


@given(frames, thresholds, units, units)
@settings(max_examples=80, deadline=None)
def test_spans_lie_in_order_apart_and_within_the_video(drawn, limits, min_units, merge_units):
    _, edges = edges_of([d for _, d in drawn])
    rule = rule_of(limits, min_units, merge_units)
    spans = find_events([s for s, _ in drawn], edges, rule)
    bounds = [edge for span in spans for edge in (span.start_s, span.stop_s)]
    assert bounds == sorted(set(bounds))
    assert set(bounds) <= set(edges.tolist())
    for span in spans:
        assert span.start_s <= span.peak_s < span.stop_s
        assert span.peak >= rule.high


@given(frames, thresholds, units, units, st.data())
@settings(max_examples=120, deadline=None)
def test_frame_by_frame_and_in_larger_pieces_gives_the_same_and_as_soon_as_it_is_certain(
    drawn, limits, min_units, merge_units, data
):
    scores, durations = [s for s, _ in drawn], [d for _, d in drawn]
    _, edges = edges_of(durations)
    rule = rule_of(limits, min_units, merge_units)
    whole = find_events(scores, edges, rule)
    finder, given_out = EventFinder(rule), []
    asked = data.draw(st.integers(0, len(scores)), label="asked")
    for i, score in enumerate(scores):
        if i == asked:
            # all that is held back would be another span if the next frame were one of an event
            later = [*edges[: i + 1], edges[i] + 1 / PER_SECOND]
            changed = find_events([*scores[:i], rule.high], later, rule)
            assert changed[: len(given_out)] == given_out
            held = find_events(scores[:i], edges[: i + 1], rule)[len(given_out) :]
            assert len(held) <= 1
            assert not set(held) & set(changed)
        if data.draw(st.booleans(), label=f"cut {i}"):
            middle = (edges[i] + edges[i + 1]) / 2
            given_out += finder.push(edges[i], middle, score)
            given_out += finder.push(middle, edges[i + 1], score)
        else:
            given_out += finder.push(edges[i], edges[i + 1], score)
    assert given_out + finder.close() == whole
    assert finder.close() == []  # nothing twice


@given(frames, thresholds, units, units)
@settings(max_examples=80, deadline=None)
def test_the_current_event_is_the_one_that_would_end_now(drawn, limits, min_units, merge_units):
    scores = [s for s, _ in drawn]
    whole, edges = edges_of([d for _, d in drawn])
    rule = rule_of(limits, min_units, merge_units)
    finder = EventFinder(rule)
    for i, score in enumerate(scores):
        finder.push(edges[i], edges[i + 1], score)
        spans = slow(scores[: i + 1], whole, limits, min_units, merge_units)
        inside = bool(spans) and spans[-1][1] == i + 1
        assert (finder.current is not None) == inside
        if finder.current is not None:
            assert finder.current == find_events(scores[: i + 1], edges[: i + 2], rule)[-1]


def test_by_hand():
    scores = [0.9, 0.4, 0.1, 0.8, 0.95, 0.6, 0.1, 0.1, 0.1, 0.7, 0.1, 0.8]
    rule = EventRule(high=0.7, low=0.4, min_s=1.5, merge_s=2.0)
    assert find_events(scores, np.arange(13.0), rule) == [
        Span(0.0, 6.0, 0.95, 4.0),  # from the first frame on, over a gap of one second
        Span(9.0, 12.0, 0.8, 11.0),  # two that are too short alone, up to the last frame
    ]
    assert find_events(scores[:11], np.arange(12.0), rule) == [Span(0.0, 6.0, 0.95, 4.0)]
    assert find_events([], [0.0], rule) == []


def test_a_leap_in_time_ends_an_event():
    finder = EventFinder(EventRule(0.5, 0.5))
    assert finder.push(0.0, 1.0, 0.9) == []
    assert finder.push(5.0, 6.0, 0.8) == [Span(0.0, 1.0, 0.9, 0.0)]
    assert finder.close() == [Span(5.0, 6.0, 0.8, 5.0)]
    finder = EventFinder(EventRule(0.5, 0.5, merge_s=4.5))
    assert finder.push(0.0, 1.0, 0.8) == finder.push(5.0, 6.0, 0.9) == []
    assert finder.close() == [Span(0.0, 6.0, 0.9, 5.0)]
    finder = EventFinder(EventRule(0.5, 0.5))  # times of clips that do not quite meet: sums of floats
    assert finder.push(0.0, 0.3, 0.9) == finder.push(0.1 + 0.2, 1.0, 0.8) == finder.push(1.0 - 1e-9, 2.0, 0.8) == []
    assert finder.close() == [Span(0.0, 2.0, 0.9, 0.0)]


def test_days_take_no_memory_and_hit_their_limits():
    finder = EventFinder(EventRule(0.5, 0.5, min_s=0.12, merge_s=0.08))
    spans = []
    start = 30 * 86_400 * 25  # a month in, where a float has 4e-10 s left
    for i in range(start, start + 4000):
        spans += finder.push(i / 25, (i + 1) / 25, float((i - start) % 5 < 3))  # 3 frames on, 2 off
    assert len(spans) == 800
    assert {Fraction(s.stop_s - s.start_s).limit_denominator(100) for s in spans} == {Fraction(3, 25)}
    assert not [v for v in vars(finder).values() if isinstance(v, list | dict | set | tuple)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0.3, 0.5), "low must be at most high, got 0.5 above 0.3"),
        ((float("nan"), 0.5), "'high' must be a finite number, got nan"),
        ((0.5, float("nan")), "'low' must be a finite number, got nan"),
        ((float("inf"), 0.5), "'high' must be a finite number"),
        ((0.5, 0.5, -1.0), "min_s must be seconds, 0 or more, got -1.0"),
        ((0.5, 0.5, 0.0, float("nan")), "merge_s must be seconds, 0 or more, got nan"),
        ((0.5, 0.5, float("inf")), "min_s must be seconds"),
    ],
)
def test_rules_that_make_no_sense(values, says):
    with pytest.raises(ValueError, match=says):
        EventRule(*values)


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        ((1.0, 2.0, float("nan")), "finite, got nan from 1.0 s"),
        ((1.0, float("inf"), 0.5), "finite"),
        ((1.0, 1.0, 0.5), "must last a while"),
        ((0.5, 2.0, 0.5), "in order of time, got one from 0.5 s on behind 1.0 s"),
    ],
)
def test_pieces_that_make_no_sense(piece, says):
    finder = EventFinder(EventRule(0.5, 0.5))
    finder.push(0.0, 1.0, 0.9)
    with pytest.raises(ValueError, match=says):
        finder.push(*piece)
    assert finder.close() == [Span(0.0, 1.0, 0.9, 0.0)]  # as if it had never come


def test_rows_that_make_no_sense():
    rule = EventRule(0.5, 0.5)
    with pytest.raises(ValueError, match=r"scores must be \(F,\) and times \(F \+ 1,\), got \(3,\) and \(3,\)"):
        find_events(np.ones(3), np.arange(3.0), rule)
    with pytest.raises(ValueError, match="times must rise"):
        find_events(np.ones(3), [0.0, 1.0, 1.0, 2.0], rule)
    with pytest.raises(ValueError, match="finite, got nan"):
        find_events([0.1, float("nan"), 0.1], np.arange(4.0), rule)
