"""Which frames count, and how scores and labels are brought to one length. Its name stands beside every number.

Published numbers differ in three choices: how many frames a video counts for (all of them, or 16 for each snippet of
somebody's features), what an annotated `s e` means, and how snippet scores reach the frames. A Protocol fixes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.registry import UnknownNameError, suggest
from data.types import Event, FrameScores, Video, label_frames
from mil.resample import repeat


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate.

    Args:
        name: said beside every number.
        about: one line: what it does, and who uses it.
        by_snippet: True: a video counts for stride x N frames, of the features in use; False: for its true length.
        first: added to an annotated start; -1 reads annotations as 1-based.
        last: added to an annotated end, which is otherwise the first frame behind the event.
        stretch: scores are spread by the ratio of frames to clips instead of to the frames that each clip shows.
        shots: the video is scored in so many pooled segments instead of clip by clip.
        parts: the same with other bounds: equal parts, the last clip repeated until they are (`mil.resample.repeat`).
    """

    name: str
    about: str
    by_snippet: bool = False
    first: int = 0
    last: int = 0
    stretch: bool = False
    shots: int | None = None
    parts: int | None = None

    def events(self, video: Video, num_frames: int) -> tuple[Event, ...]:
        """The annotated events as this protocol reads them, cut at the last frame that counts."""
        moved = ((max(e.start + self.first, 0), min(e.stop + self.last, num_frames), e.kind) for e in video.events)
        return tuple(Event(start, stop, kind) for start, stop, kind in moved if start < stop)

    def num_frames(self, grid: ClipGrid) -> int:
        """F that counts for a video of that grid."""
        return len(grid) * grid.stride if self.by_snippet and grid.tail != "equal" else grid.num_frames

    def pool(self, x: NDArray[np.float32], grid: ClipGrid) -> NDArray[np.float32]:
        """Features (K, N, D) as the head is to score them: (K, shots, D), or clip by clip as they are.

        Raises ValueError for parts of a video that somebody has pooled, but into another number.
        """
        count = self.shots or self.parts
        if count is None or (grid.tail == "equal" and len(grid) == count):
            return x
        if grid.tail == "equal":
            raise ValueError(
                f"protocol '{self.name}' pools clips into {count} segments, but these features are {len(grid)} "
                "equal parts of a video already; use --protocol frames or snippets"
            )
        return pool_shots(x, count) if self.shots else repeat(x, count)

    def frame_scores(self, video: Video, scores: NDArray[np.float64], grid: ClipGrid) -> FrameScores:
        """Scores (N,) of a video's clips, or (shots,), -> frame scores and labels (F,)."""
        total = self.num_frames(grid)
        if self.shots is not None:
            clips = max(total // grid.stride, 1) if grid.tail == "equal" else len(grid)  # those that were pooled
            stops = shot_bounds(clips, self.shots)[1:] * grid.stride
            frames = np.minimum(np.searchsorted(stops, np.arange(total), side="right"), self.shots - 1)
            spread = scores[frames]
        elif self.stretch:
            bounds = np.round(np.arange(len(scores) + 1) * (total / len(scores))).astype(np.int64)
            spread = np.repeat(scores, np.diff(bounds))
        elif self.by_snippet and grid.tail != "equal":
            spread = np.repeat(scores, grid.stride)
        else:
            spread = grid.to_frames(scores)
        labels = label_frames(self.events(video, total), total)
        return FrameScores(video.id, np.asarray(spread, dtype=np.float64), labels)


def shot_bounds(clips: int, shots: int) -> NDArray[np.int64]:
    """First clip of each shot and where the last one ends, 0-based, (shots + 1,): round(linspace(1, N, shots + 1)) - 1.

    Sultani et al. never use the last clip: their loop stops a clip early.
    """
    return np.floor(np.linspace(1, clips, shots + 1) + 0.5).astype(np.int64) - 1


def pool_shots(x: NDArray[np.float32], shots: int) -> NDArray[np.float32]:
    """(K, N, D) -> (K, shots, D): the mean of the clips of each shot; an empty one is its first clip."""
    bounds = shot_bounds(x.shape[1], shots)
    parts = [x[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(bounds.tolist())]
    return np.stack(parts, axis=1)


_ALL = (
    Protocol("frames", "every decoded frame counts, labels [s, e); the default where true lengths are known"),
    Protocol(
        "snippets",
        "stride x T frames of the features in use, labels [s, e): the reference ground truth of DeepMIL, UR-DMU, "
        "PEL4VAD (UCF-Crime, 1,109,680 frames) and of HL-Net, MACIL-SD, UR-DMU (XD-Violence, 2,330,384)",
        by_snippet=True,
    ),
    Protocol(
        "rtfm",
        "stride x T frames, labels [s, e] with the end included: RTFM's script (with its T = ceil(n/16), 1,114,144 "
        "frames of UCF-Crime); the labels its authors published could not be verified",
        by_snippet=True,
        last=1,
    ),
    Protocol(
        "ratio",
        "every frame counts, clip scores stretched over them by ratio, labels [s - 1, e): GCN",
        first=-1,
        stretch=True,
    ),
    Protocol(
        "ratio32",
        "every frame counts; the video is scored as 32 equal parts, stretched by ratio, labels [s - 1, e): WSAL",
        first=-1,
        stretch=True,
        parts=32,
    ),
    Protocol(
        "shots32",
        "every frame counts; the video is scored as 32 pooled segments, labels [s - 1, e): Sultani et al.",
        first=-1,
        shots=32,
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in sorted(_ALL, key=lambda p: p.name)}
AUTO = "auto"


def get(name: str) -> Protocol:
    """The protocol of that name. Raises UnknownNameError."""
    if name not in PROTOCOLS:
        raise UnknownNameError(f"no protocol called '{name}'.{suggest(name, sorted(PROTOCOLS))}")
    return PROTOCOLS[name]


def choose(name: str, lengths_known: bool) -> Protocol:
    """The protocol of that name; "auto" is `frames` where every true length is known, else `snippets`.

    Raises ValueError for a protocol that needs lengths nobody knows.
    """
    rule = get(name if name != AUTO else "frames" if lengths_known else "snippets")
    if not rule.by_snippet and not lengths_known:
        raise ValueError(
            f"protocol '{rule.name}' counts every frame, but the true lengths of these videos are unknown (they come "
            "from the features); use --protocol snippets, or put num_frames into the manifest and import again"
        )
    return rule


def smooth(scores: NDArray[np.float64], clips: int, how: str = "centred") -> NDArray[np.float64]:
    """Mean over `clips` neighbouring clips, (N,) -> (N,).

    "centred": around each clip (odd numbers), fewer at the ends; looks ahead by (clips - 1) / 2. "ahead": a clip and
    those behind it. "blocks": one mean for each `clips` clips. The latter two are PEL4VAD's, which takes zeros for what
    is behind the end, so that the last scores are low. Equal neighbours give that very score, to the bit, so that ties
    stay ties in a ranking metric (but for the end).
    """
    if how == "blocks":
        filled = np.append(scores, np.zeros(-len(scores) % clips)).reshape(-1, clips)
        means = filled[:, 0] + (filled - filled[:, :1]).sum(1) / clips
        return np.asarray(np.repeat(means, clips)[: len(scores)], dtype=np.float64)
    if how == "ahead":
        padded = np.append(scores, np.zeros(clips - 1))
        steps = [padded[offset : offset + len(scores)] - scores for offset in range(1, clips)]
        return np.asarray(scores + sum(steps) / clips, dtype=np.float64)
    away, counts = np.zeros(len(scores)), np.ones(len(scores))  # summed distance of the neighbours from each score
    for offset in range(1, clips // 2 + 1):
        step = scores[offset:] - scores[:-offset]
        away[:-offset] += step
        away[offset:] -= step
        counts[:-offset] += 1
        counts[offset:] += 1
    return np.asarray(scores + away / counts, dtype=np.float64)
