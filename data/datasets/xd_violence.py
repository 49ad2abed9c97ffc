"""XD-Violence (Wu et al., ECCV 2020, https://arxiv.org/abs/2007.04687): 4,754 videos with sound, six kinds of violence.

    ROOT/annotations.txt                 name s e [s e ...] in frames, violent test videos only
    ROOT/<folders>/name_label_A.mp4      normal
    ROOT/<folders>/name_label_B1-0-0.mp4 violent

B1 is fighting, B2 shooting, B4 riot, B5 abuse, B6 car accident, G explosion; a video may have several, `0` fills up.
A video belongs to the test split when a folder on its way is called test, test_videos or the like, else to train.
The label stands in the name; a name holds `#`, `=`, dots and `__`, so nothing but the label is parsed out of it.
Spans are [s, e), 0-based.
"""

import re
from pathlib import Path

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import Annotation, find_list, find_videos, read_annotations
from data.types import Event, Video

CODES = ("B1", "B2", "B4", "B5", "B6", "G")
_LABEL = re.compile(r"_label_([A-Z0-9-]+)$")


@datasets.register("xd_violence")
def load(root: Path, *, lists: Path | None = None) -> DatasetIndex:
    """XD-Violence and everything in its format: labels in file names, one annotation file for the violent test videos.

    Args:
        root: folder of the videos.
        lists: folder of annotations.txt; ROOT when not given.

    Raises FileNotFoundError when annotations.txt is not there.
    """
    folders = [f for f in (lists, root) if f is not None]
    spans = find_list(folders, "annotations.txt")
    if spans is None:
        raise FileNotFoundError(
            f"no annotations.txt below {' or '.join(map(str, folders))}; put the official file there, or name its "
            "folder: --option lists=DIR"
        )
    annotations, problems = read_annotations(spans)
    videos: list[Video] = []
    for stem, files in find_videos(root).items():
        if len(files) > 1:
            problems.append(f"{files[0]} and {files[1]} have the same name; keep one")
            continue
        try:
            videos.append(_video(root, stem, files[0], annotations.get(stem)))
        except ValueError as error:
            problems.append(f"{files[0]}: {error}")
    known = {v.id for v in videos if v.split == "test"}
    problems += [
        f"{spans.name} names '{name}', which is no test video below {root}; download it, or take the line out"
        for name in annotations
        if name not in known
    ]
    return DatasetIndex(tuple(sorted(videos, key=lambda v: (v.split != "train", v.id))), tuple(problems))


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


def _video(root: Path, stem: str, file: Path, annotation: Annotation | None) -> Video:
    classes = classes_of(stem)
    is_test = any(re.match(r"(videos?_)?test", part.lower()) for part in file.relative_to(root).parts[:-1])
    if not is_test:
        return Video(stem, str(file), "train", int(bool(classes)), classes)
    if classes and annotation is None:
        raise ValueError("a violent test video without a line in annotations.txt; add its spans")
    events = annotation.events if annotation else ()
    if len(classes) == 1:  # the annotation names no kind, but here it can be one only
        events = tuple(Event(e.start, e.stop, e.kind or classes[0]) for e in events)
    return Video(stem, str(file), "test", int(bool(classes)), classes, events=events)
