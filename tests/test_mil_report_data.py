"""A report's data: curves against sklearn's, pieces against every frame, numbers equal to eval's to the bit."""

import base64
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from data import manifest
from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import Event, FeatureSpec, FrameScores, Video, VideoFeatures
from mil import metrics, report_run
from mil.compare import CompareError
from mil.config import load
from mil.evaluate import read_scores, write_scores
from mil.report import report
from mil.report_curves import curves, histogram, per_video
from mil.report_data import report_data
from mil.report_log import loss_lines
from mil.report_pieces import LEVELS, Levels, pieces
from mil.report_videos import Files, address
from mil.rundir import RunDir
from mil.threshold import Threshold
from tests.report_helpers import ODD_NAMES, decoded, example

SPEC = FeatureSpec("planted", 2, weights="none")
NEAR = 0.002


# -- runs that nobody trained -------------------------------------------------------------------------------------


def some_videos(root, count=6):
    """Test videos with odd names, every second anomalous, in no order; one training video of each class."""
    rng = np.random.default_rng(3)
    names = [*ODD_NAMES, *(f"v{i}" for i in range(count))][:count]
    videos = [Video(f"t{i}", "", "train", i) for i in (0, 1)]
    for i, name in enumerate(names):
        frames = int(rng.integers(60, 300))
        start = int(rng.integers(0, 30))
        events = (Event(start, start + 20, "Arson"), Event(start + 15, start + 29, "B1")) if i % 2 else ()
        file = root / "videos" / f"{i} #%?<b>.mp4"
        file.parent.mkdir(exist_ok=True)
        if i != 2:
            file.write_bytes(b"")
        classes = ("Arson",) if events else ()
        videos.append(Video(name, str(file), "test", i % 2, classes, frames, 25.0 if i else None, events))
    return videos


def make_run(
    root, name, seed, videos, *overrides, stores=(), levels=None, state="done", rule=None, protocol="frames", **numbers
):
    """A run as `wsvad train` and `wsvad eval` leave it, of scores drawn by name and seed; ties with few `levels`."""
    config = load("motion_ranking", [*overrides, f"recipe={name}"], seed=seed)
    run = RunDir.create(root / f"{name}-s{seed}", config, videos, stores)
    run.set_status(state)
    return evaluate(run, videos, levels=levels, rule=rule, protocol=protocol, **numbers)


def evaluate(run, videos, *, levels=None, rule=None, protocol="frames", scale=1.0, **numbers):
    config = run.config
    rule = rule or config.select.rule
    rng = np.random.default_rng([config.seed, *config.recipe.encode()])
    scored, events = [], {}
    for video in (v for v in videos if v.split == "test"):
        grid = ClipGrid(video.num_frames)
        clips = np.add.reduceat(video.frame_labels().astype(float), grid.starts) / 16 + rng.normal(0, 0.7, len(grid))
        clips = scale / (1 + np.exp(-clips))
        if levels:
            clips = np.round(clips * levels) / levels
        scored.append(FrameScores(video.id, grid.to_frames(clips), video.frame_labels()))
        events[video.id] = video.events
    said = {
        "last": "last step (9), fixed beforehand",
        "val": "best video-level AUC (0.9, step 9 of 9)",
        "test": "OPTIMISTIC: best test frame AUC (0.9, step 9 of 9)",
    }[rule]
    values = {
        **metrics.evaluate(scored, events=events),
        "protocol": protocol, "protocol_about": "all frames", "smooth_clips": 3, "crops": "mean of 1",
        "seed": config.seed,
        "lengths_from": ["decoded"], "selected_by": said, "rule": rule, "optimistic": rule == "test", "step": 9,
        "precision": "fp32", "split": "test", "recipe": config.recipe, "head": "ranking", "features": [SPEC.id],
        "random_weights": False, "clamped_events": [], "missing": [], "trained_without": [],
        **numbers,
    }  # fmt: skip
    run.checkpoint_of(rule).with_suffix(".json").write_text(json.dumps({"selected_by": said, "step": 9}))
    path = run.root / "eval" / f"test-{protocol}{f'-by_{rule}' * (rule != config.select.rule)}.json"
    path.write_text(json.dumps(values))
    write_scores(path.with_name(path.stem + "_scores.npz"), scored)
    return run


