"""The extraction loop: however clips meet in batches, each file holds its video's, and a bad video costs no other."""

import contextlib
import errno
import gc
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import extract.engine
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract.backbones import Backbone, create
from extract.engine import Engine, Outcome, Progress
from extract.runner import extract_all
from extract.sources import Clip, End, Source, ThreadSource
from extract.streams import Facts, Reading
from tests.helpers import ROOT, contents, write_small

DIM = 3
SPEC = FeatureSpec(backbone="lazy", dim=DIM, weights="none", clip_len=1, stride=1)  # a clip for every frame


def features_by_hand(clip: np.ndarray) -> list[float]:
    return [float(clip[0]) * 7 + d * float(clip[1]) for d in range(DIM)]


class Lazy(Backbone):
    """As a net on a GPU: several clips at once, and nothing is computed before the result is asked for."""

    uses_torch = False

    def __init__(
        self, batch: int = 4, faults: dict[tuple[int, int], str] | None = None, spec: FeatureSpec = SPEC
    ) -> None:
        self.spec, self.batch, self.faults = spec, batch, faults or {}
        self.batches: list[list[tuple[int, int]]] = []
        self.notes: list[str] = []

    def extract(self, clips, fps):
        return self.submit(list(clips), list(fps))()

    def submit(self, clips, fps):
        names = [(int(c[0]), int(c[1])) for c in clips]
        assert 1 <= len(clips) == len(fps) <= self.batch
        self.batches.append(names)
        kinds = {self.faults.get(name) for name in names}
        if "submit" in kinds:
            raise RuntimeError("does not go in")

        def result():
            if "result" in kinds:
                raise RuntimeError("does not come out")
            x = np.array([features_by_hand(c) for c in clips], np.float32)[:, None]
            for i, name in enumerate(names):
                if self.faults.get(name) == "nan":
                    x[i, 0, 1] = np.nan
            return x[:-1] if "few" in kinds else x

        return result

    def take_notes(self):
        notes, self.notes = self.notes, []
        return notes


class Scripted(Source):
    """Clips of several videos at once, in an order and with pauses that a list of numbers says."""

    def __init__(self, take, lengths, errors, at_once, choices):
        self.take, self.lengths, self.errors, self.at_once = take, lengths, errors, at_once
        self.choices = itertools.cycle(choices or [0])
        self.open: dict[int, tuple[int, int]] = {}  # number -> index of the video, next clip
        self.out: set[tuple[int, int]] = set()
        self.more, self.closed = True, False
        self.passed: list[End] = []

    def get(self, *, wait):
        choice = next(self.choices)
        if not wait and choice % 5 == 4:
            return None
        while self.more and len(self.open) < self.at_once:
            taken = self.take()
            if isinstance(taken, End):
                return taken
            self.more = taken is not None
            if taken is not None:
                self.open[taken[0]] = (int(taken[1].id), 0)
        if not self.open:
            return None
        number = sorted(self.open)[choice % len(self.open)]
        video, clip = self.open[number]
        if clip == self.lengths[video]:
            del self.open[number]
            failed = video in self.errors
            return End(number, error=ValueError("cannot be read")) if failed else End(number, Facts(clip, 25.0, 10))
        self.open[number] = (video, clip + 1)
        self.out.add((video, clip))
        return Clip(number, np.array([video, clip]), 25.0, lambda: self.out.remove((video, clip)))

    @property
    def finished(self):
        return not self.more and not self.open

    def close(self):
        self.closed = True


