"""Training: sees training videos and video labels alone, gives the same bytes again, and survives being killed."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data import manifest
from data.types import SpecMismatchError, Video
from mil import checkpoint, loop, selection
from mil import train as training
from mil.evaluate import evaluate_run
from mil.model import Model
from mil.optimistic import optimistic_look
from mil.run import resume_run, start_run
from mil.rundir import RunDir, RunError
from mil.train import TrainError, fit, load_videos
from mil.train_cli import describe
from tests.mil_helpers import make_world, metrics_lines, small_config, without_events

SETUPS = {
    "adam": [],
    "adagrad": ["train.optimizer.name=adagrad", "train.optimizer.weight_decay=0"],
    "sgd": ["train.optimizer.name=sgd", "train.optimizer.momentum=0.9", "train.noise=0.1"],
    "adamw-cosine-clip": ["train.optimizer.name=adamw", "train.lr_schedule=cosine", "train.clip_norm=0.5"],
    "ema": ["train.ema=0.9"],
    "all-ema": ["select.also=[val, test]", "select.fraction=0.4", "select.every=2", "train.ema=0.9"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("train"), train=6, test=2, shift=1.0)


@pytest.fixture
def out(world, request):
    """Makes runs of this test's own in the shared world."""

    def create(name, config):
        return world.run(f"{request.node.name}-{name}".replace("/", "_"), config)

    return create


def results(run):
    """Everything a finished run computed, as bytes; every rule has weights of its own."""
    files = [run.root / "metrics.jsonl", *(run.root / "checkpoints").iterdir()]
    found = {str(path.relative_to(run.root)): path.read_bytes() for path in files}
    rules = run.config.select.rules
    assert found.keys() == {
        "metrics.jsonl",
        *(f"checkpoints/{r}.{end}" for r in rules for end in ("json", "safetensors")),
    }
    return found


def train(world, out, name, *overrides, videos=None, **top):
    config = small_config(*overrides, **top)
    run = out(name, config)
    go_on(world, run, videos, resume=False)
    return run


def go_on(world, run, videos=None, *, resume=True):
    config = run.config
    observer = optimistic_look(config, world.test, world.stores) if "test" in config.select.rules else None
    fit(config, world.train if videos is None else videos, world.stores, run, resume=resume, observer=observer)


# -- what it may see --------------------------------------------------------------------------------------------------


def test_a_test_video_among_the_training_videos_is_refused(world, out):
    with pytest.raises(TrainError, match=f"'{world.test[1].id}' is of the test split"):
        train(world, out, "a", videos=[*world.train, world.test[1]])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_refused_with_both_counts(world, out, label):
    videos = [v for v in world.train if v.label == label]
    counts = "6 normal and 0 anomalous" if label == 0 else "0 normal and 6 anomalous"
    with pytest.raises(TrainError, match=counts):
        train(world, out, "a", videos=videos)


def test_events_of_training_videos_change_no_byte(world, out):
    with_events = train(world, out, "with", *SETUPS["all-ema"])
    assert any(v.events for v in world.train)
    without = train(world, out, "without", *SETUPS["all-ema"], videos=without_events(world.train))
    assert results(with_events) == results(without)


def test_no_feature_of_a_test_video_and_no_frame_label_is_read(tmp_path, monkeypatch):
    world = make_world(tmp_path, train=3, test=2)

    def forbidden(self):
        raise AssertionError(f"frame labels of {self.id} were looked at during training")

    monkeypatch.setattr(Video, "frame_labels", forbidden)
    for video in world.test:
        world.stores[0].path(video.id).unlink()
    small = ["head.hidden=[16, 8]", "train.steps=4", "select.also=[val]", "select.every=2"]
    run, _ = start_run("motion_ranking", small, world.manifest, [world.stores[0].root], tmp_path / "run")
    assert run.status["state"] == "done"


def test_other_test_videos_change_no_byte(tmp_path):
    runs = []
    for i, seed in enumerate((1, 2)):
        (tmp_path / str(i)).mkdir()
        world = make_world(tmp_path / str(i), train=3, test=2, test_seed=seed)
        start_run(
            "motion_ranking",
            ["head.hidden=[16, 8]", "train.steps=6"],
            world.manifest,
            [world.stores[0].root],
            tmp_path / str(i) / "run",
        )
        runs.append(results(RunDir(tmp_path / str(i) / "run")))
    assert runs[0]["metrics.jsonl"] == runs[1]["metrics.jsonl"]
    assert runs[0]["checkpoints/last.safetensors"] == runs[1]["checkpoints/last.safetensors"]


