"""THE KILL TEST: extraction ended by SIGKILL at any moment leaves a good store; a rerun completes it to the byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from data import manifest
from data.store import FeatureStore
from data.types import Video
from extract.backbones import backbones
from extract.runner import extract_all
from tests.helpers import ROOT, contents, run_cli, write_small


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    made = [write_small(tmp_path / "videos" / f"v{i}.mp4", 20 + 12 * i, seed=i) for i in range(8)]
    return [Video(p.stem, str(p), "train", 0) for p in made]


def strays(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file() and (p.name.startswith(".") or p.suffix == ".tmp")]


def test_kills_at_random_moments_and_at_every_stage_of_writing(tmp_path, videos):
    """24 kills or more at random moments of the whole run, and one before and after every call that writes."""
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_runs", str(tmp_path), str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stderr[-4000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 20
    assert counts["partial"] >= 3, "the kills missed the middle of the run: this test shows nothing"
    # one video, the spec and the links: each of these calls was hit, before and after
    assert counts["staged"]["replace"] == 4
    assert counts["staged"]["link"] == 2
    assert counts["staged"]["fsync"] >= 10
    assert counts["staged"]["create_dataset"] == 2
    assert counts["staged"]["create"] >= 30


# -- the real command, with its workers -------------------------------------------------------------------------------


def workers_of(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except FileNotFoundError:
        return []


QUICK = """
import sys, time
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

if "pytest" not in sys.modules:
    backbones._loaded = True  # processes that need none of the other backbones start sooner

@backbones.register("quick")
class Quick(Backbone):
    '''Mean and deviation of a clip, at a pace at which it can be met.'''

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="quick", dim=2, weights="none", resize="16x16:area")

    def extract(self, clips, fps):
        time.sleep(0.05)
        return np.stack([clips.mean((1, 2, 3, 4)), clips.std((1, 2, 3, 4))], 1)[:, None].astype(np.float32)
"""


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.py"
    path.write_text(QUICK)
    yield path
    backbones._items.pop("quick", None)


def command(file: Path, root: Path, plugin: Path) -> list[str]:
    given = ["extract", file, "--backbone", "quick", "--plugin", plugin, "--out", root, "--workers", 2]
    return [str(word) for word in given]


def start(file: Path, root: Path, plugin: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mil", *command(file, root, plugin)],
        cwd=ROOT, start_new_session=True, stdout=-1, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(process: "subprocess.Popen[str]", condition, timeout_s: float = 300.0) -> None:
    began = time.monotonic()
    while not condition() and process.poll() is None:
        assert time.monotonic() - began < timeout_s
        time.sleep(0.002)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_the_command_killed_with_its_workers_and_by_one_worker(tmp_path, videos, quick):
    file, root = tmp_path / "m.csv", tmp_path / "store"
    manifest.write(file, videos)
    extract_all(videos, tmp_path / "whole", "quick", workers=1, plugins=[quick])
    wanted = contents(tmp_path / "whole")

    moments = [  # start-up of the workers; a file just written
        lambda p: len(workers_of(p.pid)) == 2,
        lambda _: len(contents(root)) >= 2,
    ]
    for moment in moments:
        process = start(file, root, quick)
        wait_for(process, lambda moment=moment, process=process: moment(process))
        time.sleep(random.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if (root / "spec.json").exists():
            assert FeatureStore(root).verify().bad == ()

    for path in list(root.glob("videos/*/*.h5"))[:-1]:  # work for the next run, whichever was done
        path.unlink()
    done = len(contents(root))
    process = start(file, root, quick)
    wait_for(process, lambda: len(contents(root)) > done)
    killed = workers_of(process.pid)[:1]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    missing = FeatureStore(root).missing(v.id for v in videos)
    assert FeatureStore(root).verify().bad == ()
    if process.returncode:  # it was at work: its video is named, and all others are there
        assert "its worker died (exit code -9)" in said
        assert len(missing) <= 1
    else:
        assert missing == []

    last = run_cli(*command(file, root, quick))
    assert last.returncode == 0, last.stderr
    assert contents(root) == wanted
    assert strays(root) == []
    assert FeatureStore(root).verify().good == tuple(sorted(v.id for v in videos))
    with h5py.File(root / "features.h5") as links:
        assert len(links["videos"]) == len(videos)
