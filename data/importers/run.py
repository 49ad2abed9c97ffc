"""Imports a folder of published features into a store: found by name, checked, made crop-major, written one by one."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.importers.base import AbsentError, Format, RefusedError, format_of, parse_options
from data.importers.reading import open_source, read_video
from data.importers.sources import SourceFolder
from data.store import FeatureStore
from data.types import Video

log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
_PEEK = 5  # videos whose headers settle D
_SHOWN = 20
_THREADS = 4
OFFICIAL = {(1610, 290): "UCF-Crime", (3954, 800): "XD-Violence", (238, 199): "ShanghaiTech, weak split"}


@dataclass
class ImportReport:
    """What an import did: ids written, ids that were there already, `failures` as {id: message}, notes, and how many
    of the manifest's videos were found, by split, as {split: (found, wanted)}."""

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    clips: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, failures and notes, for --json."""
        return {
            "written": len(self.written),
            "present": len(self.present),
            "failures": self.failures,
            "notes": self.notes,
            "counts": {split: {"found": found, "wanted": wanted} for split, (found, wanted) in self.counts.items()},
            "clips": self.clips,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }

    def describe(self, root: Path) -> str:
        """Lines for a person; the first failures once more, since they scrolled by long ago."""
        rate = f", {self.bytes / 1e6 / self.seconds:.0f} MB/s" if self.bytes and self.seconds else ""
        lines = [f"{len(self.written)} videos imported, {len(self.present)} were there already{rate}: {root}"]
        wanted = (self.counts.get("train", (0, 0))[1], self.counts.get("test", (0, 0))[1])
        official = f" (the official counts of {OFFICIAL[wanted]})" if wanted in OFFICIAL else ""
        found = ", ".join(f"{split} {a} of {b}" for split, (a, b) in self.counts.items())
        lines.append(f"videos of the manifest that are in the store: {found}{official}")
        if self.failures:
            lines.append(f"{len(self.failures)} videos were refused; the same command tries them again:")
            lines += [f"  {video_id}: {error}" for video_id, error in sorted(self.failures.items())[:_SHOWN]]
        if len(self.failures) > _SHOWN:
            lines.append(f"  ... and {len(self.failures) - _SHOWN} more, all in {root / 'failures.jsonl'}")
        return "\n".join(lines)


def import_features(
    format_name: str,
    src: Path,
    videos: Sequence[Video],
    root: Path,
    *,
    options: Mapping[str, object] | Sequence[str] = (),
    dtype: str = "float32",
) -> ImportReport:
    """Imports what is missing of `videos` from the folder `src` into the store at `root`.

    Args:
        format_name: a name of `importers`.
        src: folder of the downloaded features, in any arrangement; searched once.
        videos: the manifest's rows. A known `num_frames` is checked against T; an unknown one is taken from T.
        root: the store; made when the first video is good.
        options: of the format, as a mapping or as texts "KEY=VALUE"; `list=FILE` restricts the import to the files that
            a published list names.
        dtype: what is stored; "float32" as published, "float16" for half the disk (relative error 2e-4).

    Raises FileNotFoundError when `src` holds no file of any of the videos, SpecMismatchError when the store holds
    something else. A video that is refused is reported, recorded in failures.jsonl, and does not stop the others.
    """
    began = time.monotonic()
    given = parse_options(options)
    listed = given.pop("list", None)
    fmt = format_of(format_name, given)
    folder = SourceFolder(src, fmt, Path(str(listed)) if listed else None)
    files, failures = _find_all(folder, videos, fmt)
    if videos and not files and all(isinstance(error, AbsentError) for error in failures.values()):
        raise FileNotFoundError(
            f"no video of format {format_name} among {len(folder)} files below {src}. '{videos[0].id}': "
            f"{failures[videos[0].id]}. Is SRC, the format or the manifest another one?"
        )
    fmt = _settle(fmt, files, videos, root, dtype)
    report = ImportReport(notes=_notes(folder, videos, fmt, src))
    store = FeatureStore(root, fmt.spec) if (root / "spec.json").is_file() else None
    if store:
        store.sweep()
    report.present = [v.id for v in videos if store and v.id in store]
    unusual: dict[str, list[str]] = {}
    said = began
    for done, (video, outcome) in enumerate(_import_all(videos, files, failures, fmt, root, set(report.present)), 1):
        if isinstance(outcome, str):
            report.failures[video.id] = outcome
            if len(report.failures) <= _SHOWN:  # a folder of one split lacks 1,610 videos of the other
                log.error("%s: %s", video.id, outcome)
            continue
        report.written.append(video.id)
        report.clips += outcome.clips
        report.bytes += outcome.bytes
        for note in outcome.notes:
            unusual.setdefault(note, []).append(video.id)
        if time.monotonic() - said > _LOG_EVERY_S:
            said = time.monotonic()
            log.info("%d videos, %.0f MB/s", done, report.bytes / 1e6 / (said - began))
    report.notes += [f"{len(ids)} videos, e.g. {ids[0]}: {note}" for note, ids in unusual.items()]
    if (root / "spec.json").is_file():
        store = FeatureStore(root, fmt.spec)
        for video_id, message in report.failures.items():
            store.record_failure(video_id, message, format=format_name)
        store.link()
    report.counts = _counts(videos, {*report.written, *report.present})
    report.seconds = time.monotonic() - began
    return report


class _Written(NamedTuple):
    clips: int
    bytes: int
    notes: list[str]


def _import_all(
    videos: Sequence[Video],
    files: dict[str, list[Path]],
    failures: Mapping[str, RefusedError],
    fmt: Format,
    root: Path,
    present: set[str],
) -> Iterator[tuple[Video, _Written | str]]:
    """Each video that is not in the store yet, in order, with what was written or why it was refused.

    A few threads at once: while one waits for the disk, to read or to put a file down for good, another computes.
    """
    making = threading.Lock()
    opened: list[FeatureStore] = []

    def one(video: Video) -> _Written | str:
        try:
            if video.id in failures:
                raise failures[video.id]
            features, notes = read_video(video, files[video.id], fmt)
        except (ValueError, OSError, MemoryError) as error:  # whatever is wrong with one video must not cost the others
            return str(error) or type(error).__name__
        with making:  # by the first that has something to write: an import that only fails leaves no folder
            if not opened:
                opened.append(FeatureStore(root, fmt.spec))
        opened[0].write(features)
        return _Written(len(features.grid), features.x.nbytes, notes)

    todo = [v for v in videos if v.id not in present]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from zip(todo, pool.map(one, todo), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _counts(videos: Sequence[Video], have: set[str]) -> dict[str, tuple[int, int]]:
    wanted = Counter(v.split for v in videos)
    found = Counter(v.split for v in videos if v.id in have)
    return {split: (found[split], wanted[split]) for split in wanted}


def _find_all(
    folder: SourceFolder, videos: Sequence[Video], fmt: Format
) -> tuple[dict[str, list[Path]], dict[str, RefusedError]]:
    files: dict[str, list[Path]] = {}
    failures: dict[str, RefusedError] = {}
    for video in videos:
        try:
            files[video.id] = folder.find(video, fmt)
        except RefusedError as refusal:
            failures[video.id] = refusal
    return files, failures


def _settle(fmt: Format, files: dict[str, list[Path]], videos: Sequence[Video], root: Path, dtype: str) -> Format:
    """The format with D and stride as the store has them, or as most of the first files do."""
    spec = replace(fmt.spec, dtype=dtype)
    if (root / "spec.json").is_file():
        old = FeatureStore(root).spec
        stride = old.stride if fmt.own_stride else spec.stride
        return replace(fmt, spec=replace(spec, dim=_allowed(old.dim, fmt), stride=stride))
    dims: Counter[int] = Counter()
    strides: Counter[int] = Counter()
    for video in [v for v in videos if v.id in files][:_PEEK]:
        try:
            source = open_source(files[video.id][0], video, fmt)
        except RefusedError:
            continue
        dims.update(source.shape[-1:])
        strides.update([source.stride] if source.stride else [])
    dim = _allowed(dims.most_common(1)[0][0], fmt) if dims else spec.dim
    stride = strides.most_common(1)[0][0] if strides else spec.stride
    return replace(fmt, spec=replace(spec, dim=max(dim, 1), stride=stride))


def _allowed(dim: int, fmt: Format) -> int:
    return dim if not fmt.dims or dim in fmt.dims else fmt.spec.dim


def _notes(folder: SourceFolder, videos: Sequence[Video], fmt: Format, src: Path) -> list[str]:
    notes: list[str] = []
    if strangers := folder.strangers(videos, fmt):
        notes.append(f"{len(strangers)} files below {src} belong to no video of the manifest, e.g. {strangers[0]}")
    if unnamed := (folder.wanted or set()) - folder.names():
        notes.append(f"{len(unnamed)} files that {folder.listed} names are not below {src}, e.g. {min(unnamed)}")
    if unknown := sum(v.num_frames is None for v in videos):
        notes.append(
            f"{unknown} of {len(videos)} videos have no num_frames: their length is taken from T, which is not checked"
        )
    return notes
