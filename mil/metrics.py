"""Frame-level metrics, pooled over videos.

Conventions: a label is 1 (anomalous) or 0; a higher score means more anomalous; every frame of every video counts the
same. Values lie in [0, 1] unless a name says frames. A metric that the data leave undefined is None, never 0.

Names that the field uses for two things have two names here:
    ap          stepwise, sklearn's average_precision_score (VadCLIP, AnomalyCLIP)
    pr_auc      trapezoids under the precision-recall curve (HL-Net, RTFM, UR-DMU, MGFN, BN-WVAD, PEL4VAD), optimistic
    far         share of normal videos' frames with a score >= threshold (PEL4VAD, AR-Net)
    far_strict  the same with > (MIST)
    auc_own     of a class: frames of that class's videos alone (MIST)
    auc_rest    of a class: its frames against all others (AnomalyCLIP)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import Event, FrameScores, label_frames, true_runs
from mil.curves import Tally, roc_area, step_precision, trapezoid_precision
from mil.detection import detection_map

Scores = NDArray[np.float64]
Labels = NDArray[np.uint8]


def roc_auc(scores: Scores, labels: Labels) -> float | None:
    """Area under the ROC curve: the chance that an anomalous frame scores above a normal one, ties counting half."""
    return _number(roc_area(*_counts(scores, labels)))


def average_precision(scores: Scores, labels: Labels) -> float | None:
    """Stepwise area under the precision-recall curve: sum of precision times the growth of recall."""
    return _number(step_precision(*_counts(scores, labels)))


def pr_auc(scores: Scores, labels: Labels) -> float | None:
    """Trapezoidal area under the precision-recall curve, which interpolates between its points."""
    return _number(trapezoid_precision(*_counts(scores, labels)))


def false_alarm_rate(videos: Sequence[FrameScores], threshold: float = 0.5, *, strict: bool = False) -> float | None:
    """Share of the frames of normal videos whose score is at or above the threshold; `strict`: above it."""
    normal = [v.scores for v in videos if not v.labels.any()]
    if not normal:
        return None
    alarms = sum(int(np.count_nonzero(s > threshold if strict else s >= threshold)) for s in normal)
    return alarms / sum(len(s) for s in normal)


def equal_error_rate(tally: Tally) -> float | None:
    """Where the shares of missed anomalous and of alarmed normal frames are equal, between two thresholds linearly."""
    high, low = tally.counts()
    if not (high[-1] and low[-1]):
        return None
    missed, alarmed = 1 - np.append(0, high) / high[-1], np.append(0, low) / low[-1]
    i = int(np.argmax(alarmed >= missed))  # the last point has alarmed = 1 >= missed = 0
    before, after = missed[i - 1] - alarmed[i - 1], alarmed[i] - missed[i]
    share = before / (before + after)
    return float(alarmed[i - 1] + share * (alarmed[i] - alarmed[i - 1]))


def best_f1(tally: Tally) -> tuple[float | None, float | None]:
    """Highest F1 over all thresholds, and the threshold. Chosen on these very frames: optimistic."""
    high, low = tally.counts()
    if not high[-1]:
        return None, None
    f1 = 2 * high / (high[-1] + high + low)
    i = int(np.argmax(f1))
    return float(f1[i]), float(tally.thresholds[i])


def score_gap(videos: Sequence[FrameScores]) -> float | None:
    """Mean score of anomalous frames minus mean score of normal ones (MIST)."""
    positives, frames = sum(int(v.labels.sum()) for v in videos), sum(len(v.labels) for v in videos)
    if positives in (0, frames):
        return None
    high = sum(float(v.scores @ v.labels) for v in videos)
    return high / positives - (sum(float(v.scores.sum()) for v in videos) - high) / (frames - positives)


def video_auc(videos: Sequence[FrameScores]) -> float | None:
    """ROC area over videos, each scored by its highest frame."""
    best = np.array([v.scores.max() for v in videos])
    return roc_auc(best, np.array([v.labels.any() for v in videos], dtype=np.uint8))


def detection_delay(videos: Sequence[FrameScores], threshold: float = 0.5) -> tuple[float | None, float | None]:
    """Mean frames from an event's start to its first score >= threshold, and the share of events that ever get there.

    Events are runs of anomalous frames; those never detected count in the share alone.
    """
    delays: list[int] = []
    events = 0
    for video in videos:
        edges = true_runs(video.labels)
        events += len(edges)
        for start, stop in edges:
            inside = video.scores[start:stop] >= threshold
            if inside.any():
                delays.append(int(np.argmax(inside)))
    return (float(np.mean(delays)) if delays else None), (len(delays) / events if events else None)


def per_class(
    videos: Sequence[FrameScores], events: Mapping[str, Sequence[Event]]
) -> dict[str, dict[str, float | int | None]]:
    """AUC and AP of each class of event, by both definitions in use.

    Args:
        videos: all videos.
        events: {video id: events as the labels count them}; an event without a kind belongs to no class.

    Returns:
        {class: {"videos", "auc_own", "ap_own", "auc_rest", "ap_rest"}}. own: the frames of the videos that hold such an
        event, anomalous against normal ones; rest: such frames against all others of all videos.
    """
    found: dict[str, dict[str, float | int | None]] = {}
    for kind in sorted({e.kind for v in videos for e in events.get(v.video_id, ()) if e.kind}):
        holders = {v.video_id for v in videos if any(e.kind == kind for e in events.get(v.video_id, ()))}
        own = Tally.of([v for v in videos if v.video_id in holders]).counts()
        rest = []
        for video in videos:
            of_kind = (e for e in events.get(video.video_id, ()) if e.kind == kind)
            rest.append(replace(video, labels=label_frames(of_kind, len(video.labels))))
        all_ = Tally.of(rest).counts()
        found[kind] = {
            "videos": len(holders),
            "auc_own": _number(roc_area(*own)),
            "ap_own": _number(step_precision(*own)),
            "auc_rest": _number(roc_area(*all_)),
            "ap_rest": _number(step_precision(*all_)),
        }
    return found


def evaluate(
    videos: Sequence[FrameScores],
    *,
    threshold: float = 0.5,
    events: Mapping[str, Sequence[Event]] | None = None,
) -> dict[str, Any]:
    """All metrics of a split.

    Args:
        videos: scores and labels, each video once.
        threshold: for far, far_strict and the delay.
        events: {video id: events}, for the classes.

    Returns:
        auc, ap, pr_auc; ano_auc and ano_ap, over the frames of anomalous videos alone; far, far_strict, over those of
        normal videos alone, and far_threshold; eer, best_f1 and its threshold; score_gap; video_auc; delay_frames and
        events_detected; map_iou_0.1 to map_iou_0.5 and their mean map_iou, of spans of any kind (a head without class
        scores has one class; mil/detection.py takes several); classes (per class) and the means over them,
        class_auc_own and so on; the counts frames, positives, videos, anomalous_videos.

    Raises ValueError for no videos, or one that is given twice.
    """
    if not videos:
        raise ValueError("no videos to evaluate; is there a test split in the manifest?")
    seen: set[str] = set()
    for video in videos:
        if video.video_id in seen:
            raise ValueError(f"'{video.video_id}' is given twice; join scores by id")
        seen.add(video.video_id)
    tally = Tally.of(videos)
    pooled = tally.counts()
    anomalous = [v for v in videos if v.labels.any()]
    own = Tally.of(anomalous).counts() if anomalous else (np.zeros(1), np.zeros(1))
    f1, f1_threshold = best_f1(tally)
    delay, detected = detection_delay(videos, threshold)
    classes = per_class(videos, events or {})
    found = {v.video_id: v.scores for v in videos}
    true = {name: [replace(e, kind="") for e in list_] for name, list_ in (events or {}).items()}
    return {
        "auc": _number(roc_area(*pooled)),
        "ap": _number(step_precision(*pooled)),
        "pr_auc": _number(trapezoid_precision(*pooled)),
        "ano_auc": _number(roc_area(*own)),
        "ano_ap": _number(step_precision(*own)),
        "far": false_alarm_rate(videos, threshold),
        "far_strict": false_alarm_rate(videos, threshold, strict=True),
        "far_threshold": threshold,
        "eer": equal_error_rate(tally),
        "best_f1": f1,
        "best_f1_threshold": f1_threshold,
        "score_gap": score_gap(videos),
        "video_auc": video_auc(videos),
        "delay_frames": delay,
        "events_detected": detected,
        **detection_map({"": found}, true),
        "frames": sum(len(v.labels) for v in videos),
        "positives": int(pooled[0][-1]),
        "videos": len(videos),
        "anomalous_videos": len(anomalous),
        "classes": classes,
        **{f"class_{name}": _mean(classes, name) for name in ("auc_own", "ap_own", "auc_rest", "ap_rest")},
    }


def _counts(scores: Scores, labels: Labels) -> tuple[Scores, Scores]:
    return Tally.of([FrameScores("", np.asarray(scores, np.float64), np.asarray(labels, np.uint8))]).counts()


def _number(value: Scores) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(classes: Mapping[str, Mapping[str, float | int | None]], name: str) -> float | None:
    values = [v for numbers in classes.values() if (v := numbers[name]) is not None]
    return float(np.mean(values)) if values else None