def eval_of(run):
    (path,) = (run.root / "eval").glob("*.json")
    return json.loads(path.read_text()), read_scores(path.with_name(path.stem + "_scores.npz"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three recipes, two seeds each but for one; a store with the features of all videos but one."""
    root = tmp_path_factory.mktemp("world")
    videos = some_videos(root)
    store = FeatureStore(root / "store", SPEC)
    for video in videos[:-1]:
        grid = SPEC.grid(video.num_frames or 40)
        store.write(VideoFeatures(video.id, np.zeros((1, len(grid), 2), np.float32), grid, 30.0, SPEC.crops))
    made = {}
    for name, seed, levels in (("b", 1, None), ("a", 0, 4), ("b", 0, 9), ("c", 0, None), ("a", 1, 1000)):
        made[f"{name}-s{seed}"] = make_run(root / "runs", name, seed, videos, stores=[store], levels=levels)
    return root, videos, made


# -- curves -------------------------------------------------------------------------------------------------------


def dense(x, y, step=2e-4):
    """Points of a line, none farther than `step` from the next."""
    parts = [np.array([[x[0], y[0]]])]
    for a, b in pairwise(np.stack([x, y], 1)):
        parts.append(a + (b - a) * np.linspace(0, 1, int(np.hypot(*(b - a)) / step) + 2)[1:, None])
    return np.concatenate(parts)


def apart(first, second):
    """The farthest that a point of either line lies from the other."""
    a, b = dense(*first), dense(*second)
    return max(cKDTree(a).query(b)[0].max(), cKDTree(b).query(a)[0].max())


def check_curves(scores, labels):
    drawn = curves([FrameScores("v", scores, labels)])
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=False)
    recall, precision = recall[::-1], precision[::-1]
    for name, (x, y) in {"roc": (fpr, tpr), "pr": (recall, precision)}.items():
        mine = tuple(np.array(drawn[name][k]) for k in ("x", "y"))
        assert apart(mine, (x, y)) <= NEAR + 1e-4
        assert auc(*mine) == pytest.approx(auc(x, y), abs=1e-3)
        assert (mine[0][0], mine[0][-1]) == (0, 1)
        assert len(mine[0]) <= min(len(x), 300)
    x, y = (np.array(drawn["roc"][k]) for k in ("x", "y"))
    grid = np.linspace(0, 1, 5001)  # the curve rises: what is near in the plane lies in a band, sideways and upwards
    for (a, b), (c, d) in (((x, y), (fpr, tpr)), ((fpr, tpr), (x, y))):
        left, right = np.interp(grid - NEAR - 1e-6, c, d, left=0), np.interp(grid + NEAR + 1e-6, c, d, right=1)
        values = np.interp(grid, a, b)
        assert (values >= left - NEAR).all()
        assert (values <= right + NEAR).all()
    return drawn


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 300), st.sampled_from([2, 5, 40, 10**6]), st.floats(-1, 4))
def test_drawn_curves_are_the_true_ones(seed, count, ties, gap):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.random(count) < rng.choice([0.03, 0.2, 0.5, 0.9])).astype(np.uint8)
    scores = np.round((rng.standard_normal(len(labels)) + gap * labels) * ties) / ties
    check_curves(scores, labels)


@pytest.mark.parametrize("quality", [1.0, 3.0])
def test_drawn_curves_of_many_scores(quality):
    rng = np.random.default_rng(0)
    labels = (rng.random(6000) < 0.16).astype(np.uint8)
    drawn = check_curves(rng.standard_normal(6000) + quality * labels, labels)
    assert 20 < len(drawn["roc"]["x"]) <= 300


def test_curves_without_a_class():
    one = FrameScores("v", np.arange(4.0), np.ones(4, np.uint8))
    none = replace(one, labels=np.zeros(4, np.uint8))
    assert curves([none]) == {"roc": {"x": [], "y": []}, "pr": {"x": [], "y": []}}
    assert curves([one])["roc"]["x"] == []
    assert auc(*curves([one])["pr"].values()) == 1


def test_histogram_counts_every_frame():
    rng = np.random.default_rng(0)
    videos = [
        FrameScores(str(i), np.round(rng.normal(3, 2, 50), 1), rng.integers(0, 2, 50).astype(np.uint8)) for i in (0, 1)
    ]
    found = histogram(videos)
    edges = found["edges"]
    assert len(edges) == 41
    assert (edges[0], edges[-1]) == (min(v.scores.min() for v in videos), max(v.scores.max() for v in videos))
    for label, name in ((0, "normal"), (1, "anomalous")):
        slow = [0] * 40
        for video in videos:
            for score, y in zip(video.scores, video.labels, strict=True):
                if y == label:
                    slow[max(b for b in range(40) if edges[b] <= score or b == 0)] += 1
        assert found[name] == slow
    flat = histogram([FrameScores("v", np.full(5, 0.25), np.zeros(5, np.uint8))])
    assert sum(flat["normal"]) == 5
    assert np.all(np.diff(flat["edges"]) > 0)


def test_single_videos():
    rng = np.random.default_rng(0)
    mixed = FrameScores("m", np.round(rng.random(60), 1), (rng.random(60) < 0.3).astype(np.uint8))
    videos = [
        mixed,
        FrameScores("n", mixed.scores / 2, np.zeros(60, np.uint8)),
        replace(mixed, labels=np.ones(60, np.uint8)),
    ]
    found = per_video(videos, 0.4)
    assert found["auc"] == [pytest.approx(roc_auc_score(mixed.labels, mixed.scores), abs=1e-6), None, None]
    assert found["peak"] == [mixed.scores.max(), mixed.scores.max() / 2, mixed.scores.max()]
    below = [s < 0.4 for s, y in zip(mixed.scores, mixed.labels, strict=True) if y]
    assert found["missed"] == pytest.approx([sum(below) / len(below), None, (mixed.scores < 0.4).mean()], abs=1e-6)
    above = [s >= 0.4 for s, y in zip(mixed.scores, mixed.labels, strict=True) if not y]
    assert found["alarms"] == pytest.approx([sum(above) / len(above), (mixed.scores >= 0.8).mean(), None], abs=1e-6)
    unknown = per_video(videos, None)
    assert unknown["missed"] == unknown["alarms"] == [None] * 3


# -- pieces -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([(0, 1), (-7.5, 1e4), (0.3, 0.3), (0.5, 0.5 + 1e-12)]),
)
def test_pieces_hold_every_frame_and_are_as_few_as_can_be(seed, lengths, runs, ends):
    rng = np.random.default_rng(seed)
    scored = []
    for _ in range(runs):
        picks = [np.repeat(rng.integers(0, 4, n), rng.integers(1, 4, n))[:n] for n in lengths]
        values = np.array([*ends, ends[0] + (ends[1] - ends[0]) / 3, ends[1]])
        scored.append([FrameScores("v", values[p], np.zeros(len(p), np.uint8)) for p in picks])
    levels = [Levels.of(videos) for videos in scored]
    parts = pieces(lengths, [one.levels for one in levels])
    assert parts.stops.dtype == np.uint32
    first, frame = 0, 0
    for v, (length, count) in enumerate(zip(lengths, parts.counts, strict=True)):
        stops = parts.stops[first : first + count].astype(int)
        rows = []
        for run, one in zip(scored, levels, strict=True):
            values = one.levels[parts.last[first : first + count]]
            spread = one.low + np.repeat(values, np.diff(stops, prepend=0)) / LEVELS * (one.high - one.low)
            half = 0.5 / LEVELS * (one.high - one.low)
            assert len(spread) == length
            assert np.abs(spread - run[v].scores).max() <= half * 1.001 + 1e-15
            rows.append(one.levels[frame : frame + length])
        columns = list(zip(*(row.tolist() for row in rows), strict=True))
        assert count == 1 + sum(a != b for a, b in pairwise(columns))
        first, frame = first + count, frame + length
    assert first == len(parts.stops)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from([1e-9, 2e-9, 0.2, 0.4, 0.4000001, 0.4000002, 0.7, 299.999, 300.0]), min_size=1, max_size=12
    ),
    st.sampled_from([-1.0, 1e-9, 2e-9, 1.5e-9, 0.4, 0.40000015, 0.7, 299.9999, 300.0, 301.0]),
)
def test_a_level_says_which_side_of_the_threshold_a_score_lies_on(scores, threshold):
    video = FrameScores("v", np.array(scores), np.zeros(len(scores), np.uint8))
    found = Levels.of([video], threshold)
    assert (found.levels >= found.reach).tolist() == [score >= threshold for score in scores]
    spread = found.low + found.levels / LEVELS * (found.high - found.low)
    assert np.abs(spread - scores).max() <= 1.001 * (found.high - found.low) / LEVELS


# -- the log ------------------------------------------------------------------------------------------------------


def write_log(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def test_the_log_of_a_resumed_run_counts_each_step_once(tmp_path):
    rows = [{"step": s, "lr": 0.1, "loss/total": float(s), "loss/mil": 1.0} for s in (10, 20, 30)]
    rows += [
        {"step": 20, "loss/total": 5.0, "loss/mil": 2.0, "val/video_auc": 0.5},
        {"step": 25, "val/video_auc": 0.75},
    ]
    rows += [{"step": 40, "loss/total": float("nan")}, {"step": 40, "OPTIMISTIC/test_auc": float("nan")}]
    found = loss_lines(write_log(tmp_path / "m.jsonl", rows, end='{"step": 50, "loss/tot'))
    assert found == {
        "steps": [10, 20, 30, 40],
        "terms": {"total": [10, 5, 30, None], "mil": [1, 2, 1, None]},
        "looks": {
            "val/video_auc": {"steps": [20, 25], "values": [0.5, 0.75]},
            "OPTIMISTIC/test_auc": {"steps": [40], "values": [None]},
        },
    }
    assert loss_lines(tmp_path / "none.jsonl") == {"steps": [], "terms": {}, "looks": {}}


def test_long_logs_are_means_of_bins_and_looks_keep_the_best(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random(1037)
    values[500] = np.nan
    looks = rng.random(1037)
    looks[777] = 2.0
    rows = [
        {"step": 5 * i + 5, "loss/a": v, "val/video_auc": w} for i, (v, w) in enumerate(zip(values, looks, strict=True))
    ]
    found = loss_lines(write_log(tmp_path / "m.jsonl", rows))
    assert len(found["steps"]) == 400
    assert found["steps"][-1] == 5 * 1037
    start = 0
    for step, value in zip(found["steps"], found["terms"]["a"], strict=True):
        inside = values[start : step // 5]
        assert 2 <= len(inside) <= 3
        assert value == (None if np.isnan(inside).any() else pytest.approx(inside.mean(), rel=1e-5))
        start = step // 5
    assert sum(v is None for v in found["terms"]["a"]) == 1
    seen = found["looks"]["val/video_auc"]
    assert len(seen["steps"]) <= 402
    assert max(seen["values"]) == 2
    assert all(looks[s // 5 - 1] == pytest.approx(v, rel=1e-5) for s, v in zip(*seen.values(), strict=True))


# -- files --------------------------------------------------------------------------------------------------------

NAMES = [
    "a b.mp4",
    "a#b?c.mp4",
    "100%.mp4",
    "100%25.mp4",
    "Ü日本.mp4",
    "<script>.mp4",
    "x:y.mp4",
    "&amp;'\".mp4",
    "\udcff.mp4",
]


def resolved(src, page):
    """The path that a browser opens for an address in the page of that file."""
    parts = urlsplit(urljoin(Path(os.path.abspath(page)).as_uri(), src))
    assert (parts.scheme, parts.query, parts.fragment) == ("file", "", "")
    return os.fsdecode(unquote_to_bytes(parts.path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["pages", "pages/in <it>", "pages/a/b/c", "other/p 1/q/r/s"])
def test_addresses_lead_to_the_file(tmp_path, name, folder):
    path, page = tmp_path / "pages" / "v" / name, tmp_path / folder / "r.html"
    src = address(path, page)
    assert src.isascii()
    assert not set(src) & set(" <>\"'&?#")
    assert resolved(src, page) == os.fspath(path)
    near = folder in ("pages", "pages/in <it>")
    assert src.startswith("file:///") != near  # what lies below or near moves along with the page


def test_files_are_found_by_name_and_by_id(tmp_path):
    shown, other = tmp_path / "shown", tmp_path / "other"
    for path in ("a/x.webm", "b/x.webm", "y.mp4", "deep/id 1.mkv", "z.npy", "c/w.mp4", "d/w.mp4"):
        (shown / path).parent.mkdir(parents=True, exist_ok=True)
        (shown / path).write_bytes(b"")
    other.mkdir()
    (other / "only.mp4").write_bytes(b"")

    def find(path, video_id="i", folder=shown):
        return Files(folder).find(Video(video_id, path, "test", 0))

    assert find(str(other / "b" / "x.mp4")) == shown / "b/x.webm"  # folders tell files of one name apart
    assert find(str(other / "e" / "w.mp4")) is None
    assert find(str(other / "y.avi")) == shown / "y.mp4"
    assert find("", "id 1") == shown / "deep/id 1.mkv"
    assert find("", "z") is None
    assert find(str(other / "only.mp4")) == other / "only.mp4"
    assert find(str(other)) is None  # a folder of pictures
    assert find(str(other / "y.avi"), folder=None) is None
    with pytest.raises(ValueError, match=r"no folder .*--videos"):
        Files(tmp_path / "none")


# -- all of it ----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_eval_to_the_bit(world):
    root, videos, made = world
    data = report_data([root / "runs"], out=root / "page.html")
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    by_id = {v.id: v for v in videos}
    assert [v["id"] for v in data["videos"]] == [v.id for v in videos if v.split == "test"]
    for i, run in enumerate(data["runs"]):
        numbers, scored = eval_of(made[run["name"]])
        assert run["numbers"] == {name: numbers[name] for name in run["numbers"]}
        assert {"auc", "ap", "pr_auc", "far", "far_threshold", "eer", "best_f1", "video_auc", "map_iou"} <= set(
            run["numbers"]
        )
        assert "seed" not in run["numbers"]
        assert run["classes"] == [{"kind": kind, **values} for kind, values in numbers["classes"].items()]
        assert len(run["classes"]) == 2
        assert all(run[name] == numbers[name] for name in ("selected_by", "step", "seed", "features", "crops"))
        assert auc(*run["roc"].values()) == pytest.approx(numbers["auc"], abs=1e-3)
        assert auc(*run["pr"].values()) == pytest.approx(numbers["pr_auc"], abs=1e-3)
        assert sum(run["histogram"]["anomalous"]) == numbers["positives"]
        frames = {v.video_id: v for v in scored}
        for v, row in enumerate(data["videos"]):
            true = frames[row["id"]]
            quantum = (run["high"] - run["low"]) / 65535
            assert np.abs(decoded(data, i, v) - true.scores).max() <= 1.01 * quantum  # half of it, but at the threshold
            marked = np.zeros(row["frames"], np.uint8)
            for start, stop, kind in row["events"]:
                marked[start:stop] = 1
                assert kind in ("Arson", "B1")
            assert marked.tolist() == true.labels.tolist() == by_id[row["id"]].frame_labels().tolist()
            inside = true.scores[true.labels == 1]
            missed = float((inside < 0.5).mean()) if len(inside) else None
            assert run["per_video"]["missed"][v] == (missed if missed is None else pytest.approx(missed, abs=1e-6))
            reach = run["low"] + run["reach"] * quantum
            assert ((decoded(data, i, v) > reach - quantum / 2) == (true.scores >= 0.5)).all()
        assert run["threshold_about"].startswith("0.5: ")  # the checkpoint has no weights
    assert len(base64.b64decode(data["stops"])) == 4 * sum(v["count"] for v in data["videos"])


def test_groups_are_ranked_and_runs_stand_in_their_order(world):
    root, _, made = world
    data = report_data([root / "runs", root / "runs" / "a-s0", root / "runs" / ".." / "runs"], out=root / "page.html")
    own = {name: [eval_of(made[f"{name}-s{s}"])[0]["auc"] for s in (0, 1) if f"{name}-s{s}" in made] for name in "abc"}
    wanted = sorted(own, key=lambda name: -float(np.mean(own[name])))
    assert [g["name"] for g in data["groups"]] == wanted
    assert [r["name"] for r in data["runs"]] == [f"{n}-s{s}" for n in wanted for s in range(len(own[n]))]
    for group in data["groups"]:
        assert [data["runs"][i]["group"] for i in group["runs"]] == [group["name"]] * len(group["runs"])
        values = own[group["name"]]
        assert group["auc_mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert group["auc_sd"] == (pytest.approx(np.std(values, ddof=1), rel=1e-9) if len(values) > 1 else None)


def test_one_run_works_as_fifteen_do(world):
    root, _, made = world
    several = report_data([root / "runs"], out=root / "page.html")
    one = report_data([made["a-s0"].root], out=root / "page.html")
    (run,) = one["runs"]
    same = next(r for r in several["runs"] if r["name"] == "a-s0")
    apart = {"values"}  # cut where this run alone changes
    assert {k: v for k, v in run.items() if k not in apart} == {k: v for k, v in same.items() if k not in apart}
    assert len(one["stops"]) < len(several["stops"])
    assert (one["groups"][0]["runs"], one["groups"][0]["auc_sd"]) == ([0], None)
    assert "a, seed 0" in one["title"]
    assert report_data([made["a-s0"].root], title="<b>", no_videos=True)["title"] == "<b>"


def kinds(value):
    """The shape of data: names of fields at every depth, of lists that of their first entry."""
    if isinstance(value, dict):
        return {key: kinds(one) for key, one in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value and isinstance(value[0], dict) else "list"
    return "text" if isinstance(value, str) else "plain"


def test_the_example_that_pages_are_tested_on_has_the_fields_of_true_data(world):
    root, _, _ = world
    data, made = report_data([root / "runs"], out=root / "page.html"), example(runs=5, videos=6)
    for name in ("runs", "groups", "videos"):
        first, other = data[name][0], made[name][0]
        assert set(first) == set(other), name
    assert set(data) == set(made)
    for one in ("roc", "pr", "histogram", "per_video"):
        assert kinds(data["runs"][0][one]) == kinds(made["runs"][0][one])
    assert set(made["runs"][0]["loss"]) == set(data["runs"][0]["loss"])
    assert set(made["runs"][0]["numbers"]) <= set(data["runs"][0]["numbers"])
    assert set(made["videos"][0]["clip"]) == set(data["videos"][0]["clip"])
    assert set(made["runs"][0]["classes"][0]) == set(data["runs"][0]["classes"][0])


def test_grids_and_rates_come_from_the_stores_that_can_be_reached(world, tmp_path):
    root, videos, made = world
    rows = report_data([root / "runs"], out=root / "page.html")["videos"]
    test = [v for v in videos if v.split == "test"]
    for row, video in zip(rows, test, strict=True):
        grid = SPEC.grid(video.num_frames)
        clip = {"len": 16, "stride": 16, "step": 1, "rate": 1.0, "tail": "repeat", "count": len(grid)}
        assert row["clip"] == (clip if video is not test[-1] else None)
    assert [row["fps"] for row in rows] == [30.0, *[25.0] * 5]  # the manifest's before the store's
    other = FeatureStore(tmp_path / "store", replace(SPEC, stride=8))
    for video in test[:2]:
        grid = other.spec.grid(video.num_frames)
        other.write(VideoFeatures(video.id, np.zeros((1, len(grid), 2), np.float32), grid, 30.0, SPEC.crops))
    wide = make_run(tmp_path, "wide", 0, videos, stores=[other])
    gone = make_run(tmp_path, "gone", 0, videos)
    lost = make_run(tmp_path, "lost", 0, videos)
    features = json.dumps([{"root": str(tmp_path / "nowhere"), "id": "f-1", "spec": json.loads(SPEC.to_json())}])
    (lost.root / "features.json").write_text(features)
    both = report_data([wide.root, made["a-s0"].root], out=root / "page.html")["videos"]
    assert [row["clip"] is None for row in both] == [True, True, False, False, False, True]
    none = report_data([gone.root, lost.root], out=root / "page.html")["videos"]
    assert [(row["clip"], row["fps"]) for row in none] == [(None, None), *[(None, 25.0)] * 5]


def test_videos_are_linked_from_where_they_are(world, tmp_path):
    root, videos, _ = world
    test = [v for v in videos if v.split == "test"]
    page = root / "a" / "page.html"
    rows = report_data([root / "runs"], out=page)["videos"]
    for i, (row, video) in enumerate(zip(rows, test, strict=True)):
        assert row["src"] is None if i == 2 else resolved(row["src"], page) == video.path
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "2 #%?<b>.webm").write_bytes(b"")
    rows = report_data([root / "runs"], out=tmp_path / "page.html", videos=tmp_path / "v")["videos"]
    assert rows[2]["src"] == "v/2%20%23%25%3F%3Cb%3E.webm"
    assert resolved(rows[1]["src"], tmp_path / "page.html") == test[1].path
    assert all(row["src"] is None for row in report_data([root / "runs"], out=page, no_videos=True)["videos"])


def test_thresholds_come_from_training_videos_or_are_said_not_to(world, tmp_path, monkeypatch):
    _, videos, _ = world
    asked = []

    def found(run, rule, device):
        asked.append((run.root.name, rule, device))
        return Threshold(0.25, "of training", 0.2)

    monkeypatch.setattr(report_run, "training_threshold", found)
    run = make_run(tmp_path, "x", 3, videos)
    (data,) = report_data([run.root], device="meta")["runs"]
    assert (data["threshold"], data["threshold_about"], asked) == (0.25, "of training", [("x-s3", "last", "meta")])
    _, scored = eval_of(run)
    assert data["per_video"]["missed"][1] == pytest.approx(np.mean(scored[1].scores[scored[1].labels == 1] < 0.25))

    def refused(*_):
        raise ValueError("no features")

    monkeypatch.setattr(report_run, "training_threshold", refused)
    assert report_data([run.root])["runs"][0]["threshold"] == 0.5
    (open_ended,) = report_data([make_run(tmp_path, "y", 0, videos, scale=7.0).root])["runs"]
    assert open_ended["threshold"] is None
    assert set(open_ended["per_video"]["missed"]) == {None}
    assert "not between 0 and 1" in open_ended["threshold_about"]


def test_what_is_left_out_or_optimistic_is_said(world, tmp_path):
    _, videos, _ = world
    make_run(tmp_path, "good", 0, videos, "select.also=[test]")
    make_run(tmp_path, "half", 0, videos, state="running")
    bare = RunDir.create(tmp_path / "ba re", load("motion_ranking", ["recipe=bare"], seed=0), videos, [])
    bare.set_status("done")
    part = make_run(tmp_path, "part", 0, videos)
    for path in (part.root / "eval").glob("*"):
        path.rename(path.with_name(path.name.replace("test-frames", "test-frames-partial")))
    random = {"random_weights": True, "trained_without": ["t9", "t8"]}
    make_run(tmp_path, "chosen", 0, videos, "select.rule=test", **random)
    data = report_data([tmp_path])
    assert sorted(r["name"] for r in data["runs"]) == ["chosen-s0", "good-s0"]
    said = "\n".join(data["warnings"])
    assert f"wsvad eval '{bare.root}'" in said
    assert "part-s0 is left out" in said
    assert "there is test-frames-partial" in said
    assert "half-s0 is left out: unfinished" in said
    assert "chosen-s0: OPTIMISTIC" in said
    assert "chosen-s0: trained without 2 videos that had no features, e.g. 't9'" in said
    assert "net with random weights" in said
    assert [
        (r["optimistic"], r["random_weights"], len(r["warnings"])) for r in data["runs"] if r["name"] == "good-s0"
    ] == [(False, False, 0)]
    evaluate(RunDir(tmp_path / "good-s0"), videos, rule="test")
    by_test = report_data([tmp_path], rule="test")
    assert {(r["name"], r["rule"], r["optimistic"]) for r in by_test["runs"]} == {
        ("chosen-s0", "test", True),
        ("good-s0", "test", True),
    }
    assert by_test["warnings"][0].startswith("all runs: OPTIMISTIC")
    assert any(
        "ba re is left out: it kept no weights by test; train with --also test" in w for w in by_test["warnings"]
    )


def test_runs_that_cannot_stand_side_by_side_are_refused(world, tmp_path):
    root, videos, made = world
    moved = [replace(v, events=tuple(replace(e, stop=e.stop + 1) for e in v.events)) for v in videos]
    other = make_run(tmp_path, "other", 0, moved)
    with pytest.raises(CompareError, match="not scored on the same frames and labels"):
        report_data([made["a-s0"].root, other.root])
    snippets = make_run(tmp_path, "s", 0, videos, "evaluate.protocol=rtfm", protocol="rtfm")
    with pytest.raises(
        CompareError, match=r"under protocol 'frames', .* under 'rtfm'; evaluate both with one --protocol"
    ):
        report_data([made["a-s0"].root, snippets.root])
    with pytest.raises(CompareError, match="none of 5 runs is evaluated on the train split"):
        report_data([root / "runs"], split="train")
    again = make_run(tmp_path / "again", "a", 0, videos, stores=[FeatureStore(root / "store")], levels=4)
    with pytest.raises(CompareError, match="two runs of 'a' have the seed 0"):
        report_data([root / "runs", again.root])
    for changed in (moved, [v for v in videos if v.id != ODD_NAMES[1]]):
        manifest.write(other.root / "manifest.csv", changed if changed is not moved else videos)
        with pytest.raises(CompareError, match=r"manifest\.csv no longer says .* type: wsvad eval"):
            report_data([other.root])


def test_runs_are_joined_by_id_and_stand_by_seed(world, tmp_path):
    _, videos, _ = world
    made = [make_run(tmp_path, "a", 10, videos), make_run(tmp_path, "a", 2, videos[::-1])]
    data = report_data([run.root for run in made])
    assert [run["seed"] for run in data["runs"]] == [2, 10]
    for i, run in enumerate(made[::-1]):
        true = {v.video_id: v.scores for v in eval_of(run)[1]}
        for v, row in enumerate(data["videos"]):
            assert np.abs(decoded(data, i, v) - true[row["id"]]).max() < 1e-5
            assert data["runs"][i]["per_video"]["peak"][v] == pytest.approx(true[row["id"]].max(), rel=1e-5)


def test_runs_of_one_name_are_told_apart(world, tmp_path):
    _, videos, _ = world
    roots = [make_run(tmp_path / folder, "a", seed, videos).root for seed, folder in enumerate(("x", "y"))]
    for root in roots:
        root.rename(root.parent / "run")
    assert [r["name"] for r in report_data([tmp_path / "x", tmp_path / "y"])["runs"]] == ["x/run", "y/run"]
    deep = [make_run(tmp_path / folder / "runs", "a", seed, videos).root for seed, folder in enumerate(("p", "q"))]
    deep = [root.rename(root.parent / "run") for root in deep]
    names = [r["name"] for r in report_data([*deep, make_run(tmp_path, "b", 2, videos).root])["runs"]]
    assert sorted(names) == ["b-s2", "p/runs/run", "q/runs/run"]


def test_report_writes_the_page_in_one_step(world, tmp_path, monkeypatch):
    root, _, made = world
    page = report(made["a-s0"].root, out=tmp_path / "new" / "r.html", no_videos=True)
    before = page.read_text(encoding="utf-8")
    assert all(name not in before for name in ODD_NAMES[:2])  # none as markup
    with pytest.raises(ValueError, match=r"one \.html file.*-o .*runs/report\.html"):
        report([root / "runs"], out=root / "runs")

    def torn(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.files.sync", torn)
    with pytest.raises(OSError, match="No space"):
        report(str(made["b-s0"].root), out=page)
    assert page.read_text(encoding="utf-8") == before
    assert [p.name for p in page.parent.iterdir()] == ["r.html"]
