"""Evaluation: joined by id, lengths from the features, labels from the annotations, and the protocol beside it all."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import manifest
from data.grid import ClipGrid
from data.registry import UnknownNameError
from data.store import FeatureStore
from data.types import Event, FrameScores, SpecMismatchError, VideoFeatures
from mil import checkpoint, evaluate, evaluations, protocol
from mil.evaluate import evaluate_run, read_scores, scored, write_scores
from mil.train import TrainError, fit
from mil.train_cli import describe
from tests.mil_helpers import make_world, small_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("evaluate"), train=4, test=4, crops=2, shift=1.0)


@pytest.fixture(scope="module")
def run(world):
    config = small_config("train.steps=5")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    return run


def other_manifest(path, videos):
    manifest.write(path, videos)
    return path


def unknown_length(videos):
    return [replace(v, num_frames=None, fps=None) for v in videos]


def scores_by_id(result):
    return {v.video_id: v.scores for v in result.videos}


def test_frame_scores_equal_those_computed_clip_by_clip(world, run):
    """Standardize, three layers, mean of the crops, every frame the score of the clip that shows it; nothing resampled.

    Labels by a loop over the manifest's events.
    """
    result = evaluate_run(run)
    model = checkpoint.load(run.checkpoint).model
    scaler, head = model.scalers["rgb"], model.head
    assert [v.video_id for v in result.videos] == [v.id for v in world.test]
    for found, video in zip(result.videos, world.test, strict=True):
        x = (torch.from_numpy(world.stores[0].read(video.id).x) - scaler.mean) / scaler.deviation
        with torch.no_grad():
            clips = head.fc3(head.fc2(head.fc1(x).relu())).sigmoid()[..., 0].mean(0).double().numpy()
        for frame in range(video.num_frames):
            assert found.scores[frame] == pytest.approx(clips[frame // 16], abs=1e-6)
            assert found.labels[frame] == any(e.start <= frame < e.stop for e in video.events)
        assert len(found.scores) == len(found.labels) == video.num_frames


def test_numbers_equal_those_computed_from_the_stored_frame_scores(run):
    result = evaluate_run(run)
    with np.load(result.path.with_name("test-frames_scores.npz")) as stored:
        assert stored["lengths"].sum() == len(stored["scores"]) == len(stored["labels"])
        scores, labels, lengths = stored["scores"], stored["labels"], stored["lengths"]
    numbers = json.loads(result.path.read_text())
    assert numbers == result.numbers
    high, low = scores[labels == 1], scores[labels == 0]
    won = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    assert numbers["auc"] == pytest.approx(won, abs=1e-12)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    normal = [scores[a:b] for a, b in itertools.pairwise(bounds) if not labels[a:b].any()]
    assert numbers["far"] == pytest.approx((np.concatenate(normal) >= 0.5).mean(), abs=1e-12)
    recall_before = ap = area = 0.0
    precision_before = 1.0
    for threshold in np.unique(scores)[::-1]:
        chosen = labels[scores >= threshold]
        recall, precision = chosen.sum() / labels.sum(), chosen.mean()
        ap += (recall - recall_before) * precision
        area += (recall - recall_before) * (precision + precision_before) / 2
        recall_before, precision_before = recall, precision
    assert numbers["ap"] == pytest.approx(ap, abs=1e-12)
    assert numbers["pr_auc"] == pytest.approx(area, abs=1e-12)


def test_what_stands_beside_the_numbers(world, run):
    numbers = evaluate_run(run).numbers
    frames = sum(v.num_frames for v in world.test)
    positives = sum(e.stop - e.start for v in world.test for e in v.events)
    expected = {
        "frames": frames,
        "positives": positives,
        "videos": 8,
        "anomalous_videos": 4,
        "protocol": "frames",
        "selected_by": "last step (5), fixed beforehand",
        "split": "test",
        "recipe": "motion_ranking",
        "head": "ranking",
        "seed": 0,
        "step": 5,
        "features": [world.stores[0].spec.id],
        "random_weights": False,
        "clamped_events": [],
        "missing": [],
        "smooth_clips": 1,
    }
    assert {k: numbers[k] for k in expected} == expected
    assert {"auc", "ap", "pr_auc", "ano_auc", "far", "far_threshold", "protocol_about", "manifest"} <= set(numbers)
    text = describe(numbers)
    assert f"{frames} frames, {positives} anomalous; protocol 'frames'" in text
    assert "selected by: last step (5), fixed beforehand" in text
    assert "WARNING" not in text


def test_the_order_of_the_manifest_changes_nothing(world, run, tmp_path):
    numbers, scores = evaluate_run(run).numbers, scores_by_id(evaluate_run(run))
    order = np.random.default_rng(0).permutation(len(world.videos))
    shuffled = other_manifest(tmp_path / "shuffled.csv", [world.videos[i] for i in order])
    result = evaluate_run(run, manifest_path=shuffled)
    assert [v.video_id for v in result.videos] != [v.id for v in world.test]
    assert {k: v for k, v in result.numbers.items() if k != "manifest"} == {
        k: v for k, v in numbers.items() if k != "manifest"
    }
    for video_id, own in scores_by_id(result).items():
        assert np.array_equal(own, scores[video_id])


def test_lengths_come_from_the_features_where_the_manifest_has_none(world, run, tmp_path):
    bare = other_manifest(tmp_path / "bare.csv", unknown_length(world.videos))
    result = evaluate_run(run, manifest_path=bare)
    assert result.numbers["frames"] == sum(v.num_frames for v in world.test)
    assert result.numbers["auc"] == evaluate_run(run).numbers["auc"]


def test_a_length_that_disagrees_with_the_features_is_refused_by_name(world, run, tmp_path):
    victim = world.test[2]
    videos = [replace(v, num_frames=v.num_frames + 1) if v is victim else v for v in world.videos]
    with pytest.raises(
        ValueError, match=f"{victim.id}: the manifest says {victim.num_frames + 1} frames, .* {victim.num_frames};"
    ):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / "long.csv", videos))


def test_events_behind_the_end_are_cut_and_counted(world, run, tmp_path):
    victim = next(v for v in world.test if v.label)
    late = Event(victim.num_frames - 5, victim.num_frames + 40)
    videos = [replace(v, events=(late,)) if v.id == victim.id else v for v in unknown_length(world.videos)]
    result = evaluate_run(run, manifest_path=other_manifest(tmp_path / "late.csv", videos))
    assert result.numbers["clamped_events"] == [victim.id]
    (found,) = [v for v in result.videos if v.video_id == victim.id]
    assert np.flatnonzero(found.labels).tolist() == list(range(victim.num_frames - 5, victim.num_frames))
    assert "1 videos have an event that ends behind the last frame" in describe(result.numbers)


def test_an_event_that_begins_behind_the_end_is_another_videos(world, run, tmp_path):
    victim = next(v for v in world.test if v.label)
    wrong = (Event(victim.num_frames, victim.num_frames + 9),)
    videos = [replace(v, events=wrong) if v.id == victim.id else v for v in unknown_length(world.videos)]
    with pytest.raises(ValueError, match=f"{victim.id}: an event starts at frame {victim.num_frames}"):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / "wrong.csv", videos))


def test_an_anomalous_test_video_without_events_is_refused_and_not_counted_as_normal(world, run, tmp_path):
    victim = [v for v in world.test if v.label][1]
    videos = [replace(v, events=()) if v is victim else v for v in world.videos]
    with pytest.raises(
        ValueError, match=f"1 of 4 anomalous videos in the test .*'{victim.id}', have no annotated events"
    ):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / "bare.csv", videos))


def test_missing_features_are_refused_by_name_or_listed(world, run, tmp_path):
    extra = replace(world.test[0], id="never_extracted", label=0, events=())
    longer = other_manifest(tmp_path / "longer.csv", [*world.videos, extra])
    with pytest.raises(TrainError, match=r"1 of 9 videos have no features, e\.g\. 'never_extracted'"):
        evaluate_run(run, manifest_path=longer)
    result = evaluate_run(run, manifest_path=longer, allow_missing=True)
    assert result.numbers["missing"] == ["never_extracted"]
    assert result.numbers["videos"] == 8
    assert "WARNING: 1 videos had no features" in describe(result.numbers)


def copy_store(world, root, **changes):
    """The same features under a spec that differs."""
    spec = replace(world.stores[0].spec, **changes)
    store = FeatureStore(root, spec)
    for video in world.videos:
        f = world.stores[0].read(video.id)
        store.write(VideoFeatures(video.id, f.x, f.grid, f.fps, spec.crops))
    return store


def test_manifests_of_one_stem_have_numbers_of_their_own(world, run, tmp_path):
    """Nor does one take the place of the run's own, or of another rule's or precision's, by its name."""
    own = evaluate_run(run)
    before = own.path.read_bytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    some = [v for v in world.videos if v.id != world.test[0].id]
    whole = evaluate_run(run, manifest_path=other_manifest(tmp_path / "a" / "videos.csv", world.videos))
    less = evaluate_run(run, manifest_path=other_manifest(tmp_path / "b" / "videos.csv", some))
    assert [json.loads(found.path.read_text())["videos"] for found in (whole, less)] == [8, 7]
    assert [len(read_scores(found.path.with_name(f"{found.path.stem}_scores.npz"))) for found in (whole, less)] == [
        8,
        7,
    ]
    assert evaluate_run(run, manifest_path=tmp_path / "b" / ".." / "b" / "videos.csv").path == less.path
    low = evaluate_run(run, precision="bf16").path
    kept = low.read_bytes()
    for name in ("bf16", "by_last", "partial"):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / f"{name}.csv", some))
    assert (own.path.read_bytes(), low.read_bytes()) == (before, kept)
    assert evaluations.find(run.root, run.config).path == own.path
    assert evaluations.find(run.root, run.config, precision="bf16").path == low


