"""`wsvad report`: from trained runs to a page, what it says, and what it refuses."""

import json
import re
from urllib.parse import unquote

import pytest

from mil.evaluate import evaluate_run
from mil.train import fit
from tests.mil_helpers import call_wsvad, make_world, small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of one recipe, trained and evaluated, and one that is trained alone."""
    world = make_world(tmp_path_factory.mktemp("trained"), train=4, test=3)
    runs = []
    for seed in (0, 1, 2):
        config = small_config("select.also=[val]", seed=seed)
        run = world.run(f"runs/s{seed}", config)
        fit(config, world.train, world.stores, run)
        if seed < 2:
            evaluate_run(run)
        runs.append(run)
    return world, runs


def data_of(page):
    """The JSON in a page, read as a browser would: the text up to the first end of a script."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_a_page_of_trained_runs_holds_what_eval_wrote(trained, tmp_path):
    world, runs = trained
    page = tmp_path / "new" / "r.html"
    result = call_wsvad("report", world.root / "runs", "-o", page)
    assert result.exit_code == 0
    data = data_of(page)
    size = f"{page.stat().st_size / 1e6:.2f} MB"
    assert f"wrote {page} ({size}): 2 runs, 6 videos, 0 with their file; open it" in result.stdout
    assert "WARNING: s2 is left out: not evaluated on the test split, protocol of the recipe, fp32; " in result.stderr
    assert f"type: wsvad eval {runs[2].root}\n" in result.stderr
    assert "pass their folder with --videos" in result.stderr
    for one in data["runs"]:
        numbers = json.loads((world.root / "runs" / one["name"] / "eval" / "test-frames.json").read_text())
        assert one["numbers"] == {name: numbers[name] for name in one["numbers"]}
        kept = json.loads((world.root / "runs" / one["name"] / "threshold-last.json").read_text())
        assert (one["threshold"], one["threshold_about"]) == (kept["threshold"], kept["about"])
        assert one["loss"]["steps"] == [2, 4, 6, 8, 10, 12]
        assert "total" in one["loss"]["terms"]
        assert [row["clip"]["count"] for row in data["videos"]] == [-(-v.num_frames // 16) for v in world.test]
    assert [row["fps"] for row in data["videos"]] == [25.0] * 6


def test_json_for_programs_and_the_options(trained, tmp_path):
    world, runs = trained
    (tmp_path / "f").mkdir()
    for video in world.test[:4]:
        (tmp_path / "f" / f"{video.id}.mp4").write_bytes(b"")
    evaluate_run(runs[0], rule="val")
    page = tmp_path / "r.html"
    options = ("--rule", "val", "--title", "<i>", "--videos", tmp_path / "f", "-o", page)
    result = call_wsvad("--quiet", "report", runs[0].root, runs[1].root, *options, "--json")
    said = json.loads(result.stdout)
    left = said.pop("warnings")
    assert said == {"report": str(page), "bytes": page.stat().st_size, "runs": 1, "groups": 1, "videos": 6,
                    "playable": 4, "protocol": "frames", "split": "test"}  # fmt: skip
    assert left == [
        "s1 is left out: not evaluated on the test split, weights by rule val, protocol of the recipe, fp32, there is "
        f"test-frames; type: wsvad eval {runs[1].root} --rule val"
    ]
    data = data_of(page)
    assert (data["title"], data["runs"][0]["rule"]) == ("<i>", "val")
    assert [v["src"] and unquote(v["src"]) for v in data["videos"]] == [
        *(f"f/{v.id}.mp4" for v in world.test[:4]),
        None,
        None,
    ]
    assert call_wsvad("report", runs[0].root, "--no-videos", "-o", page).stderr.count("--videos") == 0
    assert {v["src"] for v in data_of(page)["videos"]} == {None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUNS/s2"], "none of 1 runs is evaluated on the test split.*wsvad eval RUN"),
        (["RUNS", "--split", "train"], "none of 3 runs is evaluated on the train split"),
        (["RUNS", "--protocol", "rtfm"], "there are: test-frames"),
        (["RUNS", "-o", "page.txt"], "a report is one .html file, got page.txt; type -o page.txt/report.html"),
        (["RUNS", "--videos", "RUNS/none"], "no folder .*none; --videos is the folder"),
        (["RUNS", "--videos", "RUNS", "--no-videos"], "pass one of them"),
        (["RUNS/none"], "no run and no folder of runs at"),
    ],
)
def test_what_cannot_be_carried_out_is_said(trained, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = call_wsvad("report", *(a.replace("RUNS", str(trained[0].root / "runs")) for a in arguments))
    assert result.exit_code == 2
    assert re.search(words, result.stderr)
    assert list(tmp_path.iterdir()) == []
