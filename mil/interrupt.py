"""Ctrl-C that lets a step finish, so that what is saved is whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Holds the first Ctrl-C back until the step is whole; the second one comes through at once."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
