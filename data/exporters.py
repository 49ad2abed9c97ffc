"""Writes a feature store in the layouts of other people's code, so that it runs on our features."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files import aside, write_text
from data.importers.base import CENTER_FIVE, CENTER_TEN, OVERSAMPLE_TEN, TORCHVISION_TEN
from data.registry import UnknownNameError, suggest
from data.store import FeatureStore, StoreError
from data.types import Video

_CORNERS = {"top_left": "corner1", "top_right": "corner2", "bottom_left": "corner3", "bottom_right": "corner4"}


@dataclass(frozen=True)
class Layout:
    """How one project expects features on disk.

    Args:
        about: one line for people.
        crops: names in the order of its files.
        dim: the D its code expects by default; another one is exported all the same, with a note.
        files: (folder, name, array) of a video from its x (K, T, D).
        lists: names of the train and the test list.
    """

    about: str
    crops: tuple[str, ...]
    dim: int
    files: Callable[[str, Video | None, NDArray[Any]], Iterator[tuple[str, str, NDArray[Any]]]]
    lists: tuple[str, str]


@dataclass
class ExportReport:
    """What an export did: ids written, `failures` as {id: message}, notes, lists, bytes and seconds."""

    written: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, failures, notes and lists, for --json."""
        return {
            "written": len(self.written),
            "failures": self.failures,
            "notes": self.notes,
            "lists": [str(path) for path in self.lists],
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }

    def describe(self, out: Path) -> str:
        """Lines for a person."""
        lines = [f"{len(self.written)} videos exported, {self.bytes / 1e6:.1f} MB: {out}"]
        lines += [f"wrote {path}" for path in self.lists]
        if self.failures:
            lines.append(f"{len(self.failures)} videos were not exported:")
            lines += [f"  {video_id}: {error}" for video_id, error in sorted(self.failures.items())]
        return "\n".join(lines)


def export_features(store: FeatureStore, out: Path, like: str, videos: Sequence[Video] | None = None) -> ExportReport:
    """Writes the features of a store below `out` as `like` ("rtfm", "rocng", "urdmu" or "xd") does, float32.

    Args:
        store: where the features are.
        out: folder of the export; files of the same names are replaced.
        like: a name of `exporters`.
        videos: the manifest's rows; they decide the folders and the lists, anomalous videos first, since that code
            takes labels by position. Without them everything in the store is exported, and the list is in order of ids.

    Raises UnknownNameError for the layout, ValueError when the store's crops are not the layout's, StoreError when
    nothing can be exported. A video that is damaged or missing is reported and left out of the lists.
    """
    began = time.monotonic()
    if like not in exporters:
        raise UnknownNameError(f"no exporter called '{like}'.{suggest(like, sorted(exporters))}")
    layout = exporters[like]
    if like == "xd":
        layout = _xd_layout(store.spec.modality)
    order, note = crop_order(store.spec.crops, layout.crops, like)
    report = ExportReport(notes=[note] if note else [])
    if store.spec.dim != layout.dim:
        report.notes.append(f"D is {store.spec.dim}; {like}'s code expects {layout.dim} unless told otherwise")
    lines: dict[str, list[str]] = {}
    for video_id, video in _rows(store, videos):
        try:
            if re.search(r"[\\/]", video_id):
                raise StoreError(f"a file name cannot hold the / or \\ of '{video_id}'; rename the video")
            x = np.asarray(store.read(video_id).x, dtype=np.float32)[order]
            paths = [_save(out / folder / name, array) for folder, name, array in layout.files(video_id, video, x)]
        except (StoreError, OSError) as error:
            report.failures[video_id] = str(error)
            continue
        lines.setdefault(video.split if video else "all", []).extend(map(str, paths))
        report.written.append(video_id)
        report.bytes += x.nbytes
    for split, paths_of in lines.items():
        name = {"train": layout.lists[0], "test": layout.lists[1]}.get(split, f"all_{layout.lists[0]}")
        write_text(out / name, "\n".join(paths_of) + "\n")
        report.lists.append(out / name)
    if videos is None:
        report.notes.append(
            "without a manifest the list is in order of ids, and that code takes labels by position; give --manifest"
        )
    if not report.written and not report.failures:
        raise StoreError(f"the store {store.root} holds no video to export; extract or import first")
    report.seconds = time.monotonic() - began
    return report


