"""What a watched source leads to, told as it happens: JSON lines for programs, or lines of text for people."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import click

log = logging.getLogger(__name__)
_SAY_EVERY_S = 5.0


class Teller:
    """Prints messages as they come: JSON lines, or text; all of them also go to a file.

    Args:
        path: of the file, to which is appended; None: none. `close` lets go of it.
        text: lines for people: alarms and events to stdout, the rest to stderr.

    Raises OSError when the file cannot be opened. One that cannot be written to later is warned of, once.
    """

    def __init__(self, path: Path | None, *, text: bool) -> None:
        self._file = path.open("ab", buffering=0) if path else None
        self._torn = path is not None and is_torn(path)  # the last line of the file has no end
        self._text, self._said, self._warned = text, 0.0, False

    def __call__(self, messages: list[dict[str, Any]]) -> None:
        """Raises BrokenPipeError when nobody reads stdout any more."""
        for message in messages:
            line = json.dumps(message)
            self._append(line)
            if self._text:
                self._say(message)
            else:
                click.echo(line)  # flushes

    def close(self) -> None:
        """Nothing more is told."""
        if self._file is not None:
            self._file.close()

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        data = f"{line}\n".encode()
        data = b"\n" + data if self._torn else data
        try:
            written = self._file.write(data) or 0
        except OSError as error:  # a full disk is no reason to stop watching
            self._warn(str(error))
            return
        self._torn = written < len(data)
        if self._torn:
            self._warn("no space for the whole line")

    def _warn(self, why: str) -> None:
        if not self._warned:
            log.warning("--log cannot be written (%s); lines are lost there, not here", why)
        self._warned = True

    def _say(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind in ("alarm", "event"):
            click.echo(described(message))
        elif kind != "clip":
            log.info("%s", described(message))
        elif time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            log.info("%s", described(message))


def is_torn(path: Path) -> bool:
    """Whether a file ends within a line, as after a kill or on a disk that was full."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def described(message: dict[str, Any]) -> str:
    """A message as a line of text."""
    kind, at = message["type"], {n: clock_time(message[n]) for n in ("start_s", "stop_s", "peak_s") if n in message}
    if kind == "clip":
        return f"{at['stop_s']}  score {message['score']:.3f}, {message['latency_s']:.2f} s after the clip's end"
    if kind == "alarm":
        return f"ALARM  from {at['start_s']} on  score {message['score']:.3f}, threshold {message['threshold']:.3f}"
    if kind == "event":
        return f"event  {at['start_s']} to {at['stop_s']}  highest score {message['peak']:.3f} at {at['peak_s']}"
    if kind == "start":
        late = "" if message["delay_s"] is None else f", scores come {message['delay_s']:.2f} s after a clip's end"
        about = f"events begin at {message['threshold']:.3f} ({message['threshold_about']})"
        return f"start: {message['head']}, {message['run']}{late}; {about}"
    if kind == "end":
        names = ("frames", "clips", "skipped", "gaps", "alarms", "events")
        times = message["latency_s"]
        latency = f", latency {times['median']:.2f} s, at most {times['max']:.2f} s" if times else ""
        return f"end: {message['reason']}, " + ", ".join(f"{name} {message[name]}" for name in names) + latency
    return f"{kind}: " + ", ".join(f"{name} {value}" for name, value in message.items() if name not in ("type", "time"))


def clock_time(seconds: float) -> str:
    """3723.4 -> "1:02:03.4"."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"