def test_a_kill_never_leaves_numbers_beside_the_scores_of_another_evaluation(run, monkeypatch):
    """Cut before, between and after the two files, while there are older ones."""
    path = evaluate_run(run, resamples=3).path
    scores = path.with_name(f"{path.stem}_scores.npz")

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_scores", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, name, killed)
            with pytest.raises(KeyboardInterrupt):
                evaluate_run(run)
        assert (path.exists(), scores.exists()) == (False, True), name
        assert evaluations.find(run.root, run.config) is None
        evaluate_run(run, resamples=3)
    assert "ci95" in evaluations.find(run.root, run.config).numbers


def test_a_store_that_moved_is_found_by_option(world, run, tmp_path):
    moved = copy_store(world, tmp_path / "moved")
    assert evaluate_run(run, feature_roots=[moved.root]).numbers["auc"] == evaluate_run(run).numbers["auc"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"resize": "short256:bilinear"}, "resize"),
        ({"crops": ("b", "a")}, "crops"),
        ({"weights": "random:0"}, "weights"),
    ],
)
def test_features_made_otherwise_are_refused_and_the_field_is_named(world, run, tmp_path, change, field):
    other = copy_store(world, tmp_path / "other", **change)
    with pytest.raises(SpecMismatchError, match=f"has {field}=.*asked for"):
        evaluate_run(run, feature_roots=[other.root])


