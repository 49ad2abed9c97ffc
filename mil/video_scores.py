"""What scoring a video gives: scores of frames and clips, with their times, to look at, to search and to keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid
from mil.events import EventRule, Span, find_events

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class VideoScores:
    """The scores of one video.

    Args:
        video_id: its file's name without the suffix.
        path: the file.
        fps: frames per second; None where nobody knows, and 25 is taken.
        scores: (F,) of its frames; for most heads in [0, 1], from normal to anomalous.
        clip_scores: (N,) of its clips, smoothed by the recipe's rule: what `scores` is made of.
        grid: which frames each clip shows.
        times: (F + 1,) seconds: where each frame begins, and where the last one ends.
        notes: what is unusual about the file.
        about: what made the scores (run, rule, head, features, ...), as it stands beside them in files.
    """

    video_id: str
    path: Path
    fps: float | None
    scores: NDArray[np.float64]
    clip_scores: NDArray[np.float64]
    grid: ClipGrid
    times: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def events(self, rule: EventRule) -> list[Span]:
        """The events by that rule, in order. `mil.threshold.training_threshold(run).rule()` makes one."""
        return find_events(self.scores, self.times, rule)

    def plot(self, path: Path | str | None = None, *, rule: EventRule | None = None) -> "Figure":
        """Score against time, as a figure of matplotlib that a notebook shows; also written to a .png or .svg.

        With a rule, its threshold and the events are drawn too. Needs no display.
        """
        from mil.timeline import figure

        shown: dict[str, Any] = {"title": self.video_id, "clips": self.times[self.grid.starts]}
        if rule is not None:
            shown |= {"events": self.events(rule), "threshold": rule.high, "low": rule.low}
        drawn = figure(self.scores, self.times, **shown)
        if path is not None:
            drawn.save(Path(path))
        return drawn

    def save(self, folder: Path | str, *, rule: EventRule | None = None, about: str = "") -> Path:
        """Writes NAME.csv, NAME.png and NAME.json into the folder, which is made, and returns the last one's path.

        With a rule the JSON and the picture hold the events; `about` says where its threshold comes from.
        """
        from mil.score_files import write

        return write(self, Path(folder), rule=rule, about_threshold=about).path
