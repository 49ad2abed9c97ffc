"""Statistics of optical flow and of moving texture, the parts that the `motion` descriptor is made of.

Pure functions on small arrays. Letters: P flow pairs, T frames, h x w = 60 x 80 pixels, 48 = 6 x 8 cells of 10 x 10.
Directions are folded: leftward and rightward count alike, so a mirrored clip has (nearly) the same statistics.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

GRID = (60, 80)
CELL = 10
SPEEDS = (0.05, 0.2, 0.8)
"""Frame heights per second: a drift, a walk, a blow (in the usual view of a surveillance camera)."""
CHANGES = (6.0, 12.0, 24.0)
"""Grey levels between two frames: above noise, clear, strong."""
TIME_STATS = ("mean", "std", "max")
SPACE_STATS = ("avg", "weighted", "max", "top4", "top12")
PLANES = ("xy", "xt", "yt")

PAIR_CHANNELS = (
    *("speed", "energy", *(f"faster{s:g}" for s in SPEEDS)),
    *("u_x", "u_y", "v_x", "v_y", "boundary_u", "boundary_v", "oblique_u", "oblique_v"),
    *("divergence", "curl", "shear"),
    *("change", *(f"change{c:g}" for c in CHANGES)),
    *("common", "vertical"),
)
STEP_CHANNELS = ("acceleration", "flicker")


def cuts_and_repeats(frames: NDArray[np.uint8], gap: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Hard cuts, (T - 1,) between neighbouring frames, and repeats, (T - gap,) between frames `gap` apart.

    frames (T, 60, 80). Both are told by the mean grey-level change of 20 x 20 thumbnails against the clip's median
    change over `gap` frames: a cut is a multiple of what the clip's own motion does, a repeated frame (of a changed
    frame rate, or a filled last clip) a small part of it. A clip of one repeated frame has no repeats, only no motion.
    """
    thumbs = frames.reshape(len(frames), 20, 3, 20, 4).astype(np.float32).mean(axis=(2, 4))
    step = np.abs(np.diff(thumbs, axis=0)).mean(axis=(1, 2))
    wide = np.abs(thumbs[gap:] - thumbs[:-gap]).mean(axis=(1, 2))
    usual = np.median(wide) if len(wide) else np.float32(0)
    return (step > 12) & (step > 3 * usual + 2), wide < 0.1 * usual


def gradient(x: Array) -> tuple[Array, Array]:
    """(P, h, w) -> its central differences along x and y, per pixel of the grid, 0 at the border."""
    gx, gy = np.zeros_like(x), np.zeros_like(x)
    np.subtract(x[:, :, 2:], x[:, :, :-2], out=gx[:, :, 1:-1])
    np.subtract(x[:, 2:], x[:, :-2], out=gy[:, 1:-1])
    gx *= 0.5
    gy *= 0.5
    return gx, gy