# -- same seed, same bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", sorted(SETUPS))
def test_same_seed_same_bytes_other_seed_other_bytes(world, out, setup):
    one = results(train(world, out, "one", *SETUPS[setup], seed=3))
    torch.rand(5)  # whatever the process drew before
    assert results(train(world, out, "two", *SETUPS[setup], seed=3)) == one
    other = results(train(world, out, "other", *SETUPS[setup], seed=4))
    assert all(other[name] != one[name] for name in one if name.endswith(".safetensors"))


class _Counted:
    """Calls the real thing and raises KeyboardInterrupt at the n-th call, before or after it is done."""

    def __init__(self, real, at, *, before):
        self.real, self.at, self.before, self.calls = real, at, before, 0

    def __get__(self, instance, owner):
        return lambda *a, **k: self(instance, *a, **k)

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at and self.before:
            raise KeyboardInterrupt
        found = self.real(*args, **options)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return found


PLACES = {
    "in the middle of an update": (torch.optim.Optimizer, "zero_grad", False, (2, 8)),
    "between update and count": (loop.Loop, "update", False, (1, 7)),
    "before the log line": (RunDir, "log", True, (1, 5)),
    "after the log line": (RunDir, "log", False, (2, 6)),
    "while looking": (selection, "roc_auc_score", False, (1, 3)),
    "between looks": (selection.Selection, "look", False, (3, 6)),
    "before saving": (loop.Loop, "save", True, (1, 2)),
    "while saving": (checkpoint, "save", False, (1, 2)),
}


@pytest.fixture(scope="module")
def straight(world):
    """What an uninterrupted run of a setup computes; each is trained once."""

    @cache
    def of(setup):
        config = small_config(*SETUPS[setup], "train.save_every=5")
        run = world.run(f"straight-{setup}", config)
        go_on(world, run, resume=False)
        return config, results(run)

    return of


@pytest.mark.parametrize(
    ("setup", "place"), [(s, p) for s in ("adam", "all-ema") for p in PLACES if s == "all-ema" or "look" not in p]
)
def test_ctrl_c_anywhere_and_resume_equals_an_uninterrupted_run(world, out, straight, monkeypatch, setup, place):
    config, expected = straight(setup)
    owner, name, before, calls = PLACES[place]
    for at in calls if setup == "adam" else calls[1:]:
        run = out(f"cut{at}", config)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _Counted(getattr(owner, name), at, before=before))
            with pytest.raises(KeyboardInterrupt):
                go_on(world, run, resume=False)
        assert run.status["state"] == "interrupted"
        for path in (run.root / "checkpoints").glob("*.json"):
            assert "unfinished" in checkpoint.load(path.with_suffix("")).selected_by
        go_on(world, run)
        assert results(run) == expected, f"interrupted {place}, {name} call {at}"
        assert run.status["state"] == "done"


# A process that forks workers; each is killed for real at the n-th call of something, the last one may finish.
KILLER = """
import json, os, signal, sys
from pathlib import Path
import torch
from mil import checkpoint, rundir, train
from mil.run import resume_run, start_run

root, store, setups = json.loads(sys.argv[1])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(owner, name, count, how):
    real, calls = getattr(owner, name), [0]
    def wrapped(*args, **options):
        calls[0] += 1
        if calls[0] == count and how == "torn":
            Path(args[1]).write_bytes(b"PK half a file")
            die()
        found = real(*args, **options) if how != "before" or calls[0] != count else die()
        return die() if calls[0] == count else found
    setattr(owner, name, wrapped)

OWNERS = {"torch": torch, "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad,
          "run": rundir.RunDir, "checkpoint": checkpoint, "train": train}

# torch imports much at the first step of an optimizer: once here, not in every worker
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.zeros(1)
for kind in (torch.optim.Adam, torch.optim.Adagrad):
    kind([weight]).step()

def go(out, overrides):
    if (out / "config.yaml").is_file():
        resume_run("motion_ranking", out)
    else:
        start_run("motion_ranking", overrides, Path(root) / "videos.csv", [Path(store)], out)

for setup, (overrides, sites) in setups.items():
    out = Path(root) / f"killed-{setup}"
    for number, (owner, name, count, how) in enumerate(sites):
        pid = os.fork()
        if pid == 0:
            kill_at(OWNERS[owner], name, count, how)
            go(out, overrides)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{setup}: worker {number} was not killed at {name}: status {status}")
    if os.fork() == 0:  # torch may not fork again after a backward pass
        go(out, overrides)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{setup}: the last worker failed")
"""


