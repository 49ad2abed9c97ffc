"""A grid of runs on one machine: recipes x values x seeds, each trained and evaluated in a process of its own.

A run that is done is never done again, one that was interrupted goes on, one that fails is reported and stops nothing.
"""

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mil import config as configs
from mil.config import ConfigError
from mil.rundir import RunDir

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0  # with a run that was interrupted, until it is stopped


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: what `wsvad train` and `wsvad eval` would be given."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    out: Path
    manifest: Path
    features: tuple[Path, ...]
    allow_missing: bool = False

    @property
    def log(self) -> Path:
        """What it said, beside its folder."""
        return self.out.with_name(f"{self.out.name}.log")


@dataclass(frozen=True)
class Ended:
    """How a run ended: numbers of its evaluation, or the reason why there are none."""

    run: Planned
    numbers: dict[str, Any] | None
    reason: str = ""
    fresh: bool = True


def plan(
    recipes: Sequence[str],
    out: Path,
    manifest: Path,
    features: Sequence[Path],
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    grid: Sequence[str] = (),
    allow_missing: bool = False,
) -> list[Planned]:
    """All runs, seed by seed, so that every recipe has a first number early.

    Args:
        recipes: names or YAML files.
        out: each run gets a folder below it.
        manifest: the videos.
        features: stores, of which each recipe takes what it wants.
        seeds: of every run.
        overrides: `key=value` of every run.
        grid: `key=value,value,...`; every combination is run.
        allow_missing: go on without the videos that have no features.

    Raises:
        ConfigError: a recipe or a value that cannot be used.
        ValueError: a store that is not there, or features that a recipe wants and nobody gave.
    """
    axes = []
    for text in grid:
        key, equals, choices = text.partition("=")
        if not equals or not choices:
            raise ConfigError(f"--grid takes key=value,value,..., e.g. train.optimizer.lr=1e-3,1e-4, got '{text}'")
        axes.append([f"{key}={value}" for value in choices.split(",")])
    from mil.run import chosen
    from mil.train import open_stores

    stores = open_stores(features)
    wanted = [(recipe, point) for recipe in recipes for point in itertools.product(*axes)]
    for recipe, point in wanted:
        chosen(configs.load(recipe, [*overrides, *point]), stores)
    planned = []
    for seed in seeds:
        for recipe, point in wanted:
            stem = recipe.removesuffix(".yaml").removesuffix(".yml").rsplit("/", 1)[-1]
            name = "-".join([stem, *(p.replace("/", "_") for p in point), f"s{seed}"])
            own = (*overrides, *point)
            planned.append(Planned(name, recipe, own, seed, out / name, manifest, tuple(features), allow_missing))
    names = [p.name for p in planned]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ConfigError(f"two runs of this sweep would be called '{min(twice)}'; rename a recipe file")
    return planned


def run_sweep(
    planned: Sequence[Planned],
    *,
    workers: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = log.info,
) -> list[Ended]:
    """Trains and evaluates what is not done yet; the results are in the order of the plan.

    Args:
        planned: from `plan`.
        workers: processes at a time, each with one thread and, where the system allows it, a core of its own; 0: a
            process per core, or with `device` cuda one per GPU.
        device: "cpu", "cuda" (the GPUs in turn) or one device for all.
        say: called with a line for each run that ends.
    """
    slots = _slots(workers, device)
    ended: dict[str, Ended] = {}
    for run in planned:
        if (numbers := finished(run.out)) is not None:
            ended[run.name] = Ended(run, numbers, fresh=False)
    if ended:
        say(f"{len(ended)} of {len(planned)} runs are done already")
    todo = [run for run in planned if run.name not in ended]
    context = multiprocessing.get_context("forkserver")
    # torch is imported once, and forked; its optimizers import the last, which takes seconds, when they are made
    context.set_forkserver_preload(["mil.run", "mil.evaluate", "torch._dynamo"])
    free = list(slots)
    busy: dict[Any, tuple[Any, Planned, tuple[str, int | None]]] = {}
    try:
        while todo or busy:
            while todo and free:
                run, slot = todo.pop(0), free.pop(0)
                run.out.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_work, args=(run, *slot), name=run.name)
                process.start()
                busy[process.sentinel] = (process, run, slot)
            for sentinel in wait(list(busy)):
                process, run, slot = busy.pop(sentinel)
                process.join()
                free.append(slot)
                ended[run.name] = _result(run, process.exitcode)
                say(f"{len(ended)} of {len(planned)}: {_line(ended[run.name])}")
    except KeyboardInterrupt:
        for process, _, _ in busy.values():
            process.join(_PATIENCE_S)  # each saves the state of its run
        raise
    finally:
        for process, _, _ in busy.values():
            process.terminate()
        for process, _, _ in busy.values():
            process.join()
    return [ended[run.name] for run in planned]


