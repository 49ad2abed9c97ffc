"""The runner: one bad video costs nobody else anything, a rerun does what is missing, and workers change nothing."""

import json
import os
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from data import manifest
from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import FeatureSpec, SpecMismatchError, Video
from extract.backbones import Backbone, BackboneError, backbones
from extract.decode import DecodeError, VideoReader
from extract.runner import extract_all
from extract.video import extract_video
from mil.cli import main
from tests.helpers import contents, numbered_frames, run_cli, write_small

MOODY = '''
"""A backbone that does what the brightness of a video tells it to."""

import os, signal, sys
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

if "pytest" not in sys.modules:
    backbones._loaded = True  # processes that need none of the other backbones start sooner

@backbones.register("moody")
class Moody(Backbone):
    """For tests."""

    uses_torch = False

    def __init__(self, *, dtype: str = "float32") -> None:
        self.spec = FeatureSpec(backbone="moody", dim=2, weights="none", resize="8x8:area", color="gray", dtype=dtype)

    def extract(self, clips, fps):
        x = np.stack([clips.mean((1, 2, 3)), fps], 1)[:, None].astype(np.float32)
        if x[0, 0, 0] < 20:
            os.kill(os.getpid(), signal.SIGKILL)
        if x[0, 0, 0] > 235:
            x[-1, 0, 1] = np.nan
        if 190 < x[0, 0, 0] < 210:
            raise RuntimeError("in a mood")
        if 150 < x[0, 0, 0] < 170:
            x = x * 1000
        return x
'''
DIES, GOOD, OVERFLOWS, RAISES, NAN = 0, 100, 160, 200, 255


@pytest.fixture
def moody(tmp_path):
    path = tmp_path / "moody.py"
    path.write_text(MOODY)
    yield path
    backbones._items.pop("moody", None)


def even(path: Path, level: int, count: int = 40) -> Path:
    write_video(path, [np.full((32, 32, 3), level, np.uint8)] * count)
    return path


def video_of(path: Path, **changes) -> Video:
    return replace(Video(path.stem, str(path), "train", 0), **changes)


def failures_on_record(root: Path) -> list[str]:
    return [json.loads(line)["video"] for line in (root / "failures.jsonl").read_text().splitlines()]


def bad_files(folder: Path) -> dict[str, str]:
    """Every kind of bad input, and what the message must say."""
    even(folder / "cut.mp4", GOOD)
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:-600])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("404 not found\n" * 50)
    even(folder / "nan.mp4", NAN)
    even(folder / "raises.mp4", RAISES)
    return {
        "cut": "cut.mp4: ",
        "empty": "empty.mp4: the file is empty",
        "text": "text.mp4: not a video",
        "gone": "gone.mp4: no such file",
        "nan": "feature 1 of clip 0, crop 'full', is nan",
        "raises": "in a mood",
    }


def test_bad_videos_are_named_once_and_the_good_ones_done(tmp_path, moody):
    folder, root = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    wanted = bad_files(folder)
    good = [even(folder / f"good{i}.mp4", GOOD + i) for i in range(3)]
    paths = sorted({*good, *(folder / f"{name}.mp4" for name in wanted)})
    videos = [video_of(p) for p in paths]
    report = extract_all(videos, root, "moody", workers=1, plugins=[moody])
    assert sorted(report.written) == sorted(p.stem for p in good)
    assert set(report.failures) == set(wanted)
    for name, message in wanted.items():
        assert message in report.failures[name]
    assert sorted(failures_on_record(root)) == sorted(wanted)
    assert all(name in report.describe(root) for name in wanted)
    store = FeatureStore(root)
    assert store.verify().good == tuple(sorted(report.written))
    assert store.info()["failures"] == len(wanted)

    before = {p: p.stat().st_mtime_ns for p in store.files()}
    even(folder / "gone.mp4", GOOD)
    again = extract_all(videos, root, "moody", workers=1, plugins=[moody])
    assert again.written == ["gone"]
    assert sorted(again.present) == sorted(report.written)
    assert set(again.failures) == set(wanted) - {"gone"}
    assert {p: p.stat().st_mtime_ns for p in before} == before  # what was there was not done again


