"""XD-Violence (Wu et al., ECCV 2020, https://arxiv.org/abs/2007.04687): 4,754 videos with sound, six kinds of violence.

    ROOT/annotations.txt                 name s e [s e ...] in frames, violent test videos only
    ROOT/<folders>/name_label_A.mp4      normal
    ROOT/<folders>/name_label_B1-0-0.mp4 violent

or, with videos=no, names alone: train_names.txt and test_names.txt, the lists that other code reads (rgb.list and
rgb_test.list, XD_Train.list and XD_Test.list, ...), or else the .npy files below RGB, RGBTest and folders like them.

B1 is fighting, B2 shooting, B4 riot, B5 abuse, B6 car accident, G explosion; a video may have several, `0` fills up.
A video belongs to the test split when a folder on its way is called test, test_videos, RGBTest or the like, else to
train. The label stands in the name; a name holds `#`, `=`, dots and `__`, so nothing but the label is parsed out of it.
Spans are [s, e), 0-based.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import (
    Annotation,
    find_list,
    find_videos,
    length_notes,
    lines_of,
    read_annotations,
    video_of_feature,
)
from data.types import Event, Video

CODES = ("B1", "B2", "B4", "B5", "B6", "G")
_LABEL = re.compile(r"_label_([A-Z0-9-]+)$")
_TEST = re.compile(r"(videos?_?|rgb_?|flow_?|xd_?)?test", re.IGNORECASE)
# in order of preference: plain names; HL-Net, MACIL-SD; UR-DMU; PEL4VAD; VadCLIP
_LISTS = {
    "train": ("train_names.txt", "rgb.list", "XD_Train*.list", "train*.list", "xd_CLIP_rgb.csv"),
    "test": ("test_names.txt", "rgb_test.list", "XD_Test*.list", "test*.list", "xd_CLIP_rgbtest.csv"),
}


@datasets.register("xd_violence")
def load(root: Path, *, lists: Path | None = None, videos: bool = True) -> DatasetIndex:
    """XD-Violence and everything in its format: labels in file names, one annotation file for the violent test videos.

    Args:
        root: folder of the videos, or of features.
        lists: folder of annotations.txt and of name lists; ROOT when not given.
        videos: False when only features exist: names come from lists, or from the features' files.

    Raises FileNotFoundError when annotations.txt, or without videos every list and feature, is not there.
    """
    folders = [f for f in (lists, root) if f is not None]
    spans = find_list(folders, "annotations.txt")
    if spans is None:
        raise FileNotFoundError(
            f"no annotations.txt below {' or '.join(map(str, folders))}; put the official file there, or name its "
            "folder: --option lists=DIR"
        )
    annotations, problems = read_annotations(spans)
    notes: list[str] = []
    found: dict[str, Video] = {}
    entries = _files(root, problems) if videos else _names(root, folders, notes)
    for where, split, name, file in entries:
        if name in found:
            problems.append(f"{where}: '{name}' is in {found[name].split} already; keep one")
            continue
        try:
            found[name] = _video(name, file, split, annotations.get(name))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    problems += [
        f"{spans.name} names '{name}', which is no test video below {root}; download it, or take the line out"
        for name in annotations
        if name not in found or found[name].split != "test"
    ]
    in_order = sorted(found.values(), key=lambda v: (v.split != "train", v.id))
    if not videos:
        notes += length_notes(in_order)
    return DatasetIndex(tuple(in_order), tuple(problems), tuple(notes))


_Entry = tuple[str, str, str, str]  # where it stands, split, name, path of the video or ""


def _files(root: Path, problems: list[str]) -> Iterator[_Entry]:
    for stem, files in find_videos(root).items():
        if len(files) > 1:
            problems.append(f"{files[0]} and {files[1]} have the same name; keep one")
            continue
        yield str(files[0]), _split_of(files[0], root), stem, str(files[0])


def _names(root: Path, folders: list[Path], notes: list[str]) -> list[_Entry]:
    """Names of both splits, each from its list, or else from the features' files."""
    listed = {split: _first(find_list(folders, name) for name in names) for split, names in _LISTS.items()}
    found: dict[tuple[str, str], str] = {}  # where each name stands first: lists have a line for each crop
    for split, path in listed.items():
        if path is not None:
            for number, line in lines_of(path):
                if (number, line.lower()) != (1, "path,label"):
                    name = video_of_feature(line)
                    found.setdefault((split, name), f"{path.name}:{number} ({name})")
    if None in listed.values():
        for file in sorted(root.rglob("*.npy")):
            split, name = _split_of(file, root), video_of_feature(file.name)
            if listed[split] is None and "_label_" in name and not file.name.startswith("."):
                found.setdefault((split, name), str(file))
    splits = {split for split, _ in found}
    if not splits:
        raise FileNotFoundError(
            f"no train_names.txt, rgb.list, XD_Train.list or the like below {' or '.join(map(str, folders))}, and no "
            f"feature files NAME_label_A__0.npy below {root}; put the lists there, or name their folder: "
            "--option lists=DIR"
        )
    for split in sorted({"train", "test"} - splits):
        kinds = ", ".join(_LISTS[split])
        notes.append(f"no {split} videos: none of {kinds}, and no features in a folder of that split")
    return [(where, split, name, "") for (split, name), where in found.items()]


def _first(paths: Iterable[Path | None]) -> Path | None:
    return next((path for path in paths if path is not None), None)


def _split_of(file: Path, root: Path) -> str:
    return "test" if any(_TEST.match(part) for part in file.relative_to(root).parts[:-1]) else "train"


def classes_of(name: str) -> tuple[str, ...]:
    """Codes in a name's label: "x_label_B1-0-G" -> ("B1", "G"), "x_label_A" -> (). Raises ValueError without a label.

    Two official names carry a bare code (`_label_B1`); `0` fills the places that are not used.
    """
    match = _LABEL.search(name)
    if match is None:
        raise ValueError("the name does not end in _label_A or _label_B1-0-0; rename it, or use the folder dataset")
    codes = tuple(dict.fromkeys(c for c in match[1].split("-") if c != "0"))
    if codes == ("A",):
        return ()
    if not codes or (unknown := [c for c in codes if c not in CODES]):
        raise ValueError(f"label '{match[1]}' has the unknown code {unknown[0] if codes else '0'}; known: A, {CODES}")
    return codes


def _video(name: str, file: str, split: str, annotation: Annotation | None) -> Video:
    classes = classes_of(name)
    if split == "train":
        return Video(name, file, "train", int(bool(classes)), classes)
    if classes and annotation is None:
        raise ValueError("a violent test video without a line in annotations.txt; add its spans")
    events = annotation.events if annotation else ()
    if len(classes) == 1:  # the annotation names no kind, but here it can be one only
        events = tuple(Event(e.start, e.stop, e.kind or classes[0]) for e in events)
    return Video(name, file, "test", int(bool(classes)), classes, events=events)
