"""The people of the toy videos: how they stroll, talk, fight, flee and fall, frame by frame.

Bodies are drawn by `toy_draw`; here they get a mind: a place to go to, a partner, a mood.
"""

from __future__ import annotations

from math import exp, hypot, pi, sin

import numpy as np

from data.datasets.toy_draw import Colour, Place, Pose

KINDS = ("fight", "fall", "panic")
WALK, RUN = 0.85, 2.1  # body heights per second
SKINS: tuple[Colour, ...] = ((236, 196, 165), (198, 145, 106), (141, 92, 60), (92, 60, 42))
HAIRS: tuple[Colour, ...] = ((34, 28, 24), (86, 58, 34), (150, 116, 70), (140, 140, 140))


class Person:
    """One body with a goal; `advance` moves it by a frame."""

    def __init__(self, rng: np.random.Generator, place: Place) -> None:
        self.rng, self.place = rng, place
        self.colours = clothes(rng)
        self.tall = rng.uniform(0.88, 1.12)
        self.brisk = rng.uniform(0.8, 1.25)
        self.x, self.y = self.somewhere()
        self.goal = self.somewhere()
        self.facing = 1.0
        self.phase = rng.uniform(0, 2 * pi)
        self.wait = 0.0
        self.beat = 0.0  # seconds until the next blow, turn or cramp
        self.turn = 0
        self.target = Pose()
        self.pose = Pose()
        self.cues: list[tuple[str, float]] = []  # what it made heard in this frame, (name, strength)

    def somewhere(self) -> tuple[float, float]:
        """A random point to walk to, (x, y) in pixels, where all of a body is in the picture."""
        rows, columns = self.place.background.shape[:2]
        near = self.place.horizon + 0.22 * rows
        return float(self.rng.uniform(0.1, 0.9) * columns), float(self.rng.uniform(near, 0.97 * rows))

    @property
    def height(self) -> float:
        """Pixels."""
        return self.place.height_at(self.y) * self.tall

    def advance(
        self,
        mood: str,
        seconds: float,
        *,
        partner: Person | None = None,
        meeting: tuple[float, float, float] | None = None,
        left_s: float = 0.0,
    ) -> None:
        """One frame of `seconds`.

        Args:
            mood: "calm" or one of KINDS.
            seconds: length of a frame.
            partner: whom to fight.
            meeting: x and y of a talk, and on which side of x to stand (-1 left, +1 right).
            left_s: what remains of the trouble.
        """
        self.cues = []
        if mood == "fight" and partner is not None:
            self._fight(seconds, partner)
        elif mood == "panic":
            self._panic(seconds)
        elif mood == "fall":
            self._fall(seconds, left_s)
        elif meeting is not None:
            self._meet(seconds, *meeting)
        else:
            self._stroll(seconds)

    def _ease(self, target: Pose, seconds: float, lag_s: float) -> None:
        part = 1 - exp(-seconds / lag_s)
        self.pose = Pose(*(now + (then - now) * part for now, then in zip(self.pose, target, strict=True)))

    def _go(self, goal: tuple[float, float], speed: float, seconds: float) -> float:
        """Moves towards a goal at `speed` heights per second; returns the distance left in heights."""
        dx, dy = goal[0] - self.x, goal[1] - self.y
        far = hypot(dx, 2.5 * dy)  # depth is foreshortened
        step = min(far, speed * self.height * seconds)
        if far > 0:
            self.x, self.y = self.x + dx * step / far, self.y + dy * step / far
        if abs(dx) > 0.1 * self.height:
            self.facing = 1.0 if dx > 0 else -1.0
        before = self.phase
        self.phase += 2 * pi * (0.55 + 0.5 * speed) * seconds
        if int(before / pi) != int(self.phase / pi):
            self.cues.append(("step", min(1.0, 0.3 * speed)))
        return (far - step) / self.height

    def _stroll(self, seconds: float) -> None:
        if self.wait > 0:
            self.wait -= seconds
            self.phase += seconds
            self._ease(Pose(near_elbow=0.35 + 0.1 * sin(self.phase)), seconds, 0.15)
            return
        if self._go(self.goal, WALK * self.brisk, seconds) < 0.05:
            self.goal, self.wait = self.somewhere(), self.rng.uniform(0, 1.2)
        self._ease(stride(self.phase, WALK), seconds, 0.04)

    def _meet(self, seconds: float, x: float, y: float, side: float) -> None:
        reach = 0.25 * self.place.height_at(y)
        if self._go((x + side * reach, y), 1.5 * WALK, seconds) > 0.05:
            self._ease(stride(self.phase, 1.2 * WALK), seconds, 0.04)
            return
        self.facing = -side
        self.phase += seconds
        talk = 0.45 * max(0.0, sin(2.6 * self.phase + side))
        self._ease(Pose(near_arm=0.2 + talk, near_elbow=0.6 + 2 * talk, far_elbow=0.5), seconds, 0.15)

    def _fight(self, seconds: float, partner: Person) -> None:
        gap = partner.x - self.x
        self.facing = 1.0 if gap > 0 else -1.0
        close = 0.38 * self.height
        if abs(gap) > 1.5 * close or abs(partner.y - self.y) > 0.1 * self.height:
            self._go((partner.x - self.facing * close, partner.y), 1.3 * RUN, seconds)
        self.beat -= seconds
        if self.beat <= 0:
            self.beat, self.turn = self.rng.uniform(0.12, 0.26), 1 - self.turn
            hit, guard = (self.rng.uniform(1.2, 2.1), 0.1), (self.rng.uniform(-0.6, 1.0), self.rng.uniform(1.2, 2.2))
            near, far = (hit, guard) if self.turn else (guard, hit)
            kick = self.rng.uniform(1.0, 1.7) if self.rng.random() < 0.3 else self.rng.uniform(-0.2, 0.6)
            lean = self.rng.uniform(-0.5, 0.65)
            self.target = Pose(lean, *near, *far, kick, self.rng.uniform(0, 0.8), -0.45, 0.3, 0.0, 0.0)
            self.x += self.facing * self.height * self.rng.uniform(-0.16, 0.18) + 0.15 * (gap - self.facing * close)
            self.cues.append(("blow", self.rng.uniform(0.5, 1.0)))
        self._ease(self.target, seconds, 0.045)

    def _panic(self, seconds: float) -> None:
        self.beat -= seconds
        rows, columns = self.place.background.shape[:2]
        if self.beat <= 0 or not 0.06 * columns < self.x < 0.94 * columns:
            self.beat = self.rng.uniform(0.35, 0.9)
            away = -self.facing if self.rng.random() < 0.7 else self.facing
            away = 1.0 if self.x < 0.15 * columns else -1.0 if self.x > 0.85 * columns else away
            near = self.place.horizon + 0.22 * rows
            depth = float(np.clip(self.y + self.rng.uniform(-0.12, 0.12) * rows, near, 0.97 * rows))
            self.goal = (float(np.clip(self.x + away * 0.8 * columns, 0.05 * columns, 0.95 * columns)), depth)
        self._go(self.goal, 1.25 * RUN, seconds)
        wave = 0.8 * sin(2.3 * self.phase)
        self._ease(
            stride(self.phase, RUN)._replace(near_arm=2.5 + wave, far_arm=2.5 - wave, near_elbow=0.4, far_elbow=0.4),
            seconds,
            0.04,
        )

    def _fall(self, seconds: float, left_s: float) -> None:
        self.beat -= seconds
        if self.beat <= 0:
            self.beat = self.rng.uniform(0.1, 0.22)
            limbs = self.rng.uniform(
                (-0.3, 0.4, 0.0, 0.4, 0.0, -0.4, 0.0, -0.4, 0.0), (0.4, 3, 1.6, 3, 1.6, 1.3, 1.6, 1.3, 1.6)
            )
            self.target = Pose(*limbs.tolist())._replace(tilt=1.5 + self.rng.uniform(-0.3, 0.25))
        up = left_s < 0.5
        target = Pose(lean=0.5) if up else self.target
        tilt = self.pose.tilt + ((0.0 if up else self.target.tilt) - self.pose.tilt) * (1 - exp(-seconds / 0.16))
        self._ease(target, seconds, 0.06)
        self.pose = self.pose._replace(tilt=tilt)


def clothes(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Shirt, trousers, skin and hair."""
    shirt, trousers = rng.integers(30, 220, 3), rng.integers(25, 120, 3)
    skin, hair = SKINS[rng.integers(len(SKINS))], HAIRS[rng.integers(len(HAIRS))]
    return (
        (int(shirt[0]), int(shirt[1]), int(shirt[2])),
        (int(trousers[0]), int(trousers[1]), int(trousers[2])),
        skin,
        hair,
    )


def stride(phase: float, speed: float) -> Pose:
    """The pose of someone who walks or, from about 1.5 heights per second, runs."""
    swing = min(0.85, 0.3 + 0.27 * speed)
    run = max(0.0, min(1.0, speed - WALK))
    legs = [
        (swing * sin(phase + lag) + 0.15 * run, 0.1 + (0.45 + 0.6 * run) * max(0.0, sin(phase + lag + 1.9)))
        for lag in (0.0, pi)
    ]
    arm = 0.8 * swing * sin(phase)
    elbow = 0.25 + 1.2 * run
    hop = 0.03 * run * abs(sin(phase))
    return Pose(0.05 + 0.18 * run, -arm, elbow, arm, elbow, *legs[0], *legs[1], 0.0, hop)
