"""Bags: resampling against loops, padding and masks, batches by (seed, step), stores of several modalities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.store import FeatureStore
from data.types import FeatureSpec, Video, VideoFeatures
from mil.bags import Bag, BagDataset, collate, read_features
from mil.resample import RESAMPLE, interpolate, pick, segments
from mil.samplers import balanced_batch
from tests.mil_helpers import make_world

shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.integers(1, 40), st.integers(0, 999))


def clips(k, n, d, seed):
    return np.random.default_rng(seed).standard_normal((k, n, d)).astype(np.float32)


def slow_segments(x, count):
    """heads.md: r = floor(linspace(0, T, N + 1)); the mean of x[r_i:r_(i+1)], or x[r_i] when that is empty."""
    r = np.linspace(0, x.shape[1], count + 1).astype(int)
    out = np.zeros((x.shape[0], count, x.shape[2]))
    for k in range(x.shape[0]):
        for i in range(count):
            rows = [x[k, j].astype(np.float64) for j in range(r[i], r[i + 1])] or [x[k, r[i]].astype(np.float64)]
            out[k, i] = sum(rows) / len(rows)
    return out


@given(shapes)
@settings(max_examples=120, deadline=None)
def test_segments_are_means_of_equal_parts(shape):
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    found = segments(x, count)
    assert found.dtype == np.float32
    assert found.shape == (k, count, d)
    assert np.abs(found - slow_segments(x, count)).max() < 1e-6  # rounding of the float32 result


@given(shapes)
@settings(max_examples=120, deadline=None)
def test_pick_takes_clips_as_they_are(shape):
    """heads.md: T > N takes x[linspace(0, T - 1, N) truncated]; shorter videos stay whole and are padded later."""
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    at = [int(v) for v in np.linspace(0, n - 1, count)] if n > count else range(n)
    assert np.array_equal(pick(x, count), np.stack([x[:, i] for i in at], axis=1))


@given(shapes)
@settings(max_examples=120, deadline=None)
def test_interpolate_is_linear_between_the_clips(shape):
    k, n, d, count, seed = shape
    x = clips(k, n, d, seed)
    found = interpolate(x, count)
    at = np.linspace(0, n - 1, count)
    for crop in range(k):
        for dim in range(d):
            expected = np.interp(at, np.arange(n), x[crop, :, dim].astype(np.float64))
            assert np.abs(found[crop, :, dim] - expected).max() < 1e-5


@given(shapes, st.sampled_from(sorted(RESAMPLE)))
@settings(max_examples=80, deadline=None)
def test_a_constant_video_stays_constant(shape, name):
    k, n, d, count, seed = shape
    x = np.broadcast_to(clips(k, 1, d, seed), (k, n, d)).copy()
    found = RESAMPLE[name](x, count)
    assert np.abs(found - x[:, :1]).max() < 1e-6


def test_golden_segments_of_a_short_and_a_long_video():
    """Bounds of 5 clips in 3 parts: floor(0, 5/3, 10/3, 5) = 0 1 3 5; of 2 clips in 4 parts: 0 0 1 1 2."""
    five = np.arange(5, dtype=np.float32).reshape(1, 5, 1)
    assert segments(five, 3).ravel().tolist() == [0, 1.5, 3.5]
    assert segments(five[:, :2], 4).ravel().tolist() == [0, 0, 1, 1]
    assert segments(five[:, 3:4], 4).ravel().tolist() == [3, 3, 3, 3]
    assert pick(five, 3).ravel().tolist() == [0, 2, 4]
    assert interpolate(five, 3).ravel().tolist() == [0, 2, 4]


def test_segments_of_large_features_lose_no_precision():
    """A running sum in float32 would be wrong in the second digit at the end of a long video."""
    x = np.full((1, 20_000, 1), 1000.1, np.float32)
    assert np.array_equal(segments(x, 32), np.full((1, 32, 1), np.float32(1000.1)))


def test_collate_pads_with_zeros_and_masks_them():
    rng = np.random.default_rng(0)
    items = [
        {"rgb": rng.random((2, n, 3), np.float32) + 1, "audio": rng.random((1, n, 2), np.float32) + 1}
        for n in (4, 1, 6)
    ]
    bag = collate(items, np.array([1, 0, 1]))
    assert bag.labels.tolist() == [1, 0, 1]
    assert bag.mask.tolist() == [[True] * 4 + [False] * 2, [True] + [False] * 5, [True] * 6]
    for name, x in bag.features.items():
        for b, item in enumerate(items):
            n = item[name].shape[1]
            assert np.array_equal(x[b, :, :n].numpy(), item[name])
            assert (x[b, :, n:] == 0).all()


def test_modalities_stand_side_by_side_and_audio_is_shared_by_the_crops():
    rgb, audio = torch.rand(2, 5, 4, 3), torch.rand(2, 1, 4, 2)
    bag = Bag({"rgb": rgb, "audio": audio}, torch.ones(2, 4, dtype=torch.bool), torch.tensor([0.0, 1.0]))
    assert bag.x.shape == (2, 5, 4, 5)
    for crop in range(5):
        assert torch.equal(bag.x[:, crop, :, :3], rgb[:, crop])
        assert torch.equal(bag.x[:, crop, :, 3:], audio[:, 0])


def test_modalities_of_unlike_crops_are_refused():
    features = {"rgb": torch.rand(1, 10, 2, 3), "flow": torch.rand(1, 5, 2, 3)}
    bag = Bag(features, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1))
    with pytest.raises(ValueError, match="modalities of 5 and 10 crops cannot be joined"):
        _ = bag.x


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 4, 5), (2, 1, 3, 5)])
def test_features_that_do_not_fit_mask_and_labels_are_refused(shape):
    with pytest.raises(ValueError, match=r"'rgb' must be \(B, K, T, D\) with B=2, T=4, got"):
        Bag({"rgb": torch.rand(*shape)}, torch.ones(2, 4, dtype=torch.bool), torch.zeros(2))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_batches_hold_both_classes_once_each_and_depend_on_seed_and_step_alone(high, low, pairs, seed, step):
    labels = np.array([1] * high + [0] * low)[np.random.default_rng(0).permutation(high + low)]
    batch = balanced_batch(labels, pairs, seed, step)
    chosen = labels[batch]
    assert len(set(batch.tolist())) == len(batch)
    assert (chosen == 1).sum() == min(pairs, high)
    assert (chosen == 0).sum() == min(pairs, low)
    np.random.default_rng(1).random()  # draws elsewhere change nothing
    assert np.array_equal(batch, balanced_batch(labels, pairs, seed, step))


def test_batches_differ_by_step_and_by_seed_and_use_all_videos_alike():
    labels = np.array([0, 1] * 20)
    batches = [balanced_batch(labels, 4, 7, step) for step in range(500)]
    assert len({tuple(b) for b in batches}) == 500
    assert not np.array_equal(batches[3], balanced_batch(labels, 4, 8, 3))
    counts = np.bincount(np.concatenate(batches), minlength=40)
    # each video in 1 of 5 batches: mean 100, deviation 8.9
    assert counts.min() > 60
    assert counts.max() < 140


def write(root, modality, video, count, frames, *, stride=16, tail="repeat", dim=2, crops=("full",)):
    store = FeatureStore(root, FeatureSpec("x", dim, modality=modality, stride=stride, tail=tail, crops=crops))
    grid = store.spec.grid(frames, count if tail == "given" else None)
    assert len(grid) == count
    x = np.random.default_rng(len(modality)).random((len(crops), count, dim), np.float32)
    store.write(VideoFeatures(video, x, grid, 25.0, crops))
    return store, x


def test_two_stores_are_joined_and_one_clip_too_many_is_cut(tmp_path):
    rgb, x = write(tmp_path / "rgb", "rgb", "v", 5, 80)
    flow, y = write(tmp_path / "flow", "flow", "v", 4, 80, tail="drop_one")
    features, grid, fps = read_features([rgb, flow], "v")
    assert list(features) == ["rgb", "flow"]
    assert np.array_equal(features["rgb"], x[:, :4])
    assert np.array_equal(features["flow"], y)
    assert (len(grid), grid.num_frames, fps) == (4, 80, 25.0)
    assert len(grid.to_frames(np.arange(4.0))) == 80
    features, grid, _ = read_features([flow, rgb], "v")
    assert list(features) == ["flow", "rgb"]
    assert (len(grid), grid.num_frames) == (4, 80)


def test_lengths_that_differ_by_two_clips_are_refused(tmp_path):
    rgb, _ = write(tmp_path / "rgb", "rgb", "v", 5, 80)
    audio, _ = write(tmp_path / "audio", "audio", "v", 3, 80, tail="given")
    with pytest.raises(ValueError, match=r"v: the stores do not show the same clips .*5 clips.*3 clips"):
        read_features([rgb, audio], "v")


def test_clips_that_start_at_other_frames_are_refused(tmp_path):
    rgb, _ = write(tmp_path / "rgb", "rgb", "v", 5, 80)
    flow, _ = write(tmp_path / "flow", "flow", "v", 5, 40, stride=8, tail="given")
    with pytest.raises(ValueError, match=r"stride 16.*stride 8.*one stride"):
        read_features([rgb, flow], "v")


def test_two_stores_of_one_modality_are_refused_by_its_name(tmp_path):
    rgb, _ = write(tmp_path / "a", "rgb", "v", 5, 80)
    flows = [write(tmp_path / n, "flow", "v", 5, 80)[0] for n in "bc"]
    with pytest.raises(ValueError, match="two stores hold the modality 'flow'"):
        read_features([rgb, *flows], "v")


def test_half_precision_features_become_float32(tmp_path):
    store = FeatureStore(tmp_path / "s", FeatureSpec("x", 2, dtype="float16"))
    x = np.array([[[0.1, 1000.0]]], np.float16)
    store.write(VideoFeatures("v", x, store.spec.grid(16)))
    found, _, _ = read_features([store], "v")
    assert found["rgb"].dtype == np.float32
    assert np.array_equal(found["rgb"], x.astype(np.float32))


@pytest.mark.parametrize("resample", ["segments", "pick", "interpolate", "full"])
def test_dataset_reads_each_video_once_and_keeps_its_label(tmp_path, resample):
    world = make_world(tmp_path, train=3, crops=2, modalities=("rgb", "audio"))
    bags = BagDataset(world.train, world.stores, resample, 6)
    order = [4, 0, 5]
    bag = bags.bag(order)
    assert bag.labels.tolist() == [world.train[i].label for i in order]
    for row, i in enumerate(order):
        x = world.stores[0].read(world.train[i].id).x
        own = RESAMPLE[resample](x, 6)
        assert torch.equal(bag.features["rgb"][row, :, : own.shape[1]], torch.from_numpy(own))
        assert bag.mask[row].sum() == own.shape[1]
    assert bag.features["audio"].shape[1] == 1
    assert bag.x.shape[1] == 2
    assert len(bags) == 6


# -- parts of a bag ---------------------------------------------------------------------------------------------------


def three_modalities():
    features = {"rgb": torch.rand(2, 3, 4, 5), "audio": torch.rand(2, 1, 4, 2), "flow": torch.rand(2, 3, 4, 1)}
    classes, index = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([7, 3])
    return Bag(features, torch.ones(2, 4, dtype=torch.bool), torch.tensor([1.0, 0.0]), classes, index)


def test_modalities_are_joined_in_the_order_asked_for():
    bag = three_modalities()
    found = bag.joined(["flow", "audio"])
    assert found.shape == (2, 3, 4, 3)
    for crop in range(3):
        assert torch.equal(found[:, crop, :, :1], bag.features["flow"][:, crop])
        assert torch.equal(found[:, crop, :, 1:], bag.features["audio"][:, 0])
    # sound alone still has the crops of the bag: its scores are to be averaged with those of the others
    assert torch.equal(bag.joined(["audio"]), bag.features["audio"].expand(2, 3, 4, 2))
    assert torch.equal(bag.x, bag.joined(["rgb", "audio", "flow"]))


def test_one_crop_of_a_bag_keeps_everything_else():
    bag = three_modalities()
    for crop in range(3):
        one = bag.crop(crop)
        assert one.crops == 1
        for name in ("rgb", "flow"):
            assert torch.equal(one.features[name], bag.features[name][:, [crop]])
        assert one.features["audio"] is bag.features["audio"]
        assert torch.equal(one.x[:, 0], bag.x[:, crop])
        for name in ("mask", "labels", "classes", "index"):
            assert getattr(one, name) is getattr(bag, name)


def test_a_bag_moves_with_all_it_has():
    bag = three_modalities()
    moved = bag.to(torch.device("meta"))
    tensors = [*moved.features.values(), moved.mask, moved.labels, moved.classes, moved.index]
    assert {t.device.type for t in tensors} == {"meta"}
    plain = Bag(bag.features, bag.mask, bag.labels).to(torch.device("cpu"))
    assert (plain.classes, plain.index) == (None, None)


# -- training bags ----------------------------------------------------------------------------------------------------


def test_one_crop_of_each_video(tmp_path):
    world = make_world(tmp_path, train=3, crops=3, modalities=("rgb", "audio"))
    bags = BagDataset(world.train, world.stores, "pick", 6)
    assert bags.crops == 3
    bag = bags.bag([4, 0, 4], [2, 0, 1])
    assert bag.crops == 1
    assert bag.index.tolist() == [4, 0, 4]
    assert bag.index.dtype == torch.int64
    assert bag.classes is None
    for row, (video, crop) in enumerate([(4, 2), (0, 0), (4, 1)]):
        for store, own in ((world.stores[0], crop), (world.stores[1], 0)):
            x = pick(store.read(world.train[video].id).x, 6)[own]
            name = store.spec.modality
            assert np.array_equal(bag.features[name][row, 0, : len(x)].numpy(), x)
    whole = bags.bag(np.array([4, 0, 4]))
    assert torch.equal(whole.features["rgb"][0, 2], bag.features["rgb"][0, 0])
    assert torch.equal(whole.features["rgb"][2, 1], bag.features["rgb"][2, 0])


def test_classes_are_those_of_the_head_in_its_order(tmp_path):
    store = FeatureStore(tmp_path / "s", FeatureSpec("x", 2))
    kinds = {"a": (1, ("Fire", "Theft")), "b": (0, ()), "c": (1, ()), "d": (1, ("Theft",)), "e": (1, ("Brawl",))}
    videos = [Video(name, "", "train", label, classes) for name, (label, classes) in kinds.items()]
    for video in videos:
        store.write(VideoFeatures(video.id, np.zeros((1, 2, 2), np.float32), store.spec.grid(32)))
    bag = BagDataset(videos, [store], "full", 1, classes=("Theft", "anomaly", "Fire")).bag([3, 0, 1, 2, 4])
    assert bag.classes.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert bag.classes.dtype == torch.float32
    assert bag.labels.tolist() == [1, 1, 0, 1, 1]


def numbered_store(root, modality, lengths, crops=("full",)):
    """Each clip holds its own number, plus a thousand for each crop."""
    store = FeatureStore(root, FeatureSpec("x", 1, modality=modality, crops=crops))
    for name, count in lengths.items():
        x = (np.arange(count) + 1000 * np.arange(len(crops))[:, None])[..., None].astype(np.float32)
        store.write(VideoFeatures(name, x, store.spec.grid(16 * count), 25.0, crops))
    return store


def test_random_segments_are_of_the_seed_alone_and_alike_for_crops_and_modalities(tmp_path):
    lengths = {"high": 40, "low": 40, "short": 3}
    stores = [
        numbered_store(tmp_path / "rgb", "rgb", lengths, ("left", "right")),
        numbered_store(tmp_path / "audio", "audio", lengths),
    ]
    videos = [Video(name, "", "train", int(name == "high")) for name in lengths]
    bags = BagDataset(videos, stores, "random", 5)
    assert [x["rgb"].shape[1] for x in bags.clips()] == [40, 40, 3]  # nothing is lost before the draw
    seen = set()
    for step in range(40):
        bag = bags.bag([0, 1, 2, 0], seed=(7, step))
        rows = bag.features["audio"][:, 0, :, 0]
        assert torch.equal(bag.features["rgb"][:, 0, :, 0], rows)
        assert torch.equal(bag.features["rgb"][:, 1, :, 0], (rows + 1000) * bag.mask)
        high, low, short, again = rows.tolist()
        assert all(8 * i <= r < 8 * (i + 1) for i, r in enumerate(high)), "one of each fifth"
        assert [r - low[0] for r in low] == [0, 1, 2, 3, 4]
        assert short == [0, 1, 2, 0, 0]
        assert bag.mask[2].tolist() == [True] * 3 + [False] * 2
        seen.add((*high, *low, *again))
        same = bags.bag([0, 1, 2, 0], seed=(7, step))
        assert torch.equal(same.x, bag.x)
        one = bags.bag([0, 1], [1, 0], seed=(7, step))
        assert one.features["rgb"][:, 0, :, 0].tolist() == [[r + 1000 for r in high], low]
    assert len(seen) == 40
    assert not torch.equal(bags.bag([0], seed=(8, 0)).x, bags.bag([0], seed=(7, 0)).x)


def test_two_places_of_a_random_bag_are_drawn_apart(tmp_path):
    store = numbered_store(tmp_path / "rgb", "rgb", {"v": 60})
    bags = BagDataset([Video("v", "", "train", 1)], [store], "random", 6)
    rows = bags.bag([0] * 30, seed=(1, 1)).x[:, 0, :, 0]
    assert len({tuple(r) for r in rows.tolist()}) > 25
