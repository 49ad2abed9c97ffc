"""What can be read as a running source: opened, and opened again. The base of files, pipes, devices and streams."""

import threading
from abc import ABC, abstractmethod
from typing import Any

import av

from extract.decode import CONTAINERS, DecodeError, reason_of

POLL_S = 0.02
RECORD = "record as .ts, .mkv or fragmented MP4 (ffmpeg ... -movflags +frag_keyframe+empty_moov OUT.mp4)"


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
            raise DecodeError(self.source, f"{said}; {self.reason}" if self.reason else said, RECORD) from error
