"""Your own videos: two folders of them, or a CSV.

    ROOT/[train|test/]normal/*.mp4
    ROOT/[train|test/]anomalous/*.mp4      also: anomaly, abnormal; a folder below it names the class
    ROOT/annotations.txt                   name start stop [start stop ...] in frames, for test videos

or ROOT is a manifest (.csv), which is then checked and completed.
"""

import hashlib
import re
from pathlib import Path

from data import manifest
from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import Annotation, find_list, find_videos, read_annotations
from data.types import Video

_NORMAL = ("normal", "normals", "negative")
_ANOMALOUS = ("anomalous", "anomaly", "anomalies", "abnormal", "positive")


@datasets.register("folder")
def load(root: Path, *, test_fraction: float = 0.2) -> DatasetIndex:
    """Your own videos: folders normal/ and anomalous/ (below train/ and test/ if you like), or a manifest CSV.

    Without train/ and test/, annotated anomalous videos are the test split, with `test_fraction` of the normal ones
    (chosen by a hash of the name, so that adding videos moves none). Without annotations every video is for training.

    Raises FileNotFoundError or ManifestError when there is nothing to read.
    """
    if root.is_file():
        return _check_manifest(root)
    spans = find_list([root] if root.is_dir() else [], "annotations.txt")
    annotations, problems = read_annotations(spans) if spans else ({}, [])
    videos: list[Video] = []
    for stem, files in find_videos(root).items():
        if len(files) > 1:
            problems.append(f"{files[0]} and {files[1]} have the same name; rename one")
            continue
        try:
            videos.append(_video(root, stem, files[0], annotations.get(stem), test_fraction if spans else 0.0))
        except ValueError as error:
            problems.append(f"{files[0]}: {error}")
    known = {v.id for v in videos}
    problems += [
        f"{spans.name if spans else ''} names '{n}', which is no video below {root}"
        for n in annotations
        if n not in known
    ]
    notes = () if spans else (f"no annotations.txt below {root}: nothing to evaluate frame by frame, all videos train",)
    return DatasetIndex(tuple(sorted(videos, key=lambda v: (v.split != "train", v.id))), tuple(problems), notes)


def _video(root: Path, stem: str, file: Path, annotation: Annotation | None, test_fraction: float) -> Video:
    parts = [p.lower() for p in file.relative_to(root).parts[:-1]]
    kinds = [p for p in parts if p in _NORMAL + _ANOMALOUS]
    if len(kinds) != 1:
        raise ValueError("is in no folder called normal or anomalous; move it into one of the two")
    label = int(kinds[0] in _ANOMALOUS)
    below = file.relative_to(root).parts[parts.index(kinds[0]) + 1 : -1]
    below = tuple(p for p in below if p.lower() not in ("train", "test"))
    classes = (re.sub(r"[\s;:|,]+", "_", below[0]),) if label and below else ()
    splits = [p for p in parts if p in ("train", "test")]
    events = annotation.events if annotation else ()
    if splits:
        split = splits[0]
    elif label:
        split = "test" if events else "train"
    else:
        split = "test" if _fraction(stem) < test_fraction else "train"
    if split == "train":
        return Video(stem, str(file), split, label, classes)
    if label and not events:
        raise ValueError("an anomalous test video without spans; add 'name start stop' to annotations.txt")
    return Video(stem, str(file), split, label, classes, events=events)


def _fraction(name: str) -> float:
    return int(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8], 16) / 2**32


def _check_manifest(path: Path) -> DatasetIndex:
    good: list[Video] = []
    problems: list[str] = []
    for video in manifest.read(path):
        if video.path and not Path(video.path).exists():  # a folder: of frames
            problems.append(f"{video.id}: no file {video.path}; correct its path in {path}")
        elif video.split == "test" and video.label and not video.events:
            problems.append(f"{video.id}: an anomalous test video without events; add spans as start-stop in {path}")
        else:
            good.append(video)
    return DatasetIndex(tuple(good), tuple(problems))