def test_sigkill_and_resume_equals_an_uninterrupted_run(world, tmp_path):
    small = ["head.hidden=[16, 8]", "train.steps=12", "train.pairs=4", "data.count=8", "train.log_every=2"]
    rng = np.random.default_rng(0)
    setups = {}
    for setup in ("adagrad", "all-ema"):  # all-ema is of adam
        optimizer = "adagrad" if setup == "adagrad" else "adam"
        sites = [
            (optimizer, "step", int(rng.integers(1, 4)), "after"),  # before anything was saved
            ("torch", "save", 2, "torn"),  # half of resume.pt is on disk, under its temporary name
            ("run", "log", int(rng.integers(1, 3)), "after"),  # a line that will be made again
            (optimizer, "step", int(rng.integers(1, 6)), "before"),
            ("checkpoint", "save_file", 2 if setup == "all-ema" else 1, "after"),  # weights without their JSON
            ("checkpoint", "save", 1, "after"),  # finished, but nobody wrote down that it is
        ]
        setups[setup] = [*small, *SETUPS[setup], "train.save_every=3"], sites
    manifest.write(tmp_path / "videos.csv", world.videos)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps([str(tmp_path), str(world.stores[0].root), setups])],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(training.__file__).parents[1],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for setup, (overrides, _) in setups.items():
        whole = tmp_path / setup
        start_run("motion_ranking", overrides, world.manifest, [world.stores[0].root], whole)
        killed = RunDir(tmp_path / f"killed-{setup}")
        assert killed.status["state"] == "done"
        assert results(killed) == results(RunDir(whole)), setup


def test_a_run_that_was_killed_before_its_first_state_starts_again(world, out):
    expected = results(train(world, out, "whole"))
    config = small_config()
    run = out("new", config)
    run.log(step=2, lr=1.0, **{"loss/total": 9.0})  # of the dead run
    go_on(world, run)
    assert results(run) == expected


def test_a_torn_last_line_of_the_metrics_does_not_stop_a_resume(world, out, monkeypatch):
    expected = results(train(world, out, "whole", "train.save_every=5"))
    config = small_config("train.save_every=5")
    run = out("torn", config)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "save", _Counted(loop.Loop.save, 1, before=False))
        with pytest.raises(KeyboardInterrupt):
            fit(config, world.train, world.stores, run)
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lr": 0.0')
    go_on(world, run)
    assert results(run) == expected


# -- resume by command ------------------------------------------------------------------------------------------------


def start(world, path, *overrides, **options):
    small = ["head.hidden=[16, 8]", "train.steps=6", "train.save_every=2", *overrides]
    return start_run("motion_ranking", small, world.manifest, [s.root for s in world.stores], path, **options)


def test_a_finished_run_is_not_resumed_and_no_run_is_overwritten(world, tmp_path):
    start(world, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=r"is done .*now: wsvad eval"):
        resume_run("motion_ranking", tmp_path / "run")
    with pytest.raises(RunError, match="of recipe 'motion_ranking', not 'deepmil'"):
        resume_run("deepmil", tmp_path / "run")
    with pytest.raises(RunError, match="exists and is never overwritten"):
        start(world, tmp_path / "run")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="no run at"):
        resume_run("motion_ranking", tmp_path / "nothing")


