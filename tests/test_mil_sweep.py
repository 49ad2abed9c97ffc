"""Sweeps: what is planned, that finished runs stay, that a failed one stops nothing, that a killed one goes on."""

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from data import manifest
from data.registry import load_plugin
from mil import evaluations, loop, sweep, sweep_local, sweep_run
from mil.config import ConfigError
from mil.evaluate import evaluate_run
from mil.heads import heads
from mil.rundir import RunDir
from mil.sweep import finished, plan, run_sweep
from mil.sweep_run import work
from tests.helpers import ROOT
from tests.kill_sweeps import Forks, forked, kill_sweeps
from tests.mil_helpers import call_wsvad, make_world

QUICK = (
    "train.steps=8",
    "train.pairs=4",
    "head.hidden=[8, 4]",
    "data.count=6",
    "data.modalities=[]",
    "train.save_every=2",
)

in_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")


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
    with pytest.raises(ConfigError, match=r"'motion_ranking-head.topk=1-s0'.*; rename .*, or change a grid value"):
        planned(world, tmp_path, grid=["head.topk=1,1"])
    with pytest.raises(ValueError, match="nothing"):
        plan(["motion_ranking"], tmp_path, world.manifest, [tmp_path / "nothing"], seeds=[0])
    with pytest.raises(ValueError, match="macil_sd takes audio features, but these are rgb"):
        planned(world, tmp_path, "motion_ranking", "motion_macil_sd", overrides=())
    assert not list(tmp_path.iterdir())


def test_runs_are_done_once_and_a_failed_one_stops_nothing(world, tmp_path):
    """The failing run asks for more than memory holds; the others are trained, evaluated, and left alone next time. The
    server of their processes gets a queue's SIGTERM while they run, and stays."""
    good = planned(world, tmp_path)
    bad = planned(world, tmp_path, seeds=(7,), overrides=(*QUICK, "head.hidden=[100000000000, 100000]"))
    said, servers = [], []

    def say(line):
        said.append(line)
        servers.append(forkserver._forkserver._forkserver_pid)
        os.kill(servers[-1], signal.SIGTERM)

    first = run_sweep([*bad, *good], workers=2, say=say)
    assert len(servers) == 3
    assert len(set(servers)) == 1
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


