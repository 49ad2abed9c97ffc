"""Events in a row of scores: spans above a threshold with hysteresis, merged and freed of short ones, as they come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import NDArray

ROUNDING_S = 1e-6
"""Times are sums of floats: 3 / 25 - 1 / 25 is less than 2 / 25. What is that much short of a limit has reached it."""


@dataclass(frozen=True)
class EventRule:
    """What counts as an event.

    Args:
        high: a span begins with the first score >= `high`, in the scores' own unit.
        low: and goes on while scores are >= `low`, which is at most `high`.
        min_s: spans shorter than that are dropped, seconds, after merging; one of just that length is kept.
        merge_s: spans less than that apart are one, seconds; those just that far apart stay two. 0 merges none.

    Lengths and distances are compared with a tolerance of a microsecond. Raises ValueError on numbers that make no
    sense.
    """

    high: float
    low: float
    min_s: float = 0.0
    merge_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("high", "low"):
            if not isfinite(value := getattr(self, name)):
                raise ValueError(f"an event's threshold '{name}' must be a finite number, got {value}")
        if self.low > self.high:
            raise ValueError(
                f"an event ends below 'low' and begins at 'high': low must be at most high, got {self.low:g} above "
                f"{self.high:g}"
            )
        for name in ("min_s", "merge_s"):
            if not (isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} must be seconds, 0 or more, got {value}")


@dataclass(frozen=True)
class Span:
    """One event: [start_s, stop_s) in seconds, its highest score, and when that is reached first.

    `peak_s` is the beginning of the frame or clip with that score.
    """

    start_s: float
    stop_s: float
    peak: float
    peak_s: float


class EventFinder:
    """Finds events while scores come in, in constant memory: `for ...: spans += finder.push(...)`, then `.close()`.

    Spans come in order and never overlap. One is given out when it is certain: when nothing that comes can join it.
    """

    def __init__(self, rule: EventRule) -> None:
        self.rule = rule
        self._open: Span | None = None  # goes on with the next score >= low
        self._ended: Span | None = None  # may still be joined by one that begins soon
        self._now = -np.inf

    @property
    def current(self) -> Span | None:
        """The event that the last score belongs to, so far; None outside, and while it is shorter than `min_s`."""
        if self._open is None:
            return None
        span = self._joined(self._open)
        return span if self._is_long(span) else None

    def push(self, start_s: float, stop_s: float, score: float) -> list[Span]:
        """The score of the frame or clip that lasts from `start_s` to `stop_s`: the spans that are certain now.

        Where time leaps forward, what lies between has no score and belongs to no span, unless merging bridges it.

        Raises:
            ValueError: a score or a time that is not finite, a stop that is not behind its start, or a start before the
                last stop.
        """
        if not (isfinite(start_s) and isfinite(stop_s) and isfinite(score)):
            raise ValueError(f"scores and times must be finite, got {score} from {start_s} s to {stop_s} s")
        if not start_s < stop_s:
            raise ValueError(f"a score must last a while, got one from {start_s} s to {stop_s} s")
        if start_s < self._now - ROUNDING_S:
            raise ValueError(f"scores must come in order of time, got one from {start_s} s on behind {self._now} s")
        if self._open is not None and start_s > self._now + ROUNDING_S:
            self._end()
        self._now = stop_s
        if self._open is not None and score >= self.rule.low:
            self._open = replace(self._open, stop_s=stop_s)
            if score > self._open.peak:
                self._open = replace(self._open, peak=score, peak_s=start_s)
            return []
        if self._open is not None:
            self._end()
        certain: list[Span] = []
        if self._ended is not None and not self._joins(start_s if score >= self.rule.high else stop_s):
            certain = self._give()
        if score >= self.rule.high:
            self._open = Span(start_s, stop_s, score, start_s)
        return certain

    def close(self) -> list[Span]:
        """No more scores come: the spans that are left."""
        if self._open is not None:
            self._end()
        return self._give()

    def _end(self) -> None:
        """The open span is over; it is one with that before it, or else that was given out when it began."""
        if self._open is not None:
            self._ended, self._open = self._joined(self._open), None

    def _joined(self, span: Span) -> Span:
        """The span with the one before it that it joins."""
        before = self._ended
        if before is None:
            return span
        top = span if span.peak > before.peak else before
        return Span(before.start_s, span.stop_s, top.peak, top.peak_s)

    def _joins(self, start_s: float) -> bool:
        """Whether a span from `start_s` on is one with the last that ended."""
        return self._ended is not None and start_s - self._ended.stop_s < self.rule.merge_s - ROUNDING_S

    def _is_long(self, span: Span) -> bool:
        return span.stop_s - span.start_s >= self.rule.min_s - ROUNDING_S

    def _give(self) -> list[Span]:
        span, self._ended = self._ended, None
        return [span] if span is not None and self._is_long(span) else []


def find_events(
    scores: NDArray[np.floating] | Sequence[float], times: NDArray[np.floating] | Sequence[float], rule: EventRule
) -> list[Span]:
    """The events in a whole row of scores, in order.

    Args:
        scores: (F,), of frames or clips, finite.
        times: (F + 1,) seconds, rising: where each begins, and where the last one ends.
        rule: what counts as an event.

    Raises:
        ValueError: shapes that do not fit, or what `EventFinder.push` refuses.
    """
    values, edges = np.asarray(scores, np.float64), np.asarray(times, np.float64)
    if values.ndim != 1 or edges.shape != (len(values) + 1,):
        raise ValueError(f"scores must be (F,) and times (F + 1,), got {values.shape} and {edges.shape}")
    if not (np.diff(edges) > 0).all():
        raise ValueError("times must rise from frame to frame")
    # frames of one clip share their score: they go in as one piece, which changes no span
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    finder = EventFinder(rule)
    spans: list[Span] = []
    for start, stop in pairwise([*starts.tolist(), len(values)]):
        spans += finder.push(float(edges[start]), float(edges[stop]), float(values[start]))
    return spans + finder.close()
