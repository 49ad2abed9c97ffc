"""The authors' checkpoints into runs and back: every tensor to the bit, every fault named, scores computed by hand."""

import argparse
import json
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn

from data.store import FeatureStore
from data.types import FeatureSpec
from mil import checkpoint
from mil.evaluate import read_scores
from mil.heads import Head, HeadOutput, heads
from mil.heads.ranking import RankingHead
from mil.imported import import_checkpoint
from mil.published import Published, PublishedError, give_back, take_in, unwrapped
from mil.rundir import RunDir, RunError
from tests.mil_helpers import DIM, call_wsvad, make_world, random_bag


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("published"), train=2, test=4, crops=2)


@pytest.fixture
def wsvad():
    return call_wsvad


def deepmil_state(dim=DIM, hidden=(6, 4), seed=0):
    """What the I3D port saves, with numbers of its own."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"fc1": (hidden[0], dim), "fc2": (hidden[1], hidden[0]), "fc3": (1, hidden[1])}
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=g)
        state[f"{name}.bias"] = torch.randn(shape[0], generator=g)
    return state


def saved(path, found):
    torch.save(found, path)
    return path


def refused(result, *parts):
    """Exit code 2, nothing on stdout, one line on stderr that says it all."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith(("I ", "W "))]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


class Net(nn.Module):
    """Two tensors, one counter and one of our own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor(4))
        self.register_buffer("own", torch.arange(3.0))


FORM = Published(
    {"fc.weight": "layer.weight", "fc.bias": "layer.bias", "bn.num_batches_tracked": "count"},
    unused={"old.weight": (2, 2), "old.sigma": (1,)},
    optional=frozenset({"bn.num_batches_tracked"}),
    extra=frozenset({"own"}),
)


def net_state():
    return {
        "fc.weight": torch.arange(6.0).reshape(2, 3) / 7,
        "fc.bias": torch.tensor([-1.0, 1e-30]),
        "bn.num_batches_tracked": torch.tensor(7_000_000_123),
        "old.weight": torch.full((2, 2), 0.1),
        "old.sigma": torch.tensor([0.1]),
    }


# -- the mapping ------------------------------------------------------------------------------------------------------


def test_each_tensor_goes_to_its_place_and_comes_back_to_the_bit():
    net, state = Net(), net_state()
    kept = take_in(net, FORM, state)
    assert torch.equal(net.layer.weight, state["fc.weight"])
    assert torch.equal(net.layer.bias, state["fc.bias"])
    assert net.count.item() == 7_000_000_123
    assert net.own.tolist() == [0, 1, 2]
    assert kept.keys() == {"old.weight", "old.sigma"}
    back = give_back(net, FORM, kept)
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value), name
        assert back[name].dtype == value.dtype, name
    back["fc.weight"].zero_()
    assert net.layer.weight.any(), "what is given back is a copy"


def test_what_is_optional_may_be_missing_and_what_is_unused_too():
    net, state = Net(), net_state()
    for name in ("bn.num_batches_tracked", "old.weight"):
        del state[name]
    back = give_back(net, FORM, take_in(net, FORM, state))
    assert back["bn.num_batches_tracked"].item() == 4
    assert back["old.weight"].tolist() == [[0, 0], [0, 0]]  # their module wants one
    assert back["old.sigma"].tolist() == state["old.sigma"].tolist()


def test_half_precision_becomes_the_heads_own():
    net, state = Net(), net_state()
    state["fc.weight"] = state["fc.weight"].half()
    take_in(net, FORM, state)
    assert net.layer.weight.dtype == torch.float32
    assert torch.equal(net.layer.weight, state["fc.weight"].float())


FAULTS = {
    "missing": ({"fc.bias": None}, r"missing: fc\.bias$"),
    "unknown": ({"fc.wieght": torch.zeros(2, 5)}, r"unknown: fc\.wieght \(2, 5\)$"),
    "misshapen": ({"fc.weight": torch.zeros(3, 2)}, r"fc\.weight is \(3, 2\), \(2, 3\) was wanted$"),
    "a column for a vector": ({"fc.bias": torch.zeros(2, 1)}, r"fc\.bias is \(2, 1\), \(2,\) was wanted$"),
    "unused, of another shape": ({"old.weight": torch.zeros(2, 3)}, r"old\.weight is \(2, 3\), \(2, 2\) was wanted$"),
    "not a number": ({"fc.bias": torch.tensor([0.0, torch.nan])}, r"fc\.bias holds values that are not finite$"),
    "infinite": ({"fc.bias": torch.tensor([0.0, -torch.inf])}, r"fc\.bias holds values that are not finite$"),
    "ours under our name": ({"own": torch.zeros(3)}, r"unknown: own \(3,\)$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_changes_no_weight(fault):
    changes, message = FAULTS[fault]
    net, state = Net(), {**net_state(), **changes}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(PublishedError, match=f"the file does not fit: {message}"):
        take_in(net, FORM, {n: v for n, v in state.items() if v is not None})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_all_faults_are_told_at_once_but_no_more_than_twelve():
    with pytest.raises(PublishedError, match=r"missing: fc\.weight; missing: fc\.bias; unknown: x \(1,\)$"):
        take_in(Net(), FORM, {"x": torch.zeros(1)})
    many = {**net_state(), **{f"x{i:02}": torch.zeros(1) for i in range(20)}}
    with pytest.raises(PublishedError, match=r"unknown: x11 \(1,\) and 8 more$"):
        take_in(Net(), FORM, many)


WRAPPERS = {
    "bare": lambda s: s,
    "module.": lambda s: {f"module.{n}": v for n, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{n}": v for n, v in s.items()},
    "compiled in DataParallel": lambda s: {f"module._orig_mod.{n}": v for n, v in s.items()},
    "DataParallel, compiled": lambda s: {f"_orig_mod.module.{n}": v for n, v in s.items()},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"optimizer": {"state": {}, "param_groups": []}, "model": s, "best": 0.83},
    "wrapper in a wrapper": lambda s: {"model": {"state_dict": {f"module.{n}": v for n, v in s.items()}, "seed": 1}},
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_come_off(tmp_path, kind):
    state = net_state()
    found = unwrapped(torch.load(saved(tmp_path / "w.pth", WRAPPERS[kind](state)), weights_only=True))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_prefix_that_only_some_have_is_part_of_the_name():
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert unwrapped(state).keys() == state.keys()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"epoch": 3, "loss": 0.5}, "no state dict among epoch, loss; pass the weights' file"),
        ({}, "no state dict among"),
        ({"state_dict": {}}, "no state dict among"),
        ([torch.zeros(2)], "a state dict was wanted, the file holds a list"),
        (torch.zeros(2), "a state dict was wanted, the file holds a Tensor"),
    ],
)
def test_what_holds_no_state_dict(found, message):
    with pytest.raises(PublishedError, match=message):
        unwrapped(found)


# -- import -> eval -> export -----------------------------------------------------------------------------------------


def port_scores(state, x):
    """The port's three layers in float64, every crop, then their mean; (K, N, D) -> (N,)."""
    w = {name: value.double().numpy() for name, value in state.items()}
    h = np.maximum(x.astype(np.float64) @ w["fc1.weight"].T + w["fc1.bias"], 0)
    h = np.maximum(h @ w["fc2.weight"].T + w["fc2.bias"], 0)
    return (1 / (1 + np.exp(-(h @ w["fc3.weight"].T + w["fc3.bias"])[..., 0]))).mean(0)


