"""Comparisons: intervals against a loop over drawn videos, seeds against simulations, letters, refusals, tables."""

import json
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from data import manifest
from data.types import FrameScores, Video
from mil.compare import CompareError, compare
from mil.compare_rank import difference, letters, over_seeds
from mil.compare_rules import compare_rules
from mil.compare_table import _latex, render
from mil.config import load
from mil.evaluate import write_scores
from mil.rules import RULES, Rule
from mil.rundir import RunDir

IDS = ["v3", "v1", "v2", "v5", "v4", "v0"]
TRAINED_ON = [Video("t0", "", "train", 0)]
QUALITY = {"good": 2.0, "decent": 1.8, "poor": 0.0}


def fake_run(root, name, seed, quality, *overrides, protocol="frames", **evaluation):
    """A run with one evaluation; see `evaluate`."""
    config = load("motion_ranking", [*overrides, f"recipe={name}"], seed=seed)
    run = RunDir.create(root / f"{name}-{'-'.join(overrides)}-s{seed}", config, TRAINED_ON, [])
    run.set_status("done")
    return evaluate(run, quality, protocol=protocol, **evaluation)


def evaluate(
    run, quality, *, rule=None, precision="fp32", protocol="frames", frames=30, order=IDS, shift=0, features="f-1",
    selected="last step (9)",
):  # fmt: skip
    """As `evaluate_run` writes it: frame scores are noise plus `quality` on anomalous frames; three of six videos have
    some."""
    config = run.config
    rule, name = rule or config.select.rule, config.recipe
    videos = []
    for video_id in order:
        index = int(video_id[1])
        rng = np.random.default_rng([index, config.seed, len(name)])
        labels = np.zeros(frames + index, np.uint8)
        if index % 2:
            labels[5 + shift : 15 + shift] = 1
        scores = np.round(rng.standard_normal(len(labels)) + quality * labels, 1)
        videos.append(FrameScores(video_id, scores, labels))
    scores, labels = (np.concatenate([getattr(v, kind) for v in videos]) for kind in ("scores", "labels"))
    auc, ap = float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))
    numbers = {"auc": auc, "ap": ap, "pr_auc": ap, "ano_auc": None, "seed": config.seed, "head": "ranking"}
    numbers |= {"protocol": protocol, "missing": [], "videos": 6, "features": [features], "selected_by": selected}
    numbers |= {"rule": rule, "optimistic": rule == "test", "precision": precision, "lengths_from": ["decoded"]}
    numbers |= {"step": 9}
    run.checkpoint_of(rule).with_suffix(".json").write_text(json.dumps({"selected_by": selected, "step": 9}))
    apart = [f"by_{rule}"] * (rule != config.select.rule) + [precision] * (precision != "fp32")
    path = run.root / "eval" / f"{'-'.join(['test', protocol, *apart])}.json"
    path.write_text(json.dumps(numbers))
    write_scores(path.with_name(path.stem + "_scores.npz"), videos)
    return run.root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("folder")
    for name, quality in QUALITY.items():
        for seed in (0, 1, 2):
            fake_run(tmp_path, name, seed, quality)
    return tmp_path


def slow_draws(root, resamples):
    """AUC of each draw of whole videos, the frames written out; draws are the bootstrap's own of seed 0."""
    with np.load(next((root / "eval").glob("*.npz"))) as found:
        ends = np.cumsum(found["lengths"])
        parts = {
            str(i): (found["scores"][b - n : b], found["labels"][b - n : b])
            for i, n, b in zip(found["ids"], found["lengths"], ends, strict=True)
        }
    weights = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=resamples)
    values = []
    for row in weights:
        chosen = [parts[i] for i, times in zip(sorted(parts), row, strict=True) for _ in range(times)]
        scores, labels = (np.concatenate([c[k] for c in chosen]) for k in (0, 1))
        values.append(roc_auc_score(labels, scores) if 0 < labels.sum() < len(labels) else np.nan)
    return np.array(values)