def test_the_command_with_workers_that_die(tmp_path, moody):
    """All kinds at once through the command line: exit code 1, then 0 when the files are repaired."""
    folder, file, root = tmp_path / "videos", tmp_path / "m.csv", tmp_path / "store"
    folder.mkdir()
    paths = [even(folder / f"good{i}.mp4", GOOD + i) for i in range(3)]
    paths[1:1] = [even(folder / "dies.mp4", DIES), even(folder / "nan.mp4", NAN), folder / "gone.mp4"]
    manifest.write(file, [video_of(p) for p in paths])
    command = ("extract", file, "--backbone", "moody", "--plugin", moody, "--out", root, "--json")
    first = run_cli(*command, "--workers", 2)
    assert first.returncode == 1, first.stderr
    said = json.loads(first.stdout)
    assert (said["written"], sorted(said["failures"])) == (3, ["dies", "gone", "nan"])
    assert "its worker died (exit code -9)" in said["failures"]["dies"]
    assert sorted(failures_on_record(root)) == ["dies", "gone", "nan"]
    for name in ("dies", "gone", "nan"):
        even(folder / f"{name}.mp4", GOOD)
    second = run_cli(*command, "--workers", 1)
    assert second.returncode == 0, second.stderr
    said = json.loads(second.stdout)
    assert (said["written"], said["present"], said["failures"]) == (3, 3, {})
    in_process = CliRunner()
    assert in_process.invoke(main, ["store", "verify", str(root)]).exit_code == 0
    third = in_process.invoke(main, ["extract", str(file), "--backbone", "tiny", "--out", str(root)])
    assert third.exit_code == 2
    assert "has backbone='moody', asked for 'tiny'" in third.output


def test_workers_and_batches_change_no_byte(tmp_path):
    videos = [video_of(write_small(tmp_path / f"v{i}.mp4", 30 + 45 * i, seed=i)) for i in range(3)]
    stores = []
    for name, options in {
        "a": {"workers": 1, "batch": 8},
        "b": {"workers": 1, "batch": 1},
        "c": {"workers": 1, "batch": 3},
        "d": {"workers": 2, "batch": 5},
    }.items():
        report = extract_all(videos, tmp_path / name, "tiny", **options)
        assert report.failures == {}
        assert report.frames == 30 + 75 + 120
        stores.append(contents(tmp_path / name))
    assert len(stores[0]) == 3
    assert all(other == stores[0] for other in stores)


def test_shards_part_the_list(tmp_path, moody):
    videos = [video_of(even(tmp_path / f"v{i}.mp4", GOOD + i, 20)) for i in range(7)]
    done = []
    for i in (1, 2, 3):
        report = extract_all(videos, tmp_path / "s", "moody", workers=1, shard=(i, 3), plugins=[moody])
        done.append(report.written)
        assert report.present == []
    assert done == [["v0", "v3", "v6"], ["v1", "v4"], ["v2", "v5"]]
    extract_all(videos, tmp_path / "whole", "moody", workers=1, plugins=[moody])
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0)])
def test_impossible_shards(tmp_path, shard):
    with pytest.raises(ValueError, match=f"counts from 1: .*, got {shard[0]}/{shard[1]}"):
        extract_all([], tmp_path / "s", "tiny", shard=shard)
    assert not (tmp_path / "s").exists()


def test_another_length_than_the_manifests_is_refused(tmp_path, moody):
    path = even(tmp_path / "v.mp4", GOOD, 40)
    right, wrong = video_of(path, id="right", num_frames=40), video_of(path, id="wrong", num_frames=41)
    report = extract_all([right, wrong], tmp_path / "s", "moody", workers=1, plugins=[moody])
    assert report.written == ["right"]
    assert "the manifest says 41 frames, decoding gave 40; correct the manifest" in report.failures["wrong"]


def test_another_spec_is_refused_by_field_before_anything_is_done(tmp_path, moody):
    videos = [video_of(even(tmp_path / "v.mp4", GOOD))]
    extract_all(videos, tmp_path / "s", "moody", workers=1, plugins=[moody])
    with pytest.raises(SpecMismatchError, match="has dtype='float32', asked for 'float16'"):
        extract_all(videos, tmp_path / "s", "moody", {"dtype": "float16"}, workers=1)
    with pytest.raises(BackboneError, match=r"takes no option 'dtpe'. Did you mean 'dtype'"):
        extract_all(videos, tmp_path / "t", "moody", {"dtpe": "float16"}, workers=1)
    assert not (tmp_path / "t").exists()


