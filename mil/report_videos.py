"""The videos of a report: their events, where their files are as a page finds them, and which frames clips show."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from data.datasets.sources import base_name, find_videos
from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import Event, Video
from mil.bags import shared_grid
from mil.report_pieces import Pieces
from mil.rundir import RunDir

_UPWARDS = 2  # a relative address leaves the report's folder by so many steps at most


class Files:
    """Where the files of videos are.

    Args:
        folder: looked through first, by file name and by id; None: the manifest's paths alone.

    Raises ValueError where the folder is none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"no folder {folder}; --videos is the folder that holds the video files")
        self.below = find_videos(folder) if folder is not None else {}

    def find(self, video: Video) -> Path | None:
        """The video's file; None where there is none, it is a folder of pictures, or several could be it."""
        for entry in (video.path, video.id):
            if (stem := base_name(entry)) in self.below:
                return _nearest(self.below[stem], entry)
        path = Path(video.path)
        return path if video.path and path.is_file() else None


def address(path: Path, page: Path) -> str:
    """What a page in the file `page` calls another file: relative where that lies near, else file:///...; quoted."""
    target, folder = os.path.abspath(path), os.path.abspath(page.parent)
    shared = os.path.commonpath([target, folder])
    relative = os.path.relpath(target, folder)
    if shared == os.path.abspath(os.sep) or relative.split(os.sep).count("..") > _UPWARDS:
        return Path(target).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def clips(runs: Iterable[RunDir], ids: Sequence[str]) -> dict[str, tuple[ClipGrid, float | None]]:
    """Grid and fps of the videos whose features can be reached, {id: (grid, fps)}.

    A video that two runs, of different features, cut into different clips has none.
    """
    found: dict[str, tuple[ClipGrid, float | None]] = {}
    differ: set[str] = set()
    seen: set[tuple[Path, ...]] = set()
    for run in runs:
        stores: list[FeatureStore] = []
        with suppress(OSError, ValueError, KeyError):
            if (roots := tuple(run.feature_roots)) not in seen:
                seen.add(roots)
                stores = run.open_stores()
        for video_id in ids if stores else ():
            with suppress(OSError, ValueError, KeyError):
                headers = [store.length(video_id) for store in stores]
                grid = shared_grid(stores, video_id, [one for one, _ in headers])
                if found.setdefault(video_id, (grid, headers[0][1]))[0] != grid:
                    differ.add(video_id)
    return {video_id: one for video_id, one in found.items() if video_id not in differ}


def video_rows(
    videos: Sequence[tuple[Video, Sequence[Event]]],
    lengths: Sequence[int],
    parts: Pieces,
    clips: Mapping[str, tuple[ClipGrid, float | None]],
    sources: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row for each video: what the manifest says, its events and frames as the protocol counts them, its pieces."""
    rows = []
    first = np.cumsum(parts.counts) - parts.counts
    for i, (video, events) in enumerate(videos):
        grid, fps = clips.get(video.id, (None, None))
        rows.append(
            {
                "id": video.id,
                "label": video.label,
                "classes": list(video.classes),
                "fps": video.fps or fps,
                "frames": lengths[i],
                "events": [[e.start, e.stop, e.kind] for e in events],
                "src": sources.get(video.id),
                "first": int(first[i]),
                "count": int(parts.counts[i]),
                "clip": _described(grid) if grid else None,
            }
        )
    return rows


def sources(manifests: Iterable[Mapping[str, Video]], ids: Sequence[str], files: Files, page: Path) -> dict[str, str]:
    """The address of each video's file, {id: address}, of those that are there: of the first manifest that has one."""
    found: dict[str, str] = {}
    for videos in manifests:
        for video_id in ids:
            if video_id in found or video_id not in videos:
                continue
            if path := files.find(videos[video_id]):
                found[video_id] = address(path, page)
    return found


def _nearest(paths: Sequence[Path], entry: str) -> Path | None:
    """Of files of one name the one whose folders end as the entry's do; None where that leaves several."""
    wanted = Path(entry.replace("\\", "/")).parent.parts
    best = list(paths)
    for depth in range(1, len(wanted) + 1):
        if len(best) == 1:
            break
        fitting = [p for p in best if p.parent.parts[-depth:] == wanted[-depth:]]
        if not fitting:
            return None
        best = fitting
    return best[0] if len(best) == 1 else None


def _described(grid: ClipGrid) -> dict[str, Any]:
    return {
        "len": grid.clip_len,
        "stride": grid.stride,
        "step": grid.step,
        "rate": grid.rate,
        "tail": grid.tail,
        "count": len(grid),
    }
