"""What a running source gives: clips, gaps between them, and its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class LiveClip:
    """Clip number `index` of what was seen without a break, with all its modalities.

    `start` and `stop` are its half-open span in frames of the source, `start_s` and `stop_s` in seconds since the first
    frame; `data` has one array per modality, as `Backbone.submit` takes it; `fps` is the source's frame rate; `ready`
    is the moment (`time.monotonic`) at which its last frame was decoded. An index that leaps means that clips were
    skipped, because whoever uses them is slower than the source.
    """

    index: int
    start: int
    stop: int
    start_s: float
    stop_s: float
    data: Mapping[str, NDArray[Any]]
    fps: float
    ready: float


@dataclass(frozen=True)
class Gap:
    """The source broke off, `reason` says why, at `time` (seconds since 1970). Numbers and times begin anew behind."""

    reason: str
    time: float


@dataclass(frozen=True)
class Ended:
    """The source has ended: `num_frames` since the last gap, and what was unusual (the latest 100 notes)."""

    num_frames: int
    notes: tuple[str, ...] = field(default=())


Piece = LiveClip | Gap | Ended
