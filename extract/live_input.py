"""What may be watched: a file that is being written, a pipe, a device, a stream by its URL. Opened, and opened again.

Files and pipes are read by us, and nothing that they refer to; a URL may refer to others, but not to local files.
"""

import os
import re
import select
import stat
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from extract.decode import CONTAINERS, DecodeError, open_container, reason_of

_POLL_S = 0.02
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PROTOCOLS = (
    "amqp,async,cache,crypto,data,ftp,gopher,gophers,hls,http,httpproxy,https,icecast,mmsh,mmst,rist,rtmp,rtmpe,rtmps,"
    "rtmpt,rtmpte,rtmpts,rtp,rtsp,rtsps,sctp,srt,srtp,tcp,tls,udp,udplite,zmq"
)
_RECORD = "record as .ts, .mkv or fragmented MP4 (ffmpeg ... -movflags +frag_keyframe+empty_moov OUT.mp4)"


class Input(ABC):
    """A source that can be opened.

    Args:
        source: as the user typed it.
        stop: set when nobody wants more; every wait looks at it.
    """

    realtime = False
    """Whether pictures come when they come, and cannot be held back."""
    lasting = False
    """Whether it may come back after it broke off."""

    def __init__(self, source: str, stop: threading.Event) -> None:
        self.source = source
        self.reason = ""
        """Why there is no more to read."""
        self._stop = stop

    def wait(self) -> None:
        """Returns when it can be opened, or `stop` is set."""
        return

    @abstractmethod
    def open(self) -> "av.container.InputContainer":
        """Opens it from where it stands. Raises DecodeError."""

    def close(self) -> None:
        """Lets go of it. Not while somebody reads."""
        return

    def said(self, error: Exception) -> str:
        """What the system or FFmpeg says about what broke reading off."""
        return reason_of(error)

    def _open_file(self, file: Any) -> "av.container.InputContainer":
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        try:
            container: av.container.InputContainer = av.open(file, options=options)
            return container
        except (av.error.FFmpegError, OSError) as error:
            said = f"no video can be read from it ({reason_of(error)})"
            raise DecodeError(self.source, f"{said}; {self.reason}" if self.reason else said, _RECORD) from error


def input_of(
    source: str | Path,
    stop: threading.Event,
    *,
    follow: bool,
    patience_s: float,
    timeout_s: float,
    options: Mapping[str, str],
) -> Input:
    """The kind of input that `source` is: "-" is stdin, "x://..." a URL, else a path.

    Args:
        source: as the user typed it.
        stop: as in Input.
        follow: read on where a file ends.
        patience_s: until nothing was written for so long.
        timeout_s: for devices and URLs: how long opening one, or its next packet, may take.
        options: FFmpeg's, for devices and URLs ("video_size", "rtsp_transport").

    Raises DecodeError where nothing of the kind is there.
    """
    name = str(source)
    if name == "-":
        return Pipe(name, stop, sys.stdin.fileno())
    if _URL.match(name):
        return Remote(name, stop, timeout_s, options, None)
    path = Path(name.removeprefix("file://"))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        remedy = "check the path; a stream is written with its protocol: rtsp://..., http://..."
        raise DecodeError(name, f"nothing there ({reason_of(error)})", remedy) from error
    if stat.S_ISFIFO(mode):
        return Fifo(str(path), stop)
    if stat.S_ISCHR(mode):
        return Remote(str(path), stop, timeout_s, options, "v4l2")
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a socket or disk"
        raise DecodeError(name, f"{kind}, and nothing that can be watched", "give a file, a pipe, a camera or a URL")
    return GrowingFile(str(path), stop, patience_s) if follow else WholeFile(str(path), stop)


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
            if self._stop.wait(_POLL_S):
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
                    raise DecodeError(self.source, reason, f"{_RECORD}, or wait until it is finished")
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
                self._stop.wait(_POLL_S)

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


class Remote(Input):
    """A device or a stream, which sends when it likes."""

    realtime = True
    lasting = True

    def __init__(
        self, source: str, stop: threading.Event, timeout_s: float, options: Mapping[str, str], form: str | None
    ) -> None:
        super().__init__(source, stop)
        self._timeout_s = timeout_s
        self._form = form
        own = {} if form else {"protocol_whitelist": _PROTOCOLS}
        if source.lower().startswith("rtsp"):
            own["rtsp_flags"] = "prefer_tcp"  # lost datagrams are damaged pictures
        self._options = own | dict(options)

    def open(self) -> "av.container.InputContainer":
        """See Input."""
        self.reason = "the source ended"
        try:
            return av.open(self.source, format=self._form, options=self._options, timeout=self._timeout_s)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            remedy = "see whether it plays: ffplay SOURCE"
            raise DecodeError(self.source, f"it cannot be opened ({self.said(error)})", remedy) from error

    def said(self, error: Exception) -> str:
        """See Input; in words where it is our timeout."""
        return f"nothing came for {self._timeout_s:g} s" if isinstance(error, av.error.ExitError) else reason_of(error)
