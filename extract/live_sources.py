"""What may be watched: a file that is being written, a pipe, a device, a stream by its URL.

Files and pipes are read by us, and nothing that they refer to; a URL may refer to others, but not to local files.
"""

import re
import stat
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import av

from extract.decode import DecodeError, reason_of
from extract.live_files import GrowingFile, WholeFile
from extract.live_input import Input
from extract.live_pipes import Fifo, Pipe

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PROTOCOLS = (
    "amqp,async,cache,crypto,data,ftp,gopher,gophers,hls,http,httpproxy,https,icecast,mmsh,mmst,rist,rtmp,rtmpe,rtmps,"
    "rtmpt,rtmpte,rtmpts,rtp,rtsp,rtsps,sctp,srt,srtp,tcp,tls,udp,udplite,zmq"
)


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