def videos_of(count: int) -> list[Video]:
    return [Video(str(i), f"/{i}.mp4", "train", 0) for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 6),
    at_once=st.integers(1, 4),
    choices=st.lists(st.integers(0, 100), max_size=30),
    faults=st.dictionaries(
        st.tuples(st.integers(0, 4), st.integers(0, 8)), st.sampled_from(["submit", "result", "nan"]), max_size=4
    ),
    errors=st.sets(st.integers(0, 4), max_size=1),
    there=st.sets(st.integers(0, 4), max_size=2),
)
def test_every_video_gets_its_own_clips_in_order_and_bad_ones_cost_no_other(
    tmp_path_factory, lengths, batch, at_once, choices, faults, errors, there
):
    root = tmp_path_factory.mktemp("engine")
    store, videos = FeatureStore(root, SPEC), videos_of(len(lengths))
    faults = {(v, c): kind for (v, c), kind in faults.items() if v < len(lengths) and c < lengths[v]}
    there = {i for i in there if i < len(lengths)}
    for i in there:
        store.path(str(i)).parent.mkdir(parents=True, exist_ok=True)
        store.path(str(i)).touch()
    backbone, sources = Lazy(batch, faults), []

    def source(take):
        sources.append(Scripted(take, lengths, errors, at_once, choices))
        return sources[-1]

    outcomes = {o.video_id: o for o in Engine(store, backbone, source, batch).run(iter(videos))}
    assert set(outcomes) == {v.id for v in videos}
    bad = ({v for v, _ in faults} | {e for e in errors if e < len(lengths)}) - there
    assert {int(i) for i, o in outcomes.items() if o.elsewhere} == there
    assert {int(i) for i, o in outcomes.items() if o.error} == bad
    said = {"submit": "does not go in", "result": "does not come out", "nan": "is nan; features must be finite"}
    for i in bad:
        kinds = [said[kind] for (v, _), kind in faults.items() if v == i] + ["cannot be read"] * (i in errors)
        assert any(kind in outcomes[str(i)].error for kind in kinds)
        assert not outcomes[str(i)].fatal
    for i in set(range(len(lengths))) - bad - there:
        wanted = [features_by_hand(np.array([i, c])) for c in range(lengths[i])]
        np.testing.assert_array_equal(store.read(str(i)).x[0], np.array(wanted, np.float32))
        assert outcomes[str(i)].frames == lengths[i]
    assert sources[0].closed
    assert sources[0].out == set()  # every clip's memory was given back
    for i in range(len(lengths)):  # and every claim
        with store.claim(str(i)) as mine:
            assert mine


def engine_of(root: Path, backbone: Lazy, lengths: list[int], **how) -> Engine:
    how = {"errors": set(), "at_once": 3, "choices": [0, 1, 2]} | how
    return Engine(FeatureStore(root, SPEC), backbone, lambda take: Scripted(take, lengths, **how), backbone.batch)


def test_batches_hold_clips_of_several_videos(tmp_path):
    """Or the property above shows nothing. A batch goes out unfilled only when nothing is there to fill it."""
    backbone = Lazy(4)
    list(engine_of(tmp_path, backbone, [6, 6, 6]).run(iter(videos_of(3))))
    assert max(len({video for video, _ in names}) for names in backbone.batches) == 3
    assert [len(names) for names in backbone.batches] == [4, 4, 4, 4, 2]


@pytest.mark.parametrize("kind", ["submit", "result", "few"])
def test_a_batch_that_fails_is_tried_clip_by_clip_in_order(tmp_path, kind):
    backbone = Lazy(4, {(0, 0): kind})
    outcomes = list(engine_of(tmp_path, backbone, [1, 9], at_once=2, choices=[0, 1, 1, 1]).run(iter(videos_of(2))))
    assert backbone.batches[0] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert {o.video_id for o in outcomes if o.error} == {"0"}
    wanted = [features_by_hand(np.array([1, c])) for c in range(9)]
    np.testing.assert_array_equal(FeatureStore(tmp_path).read("1").x[0], np.array(wanted, np.float32))


