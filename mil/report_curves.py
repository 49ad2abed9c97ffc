"""ROC and precision-recall curves in few points, the histogram of scores, and what a threshold misses in each video.

Conventions: P and N are anomalous and normal frames; a threshold admits scores >= it.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import FrameScores
from mil.curves import Floats, Ints, Tally
from mil.metrics import roc_auc

BINS = 40
MOST = 300  # points of a curve; more only where NEAR and AREA cannot do without
NEAR = 0.0019  # a point of the drawn curve from the true one, at most; what is rounded away takes it to 0.002
AREA = 9e-4  # by which the area may differ; half of it is aimed at
_FINE = 2e-4  # nearer than this needs no further point
_REACH = 60
_DIGITS = 5


def curves(videos: Sequence[FrameScores]) -> dict[str, dict[str, list[float]]]:
    """{"roc": false against true positives, "pr": recall, precision}, each {"x": [...], "y": [...]}.

    At most MOST points, unless more are needed to stay within 0.002 of the true curve everywhere and within 0.001 of
    its area. Empty where a class has no frames that the curve needs: ROC both, precision-recall anomalous ones.
    """
    high, low = Tally.of(videos).counts()
    found: dict[str, dict[str, list[float]]] = {name: {"x": [], "y": []} for name in ("roc", "pr")}
    if high[-1] and low[-1]:
        found["roc"] = _drawn(np.append(0.0, low / low[-1]), np.append(0.0, high / high[-1]))
    if high[-1]:
        found["pr"] = _drawn(np.append(0.0, high / high[-1]), np.append(1.0, high / (high + low)))
    return found


def thinned(x: Floats, y: Floats) -> Ints:
    """Which points of the line through x (U,), y (U,) to keep, the first and the last among them, in order.

    The point that lies farthest from what is drawn is added next; where that takes too many, as on the teeth of a
    precision-recall curve, those are passed over that the others do without.
    """
    area = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    def cut(start: int, stop: int) -> tuple[float, int, int, int]:
        """Minus the largest distance of a point between two from the line between them, which, and the two."""
        if stop - start < 2:
            return 0.0, start, start, stop
        away = _distance(x[start : stop + 1], y[start : stop + 1])
        farthest = int(np.argmax(away))
        return -float(away[farthest]), start + farthest, start, stop

    def off(start: int, stop: int) -> float:
        return _off(x, y, area, start, stop)

    last = len(x) - 1
    kept, parts, wrong = [0, last] if last else [0], [cut(0, last)], off(0, last)
    while (away := -parts[0][0]) > 0:
        if away <= NEAR and abs(wrong) <= AREA / 2 and (len(kept) >= MOST or away <= _FINE):
            break
        _, middle, start, stop = heapq.heappop(parts)
        wrong += off(start, middle) + off(middle, stop) - off(start, stop)
        wrong = wrong if abs(wrong) > 1e-12 else 0.0
        kept.append(middle)
        heapq.heappush(parts, cut(start, middle))
        heapq.heappush(parts, cut(middle, stop))
    every = np.array(sorted(kept), dtype=np.int64)
    return every if len(every) <= MOST else _fewer(x, y, area, every)


def histogram(videos: Sequence[FrameScores]) -> dict[str, list[Any]]:
    """Frames in each of BINS equal bins from the lowest to the highest score: {"edges" (BINS + 1,), "normal",
    "anomalous"}. A bin holds its lower edge, the last one both."""
    scores, labels = (np.concatenate([getattr(v, name) for v in videos]) for name in ("scores", "labels"))
    low, high = float(scores.min()), float(scores.max())
    ends = (low, high) if low < high else (low - 0.5, high + 0.5)
    edges = np.histogram_bin_edges([], BINS, ends)
    counts = {
        name: np.histogram(scores[labels == label], BINS, ends)[0].tolist()
        for label, name in enumerate(("normal", "anomalous"))
    }
    return {"edges": edges.tolist(), **counts}


def per_video(videos: Sequence[FrameScores], threshold: float | None) -> dict[str, list[float | None]]:
    """Of each video: "auc" inside it, None where it has one class; "peak", its highest score; "missed", the share of
    its anomalous frames with a score < `threshold`; "alarms", the share of its normal frames with one >= it. Shares
    are None without such frames or without a threshold."""
    found: dict[str, list[float | None]] = {"auc": [], "peak": [], "missed": [], "alarms": []}
    for video in videos:
        inside = video.labels > 0
        found["auc"].append(roc_auc(video.scores, video.labels))
        found["peak"].append(float(video.scores.max()))
        for name, frames, wrong in (("missed", inside, np.less), ("alarms", ~inside, np.greater_equal)):
            share = None
            if threshold is not None and frames.any():
                share = float(np.mean(wrong(video.scores[frames], threshold)))
            found[name].append(share)
    return {name: [brief(value) for value in values] for name, values in found.items()}


def brief(value: float | None) -> float | None:
    """A number to draw or to print, in six digits: the file is half as large."""
    return None if value is None else float(f"{value:.6g}")


def _drawn(x: Floats, y: Floats) -> dict[str, list[float]]:
    kept = thinned(x, y)
    return {name: np.round(values[kept], _DIGITS).tolist() for name, values in (("x", x), ("y", y))}


def _fewer(x: Floats, y: Floats, area: Floats, kept: Ints) -> Ints:
    """Of those points, from each the farthest one (within the next _REACH) to which a line stays as near as it must,
    and the area so far as true; or the one that makes that the truest."""
    found, at, wrong = [0], 0, 0.0
    while at < len(kept) - 1:
        start, best = int(kept[at]), (np.inf, at + 1)
        for further in range(min(at + _REACH, len(kept) - 1), at, -1):
            stop = int(kept[further])
            if further > at + 1 and _distance(x[start : stop + 1], y[start : stop + 1]).max() > NEAR:
                continue
            off = wrong + _off(x, y, area, start, stop)
            best = min(best, (abs(off), further))
            if abs(off) <= AREA / 2:
                best = (0.0, further)
                break
        wrong += _off(x, y, area, start, int(kept[best[1]]))
        at = best[1]
        found.append(at)
    return kept[found] if abs(wrong) <= AREA else kept


def _off(x: Floats, y: Floats, area: Floats, start: int, stop: int) -> float:
    """The true area between two points, of the areas (U,) up to each point, minus that under the line between them."""
    return float(area[stop] - area[start] - (x[stop] - x[start]) * (y[start] + y[stop]) / 2)


def _distance(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Of every point from the straight line that ends at the first and the last of them."""
    across, up = x[-1] - x[0], y[-1] - y[0]
    length = across * across + up * up
    right, above = x - x[0], y - y[0]
    along = np.clip((right * across + above * up) / length, 0, 1) if length else np.zeros_like(x)
    return np.asarray(np.hypot(right - along * across, above - along * up))