@in_proc
def test_a_sweep_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    found = kill_sweeps(tmp_path, 1, kills=2)
    assert found["kills"] == 2
    assert found["half_done_at_kills"] > 0
    assert found["files_compared"] > 40


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A run that follows all rules; copy it before you change it."""
    out = tmp_path_factory.mktemp("done")
    (run,) = planned(world, out, seeds=(0,), overrides=(*QUICK, *RULED))
    assert work(run, "cpu") == ""
    return run


RULED = ("select.rule=val", "select.also=[last, test]", "select.every=4")


def copied(run, to):
    shutil.copytree(run.out, to / run.name)
    return replace(run, out=to / run.name)


def test_a_run_is_finished_when_it_is_evaluated_by_every_rule(done, tmp_path):
    assert finished(done.out)["rule"] == "val"
    for name in ("test-frames", "test-frames-by_last", "test-frames-by_test"):
        for ending in (".json", "_scores.npz"):
            run = copied(done, tmp_path / f"{name}{ending}")
            (run.out / "eval" / f"{name}{ending}").unlink()
            assert finished(run.out) is None
    before = {p: p.stat().st_mtime_ns for p in (run.out / "checkpoints").iterdir()}
    assert work(run, "cpu") == ""
    assert finished(run.out)["rule"] == "val"
    assert {p: p.stat().st_mtime_ns for p in (run.out / "checkpoints").iterdir()} == before


def test_other_evaluations_never_stand_in_for_the_one_that_is_meant(done, tmp_path):
    """Files of another protocol, another precision, one crop and another manifest, some of which come first by name."""
    run = copied(done, tmp_path)
    kept = RunDir(run.out)
    own = json.loads((run.out / "eval" / "test-frames.json").read_text())
    manifest.write(tmp_path / "aaa.csv", kept.videos)
    shutil.rmtree(run.out / "eval")
    for given in (
        {"precision": "bf16"},
        {"crop": "full"},
        {"manifest_path": tmp_path / "aaa.csv"},
        {"rule": "last"},
        {"rule": "test"},
        {"protocol_name": "ratio"},
        {"split": "test", "protocol_name": "snippets", "crop": "full"},
    ):
        evaluate_run(kept, **given)
        assert finished(run.out) is None, given
    find = evaluations.find
    assert find(run.out, kept.config) is None
    evaluate_run(kept)
    assert finished(run.out) == {**own, "manifest": str(run.out / "manifest.csv")}
    assert find(run.out, kept.config).numbers["rule"] == "val"
    assert find(run.out, kept.config, rule="test").numbers["optimistic"]
    assert find(run.out, kept.config, protocol="ratio").path.name == "test-ratio.json"
    assert find(run.out, kept.config, precision="bf16").numbers["precision"] == "bf16"
    assert find(run.out, kept.config, split="train") is None
    assert find(run.out, kept.config, rule="last", precision="bf16") is None


def test_partial_evaluations_count_where_they_were_asked_for(done, tmp_path):
    run = copied(done, tmp_path)
    for path in (run.out / "eval").iterdir():
        ending = "_scores.npz" if path.suffix == ".npz" else ".json"
        new = path.with_name(path.name.replace(ending, f"-partial{ending}"))
        path.rename(new)
        if ending == ".json":
            new.write_text(json.dumps({**json.loads(new.read_text()), "missing": ["v"]}))
    assert finished(run.out) is None
    assert finished(run.out, partial=True)["missing"] == ["v"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": (*QUICK[1:], "train.steps=9", *RULED)}, "a run of other values than"),
        ({"manifest": "other.csv"}, "a run of other videos than"),
        ({"features": "other"}, "a run of other features than"),
    ],
)
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_folder_with_another_run_is_not_taken_for_done_work(world, done, tmp_path, change, message, evaluated):
    run = copied(done, tmp_path)
    if not evaluated:
        shutil.rmtree(run.out / "eval")
    if "manifest" in change:
        change = {"manifest": tmp_path / "other.csv"}
        manifest.write(change["manifest"], world.videos[:-1])
    if "features" in change:
        other = make_world(tmp_path / "w", train=2, test=1, weights="others")
        change = {"features": (other.stores[0].root,)}
    before = {p: p.stat().st_mtime_ns for p in run.out.rglob("*")}
    if evaluated:
        (ended,) = run_sweep([replace(run, **change)], say=lambda _: None)
        assert (ended.numbers, ended.fresh) == (None, False)
        assert message in ended.reason
    else:
        assert message in work(replace(run, **change), "cpu")
    assert {p: p.stat().st_mtime_ns for p in run.out.rglob("*")} == before


def test_a_test_selected_number_is_called_optimistic_while_it_runs(done, tmp_path):
    from mil.sweep import Ended, _line

    assert "OPTIMISTIC" not in _line(Ended(done, finished(done.out)))
    shown = _line(Ended(done, {**finished(done.out), "rule": "test", "optimistic": True}))
    assert shown.endswith(" OPTIMISTIC")


def test_what_one_look_at_a_run_stumbles_over_stops_no_other(done, tmp_path):
    """Whatever it is: a name that nobody registers, a file that is no JSON."""
    unknown, torn = copied(done, tmp_path / "a"), copied(done, tmp_path / "b")
    text = (unknown.out / "config.yaml").read_text()
    (unknown.out / "config.yaml").write_text(text.replace("name: ranking", "name: nobodys"))
    (torn.out / "status.json").write_text("{")
    ended = run_sweep([replace(unknown, name="unknown"), replace(torn, name="torn"), done], say=lambda _: None)
    assert [e.fresh for e in ended] == [False] * 3
    assert "no head called 'nobodys'" in ended[0].reason
    assert "Expecting property name" in ended[1].reason
    assert ended[2].numbers
    assert "Expecting property name" in sweep._result(torn, "").reason


def test_two_processes_of_sweeps_never_do_one_run(done, tmp_path, monkeypatch):
    """One that has the run is waited for: nothing is done before it lets go."""
    run = copied(done, tmp_path)
    shutil.rmtree(run.out / "eval")
    pid = os.fork()
    if pid == 0:
        from mil.sweep_run import _locked

        with _locked(run.log):
            (tmp_path / "has it").touch()
            while not (tmp_path / "go").exists():
                time.sleep(0.01)
            assert not (run.out / "eval").exists()
        os._exit(0)
    while not (tmp_path / "has it").exists():
        time.sleep(0.01)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        assert not (run.out / "eval").exists()
        (tmp_path / "go").touch()
        pause(0.01)

    pause = time.sleep
    with monkeypatch.context() as patch:
        patch.setattr(sweep_run.time, "sleep", sleep)
        assert work(run, "cpu") == ""
    (tmp_path / "go").touch()
    os.waitpid(pid, 0)
    assert pauses
    assert finished(run.out)


def test_a_process_that_dies_leaves_a_reason(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_local, "_process", _die)
    ended = run_sweep(planned(world, tmp_path, seeds=(0,)), workers=1)
    assert ended[0].reason == f"its process ended with code -9; see {tmp_path}/motion_ranking-s0.log"


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


# -- Ctrl-C and SIGTERM ------------------------------------------------------------------------------------------------


def group_of(leader):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found


def until(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def interrupted(pid, said):
    """Asserts that a sweep that was interrupted says one thing, and leaves nobody behind."""
    end, status = time.monotonic() + 300, None
    while time.monotonic() < end and (status is None or group_of(pid)):
        if status is None:
            gone, found = os.waitpid(pid, os.WNOHANG)
            status = found if gone else None
        time.sleep(0.05)
    left = group_of(pid)
    if left:
        os.killpg(pid, signal.SIGKILL)
    assert left == []
    text = said.read_text()
    assert os.waitstatus_to_exitcode(status) == 130, text
    assert text.count("interrupted; what was finished is kept: repeat the command") == 1
    for word in ("Traceback", "KeyboardInterrupt", "FAILED"):
        assert word not in text


def swept(world, out, said, overrides, how, recipe="motion_ranking"):
    """A sweep of two seeds, as a process group of its own."""
    stores = ["--manifest", str(world.manifest), "--features", str(world.stores[0].root), "--out", str(out)]
    sets = [part for q in overrides for part in ("--set", q)]
    return forked(["sweep", recipe, *stores, "--seeds", "2", *sets, "--workers", "2"], said, how)


@in_proc
def test_ctrl_c_while_the_server_of_the_processes_starts_says_one_thing(world, tmp_path):
    """It reaches all of a terminal."""
    pid = swept(world, tmp_path / "runs", tmp_path / "said.txt", QUICK, "server")
    until(lambda: len(group_of(pid)) >= 2)
    time.sleep(0.3)  # its Python is up and imports torch
    os.killpg(pid, signal.SIGINT)
    interrupted(pid, tmp_path / "said.txt")


SLOW = (*QUICK[1:5], "train.steps=60", "train.save_every=1000", "train.log_every=1")


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert [work(run, "cpu") for run in planned(world, out, overrides=SLOW)] == ["", ""]
    return everything(out)


@in_proc
@pytest.mark.parametrize("kind", ["Ctrl-C to the sweep", "SIGTERM to all", "SIGTERM to the sweep", "both to all"])
def test_a_sweep_that_is_interrupted_saves_its_runs_and_goes_on_to_the_same_bytes(
    world, undisturbed, tmp_path, monkeypatch, kind
):
    """A queue's SIGTERM reaches every process of a job (Slurm). The runs are in the middle of their training then."""
    monkeypatch.setattr(sweep_local, "_PATIENCE_S", 1e6)  # or they would be stopped in the end
    out, said = tmp_path / "runs", tmp_path / "said.txt"
    with monkeypatch.context() as patch:  # what is forked has it, too
        patch.setattr(loop.Loop, "update", slow(loop.Loop.update, tmp_path / "sent"))
        pid = swept(world, out, said, SLOW, "fork")
    until(lambda: len(list(out.glob("*/metrics.jsonl"))) == 2)
    send = os.killpg if kind.endswith("all") else os.kill
    if not kind.startswith("Ctrl-C"):
        send(pid, signal.SIGTERM)
    if not kind.startswith("SIGTERM"):
        send(pid, signal.SIGINT)
    (tmp_path / "sent").touch()
    interrupted(pid, said)
    runs = planned(world, out, overrides=SLOW)
    for run in runs:
        status = RunDir(run.out).status
        assert status["state"] == "interrupted"
        assert 0 < status["step"] < 60  # the signal may meet a run right after its first line
        assert torch.load(run.out / "resume.pt", weights_only=True)["step"] == status["step"]
        assert work(run, "cpu") == ""
    assert everything(out) == undisturbed


