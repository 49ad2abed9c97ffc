"""The generated dataset: same bytes for one seed, exact spans; sound tells where trouble is, brightness does not."""

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from data.datasets import datasets
from extract.decode import VideoReader

SETTINGS: dict = {"seed": 3, "train": 1, "test": 2, "min_s": 6.0, "max_s": 7.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy") / "toy"
    return root, datasets.get("toy")(root, workers=1, **SETTINGS)


def digests(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.mp4"))}


def sound_of(path: str) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (16000, 1)
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(stream)]).astype(np.float64)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(made, tmp_path):
    root, _ = made
    datasets.get("toy")(tmp_path / "again", workers=2, **SETTINGS)
    assert digests(tmp_path / "again") == digests(root)
    assert len(digests(root)) == 6


def test_another_seed_gives_other_videos(made, tmp_path):
    root, _ = made
    datasets.get("toy")(tmp_path / "other", workers=1, **{**SETTINGS, "seed": 4, "test": 1})
    assert not set(digests(tmp_path / "other").values()) & set(digests(root).values())


def test_lengths_are_those_of_the_encoded_files_and_spans_lie_inside(made):
    root, index = made
    truth = json.loads((root / "truth.json").read_text())
    assert index.summary() == {
        "train": 2, "train_anomalous": 1, "train_events": 0, "test": 4, "test_anomalous": 2, "test_events": 2,
    }  # fmt: skip
    for video in index.videos:
        with VideoReader(video.path) as reader:
            assert sum(1 for _ in reader) == video.num_frames
            assert (reader.fps, video.fps) == (25.0, 25.0)
        spans = [(e["start"], e["stop"]) for e in truth[video.id]]
        assert bool(spans) == bool(video.label)
        assert all(a >= 25 and b <= video.num_frames - 25 and 50 <= b - a <= 100 for a, b in spans)
        assert [(e.start, e.stop) for e in video.events] == (spans if video.split == "test" else [])


def test_trouble_is_heard_and_brightness_does_not_tell(made):
    _, index = made
    inside, outside, grey_in, grey_out = [], [], [], []
    for video in (v for v in index.videos if v.events):
        sound = sound_of(video.path)
        assert abs(len(sound) / 16000 - video.num_frames / video.fps) < 0.1
        labels = video.frame_labels().astype(bool)
        energy = np.array([np.square(sound[i * 640 : (i + 1) * 640]).mean() for i in range(len(labels))])
        with VideoReader(video.path, color="gray") as reader:
            grey = np.array([frame.mean() for frame in reader])
        inside.append(energy[labels].mean())
        outside.append(np.median(energy[~labels]))
        grey_in.append(grey[labels].mean())
        grey_out.append(grey[~labels].mean())
    assert min(np.array(inside) / np.array(outside)) > 5
    assert max(abs(np.array(grey_in) / np.array(grey_out) - 1)) < 0.1  # the slow drift of the light is up to 6 %


def test_what_an_interrupted_run_left_out_is_made_and_the_rest_kept(made):
    root, _ = made
    before = digests(root)
    victim = root / "videos" / "test" / "test_normal_000.mp4"
    victim.rename(victim.with_name(f".{victim.name}.12345.part"))  # as a killed encoder leaves it
    kept = root / "videos" / "test" / "test_normal_001.mp4"
    made_at = kept.stat().st_mtime_ns
    index = datasets.get("toy")(root, workers=1, **SETTINGS)
    victim.with_name(f".{victim.name}.12345.part").unlink()
    assert digests(root) == before
    assert kept.stat().st_mtime_ns == made_at
    assert all(Path(v.path).is_file() for v in index.videos)


def test_a_folder_of_other_settings_or_other_things_is_refused(made, tmp_path):
    root, _ = made
    with pytest.raises(ValueError, match=r"was generated with seed=3, asked for 9; use another --root"):
        datasets.get("toy")(root, **{**SETTINGS, "seed": 9})
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match="is not empty and no toy dataset"):
        datasets.get("toy")(tmp_path)
    with pytest.raises(ValueError, match="6 <= min_s <= max_s"):
        datasets.get("toy")(tmp_path / "new", min_s=2.0)
