"""Feature scaling against numpy; padded rows stay 0 through it."""

import numpy as np
import pytest
import torch

from data.types import FeatureSpec
from mil import checkpoint
from mil.config import validate
from mil.model import FeatureScaler, Model
from tests.mil_helpers import make_world, random_bag, small_config


def videos(seed=0, offset=5.0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((2, n, 4)) * [1, 10, 0.01, 3] + offset).astype(np.float32) for n in (3, 8, 1)]


def scaled(scaler, x):
    return scaler(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("sqrt", [False, True])
def test_standardize_equals_numpy_over_all_crops_and_clips(sqrt):
    parts = videos()
    scaler = FeatureScaler(4, "standardize", sqrt=sqrt)
    scaler.fit(lambda: parts)
    rows = np.concatenate([x.reshape(-1, 4) for x in parts]).astype(np.float64)
    rows = np.sign(rows) * np.sqrt(np.abs(rows)) if sqrt else rows
    other = videos(seed=1)[1]
    root = np.sign(other) * np.sqrt(np.abs(other)) if sqrt else other
    expected = (root - rows.mean(0)) / rows.std(0)
    # float32 buffers: a step of 5e-7 at 5, divided by a deviation of .01
    assert np.abs(scaled(scaler, other) - expected).max() < 2e-4
    found = np.concatenate([scaled(scaler, x).reshape(-1, 4) for x in parts])
    assert np.abs(found.mean(0)).max() < 1e-4
    assert np.abs(found.std(0) - 1).max() < 1e-4


def test_deviation_of_features_far_from_zero():
    """E[x^2] - E[x]^2 in float32 would be 0 or negative here."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((1, 4000, 1))).astype(np.float32)
    scaler = FeatureScaler(1, "standardize")
    scaler.fit(lambda: [x])
    assert float(scaler.deviation) == pytest.approx(x.astype(np.float64).std(), rel=1e-5)


def test_a_dimension_that_never_moves_is_not_blown_up():
    parts = videos()
    for x in parts:
        x[..., 2] = 7.3
    scaler = FeatureScaler(4, "standardize")
    scaler.fit(lambda: parts)
    assert np.abs(scaled(scaler, parts[1])[..., 2]).max() < 1e-5
    strange = parts[1].copy()
    strange[..., 2] = 8.3
    assert np.abs(scaled(scaler, strange)[..., 2] - 1).max() < 1e-5


def test_clamp_limits_deviations_on_both_sides():
    parts = videos()
    scaler = FeatureScaler(4, "standardize", clamp=2.5)
    scaler.fit(lambda: parts)
    free = FeatureScaler(4, "standardize")
    free.fit(lambda: parts)
    strange = (parts[1] - 5) * 50
    assert np.array_equal(scaled(scaler, strange), np.clip(scaled(free, strange), -2.5, 2.5))
    assert scaled(scaler, strange).min() == -2.5
    assert scaled(scaler, strange).max() == 2.5


@pytest.mark.parametrize("sqrt", [False, True])
def test_l2_gives_each_vector_norm_one_and_leaves_zero(sqrt):
    x = videos(offset=0.0)[1]
    x[0, 0] = 0
    root = np.sign(x) * np.sqrt(np.abs(x)) if sqrt else x
    norms = np.linalg.norm(root.astype(np.float64), axis=-1, keepdims=True)
    expected = np.divide(root, norms, out=np.zeros(x.shape), where=norms > 0)
    found = scaled(FeatureScaler(4, "l2", sqrt=sqrt), x)
    assert np.abs(found - expected).max() < 1e-6
    assert (found[0, 0] == 0).all()


def test_none_changes_nothing_but_the_root():
    x = videos()[0]
    assert np.array_equal(scaled(FeatureScaler(4, "none"), x), x)
    assert np.allclose(scaled(FeatureScaler(4, "none", sqrt=True), -x), -np.sqrt(np.abs(x)) * np.sign(x), atol=1e-6)


@pytest.mark.parametrize("scale", ["none", "l2", "standardize"])
def test_padding_stays_zero_whatever_stands_there(scale):
    """Standardizing moves 0 to -mean/deviation; noise is added to all: neither may reach a padded row."""
    config = validate({"head": {"name": "ranking"}, "data": {"scale": scale}, "train": {"noise": 0.5}}, "test")
    model = Model(config, {"rgb": 6}).train()
    model.scalers["rgb"].fit(lambda: [np.random.default_rng(0).random((1, 50, 6), np.float32) + 3])
    bag = random_bag([4, 1, 7], [0, 1, 1], pad=2)
    bag.features["rgb"].masked_fill_(~bag.mask[:, None, :, None], 1e6)
    found = model.scaled(bag).x
    assert (found[~bag.mask[:, None, :].expand(found.shape[:3])] == 0).all()
    assert (found[bag.mask[:, None, :].expand(found.shape[:3])] != 0).any()


def test_noise_is_of_training_only_and_of_the_size_asked_for():
    config = validate({"head": {"name": "ranking"}, "train": {"noise": 0.5}}, "test")
    model = Model(config, {"rgb": 6})
    bag = random_bag([3000], [1])
    torch.manual_seed(0)
    difference = model.train().scaled(bag).x - bag.x
    assert float(difference.std()) == pytest.approx(0.5, rel=0.03)  # 18,000 numbers
    assert torch.equal(model.eval().scaled(bag).x, bag.x)


def test_modalities_come_in_the_order_of_the_model_each_with_its_own_scaler():
    config = validate({"head": {"name": "ranking"}, "data": {"scale": "standardize"}}, "test")
    model = Model(config, {"rgb": 6, "audio": 3}).eval()
    model.scalers["audio"].fit(lambda: [np.random.default_rng(0).random((1, 50, 3), np.float32)])
    bag = random_bag([4], [1], dims={"audio": 3, "rgb": 6})
    found = model.scaled(bag)
    assert list(found.features) == ["rgb", "audio"]
    assert torch.equal(found.features["rgb"], bag.features["rgb"])  # never fitted: mean 0, deviation 1
    assert not torch.equal(found.features["audio"], bag.features["audio"])
    with pytest.raises(ValueError, match="got rgb features of size 5"):
        model(random_bag([4], [1], dims={"rgb": 5, "audio": 3}))


def test_the_scaler_is_fitted_on_kept_training_videos_only(tmp_path):
    """Neither the test split nor the held-out part of the training split may set mean and deviation."""
    from mil import checkpoint
    from mil.bags import BagDataset
    from mil.selection import hold_out
    from mil.train import fit

    world = make_world(tmp_path)
    config = small_config("select.rule=val", "select.fraction=0.5")
    run = world.run("run", config)
    fit(config, world.train, world.stores, run)
    held = {v.id for v in hold_out(world.train, config)}
    kept = [v for v in world.train if v.id not in held]
    assert len(held) == len(kept) == 8
    rows = np.concatenate([x["rgb"].reshape(-1, 8) for x in BagDataset(kept, world.stores, "segments", 8).clips()])
    scaler = checkpoint.load(run.checkpoint).model.scalers["rgb"]
    assert np.abs(scaler.mean.numpy() - rows.astype(np.float64).mean(0)).max() < 1e-5
    assert np.abs(scaler.deviation.numpy() - rows.astype(np.float64).std(0)).max() < 1e-5


@pytest.mark.parametrize("name", ["pel4vad", "vadclip"])
def test_a_checkpoint_holds_the_prompts_and_needs_their_file_no_more(tmp_path, name):
    table = {c: np.random.default_rng(i).standard_normal(8).astype(np.float32) for i, c in enumerate(("normal", "a"))}
    np.savez(tmp_path / "classes.npz", **table)
    width = {"hidden": [8, 4]} if name == "pel4vad" else {"width": 8, "length": 4, "window": 2, "attention_heads": 1}
    head = {"name": name, "classes": ["a"], "prompts": str(tmp_path / "classes.npz"), **width}
    config = validate({"head": head}, "test")
    model = Model(config, {"rgb": 5}).eval()
    spec = FeatureSpec("of_rgb", 5)
    checkpoint.save(tmp_path / "last", model.state_dict(), config, model.dims, [spec], selected_by="the test", step=1)
    (tmp_path / "classes.npz").unlink()
    kept = checkpoint.load(tmp_path / "last")
    buffer = next(b for n, b in kept.model.named_buffers() if n in ("head.prompts", "head.text"))
    assert np.array_equal(buffer.numpy(), np.stack([table["normal"], table["a"]]))
    assert kept.config.head.options["prompts"] == head["prompts"]
    with pytest.raises(ValueError, match="no file of prompts"):
        Model(config, {"rgb": 5})
