"""A watched source: its clips' scores and events are those of the whole video, told as they happen."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.store import FeatureStore
from data.types import FeatureSpec, Video, VideoFeatures
from extract.backbones import Backbone, create
from extract.live import Ended, Gap, LiveClip
from mil import config as configs
from mil.config import EvalConfig
from mil.events import EventRule, find_events
from mil.online import OnlineScorer
from mil.protocol import smooth
from mil.rundir import RunDir
from mil.score import load
from mil.threshold import training_threshold
from mil.train import fit
from mil.watch import Watcher
from mil.watch_cli import Stop, until
from mil.watch_events import Alarm, EventWatch, SpanScores
from mil.watch_tell import Teller
from tests.helpers import write_small
from tests.kill_sweeps import forked
from tests.mil_helpers import call_wsvad
from tests.test_mil_scoring import items_of, model_of, score_items

FPS = 25.0
PLAIN = EvalConfig()
RULE = EventRule(high=0.5, low=0.4, min_s=1.0, merge_s=1.0)


class Echo(Backbone):
    """Features are what lies in the clip: (K, D)."""

    def __init__(self, spec):
        self.spec = spec

    def extract(self, clips, fps):
        assert fps.tolist() == [FPS]
        return clips.astype(np.float32)


def live_clips(spec, frames, data=None, first=0.0):
    """The clips of a video as a live source gives them, each ready when its last frame is shown."""
    spans = spec.grid(frames, fps=FPS).spans.tolist()
    data = data or [{}] * len(spans)
    return [LiveClip(i, a, b, a / FPS, b / FPS, data[i], FPS, first + b / FPS) for i, (a, b) in enumerate(spans)]


def specs_of(dims, **changes):
    return [FeatureSpec("test", dim, modality=name, **changes) for name, dim in dims.items()]


def of_clips(item):
    return [{name: x[:, i] for name, x in item.items()} for i in range(next(iter(item.values())).shape[1])]


def watcher_for(model, rule=RULE, clock=lambda: 0.0, rules=PLAIN, **options):
    specs = specs_of(model.dims)
    return Watcher(specs, [Echo(s) for s in specs], OnlineScorer(model, rules, **options), rule, {"run": "r"}, clock)


def all_of(watcher, pieces, reason="ended"):
    return [m for piece in pieces for m in watcher.push(piece)] + watcher.close(reason)


def of_type(messages, *kinds):
    return [m for m in messages if m["type"] in kinds]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 12),
    st.integers(1, 14),
    st.integers(1, 2),
    st.sampled_from(["repeat", "drop", "loop"]),
    st.sampled_from([None, 12.0, 24.0, 30.0]),
    st.randoms(use_true_random=False),
)
def test_frames_score_as_those_of_the_whole_video(frames, clip_len, stride, step, tail, rate, rng):
    """Whatever the clips: overlapping, with frames between them, resampled; but for frames behind the last clip."""
    assume(rate is None or clip_len * step >= rate / FPS)  # a clip that is shorter than a frame covers none in a grid
    spec = FeatureSpec("test", 3, clip_len=clip_len, stride=stride, step=step, tail=tail, fps=rate)
    grid = spec.grid(frames, fps=FPS)
    scores = np.array([rng.choice([0.1, 0.7, rng.random()]) for _ in range(len(grid))])
    spans = SpanScores(spec)
    found = [one for clip, s in zip(live_clips(spec, frames), scores, strict=True) for one in spans.push(clip, s)]
    assert not spans._kept or len(spans._kept) <= spec.grid(1).extent / stride + 2
    found += spans.close()
    assert all(a[1] == b[0] for a, b in pairwise(found)), "without a hole"
    row = np.concatenate([[s] * (round(b * FPS) - round(a * FPS)) for a, b, s in found])
    assert found[0][0] == 0.0
    assert len(row) == grid.spans[-1, 1]
    assert row == pytest.approx(grid.to_frames(scores)[: len(row)], abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 0.45, 0.6, 0.9]), min_size=1, max_size=25),
    st.sampled_from([0.0, 0.7, 1.5]),
    st.sampled_from([0.0, 0.7, 1.5]),
    st.sampled_from([8, 16]),
)
def test_events_are_those_of_the_whole_video_and_each_has_one_alarm_before(scores, min_s, merge_s, stride):
    spec = FeatureSpec("test", 3, stride=stride)
    frames = stride * (len(scores) - 1) + 16
    rule, grid = EventRule(0.5, 0.4, min_s, merge_s), spec.grid(frames)
    watch, found = EventWatch(rule, spec), []
    for clip, score in zip(live_clips(spec, frames), scores, strict=True):
        found += watch.push(clip, score)
    found += watch.close()
    alarms, events = ([one for one in found if isinstance(one, Alarm) == first] for first in (True, False))
    expected = find_events(grid.to_frames(np.array(scores)), np.arange(frames + 1) / FPS, rule)
    assert [(e.start_s, e.stop_s, e.peak) for e in events] == [
        pytest.approx((e.start_s, e.stop_s, e.peak)) for e in expected
    ]
    assert [a.span.start_s for a in alarms] == [e.start_s for e in events]
    for alarm, event in zip(alarms, events, strict=True):
        assert found.index(alarm) < found.index(event)
        assert alarm.span.stop_s <= event.stop_s
        assert alarm.span.stop_s - alarm.span.start_s >= min_s - 1e-6, "not before it is certain"


def test_an_alarm_comes_with_the_first_clip_that_makes_it_certain():
    spec, scores = FeatureSpec("test", 3), [0.1, 0.6, 0.9, 0.1, 0.1]
    for min_s, first in ((0.0, 1), (1.0, 2)):
        watch = EventWatch(EventRule(0.5, 0.5, min_s), spec)
        told = [watch.push(c, s) for c, s in zip(live_clips(spec, 80), scores, strict=True)]
        assert [i for i, one in enumerate(told) if any(isinstance(x, Alarm) for x in one)] == [first]


def test_clips_that_were_skipped_have_no_score_and_belong_to_no_event():
    spec = FeatureSpec("test", 3)
    clips = live_clips(spec, 160)
    watch = EventWatch(EventRule(0.5, 0.5), spec)
    for clip in (clips[0], clips[1], clips[5], clips[6]):
        found = watch.push(clip, 0.9)
    events = [one for one in [*found, *watch.close()] if not isinstance(one, Alarm)]
    assert [(e.start_s, e.stop_s) for e in events] == [(80 / FPS, 112 / FPS)]


@pytest.mark.parametrize("case", [("tcn_ibl", {}), ("transformer", {"window": 6, "delay": 2})])
@pytest.mark.parametrize("clips", [1, 3])
def test_a_watched_video_has_the_scores_of_the_series_and_says_them_in_order(case, clips):
    """Two modalities, five crops; a store of float16, to which features are rounded."""
    name, options = case
    model, rules = model_of(name), EvalConfig(smooth=clips)
    (item,) = items_of(model.dims, [11], crops=5)
    specs = specs_of(model.dims, dtype="float16")
    watcher = Watcher(specs, [Echo(s) for s in specs], OnlineScorer(model, rules, **options), RULE, {"run": "r"})
    rounded = {n: x.astype(np.float16).astype(np.float32) for n, x in item.items()}
    online, expected = OnlineScorer(model, rules, **options), []
    for clip in of_clips(rounded):
        expected += online.push(clip)
    expected += online.close()
    messages = all_of(watcher, [*live_clips(specs[0], 170, of_clips(item)), Ended(170)])
    first, *rest, last = messages
    delay = options.get("delay", 0) + clips // 2
    assert (first["type"], first["run"], first["delay_clips"]) == ("start", "r", delay)
    assert first["delay_s"] == delay * 16 / FPS
    told = of_type(rest, "clip")
    assert [(m["clip"], m["score"]) for m in told] == expected
    assert (
        [[m["start"], m["stop"]] for m in told]
        == specs[0].grid(170).spans.tolist()
        == [[round(m["start_s"] * FPS), round(m["stop_s"] * FPS)] for m in told]
    )
    assert (last["type"], last["clips"], last["frames"], last["reason"]) == ("end", 11, 170, "ended")
    assert json.loads(json.dumps(messages)) == messages
    if name == "tcn_ibl":
        whole = smooth(score_items(model, [rounded])[0], clips)
        assert [m["score"] for m in told] == pytest.approx(whole, abs=1e-6)


def test_latency_is_from_a_clips_own_end_and_computing_from_that_of_the_last_one_it_needs():
    model = model_of("transformer")
    now = [0.0]
    watcher = watcher_for(model, window=6, delay=2, clock=lambda: now[0])
    (item,) = items_of(model.dims, [6])
    found = []
    for clip in live_clips(watcher.specs[0], 96, of_clips(item)):
        now[0] = clip.ready + 0.25 + 0.01 * clip.index
        found += watcher.push(clip)
    now[0] += 1.0
    found += watcher.close()
    told = of_type(found, "clip")
    assert [m["compute_s"] for m in told] == pytest.approx([0.27, 0.28, 0.29, 0.3, 1.3, 1.3])
    assert [m["latency_s"] for m in told] == pytest.approx([1.55, 1.56, 1.57, 1.58, 1.94, 1.3])
    end = found[-1]
    assert end["latency_s"] == {"median": 1.565, "max": 1.94}
    assert end["compute_s"] == {"median": 0.295, "max": 1.3}


def test_behind_a_gap_everything_begins_anew():
    """Clips that waited are scored before it, an open event ends with it; what comes is as of a video of its own."""
    model = model_of("transformer")
    options = {"rules": EvalConfig(smooth=3), "window": 5, "delay": 1, "rule": EventRule(0.0, 0.0)}
    first, second = items_of(model.dims, [7, 5])
    apart = []
    for item, frames in ((first, 112), (second, 80)):
        watcher = watcher_for(model, **options)
        apart.append(all_of(watcher, live_clips(watcher.specs[0], frames, of_clips(item))))
    watcher = watcher_for(model, **options)
    spec = watcher.specs[0]
    found = all_of(
        watcher,
        [
            *live_clips(spec, 112, of_clips(first)),
            Gap("gone", 12.5),
            *live_clips(spec, 80, of_clips(second)),
            Ended(83),
        ],
    )
    plain = [{k: v for k, v in m.items() if k != "time"} for m in found]
    one, two = ([{k: v for k, v in m.items() if k != "time"} for m in part] for part in apart)
    assert len(of_type(one, "event")) == len(of_type(two, "event")) == 1
    assert plain[:-1] == [*one[:-1], {"type": "gap", "reason": "gone"}, *two[1:-1]]
    assert found[len(one) - 1]["time"] == 12.5
    counts = {"clips": 12, "frames": 112 + 83, "alarms": 2, "events": 2, "gaps": 1, "skipped": 0}
    assert {k: v for k, v in plain[-1].items() if k in counts} == counts


def test_skipped_clips_are_told_of_and_the_others_keep_their_numbers():
    model = model_of("transformer")
    watcher = watcher_for(model, window=5, delay=1)
    (item,) = items_of(model.dims, [8])
    clips = live_clips(watcher.specs[0], 128, of_clips(item))
    found = all_of(watcher, [clips[2], clips[3], clips[6], clips[7]])
    assert [m["clip"] for m in of_type(found, "clip")] == [2, 3, 6, 7]
    assert [(m["clips"], m["clip"]) for m in of_type(found, "skipped")] == [(2, 2), (2, 6)]
    assert found[-1]["skipped"] == 4
    assert found[-1]["frames"] == 128
    expected = []
    of_each = of_clips(item)
    for part in (of_each[2:4], of_each[6:8]):  # what lies apart is scored apart
        scorer = OnlineScorer(model, PLAIN, window=5, delay=1)
        for clip in part:
            expected += scorer.push(clip)
        expected += scorer.close()
    assert [m["score"] for m in of_type(found, "clip")] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_a_source_without_a_single_clip_ends_all_the_same():
    found = all_of(watcher_for(model_of("tcn_ibl")), [Gap("refused", 1.0), Ended(0)], "interrupted")
    assert [m["type"] for m in found] == ["start", "gap", "end"]
    assert (found[0]["delay_s"], found[0]["fps"]) == (None, None)
    assert (found[-1]["clips"], found[-1]["latency_s"], found[-1]["reason"]) == (0, None, "interrupted")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A causal run on features of `tiny`, of videos that nobody has; and a real video."""
    root = tmp_path_factory.mktemp("watch")
    store = FeatureStore(root / "features", create("tiny").spec)
    rng, videos = np.random.default_rng(0), []
    for i in range(8):
        x = rng.standard_normal((1, 6, 32)).astype(np.float32) * 0.1 + 0.3 * (i % 2)
        store.write(VideoFeatures(f"v{i}", x, store.spec.grid(96), FPS, store.spec.crops))
        videos.append(Video(f"v{i}", "", "train", i % 2, num_frames=96))
    overrides = ["head.channels=[8, 4]", "train.steps=6", "train.pairs=2", "evaluate.smooth=3"]
    config = configs.load("motion_tcn_ibl", overrides)
    made = RunDir.create(root / "run", config, videos, [store])
    fit(config, videos, [store], made)
    made.set_status("done")
    write_small(root / "video.mkv", 150)
    return made


