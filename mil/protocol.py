"""Which frames count, and how scores and labels are brought to one length. Its name stands beside every number."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.registry import UnknownNameError, suggest
from data.types import FrameScores, Video


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate: its name, and a line that says what it does and who uses it."""

    name: str
    about: str

    def frame_scores(self, video: Video, clip_scores: NDArray[np.float64], grid: ClipGrid) -> FrameScores:
        """Scores (N,) of a video's clips -> its frame scores and labels. `video` has its decoded length."""
        return FrameScores(video.id, grid.to_frames(clip_scores), video.frame_labels())


FRAMES = Protocol(
    "frames", "every decoded frame counts; labels are [start, stop) of the annotation, cut at the true end"
)
PROTOCOLS: Mapping[str, Protocol] = {FRAMES.name: FRAMES}


def get(name: str) -> Protocol:
    """The protocol of that name. Raises UnknownNameError."""
    if name not in PROTOCOLS:
        raise UnknownNameError(f"no protocol called '{name}'.{suggest(name, sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def smooth(scores: NDArray[np.float64], clips: int) -> NDArray[np.float64]:
    """Mean over `clips` (odd) neighbouring clips, fewer at the ends, (N,) -> (N,). Looks ahead by (clips - 1) / 2.

    Equal neighbours give that very score, to the bit, so that ties stay ties in a ranking metric.
    """
    away, counts = np.zeros(len(scores)), np.ones(len(scores))  # summed distance of the neighbours from each score
    for offset in range(1, clips // 2 + 1):
        step = scores[offset:] - scores[:-offset]
        away[:-offset] += step
        away[offset:] -= step
        counts[:-offset] += 1
        counts[offset:] += 1
    return np.asarray(scores + away / counts, dtype=np.float64)
