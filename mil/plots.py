"""Pictures of results, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.files import aside
from data.types import FrameScores


def timelines(
    path: Path, videos: Sequence[FrameScores], fps: Mapping[str, float | None], *, title: str, most: int = 8
) -> Path:
    """Draws score against time for up to `most` videos, with the ground truth shaded, and writes a PNG.

    Anomalous videos come first, in the given order, then normal ones, half of each where there are enough.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    anomalous = [v for v in videos if v.labels.any()]
    normal = [v for v in videos if not v.labels.any()]
    shown = anomalous[: max(most - len(normal), (most + 1) // 2)]
    shown += normal[: most - len(shown)]
    figure = Figure(figsize=(10, 1.15 * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, video in zip(axes, shown, strict=True):
        rate = fps.get(video.video_id) or 1.0
        seconds = [i / rate for i in range(len(video.scores))]
        axis.fill_between(seconds, 0, 1, where=video.labels > 0, step="post", color="#e4572e", alpha=0.25, lw=0)
        axis.step(seconds, video.scores, where="post", color="#17324d", lw=1.3)
        axis.set(xlim=(0, len(video.scores) / rate), ylim=(-0.02, 1.02), yticks=(0, 1))
        axis.set_title(video.video_id, fontsize=8, loc="left", pad=2)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1].set_xlabel("seconds" if any(fps.values()) else "frames", fontsize=8)
    figure.suptitle(f"{title}   (line: score, shaded: ground truth)", fontsize=10)
    FigureCanvasAgg(figure)
    with aside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
