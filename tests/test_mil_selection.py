"""Rules of selection side by side: each keeps the weights it says it keeps, and looking at them disturbs nothing."""

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from data import manifest
from mil import checkpoint, evaluations
from mil import train as training
from mil.evaluate import evaluate_run
from mil.heads import Head, HeadOutput, heads
from mil.loop import Loop
from mil.losses import topk_bce
from mil.model import Model
from mil.optimistic import optimistic_look
from mil.run import resume_run, start_run
from mil.rundir import RunDir
from mil.selection import hold_out
from mil.train import TrainError, fit
from tests.mil_helpers import make_world, metrics_lines, small_config

# a high rate on features of different scales: the best step lies somewhere inside
NOISY = ["select.fraction=0.4", "select.every=1", "train.steps=20", "train.optimizer.lr=0.05", "data.scale=none"]


class Restless(Head):
    """One that a look could disturb: it draws random numbers and counts its passes, in evaluation too."""

    def __init__(self, dim):
        super().__init__()
        self.layer = nn.Linear(dim, 1)
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, bag):
        self.passes += 1
        x = nn.functional.dropout(self.layer(bag.x), 0.2)  # a common fault: active in evaluation as well
        return HeadOutput(x.squeeze(-1).sigmoid().mean(1) * bag.mask)

    def loss(self, out, bag):
        return {"bce": topk_bce(out.scores, bag.mask, bag.labels, 2)}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    heads.names()
    monkeypatch.setattr(heads, "_items", dict(heads._items))
    heads.register("restless")(Restless)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("selection"), train=6, test=3, shift=1.0)


def train(world, path, config, observer=None):
    run = RunDir.create(path, config, world.videos, world.stores)
    if observer is None and "test" in config.select.rules:
        observer = optimistic_look(config, world.test, world.stores)
    fit(config, world.train, world.stores, run, observer=observer)
    return run


@pytest.fixture(scope="module")
def three(world, tmp_path_factory):
    """A run that followed all three rules."""
    config = small_config(*NOISY, "select.also=[val, test]", seed=1)
    return train(world, tmp_path_factory.mktemp("three") / "run", config)


def looks(run, name):
    return [(line[name], line["step"]) for line in metrics_lines(run) if name in line]


def weights(run, rule):
    return run.checkpoint_of(rule).with_suffix(".safetensors").read_bytes()


# -- what each keeps --------------------------------------------------------------------------------------------------


def test_every_rule_keeps_its_best_step_and_says_so(world, three, tmp_path):
    apart = "; trained on 8 of 12 videos: 40 % held out"
    found = {rule: checkpoint.load(three.checkpoint_of(rule)) for rule in ("last", "val", "test")}
    assert (found["last"].step, found["last"].selected_by) == (20, f"last step (20), fixed beforehand{apart}")
    for rule, name in (("val", "val/video_auc"), ("test", "OPTIMISTIC/test_auc")):
        seen = looks(three, name)
        assert [step for _, step in seen] == list(range(1, 21))
        best = max(value for value, _ in seen)
        first = next(step for value, step in seen if value == best)
        assert 1 < first < 20, "choose a seed whose best step lies inside"
        said = {
            "val": f"best video-level AUC ({best:.4f}, step {first} of 20) on 4 held-out training videos{apart}",
            "test": f"OPTIMISTIC: best test frame AUC ({best:.4f}, step {first} of 20), chosen on the test videos it "
            f"is judged by{apart}",
        }[rule]
        assert (found[rule].step, found[rule].selected_by) == (first, said)
        # the very weights of a run that ended there
        config = small_config(*NOISY, "select.also=[val]", f"train.steps={first}", seed=1)
        assert weights(train(world, tmp_path / rule, config), "last") == weights(three, rule)
    assert found["val"].step != found["test"].step, "choose a seed whose rules disagree"


@pytest.mark.parametrize("metric", ["auc", "ap"])
def test_what_test_looks_at_is_the_number_that_eval_prints(world, three, tmp_path, metric):
    run = three
    if metric == "ap":
        config = small_config("select.rule=test", "select.metric=ap", "select.every=5", "evaluate.smooth=3")
        run = train(world, tmp_path / "run", config)
    (best, step) = max(looks(run, f"OPTIMISTIC/test_{metric}"), key=lambda look: (look[0], -look[1]))
    numbers = evaluate_run(run, rule="test").numbers
    assert numbers["step"] == step
    assert numbers[metric] == pytest.approx(best, abs=1e-12)
    assert numbers["optimistic"] is True
    assert f"OPTIMISTIC: best test frame {metric.upper()} ({best:.4f}, step {step} of " in numbers["selected_by"]