def test_two_batches_are_under_way_at_a_time_and_no_more(tmp_path):
    class Counting(Lazy):
        flying = most = 0

        def submit(self, clips, fps):
            self.flying += 1
            self.most = max(self.most, self.flying)
            result = super().submit(clips, fps)

            def counted():
                self.flying -= 1
                return result()

            return counted

    backbone = Counting(2)
    list(engine_of(tmp_path, backbone, [9, 9, 9]).run(iter(videos_of(3))))
    assert (backbone.most, backbone.flying) == (2, 0)


def test_a_backbone_that_gives_too_few_rows_is_named(tmp_path):
    backbone = Lazy(4, {(1, 2): "few"})
    outcomes = {o.video_id: o for o in engine_of(tmp_path, backbone, [5, 5, 5]).run(iter(videos_of(3)))}
    assert {i for i, o in outcomes.items() if o.error} == {"1"}
    assert "features of 0 clips from 1" in outcomes["1"].error


def test_notes_of_the_backbone_reach_a_video_that_lives(tmp_path):
    """Also when the first of the batch belongs to a video that has failed and is written off already."""

    class Noting(Lazy):
        def submit(self, clips, fps):
            result = super().submit(clips, fps)

            def noted():
                self.notes.append(f"batch {len(self.batches)}")
                return result()

            return noted

    backbone = Noting(2, {(0, 0): "nan"})
    outcomes = list(engine_of(tmp_path, backbone, [2, 7], errors={0}, choices=[0, 1]).run(iter(videos_of(2))))
    assert {o.video_id for o in outcomes if o.error} == {"0"}
    (lives,) = (o for o in outcomes if not o.error)
    assert len(lives.notes) >= 3


def test_a_source_that_loses_a_video_ends_the_run_with_its_name(tmp_path):
    class Losing(Scripted):
        def get(self, *, wait):
            piece = super().get(wait=wait)
            return self.get(wait=wait) if isinstance(piece, End) and piece.number == 1 else piece

    def source(take):
        return Losing(take, [3, 3], set(), 2, [0])

    with pytest.raises(RuntimeError, match="clips are missing of 0"):
        list(Engine(FeatureStore(tmp_path, SPEC), Lazy(), source, 4).run(iter(videos_of(2))))


def test_progress_of_a_long_video(tmp_path, monkeypatch):
    monkeypatch.setattr(extract.engine, "_SAY_EVERY_S", 0.0)
    messages = list(engine_of(tmp_path, Lazy(2), [9, 4], at_once=1).run(iter(videos_of(2))))
    said = [(m.video_id, m.clips, m.frames) for m in messages if isinstance(m, Progress)]
    assert said == [("0", n, n) for n in range(1, 10)] + [("1", n, n) for n in range(1, 5)]
    monkeypatch.setattr(extract.engine, "_SAY_EVERY_S", 60.0)
    again = engine_of(tmp_path / "again", Lazy(2), [9, 4]).run(iter(videos_of(2)))
    assert not any(isinstance(m, Progress) for m in again)


def test_progress_counts_frames_by_the_stride(tmp_path, monkeypatch):
    monkeypatch.setattr(extract.engine, "_SAY_EVERY_S", 0.0)
    video = Video("v", str(write_small(tmp_path / "v.mp4", 50)), "train", 0)
    said = [m for m in threaded(tmp_path / "s", Bright(2)).run(iter([video])) if isinstance(m, Progress)]
    assert [(m.clips, m.frames) for m in said] == [(1, 16), (2, 32), (3, 48), (4, 64)]


# -- with files, decoded in a thread -----------------------------------------------------------------------------------