def test_an_overflow_of_float16_is_named(tmp_path, moody):
    videos = [video_of(even(tmp_path / "high.mp4", OVERFLOWS)), video_of(even(tmp_path / "low.mp4", GOOD))]
    report = extract_all(videos, tmp_path / "s", "moody", {"dtype": "float16"}, workers=1, plugins=[moody])
    assert report.written == ["low"]
    assert "is inf; features must be finite (a float16 store overflows at 65504" in report.failures["high"]


def test_a_video_in_other_hands_is_left_to_them(tmp_path, moody):
    videos = [video_of(even(tmp_path / f"{n}.mp4", GOOD)) for n in "ab"]
    extract_all(videos[:0], tmp_path / "s", "moody", plugins=[moody])
    with FeatureStore(tmp_path / "s").claim("a"):
        report = extract_all(videos, tmp_path / "s", "moody", workers=1, plugins=[moody])
    assert (report.written, report.elsewhere, report.failures) == (["b"], ["a"], {})
    assert "1 videos are in the hands of other workers" in report.describe(tmp_path)


def test_what_is_stored_is_the_nets_output_clip_by_clip(tmp_path):
    """Against the net run by hand on frames picked by the grid from a plain list."""
    from extract.backbones import create

    path = write_small(tmp_path / "v.mp4", 75, fps=30)
    net = create("tiny")
    with VideoReader(path, resize=net.spec.resize, color=net.spec.color) as reader:
        frames = np.stack(list(reader))
    grid = net.spec.grid(75)
    wanted = [net.extract(frames[grid.frame_indices(i)][None], np.array([30.0]))[0] for i in range(len(grid))]
    features, notes = extract_video(video_of(path), net, batch=2)
    np.testing.assert_array_equal(features.x, np.stack(wanted, axis=1))
    assert (features.grid, features.fps, features.source_bytes) == (grid, 30.0, path.stat().st_size)
    assert notes == ()


def test_unusual_videos_are_noted(tmp_path, moody):
    short = even(tmp_path / "short.mp4", GOOD, 9)
    write_video(tmp_path / "slow.mp4", [np.full((32, 32, 3), GOOD, np.uint8)] * 20, fps=8)
    turned = even(tmp_path / "turned.mp4", GOOD)
    raw = bytearray(turned.read_bytes())
    at = raw.find(b"tkhd") + 44
    raw[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    turned.write_bytes(raw)
    videos = [video_of(short), video_of(tmp_path / "slow.mp4"), video_of(turned)]
    report = extract_all(videos, tmp_path / "s", "moody", workers=1, plugins=[moody])
    assert report.failures == {}
    assert [note.split(":")[0] for note in report.notes] == ["short", "slow", "turned"]
    assert "9 frames, shorter than one clip of 16: filled by rule 'repeat'" in report.notes[0]
    assert "8 frames/s" in report.notes[1]
    assert "turned upright" in report.notes[2]


def test_a_failing_net_leaves_no_thread_and_no_open_file(tmp_path):
    class Failing(Backbone):
        spec = FeatureSpec(backbone="failing", dim=1, weights="none", clip_len=4, stride=1)

        def extract(self, clips, fps):
            raise RuntimeError("no memory")

    path = tmp_path / "v.mp4"
    write_video(path, numbered_frames(300, 32, 48))
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no memory"):
            extract_video(video_of(path), Failing(), batch=1)
    after = (threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
    assert after == before


def test_a_file_damaged_behind_its_first_clips_stores_nothing(tmp_path, moody):
    path = even(tmp_path / "v.mp4", GOOD, 200)
    raw = path.read_bytes()
    moov = raw.find(b"moov")
    path.write_bytes(raw[: moov // 2] + b"\xff" * (moov - 4 - moov // 2) + raw[moov - 4 :])
    report = extract_all([video_of(path)], tmp_path / "s", "moody", workers=1, plugins=[moody])
    assert report.written == []
    assert str(path) in report.failures["v"]
    assert contents(tmp_path / "s") == {}
    lost = r"[1-9][0-9]* of 200 frames cannot be decoded whole"
    with pytest.raises(DecodeError, match=lost), VideoReader(path) as reader:
        list(reader)
