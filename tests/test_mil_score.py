"""Scores of raw videos: the same numbers as extraction, training and evaluation give, and answers for odd files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data import manifest
from data.datasets.toy_video import write_video
from data.files import write_text
from data.store import FeatureStore
from data.types import Event, Video, VideoFeatures
from extract.backbones import BackboneError
from extract.decode import DecodeError
from extract.runner import extract_all
from mil import score as score_module
from mil.config import load as load_config
from mil.evaluate import evaluate_run
from mil.events import EventRule, find_events
from mil.heads import heads
from mil.rundir import RunDir
from mil.score import load
from mil.scoring import score_videos
from mil.train import fit
from tests.helpers import numbered_frames, write_small
from tests.mil_helpers import small_config

SECOND = 16000
LENGTHS = {"train": [20, 17, 9, 18], "test": [1, 7, 17, 70]}


def film(path, frames, seed, *, sound=True, fps=25):
    rng = np.random.default_rng(seed)
    samples = (0.2 * rng.normal(size=max(frames * SECOND // fps, 1))).astype(np.float32)
    write_video(path, numbered_frames(frames, 48, 64, seed=seed), fps, audio=samples if sound else None)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("score")


@pytest.fixture(scope="module")
def videos(folder):
    found = []
    for split, lengths in LENGTHS.items():
        for i, frames in enumerate(lengths):
            path = film(folder / f"{split} {i}.mp4", frames, seed=10 * len(found))
            events = (Event(0, frames),) if split == "test" and i % 2 else ()
            found.append(Video(path.stem, str(path), split, i % 2, events=events))
    manifest.write(folder / "videos.csv", found)
    return found


def trained(folder, videos, stores, name, *overrides, **options):
    config = small_config("train.steps=3", *overrides, **options)
    run = RunDir.create(folder / name, config, videos, stores)
    fit(config, [v for v in videos if v.split == "train"], stores, run)
    return run


@pytest.fixture(scope="module")
def run(folder, videos):
    """Of pictures and sound, with smoothing; features through the command's own way into stores."""
    stores = []
    for name in ("motion", "logmel_stats"):
        report = extract_all(videos, folder / name, name, workers=1)
        assert not report.failures
        stores.append(FeatureStore(folder / name))
    return trained(folder, videos, stores, "run", "evaluate.smooth=3")


@pytest.fixture(scope="module")
def quick(folder, videos):
    """Of an untrained net, small and quick."""
    some = [v for v in videos if v.split == "train"]
    assert not extract_all(some, folder / "tiny", "tiny", {"weights": "random:5"}, workers=1).failures
    return trained(folder, some, [FeatureStore(folder / "tiny")], "quick")