def test_two_processes_never_train_one_run(world, tmp_path, monkeypatch):
    """A job that is queued again while it runs would write over its own files."""
    run, seen = tmp_path / "run", []
    real = loop.Loop.update

    def update(self, step):
        if step == 2:
            with pytest.raises(RunError, match=r"another process is training .*run"):
                resume_run("motion_ranking", run)
            seen.append(step)
        return real(self, step)

    monkeypatch.setattr(loop.Loop, "update", update)
    start(world, run)
    assert seen == [2]
    assert RunDir(run).status["state"] == "done"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_already_is_never_overwritten(world, tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "file":
        place.write_text("notes")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("notes")
    with pytest.raises(RunError, match="exists and is never overwritten"):
        start(world, place)
    assert (place if kind == "file" else place / "notes.txt").read_text() == "notes"


def pressed(monkeypatch, *signals):
    """Every run in the block gets those signals in its fourth step."""
    update = loop.Loop.update

    def press(loop, step):
        if step == 4:
            for number in signals:
                os.kill(os.getpid(), number)
        return update(loop, step)

    monkeypatch.setattr(loop.Loop, "update", press)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_at_the_end_of_its_step_and_resume_gives_the_same_bytes(
    world, tmp_path, monkeypatch, number
):
    """SIGTERM is how a queue takes a machine away."""
    overrides = ["train.save_every=100", *SETUPS["all-ema"]]
    whole, _ = start(world, tmp_path / "whole", *overrides)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        pressed(patch, number)
        with pytest.raises(KeyboardInterrupt):
            start(world, tmp_path / "run", *overrides)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] == 4
    run = RunDir(tmp_path / "run")
    assert (run.status["state"], run.status["step"]) == ("interrupted", 4)
    kept = checkpoint.load(run.checkpoint)
    assert (kept.step, kept.selected_by.split(";")[0]) == (4, "step 4 of 6, unfinished, weights averaged (EMA 0.9)")
    assert "step 2 of 4, unfinished: 6 planned" in checkpoint.load(run.checkpoint_of("val")).selected_by
    resume_run("motion_ranking", run.root)
    assert results(run) == results(whole)


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("signals", "together_s", "saved"),
    [
        ((INT, INT), 10, False),
        ((TERM, INT), 10, True),
        ((INT, TERM), 10, True),
        ((TERM, TERM), 10, True),
        ((INT, TERM, INT), 10, False),
        ((TERM, INT), 0, False),
        ((INT, TERM), 0, False),
    ],
)
def test_signals_that_come_together_are_one_but_a_second_ctrl_c_stops_a_step(
    world, tmp_path, monkeypatch, signals, together_s, saved
):
    """A queue that stops a job, and what it started, may send both; one that comes late means it."""
    monkeypatch.setattr("mil.interrupt._SAME_S", together_s)
    before = signal.signal(TERM, signal.default_int_handler)
    try:
        pressed(monkeypatch, *signals)
        with pytest.raises(KeyboardInterrupt):
            start(world, tmp_path / "run", "train.save_every=100")
    finally:
        signal.signal(TERM, before)
    assert RunDir(tmp_path / "run").status == {"state": "interrupted", "step": 4 if saved else 3}
    assert (tmp_path / "run" / "resume.pt").exists() == saved


