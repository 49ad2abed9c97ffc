"""The threshold of events: chosen on training videos and their labels alone, stated, kept, and never stale."""

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import manifest
from data.files import write_text
from mil import threshold as module
from mil.evaluate import evaluate_run
from mil.events import EventRule
from mil.rundir import RunDir
from mil.threshold import Threshold, separating, training_threshold
from mil.train import fit
from tests.mil_helpers import make_world, small_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("threshold"), train=5, test=2, shift=1.0)


@pytest.fixture(scope="module")
def trained(world):
    config = small_config("train.steps=20", "evaluate.smooth=3", "select.also=[val]")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy, without what was kept."""
    shutil.copytree(trained.root, tmp_path / "run")
    return RunDir(tmp_path / "run")


def slow_balance(high, low, t):
    return (sum(x >= t for x in high) / len(high) + sum(x < t for x in low) / len(low)) / 2


scores = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=9)


@given(scores, scores)
@settings(max_examples=200, deadline=None)
def test_of_the_thresholds_that_separate_as_well_as_the_best_it_has_the_most_room(high, low):
    values = sorted({*high, *low})
    if len(values) < 2:
        with pytest.raises(ValueError, match="all training videos score"):
            separating(high, low)
        return
    t, hit, quiet = separating(high, low)
    assert hit == pytest.approx(sum(x >= t for x in high) / len(high))
    assert quiet == pytest.approx(sum(x < t for x in low) / len(low))
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(values)]
    best = max(slow_balance(high, low, m) for _, m in gaps)
    first = next(m for _, m in gaps if slow_balance(high, low, m) > best - 1e-12)
    error = 0.0
    for right, count in ((sum(x >= first for x in high), len(high)), (sum(x < first for x in low), len(low))):
        p = (right + 1) / (count + 2)
        error += p * (1 - p) / count / 4
    as_good = [(width, m) for width, m in gaps if slow_balance(high, low, m) >= best - error**0.5 - 1e-12]
    assert t == next(m for width, m in as_good if width == max(w for w, _ in as_good))


def test_one_video_that_was_learned_by_heart_does_not_pull_it_down():
    """Of 50 anomalous videos one scores low, the normal ones next to nothing."""
    high, low = [1e-7, *np.linspace(0.9, 1, 49)], np.linspace(1e-10, 1e-9, 50)
    assert separating(high, low) == (pytest.approx(0.45, rel=1e-3), 0.98, 1.0)
    high[:10] = np.linspace(1e-8, 1e-7, 10)  # that many are no accident
    assert separating(high, low)[0] < 1e-7


def test_scores_that_nothing_lies_between_are_separated_all_the_same():
    a = 0.1
    b = np.nextafter(a, 1)
    t, hit, quiet = separating([b, b], [a])
    assert a < t <= b
    assert (hit, quiet) == (1, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_head_has_no_threshold(bad):
    with pytest.raises(ValueError, match="diverged"):
        separating([1.0, bad], [0.0])


def frame_scores(world, run, videos, tmp_path, rule=None):
    """By `wsvad eval`, of those videos, whatever their split and label."""
    path = tmp_path / "as_test.csv"
    manifest.write(path, [replace(v, split="test", label=0, events=()) for v in videos])
    found = evaluate_run(run, protocol_name="frames", manifest_path=path, rule=rule).videos
    return {v.video_id: v.scores for v in found}


@pytest.mark.parametrize("rule", [None, "val"])
def test_it_is_of_the_frame_scores_of_the_training_videos(world, run, tmp_path, rule):
    frames = frame_scores(world, run, world.train, tmp_path, rule)
    by_label = [[frames[v.id] for v in world.train if v.label == label] for label in (0, 1)]
    value, hit, quiet = separating([s.max() for s in by_label[1]], [s.max() for s in by_label[0]])
    found = training_threshold(run, rule)
    assert found.value == pytest.approx(value, abs=1e-6)
    usual = np.median(np.concatenate(by_label[0]))
    assert found.low == pytest.approx(usual + 0.8 * (value - usual), abs=1e-6)
    assert f"separates {100 * hit:.3g} % of 5 anomalous from {100 * quiet:.3g} % of 5 normal ones" in found.about
    assert "2 of them were held out of training" in found.about
    kept = json.loads((run.root / f"threshold-{rule or 'last'}.json").read_text())
    assert kept["threshold"] == found.value


def test_neither_test_videos_nor_annotations_change_it(world, run, monkeypatch):
    wanted = training_threshold(run)
    (run.root / "threshold-last.json").unlink()
    seen = []
    real = module.read_features
    monkeypatch.setattr(module, "read_features", lambda stores, i: seen.append(i) or real(stores, i))
    videos = [replace(v, events=()) if v.split == "train" else replace(v, label=0, events=()) for v in run.videos]
    manifest.write(run.root / "manifest.csv", videos)
    assert training_threshold(run) == wanted
    assert sorted(seen) == sorted(v.id for v in world.train)


def test_it_is_kept_until_the_weights_are_others(run, monkeypatch):
    wanted = training_threshold(run)
    path = run.root / "threshold-last.json"
    monkeypatch.setattr(module, "score_videos", None)
    assert training_threshold(run) == wanted
    for change in ({"step": 1}, {"selected_by": "another"}, {"format": 0}, {"rule": "val"}):
        write_text(path, json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(TypeError, match="not callable"):
            training_threshold(run)
        monkeypatch.undo()
        assert training_threshold(run) == wanted
        monkeypatch.setattr(module, "score_videos", None)
    monkeypatch.undo()
    for damage in ("{", "[]", ""):
        path.write_text(damage)
        assert training_threshold(run) == wanted
    assert json.loads(path.read_text())["threshold"] == wanted.value


def test_a_run_that_may_only_be_read_is_read(run, monkeypatch):
    def refuse(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "write_text", refuse)
    first = training_threshold(run)
    assert first == training_threshold(run)
    assert not list(run.root.glob("threshold*"))


def test_without_features_the_remedy_is_named(run, tmp_path):
    path = run.root / "features.json"
    before = json.loads(path.read_text())
    for stores, reason in (
        ([{**before[0], "root": str(tmp_path / "moved")}], "no feature store"),
        ([], "names no features"),
        ([{**before[0], "spec": {**before[0]["spec"], "dim": 9}}], "dim=8"),
    ):
        write_text(path, json.dumps(stores))
        with pytest.raises(ValueError, match=rf"training videos of .*{reason}.*: --threshold SCORE"):
            training_threshold(run)
    assert not list(run.root.glob("threshold*"))
    write_text(path, json.dumps(before))
    manifest.write(run.root / "manifest.csv", [v for v in run.videos if v.split == "test" or v.label])
    with pytest.raises(ValueError, match=r"both classes, there are 5 anomalous of 5.*--threshold"):
        training_threshold(run)


def test_videos_that_have_lost_their_features_are_left_out_and_counted(world, tmp_path):
    videos = (*world.videos, replace(world.train[0], id="gone"))
    config = small_config("train.steps=3")
    run = RunDir.create(tmp_path / "run", config, world.videos, world.stores)
    fit(config, world.train, world.stores, run)
    wanted = training_threshold(run)
    manifest.write(run.root / "manifest.csv", videos)
    (run.root / "threshold-last.json").unlink()
    found = training_threshold(run)
    assert found.value == wanted.value
    assert found.about == f"{wanted.about}; left out for want of features: 1"
    assert "held out" not in found.about
    os.unlink(run.root / "threshold-last.json")
    write_text(run.root / "left_out.txt", "gone\n")  # it never took part
    assert training_threshold(run) == wanted


def test_rules_of_events():
    given = Threshold.given(0.5)
    assert given.rule() == EventRule(0.5, 0.4, 1.0, 2.0)
    assert given.rule(low=0.1, min_s=0, merge_s=3) == EventRule(0.5, 0.1, 0, 3)
    assert Threshold.given(-2.0).rule() == EventRule(-2.0, -2.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="low must be at most high"):
        given.rule(low=0.6)
