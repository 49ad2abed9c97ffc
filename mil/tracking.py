"""Where the numbers of a run go while it trains, beside metrics.jsonl."""

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Two methods: what any tracker of experiments can do."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at that step; steps never go back, but for a resumed run's."""

    def close(self) -> None:
        """The run has ended, or was interrupted."""