def test_the_value_of_a_look_at_held_out_videos_is_the_auc_of_highest_clip_scores(world, three):
    (look,) = [value for value, step in looks(three, "val/video_auc") if step == 20]
    kept = checkpoint.load(three.checkpoint_of("last"))
    held, best = hold_out(world.train, three.config), {}
    for video in held:
        x = torch.from_numpy(world.stores[0].read(video.id).x.astype(np.float32))
        head = kept.model.head
        best[video.id] = float(torch.sigmoid(head.fc3(head.fc2(torch.relu(head.fc1(x))))).mean(0).max().detach())
    pairs = [
        1.0 if best[a.id] > best[n.id] else 0.5 if best[a.id] == best[n.id] else 0.0
        for a in held
        for n in held
        if a.label > n.label
    ]
    assert look == pytest.approx(np.mean(pairs))


def test_of_equal_looks_the_earliest_is_kept_and_the_last_step_is_looked_at(world, tmp_path):
    values = iter([0.1, 0.9, 0.9, 0.2])
    run = train(
        world,
        tmp_path / "run",
        small_config("select.rule=test", "select.every=4", "train.steps=13"),
        lambda model: next(values),
    )
    assert looks(run, "OPTIMISTIC/test_auc") == [(0.1, 4), (0.9, 8), (0.9, 12), (0.2, 13)]
    assert checkpoint.load(run.checkpoint).step == 8


def test_averaged_weights_are_the_ones_looked_at(world, tmp_path):
    seen = []

    def observer(model):
        seen.append(model.head.fc1.weight.clone())
        return float(len(seen))

    config = small_config("select.rule=test", "select.also=[last]", "select.every=6", "train.ema=0.9")
    run = train(world, tmp_path / "run", config, observer)
    for rule in ("last", "test"):
        assert torch.equal(checkpoint.load(run.checkpoint_of(rule)).model.head.fc1.weight, seen[-1])
        assert checkpoint.load(run.checkpoint_of(rule)).selected_by.endswith(", weights averaged (EMA 0.9)")


# -- looking disturbs nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", ["null", "0.8"])
def test_a_run_with_and_without_the_observer_is_the_same_but_for_its_lines(world, tmp_path, ema):
    """Of a head that draws random numbers and counts whenever it is called."""
    own = {"head": {"name": "restless"}, "data": {"count": 6}}
    found = {}
    for also in ("val", "val, test"):
        config = small_config(f"select.also=[{also}]", "select.fraction=0.4", "select.every=2", f"train.ema={ema}")
        values = {**config.model_dump(), **own, "select": config.select.model_dump()}
        config = training.Config.model_validate(values)
        found[also] = train(world, tmp_path / also, config)
    plain, watched = found.values()
    for rule in ("last", "val"):
        assert weights(plain, rule) == weights(watched, rule), rule
        texts = [json.loads(run.checkpoint_of(rule).with_suffix(".json").read_text()) for run in (plain, watched)]
        assert texts[1].pop("config")["select"]["also"] == ["val", "test"]
        texts[0].pop("config")
        assert texts[0] == texts[1]
    lines = [line for line in metrics_lines(watched) if not any(name.startswith("OPTIMISTIC") for name in line)]
    assert lines == metrics_lines(plain)
    assert len(metrics_lines(watched)) == len(lines) + 6
    assert checkpoint.load(plain.checkpoint).model.head.passes == 12  # those of training alone


@pytest.mark.parametrize("ema", ["null", "0.8"])
def test_how_often_the_rules_look_changes_no_training_step(world, tmp_path, ema):
    overrides = ["select.also=[val, test]", "select.fraction=0.4", f"train.ema={ema}"]
    often, once = (
        train(world, tmp_path / str(every), small_config(*overrides, f"select.every={every}")) for every in (1, 12)
    )
    assert weights(often, "last") == weights(once, "last")
    losses = [[line for line in metrics_lines(run) if "loss/total" in line] for run in (often, once)]
    assert losses[0] == losses[1]
    assert len(metrics_lines(often)) == len(metrics_lines(once)) + 2 * 11


# -- what training is given -------------------------------------------------------------------------------------------


def test_fit_sees_numbers_and_never_a_test_video(tmp_path):
    """There is none in its store, nor in its folder."""
    world = make_world(tmp_path, train=4, test=0)
    given = []

    def observer(*arguments, **more):
        given.append((arguments, more))
        return 0.5

    config = small_config("select.also=[val, test]", "select.fraction=0.4", "select.every=6", "train.steps=6")
    run = RunDir.create(tmp_path / "run", config, world.train, world.stores)
    fit(config, world.train, world.stores, run, observer=observer)
    (((model,), more),) = given
    assert (type(model), more, model.training) == (Model, {}, False)


def test_an_observer_is_given_where_it_is_wanted_and_only_there(world, tmp_path):
    for rule, observer in (("test", None), ("last", lambda model: 0.5)):
        config = small_config(f"select.rule={rule}")
        run = RunDir.create(tmp_path / rule, config, world.videos, world.stores)
        with pytest.raises(
            TrainError, match=r"an observer where select.rule or select.also names test, and only there"
        ):
            fit(config, world.train, world.stores, run, observer=observer)


