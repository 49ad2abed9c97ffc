"""What is drawn over a frame: the score as a bar and as a curve of the last seconds, the time, and events in red."""

from collections.abc import Sequence
from functools import lru_cache
from warnings import catch_warnings, filterwarnings

import cv2
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray

from mil.clock import clock, stretch
from mil.drawing import extent, families, literal, thinned
from mil.events import Span

Frame = NDArray[np.uint8]
Colour = tuple[int, int, int]

RED: Colour = (48, 48, 226)  # blue, green, red
WHITE: Colour = (255, 255, 255)
BLUE: Colour = (235, 190, 120)
TRACK: Colour = (36, 30, 24)
FILL: Colour = (92, 72, 46)
_LABEL = 22  # letters of the widest usual label of an event
CURVE_S = 20.0
"""Seconds of score behind the frame that the curve shows."""


class Overlay:
    """Draws on the frames of one video, of one size.

    At the bottom lies a dark panel: the time and the score, the curve of the last 20 seconds up to now at the right
    end, and along the lower edge of the picture a bar as long as the score is high, from 0 to 1 where scores lie in
    that range, else from the lowest to the highest one. The threshold is a white mark on it and a line across the
    curve. Inside an event the bar is red, the picture above the panel has a red border, and a label has its times.

    Args:
        scores: (F,), finite.
        times: (F + 1,) seconds, rising.
        events: a frame is inside one that its middle lies in.
        threshold: None for no mark.
        title: shown as it is along the upper edge; "" for none.
        width, height: of the frames, pixels. Sizes follow the shorter side.
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        times: NDArray[np.floating],
        events: Sequence[Span],
        threshold: float | None,
        title: str,
        width: int,
        height: int,
    ) -> None:
        self._scores = np.asarray(scores, np.float64)
        self._times = np.asarray(times, np.float64)
        self._pieces, self._edges = thinned(self._scores, self._times, len(self._scores))  # equal neighbours as one
        self._low, self._high = extent(self._scores, threshold)
        self._threshold = None if threshold is None else self._share(threshold)
        self._event_of = _events_of(events, self._times)
        self._events = events
        self._width, self._height = width, height
        unit = min(height, 0.75 * width) / 100
        self._text = max(round(3.2 * unit), min(8, height // 12))  # pixels that letters are high; 8 can be read
        self._row = round(1.75 * self._text)
        self._bar = max(round(2.6 * unit), 4)
        self._line = max(round(0.35 * unit), 1)
        self._border = max(round(1.2 * unit), 2)
        self._top = max(height - self._bar - self._row - max(round(11 * unit), min(8, height // 12)), 0)
        self._title = literal(title, max(int(width / self._text / 0.68) - _LABEL, 8))

    def draw(self, frame: Frame, index: int) -> None:
        """Draws on frame `index`, (H, W, 3) uint8 BGR, in place."""
        number = int(self._event_of[index])
        span = self._events[number] if number >= 0 else None
        if self._title:
            _darken(frame[: self._border + self._row])
            self._write(frame, self._title, self._border, left=True)
        _darken(frame[self._top :])
        self._write(frame, clock(self._times[index], 1), self._top, left=True)
        self._write(frame, f"{self._scores[index]:.3g}", self._top, left=False)
        self._draw_curve(frame, index)
        self._draw_bar(frame, index, RED if span else BLUE)
        if span:
            b = self._border
            for edge in (frame[:b], frame[self._top - b : self._top], frame[: self._top, :b], frame[: self._top, -b:]):
                edge[...] = RED
            said = f"event {stretch(span.start_s, span.stop_s)}"
            self._write(frame, said, b, left=False, on=RED)

    def _share(self, score: float) -> float:
        """0 to 1, from the lowest to the highest score."""
        return min(max((score - self._low) / (self._high - self._low), 0.0), 1.0) if self._high > self._low else 1.0

    def _draw_bar(self, frame: Frame, index: int, colour: Colour) -> None:
        bar = frame[self._height - self._bar :]
        bar[...] = TRACK
        bar[:, : round(self._share(self._scores[index]) * self._width)] = colour
        if self._threshold is not None:
            at = min(round(self._threshold * self._width), self._width - 1)
            bar[:, max(at - self._line, 0) : at + self._line] = WHITE

    def _draw_curve(self, frame: Frame, index: int) -> None:
        high = self._top + self._row
        room = self._height - self._bar - high - 2 * self._line
        now = self._times[index + 1]
        first = max(int(np.searchsorted(self._edges, now - CURVE_S, side="right")) - 1, 0)
        last = int(np.searchsorted(self._edges, now, side="left"))
        edges = np.clip(self._edges[first : last + 1], now - CURVE_S, now)
        shares = (self._pieces[first:last] - self._low) / ((self._high - self._low) or 1.0)
        x = np.repeat((edges - now + CURVE_S) * ((self._width - 1) / CURVE_S), 2)[1:-1]
        y = np.repeat(high + self._line + (1 - shares) * room, 2)
        points = np.rint(np.stack([x, y], 1)).astype(np.int32)
        floor = round(high + self._line + room)
        corners = np.array([[points[-1, 0], floor], [points[0, 0], floor]], np.int32)
        cv2.fillPoly(frame, [np.concatenate([points, corners])], FILL)
        if self._threshold is not None:
            level = round(high + self._line + (1 - self._threshold) * room)
            cv2.line(frame, (0, level), (self._width - 1, level), RED, max(self._line // 2, 1))
        cv2.polylines(frame, [points], False, WHITE, self._line, cv2.LINE_AA)

    def _write(self, frame: Frame, text: str, top: int, *, left: bool, on: Colour | None = None) -> None:
        """Text in the row that begins at `top`, at the left or the right end, on a ground of a colour."""
        mask = _mask(text, self._text)
        gap = self._text // 2
        mask = mask[: self._row, : max(self._width - 2 * (gap + self._border), 1)]
        h, w = mask.shape
        x = gap + self._border if left else self._width - gap - self._border - w
        y = top + (self._row - h) // 2
        if on is not None:
            frame[top : top + self._row, max(x - gap, 0) :] = on
        place = frame[y : y + h, x : x + w]
        alpha = mask[: place.shape[0], : place.shape[1], None] / np.float32(255)
        place[...] = place + (255 - place) * alpha


def _events_of(events: Sequence[Span], times: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the event that each frame lies in, -1 for none."""
    middle = (times[:-1] + times[1:]) / 2
    found = np.full(len(middle), -1, np.int64)
    for number, span in enumerate(events):
        found[(span.start_s <= middle) & (middle < span.stop_s)] = number
    return found


def _darken(part: Frame) -> None:
    np.right_shift(part, 1, out=part)
    np.subtract(part, part >> 2, out=part)


@lru_cache(maxsize=64)
def _mask(text: str, size: int) -> Frame:
    """How much of each pixel the text covers, (about 1.4 size, w), 0 to 255; in any script that a font is there for."""
    names = [font_manager.FontProperties(family=[name]) for name in families()]
    font = font_manager.get_font([font_manager.findfont(name) for name in names])
    font.set_size(size * 1.37, 72)  # points: letters of DejaVu Sans are 0.73 of them high
    with catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from font")
        font.set_text(text or " ")
    font.draw_glyphs_to_bitmap(antialiased=True)
    return np.asarray(font.get_image(), np.uint8)
