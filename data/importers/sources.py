"""The folder of someone's features, indexed once by base name."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data.datasets.sources import lines_of
from data.datasets.ucf_crime import canonical
from data.importers.base import AbsentError, Format, RefusedError
from data.types import Video

_LISTED = re.compile(r"""^["']?(.+?\.(?:npy|npz|h5|hdf5|txt))["']?(?:[\s,].*)?$""", re.IGNORECASE)


class SourceFolder:
    """Files below `src`, found by the names a format gives them.

    Names are compared as UCF-Crime's two spellings demand (Normal_Videos944 is Normal_Videos_944), whole: nothing is
    parsed out of them, since an id may hold `__`, `#`, dots and anything else.

    Args:
        src: the folder, or a single file.
        fmt: tells apart files of one name by their folders.
        listed: a list file as other code reads it (one path per line, `/` or backslash, a label may follow); files it
            does not name are passed over.

    Raises FileNotFoundError when there is nothing at `src` or the list.
    """

    def __init__(self, src: Path, fmt: Format, listed: Path | None = None) -> None:
        if not src.exists():
            raise FileNotFoundError(f"no folder {src}; SRC is where the downloaded features lie")
        self.src = src
        self.listed = listed
        self.wanted = read_list(listed) if listed else None
        self._files: dict[str, list[Path]] = defaultdict(list)
        self._claimed: dict[Path, str] = {}
        for path in _walk(src):
            name = canonical(_base(path.name))
            if (self.wanted is None or name in self.wanted) and _belongs(path, src, fmt):
                self._files[name].append(path)

    def __len__(self) -> int:
        return len(self._files)

    def names(self) -> set[str]:
        """The base names of all files, in canonical spelling."""
        return set(self._files)

    def find(self, video: Video, fmt: Format) -> list[Path]:
        """The files of a video, one per entry of `fmt.files`. Raises RefusedError naming what is missing or double,
        AbsentError when there is nothing at all."""
        found: list[Path] = []
        missing: list[tuple[int, str]] = []
        for k, names in enumerate(fmt.names(video)):
            files = sorted({p for name in names for p in self._files.get(canonical(name), ())})
            if len(files) > 1:
                raise RefusedError(
                    f"{files[0]} and {files[1]} are both '{names[0]}'; keep one, or import its folder alone"
                )
            if files:
                found.append(files[0])
            else:
                missing.append((k, " or ".join(names)))
        if missing and found:
            crops = ", ".join(fmt.spec.crops[k] for k, _ in missing)
            raise RefusedError(
                f"{found[0].parent}: {len(found)} of {len(fmt.files)} crops are there, missing {crops}: no "
                f"{missing[0][1]}{self._in_list()}; download it again, or choose crops where the format has that option"
            )
        if missing:
            raise AbsentError(f"no {missing[0][1]} below {self.src}{self._in_list()}; download it")
        for path in found:
            if self._claimed.setdefault(path, video.id) != video.id and any("{id}" in n for n in fmt.files[0]):
                raise RefusedError(f"{path} is also the file of '{self._claimed[path]}'; rename one of the videos")
        return found

    def strangers(self, videos: Sequence[Video], fmt: Format) -> list[Path]:
        """Files that are named as the format names them, but after no video of the manifest."""
        ends = {(n.partition("{id}")[0], n.partition("{id}")[2]) for names in fmt.files for n in names if "{id}" in n}
        ordered = sorted(ends, key=lambda e: -len(e[0]) - len(e[1]))  # only the last __k is cut off, before plain .npy
        known = {canonical(v.id) for v in videos}
        found: list[Path] = []
        for name, paths in self._files.items():
            fits = ((a, b) for a, b in ordered if name.startswith(a) and name.endswith(b) and len(name) > len(a + b))
            for begin, end in fits:
                if canonical(name[len(begin) : len(name) - len(end)]) not in known:
                    found += paths
                break
        return sorted(found)

    def _in_list(self) -> str:
        return f" in {self.listed}" if self.listed else ""


def read_list(path: Path) -> set[str]:
    """Base names that a list file names, in canonical spelling. Raises ValueError when it names no feature file."""
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}; --option list=FILE names the list that goes with the features")
    names = {canonical(_base(match[1])) for _, line in lines_of(path) if (match := _LISTED.match(line))}
    if not names:
        raise ValueError(f"{path} names no feature file; wanted one path per line, e.g. dir/Abuse001_x264__0.npy")
    return names


def _base(entry: str) -> str:
    return re.split(r"[\\/]", entry)[-1]


def _walk(src: Path) -> list[Path]:
    """Every file below, in a fixed order; hidden ones are passed over, linked folders are followed once."""
    if src.is_file():
        return [src]
    found: list[Path] = []
    seen: set[str] = set()
    for folder, below, files in os.walk(src, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _belongs(path: Path, src: Path, fmt: Format) -> bool:
    if not fmt.outside:
        return True
    near = reversed([*src.resolve().parts[-2:], *path.relative_to(src).parts[:-1]])
    told = next((name for part in near if (name := part.lower()) in fmt.inside + fmt.outside), None)
    return told not in fmt.outside
