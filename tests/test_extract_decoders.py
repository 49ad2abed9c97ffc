"""Decoding in processes gives what decoding in a thread gives, clip by clip; processes may die, and leave nothing."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data import manifest
from data.types import FeatureSpec, Video
from extract import decoders
from extract.backbones import backbones
from extract.decoders import ProcessSource
from extract.runner import extract_all
from extract.sources import Clip, End, Source, ThreadSource
from extract.streams import Reading
from tests.helpers import ROOT, contents, write_numbered, write_small

SPEC = FeatureSpec(backbone="test", dim=1, weights="none", clip_len=4, stride=4)  # clips at the videos' own sizes
SIZES = [(48, 64), (96, 64), (48, 64), (160, 240), (64, 80)]  # clips of 36, 72, 36, 450 and 60 KiB
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")
SHM = "/dev/shm"  # noqa: S108  # looked at, not written to
MEMORY = 300 << 10  # holds eight clips of the first size, and not two of the largest


@pytest.fixture
def videos(tmp_path):
    made = [write_numbered(tmp_path / f"v{i}.mp4", 30 + 3 * i, *size, seed=i) for i, size in enumerate(SIZES)]
    return [Video(p.stem, str(p), "train", 0) for p in made]


def taking(videos):
    numbered = iter(enumerate(videos))
    return lambda: next(numbered, None)


def read(source: Source, *, held: int = 0, rng: random.Random | None = None) -> dict[int, list[object]]:
    """Everything, by video; each clip is looked at when it comes and again before its memory is given back."""
    found: dict[int, list[object]] = {}
    holding: list[tuple[Clip, np.ndarray]] = []
    rng = rng or random.Random(0)

    def let_go(count):
        while len(holding) > count:
            clip, seen = holding.pop(rng.randrange(len(holding)))
            np.testing.assert_array_equal(clip.data, seen)
            clip.release()

    try:
        while True:
            piece = source.get(wait=not holding)
            if piece is None and not holding:
                assert source.finished
                return found
            if piece is None:
                let_go(len(holding) - 1)
            elif isinstance(piece, Clip):
                found.setdefault(piece.number, []).append((piece.data.copy(), piece.fps))
                holding.append((piece, piece.data.copy()))
                let_go(held)
            else:
                found.setdefault(piece.number, []).append(str(piece.error) if piece.error else piece.facts)
    finally:
        source.close()


def test_processes_give_what_a_thread_gives(videos, tmp_path):
    """Clips of several sizes through a memory that holds few; what is too large goes through the pipe."""
    (tmp_path / "text.mp4").write_text("404 not found\n" * 50)
    both = [*videos, Video("text", str(tmp_path / "text.mp4"), "train", 0), Video("gone", "/gone.mp4", "train", 0)]
    wanted = read(ThreadSource(taking(both), SPEC, Reading(), 3))
    assert [len(wanted[i]) for i in range(len(both))] == [9, 10, 10, 11, 12, 1, 1]
    assert "not a video" in wanted[5][0]
    for processes, held in ((1, 3), (3, 0), (3, 7)):
        found = read(ProcessSource(taking(both), SPEC, Reading(), processes, MEMORY), held=held)
        assert set(found) == set(wanted)
        for number, pieces in wanted.items():
            assert found[number][-1] == pieces[-1]
            for ours, theirs in itertools.zip_longest(found[number][:-1], pieces[:-1]):
                np.testing.assert_array_equal(ours[0], theirs[0])
                assert ours[0].dtype == np.uint8
                assert ours[1] == theirs[1]


def test_ends_that_are_passed_on_and_no_videos_at_all(videos):
    def take():
        return partial(next, iter([End(0), (1, videos[0]), End(2), (3, videos[1]), End(4)]), None)

    for source in (ThreadSource(take(), SPEC, Reading(), 3), ProcessSource(take(), SPEC, Reading(), 2, MEMORY)):
        found = read(source)
        assert {number: len(pieces) for number, pieces in found.items()} == {0: 1, 1: 9, 2: 1, 3: 10, 4: 1}
        assert [found[number] for number in (0, 2, 4)] == [[None]] * 3
        assert source.get(wait=True) is None
    nothing: list[Video] = []
    assert read(ProcessSource(taking(nothing), SPEC, Reading(), 2, MEMORY)) == {}


def test_what_gives_the_videos_may_fail_here_too(videos):
    def take():
        raise OSError("the list is gone")

    with pytest.raises(OSError, match="the list is gone"):
        read(ProcessSource(take, SPEC, Reading(), 1, MEMORY))


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(c) for c in (task / "children").read_text().split()]
    return [c for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_decoder_killed_in_the_middle_costs_its_video_only(videos):
    """One that is killed while it has nothing to do costs none."""
    source = ProcessSource(taking(videos), SPEC, Reading(), 2, 100 << 10)  # so small that it waits for places
    found: dict[int, list[object]] = {}
    killed = None
    try:
        while (piece := source.get(wait=True)) is not None:
            if isinstance(piece, Clip):
                found.setdefault(piece.number, []).append(piece.data.copy())
                if killed is None and piece.number == 1:
                    (decoder,) = (d for d in source._decoders.values() if d.given and d.given[0] == 1)
                    killed = decoder.process.pid
                    os.kill(killed, signal.SIGKILL)
                piece.release()
            else:
                found.setdefault(piece.number, []).append(piece)
    finally:
        source.close()
    ends = {number: pieces[-1] for number, pieces in found.items()}
    assert {number for number, end in ends.items() if end.error} == {1}
    assert f"{videos[1].path}: its decoder died (exit code -9)" in str(ends[1].error)
    assert [len(found[n]) for n in (0, 2, 3, 4)] == [9, 10, 11, 12]
    assert len(found[1]) < 10


def test_a_decoder_killed_in_idleness_costs_nothing(videos):
    coming = threading.Event()
    numbered = iter(enumerate(videos))

    def take():
        number, video = next(numbered, (None, None))
        if number == 1:
            coming.wait(60)
        return None if number is None else (number, video)

    source = ProcessSource(take, SPEC, Reading(), 1, MEMORY)
    found: dict[int, int] = {}
    try:
        while (piece := source.get(wait=True)) is not None:
            if isinstance(piece, Clip):
                found[piece.number] = found.get(piece.number, 0) + 1
                piece.release()
                continue
            assert piece.error is None
            if piece.number == 0:  # the only process is idle, and in the hands of who waits for a video
                (decoder,) = source._decoders.values()
                os.kill(decoder.process.pid, signal.SIGKILL)
                decoder.process.join()
                assert source.get(wait=False) is None
                coming.set()
    finally:
        source.close()
    assert found == {0: 8, 1: 9, 2: 9, 3: 10, 4: 11}


def test_processes_that_cannot_start_are_said_and_not_tried_for_ever(videos, monkeypatch, capfd):
    monkeypatch.setattr(decoders, "_work", os.getpgid)  # called with what a decoder is given, it raises
    with pytest.raises(
        ChildProcessError, match=r"no decoding process can start \(exit code 1\); see its message above"
    ):
        read(ProcessSource(taking(videos), SPEC, Reading(), 1, MEMORY))
    assert "TypeError" in capfd.readouterr().err


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@LINUX
def test_nothing_is_left_when_a_source_is_closed_in_the_middle(videos):
    read(ProcessSource(taking(videos[:1]), SPEC, Reading(), 1, MEMORY))  # multiprocessing keeps a tracker of its own
    before = (threading.active_count(), open_files())
    source = ProcessSource(taking(videos), SPEC, Reading(), 2, MEMORY)
    kept = [source.get(wait=True) for _ in range(3)]
    pids = children()
    assert len(pids) >= 2
    for pid in (os.getpid(), *pids):  # no name at any time that could outlive them
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        assert not [line for line in lines if SHM in line and "/sem." not in line]  # locks of others are unlinked
    source.close()
    seen = kept[0].data.sum()  # who still holds a clip may still read it
    kept[0].release()
    assert kept[0].data.sum() == seen
    assert set(children()).isdisjoint(pids)
    del source, kept
    assert (threading.active_count(), open_files()) == before


# -- as workers use them -----------------------------------------------------------------------------------------------


PATIENT = """
import sys, time
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

