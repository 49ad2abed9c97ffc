"""A split, scored with a model in memory: every clip, spread to frames, beside its annotation. Nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.grid import ClipGrid
from data.registry import suggest
from data.store import FeatureStore
from data.types import Event, FrameScores, Video
from mil import protocol
from mil.bags import read_features, shared_grid
from mil.config import EvalConfig
from mil.model import Model
from mil.protocol import Protocol
from mil.resample import Array
from mil.scoring import score_videos


@dataclass(frozen=True)
class Scored:
    """What metrics are made of.

    Args:
        videos: frame scores and labels, in the order of the videos given.
        events: annotated events of each, as the protocol reads them.
        clamped: ids of the videos of which an event ends behind the last frame; it is cut there.
        protocol: which frames count.
        origins: where the lengths come from, of "decoded", "manifest" and "features".
    """

    videos: tuple[FrameScores, ...]
    events: Mapping[str, tuple[Event, ...]]
    clamped: tuple[str, ...]
    protocol: Protocol
    origins: frozenset[str]


def scored(
    model: Model,
    rules: EvalConfig,
    videos: Sequence[Video],
    stores: Sequence[FeatureStore],
    *,
    protocol_name: str | None = None,
    crop: str | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Scored:
    """Scores of videos that all have features in every store. What can be refused is, before anything is scored.

    Features are read once for each video, and let go when it is scored.

    Args:
        model: on `device`; left in evaluation mode.
        rules: the recipe's protocol and smoothing.
        videos: with their events.
        stores: one per modality, in the order in which the head sees them.
        protocol_name: instead of the recipe's.
        crop: score this crop alone, by name; None: the head's scores are the mean over all crops.
        device: where the model is.
        precision: "fp32" or "bf16", of the head's layers.

    Raises:
        ValueError: an anomalous video without events, no such crop, lengths that disagree or that the protocol needs
            and nobody knows, stores that do not show the same clips, features that cannot be read.
    """
    check_annotated(videos)
    if crop is not None:
        _check_crop(stores, crop)
    headers = {v.id: _header(stores, v.id) for v in videos}
    grids = {video_id: grid for video_id, (grid, _) in headers.items()}
    origins = frozenset(origin for _, origin in headers.values())
    frames = protocol.choose(protocol_name or rules.protocol, "features" not in origins)
    clamped: list[str] = []
    for video in videos:
        grid = grids[video.id]
        if frames.by_snippet:
            _check_reach(video, grid, frames.num_frames(grid), "features" not in origins)
        else:
            clamped += [video.id] * _check_length(video, grid.num_frames)

    def read(video_id: str) -> dict[str, Array]:
        features, grid, _ = read_features(stores, video_id)
        if crop is not None:
            features = {name: _one_crop(x, stores, name, crop) for name, x in features.items()}
        return features if frames.by_snippet else {name: frames.pool(x, grid) for name, x in features.items()}

    pooled = None if frames.by_snippet else frames.shots or frames.parts
    lengths = {video_id: pooled or len(grid) for video_id, grid in grids.items()}
    crops = 1 if crop else max(len(s.spec.crops) for s in stores)
    by_id = {v.id: v for v in videos}
    found: dict[str, FrameScores] = {}
    for video_id, scores in score_videos(
        model, lengths, read, crops=crops, device=torch.device(device), precision=precision
    ):
        smoothed = protocol.smooth(scores, rules.smooth, rules.smoothing)
        found[video_id] = frames.frame_scores(by_id[video_id], smoothed, grids[video_id])
    events = {v.id: frames.events(v, len(found[v.id].labels)) for v in videos}
    return Scored(tuple(found[v.id] for v in videos), events, tuple(clamped), frames, origins)


def check_annotated(videos: Sequence[Video], source: Path | str = "the manifest") -> None:
    """Raises ValueError when anomalous videos, of one split of `source`, have no events."""
    if bare := [v for v in videos if v.label and not v.events]:
        split = bare[0].split
        remedy = "evaluate --split test" if split == "train" else "add their events to the manifest, or leave them out"
        raise ValueError(
            f"{len(bare)} of {sum(v.label for v in videos)} anomalous videos in the {split} split of {source}, e.g. "
            f"'{bare[0].id}', have no annotated events, so that their frames would count as normal; {remedy}"
        )


def _header(stores: Sequence[FeatureStore], video_id: str) -> tuple[ClipGrid, str]:
    """The grid of all stores together, as `read_features` gives it, and where its length comes from, of the first."""
    found = [store.origin(video_id) for store in stores]
    return shared_grid(stores, video_id, [grid for grid, _ in found]), found[0][1]


def _one_crop(x: Array, stores: Sequence[FeatureStore], modality: str, crop: str) -> Array:
    crops = next(s.spec.crops for s in stores if s.spec.modality == modality)
    if len(crops) == 1:  # sound, or captions: shared by the crops
        return x
    return x[[crops.index(crop)]]  # a copy: the other crops are let go


def _check_crop(stores: Sequence[FeatureStore], crop: str) -> None:
    for crops in [s.spec.crops for s in stores if len(s.spec.crops) > 1] or [stores[0].spec.crops]:
        if crop not in crops:
            raise ValueError(f"no crop '{crop}' in these features.{suggest(crop, list(crops))}")


def _check_reach(video: Video, grid: ClipGrid, num_frames: int, length_known: bool) -> None:
    """Raises ValueError when the features cannot be joined to the annotated frames."""
    if grid.tail == "equal" and not length_known:
        raise ValueError(
            f"{video.id}: its features are {len(grid)} equal parts of a video of unknown length, so that no score has "
            "a frame; put num_frames into the manifest and import again"
        )
    if late := [e.start for e in video.events if e.start >= num_frames + grid.stride]:  # features may drop a tail
        raise ValueError(
            f"{video.id}: an event starts at frame {late[0]}, but its features end at {num_frames}; the features or "
            "the annotation are another video's"
        )


def _check_length(video: Video, num_frames: int) -> bool:
    """Whether an event had to be cut at the end. Raises ValueError on a length or an event that cannot be."""
    if video.num_frames is not None and video.num_frames != num_frames:
        raise ValueError(
            f"{video.id}: the manifest says {video.num_frames} frames, its features were made from {num_frames}; "
            "correct the manifest or extract again"
        )
    return bool(video.with_length(num_frames)[1])