def test_held_out_videos_take_no_part_in_training(world, tmp_path, monkeypatch):
    seen = []
    real = training.BagDataset

    def spy(videos, *rest, **more):
        seen.extend(v.id for v in videos)
        return real(videos, *rest, **more)

    monkeypatch.setattr(training, "BagDataset", spy)
    run = train(world, tmp_path / "run", small_config("select.also=[val]", "select.fraction=0.4"))
    held = {v.id for v in hold_out(world.train, run.config)}
    assert set(seen) == {v.id for v in world.train} - held


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_videos_are_of_both_classes_and_leave_both(world, fraction, seed):
    config = small_config(f"select.fraction={fraction}", "select.rule=val", seed=seed)
    held = hold_out(world.train, config)
    for label in (0, 1):
        assert sum(v.label == label for v in held) == min(max(round(6 * fraction), 1), 5)
    assert len({v.id for v in held}) == len(held)
    assert held == hold_out(world.train, config)


# -- what is refused, before the run's folder is made -----------------------------------------------------------------


def start(world, out, *overrides, videos=None, **options):
    source = world.manifest
    if videos is not None:
        source = out.with_suffix(".csv")
        manifest.write(source, videos)
    small = ["head.hidden=[16, 8]", "train.steps=6", "train.save_every=2", "select.every=2", *overrides]
    return start_run("motion_ranking", small, source, [s.root for s in world.stores], out, **options)


@pytest.mark.parametrize(
    ("rule", "change", "text"),
    [
        (
            "val",
            lambda v: v.split == "test" or not v.label or v.id.endswith("1"),
            "needs two videos of each class, found",
        ),
        ("test", lambda v: v.split == "train", "the test split has 0 normal and 0 anomalous videos; take test out"),
        ("test", lambda v: v.split == "train" or v.label, "the test split has 0 normal and 3 anomalous videos"),
    ],
)
def test_a_rule_that_cannot_be_followed_leaves_the_place_free(world, tmp_path, rule, change, text):
    kept = [v for v in world.videos if change(v)]
    if rule == "val":
        lonely = [v for v in kept if v.split == "train" and v.label][:1]
        kept = [v for v in kept if not (v.split == "train" and v.label)] + lonely
    with pytest.raises(TrainError, match=text):
        start(world, tmp_path / "run", f"select.also=[{rule}]", videos=kept)
    bare = [replace(v, events=()) if v.split == "test" else v for v in world.videos]
    with pytest.raises(TrainError, match=r"test video 'abnormal_test_001' has no annotated events"):
        start(world, tmp_path / "run", "select.rule=test", videos=bare)
    assert not (tmp_path / "run").exists()


@contextmanager
def interrupted_at_step_4(monkeypatch):
    """Ctrl-C before the step is taken."""
    update = Loop.update

    def cut(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", cut)
        with pytest.raises(KeyboardInterrupt):
            yield


@cache
def lost_video(videos):
    return replace(next(v for v in videos if v.split == "test" and v.label), id="lost_test")


def test_test_videos_without_features_are_named_and_stay_left_out(world, tmp_path, monkeypatch):
    """A run that goes on selects by the videos it began with."""
    videos = [*world.videos, lost_video(world.videos)]
    with pytest.raises(TrainError, match=r"1 of 19 videos have no features, e.g. 'lost_test'"):
        start(world, tmp_path / "no", "select.rule=test", videos=videos)
    start(world, tmp_path / "plain", videos=videos)  # a run that does not look at them does not ask
    whole, _ = start(world, tmp_path / "whole", "select.rule=test", videos=videos, allow_missing=True)
    assert whole.left_out == {"lost_test"}
    with interrupted_at_step_4(monkeypatch):
        start(world, tmp_path / "run", "select.rule=test", videos=videos, allow_missing=True)
    run, _ = resume_run("motion_ranking", tmp_path / "run")
    assert (run.root / "metrics.jsonl").read_bytes() == (whole.root / "metrics.jsonl").read_bytes()
    assert weights(run, "test") == weights(whole, "test")


# -- a run that is not done -------------------------------------------------------------------------------------------


def test_what_was_evaluated_before_a_run_was_done_does_not_outlive_it(world, tmp_path, monkeypatch):
    """Else a sweep would take the numbers of half a training for those of the whole. An evaluation that began before
    may end after the training does."""
    with interrupted_at_step_4(monkeypatch):
        start(world, tmp_path / "run", "select.also=[val]", "select.fraction=0.4", "select.every=1")
    run = RunDir(tmp_path / "run")
    rules = ("last", "val")
    early = [evaluate_run(run, rule=rule) for rule in rules]
    assert (early[0].numbers["step"], early[0].numbers["selected_by"].split(";")[0]) == (2, "step 2 of 6, unfinished")
    assert [evaluations.find(run.root, run.config, rule=rule).path for rule in rules] == [e.path for e in early]
    late = {path: path.read_bytes() for path in (run.root / "eval").iterdir()}
    resume_run("motion_ranking", run.root)
    for path, content in late.items():
        path.write_bytes(content)
    assert [evaluations.find(run.root, run.config, rule=rule) for rule in rules] == [None, None]
    assert evaluate_run(run).numbers["selected_by"].startswith("last step (6), fixed beforehand")
    assert evaluations.find(run.root, run.config).numbers["step"] == 6