def test_another_number_of_stores_is_refused(world, run):
    with pytest.raises(SpecMismatchError, match="trained on 1 feature stores, got 2"):
        evaluate_run(run, feature_roots=[world.stores[0].root] * 2)


def test_random_weights_are_never_hidden(tmp_path):
    world = make_world(tmp_path, train=2, test=2, weights="random:0")
    config = small_config("train.steps=1")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    numbers = evaluate_run(run).numbers
    assert numbers["random_weights"] is True
    assert "random" in numbers["features"][0]
    assert "WARNING: these features come from a net with random weights" in describe(numbers)


def test_features_are_named_by_what_was_scored_where_the_checkpoint_does_not_say(world, run, tmp_path):
    """As of an imported one, whose features nobody recorded."""
    random = copy_store(world, tmp_path / "random", weights="random:0")
    kept = checkpoint.load(run.checkpoint)
    bare = world.run(tmp_path.name, run.config)
    weights, dims = kept.model.state_dict(), kept.model.dims
    checkpoint.save(bare.checkpoint, weights, kept.config, dims, [], selected_by="its authors", step=0)
    numbers = evaluate_run(bare, feature_roots=[random.root]).numbers
    assert (numbers["features"], numbers["random_weights"]) == ([random.spec.id], True)
    assert evaluate_run(bare).numbers["features"] == [world.stores[0].spec.id]