def test_what_a_process_ignores_stays_ignored(world, tmp_path, monkeypatch):
    """As under nohup: the run goes on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pressed(monkeypatch, signal.SIGINT)
        run, _ = start(world, tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.status["state"] == "done"


def test_a_state_of_another_wsvad_is_not_gone_on_with(world, tmp_path):
    run, _ = start(world, tmp_path / "run")
    (run.root / "status.json").unlink()
    torch.save({"step": 3, "best": None}, run.root / "resume.pt")
    with pytest.raises(TrainError, match="was written by another wsvad"):
        resume_run("motion_ranking", run.root)


def test_two_stores_of_one_modality_are_refused_before_the_folder_is_made(world, tmp_path):
    roots = [s.root for s in world.stores] * 2
    with pytest.raises(TrainError, match="two stores hold the modality 'rgb'"):
        start_run("motion_ranking", [], world.manifest, roots, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_kill_left_before_the_run_began_is_used_again(world, tmp_path):
    whole, _ = start(world, tmp_path / "whole")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "manifest.csv").write_text("torn")
    run, _ = start(world, tmp_path / "begun")
    assert results(run) == results(whole)


def test_resume_refuses_other_features_in_the_place_of_its_own(world, tmp_path):
    run, _ = start(world, tmp_path / "run")
    (run.root / "status.json").unlink()
    found = json.loads((run.root / "features.json").read_text())
    found[0]["spec"]["resize"] = "64x64:area"
    (run.root / "features.json").write_text(json.dumps(found))
    with pytest.raises(SpecMismatchError, match="has resize='none', asked for '64x64:area'"):
        resume_run("motion_ranking", run.root)


def test_a_run_that_cannot_start_leaves_its_place_free(world, tmp_path):
    """A typing error must not use up the name of the run."""
    lonely = tmp_path / "lonely.csv"
    manifest.write(lonely, [v for v in world.videos if v.label == 0])
    with pytest.raises(TrainError, match="6 normal and 0 anomalous"):
        start_run("motion_ranking", [], lonely, [world.stores[0].root], tmp_path / "run")
    with pytest.raises(ValueError, match="dropout"):
        start(world, tmp_path / "run", "head.dropout=3")
    start(world, tmp_path / "run")


def test_a_run_says_what_went_in(world, tmp_path):
    run, _ = start(world, tmp_path / "run", seed=5, command=["wsvad", "train", "..."])
    assert run.config.seed == 5
    assert run.videos == world.videos
    assert run.feature_roots == [world.stores[0].root.resolve()]
    environment = json.loads((run.root / "environment.json").read_text())
    assert environment["command"] == ["wsvad", "train", "..."]
    assert environment["packages"]["torch"] == torch.__version__
    features = json.loads((run.root / "features.json").read_text())
    assert [f["id"] for f in features] == [world.stores[0].spec.id]


def test_videos_without_features_are_named_or_left_out(world, tmp_path):
    extra = replace(world.train[0], id="nobody_extracted_me", events=(), label=0)
    videos = [*world.train, extra]
    with pytest.raises(TrainError, match=r"1 of 13 videos have no features, e\.g\. 'nobody_extracted_me'"):
        load_videos(videos, world.stores)
    assert load_videos(videos, world.stores, allow_missing=True) == world.train
    other = tmp_path / "other.csv"
    manifest.write(other, [*videos, *world.test])
    with pytest.raises(TrainError, match="nobody_extracted_me"):
        start_run("motion_ranking", [], other, [world.stores[0].root], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    small = ["head.hidden=[16, 8]", "train.steps=6", "train.save_every=2"]
    run, _ = start_run("motion_ranking", small, other, [world.stores[0].root], tmp_path / "run", allow_missing=True)
    assert results(run)["metrics.jsonl"] == results(start(world, tmp_path / "plain")[0])["metrics.jsonl"]
    numbers = evaluate_run(run).numbers
    assert (numbers["trained_without"], numbers["missing"]) == ([extra.id], [])
    assert "trained without 1 videos" in describe(numbers)


def test_a_video_missing_in_one_of_two_stores_is_missing(tmp_path):
    world = make_world(tmp_path, train=2, test=0, modalities=("rgb", "audio"))
    world.stores[1].path(world.train[2].id).unlink()
    with pytest.raises(TrainError, match=f"1 of 4 videos have no features, e.g. '{world.train[2].id}'"):
        load_videos(world.train, world.stores)


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_resumed_run_trains_on_the_videos_it_began_with(tmp_path, monkeypatch, change):
    """Other videos would be other batches: neither a lost feature file nor a late one may slip in."""
    world = make_world(tmp_path, train=4, test=0)
    store, path = world.stores[0], world.stores[0].path(world.train[3].id)
    kept = path.read_bytes()
    if change == "more":
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "save", _Counted(loop.Loop.save, 1, before=False))
        with pytest.raises(KeyboardInterrupt):
            start(world, tmp_path / "run", allow_missing=change == "more")
    if change == "fewer":
        path.unlink()
        with pytest.raises(TrainError, match=world.train[3].id):
            resume_run("motion_ranking", tmp_path / "run")
        return
    path.write_bytes(kept)
    resume_run("motion_ranking", tmp_path / "run")
    path.unlink()
    expected, _ = start(world, tmp_path / "whole", allow_missing=True)
    assert store.missing(v.id for v in world.train) == [world.train[3].id]
    assert results(RunDir(tmp_path / "run")) == results(expected)


# -- the steps --------------------------------------------------------------------------------------------------------


def spy_on_steps(monkeypatch, kind):
    """[(learning rate, gradient norm, weights after)] of every step of that torch optimizer."""
    seen, real = [], kind.step

    def step(self, *a, **k):
        (group,) = self.param_groups
        norm = torch.stack([p.grad.norm() for p in group["params"]]).norm().item()
        found = real(self, *a, **k)
        seen.append((group["lr"], norm, [p.detach().clone().double().numpy() for p in group["params"]]))
        return found

    monkeypatch.setattr(kind, "step", step)
    return seen


def test_average_of_the_weights(world, out, monkeypatch):
    """avg <- d avg + (1 - d) w with d = min(ema, step / (step + 10)), from the weights before the first step."""
    seen = spy_on_steps(monkeypatch, torch.optim.Adam)
    run = train(world, out, "a", "train.ema=0.4", "train.optimizer.lr=0.01")
    torch.manual_seed(run.config.seed)
    average = [p.detach().double().numpy() for p in Model(run.config, {"rgb": 8}).head.parameters()]
    for i, (_, _, weights) in enumerate(seen):
        d = min(0.4, (i + 1) / (i + 11))
        average = [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
    kept = checkpoint.load(run.checkpoint).model.head
    for name, expected in zip(dict(kept.named_parameters()), average, strict=True):
        assert np.abs(dict(kept.named_parameters())[name].detach().numpy() - expected).max() < 1e-6
    assert any(np.abs(a - w).max() > 1e-3 for a, w in zip(average, seen[-1][2], strict=True))


def test_gradient_is_clipped_as_a_whole(world, out, monkeypatch):
    seen = spy_on_steps(monkeypatch, torch.optim.SGD)
    train(world, out, "free", "train.optimizer.name=sgd")
    free = [norm for _, norm, _ in seen]
    limit = sorted(free)[3]
    seen.clear()
    train(world, out, "clipped", "train.optimizer.name=sgd", f"train.clip_norm={limit}")
    assert seen[0][1] == pytest.approx(min(free[0], limit), rel=1e-3)
    assert max(norm for _, norm, _ in seen) <= limit * 1.001
    assert max(free) > limit * 1.01


@pytest.mark.parametrize("schedule", ["constant", "cosine", "milestones"])
def test_learning_rates_equal_torchs_schedulers(world, out, monkeypatch, schedule):
    seen = spy_on_steps(monkeypatch, torch.optim.SGD)
    overrides = [f"train.lr_schedule={schedule}", "train.milestones=[3, 7]", "train.gamma=0.3"]
    run = train(world, out, "a", "train.optimizer.name=sgd", "train.optimizer.lr=0.02", *overrides)
    monkeypatch.undo()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12),
        "milestones": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], 0.3),
    }[schedule]()
    for step, (rate, _, _) in enumerate(seen, start=1):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        scheduler.step()
    assert [line["lr"] for line in metrics_lines(run)] == [seen[s - 1][0] for s in range(2, 13, 2)]


def test_adagrad_takes_the_recipes_eps():
    options = training.make_optimizer(
        small_config("train.optimizer.name=adagrad", "train.optimizer.eps=1e-8").train.optimizer,
        torch.nn.Linear(1, 1),
    ).param_groups[0]
    assert (options["lr"], options["eps"], options["weight_decay"]) == (1e-3, 1e-8, 1e-3)


def test_one_step_of_the_whole_chain_in_numpy(world, out):
    """Standardized segments, all-pairs hinge, plain SGD: the first layer after one step, by hand in float64."""
    overrides = ["train.optimizer.name=sgd", "train.optimizer.lr=0.5", "train.optimizer.weight_decay=0"]
    overrides += ["head.dropout=0", "head.smooth=0", "head.sparse=0", "train.steps=1", "train.pairs=100"]
    run = train(world, out, "a", *overrides)
    torch.manual_seed(run.config.seed)
    head = Model(run.config, {"rgb": 8}).head
    w1, b1, w2, b2, w3, b3 = (p.detach().double().numpy() for p in head.parameters())
    bags, labels = [], []
    for video in world.train:
        x = world.stores[0].read(video.id).x[0].astype(np.float64)
        bounds = np.linspace(0, len(x), 9).astype(int)
        bags.append([x[a : max(b, a + 1)].mean(0) for a, b in itertools.pairwise(bounds)])
        labels.append(video.label)
    x = np.array(bags)  # (B, 8, D)
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    hidden = x @ w1.T + b1
    scores = 1 / (1 + np.exp(-((np.maximum(hidden, 0) @ w2.T + b2) @ w3.T + b3)[..., 0]))
    pull = np.zeros(len(x))  # d loss / d max score
    high, low = np.flatnonzero(np.array(labels) == 1), np.flatnonzero(np.array(labels) == 0)
    for a in high:
        for n in low:
            if 1 - scores[a].max() + scores[n].max() > 0:
                pull[a] -= 1 / (len(high) * len(low))
                pull[n] += 1 / (len(high) * len(low))
    gradient = np.zeros_like(w1)
    for b in range(len(x)):
        t = scores[b].argmax()
        up = pull[b] * scores[b, t] * (1 - scores[b, t]) * (w3 @ w2)[0] * (hidden[b, t] > 0)
        gradient += np.outer(up, x[b, t])
    found = load_file(run.checkpoint.with_suffix(".safetensors"))["head.fc1.weight"].numpy()
    assert np.abs(found - w1).max() > 1e-3
    assert np.abs(found - (w1 - 0.5 * gradient)).max() < 1e-6


# -- what goes wrong --------------------------------------------------------------------------------------------------

DIVERGE = ["train.optimizer.name=sgd", "train.optimizer.lr=1e30", "train.optimizer.weight_decay=1e10"]


@pytest.mark.parametrize(
    "extra",
    [
        ["train.log_every=1"],
        ["train.log_every=50"],
        ["train.log_every=50", "select.also=[val]", "select.every=1"],
        ["train.log_every=50", "train.save_every=4", "train.ema=0.9"],
        ["train.log_every=50", "train.steps=1"],
    ],
)
def test_a_loss_that_is_no_number_stops_with_a_remedy_and_no_checkpoint(world, out, extra):
    config = small_config(*DIVERGE, *extra)
    run = out("a", config)
    with pytest.raises(TrainError, match=r"(loss|scores|fc\d\.\w+) .* step \d+.*; lower train\.optimizer\.lr"):
        fit(config, world.train, world.stores, run)
    assert run.status["state"] == "failed"
    assert "lower train.optimizer.lr" in run.status["reason"]
    assert not run.checkpoint.with_suffix(".json").exists()


def test_a_head_that_breaks_leaves_a_run_that_says_so(world, out, monkeypatch):
    from mil.heads.ranking import RankingHead

    def broken(self, bag):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(RankingHead, "forward", broken)
    config = small_config()
    run = out("a", config)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(config, world.train, world.stores, run)
    assert run.status["state"] == "failed"
    assert "mat1 and mat2" in run.status["reason"]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["last.json", "last.safetensors"])
def test_a_damaged_or_missing_checkpoint_is_refused_by_name(world, out, file):
    run = train(world, out, "a")
    path = run.root / "checkpoints" / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(checkpoint.CheckpointError, match=r"last\.json and its weights .* damaged"):
        checkpoint.load(run.checkpoint)
    path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint .*last\.json; .*--resume"):
        checkpoint.load(run.checkpoint)


def test_weights_of_another_head_are_refused(world, out):
    one, two = train(world, out, "a"), train(world, out, "b", "head.hidden=[4, 4]")
    weights = (two.root / "checkpoints/last.safetensors").read_bytes()
    (one.root / "checkpoints/last.safetensors").write_bytes(weights)
    with pytest.raises(checkpoint.CheckpointError, match="do not belong together"):
        checkpoint.load(one.checkpoint)


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_weights_are_read_strictly(world, out, change):
    run = train(world, out, "a")
    path = run.root / "checkpoints/last.safetensors"
    weights = load_file(path)
    if change == "one less":
        del weights["head.fc3.bias"]
    else:
        weights["head.fc4.bias"] = torch.zeros(1)
    save_file(weights, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"(?s)do not belong together .*head\.fc[34]\.bias"):
        checkpoint.load(run.checkpoint)


def test_weights_of_another_step_than_their_json_are_refused(world, out):
    """What a kill between the two files leaves must not be scored as the step that the JSON names."""
    early, late = train(world, out, "a", "train.steps=3"), train(world, out, "b")
    late.checkpoint.with_suffix(".json").write_bytes(early.checkpoint.with_suffix(".json").read_bytes())
    with pytest.raises(checkpoint.CheckpointError, match=r"is of step 3, the weights beside it of step 12.*--resume"):
        checkpoint.load(late.checkpoint)
    # files of older versions do not say which step they are of
    save_file(load_file(late.checkpoint.with_suffix(".safetensors")), late.checkpoint.with_suffix(".safetensors"))
    assert checkpoint.load(late.checkpoint).step == 3


def test_a_checkpoint_of_a_newer_format_is_refused(world, out):
    run = train(world, out, "a")
    path = run.root / "checkpoints/last.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(checkpoint.CheckpointError, match="is of format 2, this wsvad reads 1; upgrade"):
        checkpoint.load(run.checkpoint)