def test_from_the_authors_file_to_numbers_and_back(world, wsvad, tmp_path, caplog):
    state = deepmil_state()
    file = saved(tmp_path / "port.pkl", WRAPPERS["module."](state))
    run = tmp_path / "deep" / "run"
    result = wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", run)
    assert result.exit_code == 0, result.stderr
    assert "deepmil: 87 parameters, recipe deepmil" in result.stdout  # 6*8 + 6 + 4*6 + 4 + 4 + 1
    assert f"now: wsvad eval {run} --manifest FILE --features STORE" in result.stdout
    with caplog.at_level(logging.WARNING):
        result = wsvad(
            "eval",
            run,
            "--manifest",
            world.manifest,
            "--features",
            world.stores[0].root,
            "--json",
            "--protocol",
            "frames",
        )
    assert result.exit_code == 0, result.stderr
    assert "does not say which features it was trained on; they are taken as they are" in caplog.text
    numbers = json.loads(result.stdout)
    labels, scores = [], []
    (path,) = (run / "eval").glob("test-frames-manifest_videos_*_scores.npz")
    found = {v.video_id: v for v in read_scores(path)}
    for video in world.test:
        own = port_scores(state, world.stores[0].read(video.id).x)
        frames = np.repeat(own, 16)[: video.num_frames]
        assert np.abs(found[video.id].scores - frames).max() < 1e-6
        inside = np.zeros(video.num_frames, int)
        for event in video.events:
            inside[event.start : event.stop] = 1
        labels.append(inside)
        scores.append(frames)
    expected = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    assert numbers["auc"] == pytest.approx(expected, abs=1e-9)
    assert (numbers["features"], numbers["random_weights"]) == ([world.stores[0].spec.id], False)
    assert (numbers["head"], numbers["recipe"], numbers["step"]) == ("deepmil", "deepmil", 0)
    assert numbers["selected_by"] == "the authors of port.pkl"
    out = tmp_path / "back" / "port.pkl"
    result = wsvad("checkpoint", "export", run, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"wrote {out}: 6 tensors, 87 numbers\n")
    back = torch.load(out, weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())


