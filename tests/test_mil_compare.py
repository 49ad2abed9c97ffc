"""Comparisons: intervals against a loop over drawn videos and seeds, names of groups, refusals, tables."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from data.types import FrameScores
from mil import compare as comparing
from mil.compare import CompareError, compare
from mil.compare_table import render
from mil.config import load
from mil.evaluate import write_scores
from mil.rundir import RunDir

IDS = ["v3", "v1", "v2", "v5", "v4", "v0"]
QUALITY = {"good": 2.0, "fair": 1.8, "poor": 0.0}


def fake_run(root, name, seed, quality, *overrides, protocol="frames", frames=30, order=IDS, selected="last step (9)"):
    """A run whose frame scores are noise plus `quality` on anomalous frames; three of six videos have some."""
    config = load("motion_ranking", [*overrides, f"recipe={name}"], seed=seed)
    run = RunDir.create(root / f"{name}-{'-'.join(overrides)}-s{seed}", config, [], [])
    videos = []
    for video_id in order:
        index = int(video_id[1])
        rng = np.random.default_rng([index, seed, len(name)])
        labels = np.zeros(frames + index, np.uint8)
        if index % 2:
            labels[5:15] = 1
        scores = np.round(rng.standard_normal(len(labels)) + quality * labels, 1)
        videos.append(FrameScores(video_id, scores, labels))
    scores, labels = (np.concatenate([getattr(v, kind) for v in videos]) for kind in ("scores", "labels"))
    auc, ap = float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))
    numbers = {"auc": auc, "ap": ap, "pr_auc": ap, "ano_auc": None, "seed": seed, "head": "ranking"}
    numbers |= {"protocol": protocol, "missing": [], "videos": 6, "features": ["f-1"], "selected_by": selected}
    path = run.root / "eval" / f"test-{protocol}.json"
    path.write_text(json.dumps(numbers))
    write_scores(path.with_name(path.stem + "_scores.npz"), videos)
    return run.root


@pytest.fixture
def folder(tmp_path):
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


def test_means_deviations_and_intervals_against_loops(folder):
    found = compare([folder], resamples=40)
    rng = np.random.default_rng([0, 1])
    expected = {}
    for row in found.rows:  # the best first: seeds are drawn in that order, for AUC before AP and PR-AUC
        draws = np.stack([slow_draws(folder / f"{row.group.name}--s{s}", 40) for s in (0, 1, 2)])
        for metric in ("auc", "ap", "pr_auc"):
            seeds = rng.integers(0, 3, (3, 40))
            if metric == "auc":
                expected[row.group.name] = np.array(
                    [np.mean([draws[seeds[i, r], r] for i in range(3)]) for r in range(40)]
                )
    best = found.rows[0].group.name
    for row in found.rows:
        own = [json.loads((folder / f"{row.group.name}--s{s}/eval/test-frames.json").read_text()) for s in (0, 1, 2)]
        assert row.group.mean("auc") == pytest.approx(np.mean([n["auc"] for n in own]), abs=1e-12)
        assert row.group.deviation("ap") == pytest.approx(np.std([n["ap"] for n in own], ddof=1), abs=1e-12)
        values = expected[row.group.name]
        kept = values[np.isfinite(values)]
        assert row.intervals["auc"] == pytest.approx(tuple(np.quantile(kept, [0.025, 0.975])), abs=1e-9)
        if row.group.name != best:
            gap = (expected[best] - values)[np.isfinite(values)]
            assert row.behind_interval == pytest.approx(tuple(np.quantile(gap, [0.025, 0.975])), abs=1e-9)


def test_the_ranking_says_which_differences_are_noise(folder):
    rows = {row.group.name: row for row in compare([folder], resamples=300).rows}
    assert list(rows)[-1] == "poor"
    assert not rows["poor"].within_noise
    assert rows["poor"].behind_interval[0] > 0.1
    assert rows["fair"].within_noise
    assert rows["good"].within_noise
    assert [r.group.name for r in compare([folder], metric="ap", resamples=10).rows][-1] == "poor"


def test_videos_are_joined_by_id_and_not_by_order(tmp_path):
    """The same scores in another order: the same draws, hence a difference of 0 on every one."""
    fake_run(tmp_path, "abc", 0, 1.0)
    fake_run(tmp_path, "xyz", 0, 1.0, order=sorted(IDS))
    found = compare([tmp_path], resamples=50)
    assert found.rows[1].behind == pytest.approx(0, abs=1e-12)
    assert found.rows[1].behind_interval == pytest.approx((0, 0), abs=1e-12)


def test_runs_of_one_recipe_with_other_values_are_groups_of_their_own(tmp_path):
    for seed in (0, 1):
        fake_run(tmp_path, "a", seed, 1.0, "head.topk=1")
        fake_run(tmp_path, "a", seed, 1.0, "head.topk=2")
    names = {row.group.name: row.group.seeds for row in compare([tmp_path], resamples=5).rows}
    assert names == {"a head.topk=1": (0, 1), "a head.topk=2": (0, 1)}


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = fake_run(tmp_path / "a", "a", 0, 1.0)
    with pytest.raises(CompareError, match=r"under protocol 'frames', .* under 'ratio'"):
        compare([one, fake_run(tmp_path / "b", "b", 0, 1.0, protocol="ratio")])
    with pytest.raises(CompareError, match="not scored on the same frames: see 'v0'"):
        compare([one, fake_run(tmp_path / "c", "c", 0, 1.0, frames=31)])
    with pytest.raises(CompareError, match="two runs of 'a' have the seed 0"):
        compare([one, fake_run(tmp_path / "d", "a", 0, 1.0)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match=r"no runs below .*empty"):
        compare([tmp_path / "empty"])
    with pytest.raises(CompareError, match="no run and no folder of runs at"):
        compare([tmp_path / "nothing"])
    with pytest.raises(CompareError, match=r"none of 1 runs below .* is evaluated on the train split"):
        compare([one], split="train")
    with pytest.raises(CompareError, match="ranked by one of auc, ap, pr_auc, got 'far'"):
        compare([one], metric="far")


def test_partial_evaluations_are_left_out(tmp_path):
    root = fake_run(tmp_path, "a", 0, 1.0)
    path = root / "eval" / "test-frames.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "missing": ["v9"]}))
    with pytest.raises(CompareError, match="none of 1 runs"):
        compare([tmp_path])


def test_tables_say_the_same_in_every_form(folder):
    found = compare([folder], resamples=20)
    first = found.rows[0]
    text, markdown, latex = (render(found, form) for form in ("text", "markdown", "latex"))
    shown = f"{first.group.mean('auc'):.3f} ± {first.group.deviation('auc'):.3f}"
    assert shown in text
    assert f"| `{first.group.name}` | ranking | 3 | {shown}" in markdown
    assert shown.replace("±", r"$\pm$") in latex
    assert latex.count(r"\\") == 4
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    values = json.loads(render(found, "json"))
    assert [row["name"] for row in values["rows"]] == [row.group.name for row in found.rows]
    assert values["rows"][0]["values"]["auc"] == first.group.values["auc"].tolist()
    assert values["rows"][0]["ci95"]["auc"] == list(first.intervals["auc"])
    assert "last step" in text.splitlines()[-1]


def test_names_with_an_underscore_survive_latex():
    assert comparing.METRICS[0] == "auc"
    from mil.compare_table import _latex

    assert _latex("a_b & 5 % ± 1") == r"a\_b \& 5 \% $\pm$ 1"