def slow(update, sent):
    """Steps that take long enough to be met: the tenth waits for the file `sent`."""

    def wait(self, step):
        while step == 10 and not sent.exists():
            time.sleep(0.01)
        time.sleep(0.02)
        return update(self, step)

    return wait


@in_proc
def test_a_process_that_gets_sigterm_alone_saves_its_run(world, tmp_path, monkeypatch):
    (run, _) = planned(world, tmp_path, overrides=SLOW)
    patched = slow(loop.Loop.update, tmp_path)

    def update(self, step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return patched(self, step)

    monkeypatch.setattr(sweep_local, "_context", Forks)
    monkeypatch.setattr(loop.Loop, "update", update)
    (ended,) = run_sweep([run], workers=1, say=lambda _: None)
    assert ended.reason == f"its process ended with code 130; see {run.log}"
    assert RunDir(run.out).status["state"] == "interrupted"
    assert (run.out / "resume.pt").is_file()


@in_proc
def test_ctrl_c_after_a_signal_does_not_wait_for_runs_that_take_long(world, tmp_path, monkeypatch):
    """A second SIGTERM does: `timeout` sends two at once. The runs hear nothing."""
    monkeypatch.setattr(sweep_local, "_PATIENCE_S", 1e6)
    monkeypatch.setattr(sweep_local, "_process", deaf)
    said = tmp_path / "said.txt"
    pid = swept(world, tmp_path / "runs", said, QUICK, "fork")
    until(lambda: len(list(tmp_path.glob("runs/*.begun"))) == 2)
    os.kill(pid, signal.SIGTERM)
    until(lambda: len(list(tmp_path.glob("runs/*.told"))) == 2)
    os.killpg(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert len(group_of(pid)) == 3
    os.kill(pid, signal.SIGINT)
    interrupted(pid, said)


def deaf(run, slot, pipe):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    run.out.parent.mkdir(exist_ok=True)
    run.out.with_suffix(".begun").touch()
    with suppress(EOFError):
        pipe.recv()
    run.out.with_suffix(".told").touch()
    time.sleep(200)


# -- plugins and clusters ----------------------------------------------------------------------------------------------

PLUGIN = '''
import os, signal
from pathlib import Path
from mil.heads import heads
from mil.heads.ranking import RankingHead as Ranking

@heads.register("fragile")
class Fragile(Ranking):
    """Kills its process in its fifth step, once."""

    def loss(self, *given):
        self.count = getattr(self, "count", 0) + 1
        mark = Path(__file__).parent / "killed"
        if self.count == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(*given)
'''


@pytest.fixture
def fragile(world, tmp_path):
    """A plugin that has killed already, and a sweep of its head in the processes of this machine."""
    path = tmp_path / "fragile.py"
    path.write_text(PLUGIN)
    (tmp_path / "killed").touch()
    (tmp_path / "mine.yaml").write_text("base: motion_ranking\nhead: {name: fragile, hidden: [8, 4]}\n")
    load_plugin(path)
    own = [q for q in QUICK if not q.startswith("head")]
    yield planned(world, tmp_path / "local", str(tmp_path / "mine.yaml"), overrides=own, plugins=[path])
    heads._items.pop("fragile", None)


def test_processes_load_the_plugins_of_the_sweep(fragile):
    ended = run_sweep(fragile, workers=2)
    assert [e.reason for e in ended] == ["", ""]
    (ended,) = run_sweep([replace(fragile[0], out=fragile[0].out / "..." / "x", plugins=())], workers=1)
    assert "no head called 'fragile'" in ended.reason


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'wsvad[ray]'")
def test_on_a_ray_cluster_a_run_whose_worker_dies_goes_on_to_the_same_bytes(world, fragile, tmp_path, monkeypatch):
    """A process of its own, since Ray leaves threads and sockets behind. A run of a plugin's head that is killed in
    its middle, and one that fails."""
    assert work(fragile[0], "cpu") == ""
    (tmp_path / "killed").unlink()
    (tmp_path / "bad.yaml").write_text("base: mine.yaml\nhead: {hidden: [100000000000, 100000]}\n")
    sets = [part for q in QUICK if not q.startswith("head") for part in ("--set", q)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pid = forked(
        [
            *("sweep", "mine.yaml", "bad.yaml", "--manifest", str(world.manifest)),
            *("--features", str(world.stores[0].root), "--out", "ray", "--seeds", "1", *sets, "--json"),
            *("--engine", "ray", "--workers", "1", "--plugin", "fragile.py"),
        ],
        tmp_path / "said.txt",
        errors=tmp_path / "errors.txt",
    )
    status, errors = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (tmp_path / "errors.txt").read_text()
    assert status == 1, errors
    found = json.loads((tmp_path / "said.txt").read_text())  # nothing else there: Ray is kept quiet
    assert (found["done"], found["failed"]) == (1, 1)
    assert [Path(r["run"]).name for r in found["runs"] if r["reason"]] == ["bad-s0"]
    assert "its worker died" in errors
    assert "memory" in found["runs"][1]["reason"]
    assert (tmp_path / "killed").exists()
    ray, own = everything(tmp_path / "ray"), everything(tmp_path / "local")
    assert {name: raw for name, raw in ray.items() if name.startswith("mine")} == own
    assert not list(tmp_path.glob("ray/.ray*"))


def test_without_ray_the_message_says_what_to_install(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs ray: pip install 'wsvad\[ray\]'"):
        run_sweep(planned(world, tmp_path, seeds=(0,)), engine="ray")
    assert run_sweep([], engine="ray") == []
    with pytest.raises(ValueError, match="engine is one of local, ray, got 'slurm'"):
        run_sweep([], engine="slurm")


def test_a_node_that_would_compute_something_else_or_elsewhere_is_refused(done, tmp_path):
    from extract.cluster_node import versions
    from mil.sweep_ray import on_node

    with pytest.raises(ValueError, match=r"node .+: has torch [0-9.]+, not 1.0: numbers could differ"):
        on_node(done, "cpu", {**versions(), "torch": "1.0"}, str(tmp_path), str(tmp_path))
    with pytest.raises(ValueError, match=r"node .+: does not see .+; runs must lie on a disk that all nodes share"):
        on_node(done, "cpu", versions(), str(tmp_path / "mark"), str(tmp_path))


def test_slots_share_gpus_in_turn_and_give_each_process_a_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert sweep_local.slots(0, "cpu") == [("cpu", 3), ("cpu", 5)]
    assert sweep_local.slots(3, "cpu") == [("cpu", None)] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert sweep_local.slots(3, "cuda") == [("cuda:0", None), ("cuda:1", None), ("cuda:0", None)]
    assert sweep_local.slots(0, "cuda:1") == [("cuda:1", None)]


def test_from_the_shell(world, tmp_path):
    out = tmp_path / "runs"
    common = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", out]
    sets = [part for q in QUICK for part in ("--set", q)]
    result = call_wsvad("sweep", "motion_rankin?", *common, *sets, "--seeds", 2, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["done"], found["failed"]) == (2, 0)
    assert [r["numbers"]["seed"] for r in found["runs"]] == [0, 1]
    assert "1 of 2, 0:0" in result.stderr
    assert " left: motion_ranking-s" in result.stderr
    result = call_wsvad("compare", out, "--bootstrap", 20)
    assert result.exit_code == 0
    assert "motion_ranking  ranking  2" in result.stdout
    assert call_wsvad("compare", out, "--bootstrap", 20, "--rule", "all").stdout.count("motion_ranking") == 1
    result = call_wsvad("compare", out, "--rule", "test")
    assert result.exit_code == 2
    assert "weights by rule test" in result.stderr
    assert "there are: test-frames" in result.stderr
    result = call_wsvad("sweep", "nothing_*", *common)
    assert result.exit_code == 2
    assert "no recipe matches 'nothing_*'" in result.stderr
