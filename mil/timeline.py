"""The score of one video against time as a picture: threshold, events and, where it is known, the ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.types import true_runs
from mil.clock import stretch
from mil.events import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mil.drawing import Picture

_WIDTH, _HEIGHT = 10.0, 3.0  # inches
_MOST_CLIPS = 250  # more marks than that run together
_DENSE = 800  # pieces of a line that is drawn thin
_CHARACTER = 1 / 125  # of the width of the axis, at the size of the events' times


def timeline(
    path: Path,
    scores: NDArray[np.floating],
    times: NDArray[np.floating],
    *,
    title: str,
    events: Sequence[Span] = (),
    threshold: float | None = None,
    low: float | None = None,
    clips: NDArray[np.floating] | None = None,
    labels: NDArray[Any] | None = None,
) -> Path:
    """Writes what `figure` draws as a PNG or an SVG, by the suffix of `path`, in one step; its folder must exist.

    Raises ValueError on another suffix, and as `figure` does.
    """
    drawn = figure(scores, times, title=title, events=events, threshold=threshold, low=low, clips=clips, labels=labels)
    return drawn.save(path)


def figure(
    scores: NDArray[np.floating],
    times: NDArray[np.floating],
    *,
    title: str = "",
    events: Sequence[Span] = (),
    threshold: float | None = None,
    low: float | None = None,
    clips: NDArray[np.floating] | None = None,
    labels: NDArray[Any] | None = None,
) -> "Picture":
    """The score of one video against time, as a matplotlib Figure that a notebook shows.

    Args:
        scores: (F,) of its frames, finite, in any range: the axis is 0 to 1 where that suits them.
        times: (F + 1,) seconds, rising: where each frame begins, and where the last one ends.
        title: shown as it is, in one line.
        events: shaded, with their times where there is room, those of the highest peaks first.
        threshold: where events begin: a line.
        low: where they end: a fainter line, left out where it is the threshold.
        clips: seconds at which clips begin, any number: small marks, left out where they would run together.
        labels: (F,) 1 in frames annotated as anomalous, else 0: a strip below.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    from mil.drawing import FAINT, INK, Picture, families, limits, literal, thinned, time_axis

    values, edges = np.asarray(scores, np.float64), np.asarray(times, np.float64)
    _check(values, edges, labels)
    drawn = Picture(_WIDTH, _HEIGHT + (0.25 if labels is not None else 0))
    axes = drawn.subplots(2, 1, sharex=True, height_ratios=(22, 1)) if labels is not None else [drawn.subplots()]
    axis = axes[0]
    bottom, top = limits(values, threshold, low)
    axis.set_ylim(bottom, top)
    pieces, bounds = thinned(values, edges)
    ground = 0.0 if bottom < 0 <= values.min() else bottom
    corners = np.append(pieces, pieces[-1])
    axis.fill_between(bounds, corners, ground, step="post", color=INK, alpha=0.08, lw=0)
    axis.step(bounds, corners, where="post", color=INK, lw=1.3 if len(pieces) < _DENSE else 0.8, label="score")
    _mark_events(axis, events, float(edges[-1]))
    near = threshold is not None and low is not None and threshold - low < 0.07 * (top - bottom)
    if threshold is not None:
        _mark_line(axis, threshold, "threshold", "--", "bottom" if near and low != threshold else "center")
    if low is not None and low != threshold:
        _mark_line(axis, low, "ends below", ":", "top" if near else "center")
    if clips is not None and len(clips) <= _MOST_CLIPS:
        axis.vlines(clips, 0, 0.025, transform=axis.get_xaxis_transform(), color=FAINT, lw=0.7)
    if labels is not None:
        _mark_truth(axes[1], labels, edges)
    for each in axes:
        _plain(each)
    time_axis(axes[-1], float(edges[0]), float(edges[-1]))
    axis.set_ylabel("anomaly score", fontsize=8.5, color=FAINT)
    drawn.suptitle(
        literal(title), x=0.01, ha="left", fontsize=10.5, weight="bold", color=INK, parse_math=False, family=families()
    )
    return drawn


def _check(values: NDArray[np.float64], edges: NDArray[np.float64], labels: NDArray[Any] | None) -> None:
    if values.ndim != 1 or not len(values) or edges.shape != (len(values) + 1,):
        raise ValueError(f"scores must be (F,) and times (F + 1,), got {values.shape} and {edges.shape}")
    if not (np.isfinite(values).all() and np.isfinite(edges).all()):
        raise ValueError("scores and times must be finite numbers")
    if labels is not None and np.shape(labels) != values.shape:
        raise ValueError(f"labels must be (F,), one per score, got {np.shape(labels)} for {values.shape}")


def _mark_events(axis: "Axes", events: Sequence[Span], end_s: float) -> None:
    from mil.drawing import ALARM

    taken: list[tuple[float, float]] = []
    first_s, last_s = 0.0, end_s
    for span in sorted(events, key=lambda span: -span.peak):
        axis.axvspan(span.start_s, span.stop_s, facecolor=ALARM, edgecolor=ALARM, alpha=0.16, lw=0.8)
        both, above = (span.start_s, span.stop_s), axis.get_xaxis_transform()
        axis.plot(both, (1, 1), transform=above, color=ALARM, lw=2.4, clip_on=False, solid_capstyle="butt")
        text = stretch(span.start_s, span.stop_s)
        half = (len(text) + 1) * _CHARACTER * (last_s - first_s) / 2
        middle = min(max((span.start_s + span.stop_s) / 2, first_s + half), max(last_s - half, first_s + half))
        if all(middle + half <= left or middle - half >= right for left, right in taken):
            taken.append((middle - half, middle + half))
            axis.annotate(
                text, (middle, 1), xycoords=above, xytext=(0, 4), textcoords="offset points",
                ha="center", fontsize=7.5, color=ALARM, annotation_clip=False,
            )  # fmt: skip


def _mark_line(axis: "Axes", value: float, name: str, style: str, place: str) -> None:
    from mil.drawing import ALARM

    axis.axhline(value, color=ALARM, lw=1, ls=style, alpha=0.9)
    axis.annotate(
        f"{name} {value:.3g}", (1, value), xycoords=axis.get_yaxis_transform(), xytext=(4, 0),
        textcoords="offset points", va=place, fontsize=7.5, color=ALARM,
    )  # fmt: skip


def _mark_truth(axis: "Axes", labels: NDArray[Any], edges: NDArray[np.float64]) -> None:
    from mil.drawing import TRUTH

    for start, stop in true_runs(np.asarray(labels) > 0).tolist():
        axis.axvspan(edges[start], edges[stop], color=TRUTH, lw=0.5)
    axis.set(ylim=(0, 1), yticks=())
    axis.annotate(
        "annotated", (1, 0.5), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points", va="center",
        fontsize=7.5, color=TRUTH,
    )  # fmt: skip


def _plain(axis: "Axes") -> None:
    from mil.drawing import FAINT, GRID

    axis.tick_params(labelsize=8, color=FAINT, labelcolor=FAINT, length=3)
    axis.grid(axis="y", color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b5bdc5")
