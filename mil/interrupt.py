"""Ctrl-C and SIGTERM that let a step finish, so that what is saved is whole."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SAME_S = 10.0  # signals that come together mean one thing


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came. The first is held back.

    What comes through is a second Ctrl-C, and anything that comes more than 10 s after the first. Until then SIGTERM
    beside Ctrl-C, or SIGTERM twice, is the same wish by another way: queues and `timeout` signal a process and its
    group. SIGTERM is how a queue takes a machine away (Slurm). A signal that this process ignores, as under nohup,
    stays so. In another thread than the main one nothing is held.
    """
    came: list[tuple[int, float]] = []
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield lambda: False
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: a handler that is not Python's, which cannot be put back
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = number == signal.SIGINT and any(number == other for other, _ in came)
        came.append((number, now))
        if not again and now - came[0][1] <= _SAME_S:
            return
        restore()
        handler = before[signal.Signals(number)]
        if callable(handler):  # not sent anew, which would wait for ever where it is blocked
            handler(number, frame)
        else:
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        restore()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """In the block the first SIGTERM raises KeyboardInterrupt, and further ones do nothing.

    Where SIGTERM does not end this process anyway, and in another thread than the main one, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
