"""Worker processes may die at any moment: no video is lost, none is done twice, and only one that kills is blamed."""

import os
import random
import signal
import threading
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import Video
from extract import workers
from extract.backbones import backbones
from extract.engine import Outcome
from extract.placing import planned
from extract.runner import extract_all
from extract.workers import Job, run_workers
from extract.worklist import Hands, WorkList
from tests.helpers import contents

MOODY = '''
import multiprocessing, os, signal, time
from pathlib import Path
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

HERE = Path(__file__).parent
WORKER = multiprocessing.parent_process() is not None
if WORKER:
    backbones._loaded = True  # no need of the other backbones here: starts sooner
if WORKER and (HERE / "unwell").exists():
    (HERE / f"tried{os.getpid()}").touch()
    if len(list(HERE.glob("tried*"))) <= int((HERE / "unwell").read_text()):
        raise RuntimeError("unwell today")

@backbones.register("moody")
class Moody(Backbone):
    """Brightness of a clip; a black one kills the process, a white one kills it once. Slow while it is hunted."""

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="moody", dim=1, weights="none", resize="8x8:area", color="gray")

    def extract(self, clips, fps):
        once = HERE / "killed"
        if clips.mean() < 3 or (clips.mean() > 250 and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3 if (HERE / "hunted").exists() else 0.03)
        return clips.mean((1, 2, 3)).reshape(-1, 1, 1).astype(np.float32)
'''


@pytest.fixture
def moody(tmp_path):
    path = tmp_path / "moody.py"
    path.write_text(MOODY)
    yield path
    backbones._items.pop("moody", None)


def even(path: Path, level: int, count: int = 20) -> Video:
    write_video(path, [np.full((32, 32, 3), level, np.uint8)] * count)
    return Video(path.stem, str(path), "train", 0)


def good(folder: Path, count: int) -> list[Video]:
    return [even(folder / f"good{i}.mp4", 60 + 5 * i) for i in range(count)]


def extract(videos, tmp_path, moody, name="s", **how):
    return extract_all(videos, tmp_path / name, "moody", plugins=[moody], **how)


# -- the rule ----------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 25),
    rooms=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    poison=st.sets(st.integers(0, 24), max_size=3),
    events=st.lists(st.integers(0, 10**6), max_size=80),
)
def test_every_video_is_through_once_and_only_one_that_kills_is_blamed(count, rooms, poison, events):
    """Workers that die at random with several videos in hand, against a tally kept by hand."""
    videos = [Video(str(i), f"/{i}.mp4", "train", 0) for i in range(count)]
    todo, workers = WorkList(videos), [Hands(room) for room in rooms]
    done: list[str] = []
    blamed: list[str] = []
    deaths = {str(i): 0 for i in range(count)}
    events = iter(events)
    while True:
        for hands in workers:
            before = set(hands.videos)
            new = todo.take(hands)
            assert {v.id for v in new} == set(hands.videos) - before
            assert len(hands.videos) <= (1 if hands.alone else hands.room)
        busy = [hands for hands in workers if hands.videos]
        if not busy:
            break
        event = next(events, 1)
        hands = busy[event % len(busy)]
        first = next(iter(hands.videos))
        chance = event % 7 == 0 and len(hands.videos) > 1
        if int(first) in poison or chance:
            for i in hands.videos:
                deaths[i] += 1
            blamed += [v.id for v in todo.bury(hands)]
            workers[workers.index(hands)] = Hands(hands.room)
        else:
            hands.videos.pop(first)
            done.append(first)
    assert len(todo) == 0
    assert sorted(done + blamed, key=int) == [v.id for v in videos]
    assert {int(i) for i in blamed} == {i for i in poison if i < count}
    assert all(deaths[i] >= 2 for i in blamed)


