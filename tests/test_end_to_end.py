"""The whole chain through the public command line, on real encoded video with the real descriptor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mil.evaluate import read_scores


def wsvad(*args: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "mil", *args], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy.csv, features and a run, made as a user would."""
    root = tmp_path_factory.mktemp("chain")
    small = ["--option", "train=10", "--option", "test=3", "--option", "min_s=6", "--option", "max_s=7"]
    wsvad("index", "toy", "--root", str(root / "toy"), "-o", str(root / "toy.csv"), *small)
    wsvad("extract", str(root / "toy.csv"), "--backbone", "motion", "--out", str(root / "features"), "--workers", "2")
    wsvad(
        *("train", "motion_ranking", "--manifest", str(root / "toy.csv"), "--features", str(root / "features")),
        *("--out", str(root / "run"), "--set", "train.steps=200", "--set", "head.hidden=[128,32]"),
    )
    return root


def test_numbers_beat_chance_by_far_and_say_what_they_are(chain):
    found = json.loads(wsvad("eval", str(chain / "run"), "--bootstrap", "200", "--json"))
    assert found["auc"] > 0.75  # 20 short training videos; the demo has 60 and reaches 0.97
    assert found["ap"] > 2 * found["positives"] / found["frames"]
    assert (found["videos"], found["protocol"], found["random_weights"]) == (6, "frames", False)
    assert found["selected_by"] == "last step (200), fixed beforehand"
    assert found["ci95"]["auc"][0] < found["auc"] <= found["ci95"]["auc"][1]


def test_scores_are_those_of_the_videos_frame_by_frame(chain):
    wsvad("eval", str(chain / "run"))
    truth = json.loads((chain / "toy" / "truth.json").read_text())
    scored = {v.video_id: v for v in read_scores(chain / "run" / "eval" / "test-frames_scores.npz")}
    assert sorted(scored) == sorted(i for i in truth if i.startswith("test"))
    for video_id, video in scored.items():
        inside = {f for e in truth[video_id] for f in range(e["start"], e["stop"])}
        assert [int(label) for label in video.labels] == [int(f in inside) for f in range(len(video.labels))]


def test_extracting_again_does_nothing_and_the_store_is_whole(chain):
    args = ("extract", str(chain / "toy.csv"), "--backbone", "motion", "--out", str(chain / "features"), "--json")
    again = json.loads(wsvad(*args))
    assert (again["written"], again["present"], again["failures"]) == (0, 26, {})
    assert json.loads(wsvad("store", "verify", str(chain / "features"), "--json"))["good"] == 26


def test_the_same_seed_gives_the_same_numbers_again(chain):
    wsvad(
        *("train", "motion_ranking", "--manifest", str(chain / "toy.csv"), "--features", str(chain / "features")),
        *("--out", str(chain / "twin"), "--set", "train.steps=200", "--set", "head.hidden=[128,32]"),
    )
    one, two = (json.loads(wsvad("eval", str(chain / name), "--json")) for name in ("run", "twin"))
    assert {k: v for k, v in one.items() if k != "manifest"} == {k: v for k, v in two.items() if k != "manifest"}