def cell_means(x: Array) -> Array:
    """(..., 60, 80) -> (..., 48). Sums instead of a matrix product: the same bits for any number of threads."""
    rows = x.reshape(*x.shape[:-2], GRID[0] // CELL, CELL, GRID[1]).sum(axis=-2)
    cells = rows.reshape(*rows.shape[:-1], GRID[1] // CELL, CELL).sum(axis=-1)
    means: Array = cells.reshape(*cells.shape[:-2], cells.shape[-2] * cells.shape[-1]) / np.float32(CELL * CELL)
    return means


def pair_channels(u: Array, v: Array, change: Array) -> tuple[Array, Array]:
    """Cell means of everything that one flow pair tells.

    u, v (P, 60, 80) are velocities to the right and down, in frame heights per second, change (P, 60, 80) the
    grey-level difference of the pair's frames. Gives (22, P, 48) in the order of PAIR_CHANNELS, and (48,), the speed
    of the velocity averaged over time.
    """
    energy = u * u + v * v
    speed = np.sqrt(energy)
    ux, uy = gradient(u)
    vx, vy = gradient(v)
    abs_ux, abs_uy, abs_vx, abs_vy, difference = (np.abs(a) for a in (ux, uy, vx, vy, change))
    maps = [
        speed,
        np.minimum(energy, 25),
        *(speed > s for s in SPEEDS),
        *(abs_ux, abs_uy, abs_vx, abs_vy),
        np.sqrt(ux * ux + uy * uy),
        np.sqrt(vx * vx + vy * vy),
        np.minimum(abs_ux, abs_uy),
        np.minimum(abs_vx, abs_vy),
        np.abs(ux + vy),
        np.abs(vx - uy),
        np.sqrt((ux - vy) ** 2 + (vx + uy) ** 2),
        difference,
        *(difference > c for c in CHANGES),
        u,
        v,
    ]
    cells = np.stack([cell_means(m.astype(np.float32, copy=False)) for m in maps])  # (22, P, 48)
    mean_u, mean_v = cells[-2].copy(), cells[-1].copy()
    cells[-2] = np.sqrt(mean_u**2 + mean_v**2)
    cells[-1] = np.abs(mean_v)
    drift: Array = np.sqrt(mean_u.mean(axis=0) ** 2 + mean_v.mean(axis=0) ** 2)
    return cells, drift


def step_channels(u: Array, v: Array, change: Array) -> Array:
    """As `pair_channels`, for consecutive pairs: (P, 60, 80) three times -> (2, P - 1, 48)."""
    acceleration = np.sqrt((u[1:] - u[:-1]) ** 2 + (v[1:] - v[:-1]) ** 2)
    return np.stack([cell_means(acceleration), cell_means(np.abs(change[1:] - change[:-1]))])


def pool_time(cells: Array) -> Array:
    """(C, P, 48) -> (C, 3, 48): TIME_STATS; zeros where there is no pair."""
    if cells.shape[1] == 0:
        return np.zeros((len(cells), len(TIME_STATS), cells.shape[2]), np.float32)
    return np.stack([cells.mean(axis=1), cells.std(axis=1), cells.max(axis=1)], axis=1)


def pool_space(cells: Array, speed: Array) -> Array:
    """(..., 48) -> (..., 5): SPACE_STATS, wherever in the frame it happens.

    `speed` (48,) says where things move: it weighs the cells, and ranks them for the mean over the fastest 4 and 12.
    """
    weight = speed + np.float32(1e-3)
    order = np.argsort(-weight, kind="stable")
    return np.stack(
        [
            cells.mean(axis=-1),
            (cells * (weight / weight.sum())).sum(axis=-1),
            cells.max(axis=-1),
            cells[..., order[:4]].mean(axis=-1),
            cells[..., order[:12]].mean(axis=-1),
        ],
        axis=-1,
    )


# ---- local binary patterns on three planes ------------------------------------------------------------------------

_RING = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
_MIRROR = (4, 3, 2, 1, 0, 7, 6, 5)


@cache
def pattern_bins() -> tuple[NDArray[np.int64], int]:
    """(256,) bin of each 8-neighbour pattern, and the number of bins (35).

    A pattern and its mirror image share a bin, and so do all patterns that change more than twice around the ring
    ("non-uniform", Ojala et al. 2002).
    """
    found: dict[int, int] = {}
    table = np.zeros(256, np.int64)
    for code in range(256):
        bits = [code >> i & 1 for i in range(8)]
        changes = sum(bits[i] != bits[i - 1] for i in range(8))
        mirrored = sum(bits[i] << _MIRROR[i] for i in range(8))
        table[code] = found.setdefault(-1 if changes > 2 else min(code, mirrored), len(found))
    return table, len(found)


def moving_patterns(frames: NDArray[np.uint8], cut: NDArray[np.bool_]) -> Array:
    """LBP-TOP (Zhao and Pietikainen 2007) of the moving pixels: frames (T, h, w), cut (T - 1,) -> (3, 35).

    In the planes xy, xt and yt around each pixel that changes by more than 8 grey levels over two frames: which of its
    8 neighbours are brighter by more than 3. Frequencies; they sum to nearly 1, to less where hardly anything moves.
    """
    table, num_bins = pattern_bins()
    t, h, w = frames.shape
    histograms = np.zeros((len(PLANES), num_bins), np.float32)
    if t < 3 or h < 3 or w < 3:
        return histograms
    grey = frames.astype(np.int16)
    moving = np.abs(grey[2:, 1:-1, 1:-1] - grey[:-2, 1:-1, 1:-1]) > 8
    moving[cut[1:] | cut[:-1]] = False
    at = np.ravel_multi_index(tuple(a + 1 for a in np.nonzero(moving)), grey.shape)
    flat = grey.ravel()
    threshold = flat[at] + 3
    step = {"x": 1, "y": w, "t": w * h}
    for row, plane in enumerate(PLANES):
        code = np.zeros(len(at), np.uint8)
        for i, (a, b) in enumerate(_RING):
            code |= (flat[at + (a * step[plane[0]] + b * step[plane[1]])] > threshold).astype(np.uint8) << i
        histograms[row] = np.bincount(table[code], minlength=num_bins) / (len(at) + 20)
    return histograms


def layout() -> Mapping[str, slice]:
    """Where each group of the descriptor lies in its D dimensions."""
    per_channel = len(TIME_STATS) * len(SPACE_STATS)
    sizes = dict.fromkeys((*PAIR_CHANNELS, *STEP_CHANNELS), per_channel)
    sizes["drift"] = len(SPACE_STATS)
    sizes |= {f"lbp_{plane}": pattern_bins()[1] for plane in PLANES}
    groups, start = {}, 0
    for name, size in sizes.items():
        groups[name] = slice(start, start + size)
        start += size
    return groups