def test_suspects_wait_until_the_others_are_through_and_go_alone():
    videos = [Video(str(i), "", "train", 0) for i in range(5)]
    todo, first, second = WorkList(videos), Hands(2), Hands(3)
    assert [v.id for v in todo.take(first)] == ["0", "1"]
    assert todo.bury(first) == []
    assert [v.id for v in todo.take(second)] == ["2", "3", "4"]
    assert todo.take(second) == []
    second.videos.clear()
    assert [v.id for v in todo.take(second)] == ["0"]
    assert second.alone
    assert todo.take(second) == []
    assert [v.id for v in todo.bury(second)] == ["0"]
    third = Hands(3)
    todo.take(third)
    third.videos.clear()
    todo.suspect(videos[:1])
    assert [v.id for v in todo.rest()] == ["0"]
    assert len(todo) == 0


def test_what_a_worker_that_never_began_was_given_comes_first_again():
    todo, hands = WorkList([Video(str(i), "", "train", 0) for i in range(5)]), Hands(2)
    todo.take(hands)
    todo.give_back(hands)
    assert hands.videos == {}
    assert [v.id for v in todo.rest()] == ["0", "1", "2", "3", "4"]


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_once_costs_nothing(tmp_path, moody):
    """Its videos, done or not, are done again; nobody is blamed for one death."""
    videos = good(tmp_path, 6)
    videos.insert(2, even(tmp_path / "white.mp4", 255))
    report = extract(videos, tmp_path, moody, workers=2)
    assert report.failures == {}
    assert (tmp_path / "killed").exists()
    assert sorted(report.written + report.present) == sorted(v.id for v in videos)
    extract(videos, tmp_path, moody, "whole", workers=1)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("decoders", [0, 1])
def test_one_that_kills_each_time_is_named_and_the_others_done(tmp_path, moody, decoders, caplog):
    """Also where there are several of them, and where they have processes of their own to decode."""
    bad = ["black", "dark"][: 2 - decoders]
    videos = [*good(tmp_path, 5), *(even(tmp_path / f"{name}.mp4", 0) for name in bad)]
    report = extract(videos, tmp_path, moody, workers=2, decoders=decoders)
    assert report.failures == {
        name: f"{tmp_path / name}.mp4: its worker died (exit code -9); out of memory? --workers 1" for name in bad
    }
    assert sorted(FeatureStore(tmp_path / "s").verify().good) == [f"good{i}" for i in range(5)]
    assert any("a worker died (exit code -9): its " in line for line in caplog.messages)


def test_workers_that_are_killed_from_outside_at_random(tmp_path, moody, monkeypatch):
    """At work, mostly, and while they start; the pool ends with every video done or named."""
    videos = good(tmp_path, 30)
    rng = random.Random(seed := random.randrange(10**6))
    alive: list[workers._Worker] = []

    class Watched(workers._Worker):
        def __init__(self, job):
            super().__init__(job)
            alive.append(self)

    monkeypatch.setattr(workers, "_Worker", Watched)
    over = threading.Event()
    kills = []
    hunted = tmp_path / "hunted"
    hunted.touch()

    def killer():
        while not over.wait(rng.uniform(0.0, 0.3)) and len(kills) < 6:
            running = [w for w in alive if w.process.exitcode is None and (w.ready or rng.random() < 0.02)]
            if running:
                worker = rng.choice(running)
                os.kill(worker.process.pid, signal.SIGKILL)
                kills.append(worker.ready)
                if sum(kills) >= 2:
                    hunted.unlink(missing_ok=True)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        report = extract(videos, tmp_path, moody, workers=3)
    finally:
        over.set()
        thread.join()
        hunted.unlink(missing_ok=True)
    assert sorted([*report.written, *report.present, *report.failures]) == sorted(v.id for v in videos), seed
    assert all("died (exit code -9)" in e or "could start (exit code -9)" in e for e in report.failures.values()), seed
    assert FeatureStore(tmp_path / "s").verify().bad == ()
    assert sum(kills) >= 2, "no worker was killed at work: this test shows nothing"
    assert all(worker.process.exitcode is not None for worker in alive)
    again = extract(videos, tmp_path, moody, workers=1)
    assert again.failures == {}
    extract(videos, tmp_path, moody, "whole", workers=1)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_workers_that_never_start_are_said_for_every_video(tmp_path, moody, capfd):
    (tmp_path / "unwell").write_text("99")
    videos = good(tmp_path, 5)
    report = extract(videos, tmp_path, moody, workers=2)
    reason = "no worker process could start (exit code 1); see its message above"
    assert report.failures == {v.id: reason for v in videos}
    assert "unwell today" in capfd.readouterr().err
    assert len(list(tmp_path.glob("tried*"))) == 4  # two, and one in the place of each until three have failed in a row


