"""The picture of the toy videos: a place, jointed people, cars and bicycles, and a noisy camera.

Lengths of a body are in body heights, angles in radians: 0 hangs straight down, positive swings towards where the
person faces. Pixels have y down, and colours are RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import cos, pi, sin
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Point = tuple[float, float]
SUBPIXEL = 4  # bits: cv2 draws at 1/16 of a pixel, without which slow limbs would jump


class Pose(NamedTuple):
    """Angles of a body; `tilt` turns all of it about the ground (pi/2 lies on the face), `hop` lifts it."""

    lean: float = 0.05
    near_arm: float = 0.1
    near_elbow: float = 0.2
    far_arm: float = -0.05
    far_elbow: float = 0.2
    near_leg: float = 0.05
    near_knee: float = 0.05
    far_leg: float = -0.08
    far_knee: float = 0.03
    tilt: float = 0.0
    hop: float = 0.0


class Sprite(NamedTuple):
    """One thing in one frame: its ground point (x, y), a person's height at that depth, where it faces (+1 right)."""

    kind: str  # "person", "bicycle" or "car"
    x: float
    y: float
    height: float
    facing: float
    pose: Pose
    colours: tuple[Colour, ...]  # shirt, trousers, skin, hair; a car has its paint alone


class Place(NamedTuple):
    """A fixed camera on a street: what stands still, and what wind, light and sensor do to it."""

    background: NDArray[np.uint8]  # (H, W, 3)
    grain: NDArray[np.uint8]  # (2, H + 64, W + 64, 3): what the sensor adds, and what it takes away
    tree: tuple[tuple[float, float, float, float, Colour], ...]  # x, y, radius, phase of each clump of leaves
    light: tuple[float, float, float]  # amplitude, period in seconds, phase of the slow drift of the light
    horizon: int  # y of the far end of the ground

    def height_at(self, y: float) -> float:
        """Pixels a person is tall who stands at y."""
        rows = int(self.background.shape[0])
        return rows * (0.24 + 0.20 * (y - self.horizon) / (rows - self.horizon))