class Bright(Lazy):
    """Mean and deviation of a clip, and its frame rate; lazily."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch, spec=FeatureSpec(backbone="bright", dim=DIM, weights="none", resize="16x16:area"))

    def submit(self, clips, fps):
        self.batches.append([(0, 0)] * len(clips))
        return lambda: np.stack([[[c.mean(), c.std(), rate]] for c, rate in zip(clips, fps, strict=True)]).astype("f4")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "v").mkdir()
    made = [write_small(tmp_path / "v" / f"v{i}.mp4", 18 + 40 * i, seed=i, fps=20 + i) for i in range(4)]
    return [Video(p.stem, str(p), "train", 0) for p in made]


def threaded(root: Path, backbone: Backbone, ahead: int = 8) -> Engine:
    spec = backbone.spec
    store = FeatureStore(root, spec)
    return Engine(store, backbone, lambda take: ThreadSource(take, spec, Reading(), ahead), backbone.batch)


def test_batches_and_order_change_no_byte(tmp_path, files):
    one = Bright(1)
    assert not [o for o in threaded(tmp_path / "one", one, ahead=1).run(iter(files)) if o.error]
    wanted = contents(tmp_path / "one")
    assert len(wanted) == 4
    assert {len(names) for names in one.batches} == {1}
    for batch in (3, 16):
        many = Bright(batch)
        list(threaded(tmp_path / str(batch), many, ahead=40).run(reversed(files)))
        assert contents(tmp_path / str(batch)) == wanted
        assert max(len(names) for names in many.batches) > 1


def test_what_gives_the_videos_may_fail(tmp_path, files):
    def broken():
        yield files[0]
        raise OSError("the list is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the list is gone"):
        list(threaded(tmp_path / "s", Bright(2)).run(broken()))
    assert threading.active_count() == before


def test_a_claim_that_cannot_be_made_is_that_videos_error(tmp_path, files, monkeypatch):
    real = FeatureStore.claim

    def claim(self, video_id):
        if video_id == "v1":
            raise PermissionError(errno.EACCES, "Permission denied", "locks/v1")
        return real(self, video_id)

    monkeypatch.setattr(FeatureStore, "claim", claim)
    outcomes = {o.video_id: o for o in threaded(tmp_path / "s", Bright(2)).run(iter(files))}
    assert {i for i, o in outcomes.items() if o.error} == {"v1"}
    assert "Permission denied" in outcomes["v1"].error


HOLD = """
import sys
from data.store import FeatureStore
with FeatureStore(sys.argv[1]).claim("v1") as mine:
    print(mine, flush=True)
    input()
"""


def test_a_video_that_another_process_has_is_left_to_it(tmp_path, files):
    """And is said at once, though the list of videos is not at its end: a worker's list comes piece by piece."""
    engine = threaded(tmp_path / "s", Bright(2))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "s")], cwd=ROOT, stdin=-1, stdout=-1, text=True
    )
    assert holder.stdout.readline() == "True\n"
    coming: queue.SimpleQueue[Video | None] = queue.SimpleQueue()
    found: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    run = engine.run(iter(coming.get, None))
    runs = threading.Thread(target=lambda: [found.put(outcome) for outcome in run], daemon=True)
    runs.start()
    for video in (files[1], files[0], files[1]):
        coming.put(video)
        outcome = found.get(timeout=300)
        assert (outcome.video_id, outcome.elsewhere, outcome.error) == (video.id, video is files[1], "")
    holder.communicate("\n")
    coming.put(files[1])
    outcome = found.get(timeout=300)
    assert (outcome.video_id, outcome.frames, outcome.elsewhere) == ("v1", 58, False)
    coming.put(None)
    runs.join(timeout=300)
    assert sorted(contents(tmp_path / "s")) == sorted(
        str(FeatureStore(tmp_path / "s").path(i).relative_to(tmp_path / "s")) for i in ("v0", "v1")
    )


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_is_given_up_leaves_no_thread_no_file_and_no_claim(tmp_path, files, after):
    engine = threaded(tmp_path / "s", Bright(2), ahead=2)
    gc.collect()
    before = (threading.active_count(), open_files())
    run = engine.run(iter(files))
    for _ in range(after):
        next(run)
    run.close()
    assert (threading.active_count(), open_files()) == before
    store = FeatureStore(tmp_path / "s")
    assert len(store.verify().good) >= after
    assert store.verify().bad == ()
    assert not list(store.root.rglob(".*.tmp"))
    for video in files:
        with store.claim(video.id) as mine:
            assert mine


