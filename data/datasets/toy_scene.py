"""What happens in a toy video: people walk and chat, cars and cyclists pass, and in planted spans there is trouble.

The same ordinary life goes on in normal and anomalous videos, fast but harmless passers-by and noises included, so that
neither speed nor brightness nor the number of people gives an anomaly away; only how the bodies move and sound does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sin
from typing import NamedTuple

import numpy as np

from data.datasets.toy_draw import Colour, Place, Pose, Sprite
from data.datasets.toy_people import RUN, Person, clothes, stride
from data.types import Event


class Cue(NamedTuple):
    """Something to hear from `frame` on, for `seconds`, with a strength in [0, 1]."""

    name: str
    frame: int
    seconds: float
    strength: float


class Meeting(NamedTuple):
    """Two people, by number, walk to (x, y) from frame `start` on and talk there until `stop`."""

    start: int
    stop: int
    pair: tuple[int, int]
    x: float
    y: float


class Passer(NamedTuple):
    """Someone who crosses the picture once: "car", "bicycle" or "jogger", from frame `start` on."""

    kind: str
    start: int
    heights_per_s: float
    facing: float
    y: float
    colours: tuple[Colour, ...]

    def sprite(self, frame: int, fps: float, place: Place) -> Sprite | None:
        """How it looks in a frame; None before it comes and after it has gone."""
        height, columns = place.height_at(self.y), place.background.shape[1]
        gone = (frame - self.start) / fps * self.heights_per_s * height - 1.2 * height
        if frame < self.start or gone > columns + 1.2 * height:
            return None
        x = gone if self.facing > 0 else columns - gone
        turn = 2 * pi * 1.5 * (frame - self.start) / fps
        pose = Pose()
        if self.kind == "jogger":
            pose = stride(turn, RUN)
        elif self.kind == "bicycle":
            legs = (
                0.75 + 0.35 * sin(turn),
                0.9 + 0.4 * sin(turn + 1),
                0.75 - 0.35 * sin(turn),
                0.9 - 0.4 * sin(turn + 1),
            )
            pose = Pose(0.55, 1.1, 0.1, 1.0, 0.1, *legs, 0.0, 0.1)
        kind = "person" if self.kind == "jogger" else self.kind
        return Sprite(kind, x, self.y, height, self.facing, pose, self.colours)


def act(
    place: Place, events: Sequence[Event], num_people: int, num_frames: int, fps: float, rng: np.random.Generator
) -> tuple[list[list[Sprite]], list[Cue]]:
    """Plays a video: what is to be drawn in each of its frames, and what is to be heard."""
    people = [Person(rng, place) for _ in range(num_people)]
    passers = _passers(place, num_frames, fps, rng)
    meetings = _meetings(people[0], events, num_people, num_frames, fps, rng)
    cues = [Cue(p.kind, p.start, 5.0, 1.0) for p in passers] + _noises(events, num_people, num_frames, fps, rng)
    frames: list[list[Sprite]] = []
    cast: dict[int, Person] = {}  # who is in trouble, and with whom
    for frame in range(num_frames):
        event = next((e for e in events if e.start <= frame < e.stop), None)
        if event is None:
            cast = {}
        elif frame == event.start:
            cast = _cast(event, people, meetings)
        for number, person in enumerate(people):
            left_s = (event.stop - frame) / fps if event is not None else 0.0
            talk = next((m for m in meetings if number in m.pair and m.start <= frame < m.stop), None)
            person.advance(
                event.kind if event is not None and number in cast else "calm",
                1 / fps,
                partner=cast.get(number),
                meeting=None if talk is None else (talk.x, talk.y, -1.0 if number == talk.pair[0] else 1.0),
                left_s=left_s,
            )
            cues += [Cue(name, frame, 0.15, strength) for name, strength in person.cues]
        sprites = [Sprite("person", p.x, p.y, p.height, p.facing, p.pose, p.colours) for p in people]
        frames.append(sprites + [s for p in passers if (s := p.sprite(frame, fps, place)) is not None])
    return frames, cues


def _cast(event: Event, people: list[Person], meetings: list[Meeting]) -> dict[int, Person]:
    if event.kind == "fight":
        first, second = next(m.pair for m in meetings if m.stop == event.start)
        return {first: people[second], second: people[first]}
    if event.kind == "fall":
        nearest = max(range(len(people)), key=lambda number: people[number].y)
        return {nearest: people[nearest]}
    return dict(enumerate(people))


def _passers(place: Place, num_frames: int, fps: float, rng: np.random.Generator) -> list[Passer]:
    rows = place.background.shape[0]
    passers = []
    frame = int(rng.integers(int(-2 * fps), int(2 * fps)))
    while frame < num_frames:
        kind = ("car", "car", "bicycle", "bicycle", "jogger")[rng.integers(5)]
        low, high = (0.06, 0.15) if kind == "car" else (0.25, 0.5)
        y = place.horizon + float(rng.uniform(low, high)) * rows
        speed = {"car": 3.2, "bicycle": 2.6, "jogger": RUN}[kind] * float(rng.uniform(0.8, 1.25))
        passers.append(Passer(kind, frame, speed, float(rng.choice((-1.0, 1.0))), y, clothes(rng)))
        frame += int(rng.uniform(2.0, 6.0) * fps)
    return passers


def _meetings(
    guide: Person, events: Sequence[Event], num_people: int, num_frames: int, fps: float, rng: np.random.Generator
) -> list[Meeting]:
    """A talk before every fight, and as many talks that end well."""

    def arrange(start: int, stop: int) -> Meeting:
        first, second = (int(n) for n in rng.permutation(num_people)[:2])
        return Meeting(start, stop, (first, second), *guide.somewhere())

    before_fights = [arrange(max(0, e.start - int(3 * fps)), e.start) for e in events if e.kind == "fight"]
    harmless: list[Meeting] = []
    for _ in range(2):
        start = int(rng.integers(0, num_frames))
        stop = min(num_frames, start + int(rng.uniform(3.0, 5.0) * fps))
        free = all(stop <= m.start or m.stop <= start for m in before_fights + harmless)
        if free and all(stop != e.start for e in events):  # _cast finds the fighters by the end of their talk
            harmless.append(arrange(start, stop))
    return before_fights + harmless


def _noises(
    events: Sequence[Event], num_people: int, num_frames: int, fps: float, rng: np.random.Generator
) -> list[Cue]:
    """Harmless noises anywhere, and voices inside the events that fall silent where they end."""
    cues = []
    for _ in range(int(rng.integers(1, 4))):
        name = ("horn", "door", "bird", "laugh")[rng.integers(4)]
        cues.append(
            Cue(name, int(rng.integers(0, num_frames)), float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.4, 1)))
        )
    for event in events:
        voice, every_s, longest_s = {"fight": ("shout", 0.5, 0.45), "panic": ("scream", 0.35, 0.9)}.get(
            event.kind, ("cry", 0.5, 0.6)
        )
        if event.kind == "fall":
            cues.append(Cue("thud", event.start + int(0.2 * fps), 0.3, 1.0))
        frame = event.start
        while frame < event.stop:
            seconds = min(float(rng.uniform(0.5, 1.0)) * longest_s, (event.stop - frame) / fps)
            cues.append(Cue(voice, frame, seconds, float(rng.uniform(0.5, 1.0))))
            frame += max(1, int(rng.uniform(0.6, 1.4) * every_s * fps))
    return cues
