"""A stream of frames to a stream of clips, without knowing the video's length beforehand.

Memory holds the frames of one clip, however long the video.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract.decode import Frame


def clips_of(frames: Iterable[Frame], spec: FeatureSpec) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W[, 3]) -> clips (T, H, W[, 3]), exactly those of `spec.grid(number of frames)`, in order.

    Nothing is yielded for no frames.
    """
    kept: deque[Frame] = deque()
    first = 0  # index of kept[0]
    clip = 0
    total = 0
    extent = spec.clip_len * spec.step
    # with drop_one, a clip counts only when a frame follows it
    wait = int(spec.tail == "drop_one")
    for frame in frames:
        kept.append(frame)
        total += 1
        while total >= clip * spec.stride + extent + wait:
            start = clip * spec.stride
            yield np.stack([kept[start - first + i * spec.step] for i in range(spec.clip_len)])
            clip += 1
            while kept and first < clip * spec.stride:
                kept.popleft()
                first += 1
    if not total:
        return
    grid = spec.grid(total)
    for i in range(clip, len(grid)):
        yield np.stack([kept[int(j) - first] for j in grid.frame_indices(i)])
