"""Ctrl-C and SIGTERM that let a step finish, so that what is saved is whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came. The first is held back; the second comes through.

    SIGTERM is how a queue takes a machine away (Slurm). A signal that this process ignores, as under nohup, stays so.
    In another thread than the main one nothing is held.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield lambda: False
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None: a handler that is not Python's, which cannot be put back
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: object) -> None:
        came.append(number)
        restore()

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        restore()
