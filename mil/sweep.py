"""A grid of runs, recipes x values x seeds, each trained and evaluated in a process of its own; here or on a cluster.

A run that is done is never done again, one that was interrupted goes on, one that fails is reported and stops nothing.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from mil.interrupt import sigterm_interrupts
from mil.sweep_plan import Planned, plan
from mil.sweep_run import check_same, finished, in_a_line

__all__ = ["ENGINES", "Ended", "Planned", "finished", "plan", "run_sweep"]

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Ended:
    """How a run ended: numbers of its evaluation, or the reason why there are none.

    Args:
        run: which.
        numbers: those that it is judged by.
        reason: why it failed.
        fresh: False: it was done, or could not be done, before this sweep began.
    """

    run: Planned
    numbers: dict[str, Any] | None
    reason: str = ""
    fresh: bool = True


def run_sweep(
    planned: Sequence[Planned],
    *,
    workers: int = 0,
    device: str = "cpu",
    engine: str = "local",
    address: str | None = None,
    say: Callable[[str], None] = log.info,
) -> list[Ended]:
    """Trains and evaluates what is not done yet; the results are in the order of the plan.

    Args:
        planned: from `plan`.
        workers: runs at a time; 0: as many as there are cores, or with `device` cuda GPUs.
        device: "cpu", "cuda" (the GPUs in turn) or, on this machine, one device for all.
        engine: "local", processes of this machine; "ray", a cluster whose nodes all see the plan's paths.
        address: ray: of a running cluster; None takes RAY_ADDRESS, or starts Ray on this machine.
        say: called with a line for each run that ends.

    Ctrl-C, or SIGTERM, has every run save its state, then raises KeyboardInterrupt.

    Raises ClusterError without ray, without a cluster, or where no node has what `device` asks for.
    """
    ended: dict[str, Ended] = {}
    for run in planned:
        if (one := _before(run)) is not None:
            ended[run.name] = one
            if one.numbers is None:
                say(_line(one))
    done = sum(one.numbers is not None for one in ended.values())
    if done:
        say(f"{done} of {len(planned)} runs are done already")
    todo = [run for run in planned if run.name not in ended]
    began = time.monotonic()
    with sigterm_interrupts(), contextlib.closing(_engine(todo, engine, workers, device, address)) as runs:
        for count, (run, reason) in enumerate(runs, start=1):
            ended[run.name] = _result(run, reason)
            passed = time.monotonic() - began
            left = f", about {_clock(passed * (len(todo) - count) / count)} left" if count < len(todo) else ""
            say(f"{len(ended)} of {len(planned)}, {_clock(passed)}{left}: {_line(ended[run.name])}")
    return [ended[run.name] for run in planned]


def _engine(
    todo: Sequence[Planned], engine: str, workers: int, device: str, address: str | None
) -> Generator[tuple[Planned, str], None, None]:
    if engine == "ray":
        from mil.sweep_ray import run_ray

        return run_ray(todo, workers=workers, device=device, address=address)
    if engine != "local":
        raise ValueError(f"a sweep's engine is one of {', '.join(ENGINES)}, got '{engine}'")
    from mil.sweep_local import run_local

    return run_local(todo, workers=workers, device=device)


def _before(run: Planned) -> Ended | None:
    """How a run ended that needs nothing more; None for one that is to be done."""
    try:
        numbers = finished(run.out, partial=run.allow_missing)
        if numbers is None:
            return None
        check_same(run)
    except Exception as error:  # whatever it is, the other runs go on
        return Ended(run, None, in_a_line(error), fresh=False)
    return Ended(run, numbers, fresh=False)


def _result(run: Planned, reason: str) -> Ended:
    if reason:
        return Ended(run, None, reason)
    try:
        numbers = finished(run.out, partial=run.allow_missing)
    except Exception as error:
        return Ended(run, None, in_a_line(error))
    return Ended(run, numbers, "" if numbers else f"it left no evaluation that is whole; see {run.log}")


def _line(ended: Ended) -> str:
    numbers = ended.numbers
    if numbers is None:
        return f"{ended.run.name} FAILED: {ended.reason}"
    shown = ", ".join(f"{n} {numbers[n]:.4f}" for n in ("auc", "ap") if numbers[n] is not None)
    return f"{ended.run.name}: {shown}" + (" OPTIMISTIC" if numbers.get("optimistic") else "")


def _clock(seconds: float) -> str:
    """H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
