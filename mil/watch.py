"""A source that is watched: each clip is extracted and scored as it comes, events are told of when they happen."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract.backbones import Backbone
from extract.live import Ended, Gap, LiveClip, Piece
from mil.events import EventRule
from mil.online import OnlineScorer
from mil.watch_events import Alarm, EventWatch

log = logging.getLogger(__name__)
Message = dict[str, Any]
_RECENT = 10_000  # clips whose latencies are kept for the median


class Watcher:
    """Pieces of a live source in, messages out; every message is a dictionary that JSON holds, and says its `type`.

    start: once, with the first piece; what `about` holds, and the delay in seconds.
    clip: `clip` its number since the last gap, `start` and `stop` in frames, `start_s` and `stop_s` in seconds,
        `score`, `latency_s` from the arrival of its last frame to its score, `compute_s` the part of it that was not
        waiting for further clips: from the last frame that the score needed.
    alarm: an event has begun, as soon as it is certain: `start_s`, `stop_s` so far, `score`.
    event: it is over: `start_s`, `stop_s`, `peak`, `peak_s`.
    skipped: `clips` that the source left out before clip `clip`, as scoring them took too long.
    gap: the source broke off, and numbers and times begin anew: `reason`.
    end: how much there was, median (of the last 10,000 clips) and highest of the latencies, the source's `notes`, and
        the `reason`: "ended", "interrupted" or "failed".

    All but clips have `time`, seconds since 1970.

    Args:
        specs: of the features, one per modality.
        backbones: that make them, in the same order.
        online: scores clips while the video runs.
        rule: what counts as an event.
        about: what the first message says of the run.
        clock: of the same kind as the clips' `ready`.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        backbones: Sequence[Backbone],
        online: OnlineScorer,
        rule: EventRule,
        about: Message | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.specs, self.backbones, self.online = tuple(specs), tuple(backbones), online
        self._events, self.about, self._clock = EventWatch(rule, specs[0]), dict(about or {}), clock
        self._waiting: deque[LiveClip] = deque()  # without their pictures: clips whose score is not final
        self._last: LiveClip | None = None
        self._counts = dict.fromkeys(("clips", "frames", "alarms", "events", "gaps", "skipped"), 0)
        self._latency, self._compute = _Times(), _Times()
        self._started, self._notes = False, list[str]()

    def push(self, piece: Piece) -> list[Message]:
        """What a piece of the source leads to, in the order in which it is to be told.

        Raises ValueError when the backbone makes no features of a clip.
        """
        if isinstance(piece, LiveClip):
            return [*self._start(piece.fps), *self._clip(piece)]
        found = [*self._start(None), *self._flush(piece.num_frames if isinstance(piece, Ended) else None)]
        if isinstance(piece, Gap):
            self._counts["gaps"] += 1
            return [*found, {"type": "gap", "reason": piece.reason, "time": piece.time}]
        self._notes = list(piece.notes)
        return found

    def close(self, reason: str = "ended") -> list[Message]:
        """The watch is over: scores that still waited, open events, and the end."""
        found = [*self._start(None), *self._flush(None)]
        times = {"latency_s": self._latency.summary(), "compute_s": self._compute.summary()}
        return [*found, self._message("end", reason=reason, **self._counts, **times, notes=self._notes)]

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _start(self, fps: float | None) -> list[Message]:
        if self._started:
            return []
        self._started = True
        delay = {"delay_clips": self.online.delay, "delay_s": self.delay_s(fps), "fps": fps}
        return [self._message("start", **self.about, **delay)]

    def delay_s(self, fps: float | None) -> float | None:
        """Seconds from a clip's end to that of the last clip that its score needs; None where nobody knows the rate."""
        rate = self.specs[0].fps or fps
        return round(self.online.delay * self.specs[0].stride / rate, 3) if rate else None

    def _clip(self, clip: LiveClip) -> list[Message]:
        found: list[Message] = []
        if skipped := clip.index - (self._last.index + 1 if self._last else 0):
            found += self._scored(self.online.close())  # the next clip is no neighbour of those before
            self._counts["skipped"] += skipped
            found.append(self._message("skipped", clips=skipped, clip=clip.index))
        features = self._features(clip)
        self._last = _without_pictures(clip)
        self._waiting.append(self._last)
        return found + self._scored(self.online.push(features))

    def _features(self, clip: LiveClip) -> dict[str, NDArray[np.float32]]:
        """{modality: (K, D)}, rounded as a store would have them."""
        found = {}
        for spec, backbone in zip(self.specs, self.backbones, strict=True):
            made = backbone.submit([clip.data[spec.modality]], [clip.fps])()[0]
            found[spec.modality] = made.astype(spec.dtype).astype(np.float32)
            for note in backbone.take_notes():
                log.warning("clip %d: %s", clip.index, note)
        return found

    def _scored(self, pairs: Sequence[tuple[int, float]]) -> list[Message]:
        found: list[Message] = []
        for _, score in pairs:
            clip, now = self._waiting.popleft(), self._clock()
            newest = self._last or clip
            latency, compute = now - clip.ready, now - newest.ready
            self._latency.add(latency)
            self._compute.add(compute)
            self._counts["clips"] += 1
            spans = {"start": clip.start, "stop": clip.stop, **_seconds(start_s=clip.start_s, stop_s=clip.stop_s)}
            times = _seconds(latency_s=latency, compute_s=compute)
            found.append({"type": "clip", "clip": clip.index, **spans, "score": score, **times})
            found += [self._told(one, latency) for one in self._events.push(clip, score)]
        return found

    def _flush(self, frames: int | None) -> list[Message]:
        """The video has ended, of so many frames, or as many as its clips show."""
        found = self._scored(self.online.close())
        found += [self._told(one) for one in self._events.close()]
        self._counts["frames"] += frames or (self._last.stop if self._last else 0)
        self._last = None
        return found

    def _told(self, one: Any, latency: float | None = None) -> Message:
        """The message about an alarm or an event."""
        if isinstance(one, Alarm):
            self._counts["alarms"] += 1
            times = _seconds(start_s=one.span.start_s, stop_s=one.span.stop_s)
            late = {} if latency is None else _seconds(latency_s=latency)
            return self._message("alarm", **times, score=one.score, threshold=self._events.rule.high, **late)
        self._counts["events"] += 1
        times = _seconds(start_s=one.start_s, stop_s=one.stop_s)
        return self._message("event", **times, peak=one.peak, **_seconds(peak_s=one.peak_s))

    def _message(self, kind: str, **values: Any) -> Message:
        return {"type": kind, **values, "time": round(time.time(), 3)}


@dataclass
class _Times:
    """Durations: the highest of all, the median of the recent ones."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    highest: float = 0.0

    def add(self, seconds: float) -> None:
        self.recent.append(seconds)
        self.highest = max(self.highest, seconds)

    def summary(self) -> dict[str, float] | None:
        return _seconds(median=median(self.recent), max=self.highest) if self.recent else None


def _seconds(**values: float) -> dict[str, float]:
    """To the microsecond: no 0.6400000000000001."""
    return {name: round(value, 6) for name, value in values.items()}


def _without_pictures(clip: LiveClip) -> LiveClip:
    return LiveClip(clip.index, clip.start, clip.stop, clip.start_s, clip.stop_s, {}, clip.fps, clip.ready)
