"""What the dataset readers share: finding video files, and reading the lists of names people publish."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.types import Event, Video

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"})


def find_videos(root: Path) -> dict[str, list[Path]]:
    """Video files below `root` by their stem, in a fixed order; hidden files are passed over.

    Raises FileNotFoundError when `root` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; --root is the folder that holds the videos")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file():
            found[path.name[: -len(path.suffix)]].append(path)
    return dict(found)


FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})


def find_frame_folders(root: Path) -> dict[str, list[Path]]:
    """Folders below `root` that hold the frames of a video as pictures, by their name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted({p.parent for p in root.rglob("*") if is_frame(p)}):
        if not folder.name.startswith("."):
            found[folder.name].append(folder)
    return dict(found)


def is_frame(path: Path) -> bool:
    """Whether a file is a picture by its name; hidden ones, such as ._001.tif in UCSD's archive, are none."""
    return path.suffix.lower() in FRAME_SUFFIXES and not path.name.startswith(".")


def one_file(files: Mapping[str, list[Path]], stem: str, entry: str) -> Path:
    """The file that a list's entry means. Several of that stem: the one whose folders end as the entry's do.

    Raises ValueError when there is none, or more than one.
    """
    matches = files.get(stem, [])
    if not matches:
        raise ValueError(f"no video file for '{entry}'; download it, or take the line out of the list")
    if len(matches) > 1:
        parts = tuple(p for p in re.split(r"[\\/]", entry) if p)
        exact = [f for f in matches if f.parts[-len(parts) :] == parts]
        if len(exact) != 1:
            raise ValueError(f"{len(matches)} files for '{entry}': {matches[0]} and {matches[1]}; keep one")
        return exact[0]
    return matches[0]


def find_list(folders: Iterable[Path], pattern: str) -> Path | None:
    """The file of that name pattern nearest to the top of the first folder that holds one, or None."""
    for folder in folders:
        if matches := sorted(folder.rglob(pattern), key=lambda p: (len(p.parts), p)):
            return matches[0]
    return None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and stripped lines, empty ones left out."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def base_name(entry: str) -> str:
    """The last part of a path as any system writes it, without a video suffix: lists hold authors' own paths."""
    name = PurePosixPath(entry.replace("\\", "/")).name
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in VIDEO_SUFFIXES else name


def video_of_feature(entry: str) -> str:
    """The video's name in a line of a feature list, `dir/NAME__0.npy 1`, or in a file's name; other lines: `base_name`.

    Only the last `__0` or `__vggish` (or TEVAD's `_i3d`) is cut off, since names hold `__` themselves.
    """
    match = _FEATURE_LINE.match(entry)
    return _CROP.sub("", base_name(match[1])) if match else base_name(entry)


_FEATURE_LINE = re.compile(r"""^["']?(.+?)\.npy["']?(?:[\s,].*)?$""", re.IGNORECASE)
_CROP = re.compile(r"(?:__(?:\d+|vggish)|_i3d)$")


def length_notes(videos: Sequence[Video]) -> list[str]:
    """What is to be said where there are no video files to count the frames of."""
    unknown = sum(v.num_frames is None for v in videos)
    if not unknown:
        return []
    return [f"{unknown} of {len(videos)} videos have no num_frames: their lengths will come from the features"]


@dataclass(frozen=True)
class Annotation:
    """One line of an annotation file: the entry as written, its events, and the frame count where it is given."""

    entry: str
    events: tuple[Event, ...]
    num_frames: int | None = None


def parse_annotation(line: str) -> Annotation:
    """Reads `name [frames] [Class] s e [[Class] s e ...]` with any spacing; -1 -1 means no event; spans are [s, e).

    This covers UCF-Crime's file (name, class, two spans), its copy with frame counts, and XD-Violence's two files.
    Raises ValueError on anything else.
    """
    entry, *tokens = line.split()
    num_frames = None
    if len(tokens) > 1 and re.fullmatch(r"\d+", tokens[0]) and not _is_number(tokens[1]):
        num_frames = int(tokens.pop(0))
    events: list[Event] = []
    numbers: list[int] = []
    kind = ""
    for token in tokens:
        if not _is_number(token):
            if numbers:
                raise ValueError(f"'{token}' stands between a start and its stop")
            kind = token
            continue
        numbers.append(int(token))
        if len(numbers) == 2:
            if numbers != [-1, -1]:
                events.append(Event(numbers[0], numbers[1], kind))
            numbers = []
    if numbers:
        raise ValueError(f"an odd number of frames: {numbers[0]} has no stop")
    return Annotation(entry, tuple(sorted(events)), num_frames)


def read_annotations(path: Path) -> tuple[dict[str, Annotation], list[str]]:
    """Annotations by base name, and a problem line for each that cannot be read or stands twice."""
    found: dict[str, Annotation] = {}
    problems: list[str] = []
    for number, line in lines_of(path):
        try:
            annotation = parse_annotation(line)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}; wanted 'name start stop [start stop ...]' in frames")
            continue
        name = base_name(annotation.entry)
        if name in found:
            problems.append(f"{path}:{number}: '{name}' is annotated twice; keep one line")
        else:
            found[name] = annotation
    return found, problems


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-?\d+", token) is not None