def slow_replicates(values, draws):
    """Of a mean over seeds: that of each draw of videos, and Student's t of the seeds."""
    count, resamples = draws.shape
    mean = sum(values) / count
    error = (sum((v - mean) ** 2 for v in values) / (count - 1)) ** 0.5 / count**0.5
    noise = np.random.default_rng([0, 1]).standard_t(count - 1, resamples)
    return np.array([sum(draws[:, r]) / count + noise[r] * error for r in range(resamples)])


def slow_interval(values):
    kept = sorted(v for v in values if not np.isnan(v))
    places = (0.025 * (len(kept) - 1), 0.975 * (len(kept) - 1))
    ends = [(kept[int(p)], kept[min(int(p) + 1, len(kept) - 1)], p % 1) for p in places]
    return tuple(low + part * (high - low) for low, high, part in ends)


def test_means_deviations_and_intervals_against_loops(folder):
    """Every pair, too: its difference on each draw is of the same videos, its noise that of the differences by seed."""
    found = compare([folder], resamples=40)
    names = [row.group.name for row in found.rows]
    drawn = {name: np.stack([slow_draws(folder / f"{name}--s{s}", 40) for s in (0, 1, 2)]) for name in names}
    own = {
        name: [json.loads((folder / f"{name}--s{s}/eval/test-frames.json").read_text()) for s in (0, 1, 2)]
        for name in names
    }
    auc = {name: np.array([numbers["auc"] for numbers in own[name]]) for name in names}
    for name, row in zip(names, found.rows, strict=True):
        assert row.group.mean("auc") == pytest.approx(np.mean(auc[name]), abs=1e-12)
        assert row.group.deviation("ap") == pytest.approx(np.std([n["ap"] for n in own[name]], ddof=1), abs=1e-12)
        expected = slow_interval(np.clip(slow_replicates(auc[name], drawn[name]), 0, 1))
        assert row.intervals["auc"] == pytest.approx(expected, abs=1e-9)
    for i, j in combinations(range(3), 2):
        one = found.differences[i, j]
        gap = slow_interval(slow_replicates(auc[names[i]] - auc[names[j]], drawn[names[i]] - drawn[names[j]]))
        assert one.interval == pytest.approx(gap, abs=1e-9)
        assert one.value == pytest.approx(found.rows[i].group.mean("auc") - found.rows[j].group.mean("auc"), abs=1e-12)
        assert one.value >= 0
        assert one.paired_by_seed
        assert one.apart == (gap[0] > 0)
    assert found.rows[2].behind == found.differences[0, 2]


def test_what_a_seed_does_to_two_groups_alike_cancels(tmp_path):
    """Two groups whose seeds differ much, and each of which is a little better than the other with the same seed."""
    for seed, quality in enumerate((-0.8, -0.4, 0.0, 0.4)):
        fake_run(tmp_path, "up", seed, quality + 0.4)
        fake_run(tmp_path, "dn", seed, quality)
    fake_run(tmp_path / "more", "dn", 4, -0.8)
    paired = compare([tmp_path], resamples=200)
    other = compare([tmp_path, tmp_path / "more"], resamples=200)
    assert [row.group.name for row in paired.rows] == ["up", "dn"]
    (one,), (loose,) = paired.differences.values(), other.differences.values()
    assert one.apart
    assert (one.paired_by_seed, loose.paired_by_seed) == (True, False)
    assert np.diff(one.interval) < 0.5 * np.diff(loose.interval)
    assert "not paired by seed" in render(other)
    assert "not paired by seed" not in render(paired)


@pytest.mark.parametrize(
    ("count", "other", "pairs"),
    [(2, 2, True), (3, 3, True), (5, 5, True), (3, 3, False), (5, 5, False), (5, 3, False)],
)
def test_equal_groups_with_noise_of_seeds_alone_are_told_apart_in_five_of_a_hundred(count, other, pairs):
    """By draws of two, three or five seeds it would be 50, 26 and 13 of a hundred. The groups of a pair share what
    their seeds do to both, which cancels in the differences; of 1,000 pairs, 30 and 80 are 3 deviations away."""
    rng, resamples, apart = np.random.default_rng(count), 300, 0
    for number in range(1000):
        shared = 3 * rng.standard_normal(count) if pairs else 0
        values = [rng.standard_normal(n) + shared for n in (count, other)]
        draws = [np.tile(v[:, None], resamples) for v in values]
        seeds = (range(count), range(other) if pairs else range(9, 9 + other))
        apart += difference(tuple(values), tuple(draws), seeds, number).apart
    assert 30 <= apart <= 80


