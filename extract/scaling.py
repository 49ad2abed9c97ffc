"""Pillow's and OpenCV's resizing of 8-bit pictures in integer arithmetic, for any device torch runs on.

Both libraries work in fixed point, so that doing the same sums in int32 gives their bytes; interpolation in floating
point does not (bicubic: up to 23 grey levels off in noise, where Pillow clips between its two passes).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_PILLOW_BITS = 22
_CV2_BITS = 11
_REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def pillow(frames: Tensor, width: int, height: int, kind: str) -> Tensor:
    """`PIL.Image.resize`, antialiased "bilinear", "bicubic" or "lanczos": uint8 (T, H, W, C) -> (T, height, width, C).

    Columns first, then rows, rounded and clipped to 0..255 after each, as in every Pillow before 13, which published
    features were made with. Pillow 13 takes rows first where the height shrinks much more than the width.
    """
    half = 1 << (_PILLOW_BITS - 1)
    for axis, size in ((2, width), (1, height)):
        if frames.shape[axis] == size:
            continue
        indices, weights = _pillow_taps(frames.shape[axis], size, kind, str(frames.device))
        total = torch.full((), half, dtype=torch.int32, device=frames.device)
        for index, weight in zip(indices, weights, strict=True):
            total = total + frames.index_select(axis, index).int() * _along(weight, axis)
        frames = (total >> _PILLOW_BITS).clamp_(0, 255).to(torch.uint8)
    return frames


def cv2_linear(frames: Tensor, width: int, height: int) -> Tensor:
    """`cv2.resize` with INTER_LINEAR, without antialiasing: uint8 (T, H, W, C) -> (T, height, width, C)."""
    left, right, a, b = _cv2_taps(frames.shape[2], width, str(frames.device))
    rows = frames.index_select(2, left).int() * _along(a, 2) + frames.index_select(2, right).int() * _along(b, 2)
    upper, lower, a, b = _cv2_taps(frames.shape[1], height, str(frames.device))
    rows >>= 4  # OpenCV keeps 16 bits of the product with the weight of a row
    top = rows.index_select(1, upper) * _along(a, 1) >> 16
    bottom = rows.index_select(1, lower) * _along(b, 1) >> 16
    return (top + bottom + 2 >> 2).to(torch.uint8)


def _along(weight: Tensor, axis: int) -> Tensor:
    """(n,) -> (n, 1, 1) or (n, 1), to multiply (T, H, W, C) along rows (1) or columns (2)."""
    return weight.reshape(-1, *[1] * (3 - axis))


@lru_cache(maxsize=64)
def _pillow_taps(old: int, new: int, kind: str, device: str) -> tuple[Tensor, Tensor]:
    """Which of `old` pixels make each of `new`, and how much: (taps, new) int64 and int32, the weights times 2^22."""
    scale = old / new
    widened = max(scale, 1.0)  # antialiasing: when shrinking, the filter covers more pixels
    reach = _REACH[kind] * widened
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + reach + 0.5).astype(np.int64), old)
    index = first[None] + np.arange(math.ceil(reach) * 2 + 1)[:, None]
    at = np.abs(index - center + 0.5) / widened
    if kind == "bilinear":
        weight = np.maximum(1 - at, 0)
    elif kind == "lanczos":
        weight = np.where(at < 3, np.sinc(at) * np.sinc(at / 3), 0)
    else:  # Keys' cubic with a = -1/2
        weight = np.where(at < 1, (1.5 * at - 2.5) * at * at + 1, ((-0.5 * at + 2.5) * at - 4) * at + 2)
        weight[at >= 2] = 0
    weight[index >= stop] = 0
    fixed = weight / weight.sum(axis=0) * (1 << _PILLOW_BITS)
    fixed = np.trunc(fixed + np.copysign(0.5, fixed))
    used = fixed.any(axis=1)
    indices = torch.from_numpy(np.minimum(index, old - 1)[used]).to(device)
    return indices, torch.from_numpy(fixed[used].astype(np.int32)).to(device)


@lru_cache(maxsize=64)
def _cv2_taps(old: int, new: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels beside each new one (new,), and their weights times 2^11."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    weights = [np.rint(w * (1 << _CV2_BITS)).astype(np.int32) for w in (1 - share, share)]
    # beyond the edge both are the edge's pixel, with the weights that they would have had: their products are cut apart
    found = [np.clip(first, 0, old - 1), np.clip(first + 1, 0, old - 1), *weights]
    left, right, a, b = (torch.from_numpy(part).to(device) for part in found)
    return left, right, a, b
