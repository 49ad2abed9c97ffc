"""Temporal detection: mAP at IoU 0.1 to 0.5 of spans read off frame scores, as VadCLIP's family of papers computes it.

Per class and video: spans where the class's frame scores exceed max - 0.6 (max - min), at least two frames long, scored
max inside + 0.7 x the mean of the video's highest sixteenth of scores. (The published code also removes the lower of
two that overlap by IoU > 0.6; spans above one threshold never overlap.)
AP of a class: spans of all videos by falling score; one is right when its IoU with a still free true span of its video
and class reaches the threshold; AP = sum of the precision at each right one / number of true spans.

The published code returns 0 for everything as soon as one class has no span at all, and counts a class without a true
span as 0: on UCF-Crime that is "Normal", which its ground truth calls "A", so that 13 classes are divided by 14.
`vadclip=True` reproduces both.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.types import Event, true_runs

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


class Span(NamedTuple):
    """Detected frames [start, stop) with a score."""

    start: int
    stop: int
    score: float


def spans(scores: NDArray[np.float64]) -> list[Span]:
    """Spans of one class in one video, (F,) frame scores -> by falling score."""
    high, low = float(scores.max()), float(scores.min())
    top = np.sort(scores)[::-1][: max(len(scores) // 16, 1)]
    edges = true_runs(scores > high - 0.6 * (high - low))
    found = [Span(int(a), int(b), float(scores[a:b].max() + 0.7 * top.mean())) for a, b in edges if b - a >= 2]
    return sorted(found, key=lambda s: -s.score)


def overlap(a: Span | Event, b: Span | Event) -> float:
    """Intersection over union of two spans."""
    both = min(a.stop, b.stop) - max(a.start, b.start)
    return max(both, 0) / (a.stop - a.start + b.stop - b.start - max(both, 0))


def class_precision(
    found: Mapping[str, Sequence[Span]], truth: Mapping[str, Sequence[Event]], threshold: float
) -> float | None:
    """AP of one class; {video id: spans}, {video id: true spans}. None without a true span."""
    total = sum(len(events) for events in truth.values())
    if not total:
        return None
    ranked = sorted(((s, name) for name, list_ in found.items() for s in list_), key=lambda pair: -pair[0].score)
    free = {name: list(events) for name, events in truth.items()}
    right = 0
    precision = 0.0
    for rank, (span, name) in enumerate(ranked, 1):
        candidates = free.get(name, [])
        best = max(candidates, key=lambda e: overlap(span, e), default=None)
        if best is not None and overlap(span, best) >= threshold:
            candidates.remove(best)
            right += 1
            precision += right / rank
    return precision / total


def detection_map(
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]],
    truth: Mapping[str, Sequence[Event]],
    *,
    vadclip: bool = False,
) -> dict[str, float | None]:
    """Mean AP over the classes that have a true span, for each IoU, and their mean.

    Args:
        scores: {class: {video id: (F,) frame scores of that class}}.
        truth: {video id: events}, whose `kind` is the class.
        vadclip: as published: 0 for everything when a class has no span in any video, and for a class no event has.

    Returns:
        {"map_iou_0.1": ..., ..., "map_iou_0.5": ..., "map_iou": their mean}; None where no class has a true span.
    """
    found = {kind: {name: spans(s) for name, s in videos.items()} for kind, videos in scores.items()}
    if vadclip and any(not any(by_video.values()) for by_video in found.values()):
        return {**{f"map_iou_{t}": 0.0 for t in THRESHOLDS}, "map_iou": 0.0}
    result: dict[str, float | None] = {}
    for threshold in THRESHOLDS:
        values = []
        for kind, by_video in found.items():
            true = {name: [e for e in truth.get(name, ()) if e.kind == kind] for name in by_video}
            value = class_precision(by_video, true, threshold)
            if value is not None or vadclip:
                values.append(value or 0.0)
        result[f"map_iou_{threshold}"] = float(np.mean(values)) if values else None
    means = [v for v in result.values() if v is not None]
    result["map_iou"] = float(np.mean(means)) if means else None
    return result