def test_noise_of_the_seeds_is_that_of_their_mean():
    """Of 4, 6 and 8: deviation 2, over the root of 3, times the quantiles of t with 2 degrees of freedom, 4.303; what
    the draws of videos add stays."""
    values = np.array([0.4, 0.6, 0.8])
    draws = np.tile(values[:, None] - 0.1, 200_000)
    low, high = np.quantile(over_seeds(draws, values / 100, 0), (0.025, 0.975))
    assert (high - low) / 2 == pytest.approx(0.002 / 3**0.5 * 4.303, rel=0.03)
    assert (high + low) / 2 == pytest.approx(0.5, abs=1e-3)
    wide = over_seeds(draws[:, :500], values, 0)
    assert (wide.min(), wide.max()) == (0, 1)
    assert np.array_equal(over_seeds(draws[:1, :5], values[:1], 0), draws[0, :5])


def test_a_single_seed_is_told_apart_from_nothing(tmp_path):
    """However far away: what another seed would give is unknown."""
    for seed in (0, 1, 2):
        fake_run(tmp_path, "up", seed, 9.0)
        fake_run(tmp_path, "mid", seed, 2.0)
    fake_run(tmp_path, "lone", 0, -9.0)
    found = compare([tmp_path], resamples=100)
    assert [row.group.name for row in found.rows] == ["up", "mid", "lone"]
    assert [row.letters for row in found.rows] == ["a", "b", "ab"]
    assert [found.differences[pair].apart for pair in ((0, 1), (0, 2), (1, 2))] == [True, False, False]
    assert found.rows[2].within_noise
    assert found.rows[2].behind.interval[0] > 0.5
    said = "rows of one seed: the noise of seeds is unknown, intervals are over videos alone, and no row is told apart"
    assert said in render(found)
    alone = compare([tmp_path / "lone--s0", fake_run(tmp_path, "best", 0, 9.0)], resamples=100)
    assert [row.letters for row in alone.rows] == ["a", "a"]


@given(st.integers(1, 9), st.data())
def test_two_rows_share_a_letter_exactly_when_they_are_not_told_apart(count, data):
    apart = np.zeros((count, count), bool)
    for i, j in combinations(range(count), 2):
        apart[i, j] = apart[j, i] = data.draw(st.booleans())
    found = letters(apart)
    for i, j in combinations(range(count), 2):
        assert bool(set(found[i]) & set(found[j])) == (not apart[i, j])
    assert all(found)
    used = sorted(set("".join(found)))
    assert found[0][0] == "a"
    assert used == [chr(ord("a") + n) for n in range(len(used))]
    holders = [{i for i in range(count) if letter in found[i]} for letter in used]
    assert not any(a < b for a in holders for b in holders), "a letter that says nothing new"


def test_letters_of_more_rows_than_the_alphabet_has():
    found = letters(~np.eye(60, dtype=bool))
    assert found[:2] == ["a", "b"]
    assert len(set(found)) == 60


def test_the_ranking_says_which_differences_are_noise(folder):
    rows = {row.group.name: row for row in compare([folder], resamples=300).rows}
    assert list(rows)[-1] == "poor"
    assert not rows["poor"].within_noise
    assert rows["poor"].behind.interval[0] > 0.1
    assert rows["decent"].within_noise
    assert rows["good"].within_noise
    assert [row.letters for row in rows.values()] == ["a", "a", "b"]
    assert [r.group.name for r in compare([folder], metric="ap", resamples=10).rows][-1] == "poor"


def test_videos_are_joined_by_id_and_not_by_order(tmp_path):
    """The same scores in another order: the same draws, hence a difference of 0 on every one."""
    fake_run(tmp_path, "abc", 0, 1.0)
    fake_run(tmp_path, "xyz", 0, 1.0, order=sorted(IDS))
    found = compare([tmp_path], resamples=50)
    assert found.rows[1].behind.value == pytest.approx(0, abs=1e-12)
    assert found.rows[1].behind.interval == pytest.approx((0, 0), abs=1e-12)


