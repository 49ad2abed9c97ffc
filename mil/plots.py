"""Pictures of results, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.types import FrameScores, true_runs


def timelines(
    path: Path, videos: Sequence[FrameScores], fps: Mapping[str, float | None], *, title: str, most: int = 8
) -> Path:
    """Draws score against time for up to `most` videos, with the ground truth shaded, and writes a PNG or an SVG.

    Anomalous videos come first, in the given order, then normal ones, half of each where there are enough. All share
    one range of scores. Names are shown as they are.
    """
    from mil.drawing import ALARM, INK, Picture, families, limits, literal, thinned, time_axis

    anomalous = [v for v in videos if v.labels.any()]
    normal = [v for v in videos if not v.labels.any()]
    shown = anomalous[: max(most - len(normal), (most + 1) // 2)]
    shown += normal[: most - len(shown)]
    picture = Picture(10, 1.15 * len(shown) + 0.8)
    axes = picture.subplots(len(shown), 1, squeeze=False)[:, 0]
    bottom, top = limits(np.concatenate([v.scores for v in shown]))
    for axis, video in zip(axes, shown, strict=True):
        edges = np.arange(len(video.scores) + 1) / (fps.get(video.video_id) or 1.0)
        for start, stop in true_runs(video.labels).tolist():
            axis.axvspan(edges[start], edges[stop], color=ALARM, alpha=0.25, lw=0)
        pieces, bounds = thinned(video.scores, edges)
        axis.step(bounds, np.append(pieces, pieces[-1]), where="post", color=INK, lw=1.3)
        axis.set_ylim(bottom, top)
        axis.set_title(literal(video.video_id), fontsize=8, loc="left", pad=2, parse_math=False, family=families())
        if fps.get(video.video_id):
            time_axis(axis, 0.0, float(edges[-1]))
        else:
            axis.set_xlim(0, edges[-1])
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1].set_xlabel("time" if any(fps.values()) else "frames", fontsize=8)
    picture.suptitle(
        f"{literal(title)}   (line: score, shaded: ground truth)", fontsize=10, parse_math=False, family=families()
    )
    return picture.save(path, dpi=110)
