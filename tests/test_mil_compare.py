"""Comparisons: intervals against a loop over drawn videos and seeds, letters, names of groups, refusals, tables."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from data.types import FrameScores
from mil.compare import CompareError, compare
from mil.compare_rank import letters, over_seeds, seed_draws
from mil.compare_rules import compare_rules
from mil.compare_table import _latex, render
from mil.config import load
from mil.evaluate import write_scores
from mil.rundir import RunDir

IDS = ["v3", "v1", "v2", "v5", "v4", "v0"]
QUALITY = {"good": 2.0, "decent": 1.8, "poor": 0.0}


def fake_run(root, name, seed, quality, *overrides, protocol="frames", **evaluation):
    """A run with one evaluation; see `evaluate`."""
    config = load("motion_ranking", [*overrides, f"recipe={name}"], seed=seed)
    run = RunDir.create(root / f"{name}-{'-'.join(overrides)}-s{seed}", config, [], [])
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
    numbers |= {"rule": rule, "optimistic": rule == "test", "precision": precision}
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


def slow_averages(root, name, seeds, resamples):
    """Mean AUC of each draw, seed by seed as they were drawn for it."""
    draws = np.stack([slow_draws(root / f"{name}--s{s}", resamples) for s in seeds])
    taken = seed_draws(seeds, resamples, 0)
    return np.array([np.mean([draws[k, r] for k in taken[:, r]]) for r in range(resamples)])


def slow_interval(values):
    kept = sorted(v for v in values if not np.isnan(v))
    places = (0.025 * (len(kept) - 1), 0.975 * (len(kept) - 1))
    ends = [(kept[int(p)], kept[min(int(p) + 1, len(kept) - 1)], p % 1) for p in places]
    return tuple(low + part * (high - low) for low, high, part in ends)


def test_means_deviations_and_intervals_against_loops(folder):
    """Every pair, too: its difference on each draw is of the same videos, and of the same seeds."""
    found = compare([folder], resamples=40)
    names = [row.group.name for row in found.rows]
    expected = {name: slow_averages(folder, name, (0, 1, 2), 40) for name in names}
    for i, row in enumerate(found.rows):
        own = [json.loads((folder / f"{names[i]}--s{s}/eval/test-frames.json").read_text()) for s in (0, 1, 2)]
        assert row.group.mean("auc") == pytest.approx(np.mean([n["auc"] for n in own]), abs=1e-12)
        assert row.group.deviation("ap") == pytest.approx(np.std([n["ap"] for n in own], ddof=1), abs=1e-12)
        assert row.intervals["auc"] == pytest.approx(slow_interval(expected[names[i]]), abs=1e-9)
    for i, j in combinations(range(3), 2):
        one = found.differences[i, j]
        gap = expected[names[i]] - expected[names[j]]
        assert one.interval == pytest.approx(slow_interval(gap), abs=1e-9)
        assert one.value == pytest.approx(found.rows[i].group.mean("auc") - found.rows[j].group.mean("auc"), abs=1e-12)
        assert one.value >= 0
        assert one.paired_by_seed
        assert one.apart == (slow_interval(gap)[0] > 0)
    assert found.rows[2].behind == found.differences[0, 2]


def test_what_a_seed_does_to_two_groups_alike_cancels(tmp_path):
    """Two groups whose seeds differ much, and each of which is a little better than the other with the same seed."""
    for seed, quality in enumerate((0.2, 1.0, 3.0)):
        fake_run(tmp_path, "up", seed, quality + 0.3)
        fake_run(tmp_path, "dn", seed, quality)
    fake_run(tmp_path / "more", "dn", 3, 0.2)
    paired = compare([tmp_path], resamples=200)
    other = compare([tmp_path, tmp_path / "more"], resamples=200)
    assert [row.group.name for row in paired.rows] == ["up", "dn"]
    (one,), (loose,) = paired.differences.values(), other.differences.values()
    assert one.apart
    assert (one.paired_by_seed, loose.paired_by_seed) == (True, False)
    assert np.diff(one.interval) < 0.5 * np.diff(loose.interval)
    assert "not paired by seed" in render(other)
    assert "not paired by seed" not in render(paired)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_draws_of_seeds_vary_as_much_as_their_mean_does(count):
    """Over many sets of seeds, the variance among the draws is that of the mean of so many seeds, 1 / S; drawing all S
    would give (S - 1) / S of it: .25, .22 and .16 instead of .5, .33 and .2, far from what 4,000 sets leave open."""
    rng = np.random.default_rng(count)
    taken = seed_draws(range(count), 400, 0)
    spread = [values[taken].mean(axis=0).var() for values in rng.standard_normal((4000, count))]
    assert np.mean(spread) == pytest.approx(1 / count, rel=0.08)


def test_a_draw_takes_the_same_seeds_in_every_group_that_has_them():
    values = np.arange(12.0).reshape(3, 4)
    first, again, other = (over_seeds(values, seeds, 0) for seeds in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert np.array_equal(first, again)
    many = np.tile(np.arange(3.0)[:, None], 300)
    assert not np.array_equal(over_seeds(many, (0, 1, 2), 0), over_seeds(many, (0, 1, 3), 0))
    assert len(other) == 4
    assert np.array_equal(over_seeds(values[:1], (7,), 0), values[0])


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
    assert f"LEFT OUT, not evaluated like that: 2 runs ({part.name}, {torn.name})" in render(found)
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


def test_precisions_do_not_mix(tmp_path):
    """An evaluation in bf16 beside one in fp32 is not taken for it, nor in its place."""
    both = fake_run(tmp_path, "a", 0, 1.0)
    evaluate(RunDir(both), 3.0, precision="bf16")
    half = RunDir.create(tmp_path / "a--s1", load("motion_ranking", ["recipe=a"], seed=1), [], [])
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


def test_rows_of_one_seed_say_what_their_intervals_leave_out(tmp_path, folder):
    assert "of one seed" not in render(compare([folder], resamples=5))
    one = fake_run(tmp_path / "single", "x", 0, 1.0)
    assert "rows of one seed: intervals are over videos alone" in render(compare([one], resamples=5))


def test_names_with_an_underscore_survive_latex():
    assert _latex("a_b & 5 % ± 1 #{$") == r"a\_b \& 5 \% $\pm$ 1 \#\{\$"
