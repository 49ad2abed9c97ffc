"""Sweeps: what is planned, that finished runs stay, that a failed one stops nothing, that a killed one goes on."""

import json
import os
import signal

import pytest

from mil import sweep as sweeps
from mil.config import ConfigError
from mil.rundir import RunDir
from mil.sweep import finished, plan, run_sweep
from tests.mil_helpers import make_world

QUICK = (
    "train.steps=8",
    "train.pairs=4",
    "head.hidden=[8, 4]",
    "data.count=6",
    "data.modalities=[]",
    "train.save_every=2",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sweep"), train=6, test=3)


def planned(world, out, *recipes, seeds=(0, 1), **more):
    recipes = recipes or ("motion_ranking",)
    roots = [s.root for s in world.stores]
    return plan(recipes, out, world.manifest, roots, seeds=seeds, **{"overrides": QUICK, **more})


def everything(out):
    """All bytes of the runs but times, paths and logs."""
    kept = ("config.yaml", "metrics.jsonl", "last.safetensors", "last.json", "manifest.csv")
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and (p.name in kept or p.parent.name == "eval")]
    assert files
    return {str(p.relative_to(out)): p.read_bytes().replace(bytes(out), b"OUT") for p in files}


def test_a_plan_goes_seed_by_seed_over_recipes_and_values(world, tmp_path):
    found = planned(world, tmp_path, "ranking", "motion_ranking", grid=["head.topk=1,2", "train.pairs=3"])
    assert [p.name for p in found] == [
        "ranking-head.topk=1-train.pairs=3-s0",
        "ranking-head.topk=2-train.pairs=3-s0",
        "motion_ranking-head.topk=1-train.pairs=3-s0",
        "motion_ranking-head.topk=2-train.pairs=3-s0",
        "ranking-head.topk=1-train.pairs=3-s1",
        "ranking-head.topk=2-train.pairs=3-s1",
        "motion_ranking-head.topk=1-train.pairs=3-s1",
        "motion_ranking-head.topk=2-train.pairs=3-s1",
    ]
    assert found[1].overrides == (*QUICK, "head.topk=2", "train.pairs=3")
    assert found[1].out == tmp_path / found[1].name


def test_what_cannot_run_is_refused_before_anything_runs(world, tmp_path):
    with pytest.raises(ConfigError, match="no such key"):
        planned(world, tmp_path, grid=["train.stepz=1,2"])
    with pytest.raises(ConfigError, match=r"--grid takes key=value,value.*got 'head\.topk'"):
        planned(world, tmp_path, grid=["head.topk"])
    with pytest.raises(ConfigError, match="two runs of this sweep would be called 'motion_ranking-s0'"):
        planned(world, tmp_path, "motion_ranking", "motion_ranking")
    with pytest.raises(ValueError, match="nothing"):
        plan(["motion_ranking"], tmp_path, world.manifest, [tmp_path / "nothing"], seeds=[0])
    with pytest.raises(ValueError, match="macil_sd takes audio features, but these are rgb"):
        planned(world, tmp_path, "motion_ranking", "motion_macil_sd", overrides=())
    assert not list(tmp_path.iterdir())


def test_runs_are_done_once_and_a_failed_one_stops_nothing(world, tmp_path):
    """The failing run asks for more than memory holds; the others are trained, evaluated, and left alone next time."""
    good = planned(world, tmp_path)
    bad = planned(world, tmp_path, seeds=(7,), overrides=(*QUICK, "head.hidden=[100000000000, 100000]"))
    said = []
    first = run_sweep([*bad, *good], workers=2, say=said.append)
    assert [e.numbers is None for e in first] == [True, False, False]
    assert first[0].reason
    assert "motion_ranking-s7 FAILED" in "\n".join(said)
    for e in first[1:]:
        assert e.numbers["auc"] == finished(e.run.out)["auc"]
        assert e.numbers["seed"] == e.run.seed
        assert RunDir(e.run.out).config.train.steps == 8
    before = {p: p.stat().st_mtime_ns for e in first[1:] for p in e.run.out.rglob("*")}
    again = run_sweep(good, workers=2, say=said.append)
    assert [e.fresh for e in again] == [False, False]
    assert said[-1] == "2 of 2 runs are done already"
    assert {p: p.stat().st_mtime_ns for e in first[1:] for p in e.run.out.rglob("*")} == before


def test_a_sweep_that_was_killed_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch):
    whole = planned(world, tmp_path / "whole")
    run_sweep(whole, workers=1)
    broken = planned(world, tmp_path / "broken")
    # as if killed: the first run stopped by SIGKILL in its fifth step, nothing of the second
    pid = os.fork()
    if pid == 0:
        try:
            from mil.loop import Loop
            from mil.run import start_run

            update = Loop.update

            def stop(self, step):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return update(self, step)

            Loop.update = stop
            one = broken[0]
            one.out.parent.mkdir()
            start_run(one.recipe, one.overrides, one.manifest, one.features, one.out, seed=one.seed)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert finished(broken[0].out) is None
    run_sweep(broken, workers=1)
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


def test_a_folder_with_a_run_of_other_values_is_not_taken_for_done_work(world, tmp_path):
    one = planned(world, tmp_path, seeds=(0,))
    run_sweep(one, workers=1)
    (tmp_path / one[0].name / "eval").rename(tmp_path / "elsewhere")
    other = planned(world, tmp_path, seeds=(0,), overrides=(*QUICK[1:], "train.steps=9"))
    ended = run_sweep(other, workers=1)
    assert ended[0].numbers is None
    assert "holds a run of other values than this sweep's" in ended[0].reason


def test_a_process_that_dies_leaves_a_reason(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_work", _die)
    ended = run_sweep(planned(world, tmp_path, seeds=(0,)), workers=1)
    assert ended[0].reason == f"its process ended with code -9; see {tmp_path}/motion_ranking-s0.log"


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_slots_share_gpus_in_turn_and_give_each_process_a_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert sweeps._slots(0, "cpu") == [("cpu", 3), ("cpu", 5)]
    assert sweeps._slots(3, "cpu") == [("cpu", None)] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert sweeps._slots(3, "cuda") == [("cuda:0", None), ("cuda:1", None), ("cuda:0", None)]
    assert sweeps._slots(0, "cuda:1") == [("cuda:1", None)]


def test_from_the_shell(world, tmp_path):
    from click.testing import CliRunner

    from mil.cli import main

    out = tmp_path / "runs"
    common = ["--manifest", str(world.manifest), "--features", str(world.stores[0].root), "--out", str(out)]
    sets = [part for q in QUICK for part in ("--set", q)]
    result = CliRunner().invoke(main, ["sweep", "motion_rankin?", *common, *sets, "--seeds", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["done"], found["failed"]) == (2, 0)
    assert [r["numbers"]["seed"] for r in found["runs"]] == [0, 1]
    result = CliRunner().invoke(main, ["compare", str(out), "--bootstrap", "20"])
    assert result.exit_code == 0
    assert "motion_ranking  ranking  2" in result.stdout
    result = CliRunner().invoke(main, ["sweep", "nothing_*", *common])
    assert result.exit_code == 2
    assert "no recipe matches 'nothing_*'" in result.stderr