def test_an_imported_run_says_that_it_wants_features(world, wsvad, tmp_path):
    file, run = saved(tmp_path / "port.pkl", deepmil_state()), tmp_path / "run"
    assert wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", run).exit_code == 0
    result = wsvad("eval", run, "--manifest", world.manifest)
    assert result.exit_code == 2
    assert "names no features, as it was imported; pass them with --features STORE" in result.stderr


def test_a_run_with_features_of_its_own_is_evaluated_without_more_words(world, wsvad, tmp_path, caplog):
    file, run = saved(tmp_path / "port.pkl", deepmil_state()), tmp_path / "run"
    places = ["--manifest", world.manifest, "--features", world.stores[0].root]
    result = wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", run, *places, "--json")
    assert json.loads(result.stdout) == {
        "run": str(run),
        "recipe": "deepmil",
        "parameters": 87,
        "unused": [],
        "notes": [],
    }
    assert RunDir(run).status == {"state": "done", "step": 0, "selected_by": "the authors of port.pkl"}
    with caplog.at_level(logging.WARNING):
        numbers = json.loads(wsvad("eval", run, "--json").stdout)
    assert numbers["features"] == [world.stores[0].spec.id]
    assert "does not say which features" not in caplog.text
    kept = checkpoint.load(RunDir(run).checkpoint)
    assert list(kept.config.head.options["hidden"]) == [6, 4]
    assert kept.config.data.scale == "none"


