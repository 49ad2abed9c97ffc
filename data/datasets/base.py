"""What a dataset reader returns, and the registry of readers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.registry import Registry
from data.types import Video

datasets: Registry[Callable[..., "DatasetIndex"]] = Registry("dataset", "data.datasets")
"""Readers `load(root: Path, **options) -> DatasetIndex`; the first line of the docstring is shown by `wsvad ls`."""


@dataclass(frozen=True)
class DatasetIndex:
    """Videos of a dataset, and what was found wrong with it.

    Args:
        videos: what can be used, sorted by the reader.
        problems: one line each, naming the file and the remedy; the command then exits with 1.
        notes: one line each, worth knowing, nothing to repair.
    """

    videos: tuple[Video, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for video_id, times in Counter(v.id for v in self.videos).items():
            if times > 1:
                raise ValueError(f"{times} videos have the id '{video_id}'; rename one of the files")

    def summary(self) -> dict[str, Any]:
        """Counts by split: videos, anomalous ones, events."""
        counts: dict[str, Any] = {}
        for split in ("train", "test"):
            part = [v for v in self.videos if v.split == split]
            counts[split] = len(part)
            counts[f"{split}_anomalous"] = sum(v.label for v in part)
            counts[f"{split}_events"] = sum(len(v.events) for v in part)
        return counts
