"""A sweep's runs on this machine, each in a process of its own with one core or one GPU.

The processes come from a server that has imported torch once. Ctrl-C reaches all of a terminal and a queue's SIGTERM
all of a job, but each process is interrupted once: through its pipe, when the sweep is or when the sweep's process is
no more, or by a SIGTERM of its own.
"""

import _thread
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

from mil.interrupt import interrupt_held
from mil.sweep_plan import Planned
from mil.sweep_run import work

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0  # with runs that were interrupted, until they are stopped
# torch is imported once, and forked; its optimizers import the last, which takes seconds, when they are made
_PRELOADED = ["mil.run", "mil.evaluate", "mil.optimistic", "mil.sweep_local", "torch._dynamo"]
_SIGNALS = {signal.SIGINT, signal.SIGTERM}

Slot = tuple[str, int | None]


@dataclass(frozen=True)
class _Busy:
    run: Planned
    slot: Slot
    process: Any
    pipe: Connection


def run_local(
    todo: Sequence[Planned], *, workers: int = 0, device: str = "cpu"
) -> Generator[tuple[Planned, str], None, None]:
    """Does runs, in the order of the plan; yields each when it has ended, with the reason where it failed, or "".

    Args:
        todo: what is not done yet.
        workers: processes at a time, each with one thread; 0: one per core, or one per GPU. Where they are as many as
            the cores, each is kept on a core of its own.
        device: "cpu", "cuda" (the GPUs in turn) or one device for all.
    """
    if not todo:
        return
    context = _context()
    waiting, free = list(todo), slots(workers, device)
    busy: dict[int, _Busy] = {}
    try:
        while waiting or busy:
            while waiting and free:
                with interrupt_held() as interrupted:  # or a process might be started that nobody knows of
                    one = _start(context, waiting.pop(0), free.pop(0))
                    busy[one.process.sentinel] = one
                if interrupted():
                    raise KeyboardInterrupt
            for sentinel in wait(list(busy)):
                one = busy.pop(sentinel)  # type: ignore[arg-type]
                one.process.join()
                free.append(one.slot)
                yield one.run, _reason(one)
                one.pipe.close()
    finally:
        _stop(busy.values())


def slots(workers: int, device: str) -> list[Slot]:
    """(device, core) of each process that may run at a time."""
    if device != "cpu":
        import torch

        count = torch.cuda.device_count() if device == "cuda" else 1
        names = [f"cuda:{i}" for i in range(count)] if device == "cuda" and count else [device]
        return [(names[i % len(names)], None) for i in range(workers or len(names))]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = workers or len(cores)
    # fewer are not kept on a core: another sweep would choose the same ones
    return [("cpu", cores[i] if count == len(cores) else None) for i in range(count)]


def _context() -> BaseContext:
    """Where processes come from: a server that Ctrl-C and SIGTERM do not reach.

    It tells how processes end: it has to outlive those that save their state. They start with both signals blocked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()  # or the next line starts it, and lets Ctrl-C in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start(context: BaseContext, run: Planned, slot: Slot) -> _Busy:
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(run, slot, theirs), name=run.name)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return _Busy(run, slot, process, ours)


def _process(run: Planned, slot: Slot, pipe: Connection) -> None:
    """Tells the pipe how the run ended, or ends with 130."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it was ignored (nohup), `_interrupt` would be too
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    device, core = slot
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a container may forbid it; it only costs speed
            os.sched_setaffinity(0, {core})
    try:
        once = threading.Lock()
        for wish in (_end_of, _sigterm):
            threading.Thread(target=_interrupt, args=(wish, pipe, once), daemon=True).start()
        reason = work(run, device)
    except KeyboardInterrupt:
        sys.exit(130)
    with contextlib.suppress(OSError):  # the sweep has gone
        pipe.send(reason)


def _interrupt(wish: Callable[[Connection], None], pipe: Connection, once: threading.Lock) -> None:
    """Interrupts this process as Ctrl-C would, when `wish` returns; the second to get here does nothing."""
    wish(pipe)
    if once.acquire(blocking=False):
        _thread.interrupt_main()


def _end_of(pipe: Connection) -> None:
    """Waits until the other end of the pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()


def _sigterm(pipe: Connection) -> None:
    """Waits for SIGTERM, which is blocked in all other threads."""
    signal.sigwait({signal.SIGTERM})


def _reason(one: _Busy) -> str:
    code = one.process.exitcode
    with contextlib.suppress(EOFError, OSError):
        if code == 0 and one.pipe.poll():
            return str(one.pipe.recv())
    return f"its process ended with code {code}; see {one.run.log}"


def _stop(busy: Iterable[_Busy]) -> None:
    """Has every process save the state of its run; stops those that take long, and all when Ctrl-C comes again."""
    until = time.monotonic() + _PATIENCE_S
    busy = list(busy)
    if busy:
        log.info("%d runs save their state; Ctrl-C again does not wait for them", len(busy))
    try:
        for one in busy:
            one.pipe.close()
        for one in busy:
            one.process.join(max(until - time.monotonic(), 0))
    finally:
        for one in busy:
            one.process.kill()
        for one in busy:
            one.process.join()