def test_a_trained_run_goes_out_as_the_authors_load_it(world, wsvad, tmp_path):
    overrides = ["head.hidden=[6, 4]", "train.steps=2", "train.pairs=2", "train.save_every=2"]
    settings = [part for text in overrides for part in ("--set", text)]
    places = ["--manifest", world.manifest, "--features", world.stores[0].root]
    assert wsvad("train", "deepmil", *places, "--out", tmp_path / "run", *settings).exit_code == 0
    result = wsvad("checkpoint", "export", tmp_path / "run", "--out", tmp_path / "w.pkl", "--json")
    assert json.loads(result.stdout) == {"out": str(tmp_path / "w.pkl"), "tensors": 6, "numbers": 87}
    theirs = nn.ModuleDict({"fc1": nn.Linear(8, 6), "fc2": nn.Linear(6, 4), "fc3": nn.Linear(4, 1)})
    theirs.load_state_dict(torch.load(tmp_path / "w.pkl", weights_only=True), strict=True)
    own = load_file(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert all(torch.equal(value, own[f"head.{name}"]) for name, value in theirs.state_dict().items())
    before = (tmp_path / "w.pkl").read_bytes()
    refused(
        wsvad("checkpoint", "export", tmp_path / "run", "--out", tmp_path / "w.pkl"),
        "w.pkl exists and is never overwritten; choose another --out",
    )
    assert (tmp_path / "w.pkl").read_bytes() == before


@pytest.mark.parametrize("setting", ["data.scale=standardize", "data.scale=l2", "data.sqrt=true"])
def test_a_run_that_scales_its_features_is_not_exported(world, wsvad, tmp_path, setting):
    places = ["--manifest", world.manifest, "--features", world.stores[0].root, "--out", tmp_path / "run"]
    small = ["--set", "head.hidden=[6, 4]", "--set", "train.steps=1", "--set", setting]
    assert wsvad("train", "deepmil", *places, *small).exit_code == 0
    refused(
        wsvad("checkpoint", "export", tmp_path / "run", "--out", tmp_path / "w.pkl"),
        "this run scales its features itself",
        "data.scale=none",
    )
    assert not (tmp_path / "w.pkl").exists()


def test_a_run_that_is_not_there_and_one_that_never_finished(world, wsvad, tmp_path):
    refused(wsvad("checkpoint", "export", tmp_path / "no", "--out", tmp_path / "w"), "no run at", "wsvad train")
    world.run(tmp_path / "begun", heads_config())
    refused(wsvad("checkpoint", "export", tmp_path / "begun", "--out", tmp_path / "w"), "no checkpoint", "--resume")


def heads_config():
    from mil.config import validate

    return validate({"head": {"name": "deepmil"}}, "test")


# -- what is refused on the way in ------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_and_a_folder(wsvad, tmp_path):
    for path in (tmp_path / "no.pkl", tmp_path):
        refused(
            wsvad("checkpoint", "import", path, "--head", "deepmil", "--out", tmp_path / "r"),
            "no checkpoint",
            str(path),
        )
    with pytest.raises(FileNotFoundError, match=r"no\.pkl"):
        import_checkpoint("deepmil", tmp_path / "no.pkl", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_head_that_is_not_there(wsvad, tmp_path):
    file = saved(tmp_path / "w.pkl", deepmil_state())
    refused(
        wsvad("checkpoint", "import", file, "--head", "deepmill"), "no head called 'deepmill'. Did you mean 'deepmil'"
    )
    result = wsvad("checkpoint", "import", file)
    assert result.exit_code == 2
    assert "Missing option '--head'" in result.stderr


class Executed:
    """Unpickled the ordinary way, this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_holds_more_than_tensors_is_not_executed(wsvad, tmp_path):
    files = {
        "argparse.Namespace": saved(tmp_path / "args.pth", {**deepmil_state(), "args": argparse.Namespace(lr=1)}),
        "open": saved(tmp_path / "evil.pth", {**deepmil_state(), "x": Executed(tmp_path / "owned")}),
    }
    for what, file in files.items():
        result = wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", tmp_path / "r")
        refused(result, f"{file} holds more than tensors", what, "save its state_dict alone")
        assert "weights_only" not in result.stderr, "nobody is to be told to unpickle it after all"
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "r").exists()


def test_damaged_and_foreign_files_are_one_line(wsvad, tmp_path):
    whole = saved(tmp_path / "whole.pth", deepmil_state()).read_bytes()
    plain = pickle.dumps({"fc1.weight": np.zeros(3)}, protocol=2)
    for name, content in {"torn": whole[: len(whole) // 2], "empty": b"", "text": b"hello " * 50, "np": plain}.items():
        file = tmp_path / name
        file.write_bytes(content)
        result = wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", tmp_path / "r")
        refused(result, str(file), "save its state_dict alone, and import that")


def test_a_checkpoint_of_another_head_says_what_it_holds(wsvad, tmp_path):
    other = saved(tmp_path / "other.pth", {f"Aggregate.conv_{i}.weight": torch.zeros(2) for i in range(9)})
    refused(
        wsvad("checkpoint", "import", other, "--head", "deepmil", "--out", tmp_path / "r"),
        "is not a checkpoint of 'deepmil': 'fc1.weight' is missing",
        "it holds Aggregate.conv_0.weight, ",
    )
    flat = saved(tmp_path / "flat.pth", {"fc1.weight": torch.zeros(3), "fc2.weight": torch.zeros(3)})
    refused(
        wsvad("checkpoint", "import", flat, "--head", "deepmil", "--out", tmp_path / "r"),
        "is not a checkpoint of 'deepmil': a shape is another",
        "it holds fc1.weight, fc2.weight",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc3.bias": None}, "missing: fc3.bias"),
        ({"fc4.bias": torch.zeros(3)}, "unknown: fc4.bias (3,)"),
        ({"fc3.weight": torch.zeros(1, 5)}, "fc3.weight is (1, 5), (1, 4) was wanted"),
        ({"fc2.bias": torch.tensor([0, 0, torch.nan, 0])}, "fc2.bias holds values that are not finite"),
    ],
    ids=["missing", "unknown", "misshapen", "not finite"],
)
def test_tensors_that_do_not_fit_are_named_and_no_folder_is_made(wsvad, tmp_path, change, message):
    state = {n: v for n, v in {**deepmil_state(), **change}.items() if v is not None}
    file = saved(tmp_path / "w.pth", {"state_dict": state})
    refused(wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", tmp_path / "r"), message)
    assert not (tmp_path / "r").exists()


def test_a_folder_that_exists_stays_as_it_is(wsvad, tmp_path):
    file = saved(tmp_path / "w.pth", deepmil_state())
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    refused(
        wsvad("checkpoint", "import", file, "--head", "deepmil", "--out", tmp_path / "r"),
        "exists and is never overwritten",
    )
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="never overwritten"):
        import_checkpoint("deepmil", file, tmp_path / "r")


def test_the_folder_has_the_files_name_unless_one_is_given(wsvad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "ucf-best.pth", deepmil_state())
    assert wsvad("checkpoint", "import", file, "--head", "deepmil").exit_code == 0
    assert RunDir(tmp_path / "ucf-best").status["state"] == "done"


def test_dims_and_stores_must_give_what_the_head_was_trained_on(world, wsvad, tmp_path):
    file = saved(tmp_path / "w.pth", deepmil_state())
    call = ["checkpoint", "import", file, "--head", "deepmil"]
    refused(
        wsvad(*call, "--out", tmp_path / "a", "--dims", "rgb=5,audio=2"), "trained on features of size 8", "'audio': 2"
    )
    refused(
        wsvad(*call, "--out", tmp_path / "a", "--dims", "rgb:8"),
        "--dims is written like rgb=1024,audio=128, got 'rgb:8'",
    )
    store = world.stores[0].root
    refused(
        wsvad(*call, "--out", tmp_path / "a", "--dims", "rgb=5,audio=3", "--features", store),
        "--dims says {'rgb': 5, 'audio': 3}, --features holds {'rgb': 8}",
    )
    other = make_world(tmp_path / "other", train=1, test=0, modalities=("rgb", "audio"))
    both = [part for s in other.stores for part in ("--features", s.root)]
    refused(wsvad(*call, "--out", tmp_path / "a", *both), "trained on features of size 8", "{'rgb': 8, 'audio': 3}")
    assert not (tmp_path / "a").exists()
    # the shapes say 11 features; how they are split, --dims
    eleven = saved(tmp_path / "eleven.pth", deepmil_state(dim=11))
    refused(
        wsvad("checkpoint", "import", eleven, "--head", "deepmil", "--out", tmp_path / "a", *both), "in which order"
    )
    for out, how in {"b": [*both, "--dims", "rgb=8,audio=3"], "c": ["--dims", "rgb=8,audio=3"]}.items():
        result = wsvad("checkpoint", "import", eleven, "--head", "deepmil", "--out", tmp_path / out, *how)
        assert result.exit_code == 0, result.stderr
        assert checkpoint.load(RunDir(tmp_path / out).checkpoint).model.dims == {"rgb": 8, "audio": 3}


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_of_another_head_and_one_that_needs_training_videos(wsvad, tmp_path):
    file = saved(tmp_path / "w.pth", deepmil_state())
    call = ["checkpoint", "import", file, "--out", tmp_path / "r"]
    refused(
        wsvad(*call, "--head", "deepmil", "--recipe", "ranking"),
        "recipe 'ranking' is of the head 'ranking', not 'deepmil'",
    )
    refused(wsvad(*call, "--head", "deepmil", "--recipe", "deepmill"), "no recipe called 'deepmill'")
    motion = ["--head", "ranking", "--recipe", "motion_ranking"]
    refused(wsvad(*call, *motion), "'motion_ranking' standardizes features by the training videos", "data.scale=none")
    assert not (tmp_path / "r").exists()
    assert wsvad(*call, *motion, "--set", "data.scale=none", "--set", "head.smooth=0.5").exit_code == 0
    config = RunDir(tmp_path / "r").config
    assert (config.recipe, config.evaluate.smooth, config.head.options["smooth"]) == ("motion_ranking", 3, 0.5)
    assert list(config.head.options["hidden"]) == [6, 4]  # the shapes', not the recipe's


class Pair(RankingHead):
    """Two recipes of ours differ in options that shapes tell."""

    def __init__(self, dim, *, hidden: tuple[int, int] = (6, 4), kernel: int = 3):
        super().__init__(dim, hidden=hidden)
        self.kernel = kernel

    @classmethod
    def infer(cls, shapes):
        found, options = super().infer(shapes)
        return found, {**options, "kernel": 3 if found["rgb"] == DIM else 5}


class Unpublished(Head):
    """Nobody published a thing."""

    def __init__(self, dim, *, width: int = 3):
        super().__init__()
        self.layer = nn.Linear(dim, width)

    def forward(self, bag):
        return HeadOutput(self.layer(bag.x).mean((1, -1)).sigmoid() * bag.mask)

    def loss(self, out, bag):
        return {"none": out.scores.mean()}


@pytest.fixture
def more_heads(monkeypatch):
    """What a test registers goes away with it."""
    heads.names()
    monkeypatch.setattr(heads, "_items", dict(heads._items))
    heads.register("pair")(Pair)
    heads.register("unpublished")(Unpublished)


def test_the_recipe_that_agrees_with_most_of_the_shapes_is_taken(more_heads, tmp_path, monkeypatch):
    from mil import config as configs

    texts = {
        "pair_a": "head: {name: pair, hidden: [16, 4], kernel: 5}",
        "pair_b": "head: {name: pair, hidden: [6, 4]}",  # kernel 3 by default
        "pair_c": "head: {name: pair, hidden: [16, 4]}",
        "motion_pair": "head: {name: pair, hidden: [6, 4], kernel: 3}",  # never: it is not the authors'
    }
    monkeypatch.setattr(configs, "recipe_names", lambda: sorted(texts))
    monkeypatch.setattr(configs, "head_of", lambda name: "pair")
    monkeypatch.setattr(
        configs, "read", lambda name, above=(): (configs.parse(texts[name] + "\nevaluate: {smooth: 3}", name), name)
    )
    for number, (dim, hidden, recipe) in enumerate(
        [(DIM, (6, 4), "pair_b"), (DIM, (16, 4), "pair_c"), (5, (16, 4), "pair_a"), (5, (7, 7), "pair_a")]
    ):
        file = saved(tmp_path / "w.pth", deepmil_state(dim, hidden))
        done = import_checkpoint("pair", file, tmp_path / f"run{number}", overrides=["seed=3"])
        config = done.run.config
        assert done.recipe == config.recipe == recipe
        assert config.head.options == {"hidden": hidden, "kernel": 3 if dim == DIM else 5}
        assert (config.evaluate.smooth, config.seed) == (3, 3)


def test_a_head_without_a_recipe_takes_overrides_all_the_same(more_heads, wsvad, tmp_path):
    file = saved(tmp_path / "w.pth", deepmil_state())
    call = ["checkpoint", "import", file, "--head", "pair", "--out", tmp_path / "r"]
    assert "evaluate.smoothh: no such key" in wsvad(*call, "--set", "evaluate.smoothh=3").stderr
    result = wsvad(*call, "--set", "evaluate.smooth=3")
    assert result.exit_code == 0, result.stderr
    assert "87 parameters, recipe none" in result.stdout
    config = RunDir(tmp_path / "r").config
    assert (config.evaluate.smooth, config.head.options["hidden"]) == (3, (6, 4))


def test_a_head_without_a_published_format(more_heads, wsvad, world, tmp_path):
    file = saved(tmp_path / "w.pth", deepmil_state())
    refused(
        wsvad("checkpoint", "import", file, "--head", "unpublished", "--out", tmp_path / "r"),
        "nothing was published for 'unpublished'",
    )
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("head: {name: unpublished}\ntrain: {steps: 1}\n")
    places = ["--manifest", world.manifest, "--features", world.stores[0].root]
    assert wsvad("train", recipe, *places, "--out", tmp_path / "run").exit_code == 0
    refused(
        wsvad("checkpoint", "export", tmp_path / "run", "--out", tmp_path / "w2"),
        "nothing was published for 'unpublished', so there is no format to write",
    )


class Spare(RankingHead):
    """The authors' module has more than it uses."""

    def published(self):
        form = super().published()
        return Published(form.names, unused={"spare.weight": (2, 3), "spare2.weight": (2, 3), "sigma": (1,)})


def test_unused_tensors_wait_in_the_run_and_go_back_as_they_came(more_heads, wsvad, tmp_path):
    heads.register("spare")(Spare)
    shared = torch.rand(2, 3)
    state = {**deepmil_state(), "spare.weight": shared, "spare2.weight": shared, "sigma": torch.tensor([torch.nan])}
    file = saved(tmp_path / "w.pth", state)
    result = wsvad("checkpoint", "import", file, "--head", "spare", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    assert "never used, kept for the way back: spare.weight, spare2.weight, sigma" in result.stdout
    assert wsvad("checkpoint", "export", tmp_path / "r", "--out", tmp_path / "back.pth").exit_code == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n].view(torch.int32), v.view(torch.int32)) for n, v in state.items())