def test_the_train_split_without_ground_truth_is_refused(world, run, tmp_path):
    videos = [replace(v, events=()) if v.split == "train" else v for v in world.videos]
    with pytest.raises(
        ValueError, match=r"4 of 4 anomalous videos in the train split .*no annotated events.*--split test"
    ):
        evaluate_run(run, split="train", manifest_path=other_manifest(tmp_path / "weak.csv", videos))
    numbers = evaluate_run(run, split="train").numbers
    assert (numbers["split"], numbers["videos"]) == ("train", 8)


def test_a_split_without_videos_is_refused(world, run, tmp_path):
    with pytest.raises(ValueError, match="has no videos in the test split"):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / "train.csv", world.train))


def test_an_unknown_protocol_is_refused_with_a_suggestion(run):
    with pytest.raises(UnknownNameError, match=r"no protocol called 'frame'. Did you mean 'frames'"):
        evaluate_run(run, protocol_name="frame")


def test_a_run_without_a_checkpoint_is_refused(world):
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint .*--resume"):
        evaluate_run(world.run("unfinished", small_config()))


def test_scoring_twice_gives_the_same_bytes(run):
    first = evaluate_run(run)
    scores = first.path.with_name("test-frames_scores.npz")
    before = first.path.read_bytes(), scores.read_bytes()
    evaluate_run(run)
    assert before == (first.path.read_bytes(), scores.read_bytes())


def test_two_modalities_from_training_to_numbers(tmp_path):
    """Audio has one clip less than RGB: the joined video is cut, and still every frame has a score."""
    world = make_world(tmp_path, train=3, test=2, crops=2, modalities=("rgb", "audio"))
    config = small_config("train.steps=4")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    result = evaluate_run(run)
    assert result.numbers["frames"] == sum(v.num_frames for v in world.test)
    assert result.numbers["features"] == [s.spec.id for s in world.stores]
    with pytest.raises(SpecMismatchError, match=r"has backbone|has dim|has modality"):
        evaluate_run(run, feature_roots=[s.root for s in reversed(world.stores)])


names = st.text("abc é/\\'\"#,;|=", min_size=1, max_size=8).filter(lambda s: s == s.strip())


@given(st.dictionaries(names, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1), min_size=1))
@settings(max_examples=40, deadline=None)
def test_frame_scores_survive_the_file(tmp_path_factory, found):
    videos = [
        FrameScores(i, np.array([s for s, _ in rows]), np.array([y for _, y in rows], np.uint8))
        for i, rows in found.items()
    ]
    path = tmp_path_factory.getbasetemp() / "scores.npz"
    write_scores(path, videos)
    again = read_scores(path)
    assert [v.video_id for v in again] == [v.video_id for v in videos]
    for a, b in zip(again, videos, strict=True):
        assert np.array_equal(a.scores, b.scores)
        assert np.array_equal(a.labels, b.labels)
        assert (a.scores.dtype, a.labels.dtype) == (b.scores.dtype, b.labels.dtype)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([1, 3, 5, 7, 21]))
