"""Which videos `wsvad score` is given: files, folders and patterns, and what each is called."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from data.datasets.sources import VIDEO_SUFFIXES, find_frame_folders, find_videos

ANNOTATED = ".scored.mp4"
"""What the names of annotated videos end with."""
EVENTS = "events.json"
"""The list of all events in a folder of results."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def find(given: Iterable[str]) -> list[Path]:
    """The videos that are meant: files; all below folders; what matches patterns such as "cam*/**/*.mp4". Each once.

    A folder without video files stands for those below it that hold the frames of a video as pictures. What scoring
    wrote is passed over in folders and patterns. Raises ValueError on what is not there, or holds no video.
    """
    found: dict[Path, Path] = {}
    for text in given:
        if not text:
            raise ValueError("a video is named '': is a variable of the shell unset? A dot is the current folder")
        path = Path(text).expanduser()
        if path.exists():
            some = [path] if not path.is_dir() else _below(path)
        else:
            some = [p for name in sorted(glob.glob(str(path), recursive=True)) for p in _matched(Path(name))]
        if not some:
            kinds = " ".join(sorted(VIDEO_SUFFIXES))
            what = f"no video in {text}: its files end in none of {kinds}" if path.is_dir() else f"no video {text}"
            raise ValueError(f"{what}; pass a video file, a folder of videos, or a pattern in quotes")
        for one in some:
            found.setdefault(one.resolve(), one)
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    files = sorted(path for several in find_videos(folder).values() for path in several)
    videos = [path for path in files if not path.name.endswith(ANNOTATED)]
    if videos:
        return videos
    pictures = sorted(path for several in find_frame_folders(folder).values() for path in several)
    return [path for path in pictures if not (path / EVENTS).exists()]  # timelines are no frames


def _matched(path: Path) -> list[Path]:
    if path.is_dir():
        return _below(path)
    return [path] if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.endswith(ANNOTATED) else []


def apart(folder: Path, videos: Iterable[Path]) -> None:
    """Raises ValueError where results would lie among the frames of a video, which a timeline would become one of."""
    for path in videos:
        if path.resolve() == folder.resolve():
            raise ValueError(f"{folder} holds the frames of a video that is to be scored; choose another folder")


def printable(path: Path) -> str:
    """The name of a video file without its suffix, with _ for what cannot be printed: what the video is called."""
    name = Path(os.path.abspath(path)).name  # of ".", too
    if path.suffix.lower() in VIDEO_SUFFIXES:
        name = name[: -len(path.suffix)]
    return _UNPRINTABLE.sub("_", name).strip() or "video"


def whole(path: Path) -> str:
    """A video in JSON: its whole path; bytes that are no UTF-8 are escaped as Python does."""
    return str(path.resolve())