# -- what shapes do not tell ------------------------------------------------------------------------------------------


def published_file(path, head, options, dims, seed=0):
    """A file of the authors of `head`, filled with random numbers; returns its tensors too."""
    torch.manual_seed(seed)
    kind = heads.get(head)
    module = kind(*kind.sizes(dims), **options)
    form, own = module.published(), module.state_dict()
    state = {n: 0.3 * torch.randn(own[ours].shape) for n, ours in form.names.items() if own[ours].is_floating_point()}
    state |= {n: v.abs() for n, v in state.items() if n.endswith("running_var")}
    state |= {n: own[ours] for n, ours in form.names.items() if n not in state}
    state |= {n: torch.randn(shape) for n, shape in form.unused.items()}
    return saved(path, state), state


def test_recipes_that_fit_alike_and_score_differently_must_be_told_apart(wsvad, tmp_path):
    """PEL4VAD's window and norm leave no trace in its tensors, and differ between ShanghaiTech and XD-Violence."""
    file, _ = published_file(tmp_path / "xd.pkl", "pel4vad", {"kernel": 3}, {"rgb": 1024})
    call = ["checkpoint", "import", file, "--head", "pel4vad", "--out", tmp_path / "run"]
    refused(wsvad(*call), "fit several recipes, which do not score alike: pel4vad_sh, pel4vad_xd", "--recipe")
    assert wsvad(*call, "--recipe", "pel4vad_xd").exit_code == 0
    head = RunDir(tmp_path / "run").config.head
    assert (head.options["norm"], head.options["kernel"]) == (False, 3)


