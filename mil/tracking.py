"""Where the numbers of a run go while it trains, beside metrics.jsonl: TensorBoard, Weights & Biases."""

import importlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from data.files import write_text
from data.registry import UnknownNameError, suggest
from mil.config import Config
from mil.rundir import RunDir

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Two methods: what any tracker of experiments can do."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at that step; steps never go back, but for a resumed run's."""

    def close(self) -> None:
        """The run has ended, or was interrupted."""


class TrackerError(ValueError):
    """A tracker's package is not there; the message says what to install."""


class TensorBoardTracker:
    """Scalars in RUN/tensorboard. Of a resumed run, what it logs again takes the place of what was there."""

    def __init__(self, run: RunDir, config: Config) -> None:
        self.folder = run.root / "tensorboard"
        self.writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes through to the disk, so that a kill loses nothing that metrics.jsonl has."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # readers drop what an earlier process wrote of this step and later ones
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Closes the event file, if one was begun."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class WandbTracker:
    """A run of the project "wsvad" with the resolved recipe as its config; WANDB_MODE and the like count as ever.

    Its id stands in RUN/wandb_id.txt, and a resumed run goes on under it. Steps that Weights & Biases has already are
    not written a second time.
    """

    def __init__(self, run: RunDir, config: Config) -> None:
        self.run, self.config = run, config
        self.remote: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Begins the run with the first numbers."""
        if self.remote is None:
            import wandb

            path = self.run.root / "wandb_id.txt"
            if not path.is_file():
                write_text(path, uuid.uuid4().hex[:8] + "\n")
            self.remote = wandb.init(
                project="wsvad",
                name=self.run.root.resolve().name,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(self.run.root),
                config=self.config.model_dump(mode="json"),
                settings={"console": "off"},
            )
        self.remote.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there; a resumed one opens it again."""
        if self.remote is not None:
            self.remote.finish()
            self.remote = None


class _Unharmful:
    """A tracker whose errors are told once and then left alone: no number on a website is worth a run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker: Tracker | None = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda tracker: tracker.log(values, step))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, work: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            work(self.tracker)
        except Exception as error:
            self.tracker = None
            log.warning(
                "%s takes no more numbers of this run (%s: %s); training goes on, metrics.jsonl has them all",
                self.name,
                type(error).__name__,
                " ".join(str(error).split()),
            )


_KINDS: dict[str, tuple[Callable[[RunDir, Config], Tracker], str, str]] = {
    "tensorboard": (TensorBoardTracker, "torch.utils.tensorboard", "SummaryWriter"),
    "wandb": (WandbTracker, "wandb", "init"),
}
NAMES = tuple(_KINDS)


def check_trackers(names: Sequence[str]) -> None:
    """Whether those trackers can be used, before a run is made.

    Raises UnknownNameError for a name, TrackerError with the line to type where the package is wanting.
    """
    for name in names:
        if name not in _KINDS:
            raise UnknownNameError(f"no tracker called '{name}'.{suggest(name, list(_KINDS))}")
        _, module, wanted = _KINDS[name]
        try:
            found = hasattr(importlib.import_module(module), wanted)  # a folder called wandb is a module too
        except ImportError:
            found = False
        if not found:
            raise TrackerError(f"--track {name} needs the package {name}: pip install 'wsvad[{name}]'")


def make_trackers(names: Sequence[str], run: RunDir, config: Config) -> list[Tracker]:
    """A tracker for each name, "tensorboard" or "wandb", once.

    Nothing is opened before the first numbers come, and no error of a tracker reaches the training: the first is
    logged as a warning, and that tracker is asked no more. Raises as `check_trackers`.
    """
    check_trackers(names)
    return [_Unharmful(name, _KINDS[name][0](run, config)) for name in dict.fromkeys(names)]
