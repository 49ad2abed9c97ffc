"""Generated videos with sound: people on a street, and in anomalous videos a fight, a fall or a panic.

    ROOT/toy.json                       seed, sizes and revision; a folder made otherwise is refused
    ROOT/truth.json                     spans of all videos, those of training too: for tests, never for training
    ROOT/videos/train/train_normal_000.mp4 ...

H.264 and AAC from a real encoder, exact ground truth, the same bytes for the same seed on the same machine. What life
looks like outside the spans is the same in normal and anomalous videos, with fast and loud but harmless things in it;
the n-th normal and the n-th anomalous video of a split share a camera, so that no background tells them apart. Falls
are the hard kind: one small body moves.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data.datasets import toy_draw, toy_people, toy_scene, toy_sound
from data.datasets.base import DatasetIndex, datasets
from data.datasets.toy_video import write_video
from data.files import cores, write_text
from data.types import SPLITS, Event, Video

REVISION = 1
_FPS = 25
_SIZE = (320, 240)


@dataclass(frozen=True)
class _Plan:
    """One video to be made: everything follows from the seed and from where it stands in the dataset."""

    seed: int
    split: str
    label: int
    index: int
    min_s: float
    max_s: float

    @property
    def id(self) -> str:
        return f"{self.split}_{'anomalous' if self.label else 'normal'}_{self.index:03d}"

    def rng(self, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.label, self.index, what])

    def timing(self) -> tuple[int, tuple[Event, ...]]:
        """Length in frames, and one or two spans of 2 to 4 s with room before, between and behind them."""
        rng = self.rng(0)
        frames = int(rng.uniform(self.min_s, self.max_s) * _FPS)
        if not self.label:
            return frames, ()
        lengths = [int(rng.uniform(2.0, 4.0) * _FPS) for _ in range(1 + int(rng.random() < 0.35 and frames > 275))]
        spare = frames - sum(lengths) - 25 * (len(lengths) + 1)
        cuts = np.sort(rng.uniform(0, max(spare, 0), len(lengths)))
        spans, passed = [], 25
        for cut, length in zip(cuts, lengths, strict=True):
            start = passed + int(cut)
            kind = toy_people.KINDS[int(rng.integers(len(toy_people.KINDS)))]
            spans.append(Event(start, min(start + length, frames), kind))
            passed += length + 25
        return frames, tuple(spans)


@datasets.register("toy")
def load(
    root: Path,
    *,
    seed: int = 0,
    train: int = 30,
    test: int = 10,
    min_s: float = 7.0,
    max_s: float = 10.0,
    workers: int = 0,
) -> DatasetIndex:
    """Generated videos with sound, exact ground truth, no downloads; makes what is missing below ROOT.

    Args:
        root: the folder; made when it is not there.
        seed: of everything.
        train: videos per class in the training split.
        test: videos per class in the test split.
        min_s: shortest length in seconds, at least 6.
        max_s: longest length in seconds.
        workers: processes, 0 for one per core; the videos do not depend on it.

    Raises ValueError when `root` was made with other settings.
    """
    if train < 1 or test < 1 or not 6 <= min_s <= max_s:
        raise ValueError(f"toy needs train, test >= 1 and 6 <= min_s <= max_s, got {train}, {test}, {min_s}, {max_s}")
    settings = {"revision": REVISION, "seed": seed, "train": train, "test": test, "min_s": min_s, "max_s": max_s}
    _check_settings(root, settings)
    plans = [
        _Plan(seed, split, label, i, min_s, max_s)
        for split, count in (("train", train), ("test", test))
        for label in (0, 1)
        for i in range(count)
    ]
    missing = [p for p in plans if not _path(root, p).is_file()]
    for split in SPLITS:
        (root / "videos" / split).mkdir(parents=True, exist_ok=True)
    workers = min(workers or cores(), len(missing))
    if workers > 1:
        # spawn: a fork would copy the threads of whatever is imported
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(make, [root] * len(missing), missing))
    else:
        for plan in missing:
            make(root, plan)
    truth = {p.id: [asdict(e) for e in p.timing()[1]] for p in plans}
    write_text(root / "truth.json", json.dumps(truth, indent=1) + "\n")
    return DatasetIndex(tuple(_video(root, p) for p in plans))


def make(root: Path, plan: _Plan) -> None:
    """Renders and encodes one video."""
    frames, events = plan.timing()
    camera, acting, drawing, sounding = replace(plan, label=0).rng(1), plan.rng(2), plan.rng(3), plan.rng(4)
    place = toy_draw.make_place(camera, _SIZE)
    scenes, cues = toy_scene.act(place, events, int(camera.integers(3, 6)), frames, _FPS, acting)
    sound = toy_sound.play(cues, frames, _FPS, sounding)
    pictures = toy_draw.render(place, scenes, _FPS, drawing)
    write_video(_path(root, plan), pictures, _FPS, audio=sound, preset="ultrafast")


def _video(root: Path, plan: _Plan) -> Video:
    frames, events = plan.timing()
    kinds = tuple(dict.fromkeys(e.kind for e in events))
    shown = events if plan.split == "test" else ()  # supervision is weak: training videos have a label only
    return Video(plan.id, str(_path(root, plan)), plan.split, plan.label, kinds, frames, float(_FPS), shown)


def _path(root: Path, plan: _Plan) -> Path:
    return root / "videos" / plan.split / f"{plan.id}.mp4"


def _check_settings(root: Path, settings: dict[str, float]) -> None:
    file = root / "toy.json"
    if file.is_file():
        found = json.loads(file.read_text())
        if found != settings:
            key = next(k for k in {**settings, **found} if settings.get(k) != found.get(k))
            raise ValueError(
                f"{root} was generated with {key}={found.get(key)}, asked for {settings.get(key)}; use another --root"
            )
        return
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and no toy dataset; use another --root")
    root.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings, indent=1) + "\n")