def test_recipes_that_score_alike_are_named(wsvad, tmp_path):
    file, _ = published_file(tmp_path / "r.pkl", "rtfm", {"width": 4, "hidden": [6, 4]}, {"rgb": 16})
    result = wsvad("checkpoint", "import", file, "--head", "rtfm", "--out", tmp_path / "run", "--json")
    assert json.loads(result.stdout)["notes"] == ["also fits: rtfm_ucf, rtfm_xd; --recipe chooses"]


def test_columns_keep_the_order_of_the_authors_whatever_the_order_of_the_stores(wsvad, tmp_path):
    """HL-Net's 1152 columns are sight, then sound: stores in another order must not swap them."""
    file, _ = published_file(tmp_path / "h.pkl", "hlnet", {}, {"rgb": 1024, "audio": 128})
    call = ["checkpoint", "import", file, "--head", "hlnet"]
    bag = random_bag([5, 3], [0, 1], dims={"rgb": 1024, "audio": 128})
    found = []
    for number, dims in enumerate((None, "audio=128,rgb=1024", "rgb=1024,audio=128")):
        run = tmp_path / f"run{number}"
        assert wsvad(*call, "--out", run, *(["--dims", dims] if dims else [])).exit_code == 0
        found.append(checkpoint.load(RunDir(run).checkpoint).model(bag).scores)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    backwards = replace(bag, features=dict(reversed(bag.features.items())))
    assert torch.equal(checkpoint.load(RunDir(tmp_path / "run0").checkpoint).model(backwards).scores, found[0])
    stores = []
    for modality, dim in (("flow", 1024), ("audio", 128)):
        FeatureStore(tmp_path / modality, FeatureSpec("other", dim, modality=modality))
        stores += ["--features", tmp_path / modality]
    result = wsvad(*call, "--out", tmp_path / "no", *stores)
    refused(result, "in which order its 1152 columns hold flow, audio", "--dims")


