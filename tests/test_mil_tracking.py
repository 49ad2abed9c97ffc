"""Trackers hold what metrics.jsonl holds, also of a resumed run, and never stand in the way of a training."""

import json
import logging
import sys
import types

import numpy as np
import pytest

from data.registry import UnknownNameError
from mil import tracking
from mil.config import load
from mil.loop import Loop
from mil.run import resume_run, start_run
from mil.rundir import RunDir
from mil.tracking import TrackerError, make_trackers
from tests.mil_helpers import call_wsvad, make_world, metrics_lines

QUICK = [
    "train.steps=12", "train.pairs=2", "train.log_every=2", "train.save_every=5", "data.count=4", "head.hidden=[4, 2]",
    "head.topk=1", "select.rule=val", "select.every=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), train=4, test=1)


def trained(world, out, *, track=(), stop_at=None):
    """A run of 12 steps; `stop_at`: killed in that step, behind the last state, and taken up again."""
    if stop_at is None:
        return start_run("motion_ranking", QUICK, world.manifest, [world.stores[0].root], out, track=track)[0]
    with pytest.MonkeyPatch.context() as patch:
        own = Loop.update

        def dies(self, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return own(self, step)

        patch.setattr(Loop, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(world, out, track=track)
    return resume_run("motion_ranking", out, track=track)[0]


def logged(run):
    """(name, step, value) of metrics.jsonl, in its order."""
    return [(n, line["step"], v) for line in metrics_lines(run) for n, v in line.items() if n != "step"]


def scalars(run):
    """(name, step, value) of RUN/tensorboard, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.root / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(name, e.step, e.value) for name in board.Tags()["scalars"] for e in board.Scalars(name)]


@pytest.mark.parametrize("stop_at", [None, 10])
def test_tensorboard_holds_every_number_once_also_of_a_resumed_run(world, tmp_path, stop_at):
    run = trained(world, tmp_path / "run", track=["tensorboard", "tensorboard"], stop_at=stop_at)
    wanted = [(n, step, float(np.float32(v))) for n, step, v in logged(run)]
    assert sorted(scalars(run)) == sorted(wanted)
    assert {n for n, _, _ in wanted} >= {"lr", "loss/total", "val/video_auc"}
    plain = trained(world, tmp_path / "plain")
    assert (
        run.checkpoint.with_suffix(".safetensors").read_bytes()
        == plain.checkpoint.with_suffix(".safetensors").read_bytes()
    ), "numbers are told, nothing else changes"
    assert not (plain.root / "tensorboard").exists()


def test_what_was_logged_is_on_the_disk_before_the_run_ends(world, tmp_path):
    run = world.run("run", load("motion_ranking", QUICK))
    (tracker,) = make_trackers(["tensorboard"], run, run.config)
    assert not (run.root / "tensorboard").exists(), "before there are numbers there is nothing to see"
    for step in (2, 4, 6):
        tracker.log({"lr": 0.5}, step)
        assert scalars(run)[-1] == ("lr", step, 0.5)
    tracker.close()
    assert len(make_trackers(["tensorboard", "tensorboard"], run, run.config)) == 1


class Cloud(types.ModuleType):
    """What of Weights & Biases is used, and what a server would have."""

    def __init__(self, *, broken=()):
        super().__init__("wandb")
        self.calls, self.rows, self.broken, self.open = [], [], set(broken), 0

    def init(self, **options):
        self.calls.append(options)
        self._fail("init")
        self.open += 1
        return self

    def log(self, values, *, step):
        self._fail("log")
        assert self.open == 1
        self.rows += [(n, step, v) for n, v in values.items()]

    def finish(self):
        self._fail("finish")
        self.open -= 1

    def _fail(self, name):
        if name in self.broken:
            raise RuntimeError(f"no route\nto {name}")


def test_wandb_gets_the_recipe_every_number_and_one_id_for_all_resumes(world, tmp_path, monkeypatch):
    cloud = Cloud()
    monkeypatch.setitem(sys.modules, "wandb", cloud)
    run = trained(world, tmp_path / "seven", track=["wandb"], stop_at=10)
    first, second = cloud.calls
    assert cloud.open == 0
    assert first == second
    assert first["id"] == (run.root / "wandb_id.txt").read_text().strip()
    assert (first["name"], first["project"], first["resume"], first["dir"]) == (
        "seven",
        "wsvad",
        "allow",
        str(run.root),
    )
    assert first["config"] == run.config.model_dump(mode="json")
    assert json.loads(json.dumps(first["config"])) == first["config"]
    assert "mode" not in first, "WANDB_MODE=offline has the word"
    assert len(cloud.rows) > len(set(cloud.rows)), "steps behind the last state came twice"
    assert sorted(set(cloud.rows)) == sorted(logged(run))
    other = trained(world, tmp_path / "other", track=["wandb"])
    assert (other.root / "wandb_id.txt").read_text() != (run.root / "wandb_id.txt").read_text()


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_costs_nothing(world, tmp_path, monkeypatch, caplog, broken):
    cloud = Cloud(broken=[broken])
    monkeypatch.setitem(sys.modules, "wandb", cloud)
    with caplog.at_level(logging.WARNING):
        run = trained(world, tmp_path / "run", track=["wandb", "tensorboard"])
    said = [r.getMessage() for r in caplog.records if "wandb" in r.getMessage()]
    assert said == [
        f"wandb takes no more numbers of this run (RuntimeError: no route to {broken}); training goes on, "
        "metrics.jsonl has them all"
    ]
    assert len(cloud.calls) == 1
    assert run.status["state"] == "done"
    assert len(scalars(run)) == len(logged(run)), "the other tracker goes on"


def test_what_cannot_track_is_said_before_a_run_is_made(world, tmp_path, monkeypatch):
    places = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", tmp_path / "run"]
    sets = [part for text in QUICK for part in ("--set", text)]
    train = ["train", "motion_ranking", *places, *sets]
    for name, message in (
        ("tensorbord", "no tracker called 'tensorbord'. Did you mean 'tensorboard'"),
        ("wandb", "--track wandb needs the package wandb: pip install 'wsvad[wandb]'"),
    ):
        monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
        result = call_wsvad(*train, "--track", name)
        assert (result.exit_code, message in result.stderr) == (2, True)
        assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # the folder that wandb leaves behind
    with pytest.raises(TrackerError):
        tracking.check_trackers(["wandb"])
    with pytest.raises(UnknownNameError):
        make_trackers(["mlflow"], None, None)


def test_track_is_an_option_of_train_and_of_resume(world, tmp_path):
    places = ["--manifest", world.manifest, "--features", world.stores[0].root]
    sets = [part for text in QUICK for part in ("--set", text)]
    run = RunDir(trained(world, tmp_path / "run", track=["tensorboard"]).root)
    before = scalars(run)
    (run.root / "resume.pt").unlink()
    run.set_status("interrupted")
    result = call_wsvad("train", "motion_ranking", "--out", run.root, "--resume", "--track", "tensorboard")
    assert result.exit_code == 0, result.stderr
    assert scalars(run) == before
    assert len(list((run.root / "tensorboard").iterdir())) == 2
    result = call_wsvad("train", "motion_ranking", *places, *sets, "--out", tmp_path / "new", "--track", "tensorboard")
    assert result.exit_code == 0, result.stderr
    assert scalars(RunDir(tmp_path / "new")) == before


def test_doctor_knows_the_trackers(monkeypatch):
    from mil import doctor

    found = {check.name: check for check in (doctor._tensorboard(), doctor._wandb())}
    assert found["tensorboard"].state == "ok"
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert doctor._wandb().as_dict() == {
        "name": "wandb",
        "state": "WARN",
        "found": "not installed; only --track wandb needs it",
        "remedy": "pip install 'wsvad[wandb]'",
    }
