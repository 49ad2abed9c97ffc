"""Files as running sources: finished ones, and those that somebody may still write."""

import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import av

from extract.decode import DecodeError, open_container
from extract.live_input import POLL_S, RECORD, Input


class WholeFile(Input):
    """A file that nobody writes any more."""

    def open(self) -> "av.container.InputContainer":
        """See Input."""
        self.reason = "the file ends"
        return open_container(Path(self.source))


class GrowingFile(Input):
    """A file that somebody may still write: at its end, more is waited for."""

    def __init__(self, source: str, stop: threading.Event, patience_s: float) -> None:
        super().__init__(source, stop)
        self._patience_s = patience_s
        self._file: Any = None

    @property
    def anew(self) -> bool:
        """Whether another file has taken its place, or its beginning is written again."""
        try:
            there, here = os.stat(self.source), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) or here.st_size < self._file.tell()

    def open(self) -> "av.container.InputContainer":
        """See Input."""
        self.close()
        self.reason, self.lasting = "", False
        self._file = Path(self.source).open("rb", buffering=0)  # noqa: SIM115  (until `close`)
        if self._is_indexed():
            self.reason = "the file ends"
            return open_container(Path(self.source))
        self._file.seek(0)
        return self._open_file(self)

    def close(self) -> None:
        """See Input."""
        if self._file is not None:
            self._file.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are any; none at the end."""
        began = time.monotonic()
        while not (data := bytes(self._file.read(size))):
            if self.anew:
                self.reason, self.lasting = "the file is written anew", True
                break
            if time.monotonic() - began >= self._patience_s:
                self.reason = f"nothing was written for {self._patience_s:g} s"
                break
            if self._stop.wait(POLL_S):
                break
        return data

    def _is_indexed(self) -> bool:
        """Whether it is an MP4 whose index is in it: a finished one. Raises DecodeError where the index is missing."""
        at = 0
        while len(head := self._at(at, 16)) == 16:
            size, kind = struct.unpack(">I4s", head[:8])
            size = int.from_bytes(head[8:], "big") if size == 1 else size
            if kind == b"moov":
                return b"mvex" not in self._at(at + 8, size - 8)  # it is there in fragmented ones
            if at == 0 and kind not in (b"ftyp", b"wide", b"mdat", b"free", b"skip"):
                return False
            if kind == b"mdat":
                if size < 8 or os.fstat(self._file.fileno()).st_size < at + size + 8:
                    reason = "an MP4 that is still written: its index, without which nothing can be read, comes last"
                    raise DecodeError(self.source, reason, f"{RECORD}, or wait until it is finished")
            elif size < 8 or kind in (b"moof", b"sidx", b"styp"):
                return False
            at += size
        return False

    def _at(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, waited for; fewer where they do not come."""
        self._file.seek(offset)
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data