def test_runs_of_one_recipe_with_other_values_are_groups_of_their_own(tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path, "a", seed, 1.0, "head.topk=1")
        fake_run(tmp_path, "a", seed, 1.0, "head.topk=2")
    names = {row.group.name: row.group.seeds for row in compare([tmp_path], resamples=5).rows}
    assert names == {"a head.topk=1": (0, 1), "a head.topk=2": (0, 1)}


def test_runs_trained_on_other_videos_are_other_groups(tmp_path):
    """By id and label, without those that had no features; the order and the test videos are nothing to training."""
    train = [Video(f"t{i}", "", "train", i % 2) for i in range(4)]
    test = Video("x", "", "test", 0)
    kinds = [
        (train, ""), (train[:3], ""), (train, "t3\n"), ([*train[::-1], test], ""),
        ([*train[:3], Video("t3", "", "train", 0)], ""),
    ]  # fmt: skip
    for seed, (videos, gone) in enumerate(kinds):
        root = fake_run(tmp_path, "a", seed, 1.0)
        manifest.write(root / "manifest.csv", videos)
        (root / "left_out.txt").write_text(gone)
    groups = [row.group for row in compare([tmp_path], resamples=5).rows]
    assert sorted(group.seeds for group in groups) == [(0, 3), (1, 2), (4,)]
    assert sorted(group.name.split("=")[1].rsplit(" ", 1)[0] for group in groups) == [
        "3 videos",
        "4 videos",
        "4 videos",
    ]


@pytest.mark.parametrize("state", ["new", "running", "interrupted", "failed"])
def test_runs_that_are_not_done_are_left_out_and_named(tmp_path, state):
    """Though they have an evaluation of the weights that they have now."""
    for seed in (0, 1):
        fake_run(tmp_path, "a", seed, 1.0)
    half = fake_run(tmp_path, "a", 2, 9.0, selected="step 9 of 20, unfinished")
    (half / "status.json").unlink() if state == "new" else RunDir(half).set_status(state)
    for found in (compare([tmp_path], resamples=5), compare_rules([tmp_path], resamples=5)):
        assert found.left_out == (f"{half.name} (unfinished)",)
        assert f"unfinished or not evaluated like that: 1 runs ({half.name} (unfinished))" in render(found)
        assert json.loads(render(found, "json"))["rows"][0]["name"] == "a"
    assert compare([tmp_path], resamples=5).rows[0].group.seeds == (0, 1)
    with pytest.raises(CompareError, match=r"none of 1 runs is done, e\.g\. .*--resume"):
        compare([half])


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_a_run_that_cannot_be_read_costs_the_others_nothing(tmp_path, name):
    for seed in (0, 1):
        fake_run(tmp_path, "a", seed, 1.0)
    torn = fake_run(tmp_path, "a", 2, 9.0)
    (torn / name).write_text("{head: [")
    for found in (compare([tmp_path], resamples=5), compare_rules([tmp_path], resamples=5)):
        (said,) = found.left_out
        assert said.startswith(f"{torn.name} (cannot be read: ")
    with pytest.raises(CompareError, match=r"none of 1 runs is done, e\.g\. .*cannot be read"):
        compare([torn])


def test_numbers_of_weights_that_a_run_has_replaced_count_no_more(tmp_path):
    kept, late, other = (fake_run(tmp_path, "a", seed, 1.0) for seed in (0, 1, 2))
    for root, change in ((late, {"step": 20}), (other, {"selected_by": "best"})):
        path = root / "checkpoints" / "last.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = compare([tmp_path], resamples=5)
    assert (found.rows[0].group.seeds, found.left_out) == ((0,), (late.name, other.name))
    assert kept.name not in found.left_out


