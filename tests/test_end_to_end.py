"""The whole chain through the public command line, on real encoded video with the real descriptor.

A user's first commands are processes of their own; what follows is typed in this one, which has imported everything.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mil.evaluate import read_scores
from tests.mil_helpers import call_wsvad

TRAIN = ("--set", "train.steps=100", "--set", "head.hidden=[128,32]")
EVAL = ("--bootstrap", "200", "--json")


def wsvad(*args: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "mil", *args], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy.csv, features, a run and its numbers, made as a user would."""
    root = tmp_path_factory.mktemp("chain")
    small = ["--option", "train=6", "--option", "test=3", "--option", "min_s=6", "--option", "max_s=7"]
    wsvad("index", "toy", "--root", str(root / "toy"), "-o", str(root / "toy.csv"), *small)
    wsvad("extract", str(root / "toy.csv"), "--backbone", "motion", "--out", str(root / "features"), "--workers", "2")
    wsvad(
        *("train", "motion_ranking", "--manifest", str(root / "toy.csv"), "--features", str(root / "features")),
        *("--out", str(root / "run"), *TRAIN),
    )
    (root / "numbers.json").write_text(wsvad("eval", str(root / "run"), *EVAL))
    return root


def here(*args: object) -> str:
    """A command in this process; it must succeed."""
    result = call_wsvad(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_numbers_beat_chance_by_far_and_say_what_they_are(chain):
    found = json.loads((chain / "numbers.json").read_text())
    assert found["auc"] > 0.75  # 12 short training videos; the demo has 60 and reaches 0.97
    assert found["ap"] > 2 * found["positives"] / found["frames"]
    assert (found["videos"], found["protocol"], found["random_weights"]) == (6, "frames", False)
    assert found["selected_by"] == "last step (100), fixed beforehand"
    assert found["ci95"]["auc"][0] < found["auc"] <= found["ci95"]["auc"][1]


def test_scores_are_those_of_the_videos_frame_by_frame(chain):
    truth = json.loads((chain / "toy" / "truth.json").read_text())
    scored = {v.video_id: v for v in read_scores(chain / "run" / "eval" / "test-frames_scores.npz")}
    assert sorted(scored) == sorted(i for i in truth if i.startswith("test"))
    for video_id, video in scored.items():
        inside = {f for e in truth[video_id] for f in range(e["start"], e["stop"])}
        assert [int(label) for label in video.labels] == [int(f in inside) for f in range(len(video.labels))]


def test_extracting_again_does_nothing_and_the_store_is_whole(chain):
    again = json.loads(
        here("extract", chain / "toy.csv", "--backbone", "motion", "--out", chain / "features", "--json")
    )
    assert (again["written"], again["present"], again["failures"]) == (0, 18, {})
    assert json.loads(here("store", "verify", chain / "features", "--json"))["good"] == 18


def test_the_same_seed_gives_the_same_numbers_again(chain):
    """In another process."""
    given = ("--manifest", chain / "toy.csv", "--features", chain / "features", "--out", chain / "twin")
    here("train", "motion_ranking", *given, *TRAIN)
    one, two = json.loads((chain / "numbers.json").read_text()), json.loads(here("eval", chain / "twin", *EVAL))
    assert {k: v for k, v in one.items() if k != "manifest"} == {k: v for k, v in two.items() if k != "manifest"}
