"""UCF-Crime (Sultani et al., CVPR 2018, https://arxiv.org/abs/1801.04264): 1,900 CCTV videos, 13 kinds of crime.

    ROOT/Anomaly_Train.txt                     Class/Name_x264.mp4, 1,610 lines
    ROOT/Anomaly_Test.txt                      290 lines
    ROOT/Temporal_Anomaly_Annotation*.txt      Name_x264.mp4  Class  s1  e1  s2  e2, -1 for none
    ROOT/UCF_Annotation*.txt                   Class/Name_x264.mp4 frames Class s1 e1 s2 e2: beside it or instead of it
    ROOT/.../Class/Name_x264.mp4               the videos, in any arrangement of folders

Spans are read as [s, e), 0-based, the convention of the reference ground truth (84,128 positive frames).
"""

import re
from dataclasses import replace
from pathlib import Path

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import (
    Annotation,
    base_name,
    find_list,
    find_videos,
    length_notes,
    lines_of,
    one_file,
    read_annotations,
)
from data.types import Video


@datasets.register("ucf_crime")
def load(root: Path, *, lists: Path | None = None, videos: bool = True) -> DatasetIndex:
    """UCF-Crime and everything in its format: official lists, one temporal annotation file, videos below ROOT.

    Lengths of the test videos are taken from an annotation file that has them (UCF_Annotation*.txt), for evaluation
    frame by frame without the videos, and for the check of features and decoded videos against them.

    Args:
        root: folder of the videos.
        lists: folder of the lists and the annotation files; ROOT when not given.
        videos: False when only features exist: no video files are looked for.

    Raises FileNotFoundError when a list or the annotation file is not there.
    """
    folders = [f for f in (lists, root) if f is not None]
    train, test = (_required(folders, pattern) for pattern in ("Anomaly_Train*.txt", "Anomaly_Test*.txt"))
    annotations, source, problems, notes = _read_both(folders)
    files = find_videos(root) if videos else {}
    by_canonical = {canonical(stem): stem for stem in files}
    found: dict[str, Video] = {}
    listed: set[str] = set()
    for split, path in (("train", train), ("test", test)):
        for number, entry in lines_of(path):
            where = f"{path.name}:{number}"
            name = base_name(entry)
            key = canonical(name)
            listed.add(key)
            if key in found:
                problems.append(f"{where}: '{name}' is listed already, in {found[key].split}; keep one line")
                continue
            stem = name if name in files else by_canonical.get(key, name)
            try:
                file = str(one_file(files, stem, entry)) if videos else ""
                found[key] = _video(name, entry, file, split, annotations.get(key))
            except ValueError as error:
                problems.append(f"{where}: {error}")
    notes += [
        f"{source}: '{base_name(a.entry)}' is in neither list, ignored"
        for k, a in annotations.items()
        if k not in listed
    ]
    unlisted = [s for s in files if canonical(s) not in listed]
    if unlisted:
        notes.append(f"{len(unlisted)} files below {root} are in neither list, ignored, e.g. {files[unlisted[0]][0]}")
    if not videos:
        notes += length_notes(list(found.values()))
    return DatasetIndex(tuple(found.values()), tuple(problems), tuple(notes))


def _read_both(folders: list[Path]) -> tuple[dict[str, Annotation], str, list[str], list[str]]:
    """Annotations by canonical name, the file that holds the spans, problems and notes.

    Spans are those of the temporal annotation where both files are there, frame counts those of the other.
    """
    published, counted = (find_list(folders, f"{n}*.txt") for n in ("Temporal_Anomaly_Annotation", "UCF_Annotation"))
    spans = published or counted or _required(folders, "Temporal_Anomaly_Annotation*.txt")
    read, problems = read_annotations(spans)
    annotations = {canonical(name): annotation for name, annotation in read.items()}
    notes: list[str] = []
    if published and counted:
        lengths, more = read_annotations(counted)
        problems += more
        differ: list[str] = []
        for name, other in lengths.items():
            if mine := annotations.get(canonical(name)):
                annotations[canonical(name)] = replace(mine, num_frames=other.num_frames or mine.num_frames)
                differ += [name] * (_spans(mine) != _spans(other))
        if differ:
            notes.append(f"{len(differ)} videos have other spans in {counted.name}, e.g. '{differ[0]}'; not used")
    return annotations, spans.name, problems, notes


def _spans(annotation: Annotation) -> list[tuple[int, int]]:
    return [(e.start, e.stop) for e in annotation.events]


def _video(name: str, entry: str, file: str, split: str, annotation: Annotation | None) -> Video:
    normal = "Normal" in name
    kind = "" if normal else _class_of(name, entry)
    if split == "train":  # weak supervision: spans of training videos, where somebody has them, are not used
        return Video(name, file, split, int(not normal), (kind,) if kind else ())
    if annotation is None:
        raise ValueError(f"'{name}' has no line in the temporal annotation; add one (-1 -1 -1 -1 for a normal video)")
    if bool(annotation.events) == normal:
        found = f"{len(annotation.events)} events"
        raise ValueError(f"'{name}' is {'normal' if normal else 'anomalous'} by its name, but annotated with {found}")
    video = Video(name, file, split, int(not normal), (kind,) if kind else (), events=annotation.events)
    return video if annotation.num_frames is None else video.with_length(annotation.num_frames)[0]


def _class_of(name: str, entry: str) -> str:
    folder = re.split(r"[\\/]", entry)[-2:-1]
    return folder[0] if folder else re.sub(r"\d.*", "", name)


def canonical(name: str) -> str:
    """One spelling: the same test video is Normal_Videos_944_x264 in some lists and Normal_Videos944_x264 in others."""
    return re.sub(r"^Normal_Videos_?(\d)", r"Normal_Videos_\1", name)


def _required(folders: list[Path], pattern: str) -> Path:
    found = find_list(folders, pattern)
    if found is None:
        raise FileNotFoundError(
            f"no {pattern} below {' or '.join(map(str, folders))}; put the official lists there, or name their folder: "
            "--option lists=DIR"
        )
    return found