@settings(max_examples=100, deadline=None)
def test_smoothing_is_the_mean_of_the_neighbours_that_are_there(scores, clips):
    found = protocol.smooth(np.array(scores), clips)
    assert len(found) == len(scores)
    for i in range(len(scores)):
        near = scores[max(i - clips // 2, 0) : i + clips // 2 + 1]
        assert found[i] == pytest.approx(sum(near) / len(near), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 40), st.sampled_from([3, 5, 7]))
@settings(max_examples=100, deadline=None)
def test_smoothing_keeps_equal_scores_equal(score, length, clips):
    """Ties must stay ties: a ranking metric counts a difference of one bit like any other."""
    found = protocol.smooth(np.full(length, score), clips)
    assert set(found.tolist()) == {score}


def test_smoothing_of_the_recipe_reaches_the_frames(world, tmp_path):
    config = small_config("train.steps=2", "evaluate.smooth=3")
    plain = small_config("train.steps=2")
    runs = [world.run(name, c) for name, c in (("smooth", config), ("plain", plain))]
    for run, c in zip(runs, (config, plain), strict=True):
        fit(c, world.train, world.stores, run)
    smooth, rough = (evaluate_run(run) for run in runs)
    assert smooth.numbers["smooth_clips"] == 3
    for a, b in zip(smooth.videos, rough.videos, strict=True):
        clips = b.scores[::16]
        for i in range(len(clips)):
            near = clips[max(i - 1, 0) : i + 2]
            assert a.scores[16 * i] == pytest.approx(near.mean(), abs=1e-12)


# -- crops, intervals, and lengths nobody counted ---------------------------------------------------------------------


def test_one_crop_by_name_scores_what_that_crop_alone_scores(world, run):
    """The mean over the crops of their scores is what is printed without `crop`."""
    names = world.stores[0].spec.crops
    mean, alone = evaluate_run(run), [evaluate_run(run, crop=name) for name in names]
    assert [r.path.name for r in alone] == [f"test-frames-crop_{name}.json" for name in names]
    assert [r.numbers["crops"] for r in (mean, *alone)] == ["mean of 2", *names]
    model = checkpoint.load(run.checkpoint).model
    scaler, head = model.scalers["rgb"], model.head
    for k, result in enumerate(alone):
        for found, video in zip(result.videos, world.test, strict=True):
            x = (torch.from_numpy(world.stores[0].read(video.id).x[k]) - scaler.mean) / scaler.deviation
            with torch.no_grad():
                clips = head.fc3(head.fc2(head.fc1(x).relu())).sigmoid()[..., 0].double().numpy()
            assert found.scores == pytest.approx(np.repeat(clips, 16)[: video.num_frames], abs=1e-6)
    assert alone[0].numbers["auc"] != alone[1].numbers["auc"]
    for one, other, both in zip(alone[0].videos, alone[1].videos, mean.videos, strict=True):
        assert both.scores == pytest.approx((one.scores + other.scores) / 2, abs=1e-6)


def test_a_crop_that_is_not_there_is_refused_with_a_suggestion(run):
    with pytest.raises(ValueError, match=r"no crop 'crop_1' in these features. Did you mean 'crop1'"):
        evaluate_run(run, crop="crop_1")
    assert not list((run.root / "eval").glob("*crop_crop_1*"))


def test_one_crop_beside_sound_that_has_no_crops(tmp_path):
    world = make_world(tmp_path, train=2, test=2, crops=2, modalities=("rgb", "audio"))
    config = small_config("train.steps=1")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    first, other = (evaluate_run(run, crop=f"crop{k}").numbers for k in (0, 1))
    assert (first["crops"], other["crops"]) == ("crop0", "crop1")
    assert first["auc"] != other["auc"]


def test_intervals_hold_the_point_estimate_and_stand_in_the_file(run):
    plain = evaluate_run(run).numbers
    assert "ci95" not in plain
    result = evaluate_run(run, resamples=500)
    numbers = json.loads(result.path.read_text())
    assert set(numbers["ci95"]) == {"auc", "ap", "pr_auc"}
    for name, (low, high) in numbers["ci95"].items():
        assert 0 <= low < numbers[name] < high <= 1, name
    assert "500 bootstrap draws of whole videos" in numbers["ci95_about"]
    assert {k: v for k, v in numbers.items() if not k.startswith("ci95")} == plain
    again = evaluate_run(run, resamples=500).numbers
    assert again["ci95"] == result.numbers["ci95"]


def test_where_the_lengths_come_from_is_written(world, run):
    numbers = evaluate_run(run).numbers
    assert (numbers["lengths_from"], numbers["protocol"]) == (["decoded"], "frames")


def of_unknown_length(world, root):
    """The same features as somebody publishes them: T clips, and nobody knows how many frames there were."""
    store = FeatureStore(root, world.stores[0].spec)
    for video in world.videos:
        f = world.stores[0].read(video.id)
        grid = replace(f.grid, num_frames=16 * len(f.grid))
        store.write(replace(f, grid=grid, length_from="features"))
    return store


def test_features_of_unknown_length_are_counted_by_snippet(world, run, tmp_path):
    """auto is `snippets` then: 16 x T frames, labels from the annotation; what counts true frames is refused."""
    store = of_unknown_length(world, tmp_path / "published")
    videos = other_manifest(tmp_path / "bare.csv", unknown_length(world.videos))
    result = evaluate_run(run, feature_roots=[store.root], manifest_path=videos)
    clips = {v.id: len(world.stores[0].read(v.id).grid) for v in world.test}
    assert (result.numbers["protocol"], result.numbers["lengths_from"]) == ("snippets", ["features"])
    assert result.path.name.startswith("test-snippets-manifest_bare_")
    assert result.numbers["frames"] == 16 * sum(clips.values()) > sum(v.num_frames for v in world.test)
    for found, video in zip(result.videos, world.test, strict=True):
        assert len(found.labels) == 16 * clips[video.id]
        assert np.flatnonzero(found.labels).tolist() == [f for e in video.events for f in range(e.start, e.stop)]
    for name in ("frames", "ratio", "shots32"):
        with pytest.raises(ValueError, match=f"protocol '{name}' counts every frame, .*use --protocol snippets"):
            evaluate_run(run, feature_roots=[store.root], manifest_path=videos, protocol_name=name)


@pytest.mark.parametrize("name", protocol.PROTOCOLS)
def test_each_protocol_names_itself_its_frames_and_its_positives(world, run, name):
    result = evaluate_run(run, protocol_name=name)
    rule = protocol.get(name)
    labels = [v.labels for v in result.videos]
    numbers = result.numbers
    assert (numbers["protocol"], numbers["protocol_about"]) == (name, rule.about)
    assert (numbers["frames"], numbers["positives"]) == (sum(map(len, labels)), sum(int(y.sum()) for y in labels))
    assert {"ap", "pr_auc"} == set(numbers["ap_definitions"])
    moved = sum(
        min(e.stop + rule.last, v.num_frames) - max(e.start + rule.first, 0) for v in world.test for e in v.events
    )
    assert numbers["positives"] == moved or rule.by_snippet
    assert list(numbers["classes"]) == ["Planted"]


def test_thirty_two_shots_are_pooled_before_they_are_scored(world, run):
    """Against means of the clips of each shot, put through the head here, and written over the frames in order."""
    result = evaluate_run(run, protocol_name="shots32")
    model = checkpoint.load(run.checkpoint).model
    scaler, head = model.scalers["rgb"], model.head
    for found, video in zip(result.videos, world.test, strict=True):
        x = torch.from_numpy(world.stores[0].read(video.id).x)
        bounds = [int(1 + (x.shape[1] - 1) * i / 32 + 0.5) - 1 for i in range(33)]
        shots = torch.stack([x[:, a : max(b, a + 1)].mean(1) for a, b in itertools.pairwise(bounds)], 1)
        with torch.no_grad():
            scores = head.fc3(head.fc2(head.fc1((shots - scaler.mean) / scaler.deviation).relu())).sigmoid()
        expected = np.empty(video.num_frames)
        for start, score in zip(bounds, scores[..., 0].mean(0).tolist(), strict=False):
            expected[16 * start :] = score  # a later shot overwrites; the last one keeps the tail
        assert found.scores == pytest.approx(expected, abs=1e-6)


def test_an_event_far_behind_the_features_is_another_videos(world, run, tmp_path):
    """By snippet too: cut silently, an anomalous video would count as normal. A tail that features drop is allowed."""
    victim = next(v for v in world.test if v.label)
    reach = 16 * len(world.stores[0].read(victim.id).grid)

    def with_event(start):
        late = Event(start, start + 9)
        videos = [replace(v, events=(late,)) if v.id == victim.id else v for v in unknown_length(world.videos)]
        return other_manifest(tmp_path / f"{start}.csv", videos)

    with pytest.raises(ValueError, match=f"{victim.id}: an event starts at frame {reach + 16}, but .* end at {reach};"):
        evaluate_run(run, protocol_name="snippets", manifest_path=with_event(reach + 16))
    numbers = evaluate_run(run, protocol_name="snippets", manifest_path=with_event(reach + 15)).numbers
    assert numbers["anomalous_videos"] == 3


def test_equal_parts_of_a_video_of_unknown_length_have_no_frames(tmp_path):
    """Sultani's 32 segments without the frame counts: 512 frames would be an invention."""
    world = make_world(tmp_path / "clips", train=2, test=2)
    spec = replace(world.stores[0].spec, tail="equal")
    stores = {}
    for known in (True, False):
        stores[known] = FeatureStore(tmp_path / f"parts-{known}", spec)
        for video in world.videos:
            x = np.random.default_rng(len(video.id)).normal(size=(1, 32, spec.dim)).astype(np.float32)
            frames = video.num_frames if known else 512
            grid = ClipGrid(frames, tail="equal", count=32)
            origin = "manifest" if known else "features"
            stores[known].write(VideoFeatures(video.id, x, grid, None, spec.crops, length_from=origin))
    config = small_config("train.steps=1")
    run = replace(world, stores=(stores[True],)).run("run", config)
    fit(config, world.train, [stores[True]], run)
    for name in protocol.PROTOCOLS:
        assert evaluate_run(run, protocol_name=name).numbers["frames"] == sum(v.num_frames for v in world.test)
    bare = other_manifest(tmp_path / "bare.csv", unknown_length(world.videos))
    with pytest.raises(ValueError, match=r"32 equal parts of a video of unknown length.*num_frames into the manifest"):
        evaluate_run(run, feature_roots=[stores[False].root], manifest_path=bare)


# -- what is read, when, and how it is computed -----------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """Ids of the videos whose features are read, in order."""
    seen, real = [], FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda self, i, **more: seen.append(i) or real(self, i, **more))
    return seen


