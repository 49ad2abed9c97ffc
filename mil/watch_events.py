"""Clip scores as they come -> what every frame scores, as in `ClipGrid.to_frames` -> alarms and events."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from data.grid import ratio_of
from data.types import FeatureSpec
from extract.live import LiveClip
from mil.events import EventFinder, EventRule, Span


@dataclass(frozen=True)
class Alarm:
    """An event has begun: what is known of it, `span`, and the score that made it certain."""

    span: Span
    score: float


class EventWatch:
    """Finds events in the clip scores of a running video: an alarm when one is certain, the span when it is over.

    Every event has one alarm, with the same `start_s`.

    Args:
        rule: what counts as an event.
        spec: of the features that lie behind the scores: which frames a clip covers.
    """

    def __init__(self, rule: EventRule, spec: FeatureSpec) -> None:
        self.rule, self.spec = rule, spec
        self.reset()

    def reset(self) -> None:
        """Another video begins, at 0 s."""
        self._finder = EventFinder(self.rule)
        self._scores = SpanScores(self.spec)
        self._alarmed: float | None = None  # where the event begins that was told of last

    def push(self, clip: LiveClip, score: float) -> list[Alarm | Span]:
        """The next clip and its final score."""
        return self._found(self._scores.push(clip, score))

    def close(self) -> list[Alarm | Span]:
        """The video has ended. The next clip is of another one."""
        found: list[Alarm | Span] = [*self._found(self._scores.close()), *self._finder.close()]
        self.reset()
        return found

    def _found(self, spans: list[tuple[float, float, float]]) -> list[Alarm | Span]:
        found: list[Alarm | Span] = []
        for start_s, stop_s, score in spans:
            found += self._finder.push(start_s, stop_s, score)
            begun = self._finder.current
            if begun is not None and begun.start_s != self._alarmed:
                self._alarmed = begun.start_s
                found.append(Alarm(begun, score))
        return found


class SpanScores:
    """Spans of frames of one score each: the mean over the clips that cover them, as `ClipGrid.to_frames` has it.

    Frames between two clips take the score of the first, unless clips were skipped there; those have no score. A clip
    lasts for a frame at least, also where resampling makes it shorter.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._kept: deque[tuple[LiveClip, float]] = deque()  # those that cover what comes next, the newest last
        self._done, self._done_s = 0, 0.0  # frames that are out, and when the next one begins

    def push(self, clip: LiveClip, score: float) -> list[tuple[float, float, float]]:
        """The next clip -> [(start_s, stop_s, score)], up to where the clip after it begins, or this one ends."""
        found: list[tuple[float, float, float]] = []
        if self._kept:
            last, of_last = self._kept[-1]
            if clip.index != last.index + 1:
                found += self._up_to(min(last.stop, clip.start))
            elif clip.start > self._done:
                found += self._span(clip.start_s, of_last)
                self._done = clip.start
        if clip.start > self._done or not self._kept:
            self._done, self._done_s = clip.start, max(clip.start_s, self._done_s)
        self._kept.append((clip, score))
        return found + self._up_to(min(clip.stop, self._next_start(clip)))

    def close(self) -> list[tuple[float, float, float]]:
        """The video ends with the last clip."""
        return self._up_to(self._kept[-1][0].stop) if self._kept else []

    def _up_to(self, stop: int) -> list[tuple[float, float, float]]:
        if stop <= self._done:
            return []
        while self._kept[0][0].stop <= self._done:
            self._kept.popleft()
        cuts = {self._done, stop, *(c.stop for c, _ in self._kept if self._done < c.stop < stop)}
        found = []
        for start, end in pairwise(sorted(cuts)):
            scores = [score for clip, score in self._kept if clip.stop > start]
            mean = min(max(sum(scores) / len(scores), min(scores)), max(scores))  # ties stay ties
            found += self._span(self._seconds(end), mean)
        self._done = stop
        return found

    def _span(self, stop_s: float, score: float) -> list[tuple[float, float, float]]:
        """From what is out on; nothing where the clock of a source stands still."""
        start_s, self._done_s = self._done_s, max(stop_s, self._done_s)
        return [(start_s, stop_s, score)] if stop_s > start_s else []

    def _seconds(self, frame: int) -> float:
        """When a frame of the newest clip begins: evenly between its ends."""
        clip = self._kept[-1][0]
        if frame in (clip.start, clip.stop):
            return clip.start_s if frame == clip.start else clip.stop_s
        return clip.start_s + (frame - clip.start) / (clip.stop - clip.start) * (clip.stop_s - clip.start_s)

    def _next_start(self, clip: LiveClip) -> int:
        """The first frame of the clip after it, as `ClipGrid.starts` has it."""
        rate = ratio_of(self.spec.rate(clip.fps))
        shown = (clip.index + 1) * self.spec.stride
        return -((1 - 2 * shown) * rate.denominator // (2 * rate.numerator)) if rate != 1 else shown
