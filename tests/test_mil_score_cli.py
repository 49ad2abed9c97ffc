"""`wsvad score`: many videos in, files out that belong together; what fails is named and costs the others nothing."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

from data import manifest
from data.store import FeatureStore
from data.types import Video
from extract.runner import extract_all
from mil import score_cli, score_files
from mil.events import EventRule
from mil.rundir import RunDir
from mil.score import Scorer, load
from mil.score_events import EventList
from mil.score_files import name_in, write
from mil.score_inputs import find
from mil.threshold import training_threshold
from mil.train import fit
from tests.helpers import write_small
from tests.mil_helpers import call_wsvad, small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("score_cli")


@pytest.fixture(scope="module")
def run(folder):
    videos = [Video(f"v{i}", str(write_small(folder / f"v{i}.mp4", 16 * (i + 1), seed=i)), "train", i % 2)
              for i in range(4)]  # fmt: skip
    manifest.write(folder / "videos.csv", videos)
    assert not extract_all(videos, folder / "store", "tiny", workers=1).failures
    store, config = FeatureStore(folder / "store"), small_config("train.steps=8")
    run = RunDir.create(folder / "run", config, videos, [store])
    fit(config, videos, [store], run)
    return run


@pytest.fixture(scope="module")
def source(folder):
    """A video of 40 frames, to be copied."""
    return write_small(folder / "source.mp4", 40, seed=9)


@pytest.fixture
def stub(monkeypatch):
    """A picture in no time."""
    monkeypatch.setattr("mil.timeline.timeline", lambda path, *_, **__: path.write_text("picture"))


@pytest.fixture
def put(source, tmp_path):
    def copy(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
        return path

    return copy


def wsvad(*arguments, code=0):
    result = call_wsvad("score", *arguments)
    assert result.exit_code == code, result.output
    return result


def test_files_folders_and_patterns_are_found_once_each(tmp_path):
    for name in ("a/x.mp4", "a/deep/y.MKV", "a/.hidden.mp4", "a/note.txt", "a/x.scored.mp4", "b/x[1].mp4", "b/z.avi"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "pictures/cam").mkdir(parents=True)
    (tmp_path / "pictures/cam/1.png").touch()

    def names(*given):
        return [str(p.relative_to(tmp_path)) for p in find(str(tmp_path / g) for g in given)]

    assert names("a") == ["a/deep/y.MKV", "a/x.mp4"]
    assert names("a/x.mp4", "a", "a/deep/../x.mp4") == ["a/x.mp4", "a/deep/y.MKV"]
    assert names("a/note.txt", "a/x.scored.mp4") == ["a/note.txt", "a/x.scored.mp4"]  # named on purpose
    assert names("*/*.mp4") == ["a/x.mp4", "b/x[1].mp4"]
    assert names("**/*.mp4", "b/x[1].mp4") == ["a/x.mp4", "b/x[1].mp4"]
    assert names("?") == ["a/deep/y.MKV", "a/x.mp4", "b/x[1].mp4", "b/z.avi"]
    assert names("pictures") == ["pictures/cam"]
    for name in ("cam.png", "events.json"):  # results of an earlier scoring, in the folder above
        (tmp_path / "pictures" / name).touch()
    assert names("pictures") == ["pictures/cam"]
    (tmp_path / "empty").mkdir()
    for given, message in (
        ("empty", "no video in .*empty"),
        ("nothing.mp4", "no video .*nothing.mp4"),
        ("*.mov", "no"),
    ):
        with pytest.raises(ValueError, match=message):
            names("a", given)
    with pytest.raises(ValueError, match="a video is named ''"):  # "$UNSET" is not the current folder
        find([""])


def test_names_of_results_never_meet(tmp_path, put):
    out = tmp_path / "out"
    out.mkdir()

    def begin(path):
        name = name_in(out, path)
        (out / f"{name}.json").write_text(json.dumps({"video": str(path.resolve())}))
        return name

    first, second = put("a/x.mp4"), put("b/x.mp4")
    assert begin(first) == "x"
    other = begin(second)
    assert other.startswith("x-")
    assert [begin(second), begin(first)] == [other, "x"]  # the same again
    for name in ("<script>alert(1)</script>", "a b ü 录像", "-rf", "x.y", "100%"):
        path = put(f"c/{name.replace('/', '_')}.mp4")
        assert begin(path) == path.stem
    assert begin(put("events.mp4")).startswith("events-")
    assert begin(put("c/Events.mkv")).startswith("Events-")
    assert begin(tmp_path / os.fsdecode(b"c/\xff\n.mp4")) == "__"
    long = begin(put("c/" + "录" * 80 + ".mp4"))
    assert len(long.encode()) <= 120
    assert long != begin(put("d/" + "录" * 80 + ".mp4"))
    for ending in (".csv", ".json", ".png", ".scored.mp4"):  # of somebody else
        (out / f"mine{ending[1:3]}{ending}").write_text("precious")
        assert begin(put(f"mine{ending[1:3]}.mp4")).startswith(f"mine{ending[1:3]}-")


def test_from_videos_to_files(run, put, tmp_path):
    """Two of one name, odd names, one that is no video: the exit code is 1, and all others have their files."""
    good = [put("a/cam.mp4"), put("b/cam.mp4"), put("a/<script> ü.mp4")]
    (tmp_path / "a/broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    options = ["--out", out, "--min-duration", 0, "--merge", 0.5]
    result = wsvad(run.root, tmp_path / "a", tmp_path / "*" / "cam.mp4", *options, code=1)
    assert "broken.mp4: not a video, or cut off" in result.stderr
    assert result.stderr.count("WARNING: random weights: tiny-random-") == 1
    assert [line.partition(":")[0] for line in result.stdout.splitlines() if " s, highest score " in line] == [
        "<script> ü", "cam", name_in(out, good[1])
    ]  # fmt: skip
    chosen = training_threshold(run)
    assert chosen.about in result.stderr
    listed = json.loads((out / "events.json").read_text())
    scorer = load(run)
    for path in good:
        name = name_in(out, path)
        found = json.loads((out / f"{name}.json").read_text())
        assert found["complete"]
        assert found["video"] == str(path.resolve())
        assert found["random_weights"]
        assert found["warnings"] == list(scorer.warnings)
        assert found["threshold"] == {
            "high": chosen.value, "low": chosen.low, "min_s": 0.0, "merge_s": 0.5, "about": chosen.about
        }  # fmt: skip
        wanted = scorer.score(path)
        table = np.loadtxt(out / f"{name}.csv", delimiter=",", skiprows=1)
        np.testing.assert_array_equal(table[:, 0], np.arange(40))
        np.testing.assert_allclose(table[:, 1], np.arange(40) / 25, atol=1e-6)
        np.testing.assert_array_equal(table[:, 2], wanted.scores)
        assert [c["score"] for c in found["clips"]] == wanted.clip_scores.tolist()
        assert [(c["start"], c["stop"]) for c in found["clips"]] == [(0, 16), (16, 32), (32, 40)]
        spans = wanted.events(EventRule(chosen.value, chosen.low, 0, 0.5))
        assert [(e["start_frame"], e["stop_frame"]) for e in found["events"]] == [
            (round(25 * span.start_s), round(25 * span.stop_s)) for span in spans
        ]
        assert [e for e in listed["events"] if e["name"] == name] == found["events"]
        assert listed["videos"][name]["threshold"]["about"] == chosen.about
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(listed["videos"]) == {name_in(out, p) for p in good}
    assert "broken" not in {p.stem for p in out.iterdir()}


def test_scoring_again_replaces_all_of_a_video_and_nothing_else(run, put, tmp_path, stub):
    one, other, out = put("one.mp4"), put("other.mp4"), tmp_path / "out"
    level = float(np.median(load(run).score(one).scores))
    wsvad(run.root, one, other, "--out", out, "--picture", "both", "--threshold", level, "--min-duration", 0)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {"one.svg", "one.png", "other.svg"} <= set(before)
    first = json.loads(before["events.json"])
    assert {e["name"] for e in first["events"]} == {"one", "other"}
    assert first["videos"]["one"]["threshold"]["about"] == "given by the user"
    assert first["videos"]["one"]["threshold"]["low"] == pytest.approx(0.8 * level)
    result = wsvad(run.root, one, "--out", out, "--picture", "none", "--threshold", 2, "--low", 1, "--json")
    after = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) - set(after) == {"one.svg", "one.png"}  # they would show other events
    assert {n: b for n, b in before.items() if n.startswith("other")} == {
        n: b for n, b in after.items() if n.startswith("other")
    }
    second = json.loads(after["events.json"])
    assert {e["name"] for e in second["events"]} == {"other"}
    assert second["videos"]["one"]["threshold"] == {
        "high": 2.0, "low": 1.0, "min_s": 1.0, "merge_s": 2.0, "about": "given by the user"
    }  # fmt: skip
    assert second["videos"]["other"] == first["videos"]["other"]
    said = json.loads(result.stdout)  # nothing else on stdout
    assert [(v["name"], v["frames"], v["events"]) for v in said["videos"]] == [("one", 40, [])]
    assert said["failures"] == {}
    assert said["selected_by"] == json.loads(after["one.json"])["selected_by"]


def test_a_kill_leaves_nothing_that_looks_done(run, put, tmp_path, stub, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    path, out = put("x.mp4"), tmp_path / "out"
    wsvad(run.root, path, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("mil.timeline.timeline", killed)
        wsvad(run.root, path, "--out", out, "--threshold", 0.1, code=130)
    found = json.loads((out / "x.json").read_text())
    assert not found["complete"]
    assert "clips" not in found
    other = out / ".y.png.elsewhere.1.tmp"  # of another video, it is left alone
    for left in (out / ".x.scored.mp4.elsewhere.1.tmp", other):
        left.touch()
        os.utime(left, (0, 0))  # so old that its writer is gone
    wsvad(run.root, path, "--out", out)
    other.unlink()
    assert json.loads((out / "x.json").read_text())["complete"]
    assert sorted(p.name for p in out.iterdir()) == ["events.json", "x.csv", "x.json", "x.png"]


def test_a_full_disk_ends_the_command(run, put, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")  # of a file that is open: it has no name

    monkeypatch.setattr(score_files, "write_text", full)
    result = wsvad(run.root, put("x.mp4"), put("y.mp4"), "--out", tmp_path / "out", code=2)
    assert f"error: No space left on device: {tmp_path / 'out'}; choose another path" in result.stderr


def test_what_cannot_be_carried_out_is_refused_before_anything_is_decoded(run, put, tmp_path, monkeypatch):
    monkeypatch.setattr(Scorer, "score", None)
    path, out = put("x.mp4"), tmp_path / "out"
    moved = tmp_path / "moved"
    shutil.copytree(run.root, moved)
    for kept in moved.glob("threshold*"):
        kept.unlink()
    features = json.loads((moved / "features.json").read_text())
    (moved / "features.json").write_text(json.dumps([{**features[0], "root": str(tmp_path / "gone")}]))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "events.json").write_text('{"mine": 1}')
    stray = tmp_path / "stray.pth"
    stray.write_bytes(b"x")
    for arguments, message in (
        ((moved, path), "no feature store .*; say where events begin: --threshold SCORE"),
        ((run.root, tmp_path / "nothing.mp4"), "no video .*nothing.mp4"),
        ((tmp_path / "no_run", path), "no run at"),
        ((run.root, path, "--rule", "test"), "kept no weights by test"),
        ((run.root, path, "--weights", stray), "stray.pth has sha256"),
        ((run.root, path, "--threshold", 0.5, "--low", 0.6), "low must be at most high"),
        ((run.root, path, "--device", "cuda:77"), "cuda:77"),
    ):
        result = wsvad(*arguments, "--out", out, code=2)
        assert result.stdout == ""
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert re.search(f"error: .*{message}", result.stderr), result.stderr
    result = wsvad(run.root, path, "--out", tmp_path / "taken", code=2)
    assert "events.json is no list of events of this wsvad; choose another --out" in result.stderr
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "1.png").touch()
    result = wsvad(run.root, tmp_path / "cam", path, "--out", tmp_path / "cam", code=2)
    assert "cam holds the frames of a video that is to be scored; choose another folder" in result.stderr
    assert not out.exists()


def test_an_annotated_video_is_written_beside_and_never_over_a_video(run, put, tmp_path):
    path = put("x.mp4")
    own = put("x.scored.mp4")
    before = own.read_bytes()
    wsvad(run.root, path, "--out", tmp_path, "--annotate", "--picture", "none")
    assert own.read_bytes() == before
    name = name_in(tmp_path, path)
    assert name.startswith("x-")
    assert len(load(run).score(tmp_path / f"{name}.scored.mp4").scores) == 40
    assert find([str(tmp_path)]) == [path]


def test_two_processes_may_score_into_one_folder(run, put, tmp_path):
    scorer, rule, out = load(run), EventRule(0.0, 0.0), tmp_path / "out"
    out.mkdir()
    lists = [EventList(out), EventList(out)]  # both have seen it empty
    for name, listed in zip("ab", lists, strict=True):
        found = scorer.score(put(f"{name}.mp4"))
        listed.add(found, write(found, out, rule=rule, pictures=()), rule, "by hand")
    listed = json.loads((out / "events.json").read_text())
    assert list(listed["videos"]) == ["a", "b"]
    assert [(e["name"], e["start_frame"], e["stop_frame"]) for e in listed["events"]] == [("a", 0, 40), ("b", 0, 40)]


def test_lines_for_people_are_short():
    event = {"start_s": 1.0, "stop_s": 2.5}
    summary = {"name": "x", "seconds": 9.0, "peak": 0.75, "peak_s": 1.2, "events": [event] * 7, "notes": ["odd"]}
    assert score_cli.line_of(summary) == (
        "x: 9.0 s, highest score 0.75 at 1.2 s, 7 events: "
        + ", ".join(["1.0 to 2.5 s"] * 5)
        + " and 2 more\n  note: odd"
    )
    assert score_cli.line_of({**summary, "events": [], "notes": []}).endswith("0 events")