def test_features_are_read_once_for_each_video_and_a_model_in_memory_gives_the_same_scores(world, run, reads):
    files = sorted((run.root / "eval").glob("*"))
    kept = checkpoint.load(run.checkpoint)
    found = scored(kept.model, kept.config.evaluate, world.test[::-1], world.stores)
    assert sorted(reads) == sorted(v.id for v in world.test)
    assert sorted((run.root / "eval").glob("*")) == files  # nothing is written
    assert [v.video_id for v in found.videos] == [v.id for v in world.test[::-1]]
    written = evaluate_run(run)
    for own, other in zip(found.videos[::-1], written.videos, strict=True):
        assert np.array_equal(own.scores, other.scores)
        assert np.array_equal(own.labels, other.labels)
    assert (found.protocol, found.origins, found.clamped) == (protocol.get("frames"), {"decoded"}, ())
    assert found.events == {v.id: v.events for v in world.test}


def test_what_a_manifest_has_wrong_is_said_before_anything_is_read(world, run, reads, tmp_path):
    last = world.test[-1]
    long = [replace(v, num_frames=v.num_frames + 1) if v is last else v for v in world.videos]
    with pytest.raises(ValueError, match=f"{last.id}: the manifest says"):
        evaluate_run(run, manifest_path=other_manifest(tmp_path / "long.csv", long))
    with pytest.raises(ValueError, match="no crop 'crop_1'"):
        evaluate_run(run, crop="crop_1")
    kept = checkpoint.load(run.checkpoint)
    bare = [replace(v, events=()) if v is last else v for v in world.test]
    with pytest.raises(ValueError, match=f"1 of 4 anomalous videos in the test split .*'{last.id}'"):
        scored(kept.model, kept.config.evaluate, bare, world.stores)
    assert not reads


