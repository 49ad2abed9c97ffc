"""Making what comes next in a thread while the caller is busy with what it has."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Numbered things in order, each but the first made while the one before it is in use.

    A thread makes one thing and ends, so none is left when nobody asks any more, an error or Ctrl-C included.

    Args:
        make: the thing of a number; depends on nothing else, and touches no torch operation that runs in parallel.
        last: the highest number: nothing is made beyond it.
    """

    def __init__(self, make: Callable[[int], T], last: int) -> None:
        self.make, self.last = make, last
        self._next: _Made[T] | None = None

    def get(self, number: int) -> T:
        """The thing of that number. Raises what making it raised, wherever that was."""
        made, self._next = self._next, None
        value = made.value() if made is not None and made.number == number else self.make(number)
        if number < self.last:
            self._next = _Made(self.make, number + 1)
        return value

    def close(self) -> None:
        """Waits for the thread, and forgets what it made."""
        made, self._next = self._next, None
        if made is not None:
            made.thread.join()


class _Made(Generic[T]):
    """One thing and the thread that makes it."""

    def __init__(self, make: Callable[[int], T], number: int) -> None:
        self.number = number
        self._found: T | None = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._found = make(number)
            except BaseException as error:  # the caller's to handle
                self._error = error

        self.thread = threading.Thread(target=run, name=f"wsvad bag {number}")
        self.thread.start()

    def value(self) -> T:
        self.thread.join()
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]
