"""The events of all videos that were scored into one folder: events.json."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import write_text
from mil.events import EventRule
from mil.score_files import FORMAT, Written
from mil.score_inputs import EVENTS, whole

if TYPE_CHECKING:
    from mil.score import VideoScores


class EventList:
    """events.json of a folder. Several processes may score into one folder."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where a file of that name is something else."""
        self.folder, self.path = folder, folder / EVENTS
        self._read()

    def add(self, scores: "VideoScores", written: Written, rule: EventRule, about_threshold: str) -> None:
        """Puts a video's events into the list, in place of those that it had."""
        with self._locked():
            found = self._read()
            found["videos"][written.name] = {
                "video": whole(scores.path),
                **{name: scores.about[name] for name in ("run", "rule", "selected_by") if name in scores.about},
                "threshold": {**asdict(rule), "about": about_threshold},
                "events": len(written.events),
            }
            found["events"] = [e for e in found["events"] if e["name"] != written.name] + list(written.events)
            found["events"].sort(key=lambda event: (event["name"], event["start_s"]))
            found["videos"] = dict(sorted(found["videos"].items()))
            write_text(self.path, json.dumps(found, indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"format": FORMAT, "events": [], "videos": {}}
        try:
            found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            if found["format"] == FORMAT and isinstance(found["events"], list) and isinstance(found["videos"], dict):
                return found
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{self.path} is no list of events of this wsvad; choose another --out, or move it away")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
