"""The command line: what a shell and a program see. Results on stdout, messages of one line, exit codes 0, 1, 2."""

import json
import os
import signal
import subprocess
import sys

import click
import numpy as np
import pytest

from data import manifest
from data.store import FeatureStore
from mil.cli import main
from mil.heads import heads
from tests.mil_helpers import call_wsvad, make_world

QUICK = ["--set", "head.hidden=[16, 8]", "--set", "train.steps=6", "--set", "train.pairs=3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("cli"), train=4, test=2)


@pytest.fixture
def wsvad():
    return call_wsvad


@pytest.fixture
def run(world, wsvad, tmp_path):
    store = world.stores[0].root
    result = wsvad(
        "train", "motion_ranking", "--manifest", world.manifest, "--features", store, "--out", tmp_path / "run", *QUICK
    )
    assert result.exit_code == 0, result.stderr
    return tmp_path / "run"


def one_line_error(result, *parts):
    """Exit code 2, nothing on stdout, one line on stderr that says it all."""
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]


def commands(group=main, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_every_command_helps_and_describes_every_option(wsvad, path):
    result = wsvad(*path, "--help")
    assert result.exit_code == 0
    assert f"Usage: wsvad {' '.join(path)}".strip() in result.stdout
    command = main
    for name in path:
        command = command.commands[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in result.stdout


def test_help_of_a_fresh_process_loads_no_heavy_library():
    """Torch takes seconds; `wsvad --help` must not."""
    code = (
        "import sys\nfrom mil.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['eval', '--help'], ['extract', '--help']):\n"
        "    main(words, standalone_mode=False)\n"
        "heavy = {'torch', 'sklearn', 'h5py', 'av', 'cv2', 'matplotlib', 'pytorchvideo'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.count("Usage: ") == 4


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("heads", "ranking"),
        ("backbones", "tiny"),
        ("datasets", "ucf_crime"),
        ("recipes", "motion_ranking"),
        ("protocols", "frames"),
    ],
)
def test_ls_lists_objects_with_a_name_and_a_line(wsvad, kind, known):
    rows = json.loads(wsvad("ls", kind, "--json").stdout)
    assert known in [row["name"] for row in rows]
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert all(row["about"] and "\n" not in row["about"] for row in rows)
    text = wsvad("ls", kind).stdout.splitlines()
    assert len(text) == len(rows)
    for line, row in zip(text, rows, strict=True):
        assert line.startswith(row["name"])
        assert row["about"] in line


def test_train_and_eval_from_shell_to_numbers(world, wsvad, run):
    result = wsvad("eval", run, "--json")
    assert result.exit_code == 0
    numbers = json.loads(result.stdout)
    assert numbers["auc"] > 0.5
    assert numbers["frames"] == sum(v.num_frames for v in world.test)
    assert numbers.pop("finished") is True
    rules = {"last": {name: numbers[name] for name in ("auc", "ap", "step", "selected_by", "optimistic")}}
    assert numbers.pop("rules") == rules
    assert numbers == json.loads((run / "eval" / "test-frames.json").read_text())
    assert str(run / "eval" / "test-frames.json") in result.stderr
    text = wsvad("eval", run)
    assert f"frame AUC {numbers['auc']:.4f}" in text.stdout
    assert numbers["selected_by"] in text.stdout


def test_train_prints_one_json_document_and_its_overrides_count(world, wsvad, tmp_path):
    store = world.stores[0].root
    out = tmp_path / "run"
    arguments = ["--manifest", world.manifest, "--features", store, "--out", out, *QUICK, "--seed", "7", "--json"]
    result = wsvad("train", "motion_ranking", *arguments)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["run"] == str(out)
    assert found["step"] == 6
    assert np.isfinite(found["losses"]["total"])
    assert found["selected_by"] == "last step (6), fixed beforehand"
    import yaml

    values = yaml.safe_load((out / "config.yaml").read_text())
    assert (values["seed"], values["train"]["pairs"], values["head"]["hidden"]) == (7, 3, [16, 8])


def test_a_recipe_of_ones_own(world, wsvad, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("head: {name: ranking, hidden: [8, 4]}\ntrain: {steps: 2, optimizer: {lr: 1e-3}}\n")
    result = wsvad(
        "train", file, "--manifest", world.manifest, "--features", world.stores[0].root, "--out", tmp_path / "run"
    )
    assert result.exit_code == 0
    assert json.loads(wsvad("eval", tmp_path / "run", "--json").stdout)["recipe"] == "mine"


HEAD = '''
import torch
from mil.heads import Head, HeadOutput, heads
from mil.losses import hinge, topk_mean

@heads.register("linear_of_mine")
class Linear(Head):
    """One layer."""

    def __init__(self, dim, *, margin=1.0):
        super().__init__()
        self.margin, self.layer = margin, torch.nn.Linear(dim, 1)

    def forward(self, bag):
        return HeadOutput(self.layer(bag.x).squeeze(-1).sigmoid().mean(1) * bag.mask)

    def loss(self, out, bag):
        best = topk_mean(out.scores, bag.mask, 1)
        return {"rank": hinge(best[bag.labels == 1], best[bag.labels == 0], self.margin).mean()}
'''


def test_a_head_in_a_users_file_is_listed_trained_and_evaluated(world, wsvad, tmp_path, monkeypatch):
    heads.names()
    monkeypatch.setattr(heads, "_items", dict(heads._items))  # what this test registers goes away with it
    plugin = tmp_path / "linear_of_mine.py"
    plugin.write_text(HEAD)
    assert "linear_of_mine  One layer." in wsvad("ls", "heads", "--plugin", plugin).stdout
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("head: {name: linear_of_mine}\ndata: {scale: standardize}\ntrain: {steps: 60, pairs: 4}\n")
    settings = ["--set", "head.margin=2", "--set", "train.optimizer.lr=0.05", "--plugin", plugin]
    places = ["--manifest", world.manifest, "--features", world.stores[0].root]
    result = wsvad("train", recipe, *places, "--out", tmp_path / "run", *settings)
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(wsvad("eval", tmp_path / "run", "--plugin", plugin, "--json").stdout)
    assert numbers["head"] == "linear_of_mine"
    assert numbers["auc"] > 0.95
    one_line_error(
        wsvad("train", recipe, *places, "--out", tmp_path / "no", "--plugin", plugin, "--set", "head.margn=2"),
        "head 'linear_of_mine' has no option 'margn'. Did you mean 'margin'",
    )
    result = wsvad("train", recipe, *places, "--out", tmp_path / "set", "--set", "head.name=ranking")
    assert result.exit_code == 0


def test_heads_are_listed_with_their_paper_their_features_and_their_recipes(wsvad):
    rows = {row["name"]: row for row in json.loads(wsvad("ls", "heads", "--json").stdout)}
    assert rows["ranking"] == {
        "name": "ranking",
        "about": "Scores each segment alone; an anomalous video's best must beat a normal video's best.",
        "paper": "Sultani et al., CVPR 2018",
        "modalities": ["any"],
        "recipes": ["motion_ranking", *(f"ranking{end}" for end in ("", "_folder", "_sh", "_ucf", "_xd"))],
        "published": ["ranking"],
    }
    (line,) = [line for line in wsvad("ls", "heads").stdout.splitlines() if line.startswith("ranking ")]
    assert line.endswith("[Sultani et al., CVPR 2018]  any; published: ranking")
    listed = [recipe for row in rows.values() for recipe in row["recipes"]]
    recipes = {row["name"]: row for row in json.loads(wsvad("ls", "recipes", "--json").stdout)}
    assert sorted(listed) == sorted(recipes), "each recipe trains one head"
    for row in rows.values():
        assert row["paper"]
        assert all(recipes[recipe]["head"] == row["name"] for recipe in row["recipes"])
        parts = heads.get(row["name"]).modalities
        assert row["modalities"] == ([part.replace("|", " or ") for part in parts] or ["any"])


def test_a_plugin_that_is_not_there(wsvad, tmp_path):
    one_line_error(wsvad("ls", "heads", "--plugin", tmp_path / "no.py"), "no plugin file", "no.py")


def test_errors_of_use_are_one_line_and_exit_code_2(world, wsvad, run, tmp_path):
    store, out = world.stores[0].root, tmp_path / "new"
    places = ["--manifest", world.manifest, "--features", store]
    train = ["train", "motion_ranking", *places, "--out", out]
    one_line_error(wsvad("train", "motion_rankin", *places, "--out", out), "Did you mean 'motion_ranking'")
    one_line_error(wsvad(*train, "--set", "head.topkk=3"), "no option 'topkk'", "Did you mean 'topk'")
    one_line_error(wsvad(*train, "--set", "head.dropout=much"), "head.dropout")
    one_line_error(wsvad(*train, "--set", "head.dropout=7"), "dropout")
    one_line_error(
        wsvad("train", "ranking", "--manifest", tmp_path / "no.csv", "--features", store, "--out", out),
        "no manifest",
        "wsvad index",
    )
    one_line_error(
        wsvad("train", "ranking", "--manifest", world.manifest, "--features", tmp_path / "no", "--out", out),
        "no feature store",
        "wsvad extract",
    )
    one_line_error(wsvad("train", "motion_ranking", *places, "--out", run), "never overwritten", "--resume")
    one_line_error(wsvad("train", "motion_ranking", "--out", run, "--resume"), "is done", "wsvad eval")
    one_line_error(wsvad("eval", tmp_path / "no"), "no run at", "wsvad train")
    one_line_error(wsvad("eval", run, "--protocol", "frame"), "Did you mean 'frames'")
    one_line_error(wsvad("store", "info", tmp_path / "no"), "no feature store")
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["ls", "head"],
        ["train", "ranking"],
        ["train", "ranking", "--out", "x"],
        ["train", "ranking", "--out", "x", "--resume", "--set", "seed=1"],
        ["train", "ranking", "--out", "x", "--resume", "--seed", "1"],
        ["train", "ranking", "--out", "x", "--seed", "-1"],
        ["eval"],
        ["eval", "x", "--split", "validation"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_parsed_is_refused_with_the_usage(wsvad, arguments):
    result = wsvad(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: wsvad" in result.stderr
    assert "Error: " in result.stderr


def test_interrupted_training_says_how_to_go_on_and_goes_on(world, wsvad, tmp_path, monkeypatch):
    from mil.loop import Loop

    real = Loop.update

    def cut(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return real(self, step)

    out = tmp_path / "run"
    places = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", cut)
        result = wsvad("train", "motion_ranking", *places, *QUICK, "--set", "train.save_every=2")
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "interrupted"
    early = wsvad("eval", out)
    assert "selected by: step 4 of 6, unfinished" in early.stdout
    assert "WARNING: training is not done, these weights are of step 4" in early.stdout
    assert json.loads(wsvad("eval", out, "--json").stdout)["finished"] is False
    result = wsvad("train", "motion_ranking", "--out", out, "--resume", "--json")
    assert (result.exit_code, json.loads(result.stdout)["step"]) == (0, 6)
    result = wsvad("eval", out)
    assert result.exit_code == 0
    assert "WARNING" not in result.stdout


def test_a_run_that_was_interrupted_before_it_saved_has_nothing_to_evaluate(world, wsvad, tmp_path, monkeypatch):
    from mil.loop import Loop

    def cut(self, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    places = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", cut)
        assert wsvad("train", "motion_ranking", *places, *QUICK).exit_code == 130
    one_line_error(wsvad("eval", tmp_path / "run"), "no checkpoint", "--resume")


def test_no_number_of_weights_chosen_on_test_videos_is_shown_without_that_word(world, wsvad, tmp_path):
    """In the output of train and eval, as text and as JSON, and in every file that a reader may open."""
    out = tmp_path / "run"
    train = ["train", "motion_ranking", "--manifest", world.manifest, "--features", world.stores[0].root, "--out", out]
    result = wsvad(*train, *QUICK, "--also", "val", "--also", "test", "--set", "select.every=2")
    assert result.exit_code == 0, result.stderr
    kept = [line for line in result.stdout.splitlines() if "kept" in line]
    assert len(kept) == 3
    assert "kept: last step (6), fixed beforehand; trained on 6 of 8 videos: 20 % held out" in kept[0]
    assert "kept beside it, by val: best video-level AUC (" in kept[1]
    assert "kept beside it, by test: OPTIMISTIC: best test frame AUC (" in kept[2]

    *full, heading, last, val, test = wsvad("eval", out).stdout.splitlines()
    assert heading.split() == ["rule", "step", "AUC", "AP"]
    numbers = json.loads(wsvad("eval", out, "--json").stdout)
    assert list(numbers["rules"]) == ["last", "val", "test"]
    for line, (rule, found) in zip((last, val, test), numbers["rules"].items(), strict=True):
        assert line.split()[:4] == [rule, str(found["step"]), f"{found['auc']:.4f}", f"{found['ap']:.4f}"]
        assert ("OPTIMISTIC" in line, found["optimistic"]) == (rule == "test",) * 2
        assert ("OPTIMISTIC" in found["selected_by"]) == (rule == "test")
    assert not any("OPTIMISTIC" in line for line in full)
    assert (numbers["rule"], numbers["auc"]) == ("last", numbers["rules"]["last"]["auc"])

    alone = wsvad("eval", out, "--rule", "test").stdout
    assert "selected by: OPTIMISTIC: best test frame AUC" in alone
    assert "WARNING: OPTIMISTIC" in alone
    assert "rule " not in alone.splitlines()[-1]
    numbers = json.loads(wsvad("eval", out, "--rule", "test", "--json").stdout)
    assert (list(numbers["rules"]), numbers["optimistic"]) == (["test"], True)

    files = [*(out / "eval").glob("*by_test*.json"), out / "checkpoints" / "test.json", out / "status.json"]
    assert len(files) == 3
    assert all("OPTIMISTIC" in path.read_text() for path in files)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert "test" not in line or "OPTIMISTIC" in line

    judged = tmp_path / "judged"
    result = wsvad(*train[:-1], judged, *QUICK, "--select", "test")
    assert "kept: OPTIMISTIC: best test frame AUC (" in result.stdout
    assert "WARNING: OPTIMISTIC" in wsvad("eval", judged).stdout
    one_line_error(wsvad("eval", judged, "--rule", "val"), "kept no weights by val, only by test", "--also val")


def test_missing_features_stop_or_are_left_out(world, wsvad, run, tmp_path):
    from dataclasses import replace

    more = tmp_path / "more.csv"
    lost = [replace(v, id=f"lost_{v.split}") for v in (world.train[0], world.test[0])]
    manifest.write(more, [*world.videos, *lost])
    one_line_error(wsvad("eval", run, "--manifest", more), "1 of 5 videos have no features", "lost_test")
    numbers = json.loads(wsvad("eval", run, "--manifest", more, "--allow-missing", "--json").stdout)
    assert numbers["missing"] == ["lost_test"]
    train = ["train", "motion_ranking", "--manifest", more, "--features", world.stores[0].root]
    train += ["--out", tmp_path / "other", *QUICK]
    one_line_error(wsvad(*train), "1 of 9 videos have no features", "lost_train", "--allow-missing")
    assert wsvad(*train, "--allow-missing").exit_code == 0


def test_store_info_and_verify(world, wsvad, tmp_path):
    store = make_world(tmp_path, train=2, test=1).stores[0]
    info = json.loads(wsvad("store", "info", store.root, "--json").stdout)
    assert (info["id"], info["videos"], info["spec"]["dim"]) == (store.spec.id, 6, 8)
    assert f"{store.spec.id}  6 videos" in wsvad("store", "info", store.root).stdout
    result = wsvad("store", "verify", store.root, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["good"] == 6
    victim = FeatureStore(store.root).path("normal_train_000")
    damaged = bytearray(victim.read_bytes())
    x = store.read("normal_train_000").x.tobytes()
    damaged[bytes(damaged).index(x) + 5] ^= 1
    victim.write_bytes(damaged)
    result = wsvad("store", "verify", store.root, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["good"], len(report["bad"])) == (5, 1)
    assert "crc32 differs" in report["bad"][0]
    assert "crc32 differs" in result.stderr
    assert wsvad("store", "verify", store.root).exit_code == 1


def test_doctor_says_for_each_check_how_it_is_and_what_to_type(wsvad):
    result = wsvad("doctor", "--json")
    checks = json.loads(result.stdout)
    assert {"torch", "decoder", "store"} <= {c["name"] for c in checks}
    assert {c["state"] for c in checks} <= {"ok", "WARN", "FAIL"}
    assert result.exit_code == int(any(c["state"] == "FAIL" for c in checks))
    assert all(c["remedy"] for c in checks if c["state"] != "ok")


def test_a_defect_keeps_its_traceback(wsvad, run, monkeypatch):
    """Only messages are shortened: a TypeError inside is a defect, and hiding where it came from would not help."""
    from mil import evaluate

    def broken(*_, **__):
        raise TypeError("a defect")

    monkeypatch.setattr(evaluate, "evaluate_run", broken)
    with pytest.raises(TypeError, match="a defect"):
        wsvad("eval", run)


def test_debug_shows_the_traceback_of_a_message_too(wsvad, tmp_path):
    from mil.rundir import RunError

    with pytest.raises(RunError, match="no run at"):
        wsvad("--debug", "eval", tmp_path / "no")


def test_version(wsvad):
    assert wsvad("--version").stdout.startswith("wsvad, version ")


@pytest.mark.parametrize(
    ("device", "text"),
    [("cuda:99", "wanted cuda:99, found"), ("gpu", "no device called 'gpu'; wanted auto, cpu, cuda")],
)
def test_a_device_that_is_not_there_is_one_line_and_takes_no_folder(wsvad, world, tmp_path, device, text):
    places = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", tmp_path / "run"]
    one_line_error(wsvad("train", "motion_ranking", *places, "--device", device), text)
    assert not (tmp_path / "run").exists()
