"""UCF-Crime (Sultani et al., CVPR 2018, https://arxiv.org/abs/1801.04264): 1,900 CCTV videos, 13 kinds of crime.

    ROOT/Anomaly_Train.txt                     Class/Name_x264.mp4, 1,610 lines
    ROOT/Anomaly_Test.txt                      290 lines
    ROOT/Temporal_Anomaly_Annotation*.txt      Name_x264.mp4  Class  s1  e1  s2  e2, -1 for none
    ROOT/.../Class/Name_x264.mp4               the videos, in any arrangement of folders

Spans are read as [s, e), 0-based, the convention of the reference ground truth (84,128 positive frames).
"""

import re
from pathlib import Path

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import Annotation, base_name, find_list, find_videos, lines_of, read_annotations
from data.types import Video


@datasets.register("ucf_crime")
def load(root: Path, *, lists: Path | None = None) -> DatasetIndex:
    """UCF-Crime and everything in its format: official lists, one temporal annotation file, videos below ROOT.

    Args:
        root: folder of the videos.
        lists: folder of the lists and the annotation file; ROOT when not given.

    Raises FileNotFoundError when a list or the annotation file is not there.
    """
    folders = [f for f in (lists, root) if f is not None]
    train, test, spans = (
        _required(folders, pattern)
        for pattern in ("Anomaly_Train*.txt", "Anomaly_Test*.txt", "Temporal_Anomaly_Annotation*.txt")
    )
    annotations, problems = read_annotations(spans)
    by_number = {canonical(name): annotation for name, annotation in annotations.items()}
    files = find_videos(root)
    by_canonical = {canonical(stem): stem for stem in files}
    videos: dict[str, Video] = {}
    listed: set[str] = set()
    for split, path in (("train", train), ("test", test)):
        for number, entry in lines_of(path):
            where = f"{path.name}:{number}"
            name = base_name(entry)
            key = canonical(name)
            listed.add(key)
            if key in videos:
                problems.append(f"{where}: '{name}' is listed already, in {videos[key].split}; keep one line")
                continue
            stem = name if name in files else by_canonical.get(key, name)
            file = _choose(files.get(stem, []), entry)
            if isinstance(file, str):
                problems.append(f"{where}: {file}")
                continue
            try:
                videos[key] = _video(name, entry, file, split, by_number.get(key))
            except ValueError as error:
                problems.append(f"{where}: {error}")
    notes = [f"{spans.name}: '{n}' is in neither list, ignored" for n in annotations if canonical(n) not in listed]
    unlisted = [s for s in files if canonical(s) not in listed]
    if unlisted:
        notes.append(f"{len(unlisted)} files below {root} are in neither list, ignored, e.g. {files[unlisted[0]][0]}")
    return DatasetIndex(tuple(videos.values()), tuple(problems), tuple(notes))


def _video(name: str, entry: str, file: Path, split: str, annotation: Annotation | None) -> Video:
    normal = "Normal" in name
    kind = "" if normal else _class_of(name, entry)
    if split == "train":  # weak supervision: spans of training videos, where somebody has them, are not used
        return Video(name, str(file), split, int(not normal), (kind,) if kind else ())
    if annotation is None:
        raise ValueError(f"'{name}' has no line in the temporal annotation; add one (-1 -1 -1 -1 for a normal video)")
    if bool(annotation.events) == normal:
        found = f"{len(annotation.events)} events"
        raise ValueError(f"'{name}' is {'normal' if normal else 'anomalous'} by its name, but annotated with {found}")
    video = Video(name, str(file), split, int(not normal), (kind,) if kind else (), events=annotation.events)
    return video if annotation.num_frames is None else video.with_length(annotation.num_frames)[0]


def _class_of(name: str, entry: str) -> str:
    folder = re.split(r"[\\/]", entry)[-2:-1]
    return folder[0] if folder else re.sub(r"\d.*", "", name)


def canonical(name: str) -> str:
    """One spelling: the same test video is Normal_Videos_944_x264 in some lists and Normal_Videos944_x264 in others."""
    return re.sub(r"^Normal_Videos_?(\d)", r"Normal_Videos_\1", name)


def _choose(files: list[Path], entry: str) -> Path | str:
    """The file a list's entry means, or what is wrong."""
    if not files:
        return f"no video file for '{entry}'; download it, or take the line out of the list"
    if len(files) == 1:
        return files[0]
    parts = tuple(p for p in re.split(r"[\\/]", entry) if p)
    exact = [f for f in files if f.parts[-len(parts) :] == parts]
    return exact[0] if len(exact) == 1 else f"{len(files)} files for '{entry}': {files[0]} and {files[1]}; keep one"


def _required(folders: list[Path], pattern: str) -> Path:
    found = find_list(folders, pattern)
    if found is None:
        raise FileNotFoundError(
            f"no {pattern} below {' or '.join(map(str, folders))}; put the official lists there, or name their folder: "
            "--option lists=DIR"
        )
    return found