def crop_order(found: Sequence[str], wanted: Sequence[str], like: str) -> tuple[list[int], str]:
    """Where the layout's crops stand among the store's, and a note where only their number is certain.

    Raises ValueError when their numbers differ.
    """
    if len(found) != len(wanted):
        raise ValueError(
            f"layout {like} needs {len(wanted)} crops ({', '.join(wanted)}), the store has {len(found)} "
            f"({', '.join(found)}); extract or import features of {len(wanted)} crops into another store"
        )
    if set(found) == set(wanted):
        return [list(found).index(name) for name in wanted], ""
    have = [_unplaced(name) for name in found]
    if set(have) == {_unplaced(name) for name in wanted}:
        note = "which corner is which is documented on one side only; taken from top left on, row by row"
        return [have.index(_unplaced(name)) for name in wanted], note
    return list(range(len(wanted))), (
        f"crops {', '.join(found)} are exported in their own order, {like} has {', '.join(wanted)}; harmless where "
        "scores are averaged over crops"
    )


def _unplaced(name: str) -> str:
    mirror = "mirror_" if name.startswith("mirror_") else ""
    return mirror + _CORNERS.get(name.removeprefix("mirror_"), name.removeprefix("mirror_"))


def _rows(store: FeatureStore, videos: Sequence[Video] | None) -> list[tuple[str, Video | None]]:
    if videos is None:
        return [(video_id, None) for video_id in store.ids()]
    return [(v.id, v) for v in sorted(videos, key=lambda v: -v.label)]  # stable: the manifest's order within a label


def _save(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    return path.resolve()


def _split(video: Video | None) -> str:
    return video.split if video else "all"


def _rtfm(video_id: str, video: Video | None, x: NDArray[Any]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    yield f"{_split(video).title()}_ten_crop_i3d", f"{video_id}_i3d.npy", np.ascontiguousarray(x.transpose(1, 0, 2))


def _urdmu(video_id: str, video: Video | None, x: NDArray[Any]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    yield _split(video), f"{video_id}_i3d.npy", x


def _rocng(video_id: str, video: Video | None, x: NDArray[Any]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    folder = "all"
    if video:
        normal = {"train": "Training_Normal_Videos_Anomaly", "test": "Testing_Normal_Videos_Anomaly"}
        folder = (video.classes or ("Anomaly",))[0] if video.label else normal[video.split]
    for k, crop in enumerate(x):
        yield folder, f"{video_id}__{k}.npy", crop


def _xd_layout(modality: str) -> Layout:
    """XD-Violence's layout of RGB, flow or audio features."""
    if modality == "audio":

        def audio(video_id: str, video: Video | None, x: NDArray[Any]) -> Iterator[tuple[str, str, NDArray[Any]]]:
            yield f"vggish-features/{_split(video)}", f"{video_id}__vggish.npy", x[0]

        return Layout("XD-Violence audio", ("full",), 128, audio, ("audio.list", "audio_test.list"))
    if modality not in ("rgb", "flow"):
        raise ValueError(f"layout xd holds rgb, flow or audio features, the store has {modality}; export it like rtfm")
    name = {"rgb": "RGB", "flow": "Flow"}[modality]

    def crops(video_id: str, video: Video | None, x: NDArray[Any]) -> Iterator[tuple[str, str, NDArray[Any]]]:
        folder = f"i3d-features/{name}{'Test' if video and video.split == 'test' else ''}"
        for k, crop in enumerate(x):
            yield folder, f"{video_id}__{k}.npy", crop

    lists = (f"{modality}.list", f"{modality}_test.list")
    return Layout("XD-Violence: {id}__{0..4}.npy (T, 1024), audio {id}__vggish.npy", CENTER_FIVE, 1024, crops, lists)


exporters: Mapping[str, Layout] = {
    "rtfm": Layout("RTFM: {id}_i3d.npy (T, 10, 2048)", TORCHVISION_TEN, 2048, _rtfm, ("train.list", "test.list")),
    "rocng": Layout("Roc-Ng: {id}__{0..9}.npy (T, 1024)", CENTER_TEN, 1024, _rocng, ("train.list", "test.list")),
    "urdmu": Layout("UR-DMU: {id}_i3d.npy (10, T, 1024)", OVERSAMPLE_TEN, 1024, _urdmu, ("train.list", "test.list")),
    "xd": _xd_layout("rgb"),
}
"""Layouts by the name that `wsvad export --like` takes."""
