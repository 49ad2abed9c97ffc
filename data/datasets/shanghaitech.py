"""ShanghaiTech Campus in the weakly supervised split of Zhong et al. (CVPR 2019): 238 videos to train, 199 to test.

    ROOT/SH_Train.txt, SH_Test.txt          names only, 63 + 175 and 44 + 155 (a `name,label` list works too)
    ROOT/.../test_frame_mask/01_0014.npy    one 0/1 per frame, for the anomalous videos (the authors' own masks)
    ROOT/.../01_0014.avi or 01_0014/        videos, or folders of frames, in any arrangement

A name with four digits behind the underscore is anomalous (the original test set), one with three is normal.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import find_frame_folders, find_list, find_videos, length_notes, lines_of, one_file
from data.types import Event, Video, true_runs

_NAME = re.compile(r"\d\d_(\d{3,4})")
_FPS = 24.0


@datasets.register("shanghaitech")
def load(root: Path, *, lists: Path | None = None, videos: bool = True) -> DatasetIndex:
    """ShanghaiTech, weakly supervised split (Zhong et al. 2019): two name lists, frame masks, videos or frame folders.

    Args:
        root: folder of the videos and masks.
        lists: folder of the two lists (and masks); ROOT when not given.
        videos: False when only features exist: no video files are looked for.

    Raises FileNotFoundError when a list is not there.
    """
    folders = [f for f in (lists, root) if f is not None]
    arrays = (p for folder in folders for p in sorted(folder.rglob("*.npy")))
    masks = {p.stem: p for p in arrays if p.parent.name == "test_frame_mask"}
    files = {**find_frame_folders(root), **find_videos(root)} if videos else {}
    found: dict[str, Video] = {}
    problems: list[str] = []
    for split in ("train", "test"):
        path = find_list(folders, f"SH_{split.capitalize()}*.txt")
        if path is None:
            raise FileNotFoundError(
                f"no SH_{split.capitalize()}.txt below {' or '.join(map(str, folders))}; put the official list there, "
                "or name its folder: --option lists=DIR"
            )
        for number, line in lines_of(path):
            name = line.split(",")[0].strip()
            where = f"{path.name}:{number}"
            if name in found:
                problems.append(f"{where}: '{name}' is listed already, in {found[name].split}; keep one line")
                continue
            try:
                file = str(one_file(files, name, name)) if videos else ""
                found[name] = _video(name, file, split, masks.get(name))
            except ValueError as error:
                problems.append(f"{where}: {error}")
    notes = () if videos else tuple(length_notes(list(found.values())))
    return DatasetIndex(tuple(found.values()), tuple(problems), notes)


def _video(name: str, file: str, split: str, mask: Path | None) -> Video:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"'{name}' is no name of ShanghaiTech; wanted 01_002 (normal) or 01_0014 (anomalous)")
    label = int(len(match[1]) == 4)
    classes = ("anomaly",) * label
    if split == "train" or not label:
        return Video(name, file, split, label, classes, fps=_FPS)
    if mask is None:
        raise ValueError(f"no test_frame_mask/{name}.npy; put the dataset's masks below the root")
    try:
        frames = np.load(mask, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{mask} is no .npy file that can be read ({error}); download it again") from error
    if frames.ndim != 1 or not np.isin(frames, (0, 1)).all() or not frames.any():
        raise ValueError(f"{mask} must hold a 0 or 1 per frame, some of them 1, got {frames.shape} {frames.dtype}")
    return Video(name, file, split, label, classes, len(frames), _FPS, runs(frames.astype(np.uint8), "anomaly"))


def runs(labels: NDArray[np.uint8], kind: str) -> tuple[Event, ...]:
    """Frame labels (F,) of 0 and 1 -> the spans of ones."""
    return tuple(Event(int(a), int(b), kind) for a, b in true_runs(labels))
