"""The manifest: a CSV of videos, one row each, that a person can open, check and edit.

Columns: id, path, split, label, classes, num_frames, fps, events. `classes` joins names with `|`, `events` spans with
`;` as `start-stop:kind` (half-open frames; the kind may be missing). Empty num_frames or fps: not counted yet.
A relative path is relative to the manifest's own folder.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.files import write_text
from data.types import Event, Video

COLUMNS = ("id", "path", "split", "label", "classes", "num_frames", "fps", "events")
_REQUIRED = ("id", "split", "label")


class ManifestError(ValueError):
    """The manifest cannot be used; the message names the file, the line and the remedy."""


def write(path: Path, videos: Iterable[Video]) -> None:
    """Writes the manifest, aside and then in one step. Paths inside its folder are stored relative to it.

    A relative `Video.path` is relative to the working directory, as for any program.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    folder = path.resolve().parent
    for v in videos:
        file = Path(os.path.abspath(v.path))
        if v.path and file.is_relative_to(folder):
            file = file.relative_to(folder)
        writer.writerow(
            (
                v.id,
                str(file) if v.path else "",
                v.split,
                v.label,
                "|".join(v.classes),
                "" if v.num_frames is None else v.num_frames,
                "" if v.fps is None else f"{v.fps:g}" if float(f"{v.fps:g}") == v.fps else repr(v.fps),
                ";".join(f"{e.start}-{e.stop}" + (f":{e.kind}" if e.kind else "") for e in v.events),
            )
        )
    if path.is_dir():
        raise ManifestError(f"{path} is a folder; a manifest is a .csv file, e.g. {path}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def read(path: Path) -> tuple[Video, ...]:
    """Reads a manifest, in its order. Raises ManifestError with every faulty line (at most ten are printed)."""
    if path.is_dir():
        raise ManifestError(f"{path} is a folder; a manifest is the .csv that wsvad index writes")
    if not path.is_file():
        raise ManifestError(f"no manifest {path}; make one: wsvad index DATASET --root DIR -o {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text ({error}); save it as CSV UTF-8") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    names = tuple(name.strip() for name in rows.fieldnames or ())
    if missing := [c for c in _REQUIRED if c not in names]:
        raise ManifestError(f"{path} has no column '{missing[0]}'; a manifest needs {', '.join(COLUMNS)}")
    rows.fieldnames = list(names)
    videos: list[Video] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    for row in _rows(rows, path):
        try:
            video = _video(row, path.resolve().parent)
        except (ValueError, AttributeError) as error:
            faults.append(f"line {rows.line_num}: {error}")
            continue
        if video.id in lines:
            faults.append(
                f"line {rows.line_num}: id '{video.id}' stands on line {lines[video.id]} already; ids are unique"
            )
            continue
        lines[video.id] = rows.line_num
        videos.append(video)
    if faults:
        more = f"\n  ... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ManifestError(f"{path} has {len(faults)} faulty lines:\n  " + "\n  ".join(faults[:10]) + more)
    if not videos:
        raise ManifestError(f"{path} holds no videos")
    return tuple(videos)


def digest(videos: Sequence[Video]) -> str:
    """Hash of what training and evaluation depend on (not of paths), independent of the order of the rows."""
    rows = sorted(
        (v.id, v.split, v.label, v.classes, v.num_frames, [(e.start, e.stop) for e in v.events]) for v in videos
    )
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _rows(rows: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, str | None]]:
    try:
        yield from rows
    except csv.Error as error:  # a quote that is never closed makes the rest of the file one cell
        raise ManifestError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from error


def _video(row: dict[str, str | None], folder: Path) -> Video:
    if None in row:
        raise ValueError("more cells than columns; quote cells that hold commas")
    cell = {name: (value or "").strip() for name, value in row.items()}
    path = row.get("path") or ""  # as it is: folders may begin or end with a space
    return Video(
        id=row["id"] or "",
        path=os.path.normpath(folder / path) if path else "",
        split=cell["split"],
        label=_number(cell["label"], int, "label"),
        classes=tuple(c for c in cell.get("classes", "").split("|") if c),
        num_frames=_number(n, int, "num_frames") if (n := cell.get("num_frames", "")) else None,
        fps=_number(f, float, "fps") if (f := cell.get("fps", "")) else None,
        events=tuple(_event(e) for e in cell.get("events", "").split(";") if e),
    )


def _event(text: str) -> Event:
    span, _, kind = text.strip().partition(":")
    start, dash, stop = span.partition("-")
    if not (dash and start.strip().isdecimal() and stop.strip().isdecimal()):
        raise ValueError(f"an event is written start-stop or start-stop:kind in frames, got '{text}'")
    return Event(int(start), int(stop), kind)


def _number(text: str, kind: type, column: str):  # type: ignore[no-untyped-def]  # int or float, as asked
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{column} must be a number, got '{text}'") from None