def test_features_that_cannot_be_read_name_their_video(world, run, monkeypatch):
    victim, real = world.test[3].id, FeatureStore.read

    def broken(self, video_id, **more):
        if video_id == victim:
            raise OSError(5, "Input/output error")
        return real(self, video_id, **more)

    monkeypatch.setattr(FeatureStore, "read", broken)
    with pytest.raises(ValueError, match=rf"{victim}: \[Errno 5\] Input/output error"):
        evaluate_run(run)


def test_a_store_of_one_crop_has_no_other(tmp_path):
    world = make_world(tmp_path, train=2, test=2)
    run = world.run("run", config := small_config("train.steps=1"))
    fit(config, world.train, world.stores, run)
    with pytest.raises(ValueError, match=r"no crop 'centre' in these features"):
        evaluate_run(run, crop="centre")
    assert evaluate_run(run, crop="full").numbers["auc"] == evaluate_run(run).numbers["auc"]


def test_bf16_has_numbers_of_its_own_beside_those_of_fp32(run):
    full, low = evaluate_run(run), evaluate_run(run, precision="bf16")
    assert low.path.name == "test-frames-bf16.json"
    assert (full.numbers["precision"], low.numbers["precision"]) == ("fp32", "bf16")
    away = [np.abs(a.scores - b.scores).max() for a, b in zip(full.videos, low.videos, strict=True)]
    assert 0 < max(away) < 1e-2
    assert evaluate_run(run).numbers == full.numbers


def test_where_the_sound_ends_a_clip_early_the_last_frames_take_the_score_before(tmp_path):
    world = make_world(tmp_path, train=2, test=2, modalities=("rgb", "audio"))
    rgb, sound = world.stores
    shorter = FeatureStore(tmp_path / "shorter", sound.spec)
    for video in world.videos:
        f = sound.read(video.id)
        grid = sound.spec.grid(16 * len(f.grid) - 16)
        shorter.write(VideoFeatures(video.id, f.x[:, :-1], grid, f.fps, sound.spec.crops))
    world = replace(world, stores=(rgb, shorter))
    run = world.run("run", config := small_config("train.steps=1"))
    fit(config, world.train, world.stores, run)
    for found, video in zip(evaluate_run(run).videos, world.test, strict=True):
        last = 16 * (len(rgb.read(video.id).grid) - 1)  # the first frame of the clip that has no sound
        assert len(found.scores) == video.num_frames
        assert set(found.scores[last - 16 :]) == {found.scores[last - 1]}
        assert found.scores[last - 1] != found.scores[0]