if "pytest" not in sys.modules:
    backbones._loaded = True  # processes that need none of the other backbones start sooner

@backbones.register("patient")
class Patient(Backbone):
    '''Mean and deviation of a clip, after a while.'''

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="patient", dim=2, weights="none", resize="16x16:area")

    def extract(self, clips, fps):
        time.sleep(0.05)
        return np.stack([clips.mean((1, 2, 3, 4)), clips.std((1, 2, 3, 4))], 1)[:, None].astype(np.float32)
"""


@pytest.fixture
def patient(tmp_path):
    path = tmp_path / "patient.py"
    path.write_text(PATIENT)
    yield path
    backbones._items.pop("patient", None)


def test_decoders_change_no_byte_of_a_store(tmp_path, patient):
    videos = [write_small(tmp_path / f"v{i}.mp4", 30 + 45 * i, seed=i) for i in range(4)]
    rows = [Video(p.stem, str(p), "train", 0) for p in videos]
    extract_all(rows, tmp_path / "thread", "patient", workers=1, plugins=[patient])
    report = extract_all(rows, tmp_path / "processes", "patient", workers=1, decoders=2, batch=3, plugins=[patient])
    assert report.failures == {}
    assert contents(tmp_path / "processes") == contents(tmp_path / "thread")


def processes_of(group: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, theirs, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(theirs) == group and state != "Z":
                found.append(int(folder.name))
    return found


@LINUX
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_killed_command_leaves_no_process_and_no_memory(tmp_path, patient, whole_group):
    """The whole group at once, or the parent alone: its workers and their decoders end by themselves."""
    videos = [write_small(tmp_path / f"v{i}.mp4", 600, seed=i) for i in range(6)]
    manifest.write(tmp_path / "m.csv", [Video(p.stem, str(p), "train", 0) for p in videos])
    before = set(os.listdir(SHM))
    given = ("--backbone", "patient", "--plugin", patient, "--out", tmp_path / "s", "--workers", 2, "--decoders", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "mil", "extract", *map(str, (tmp_path / "m.csv", *given))],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    began = time.monotonic()
    # itself, multiprocessing's tracker, two workers, and a decoder of each
    while len(processes_of(process.pid)) < 6 and process.poll() is None:
        assert time.monotonic() - began < 600
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    while processes_of(process.pid):
        assert time.monotonic() - began < 900
        time.sleep(0.05)
    named = {name for name in set(os.listdir(SHM)) - before if name.startswith(("psm_", "pym-"))}
    assert named == set()
