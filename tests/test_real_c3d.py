"""Four real feature files of Sultani et al. (C3D fc6, 32 segments): imported, trained on and evaluated by command."""

import json
import subprocess
import sys

from data import manifest
from data.datasets.sources import read_annotations
from data.types import Video
from tests.helpers import shared


def wsvad(*args: object) -> str:
    done = subprocess.run([sys.executable, "-m", "mil", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_import_train_and_evaluate(tmp_path):
    src = shared("official", "ucf-crime", "c3d_fc6_32segments")
    annotations, _ = read_annotations(shared("official", "ucf-crime", "UCF_Annotation_with_frame_counts.txt"))
    videos = []
    for split, names in (
        ("train", ("Explosion008", "Normal_Videos_006")),
        ("test", ("Explosion025", "Normal_Videos_024")),
    ):
        for name in (f"{n}_x264" for n in names):
            found = annotations[name]
            events = found.events if split == "test" else ()
            videos.append(Video(name, "", split, int("Normal" not in name), (), found.num_frames, 30.0, events))
    manifest.write(tmp_path / "four.csv", videos)
    csv, store, run = tmp_path / "four.csv", tmp_path / "store", tmp_path / "run"
    report = json.loads(wsvad("import", "sultani", src, "--manifest", csv, "--out", store, "--json"))
    assert (report["written"], report["clips"], report["failures"]) == (4, 4 * 32, {})
    wsvad("train", "ranking", "--manifest", csv, "--features", store, "--out", run, "--set", "train.steps=20")
    for protocol in ("frames", "shots32"):
        numbers = json.loads(wsvad("eval", run, "--protocol", protocol, "--json"))
        lengths = [v.num_frames for v in videos if v.split == "test"]
        assert (numbers["videos"], numbers["frames"]) == (2, sum(lengths))
        assert numbers["lengths_from"] == ["manifest"]
        assert numbers["positives"] == sum(e.stop - e.start + (protocol == "shots32") for v in videos for e in v.events)
