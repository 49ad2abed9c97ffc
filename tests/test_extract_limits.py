"""What is finite: buffers of pipes, open files, a disk. Many clips, many videos and no room must stop nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data.spool import FeatureSpool
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract import workers
from extract.backbones import Backbone
from extract.decoders import ProcessSource
from extract.engine import Engine
from extract.runner import extract_all
from extract.sources import Clip, End, Source
from extract.streams import Facts, Reading
from extract.workers import Job, run_workers
from tests.helpers import ROOT, write_small

SPEC = FeatureSpec(backbone="test", dim=2, clip_len=1, stride=1, tail="drop")


class Zeros(Backbone):
    """Nothing, 2-d."""

    def __init__(self):
        self.spec = SPEC

    def extract(self, clips, fps):
        return np.zeros((len(clips), 1, 2), np.float32)


class Short(Source):
    """Videos of one clip each."""

    def __init__(self, take):
        self.take, self.number = take, 0

    finished = False

    def get(self, *, wait):
        if self.number:
            number, self.number = self.number, 0
            return End(number, Facts(1, 25.0, 1))
        taken = self.take()
        if taken is None or isinstance(taken, End):
            return taken
        self.number = taken[0]
        return Clip(self.number, np.zeros(1), 25.0, lambda: None)

    def close(self):
        pass


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def videos_of(count: int) -> list[Video]:
    return [Video(str(i), f"/{i}.mp4", "train", 0) for i in range(count)]


def test_more_small_clips_than_a_pipe_holds_messages(tmp_path):
    """4 KiB each, 65,536 in the shared memory: whoever takes them says 2000 times that one is free."""
    path = write_small(tmp_path / "v.mp4", 2000, preset="ultrafast")
    todo = iter([(1, Video("v", str(path), "train", 0))])
    source = ProcessSource(lambda: next(todo, None), SPEC, Reading(), 1)
    found = []

    def read():
        while (piece := source.get(wait=True)) is not None:
            found.append(piece)
            if isinstance(piece, Clip):
                piece.release()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=300)
    try:
        assert not reader.is_alive(), f"stuck after {len(found)} clips"
        assert len(found) == 2001
    finally:
        for decoder in source._decoders.values():  # also frees a reader that is stuck
            decoder.process.kill()
        reader.join(timeout=10)
        source.close()


def test_videos_that_others_did_meanwhile_hold_no_file_open(tmp_path):
    """A decoding process's taker runs through them far ahead of the loop."""
    store = FeatureStore(tmp_path / "s", SPEC)
    videos = videos_of(200)
    engine = Engine(store, Zeros(), Short, 1)
    assert len(list(engine.run(iter(videos)))) == 200
    todo = iter(videos)
    late = Engine(store, Zeros(), Short, 1)
    before = open_files()
    ends = [late._take(todo) for _ in videos]
    assert all(isinstance(end, End) for end in ends)
    assert open_files() <= before + 2
    late._drop_all()


def test_videos_do_not_pile_up_before_a_slow_disk(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path / "s", SPEC)
    before, most = open_files(), 0

    def slow(self, features):
        nonlocal most
        most = max(most, open_files() - before)
        time.sleep(0.005)

    monkeypatch.setattr(FeatureStore, "write", slow)
    outcomes = list(Engine(store, Zeros(), Short, 1).run(iter(videos_of(150))))
    assert [o.video_id for o in outcomes] == [str(i) for i in range(150)]
    assert not [o.error for o in outcomes if o.error]
    assert most < 40  # one lock for each video that waits


def test_a_spool_that_found_no_room_closes_in_silence(tmp_path):
    """In a process of its own, with a real limit on the size of files."""
    code = """
import resource, signal, sys
import numpy as np
from data.spool import FeatureSpool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (17 << 20, resource.RLIM_INFINITY))
spool = FeatureSpool(("full",), 1000, "float32", sys.argv[1])
try:
    while True:
        spool.append(np.zeros((1, 1, 1000), np.float32))
except OSError as error:
    print("append:", error)
spool.close()
print("closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "append: [Errno 27] File too large\nclosed\n", done.stderr


@pytest.mark.parametrize(("made", "hint"), [(1e5, "use --dtype float32"), (np.inf, "use bfloat16 or float32")])
def test_what_cannot_be_kept_says_who_made_it_so(made, hint):
    spool = FeatureSpool(("full",), 1, "float16")
    refused = pytest.raises(ValueError, match=f"is inf; features must be finite .*{hint}")
    with contextlib.closing(spool), refused:
        spool.append(np.full((1, 1, 1), made, np.float32))


def test_two_videos_of_one_id_are_refused(tmp_path):
    """The store would hold one of them, and nobody knows which."""
    with pytest.raises(ValueError, match="two videos have the id '1', and the store keeps one"):
        extract_all([*videos_of(3), Video("1", "/other.mp4", "train", 0)], tmp_path / "s", "motion")
    assert not (tmp_path / "s").exists()


def test_an_interrupt_while_workers_are_started_leaves_none(tmp_path, monkeypatch):
    started = []

    class Worker(workers._Worker):
        def __init__(self, job):
            if len(started) == 2:
                raise KeyboardInterrupt
            super().__init__(job)
            started.append(self.process)

    monkeypatch.setattr(workers, "_Worker", Worker)
    job = Job(str(tmp_path / "s"), "motion", {})
    with pytest.raises(KeyboardInterrupt):
        list(run_workers(videos_of(4), [job] * 4))
    assert [p.exitcode for p in started] == [-signal.SIGTERM] * 2