def test_what_selected_the_weights_is_said_without_its_numbers_and_is_one_thing(tmp_path):
    said = "best video-level AUC (0.{0}, step {0} of 20) on 4 held-out training videos, weights averaged (EMA 0.9)"
    said += "; trained on 8 of 12 videos: 40 % held out"
    for seed in (3, 4):
        fake_run(tmp_path, "a", seed, 1.0, selected=said.format(seed))
    short = (
        "best video-level AUC on 4 held-out training videos, weights averaged (EMA 0.9); trained on 8 of 12 videos: "
        "40 % held out"
    )
    assert compare([tmp_path], resamples=5).rows[0].group.selected_by == short
    assert f"weights: {short}" in render(compare([tmp_path], resamples=5))
    fake_run(tmp_path, "a", 5, 1.0, selected="last step (20), fixed beforehand")
    with pytest.raises(
        CompareError, match=r"runs of 'a' have weights .* seed 5 by 'last step, fixed beforehand'; pass"
    ):
        compare([tmp_path])


def test_auto_is_not_what_was_asked_for_by_name(tmp_path):
    """`auto` of known lengths is `frames`: a number by snippet stands in for nothing; with unknown ones it is it."""
    known, published = (fake_run(tmp_path, "a", seed, 1.0, protocol="snippets") for seed in (0, 1))
    path = published / "eval" / "test-snippets.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lengths_from": ["decoded", "features"]}))
    found = compare([tmp_path], resamples=5)
    assert (found.rows[0].group.seeds, found.left_out) == ((1,), (known.name,))
    assert compare([tmp_path], resamples=5, protocol="snippets").rows[0].group.seeds == (0, 1)


