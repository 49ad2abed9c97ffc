"""One run of a sweep, in the process that does it: train or go on, evaluate by every rule, everything said into a log.

Two processes of sweeps never do one run: whoever has its log locked has the run. An orphan of a sweep that was killed
saves its state and lets go within a step.
"""

import contextlib
import fcntl
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data import files, manifest
from data.registry import load_plugin
from data.types import Video
from mil import config as configs
from mil import evaluations
from mil.allocator import keep_memory
from mil.config import ConfigError
from mil.rundir import RunDir
from mil.sweep_plan import Planned

_PAUSE_S = 0.2


def finished(root: Path, *, partial: bool = False) -> dict[str, Any] | None:
    """The numbers that a run is judged by; None until it is trained, and evaluated by every rule that it follows.

    `partial` takes evaluations that lack videos, too.
    """
    if not (root / "config.yaml").is_file() or RunDir(root).status.get("state") != "done":
        return None
    config = RunDir(root).config
    found = [evaluations.find(root, config, rule=rule, partial=partial) for rule in config.select.rules]
    return found[0].numbers if found[0] is not None and None not in found else None


def check_same(run: Planned) -> None:
    """Raises ConfigError when the folder holds a run of other values, videos or features than this sweep's."""
    from mil.run import chosen
    from mil.train import open_stores, resolved

    kept = RunDir(run.out)
    config = configs.load(run.recipe, run.overrides, seed=run.seed)
    features = [store.spec.id for store in chosen(config, open_stores(run.features))]
    wanted = resolved(config, [v for v in kept.videos if v.split == "train" and v.id not in kept.left_out])
    differ = {
        "values": kept.config != wanted,
        "videos": _bare(kept.root / "manifest.csv", 0) != _bare(run.manifest, run.manifest.stat().st_mtime_ns),
        "features": [f["id"] for f in json.loads((kept.root / "features.json").read_text())] != features,
    }
    if other := [name for name, differs in differ.items() if differs]:
        kinds = " and ".join(other)
        raise ConfigError(
            f"{run.out} holds a run of other {kinds} than this sweep's; choose another --out, or delete it"
        )


def work(run: Planned, device: str) -> str:
    """Does what is left of a run. Returns why it failed, or ""; the log has the traceback.

    KeyboardInterrupt comes through, the state of the run being saved.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with _locked(run.log), _into(run.log):
        try:
            _train_and_evaluate(run, device)
        except Exception as error:
            traceback.print_exc()
            return in_a_line(error)
    return ""


def in_a_line(error: Exception) -> str:
    """An error's own words, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _train_and_evaluate(run: Planned, device: str) -> None:
    import torch

    from mil.evaluate import evaluate_run
    from mil.run import resume_run, start_run

    torch.set_num_threads(1)  # the same bytes whatever else runs
    keep_memory()
    for path in run.plugins:
        load_plugin(path)
    if (run.out / "config.yaml").is_file():
        check_same(run)
        files.sweep(run.out)  # what a kill left half-written
        if RunDir(run.out).status.get("state") != "done":
            resume_run(run.recipe, run.out, device=device)
    else:
        start_run(
            run.recipe,
            run.overrides,
            run.manifest,
            run.features,
            run.out,
            seed=run.seed,
            device=device,
            allow_missing=run.allow_missing,
            command=["wsvad", "sweep", run.name],
        )
    kept = RunDir(run.out)
    for rule in kept.config.select.rules:
        if evaluations.find(run.out, kept.config, rule=rule, partial=run.allow_missing) is None:
            evaluate_run(kept, allow_missing=run.allow_missing, device=device, rule=rule)


@lru_cache(maxsize=4)
def _bare(path: Path, changed: int) -> tuple[Video, ...]:
    """The videos of a manifest, wherever their files lie; read once for each time that it has `changed`."""
    return tuple(replace(video, path="") for video in manifest.read(path))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process, on this machine or one that shares the disk, has the file."""
    with path.open("a") as file:  # not the descriptor that is written to: children of a run would keep that locked
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError:  # a disk without locks
                break
        yield


@contextlib.contextmanager
def _into(path: Path) -> Iterator[None]:
    """Sends what this process writes, also from C, to the end of a file."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    with contextlib.ExitStack() as stack, path.open("a", encoding="utf-8") as file:
        file.write(f"-- {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
        file.flush()
        for number in (1, 2):
            old = os.dup(number)
            stack.callback(os.close, old)
            stack.callback(os.dup2, old, number)
            stack.callback(_flush)
            _flush()
            os.dup2(file.fileno(), number)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
        root.handlers, root.level = [handler], logging.INFO
        try:
            yield
        finally:
            root.handlers, root.level = before, level


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