def make_place(rng: np.random.Generator, size: tuple[int, int]) -> Place:
    """Draws the street that one camera looks at; size is (width, height) in pixels."""
    import cv2

    width, height = size
    horizon = int(height * rng.uniform(0.36, 0.42))
    picture = np.zeros((height, width, 3), np.uint8)
    tone = rng.uniform(95, 150)
    ground, wall = _tint(rng, tone, 10), _tint(rng, tone * rng.uniform(0.8, 1.2), 22)
    kerb = horizon + int(0.17 * height)
    picture[:horizon] = wall
    picture[horizon:kerb] = _tint(rng, tone * 0.62, 5)
    picture[kerb:] = ground
    picture[kerb : kerb + max(1, height // 100)] = _tint(rng, tone * 1.25, 5)
    step = int(width * rng.uniform(0.13, 0.22))
    for x in range(int(rng.integers(4, step)), width - step // 2, step):  # windows, now and then a door
        low = horizon if rng.random() < 0.2 else int(horizon * 0.62)
        cv2.rectangle(picture, (x, int(horizon * 0.25)), (x + step // 2, low), _tint(rng, tone * 0.5, 15), -1)
        cv2.rectangle(picture, (x, int(horizon * 0.25)), (x + step // 2, low), _tint(rng, tone * 1.2, 5), 1)
    for _ in range(5):  # joints of the paving
        x = int(rng.integers(0, width))
        cv2.line(picture, (x, kerb), (int(x + (x - width / 2) * 0.9), height), _tint(rng, tone * 0.85, 3), 1)
    rough = sum(
        cv2.resize(rng.normal(0, s, (height // n, width // n)), size, interpolation=cv2.INTER_LINEAR)
        for n, s in ((1, 5), (4, 6), (24, 9))
    )
    picture = np.clip(picture + np.asarray(rough)[..., None], 0, 255).astype(np.uint8)

    leaves: list[tuple[float, float, float, float, Colour]] = []
    if rng.random() < 0.6:
        left, top = width * rng.uniform(0.1, 0.9), horizon * 0.35
        trunk = max(2, height // 50)
        cv2.line(picture, (int(left), int(top)), (int(left), horizon + height // 40), (74, 60, 48), trunk, cv2.LINE_AA)
        for _ in range(26):
            at = rng.normal(0, 1, 2) * (0.06 * height, 0.05 * height)
            green = (int(rng.integers(40, 75)), int(rng.integers(80, 120)), int(rng.integers(35, 60)))
            leaves.append((left + at[0], top + at[1], height * rng.uniform(0.02, 0.05), rng.uniform(0, 2 * pi), green))
    noise = np.rint(rng.normal(0, 3.0, (height + 64, width + 64, 1)))
    grain = np.stack([np.maximum(noise, 0), np.maximum(-noise, 0)]).astype(np.uint8).repeat(3, axis=3)
    light = (rng.uniform(0.02, 0.06), rng.uniform(9, 25), rng.uniform(0, 2 * pi))
    return Place(picture, grain, tuple(leaves), light, horizon)


def render(
    place: Place, frames: Iterable[list[Sprite]], fps: float, rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Yields one (H, W, 3) picture per list of sprites, the far ones behind the near ones."""
    import cv2

    rows, columns = place.background.shape[:2]
    amplitude, period_s, phase = place.light
    for number, sprites in enumerate(frames):
        second = number / fps
        picture = place.background.copy()
        for x, y, radius, lag, green in place.tree:
            sway = radius * 0.45 * (sin(1.9 * second + lag) + 0.5 * sin(4.3 * second + 2 * lag))
            _disc(picture, (x + sway, y + 0.3 * sway), radius, green)
        for sprite in sorted(sprites, key=lambda s: s.y):
            DRAWERS[sprite.kind](picture, sprite)
        gain = 1 + amplitude * sin(2 * pi * second / period_s + phase)
        lit = cv2.convertScaleAbs(picture, alpha=gain)
        top, left = rng.integers(0, 64, 2)
        window = np.s_[top : top + rows, left : left + columns]
        yield np.asarray(cv2.subtract(cv2.add(lit, place.grain[0][window]), place.grain[1][window]), np.uint8)


def _tint(rng: np.random.Generator, tone: float, spread: float) -> Colour:
    red, green, blue = np.clip(tone + rng.uniform(-spread, spread, 3), 0, 255)
    return int(red), int(green), int(blue)


def _disc(picture: NDArray[np.uint8], centre: Point, radius: float, colour: Colour, thickness: int = -1) -> None:
    import cv2

    at = (round(centre[0] * 16), round(centre[1] * 16))
    cv2.circle(picture, at, round(radius * 16), colour, thickness, cv2.LINE_AA, SUBPIXEL)


def _limb(picture: NDArray[np.uint8], points: Iterable[Point], width: float, colour: Colour) -> None:
    import cv2

    path = np.rint(np.asarray(list(points)) * 16).astype(np.int32)
    cv2.polylines(picture, [path], False, colour, max(1, round(width)), cv2.LINE_AA, SUBPIXEL)


def _fill(picture: NDArray[np.uint8], points: Iterable[Point], colour: Colour) -> None:
    import cv2

    cv2.fillPoly(picture, [np.rint(np.asarray(list(points)) * 16).astype(np.int32)], colour, cv2.LINE_AA, SUBPIXEL)


def _shadow(picture: NDArray[np.uint8], x: float, y: float, half: float) -> None:
    import cv2

    row = min(max(int(y), 0), picture.shape[0] - 1)
    column = min(max(int(x), 0), picture.shape[1] - 1)
    red, green, blue = (int(value * 0.72) for value in picture[row, column])
    axes = (round(half * 16), round(half * 0.3 * 16))
    cv2.ellipse(picture, (round(x * 16), round(y * 16)), axes, 0, 0, 360, (red, green, blue), -1, cv2.LINE_AA, SUBPIXEL)


def _dark(colour: Colour) -> Colour:
    return int(colour[0] * 0.7), int(colour[1] * 0.7), int(colour[2] * 0.7)


def skeleton(pose: Pose) -> dict[str, list[Point]]:
    """Where the parts are, in body heights, for someone facing right whose lowest foot stands at (0, 0)."""

    def chain(start: Point, length: float, first: float, second: float) -> list[Point]:
        middle = (start[0] + length * sin(first), start[1] + length * cos(first))
        return [start, middle, (middle[0] + length * sin(second), middle[1] + length * cos(second))]

    up = (sin(pose.lean), -cos(pose.lean))
    neck, head = (0.33 * up[0], 0.33 * up[1]), (0.43 * up[0], 0.43 * up[1])
    shoulder = (0.29 * up[0], 0.29 * up[1])
    parts = {
        "far_arm": chain(shoulder, 0.17, pose.far_arm, pose.far_arm + pose.far_elbow),
        "far_leg": chain((0.0, 0.0), 0.25, pose.far_leg, pose.far_leg - pose.far_knee),
        "near_leg": chain((0.0, 0.0), 0.25, pose.near_leg, pose.near_leg - pose.near_knee),
        "torso": [(0.0, 0.0), neck],
        "head": [head],
        "near_arm": chain(shoulder, 0.17, pose.near_arm, pose.near_arm + pose.near_elbow),
    }
    floor = max(parts["near_leg"][2][1], parts["far_leg"][2][1]) + pose.hop
    turn, over = cos(pose.tilt), sin(pose.tilt)
    return {
        name: [(x * turn - (y - floor) * over, x * over + (y - floor) * turn) for x, y in points]
        for name, points in parts.items()
    }


def _person(picture: NDArray[np.uint8], sprite: Sprite) -> None:
    shirt, trousers, skin, hair = sprite.colours
    height = sprite.height
    body = {
        name: [(sprite.x + sprite.facing * height * x, sprite.y + height * y) for x, y in points]
        for name, points in skeleton(sprite.pose).items()
    }
    _shadow(picture, sprite.x, sprite.y, height * (0.2 + 0.15 * abs(sin(sprite.pose.tilt))))
    _limb(picture, body["far_arm"], 0.07 * height, _dark(shirt))
    _limb(picture, body["far_leg"], 0.095 * height, _dark(trousers))
    _limb(picture, body["near_leg"], 0.095 * height, trousers)
    _limb(picture, body["torso"], 0.17 * height, shirt)
    _disc(picture, body["head"][0], 0.075 * height, hair)
    x, y = body["head"][0]
    _disc(picture, (x + sprite.facing * 0.025 * height, y + 0.015 * height), 0.055 * height, skin)
    _limb(picture, body["near_arm"], 0.07 * height, _dark(_dark(shirt)))
    _disc(picture, body["near_arm"][2], 0.04 * height, skin)
    _disc(picture, body["far_arm"][2], 0.04 * height, skin)


def _bicycle(picture: NDArray[np.uint8], sprite: Sprite) -> None:
    height, frame = sprite.height, sprite.colours[0]
    wheels = [(sprite.x + side * 0.3 * height, sprite.y - 0.17 * height) for side in (-1, 1)]
    for wheel in wheels:
        _disc(picture, wheel, 0.17 * height, (30, 30, 30), max(1, round(0.03 * height)))
    saddle = (sprite.x - sprite.facing * 0.08 * height, sprite.y - 0.4 * height)
    bars = (sprite.x + sprite.facing * 0.25 * height, sprite.y - 0.45 * height)
    _limb(picture, [wheels[0], saddle, wheels[1], bars, saddle], 0.03 * height, _dark(frame))
    _person(picture, sprite)


def _car(picture: NDArray[np.uint8], sprite: Sprite) -> None:
    paint, height = sprite.colours[0], sprite.height

    def at(points: Iterable[Point]) -> list[Point]:
        return [(sprite.x + sprite.facing * height * x, sprite.y + height * y) for x, y in points]

    _shadow(picture, sprite.x, sprite.y, 1.15 * height)
    _fill(picture, at([(-0.7, -0.4), (-0.45, -0.78), (0.3, -0.78), (0.6, -0.4)]), _dark(paint))
    _fill(picture, at([(-0.55, -0.42), (-0.38, -0.7), (-0.1, -0.7), (-0.1, -0.42)]), (52, 62, 74))
    _fill(picture, at([(-0.02, -0.42), (-0.02, -0.7), (0.26, -0.7), (0.46, -0.42)]), (52, 62, 74))
    _fill(picture, at([(-1.1, -0.12), (-1.1, -0.42), (0.7, -0.44), (1.1, -0.33), (1.12, -0.12)]), paint)
    for x in (-0.65, 0.65):
        _disc(picture, at([(x, -0.14)])[0], 0.16 * height, (28, 28, 30))
        _disc(picture, at([(x, -0.14)])[0], 0.07 * height, (130, 130, 130))


DRAWERS: dict[str, Any] = {"person": _person, "bicycle": _bicycle, "car": _car}