def test_scores_are_those_of_extraction_and_evaluation_to_the_bit(run, videos, folder):
    """From one clip of one frame to five clips, by two modalities, smoothed. Alone: to the bit."""
    scorer = load(run.root)
    together = {v.video_id: v.scores for v in evaluate_run(run, protocol_name="frames").videos}
    assert sorted(together) == sorted(v.id for v in videos if v.split == "test")
    for video in videos:
        if video.split != "test":
            continue
        one = folder / "one.csv"
        manifest.write(one, [replace(video, label=1, events=(Event(0, 1),))])
        (alone,) = evaluate_run(run, protocol_name="frames", manifest_path=one).videos
        found = scorer.score(video.path)
        np.testing.assert_array_equal(found.scores, alone.scores)
        # several in a batch: other shapes of products, other roundings
        np.testing.assert_allclose(found.scores, together[video.id], rtol=0, atol=1e-6)
        assert found.video_id == video.id
        frames = len(found.scores)
        np.testing.assert_array_equal(found.times, np.arange(frames + 1) / 25)
        assert len(found.clip_scores) == len(found.grid) == -(-frames // 16)
        np.testing.assert_array_equal(found.scores, found.clip_scores[np.arange(frames) // 16])
        assert any("shorter than one clip" in note for note in found.notes) == (frames < 16)
    assert len({float(s.max()) for s in together.values()}) > 3


def test_the_files_are_read_and_the_models_loaded_once_for_many_videos(quick, videos, monkeypatch):
    scorer = load(quick.root)
    first = [scorer.score(v.path).scores for v in videos[:3]]
    monkeypatch.setattr(score_module.checkpoint, "load", None)
    monkeypatch.setattr("extract.recreate.create", None)
    again = [scorer.score(v.path).scores for v in reversed(videos[:3])]
    for one, other in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_said_beside_the_scores(quick, run, videos):
    scorer = load(quick.root)
    found = scorer.score(videos[0].path)
    assert found.about["run"] == str(quick.root.resolve())
    assert found.about["selected_by"] == "last step (3), fixed beforehand"
    assert found.about["random_weights"]
    assert [w for w in scorer.warnings if w.startswith("random weights: tiny-random-")] == list(scorer.warnings)
    assert load(run.root).warnings == ()
    assert load(run.root).about["features"] == [store.spec.id for store in run.open_stores()]
    assert not load(run.root).about["random_weights"]


def test_an_optimistic_rule_and_an_unfinished_run_are_called_so(folder, videos, quick):
    config = small_config("train.steps=2", "select.also=[test]")
    stores = [FeatureStore(folder / "tiny")]
    some = [v for v in videos if v.split == "train"]
    run = RunDir.create(folder / "optimistic", config, some, stores)
    fit(config, some, stores, run, observer=lambda model: 0.5)
    run.set_status("interrupted")
    scorer = load(run, rule="test")
    assert scorer.about["optimistic"]
    assert scorer.warnings[0].startswith("OPTIMISTIC")
    assert scorer.warnings[-1] == "training is not done (interrupted), these weights are of step 2"
    assert not load(run).about["optimistic"]
    with pytest.raises(ValueError, match="kept no weights by val, only by last, test; train with --also val"):
        load(run, rule="val")


def test_a_video_without_sound_is_refused_by_a_run_that_hears(run, tmp_path):
    silent = film(tmp_path / "silent.mp4", 20, 1, sound=False)
    with pytest.raises(DecodeError, match=r"silent.mp4: it has no sound, and the run was trained on sound \(logmel_st"):
        load(run.root).score(silent)


def test_damaged_videos_are_refused_or_kept(quick, tmp_path):
    whole = write_small(tmp_path / "a.mkv", 100)
    cut = tmp_path / "b.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    with pytest.raises(DecodeError, match="--damaged keep"):
        load(quick.root).score(cut)
    kept = load(quick.root, damaged="keep")
    found = kept.score(cut)
    assert any("truncated" in note or "lost" in note for note in found.notes)
    assert len(found.times) == len(found.scores) + 1
    intact = kept.score(whole)
    n = len(found.scores) // 16 - 1
    np.testing.assert_array_equal(found.clip_scores[:n], intact.clip_scores[:n])


def test_frames_in_a_folder_are_a_video(quick, tmp_path):
    from PIL import Image

    (tmp_path / "cam").mkdir()
    for i, frame in enumerate(numbered_frames(20)):
        Image.fromarray(frame).save(tmp_path / "cam" / f"{i}.png")
    found = load(quick.root).score(tmp_path / "cam")
    assert (found.video_id, found.fps, len(found.scores)) == ("cam", None, 20)
    assert found.times[-1] == 20 / 25


def test_features_that_cannot_be_made_here_are_refused_before_any_video(quick, tmp_path):
    path = quick.checkpoint.with_suffix(".json")
    before = path.read_text()
    try:
        for change, message in (
            ({"backbone": "i3d_of_somebody", "tail": "given"}, "imported"),
            ({"revision": 7}, "has revision=1, asked for 7"),
        ):
            found = json.loads(before)
            found["specs"][0] |= change
            write_text(path, json.dumps(found))
            with pytest.raises(BackboneError, match=message):
                load(quick.root)
        write_text(path, json.dumps({**json.loads(before), "specs": []}))
        with pytest.raises(ValueError, match="was imported, and nobody recorded"):
            load(quick.root)
    finally:
        write_text(path, before)
    stray = tmp_path / "w.pth"
    stray.write_bytes(b"other")
    with pytest.raises(BackboneError, match="made with no files at all"):
        load(quick.root, weights=[stray])


def online_run(folder, videos, recipe):
    stores = [FeatureStore(folder / "tiny")]
    some = [v for v in videos if v.split == "train"]
    config = load_config(recipe, ["train.steps=1", "train.epochs=null", "evaluate.smooth=1"])
    run = RunDir.create(folder / recipe, config, some, stores)
    fit(config, some, stores, run)
    return run


def test_online_scores_tell_of_the_past_alone(folder, videos, quick, tmp_path):
    run = online_run(folder, videos, "motion_hlnet")
    whole = write_small(tmp_path / "whole.mp4", 96, seed=1, gop=1)
    part = tmp_path / "part.mp4"
    frames = [*numbered_frames(96, 32, 48, seed=1)]
    write_video(part, frames[:64], gop=1)
    online, offline = load(run, online=True), load(run)
    assert online.about["online"]
    assert heads.get("hlnet").causal_options
    first, second = online.score(part).clip_scores, online.score(whole).clip_scores[:4]
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(offline.score(whole).clip_scores[:4] - second).max() > 1e-5
    with pytest.raises(ValueError, match="'rtfm' scores a clip by later ones too; leave --online out"):
        load(online_run(folder, videos, "motion_rtfm"), online=True)


def test_events_picture_and_files_in_three_lines(quick, videos, tmp_path):
    found = load(quick.root).score(videos[-1].path)
    rule = EventRule(float(np.median(found.scores)), float(found.scores.min()), 0.2, 0.1)
    assert found.events(rule) == find_events(found.scores, found.times, rule)
    picture = found.plot(tmp_path / "x.svg", rule=rule)
    assert picture.axes
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    path = found.save(tmp_path / "out", rule=rule, about="by hand")
    saved = json.loads(path.read_text())
    assert saved["threshold"] == {"high": rule.high, "low": rule.low, "min_s": 0.2, "merge_s": 0.1, "about": "by hand"}
    assert [(e["start_s"], e["stop_s"]) for e in saved["events"]] == [
        (round(s.start_s, 6), round(s.stop_s, 6)) for s in found.events(rule)
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test 3.csv", "test 3.json", "test 3.png"]


def test_grids_that_are_one_clip_apart_are_joined_as_stores_are(run, videos, monkeypatch):
    """Sound with one clip less: the scores are those of both cut to it, at the grid of the pictures."""
    scorer = load(run.root)
    video = videos[-1]
    real = scorer._extract

    def shorter(self, video, backbone, reading):
        found, notes = real(video, backbone, reading)
        if backbone.spec.modality == "audio":
            grid = replace(found.grid, tail="given", count=len(found.grid) - 1)
            found = VideoFeatures(video.id, found.x[:, :-1], grid, found.fps, found.crops)
        return found, notes

    monkeypatch.setattr(score_module.Scorer, "_extract", shorter)
    found = scorer.score(video.path)
    made = {s.modality: real(Video("v", video.path, "test", 0), *pair)[0].x[:, :4] for s, *pair in zip(
        scorer.specs, scorer.backbones, scorer.readings, strict=True)}  # fmt: skip
    ((_, clips),) = score_videos(scorer.model, {"v": 4}, lambda _: made, crops=1, device=scorer.device)
    smoothed = np.array([clips[max(i - 1, 0) : i + 2].mean() for i in range(4)])
    np.testing.assert_allclose(found.clip_scores, smoothed, atol=1e-12)
    np.testing.assert_allclose(found.scores, smoothed[np.minimum(np.arange(70) // 16, 3)], atol=1e-12)
