"""What videos, labels, features and scores are: frozen values, checked when they are made.

Conventions: spans are half-open [start, stop) in frames; K crops, N clips, D feature size, F frames.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid

SPLITS = ("train", "test")
LENGTHS = ("decoded", "manifest", "features")
MODALITIES = ("rgb", "flow", "audio", "text")
_SAME_RATE = 0.002
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates: a file name that is no UTF-8
_KIND = re.compile(r"[^\s;:|,]+")


@dataclass(frozen=True, order=True)
class Event:
    """An anomalous span of frames [start, stop) of one kind ("Arson", "B1"; "" where the source names none)."""

    start: int
    stop: int
    kind: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"an event needs 0 <= start < stop, got [{self.start}, {self.stop})")
        if self.kind and not _KIND.fullmatch(self.kind):
            raise ValueError(f"an event's kind holds no spaces and none of ; : | , but got '{self.kind}'")


def label_frames(events: Iterable[Event], num_frames: int) -> NDArray[np.uint8]:
    """(F,) 1 inside an event, 0 outside."""
    labels = np.zeros(num_frames, dtype=np.uint8)
    for event in events:
        labels[event.start : event.stop] = 1
    return labels


def true_runs(inside: NDArray[Any]) -> NDArray[np.int64]:
    """Spans [start, stop) where a row of truth values (F,) is true, (R, 2)."""
    padded = np.concatenate([[0], inside.astype(np.int8), [0]])
    return np.flatnonzero(np.diff(padded)).astype(np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Video:
    """One row of a manifest.

    Args:
        id: unique name; any printable characters. Features, scores and labels are joined by it.
        path: the video file, or "" where only features exist.
        split: "train" or "test".
        label: 1 anomalous, 0 normal.
        classes: the video's anomaly classes in the dataset's order; () when normal or unknown.
        num_frames: decoded length, None while nobody has counted (containers lie, so it is not taken from them).
        fps: frames per second, None while unknown.
        events: ground truth, for evaluation only; a normal video has none, and none ends behind `num_frames`.

    Raises ValueError naming the video and the field.
    """

    id: str
    path: str
    split: str
    label: int
    classes: tuple[str, ...] = ()
    num_frames: int | None = None
    fps: float | None = None
    events: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        if not self.id or self.id != self.id.strip() or _CONTROL.search(self.id):
            raise ValueError(
                "a video id is non-empty UTF-8, without control characters or spaces around it, "
                f"got {self.id!r}; rename it"
            )
        if self.split not in SPLITS:
            raise ValueError(f"{self.id}: split must be {' or '.join(SPLITS)}, got '{self.split}'")
        if self.label not in (0, 1):
            raise ValueError(f"{self.id}: label must be 0 (normal) or 1 (anomalous), got {self.label}")
        if bad := [c for c in self.classes if not _KIND.fullmatch(c)]:
            raise ValueError(f"{self.id}: a class holds no spaces and none of ; : | , but got '{bad[0]}'")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"{self.id}: num_frames must be at least 1 or unknown, got {self.num_frames}")
        if self.fps is not None and not 0 < self.fps < 1000:
            raise ValueError(f"{self.id}: fps must lie in (0, 1000) or be unknown, got {self.fps}")
        if self.label == 0 and self.events:
            raise ValueError(f"{self.id}: a normal video (label 0) has no events, got {len(self.events)}")
        for before, after in zip(self.events, self.events[1:], strict=False):
            if after.start < before.start:
                raise ValueError(
                    f"{self.id}: events must be in order, [{after.start}, ...) follows [{before.start}, ...)"
                )
        if self.num_frames is not None and self.events and max(e.stop for e in self.events) > self.num_frames:
            last = max(e.stop for e in self.events)
            raise ValueError(
                f"{self.id}: an event ends at frame {last}, behind the end at {self.num_frames}; use Video.with_length"
            )

    def with_length(self, num_frames: int, fps: float | None = None) -> tuple["Video", int]:
        """The video with its decoded length, and how many events were clamped to it.

        Published annotations end behind the last frame in places. An event that lies wholly behind it is a mismatch
        of video and annotation, not a rounding: ValueError.
        """
        if beyond := [e for e in self.events if e.start >= num_frames]:
            raise ValueError(
                f"{self.id}: an event starts at frame {beyond[0].start}, but the video has {num_frames} frames; "
                "the file or its annotation is another video's"
            )
        events = tuple(replace(e, stop=min(e.stop, num_frames)) for e in self.events)
        clamped = sum(a != b for a, b in zip(events, self.events, strict=True))
        return replace(self, num_frames=num_frames, fps=self.fps if fps is None else fps, events=events), clamped

    def frame_labels(self) -> NDArray[np.uint8]:
        """(F,) 1 inside an event, 0 outside. Raises ValueError while the length is unknown."""
        if self.num_frames is None:
            raise ValueError(f"{self.id}: the length is unknown; take it from decoding (Video.with_length)")
        return label_frames(self.events, self.num_frames)


class SpecMismatchError(ValueError):
    """Two feature specs differ; the message names the first field that does."""


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that made a set of features. Two sets may be mixed only when their specs are equal.

    Args:
        backbone: name of the preset, e.g. "motion".
        weights: sha256 of the weights file, "none" for a descriptor without weights, "random:SEED" for untrained ones.
        modality: "rgb", "flow", "audio" or "text".
        dim: D.
        clip_len, stride, step, tail: the ClipGrid, in frames.
        fps: frame rate that the video is resampled to first; None keeps its own frames.
        resize: what the frames are resized to, and by which filter ("none", "160x120:area", "short256:bilinear").
        color: "rgb", "bgr" or "gray".
        crops: names of the crops in order, e.g. ("full",) or ("center", "top_left", ...).
        mean, std: per channel, in units of 0..255 grey levels; () where the net takes them as they are.
        compute: arithmetic of the forward pass ("float32", "bfloat16"): it changes the numbers a little.
        dtype: what is stored, "float16" or "float32".
        decoder: the library that decoded the frames.
        options: further switches of the backbone, by name.
        revision: raised when the code of the preset changes its numbers.
    """

    backbone: str
    dim: int
    weights: str = "none"
    modality: str = "rgb"
    clip_len: int = 16
    stride: int = 16
    step: int = 1
    tail: str = "repeat"
    fps: float | None = None
    resize: str = "none"
    color: str = "rgb"
    crops: tuple[str, ...] = ("full",)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    compute: str = "float32"
    dtype: str = "float32"
    decoder: str = "pyav"
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    revision: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.:+-]+", self.backbone):
            raise ValueError(f"a backbone's name holds letters, digits and _ . : + - only, got '{self.backbone}'")
        if self.modality not in MODALITIES:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got '{self.modality}'")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"features are stored as float16 or float32, got '{self.dtype}'")
        if self.dim < 1 or not self.crops or len(set(self.crops)) != len(self.crops):
            raise ValueError(f"a spec needs dim >= 1 and distinct crop names, got dim={self.dim}, crops={self.crops}")
        for name in ("mean", "std"):  # 127 and 127.0 are equal, and must be the same text, hash and id
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if self.fps is not None:
            object.__setattr__(self, "fps", float(self.fps))
        self.grid(1)  # raises on impossible lengths

    def grid(self, num_frames: int, count: int | None = None, *, fps: float | None = None) -> ClipGrid:
        """The clips of a video of that length.

        Args:
            num_frames: its own frames.
            count: for imported features, whose tail is "given" or "equal".
            fps: its own frame rate; needed where the spec resamples, ignored where it does not.
        """
        if self.tail in ("given", "equal") and count is None:
            count = 1
        return ClipGrid(num_frames, self.clip_len, self.stride, self.tail, count, self.step, self.rate(fps))

    def rate(self, fps: float | None) -> float:
        """Resampled frames per frame of a video of that frame rate; 1 where they differ by 0.2 % or less (23.976 and
        24), or nothing is resampled or known."""
        if self.fps is None or not fps or abs(self.fps / fps - 1) <= _SAME_RATE:
            return 1.0
        return self.fps / fps

    @property
    def id(self) -> str:
        """Short readable name: "motion-3f2a9c1e"; untrained nets carry "random" in it, so that no report hides it."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        return f"{self.backbone}-{'random-' if self.is_random else ''}{digest}"

    @property
    def is_random(self) -> bool:
        """Whether an untrained net made the features."""
        return self.weights.startswith("random")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, so equal specs have equal text."""
        return json.dumps(asdict(self), sort_keys=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "FeatureSpec":
        """Reads `to_json`. Raises ValueError on fields this version does not know or that are missing."""
        try:
            found: dict[str, Any] = json.loads(text)
            known = {f.name for f in fields(cls)}
            if unknown := sorted(set(found) - known):
                raise ValueError(f"unknown field {unknown[0]}: written by a newer wsvad, upgrade to read it")
            for name in ("crops", "mean", "std"):
                if name in found:
                    found[name] = tuple(found[name])
            return cls(**found)
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a feature spec: {error}") from error

    def check_equal(self, other: "FeatureSpec", where: str) -> None:
        """Raises SpecMismatchError naming the first field that differs; `where` says what holds `self`."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine != theirs:
                raise SpecMismatchError(
                    f"{where} has {f.name}={mine!r}, asked for {theirs!r}; "
                    "extract into another store (--out), or use this one with its own settings"
                )


@dataclass(frozen=True)
class VideoFeatures:
    """The features of one video.

    Args:
        video_id: the manifest's id.
        x: (K, N, D) float16 or float32, crop-major, finite.
        grid: which frames each of the N clips shows.
        fps: frames per second of the video, None where unknown.
        crops: K names in order.
        source_bytes: size of the video file, 0 where unknown: a cheap check that the file is still the same.
        length_from: where `grid.num_frames` comes from: "decoded"; "manifest", for imported features of a video whose
            length is known; or "features", when it is no more than the clips' own extent.
        lost: frames that could not be decoded and repeat the one before them (`--damaged keep`).

    Raises ValueError naming the video when shapes disagree or a value is NaN or infinite.
    """

    video_id: str
    x: NDArray[Any]
    grid: ClipGrid
    fps: float | None = None
    crops: tuple[str, ...] = ("full",)
    source_bytes: int = 0
    length_from: str = "decoded"
    lost: int = 0

    def __post_init__(self) -> None:
        if self.length_from not in LENGTHS:
            raise ValueError(f"{self.video_id}: length_from is one of {', '.join(LENGTHS)}, got '{self.length_from}'")
        if self.x.ndim != 3 or self.x.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"{self.video_id}: x must be (K, N, D) float16 or float32, got {self.x.shape} {self.x.dtype}"
            )
        if self.x.shape[1] != len(self.grid):
            raise ValueError(f"{self.video_id}: {self.x.shape[1]} clips in x, {len(self.grid)} in its grid")
        if self.x.shape[0] != len(self.crops):
            raise ValueError(f"{self.video_id}: {self.x.shape[0]} crops in x, but names {self.crops}")
        if not is_finite(self.x):
            k, n, d = np.argwhere(~np.isfinite(self.x))[0]
            raise ValueError(
                f"{self.video_id}: feature {d} of clip {n}, crop '{self.crops[k]}', is {self.x[k, n, d]}; "
                "features must be finite (a float16 store overflows at 65504: use --dtype float32)"
            )


@dataclass(frozen=True)
class FrameScores:
    """Scores and ground truth of one video, frame by frame: scores (F,) float64, labels (F,) in {0, 1}."""

    video_id: str
    scores: NDArray[np.float64]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.shape != self.labels.shape:
            raise ValueError(
                f"{self.video_id}: {self.scores.shape} frame scores for {self.labels.shape} frame labels; "
                "the features and the annotation are of different videos or lengths"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError(f"{self.video_id}: a frame score is NaN or infinite; the head diverged, train it again")


def is_finite(x: NDArray[Any]) -> bool:
    """Whether no entry is NaN or infinite, in one pass without a mask where that is possible."""
    if x.dtype == np.float16 and x.size:  # exponents of ones; 20 times faster than isfinite, which converts each
        return bool((x.view(np.uint16) & 0x7FFF).max() < 0x7C00)
    if x.dtype == np.float32 and x.flags.c_contiguous:  # a dot product with itself keeps NaN and infinity
        with np.errstate(all="ignore"):
            if np.isfinite(np.dot(x.reshape(-1), x.reshape(-1))):
                return True
    return bool(np.isfinite(x).all())  # squares may overflow where the numbers do not
