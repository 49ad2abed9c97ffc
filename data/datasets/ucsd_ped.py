"""UCSD pedestrians (Mahadevan et al., CVPR 2010), weakly supervised: some of its anomalous clips move to training.

    ROOT/.../UCSDped2/Train/Train001/*.tif   16 normal clips
    ROOT/.../UCSDped2/Test/Test001/*.tif     12 anomalous clips
    ROOT/.../UCSDped2/Test/UCSDped2.m        TestVideoFile{end+1}.gt_frame = [61:180];   1-based, both ends included

Six anomalous and four normal clips train, the others test. Published splits are unknown (RTFM) or one of many (TEVAD),
so results are the mean over ten seeded splits: --option seed=0 to seed=9; `split=tevad` gives that paper's one.
"""

import re
from pathlib import Path

import numpy as np

from data.datasets.base import DatasetIndex, datasets
from data.datasets.sources import find_frame_folders, find_list, find_videos, length_notes, one_file
from data.types import Event, Video

_FPS = 10.0
_TEST_CLIPS, _TRAIN_CLIPS = {1: 36, 2: 12}, {1: 34, 2: 16}
_TEVAD = (
    ("Test002", "Test006", "Test009", "Test010", "Test011", "Test012"),
    ("Train007", "Train008", "Train014", "Train015"),
)


@datasets.register("ucsd_ped")
def load(root: Path, *, ped: int = 2, seed: int = 0, split: str = "random", videos: bool = True) -> DatasetIndex:
    """UCSD Ped2 (or Ped1), weak protocol: six anomalous and four normal clips to train, by a seed.

    Args:
        root: the unpacked dataset, or any folder that holds UCSDped2.m and the clips.
        ped: 1 or 2.
        seed: 0 to 9 for the ten splits; any other number gives a further one.
        split: "random", or "tevad" for the fixed split of TEVAD (Ped2).
        videos: False when only features exist.

    Raises FileNotFoundError when UCSDped*.m is not there.
    """
    if ped not in (1, 2) or split not in ("random", "tevad") or (split == "tevad" and ped != 2):
        raise ValueError(f"ped is 1 or 2, split is random or (for Ped2) tevad, got ped={ped}, split={split}")
    matlab = find_list([root], f"UCSDped{ped}.m")
    if matlab is None:
        raise FileNotFoundError(f"no UCSDped{ped}.m below {root}; it comes with the dataset, in UCSDped{ped}/Test")
    events = parse_matlab(matlab.read_text())
    if len(events) != _TEST_CLIPS[ped] or () in events:
        raise ValueError(
            f"{matlab} gives frames for {sum(map(bool, events))} of {len(events)} test clips, "
            f"wanted {_TEST_CLIPS[ped]}; take the dataset's own file"
        )
    home = matlab.parent.parent if (matlab.parent.parent / "Train").is_dir() else matlab.parent
    files = {**find_frame_folders(home), **find_videos(home)} if videos else {}
    normal = [f"Train{i:03d}" for i in range(1, _TRAIN_CLIPS[ped] + 1)]
    names = [f"Test{i:03d}" for i in range(1, len(events) + 1)]
    train = set(_TEVAD[0] + _TEVAD[1]) if split == "tevad" else _draw(names, 6, seed) | _draw(normal, 4, seed)
    found: list[Video] = []
    problems: list[str] = []
    for name in names + normal:
        label = int(name in names)
        spans = events[names.index(name)] if label and name not in train else ()
        try:
            file = str(one_file(files, name, name)) if videos else ""
        except ValueError as error:
            problems.append(str(error))
            continue
        found.append(
            Video(name, file, "train" if name in train else "test", label, ("anomaly",) * label, fps=_FPS, events=spans)
        )
    notes = () if videos else tuple(length_notes(found))
    return DatasetIndex(tuple(sorted(found, key=lambda v: v.split != "train")), tuple(problems), notes)


def parse_matlab(text: str) -> list[tuple[Event, ...]]:
    """Events of Test001, Test002, ... from the lines `TestVideoFile{end+1}.gt_frame = [5:90, 140:200];`.

    The numbers are 1-based and include both ends; ours are 0-based and half-open.
    """
    found = []
    for line in re.findall(r"^\s*TestVideoFile\{end\+1\}\.gt_frame\s*=\s*\[([^\]]*)\]", text, flags=re.M):
        spans = re.findall(r"(\d+)\s*:\s*(\d+)", line)
        found.append(tuple(Event(int(a) - 1, int(b), "anomaly") for a, b in spans))
    return found


def _draw(names: list[str], count: int, seed: int) -> set[str]:
    return {names[i] for i in np.random.default_rng([seed, count]).permutation(len(names))[:count]}