def test_a_source_that_waits_for_videos_can_be_closed():
    """It does not wait for a video that never comes."""
    never: queue.SimpleQueue[Video] = queue.SimpleQueue()
    source = ThreadSource(lambda: (0, never.get()), SPEC, Reading(), 2)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 120
    with contextlib.suppress(ValueError):
        never.put(videos_of(1)[0])  # lets the thread go


# -- the disk is full --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_run_and_a_rerun_goes_on(tmp_path, files, workers):
    """A real limit on the size of files, in a process of its own: HDF5 reports it in ways of its own."""
    extract_all(files, tmp_path / "whole", "motion", workers=1)
    code = f"""
import resource, signal, sys
from pathlib import Path
import extract.backbones.motion
from data.types import Video
from extract.backbones import backbones
from extract.runner import extract_all
backbones._loaded = True  # neither this process nor its workers need the others: they start sooner
if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    videos = [Video(p.stem, str(p), "train", 0) for p in sorted(Path(sys.argv[1]).glob("*.mp4"))]
    try:
        extract_all(videos, Path(sys.argv[2]), "motion", workers={workers})
    except OSError as error:
        print("OSError:", error)
"""
    script = tmp_path / "limited.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "v"), str(tmp_path / "s")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert "OSError: " in done.stdout, done.stdout + done.stderr
    assert "no room for the features of v" in done.stdout
    assert "make room and repeat the command" in done.stdout
    assert contents(tmp_path / "s") == {}
    assert extract_all(files, tmp_path / "s", "motion", workers=1).failures == {}
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert not list((tmp_path / "s").rglob(".*.tmp"))


@pytest.mark.parametrize("where", ["write", "claim"])
def test_no_space_left_is_fatal_wherever_it_shows(tmp_path, files, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = extract_all(files, tmp_path / "whole", "motion", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, where, full)
        with pytest.raises(OSError, match=r"No space left on device: no room .*; 0 videos are done: make room"):
            extract_all(files, tmp_path / "s", "motion", workers=1)
    assert contents(tmp_path / "s") == {}
    assert not (tmp_path / "s" / "failures.jsonl").exists()  # the videos are not to blame
    assert extract_all(files, tmp_path / "s", "motion", workers=1).written == whole.written
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_no_space_left_for_the_spool_of_a_long_video_is_fatal(tmp_path, files, monkeypatch):
    monkeypatch.setattr("data.spool._IN_MEMORY", 64)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="no room for the features of v"):
        extract_all(files, tmp_path / "s", "motion", workers=1)
    assert contents(tmp_path / "s") == {}


def test_any_other_error_of_the_disk_is_that_videos_own(tmp_path, files, monkeypatch):
    real = FeatureStore.write

    def write(self, features):
        if features.video_id == "v2":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, features)

    monkeypatch.setattr(FeatureStore, "write", write)
    report = extract_all(files, tmp_path / "s", "motion", workers=1)
    assert list(report.failures) == ["v2"]
    assert len(report.written) == 3


def test_the_engine_gives_what_the_net_gives(tmp_path, files):
    """Against `extract` on clips cut by hand, for a net and for batches over several videos."""
    from extract.decode import VideoReader

    net = create("tiny")
    list(threaded(tmp_path / "s", net).run(iter(files)))
    for video in files:
        with VideoReader(video.path, resize=net.spec.resize, color=net.spec.color) as reader:
            frames = np.stack(list(reader))
        grid = net.spec.grid(len(frames))
        wanted = [net.extract(frames[grid.frame_indices(i)][None], np.array([25.0]))[0] for i in range(len(grid))]
        np.testing.assert_array_equal(FeatureStore(tmp_path / "s").read(video.id).x, np.stack(wanted, axis=1))
