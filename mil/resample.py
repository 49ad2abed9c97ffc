"""How a video of N clips becomes a training bag of T segments, in the ways of the papers. (K, N, D) -> (K, T, D).

Evaluation resamples nothing: every clip is scored.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def segments(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D), the mean over equal parts; a part without a clip of its own takes the one it is in.

    Bounds are floor(linspace(0, N, count + 1)), as in RTFM and UR-DMU; Sultani et al. round instead.
    """
    bounds = np.linspace(0, x.shape[1], count + 1).astype(np.int64)
    starts, stops = bounds[:-1], np.maximum(bounds[1:], bounds[:-1] + 1)
    sums = np.concatenate([np.zeros_like(x[:, :1], dtype=np.float64), np.cumsum(x, axis=1, dtype=np.float64)], axis=1)
    means: NDArray[np.float64] = (sums[:, stops] - sums[:, starts]) / (stops - starts)[None, :, None]
    return means.astype(np.float32)


def pick(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, min(N, count), D): evenly spaced clips as they are; shorter videos stay whole (padded later).

    Indices are floor(linspace(0, N - 1, count)), as HL-Net and its descendants take them.
    """
    if x.shape[1] <= count:
        return x
    return x[:, np.linspace(0, x.shape[1] - 1, count).astype(np.int64)]


def interpolate(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D): linear between the clips, ends kept."""
    at = np.linspace(0, x.shape[1] - 1, count)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, x.shape[1] - 1)
    weight = (at - low)[None, :, None]
    between: NDArray[np.float64] = (1 - weight) * x[:, low] + weight * x[:, high]
    return between.astype(np.float32)


def resize(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D): OpenCV's linear resize along time, as S3R; segment centres, not ends, are kept.

    Segment i lies at (i + 0.5) N / count - 0.5 between its two neighbours; what it steps over is not averaged in.
    """
    return np.stack([cv2.resize(crop, (crop.shape[1], count), interpolation=cv2.INTER_LINEAR) for crop in x])


def shrink(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, min(N, count), D): `segments` where a video is longer, else as it is, as VadCLIP."""
    return segments(x, count) if x.shape[1] > count else x


def repeat(x: Array, count: int) -> Array:
    """(K, N, D) -> (K, count, D): means of equal parts, the last clip repeated until they are (WSAL)."""
    each = -(-x.shape[1] // count)
    rows = np.minimum(np.arange(each * count), x.shape[1] - 1)
    means: NDArray[np.float64] = x[:, rows].reshape(len(x), count, each, -1).mean(axis=2, dtype=np.float64)
    return means.astype(np.float32)


def random_rows(length: int, count: int, anomalous: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which clips a step sees of a video of `length`, (min(length, count),), in order; AR-Net's two ways.

    Of an anomalous video one clip from each of `count` equal parts, so that no event is lost; of a normal one `count`
    clips in a row. Shorter videos stay whole.
    """
    if length <= count:
        return np.arange(length)
    if not anomalous:
        return int(rng.integers(0, length - count + 1)) + np.arange(count)
    bounds = np.linspace(0, length, count + 1)
    low = np.floor(bounds[:-1]).astype(np.int64)
    high = np.maximum(np.floor(bounds[1:]).astype(np.int64), low + 1)
    return rng.integers(low, high)


def full(x: Array, count: int) -> Array:
    """(K, N, D) as it is, whatever `count`."""
    return x


RESAMPLE: Mapping[str, Callable[[Array, int], Array]] = {
    "segments": segments,
    "pick": pick,
    "interpolate": interpolate,
    "resize": resize,
    "shrink": shrink,
    "repeat": repeat,
    "full": full,
}
