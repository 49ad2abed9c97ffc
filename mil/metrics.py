"""Frame-level metrics, pooled over videos.

Conventions: a label is 1 (anomalous) or 0; a higher score means more anomalous; every frame of every video counts the
same. Values lie in [0, 1]. A metric that the data leave undefined (one class only) is None, never 0.

AP has two definitions in this field, which differ by up to a point:
    ap      stepwise, sklearn's average_precision_score (VadCLIP, AnomalyCLIP)
    pr_auc  trapezoids under the precision-recall curve (HL-Net, RTFM, UR-DMU, MGFN, BN-WVAD, PEL4VAD), optimistic
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc as area
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from data.types import FrameScores

Scores = NDArray[np.float64]
Labels = NDArray[np.uint8]


def roc_auc(scores: Scores, labels: Labels) -> float | None:
    """Area under the ROC curve: the chance that an anomalous frame scores above a normal one, ties counting half."""
    return float(roc_auc_score(labels, scores)) if _two_classes(labels) else None


def average_precision(scores: Scores, labels: Labels) -> float | None:
    """Stepwise area under the precision-recall curve: sum of precision times the growth of recall."""
    return float(average_precision_score(labels, scores)) if labels.any() else None


def pr_auc(scores: Scores, labels: Labels) -> float | None:
    """Trapezoidal area under the precision-recall curve, which interpolates between its points."""
    if not labels.any():
        return None
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(area(recall, precision))


def false_alarm_rate(videos: Sequence[FrameScores], threshold: float = 0.5) -> float | None:
    """Share of the frames of normal videos whose score is at or above the threshold."""
    normal = [v.scores for v in videos if not v.labels.any()]
    return float((np.concatenate(normal) >= threshold).mean()) if normal else None


def evaluate(videos: Sequence[FrameScores], *, threshold: float = 0.5) -> dict[str, float | int | None]:
    """All metrics of a split.

    Returns auc, ap, pr_auc, ano_auc (frames of anomalous videos alone), far (frames of normal videos alone), and the
    counts frames, positives, videos, anomalous_videos.

    Raises ValueError for no videos, or one that is given twice.
    """
    if not videos:
        raise ValueError("no videos to evaluate; is there a test split in the manifest?")
    ids = [v.video_id for v in videos]
    if len(set(ids)) < len(ids):
        raise ValueError(f"'{next(i for i in ids if ids.count(i) > 1)}' is given twice; join scores by id")
    scores, labels = (np.concatenate([getattr(v, name) for v in videos]) for name in ("scores", "labels"))
    anomalous = [v for v in videos if v.labels.any()]
    ano_auc = None
    if anomalous:
        ano_auc = roc_auc(np.concatenate([v.scores for v in anomalous]), np.concatenate([v.labels for v in anomalous]))
    return {
        "auc": roc_auc(scores, labels),
        "ap": average_precision(scores, labels),
        "pr_auc": pr_auc(scores, labels),
        "ano_auc": ano_auc,
        "far": false_alarm_rate(videos, threshold),
        "far_threshold": threshold,
        "frames": len(labels),
        "positives": int(labels.sum()),
        "videos": len(videos),
        "anomalous_videos": len(anomalous),
    }


def _two_classes(labels: Labels) -> bool:
    return bool(labels.any() and not labels.all())
