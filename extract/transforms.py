"""What is done to a clip between decoder and net: resizing as PIL or OpenCV does it, and crops, at published places."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data.crops import crops_of
from extract import scaling
from extract.decode import TORCH_FILTERS, read_rule

Box = tuple[int, int, bool]


def resize(frames: Tensor, rule: str) -> Tensor:
    """Resizes a clip, uint8 (T, H, W, C) -> (T, h, w, C), on the device it is on; as it is where the size is right.

    Args:
        frames: of 1 or 3 channels; of any kind where nothing is to be done.
        rule: "340x256:FILTER", width x height, or "short256:FILTER", the short side. Then the long side is rounded
            down, as torchvision and PIL pipelines do (320x240 -> 341x256; the decoder's filters round it to the
            nearest). Filters:
            pil_bilinear, pil_bicubic: antialiased, as PIL.Image.resize. On a GPU PIL's very bytes. On a CPU torch's
            kernel for bytes, 4 to 9 times faster than PIL: up to 0.6 % of a picture's values are one grey level off
            (two, for bicubic and a few in a million).
            pil_lanczos: the same on every device, PIL's very bytes; slower on a CPU than the others.
            cv2_linear: not antialiased, cv2.INTER_LINEAR's very bytes.

    Raises ValueError on another rule, and on frames of another kind.
    """
    read = read_rule(rule)
    if read is None or read[1] not in TORCH_FILTERS:
        raise ValueError(
            f"resize takes rules with {', '.join(TORCH_FILTERS)}, got '{rule}'; the decoder does the others"
        )
    size, kind = read
    height, width = frames.shape[1:3]
    w, h = size if isinstance(size, tuple) else _short_side(size, width, height)
    if (w, h) == (width, height):
        return frames
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] not in (1, 3):
        raise ValueError(
            f"resize wants uint8 frames (T, H, W, 1 or 3), got {tuple(frames.shape)} {frames.dtype}; "
            "flow is computed on frames of the right size"
        )
    on_cpu = frames.device.type == "cpu"
    if kind == "cv2_linear":
        return _with_cv2(frames, w, h) if on_cpu else scaling.cv2_linear(frames, w, h)
    mode = kind.removeprefix("pil_")
    if not on_cpu or mode == "lanczos":
        return scaling.pillow(frames, w, h, mode)
    # a view with channels last: the layout of torch's fast kernel, 3 times faster than (T, C, H, W) in memory
    return interpolate(frames.permute(0, 3, 1, 2), (h, w), mode=mode, antialias=True).permute(0, 2, 3, 1)


def crop(frames: Tensor, names: tuple[str, ...], size: int, order: str, *, flow: bool) -> Tensor:
    """Crops of a clip: (T, H, W, C) -> (K, T, size, size, C), a view of the frames where it can be one.

    With `flow`, C is x and y, and a mirrored crop's motion to the right becomes one to the left: x is negated where it
    is a float, and becomes 255 - x where it is quantised. Raises ValueError as `crop_boxes` does.
    """
    if flow and frames.shape[3] != 2:
        raise ValueError(f"flow is (T, H, W, 2), x and y, got {tuple(frames.shape)}")
    parts = []
    for top, left, mirror in crop_boxes(names, frames.shape[1], frames.shape[2], size, order):
        part = frames[:, top : top + size, left : left + size]
        if mirror:
            part = part.flip(2)  # a copy
            if flow:
                part[..., 0] = -part[..., 0] if part.is_floating_point() else 255 - part[..., 0]
        parts.append(part)
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def crop_boxes(names: tuple[str, ...], height: int, width: int, size: int, order: str) -> list[Box]:
    """Where an order's code cuts the crops of `names`: (top, left, whether to mirror it) in the upright frame.

    The corners touch the frame's, the centre's place is rounded down, except:
    torchvision rounds the centre's place half to even, and in the mirrored picture: at width 455 the crop of 224 is at
    116, its mirror's content at 115. oversample rounds down in the mirrored picture: 115 and 116.
    tsn steps by whole quarters, 4 * ((width - size) // 4), and misses the far edge by up to 3 pixels.
    three steps by whole halves along the long side, and wants `size` to be the short one; upright, its left is the top.

    Raises ValueError where the frame is too small or the order does not go with its size, and as `crops_of` does.
    """
    crops_of(",".join(names), order)
    if min(height, width) < size or (order == "three" and min(height, width) > size):
        wanted = f"a short side of {size}" if order == "three" else f"at least {size}x{size}"
        raise ValueError(
            f"crops '{order}' of {size}x{size} need frames of {wanted}, got {width}x{height}; "
            f"use resize=short{size}:pil_bilinear or another that gives this"
        )
    places = _places(height - size, width - size, order)
    boxes = []
    for name in names:
        plain = name.removeprefix("mirror_")
        top, left = places[plain]
        mirror = plain != name
        if mirror and plain == "center" and order in ("torchvision", "oversample"):
            left = width - size - left
        boxes.append((top, left, mirror))
    return boxes


def _places(down: int, right: int, order: str) -> dict[str, tuple[int, int]]:
    """(top, left) of each unmirrored crop, given the pixels that a frame has more than a crop, below and beside."""
    if order == "three":
        y, x = down // 2, right // 2
        return {"left": (0, 0), "center": (y, x), "right": (2 * y, 2 * x)}
    center = (down // 2, right // 2)
    if order == "torchvision":
        center = (round(down / 2), round(right / 2))
    elif order == "tsn":
        down, right = down // 4 * 4, right // 4 * 4
        center = (down // 2, right // 2)
    corners = {"top_left": (0, 0), "top_right": (0, right), "bottom_left": (down, 0), "bottom_right": (down, right)}
    return {"center": center, **corners}


def _short_side(size: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) with the short side at `size`, the long one rounded down."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _with_cv2(frames: Tensor, width: int, height: int) -> Tensor:
    resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(resized).reshape(len(frames), height, width, -1))
