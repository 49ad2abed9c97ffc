"""A sweep's runs on a Ray cluster, a task for each. Workers and whole nodes may die: their runs go on elsewhere.

The nodes see the folder of the runs, the stores, the manifest and the plugins under the same paths, and have the same
wsvad installed or see the same folder of it.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from data.files import temporary_name
from mil.sweep_plan import Planned
from mil.sweep_run import work

log = logging.getLogger(__name__)

_PAUSE_S = 2.0
_PATIENCE_S = 60.0  # with runs that were interrupted, until Ray goes
_TRIES = 3  # of a run whose workers die


def run_ray(
    todo: Sequence[Planned], *, workers: int = 0, device: str = "cpu", address: str | None = None
) -> Generator[tuple[Planned, str], None, None]:
    """As `mil.sweep_local.run_local`, with a task of one core for each run, and one GPU where `device` is cuda.

    Args:
        todo: what is not done yet.
        workers: tasks at a time; 0: as many as the cluster has room for.
        device: "cpu" or "cuda"; Ray chooses the GPU.
        address: of a running cluster, "auto" for the one on this machine. None takes RAY_ADDRESS, or starts Ray on
            this machine and stops it at the end.

    Raises ClusterError without ray, without a cluster, and where no node has a GPU that is asked for.
    """
    if not todo:
        return
    from extract.cluster_node import versions
    from extract.cluster_offer import ClusterError, WithoutRay, connected, import_ray, offered

    ray = import_ray()
    runs = deque(run.absolute() for run in todo)
    names = {run.name: run for run in todo}
    gpus = 0 if device == "cpu" else 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(WithoutRay(sys.stdout)))
        stack.enter_context(connected(ray, address))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus and not any(node.get("GPU") for node in nodes):
            raise ClusterError(
                f"--device {device}, but no node has a GPU: {offered(nodes)}; leave it out, or add a node"
            )
        runs[0].out.parent.mkdir(parents=True, exist_ok=True)
        mark = temporary_name(runs[0].out.parent / "ray")
        stack.callback(mark.unlink, missing_ok=True)
        mark.touch()  # a node that does not see it would write into another folder of that name
        task = _task(ray).options(num_cpus=1, num_gpus=gpus, max_retries=0)  # we know how often it died, and tell
        given = (device.partition(":")[0], versions(), str(mark), os.getcwd())
        tries: Counter[str] = Counter()
        flying: dict[Any, Planned] = {}
        stack.callback(_stop, ray, flying)
        while runs or flying:
            while runs and (not workers or len(flying) < workers):
                run = runs.popleft()
                flying[task.remote(str(Path(__file__).parent.parent), run, *given)] = run
            for call in ray.wait(list(flying), timeout=_PAUSE_S)[0]:
                run = flying.pop(call)
                tries[run.name] += 1
                try:
                    yield names[run.name], ray.get(call)
                except ray.exceptions.RayTaskError as error:  # of wsvad itself, or of a node that cannot do it
                    yield names[run.name], _words(error)
                except ray.exceptions.RayError as error:
                    if tries[run.name] < _TRIES:
                        log.warning("%s: its worker died (%s); it goes on elsewhere", run.name, _words(error))
                        runs.append(run)
                    else:
                        yield names[run.name], f"its worker died {_TRIES} times ({_words(error)}); out of memory?"


def on_node(run: Planned, device: str, wanted: dict[str, str], mark: str, folder: str) -> str:
    """A run, on the node that got it; returns as `work` does.

    Raises ClusterError with this machine's name where it would compute something else, or write elsewhere.
    """
    from extract.cluster_node import versions
    from extract.cluster_offer import ClusterError

    ours, here = versions(), f"node {socket.gethostname()}"
    if differ := [f"{name} {ours.get(name)}, not {v}" for name, v in wanted.items() if ours.get(name) != v]:
        raise ClusterError(f"{here}: has {', '.join(differ)}: numbers could differ; install the same everywhere")
    if not Path(mark).is_file():
        raise ClusterError(f"{here}: does not see {run.out.parent}; runs must lie on a disk that all nodes share")
    with contextlib.suppress(OSError):  # for relative paths in recipes
        os.chdir(folder)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which is how a task is cancelled
    try:
        return work(run, device)
    finally:
        signal.signal(signal.SIGINT, before)


def _task(ray: Any) -> Any:
    """The task, as Ray wants it."""

    def wsvad_run(root: str, *given: Any) -> Any:
        """Travels as code, since wsvad is still to be found where it arrives."""
        import sys

        sys.path.insert(0, root)
        from mil.sweep_ray import on_node

        return on_node(*given)

    return ray.remote(wsvad_run)


def _stop(ray: Any, flying: dict[Any, Planned]) -> None:
    """Has every run that is under way save its state."""
    if flying:
        log.info("%d runs save their state; Ctrl-C again does not wait for them", len(flying))
        for call in flying:
            ray.cancel(call)
        ray.wait(list(flying), num_returns=len(flying), timeout=_PATIENCE_S)


def _words(error: Exception) -> str:
    """An error's own words, without Ray's account of where it passed through."""
    from extract.cluster_offer import ClusterError, short

    cause = getattr(error, "cause", None)
    lines = [line for line in str(cause or error).splitlines() if line.strip()] or [type(error).__name__]
    return str(cause) if isinstance(cause, ClusterError) else short(lines[-1])
