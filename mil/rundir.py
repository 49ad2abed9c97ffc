"""The run directory: everything one training run was made of and led to.

config.yaml  manifest.csv  environment.json  features.json      what went in
left_out.txt                                                    videos it does without, having no features
log.txt  metrics.jsonl  status.json  resume.pt                  how it went; status.json alone says that it is done
lock                                                            held (flock) by the process that trains it
checkpoints/<rule>.{safetensors,json}                           what came out: weights that each rule keeps
threshold-<rule>.json                                           for events, from training videos; made when asked for
eval/<split>-<protocol>.json  eval/..._scores.npz               numbers, and the frame scores behind them; of weights
                                                                that the run has replaced since, they do not count
"""

import fcntl
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import manifest
from data.files import write_text
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from mil.config import Config, parse, validate

log = logging.getLogger(__name__)

_PACKAGES = ("wsvad", "torch", "numpy", "h5py", "scikit-learn", "av", "opencv-contrib-python-headless")


class RunError(ValueError):
    """A run directory cannot be made or read; the message says what to type."""


class RunDir:
    """A run on disk. `create` makes a new one and never overwrites; `RunDir(path)` opens one that is there."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not (self.root / "config.yaml").is_file():
            raise RunError(
                f"no run at {self.root} (it would hold config.yaml); train one: wsvad train RECIPE --out {self.root}"
            )

    @classmethod
    def create(
        cls,
        root: Path,
        config: Config,
        videos: Sequence[Video],
        stores: Sequence[FeatureStore],
        command: Sequence[str] = (),
        *,
        left_out: Sequence[str] = (),
    ) -> "RunDir":
        """Makes the folder with all that goes in. Raises RunError when something is there already."""
        if root.exists() and not _is_free(root):
            raise RunError(
                f"{root} exists and is never overwritten; choose another --out, or continue it with --resume"
            )
        for name in ("checkpoints", "eval"):
            (root / name).mkdir(parents=True, exist_ok=True)
        manifest.write(root / "manifest.csv", videos)
        features = [
            {"root": str(s.root.resolve()), "id": s.spec.id, "spec": json.loads(s.spec.to_json())} for s in stores
        ]
        write_text(root / "features.json", json.dumps(features, indent=2) + "\n")
        write_text(root / "environment.json", json.dumps(_environment(command), indent=2) + "\n")
        if left_out:
            write_text(root / "left_out.txt", "".join(f"{i}\n" for i in left_out))
        write_text(root / "config.yaml", config.to_yaml())  # last: with it, the folder is a run
        return cls(root)

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        path = self.root / "config.yaml"
        return validate(parse(path.read_text(), str(path)), str(path))

    @property
    def videos(self) -> tuple[Video, ...]:
        """The manifest as it was when the run began."""
        return manifest.read(self.root / "manifest.csv")

    @property
    def feature_roots(self) -> list[Path]:
        """Where the stores were, one per modality."""
        return [Path(f["root"]) for f in json.loads((self.root / "features.json").read_text())]

    def open_stores(self) -> list[FeatureStore]:
        """The stores it was trained on. Raises SpecMismatchError when other features lie there now."""
        stores = []
        for found in json.loads((self.root / "features.json").read_text()):
            store = FeatureStore(found["root"])
            store.spec.check_equal(FeatureSpec.from_json(json.dumps(found["spec"])), f"the store {store.root}")
            stores.append(store)
        return stores

    @property
    def left_out(self) -> set[str]:
        """Ids of the videos of training, and of a test split that selects, that had no features when the run began."""
        path = self.root / "left_out.txt"
        return set(path.read_text(encoding="utf-8").split("\n")) - {""} if path.is_file() else set()

    @property
    def checkpoint(self) -> Path:
        """Stem of the weights that the run is judged by."""
        return self.checkpoint_of(self.config.select.rule)

    def checkpoint_of(self, rule: str) -> Path:
        """Stem of the weights that a rule of selection keeps."""
        return self.root / "checkpoints" / rule

    def followed(self, rule: str | None = None) -> str:
        """That rule, of those that the run followed; None: the one that it is judged by. Raises RunError on another."""
        rules = self.config.select.rules
        if rule is not None and rule not in rules:
            raise RunError(
                f"{self.root} kept no weights by {rule}, only by {', '.join(rules)}; train with --also {rule}"
            )
        return rule or rules[0]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the run for this process, as two that train it would write over each other's files.

        Raises RunError where another process has it. The kernel drops the claim of one that dies.
        """
        with (self.root / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"another process is training {self.root}; wait for it, or stop it first") from None
            except OSError:
                log.debug("%s lies on a disk without locks", self.root)
            yield

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl."""
        with (self.root / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def keep_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl after `step`, which a resumed run makes again."""
        path = self.root / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may tear the last one
        write_text(path, "".join(line for line in whole if json.loads(line)["step"] <= step))

    def set_status(self, state: str, **details: Any) -> None:
        """Writes status.json: running, interrupted, failed or done."""
        write_text(self.root / "status.json", json.dumps({"state": state, **details}, indent=2) + "\n")

    @property
    def status(self) -> dict[str, Any]:
        """What status.json says; {"state": "new"} before the first step."""
        path = self.root / "status.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"state": "new"}
        return found


def _is_free(root: Path) -> bool:
    """Whether nothing is lost by starting a run here: an empty folder, or what a kill left before config.yaml."""
    begun = {"checkpoints", "eval", "manifest.csv", "features.json", "environment.json", "left_out.txt"}
    return root.is_dir() and all(p.name in begun or p.name.endswith(".tmp") for p in root.iterdir())


def _environment(command: Sequence[str]) -> dict[str, Any]:
    import torch

    return {
        "command": list(command),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": {name: version(name) for name in _PACKAGES},
    }