def test_a_worker_that_fails_to_start_is_replaced(tmp_path, moody):
    (tmp_path / "unwell").write_text("2")
    videos = good(tmp_path, 5)
    report = extract(videos, tmp_path, moody, workers=2)
    assert sorted(report.written) == sorted(v.id for v in videos)


def test_nothing_to_do_starts_no_process(tmp_path, moody, monkeypatch):
    videos = good(tmp_path, 2)
    extract(videos, tmp_path, moody, workers=1)
    monkeypatch.setattr(workers, "_Worker", None)  # a start would fail
    for how in ({}, {"workers": 2}):
        assert extract(videos, tmp_path, moody, **how).present == [v.id for v in videos]


def test_more_workers_than_videos(tmp_path, moody):
    job = Job(str(tmp_path), "moody", {}, plugins=(str(moody),))
    from data.registry import load_plugin

    load_plugin(moody)
    assert len(planned(job, 8, None, 3)) == 3
    assert len(planned(job, 2, None, 3)) == 2
    assert len(planned(job, 0, None, 0)) == 1


def test_a_run_that_is_given_up_ends_its_workers(tmp_path, moody, monkeypatch):
    from data.registry import load_plugin
    from extract.backbones import create

    videos = good(tmp_path, 8)
    load_plugin(moody)
    FeatureStore(tmp_path / "s", create("moody").spec)
    started = []

    class Watched(workers._Worker):
        def __init__(self, job):
            super().__init__(job)
            started.append(self.process)

    monkeypatch.setattr(workers, "_Worker", Watched)
    run = run_workers(videos, [Job(str(tmp_path / "s"), "moody", {}, plugins=(str(moody),))] * 2)
    assert isinstance(next(run), Outcome)
    run.close()
    assert [p.exitcode for p in started] == [-15, -15]
    assert FeatureStore(tmp_path / "s").verify().bad == ()


def test_giving_to_a_worker_that_just_died_is_no_error():
    """That it died is found out when it is listened to, also where it left messages unread."""
    for unread in (False, True):
        ours, theirs = Pipe()
        if unread:
            ours.send("a video")
        theirs.close()
        workers._Worker.give(SimpleNamespace(pipe=ours), Video("v", "", "train", 0))
        with pytest.raises((EOFError, ConnectionResetError)):
            ours.recv()
        ours.close()


def test_a_workers_process_ends_when_its_parent_has_gone(tmp_path, moody):
    """It finishes the video in hand, writes it, and finds nobody to tell."""
    from data.registry import load_plugin
    from extract.backbones import create

    load_plugin(moody)
    FeatureStore(tmp_path / "s", create("moody").spec)
    worker = workers._Worker(Job(str(tmp_path / "s"), "moody", {}, plugins=(str(moody),)))
    assert worker.pipe.recv() is None
    for video in good(tmp_path, 3):
        worker.give(video)
    assert worker.pipe.recv().video_id == "good0"
    worker.pipe.close()
    worker.process.join(300)
    assert worker.process.exitcode == 0
    assert FeatureStore(tmp_path / "s").verify().bad == ()
    worker.process.close()