def test_parameters_of_ours_alone_are_not_counted(wsvad, tmp_path):
    """MACIL-SD's student has 247,425; the teacher lies in another file."""
    file, _ = published_file(tmp_path / "m.pkl", "macil_sd", {}, {"rgb": 1024, "audio": 128})
    result = wsvad("checkpoint", "import", file, "--head", "macil_sd", "--out", tmp_path / "run", "--json")
    assert json.loads(result.stdout)["parameters"] == 247_425


def test_a_dictionary_goes_in_and_out_beside_the_weights(wsvad, tmp_path):
    options = {"width": 8, "hidden": [6, 4], "key": 3, "gate": 4}
    file, state = published_file(tmp_path / "s.pkl", "s3r", options, {"rgb": 16})
    np.save(tmp_path / "rows.npy", np.arange(48, dtype=np.float32).reshape(3, 16))
    call = ["checkpoint", "import", file, "--head", "s3r", "--recipe", "s3r_ucf", "--out"]
    assert "--set head.dictionary=FILE.npy" in wsvad(*call, tmp_path / "without").stderr
    result = wsvad(*call, tmp_path / "with", "--set", f"head.dictionary={tmp_path / 'rows.npy'}")
    assert (result.exit_code, "head.dictionary" in result.stderr) == (0, False)
    assert wsvad("checkpoint", "export", tmp_path / "with", "--out", tmp_path / "back.pkl").exit_code == 0
    assert torch.load(tmp_path / "back.pkl", weights_only=True).keys() == state.keys()
    assert np.array_equal(np.load(tmp_path / "back.dictionary.npy"), np.load(tmp_path / "rows.npy"))


def test_a_best_number_beside_the_weights_does_no_harm(wsvad, tmp_path):
    torch.save({"model_state_dict": deepmil_state(), "ap": np.float64(0.84), "n": np.int64(3)}, tmp_path / "c.pth")
    out = tmp_path / "run"
    assert wsvad("checkpoint", "import", tmp_path / "c.pth", "--head", "deepmil", "--out", out).exit_code == 0
