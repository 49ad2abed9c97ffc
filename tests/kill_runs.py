"""Extractions killed again and again; `test_extract_kill.py` runs this in a process of its own, since it forks.

    python -m tests.kill_runs FOLDER SEED     FOLDER/videos/*.mp4 are there; prints counts as JSON, or fails

After every kill what is in the store must be whole and equal to what an undisturbed run wrote; after the last run there
must be every video and no stray file.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract.backbones import Backbone, backbones
from extract.runner import extract_all
from tests.helpers import contents

# tqdm's own lock is shared by forked processes: killed while it holds it, a child would stop all later ones for good
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())

# one forked run per call of each function, killed before it and after it
STAGES: list[tuple[object, str]] = [
    (os, "fsync"),
    (os, "replace"),
    (os, "link"),
    (os, "unlink"),
    (h5py.AttributeManager, "create"),
    (h5py.Group, "create_dataset"),
    (h5py.File, "close"),
]


@backbones.register("plain")
class Plain(Backbone):
    """Brightness of 4x4 blocks, mean and deviation over time."""

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="plain", dim=32, weights="none", resize="16x16:area", color="gray")

    def extract(self, clips, fps):
        blocks = clips.reshape(len(clips), 16, 4, 4, 4, 4).mean(axis=(3, 5), dtype=np.float32).reshape(-1, 16, 16)
        return np.concatenate([blocks.mean(1), blocks.std(1)], axis=1)[:, None]


def start(videos: list[Video], root: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """One extraction in a child process; its exit status is 0 when every video is there."""
    pid = os.fork()
    if pid:
        return pid
    status = 9
    try:
        prepare()
        status = int(bool(extract_all(videos, root, "plain", workers=1).failures))
    finally:
        os._exit(status)


def check(root: Path, wanted: dict[str, bytes]) -> int:
    """After a kill: everything under a final name is whole. Returns how many videos that is."""
    if not (root / "spec.json").exists():
        assert not contents(root)
        return 0
    report = FeatureStore(root).verify()
    assert report.bad == (), report.bad
    found = contents(root)
    assert all(wanted[name] == raw for name, raw in found.items())
    return len(found)


def finish(videos: list[Video], root: Path, wanted: dict[str, bytes]) -> None:
    """The last run: it completes, its bytes are those of an undisturbed run, and nothing else lies about."""
    _, status = os.waitpid(start(videos, root), 0)
    assert status == 0, status
    assert contents(root) == wanted
    strays = [str(p) for p in root.rglob("*") if p.is_file() and (p.name.startswith(".") or p.suffix == ".tmp")]
    assert strays == [], strays
    with h5py.File(root / "features.h5") as file:
        assert len(file["videos"]) == len(videos)


def random_kills(videos: list[Video], base: Path, wanted: dict[str, bytes], rng: random.Random) -> dict[str, int]:
    """Kills at random moments, up to three per store, until 24 have landed and 4 of them in the middle of the work."""
    began = time.monotonic()
    finish(videos, base / "timed", wanted)
    duration = time.monotonic() - began
    counts = {"kills": 0, "partial": 0}
    for number in range(100):
        root = base / f"random{number}"
        for _ in range(3):
            pid = start(videos, root)
            time.sleep(rng.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            done = check(root, wanted)
            counts["kills"] += os.WIFSIGNALED(status)
            counts["partial"] += os.WIFSIGNALED(status) and 0 < done < len(videos)
            if done == len(videos):
                duration *= 0.9  # too late; the speed of a shared machine changes, so the delays follow it
                break
        else:
            duration *= 1.1
        finish(videos, root, wanted)
        if counts["kills"] >= 24 and counts["partial"] >= 4:
            break
    return counts


def kill_at(owner: object, name: str, nth: int, *, after: bool) -> None:
    """Has the n-th call of a function kill this process, before or after its work."""
    real, calls = getattr(owner, name), [0]

    def lethal(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, lethal)


def staged_kills(videos: list[Video], base: Path, wanted: dict[str, bytes]) -> dict[str, int]:
    counts = {}
    for owner, name in STAGES:
        for nth in range(1, 100):
            killed = 0
            for after in (False, True):
                root = base / f"{name}{nth}{after}"
                pid = start(videos, root, lambda: kill_at(owner, name, nth, after=after))  # noqa: B023  # forked at once
                _, status = os.waitpid(pid, 0)
                assert os.WIFSIGNALED(status) or status == 0, status
                killed += os.WIFSIGNALED(status)
                check(root, wanted)
                if killed:
                    finish(videos, root, wanted)
            counts[name] = counts.get(name, 0) + killed
            if not killed:  # the run has fewer calls than that
                break
    return counts


def main() -> None:
    base, seed = Path(sys.argv[1]), int(sys.argv[2])
    videos = [Video(p.stem, str(p), "train", 0) for p in sorted((base / "videos").glob("*.mp4"))]
    extract_all(videos, base / "whole", "plain", workers=1)
    wanted = contents(base / "whole")
    assert len(wanted) == len(videos)
    counts = random_kills(videos, base, wanted, random.Random(seed))
    few = videos[:1]
    chosen = {str(FeatureStore(base / "whole").path(v.id).relative_to(base / "whole")) for v in few}
    staged = staged_kills(few, base / "staged", {n: raw for n, raw in wanted.items() if n in chosen})
    print(json.dumps({**counts, "staged": staged}))


if __name__ == "__main__":
    main()