@pytest.fixture
def pipe(tmp_path, run):
    """A named pipe that a video is written into, once."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write():
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes((run.root.parent / "video.mkv").read_bytes())

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield path
    thread.join(10)


def status_of(pid):
    """How a process ended; it has two minutes, on a busy machine, too."""
    for _ in range(6000):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("it does not end")


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_command_scores_a_pipe_as_the_file_is_scored(run, pipe, tmp_path):
    """Through decoding, features and the head; the recipe smooths, so that the last clips wait for the end."""
    video, log = run.root.parent / "video.mkv", tmp_path / "log.jsonl"
    log.write_text("kept\n")
    scored = load(run, online=True).score(video)
    rule = training_threshold(run, online=True).rule(min_s=0.5)
    for source, more in ((pipe, ["--log", log]), (video, [])):
        done = call_wsvad("watch", run.root, source, "--once", "--min-duration", "0.5", *more)
        assert done.exit_code == 0, done.stderr
        found = lines(done.stdout)
        told = of_type(found, "clip")
        assert [m["score"] for m in told] == pytest.approx(scored.clip_scores, abs=1e-6)
        assert [(m["start"], m["stop"]) for m in told] == [tuple(s) for s in scored.grid.spans.tolist()]
        assert [(m["start_s"], m["stop_s"]) for m in of_type(found, "event")] == [
            pytest.approx((e.start_s, e.stop_s)) for e in scored.events(rule)
        ]
        start, end = found[0], found[-1]
        said = ("tcn_ibl", True, 1, 16 / FPS, rule.high, True)
        names = ("head", "causal", "delay_clips", "delay_s", "threshold", "random_weights")
        assert tuple(start[n] for n in names) == said
        assert (end["type"], end["reason"], end["clips"], end["frames"]) == ("end", "ended", 10, 150)
        assert end["latency_s"]["max"] >= end["latency_s"]["median"] >= end["compute_s"]["median"] > 0
        assert "WARNING: random weights" in done.stderr
        if more:
            first, _, rest = log.read_text().partition("\n")
            assert first == "kept"
            assert lines(rest) == found


def test_text_is_for_people(run, caplog):
    with caplog.at_level("INFO"):
        done = call_wsvad("watch", run.root, run.root.parent / "video.mkv", "--once", "--text", "--threshold", "0")
    assert re.fullmatch(
        r"ALARM  from 0:00:00.0 on  score 0\.\d{3}, threshold 0\.000\n"
        r"event  0:00:00.0 to 0:00:06.0  highest score 0\.\d{3} at 0:00:0\d\.\d\n",
        done.stdout,
    )
    assert "start: tcn_ibl, " in caplog.text
    assert "scores come 0.64 s after a clip's end; events begin at 0.000 (given by the user)" in caplog.text
    assert re.search(
        r"end: ended, frames 150, clips 10, skipped 0, gaps 0, alarms 1, events 1, latency \d+\.\d\d s, at most",
        caplog.text,
    )
    assert not re.search(r"[{}\[\]]|None", caplog.text.partition("start: ")[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_the_last_line(run, pipe, tmp_path, number):
    """While it waits for the next one who writes into a pipe."""
    said = tmp_path / "said.jsonl"
    pid = forked(["watch", str(run.root), str(pipe)], said, errors=tmp_path / "errors.txt")
    while not said.is_file() or '"gap"' not in said.read_text():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), (tmp_path / "errors.txt").read_text()
        time.sleep(0.01)
    os.kill(pid, number)
    assert status_of(pid) == 0, (tmp_path / "errors.txt").read_text()
    found = lines(said.read_text())
    assert (found[-1]["type"], found[-1]["reason"]) == ("end", "interrupted")
    assert found[-1]["clips"] == len(of_type(found, "clip")) >= 10
    assert found[-1]["gaps"] == len(of_type(found, "gap")) >= 1


def test_it_ends_quietly_when_nobody_reads_any_more(run, pipe, tmp_path):
    out, errors = tmp_path / "out", tmp_path / "errors.txt"
    os.mkfifo(out)
    pid = forked(["--quiet", "watch", str(run.root), str(pipe)], out, errors=errors)
    with out.open() as file:
        assert [json.loads(file.readline())["type"] for _ in range(3)] == ["start", "clip", "clip"]
    assert status_of(pid) == 0
    assert "Traceback" not in errors.read_text()
    assert "Broken" not in errors.read_text()


def test_what_cannot_be_watched_is_refused_with_its_reason(run, tmp_path):
    video = run.root.parent / "video.mkv"
    for arguments, why in (
        ([tmp_path / "none.mkv"], "nothing there"),
        ([video, "--smooth", "2"], "--smooth must be odd"),
        ([video, "--window", "9"], "looks back on 4 clips"),
        ([video, "--rule", "val"], "kept no weights by val"),
        ([video, "--threshold", "0.2", "--low", "0.3"], "low must be at most high"),
    ):
        done = call_wsvad("watch", run.root, *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert why in done.stderr


def test_a_log_that_cannot_be_written_does_not_end_the_watch(caplog, capsys):
    with contextlib.closing(Teller(Path("/dev/full"), text=False)) as tell:
        tell([{"type": "clip"}, {"type": "end"}])
    assert [m["type"] for m in lines(capsys.readouterr().out)] == ["clip", "end"]
    assert caplog.text.count("--log cannot be written") == 1


def test_a_log_goes_on_in_a_line_of_its_own(tmp_path, caplog, capsys, monkeypatch):
    """Behind what a kill cut off, and when there is space again."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"type": "cl')
    with contextlib.closing(Teller(path, text=False)) as tell:
        tell([{"type": "start"}])
        whole = tell._file

        class Full:
            write = staticmethod(lambda data: whole.write(data[:7]))
            close = whole.close

        monkeypatch.setattr(tell, "_file", Full)
        tell([{"type": "clip"}])
        monkeypatch.setattr(tell, "_file", whole)
        tell([{"type": "end"}])
    assert path.read_text().splitlines() == ['{"type": "cl', '{"type": "start"}', '{"type"', '{"type": "end"}']
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert caplog.text.count("--log cannot be written (no space") == 1


def test_a_signal_right_before_waiting_is_not_lost():
    """It comes when nothing breaks in yet, and the source may stay silent for ever."""

    class Asked(Stop):
        def __setattr__(self, name, value):
            if name == "waiting" and value:
                self.ask(signal.SIGTERM, None)
            super().__setattr__(name, value)

    assert list(until(Asked(), iter(["piece"]))) == []
