"""Pipes as running sources: standard input, and named pipes whose writers come and go."""

import os
import select
import threading

import av

from extract.live_input import POLL_S, Input


class Pipe(Input):
    """Standard input, or another open pipe."""

    def __init__(self, source: str, stop: threading.Event, handle: int) -> None:
        super().__init__(source, stop)
        self._handle = handle

    def open(self) -> "av.container.InputContainer":
        """See Input."""
        self.reason = ""
        return self._open_file(self)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are any; none when the writer has gone."""
        while not self._stop.is_set():
            if not select.select([self._handle], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._handle, size)
            except BlockingIOError:
                continue
            if not data:
                self.reason = "the writer closed the pipe"
            return data
        return b""


class Fifo(Pipe):
    """A named pipe: writers may come and go."""

    lasting = True

    def __init__(self, source: str, stop: threading.Event) -> None:
        # one handle for all writers: there is always a reader, so that none of them is killed for the lack of one
        super().__init__(source, stop, os.open(source, os.O_RDONLY | os.O_NONBLOCK))
        self._first = b""

    def wait(self) -> None:
        """See Input."""
        while not self._first and not self._stop.is_set():
            if not select.select([self._handle], [], [], 0.1)[0]:
                continue
            try:
                self._first = os.read(self._handle, 4096)
            except BlockingIOError:
                continue
            if not self._first:  # the last writer has gone, which makes a pipe readable
                self._stop.wait(POLL_S)

    def read(self, size: int) -> bytes:
        """See Pipe."""
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return super().read(size)

    def close(self) -> None:
        """See Input."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