def finished(root: Path) -> dict[str, Any] | None:
    """The numbers of a run that was trained and evaluated on the test split, all of it; None when it was not yet."""
    if not (root / "config.yaml").is_file() or RunDir(root).status.get("state") != "done":
        return None
    for path in sorted((root / "eval").glob("test-*.json")):
        numbers: dict[str, Any] = json.loads(path.read_text())
        return numbers
    return None


def _slots(workers: int, device: str) -> list[tuple[str, int | None]]:
    """(device, core) of each process that may run at a time."""
    if device != "cpu":
        import torch

        count = torch.cuda.device_count() if device == "cuda" else 1
        names = [f"cuda:{i}" for i in range(count)] if device == "cuda" and count else [device]
        return [(names[i % len(names)], None) for i in range(workers or len(names))]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = workers or len(cores)
    return [("cpu", cores[i % len(cores)] if count <= len(cores) else None) for i in range(count)]


def _work(run: Planned, device: str, core: int | None) -> None:
    """In the process: trains or goes on, evaluates; everything it says goes to the run's log."""
    import torch

    from mil.evaluate import evaluate_run
    from mil.run import resume_run, start_run

    torch.set_num_threads(1)  # the same bytes whatever else runs
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a container may forbid it; it only costs speed
            os.sched_setaffinity(0, {core})
    with _into(run.log):
        try:
            if (run.out / "config.yaml").is_file():
                _check_same(run)
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
            evaluate_run(RunDir(run.out), allow_missing=run.allow_missing, device=device)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            traceback.print_exc()
            print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201  # into the log
            sys.exit(1)


def _check_same(run: Planned) -> None:
    """Raises ConfigError when the folder holds a run of other values than this sweep's."""
    from mil.train import resolved

    kept = RunDir(run.out)
    wanted = configs.load(run.recipe, run.overrides, seed=run.seed)
    wanted = resolved(wanted, [v for v in kept.videos if v.split == "train" and v.id not in kept.left_out])
    if kept.config != wanted:
        raise ConfigError(
            f"{run.out} holds a run of other values than this sweep's; choose another --out, or delete it"
        )


@contextlib.contextmanager
def _into(path: Path) -> Iterator[None]:
    """Sends what this process writes, also from C, to the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"-- {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
        file.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(message)s", stream=sys.stderr, force=True)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def _result(run: Planned, code: int | None) -> Ended:
    numbers = finished(run.out) if code == 0 else None
    if numbers is not None:
        return Ended(run, numbers)
    lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines() if run.log.is_file() else []
    said = next((line.removeprefix("failed: ") for line in reversed(lines) if line.startswith("failed: ")), "")
    if code == 1 and said:
        return Ended(run, None, said)
    return Ended(run, None, f"its process ended with code {code}; see {run.log}")


def _line(ended: Ended) -> str:
    if ended.numbers is None:
        return f"{ended.run.name} FAILED: {ended.reason}"
    shown = ", ".join(f"{n} {ended.numbers[n]:.4f}" for n in ("auc", "ap") if ended.numbers[n] is not None)
    return f"{ended.run.name}: {shown}"