def test_runs_on_other_features_are_another_group(tmp_path):
    fake_run(tmp_path, "a", 0, 1.0)
    fake_run(tmp_path, "a", 1, 1.0, features="g-2")
    assert {row.group.name for row in compare([tmp_path], resamples=5).rows} == {"a features=f-1", "a features=g-2"}


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = fake_run(tmp_path / "a", "a", 0, 1.0)
    ratio = fake_run(tmp_path / "b", "b", 0, 1.0, "evaluate.protocol=ratio", protocol="ratio")
    with pytest.raises(CompareError, match=r"under protocol 'frames', .* under 'ratio'"):
        compare([one, ratio])
    with pytest.raises(CompareError, match="not scored on the same frames and labels: see 'v0'"):
        compare([one, fake_run(tmp_path / "c", "c", 0, 1.0, frames=31)])
    with pytest.raises(CompareError, match="not scored on the same frames and labels: see 'v1'"):
        compare([one, fake_run(tmp_path / "e", "e", 0, 1.0, shift=1)])
    with pytest.raises(CompareError, match="two runs of 'a' have the seed 0"):
        compare([one, fake_run(tmp_path / "d", "a", 0, 1.0)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match=r"no runs below .*empty"):
        compare([tmp_path / "empty"])
    with pytest.raises(CompareError, match="no run and no folder of runs at"):
        compare([tmp_path / "nothing"])
    with pytest.raises(CompareError, match=r"none of 1 runs is evaluated on the train split.*wsvad eval RUN"):
        compare([one], split="train")
    with pytest.raises(CompareError, match="ranked by one of auc, ap, pr_auc, got 'far'"):
        compare([one], metric="far")


def test_partial_evaluations_and_those_without_scores_are_left_out_and_named(tmp_path):
    part, torn = (fake_run(tmp_path, "a", seed, 1.0) for seed in (0, 1))
    path = part / "eval" / "test-frames.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "missing": ["v9"]}))
    (torn / "eval" / "test-frames_scores.npz").unlink()
    with pytest.raises(CompareError, match="none of 2 runs"):
        compare([tmp_path])
    fake_run(tmp_path, "a", 2, 1.0)
    found = compare([tmp_path], resamples=5)
    assert found.left_out == (part.name, torn.name)
    assert f"LEFT OUT, unfinished or not evaluated like that: 2 runs ({part.name}, {torn.name})" in render(found)
    assert json.loads(render(found, "json"))["left_out"] == [part.name, torn.name]


# -- rules of selection, precisions ------------------------------------------------------------------------------------

KINDS = {"last": 1.0, "val": 1.2, "test": 2.0}


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """Two recipes of two seeds with three rules each; `own` is judged by test, `plain` by last."""
    tmp_path = tmp_path_factory.mktemp("ruled")
    for name, rule in (("own", "test"), ("plain", "last")):
        for seed in (0, 1):
            also = [r for r in KINDS if r != rule]
            root = fake_run(tmp_path, name, seed, KINDS[rule], f"select.rule={rule}", f"select.also={also}")
            for other in also:
                evaluate(RunDir(root), KINDS[other], rule=other)
    return tmp_path


def cells(text, form):
    """The rows of a table but its title and its note."""
    lines = text.splitlines()
    if form == "latex":
        return [line for line in lines if line.endswith(r"\\")][1:]
    return [line for line in lines if ("plain" in line or "own" in line) and "videos, protocol" not in line]


@pytest.mark.parametrize("form", ["text", "markdown", "latex"])
def test_what_test_labels_selected_is_called_so_in_its_row(ruled, form):
    own, plain = cells(render(compare([ruled], resamples=10), form), form)
    assert "own" in own
    assert "OPTIMISTIC" in own
    assert "OPTIMISTIC" not in plain
    assert all("OPTIMISTIC" in row for row in cells(render(compare([ruled], resamples=10, rule="test"), form), form))
    assert "OPTIMISTIC" not in render(compare([ruled], resamples=10, rule="val"), form)
    assert all(row.count("OPTIMISTIC") == 1 for row in cells(render(compare_rules([ruled], resamples=10), form), form))


def test_rows_of_different_rules_say_so(ruled):
    assert "ROWS OF DIFFERENT RULES (test, last)" in render(compare([ruled], resamples=10))
    assert "DIFFERENT RULES" not in render(compare([ruled], resamples=10, rule="last"))
    values = json.loads(render(compare([ruled], resamples=10), "json"))
    assert values["rules"] == ["test", "last"]
    assert [(r["rule"], r["optimistic"], r["weights"]) for r in values["rows"]] == [
        ("test", True, "test OPTIMISTIC"),
        ("last", False, "last"),
    ]


def test_each_rule_is_read_from_its_own_evaluation(ruled):
    for rule in KINDS:
        for row in compare([ruled], resamples=5, rule=rule).rows:
            (root,) = ruled.glob(f"{row.group.name.split()[0]}-*-s0")
            own = "test-frames" if RunDir(root).config.select.rule == rule else f"test-frames-by_{rule}"
            assert row.group.values["auc"][0] == json.loads((root / "eval" / f"{own}.json").read_text())["auc"]


def test_rules_stand_side_by_side_with_their_differences(ruled):
    found = compare_rules([ruled], resamples=30)
    assert [tuple(row.groups) for row in found.rows] == [("last", "val", "test")] * 2
    by_rule = {rule: compare([ruled], resamples=30, rule=rule) for rule in KINDS}
    values = json.loads(render(found, "json"))
    for row, shown in zip(found.rows, values["rows"], strict=True):
        for rule, single in by_rule.items():
            (same,) = [r for r in single.rows if r.group.name == row.name]
            assert row.intervals[rule] == same.intervals["auc"]
            assert shown["rules"][rule]["mean"] == same.group.mean("auc")
            assert shown["rules"][rule]["optimistic"] == (rule == "test")
        gain = row.gains["test", "last"]
        assert gain.value == row.groups["test"].mean("auc") - row.groups["last"].mean("auc")
        assert gain.interval[0] <= gain.value <= gain.interval[1]
        assert shown["differences"]["test - last"]["difference"] == gain.value
    titles = render(found).splitlines()[0]
    places = [titles.index(t) for t in ("AUC, last", "AUC, val", "AUC, test OPTIMISTIC", "test - last [95 %]")]
    assert places == sorted(places)


def test_rules_of_unequal_seeds_and_rows_without_the_last_weights(tmp_path):
    """Each lacking evaluation is named; a number that test labels chose ranks behind those that they did not."""
    for name, rule, quality, runs in (("top", "test", 9.0, 2), ("mid", "val", 3.0, 2), ("all", "last", 1.0, 3)):
        also = [r for r in KINDS if r != rule] if name == "all" else []
        for seed in range(runs):
            root = fake_run(tmp_path, name, seed, quality, f"select.rule={rule}", f"select.also={also}")
            if name == "all" and seed < 2:
                evaluate(RunDir(root), quality + 0.1, rule="val")
    found = compare_rules([tmp_path], resamples=20)
    assert [tuple(row.groups) for row in found.rows] == [("last", "val"), ("val",), ("test",)]
    names = [f"all-select.rule=last-select.also=['val', 'test']-s{seed}" for seed in range(3)]
    ends = ["(not by test)", "(not by test)", "(not by val, test)"]
    assert found.left_out == tuple(f"{name} {end}" for name, end in zip(names, ends, strict=True))
    gain = found.rows[0].gains["val", "last"]
    assert (gain.paired_by_seed, gain.apart) == (False, False)
    text = render(found)
    assert "RULES OF OTHER SEEDS in one row are not paired by seed" in text
    assert [line.split("ranking")[1].split("  ")[1:] for line in cells_of(text)] == [["3, 2"], ["2"], ["2"]]


def cells_of(text):
    """Of the three rows: up to the column of seeds."""
    end = text.index("AUC, last")
    return [line[:end].rstrip() for line in text.splitlines()[1:4]]


def test_the_command_line_offers_the_rules_that_recipes_know():
    assert get_args(Rule) == RULES


def test_precisions_do_not_mix(tmp_path):
    """An evaluation in bf16 beside one in fp32 is not taken for it, nor in its place."""
    both = fake_run(tmp_path, "a", 0, 1.0)
    evaluate(RunDir(both), 3.0, precision="bf16")
    half = RunDir.create(tmp_path / "a--s1", load("motion_ranking", ["recipe=a"], seed=1), TRAINED_ON, [])
    half.set_status("done")
    evaluate(half, 3.0, precision="bf16")
    full, low = compare([tmp_path], resamples=5), compare([tmp_path], resamples=5, precision="bf16")
    assert (full.rows[0].group.seeds, low.rows[0].group.seeds) == ((0,), (0, 1))
    assert full.rows[0].group.mean("auc") < low.rows[0].group.values["auc"][0]
    assert full.left_out == ("a--s1",)
    assert "evaluated in bf16" in render(low)
    with pytest.raises(CompareError, match=r"none of 1 runs .* fp32; there are: test-frames-bf16 \(--rule"):
        compare([half.root])


# -- tables ------------------------------------------------------------------------------------------------------------


def test_tables_say_the_same_in_every_form(folder):
    found = compare([folder], resamples=20)
    first = found.rows[0]
    text, markdown, latex = (render(found, form) for form in ("text", "markdown", "latex"))
    shown = f"{first.group.mean('auc'):.3f} ± {first.group.deviation('auc'):.3f}"
    assert shown in text
    assert f"| `{first.group.name}` | ranking | 3 | last | {shown}" in markdown
    assert shown.replace("±", r"$\pm$") in latex
    assert latex.count(r"\\") == 4
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    values = json.loads(render(found, "json"), parse_constant=pytest.fail)
    assert [row["name"] for row in values["rows"]] == [row.group.name for row in found.rows]
    assert [row["letters"] for row in values["rows"]] == [row.letters for row in found.rows]
    assert values["rows"][0]["values"]["auc"] == first.group.values["auc"].tolist()
    assert values["rows"][0]["ci95"]["auc"] == list(first.intervals["auc"])
    assert "last step" in text.splitlines()[-1]


def test_the_difference_of_every_pair_is_in_the_json_both_ways(folder):
    found = compare([folder], resamples=20)
    values = json.loads(render(found, "json"))["differences"]
    names = [row.group.name for row in found.rows]
    for (i, j), one in found.differences.items():
        there, back = values[names[i]][names[j]], values[names[j]][names[i]]
        assert there == {
            "difference": one.value,
            "ci95": list(one.interval),
            "apart": one.apart,
            "paired_by_seed": True,
        }
        assert (back["difference"], back["ci95"]) == (-one.value, [-one.interval[1], -one.interval[0]])
    assert all(len(row) == 2 for row in values.values())


def test_names_with_an_underscore_survive_latex():
    assert _latex("a_b & 5 % ± 1 #{$") == r"a\_b \& 5 \% $\pm$ 1 \#\{\$"
