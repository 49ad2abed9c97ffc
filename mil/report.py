"""Evaluated runs as one HTML page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import write_text
from mil.report_data import report_data

SUFFIXES = (".html", ".htm")


def report(
    roots: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    split: str = "test",
    rule: str | None = None,
    protocol: str | None = None,
    videos: Path | str | None = None,
    no_videos: bool = False,
    title: str | None = None,
    device: str = "cpu",
) -> Path:
    """Writes the page `out` of runs, or of folders of them, in one step, and returns its path.

    `out` ends in .html; its folder is made where it is not there. Everything else is as `report_data` takes it. Raises
    what that raises, and ValueError for an `out` that is no .html file.
    """
    each = [roots] if isinstance(roots, Path | str) else roots
    path = check_out(Path(out))
    data = report_data(
        [Path(root) for root in each],
        split=split,
        rule=rule,
        protocol=protocol,
        videos=None if videos is None else Path(videos),
        no_videos=no_videos,
        out=path,
        title=title,
        device=device,
    )
    return write(data, path)


def check_out(out: Path) -> Path:
    """Raises ValueError where a page cannot be written there: before anything is read."""
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ValueError(f"a report is one .html file, got {out}; type -o {out / 'report.html'}")
    return out


def write(data: dict[str, Any], out: Path) -> Path:
    """Renders a report's data to `out`, in one step."""
    from mil.report_page import render

    text = render(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out
