"""S3R against an independent numpy implementation that reads the authors' tensor names (tests/magnitude_reference)."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads import Progress
from mil.heads.s3r import S3RHead
from mil.layers.dictionary import sparse_codes
from mil.layers.kept import Kept
from mil.layers.magnitude import MagnitudeLoss
from mil.published import give_back, take_in
from tests.magnitude_reference import losses, mtn, sequences, shake, sigmoid, state_of, three_layers
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 2, 9, 4, 5], [0, 1, 0, 1, 1]
WEIGHTS = {"margin": 6.0, "alpha": 0.3, "smooth": 0.2, "sparse": 0.1}
SMALL = {"width": 16, "hidden": (6, 5), "key": 3, "gate": 4}


def setup(dim=16, dictionary=7, **options):
    torch.manual_seed(0)
    head = shake(S3RHead(dim, **{**SMALL, **WEIGHTS, **options}).double()).eval()
    head.dictionary.keep(torch.from_numpy(np.random.default_rng(3).standard_normal((dictionary, dim))))
    return head, random_bag(LENGTHS, LABELS, dims={"rgb": dim}, crops={"rgb": 2}, dtype=torch.float64)


def reference(head, bag, groups=(8, 8)):
    """Scores [(T_i,)], features [(K, T_i, D)] and the doubles' scores of every video."""
    state = state_of(head)
    scores, features, doubles = [], [], []
    attention, gate = "en_normal.en_normal_module", "de_normal.channel_attention.channel_gate.mlp"

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    keys, values = (linear(f"{attention}.{n}_embedding", head.dictionary.value.numpy()) for n in ("cache", "value"))
    for video in sequences(bag):
        own, double = [], []
        for x in video:
            normal = np.zeros_like(x)
            for t, query in enumerate(linear(f"{attention}.query_embedding", x)):
                weight = np.exp(keys @ query - (keys @ query).max())
                normal[t] = (weight / weight.sum()) @ values
            (a,) = mtn([x], state, "video_embedding.0", groups=groups)
            (b,) = mtn([normal], state, "macro_embedding.0", groups=groups)
            through = sigmoid(linear(f"{gate}.3", np.maximum(linear(f"{gate}.1", a.mean(0) - b.mean(0)), 0)))
            own.append(a * through)
            rest = (b * (1 - through)).mean(0)
            double.append(sigmoid(three_layers(rest, state, [f"macro_classifier.mlp.{i}" for i in (0, 3, 6)])))
        features.append(np.stack(own))
        layers = [f"video_classifier.{i}" for i in (0, 3, 6)]
        scores.append(sigmoid(three_layers(features[-1], state, layers)).mean(0))
        doubles.append(np.mean(double))
    return scores, features, doubles


@pytest.mark.parametrize(("dim", "groups"), [(16, (8, 8)), (12, (8, 4)), (9, (8, 1))])
def test_scores_in_evaluation_are_those_of_the_authors_tensors(dim, groups):
    """8 groups, or where they do not divide the size, as many as do."""
    head, bag = setup(dim)
    scores, features, doubles = reference(head, bag, groups)
    out = head(bag)
    for b, length in enumerate(LENGTHS):
        assert np.abs(out.scores[b, :length].detach().numpy() - scores[b]).max() < 1e-10
        assert np.abs(out.aux["features"][b, :, :length].detach().numpy() - features[b]).max() < 1e-10
    assert out.aux["macro"].tolist() == pytest.approx(doubles, abs=1e-10)
    assert scores[0].std() > 1e-4
    assert np.std(doubles) > 1e-4


@pytest.mark.parametrize("published", [False, True])
def test_each_loss_term(published):
    head, bag = setup(as_published=published)
    scores, features, doubles = reference(head, bag)
    expected = losses(scores, features, LABELS, published=published, **WEIGHTS)
    expected["macro"] = np.mean([-np.log(1 - p) for p in doubles])  # of anomalous videos too
    assert {n: t.item() for n, t in head.loss(head(bag), bag).items()} == pytest.approx(expected, rel=1e-9)


def test_default_weights_are_those_of_the_authors_code():
    assert S3RHead(8).objective == MagnitudeLoss(3, 100.0, 1e-4, 8e-4, 8e-3, 0.7, False)


def scan(bag):
    """As the trainer's: one video at a time, padded as it comes."""
    for b in range(len(bag.labels)):
        one = {n: x[b : b + 1] for n, x in bag.features.items()}
        yield replace(bag, features=one, mask=bag.mask[b : b + 1], labels=bag.labels[b : b + 1])


def test_the_dictionary_is_learnt_from_the_means_of_normal_videos_alone():
    head = S3RHead(16, **SMALL, atoms=0.75)
    bag = random_bag([7, 2, 9, 4, 5, 6, 3], [0, 1, 0, 1, 0, 0, 1], dims={"rgb": 16}, crops={"rgb": 2})
    assert head.refresh_due(Progress(0, 10, 2))
    head.refresh(Progress(0, 10, 2), lambda: scan(bag))
    means = np.stack(
        [np.mean([c.mean(0) for c in v], axis=0) for b, v in enumerate(sequences(bag)) if b in (0, 2, 4, 5)]
    )
    found = head.dictionary.value
    assert found.shape == (3, 16)
    assert np.abs(found.double().numpy() - sparse_codes(means, 0.75)).max() < 1e-4
    assert not head.refresh_due(Progress(0, 10, 2))
    changed = bag.x.clone()
    changed[[1, 3, 6]] = 9.0  # anomalous videos take no part
    changed[~bag.mask[:, None].expand(-1, 2, -1)] = 5.0  # nor does padding
    again = S3RHead(16, **SMALL, atoms=0.75)
    again.refresh(Progress(0, 10, 2), lambda: scan(replace(bag, features={"rgb": changed})))
    assert torch.equal(again.dictionary.value, found)


def test_rows_are_codes_of_features_over_videos():
    """Features are the samples: each of these is one of three directions in the space of videos, and says how much."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((8, 3)))[0].T
    which = rng.choice(3, 200)
    amount = np.array([90.0, 30.0, 10.0])[which] * rng.uniform(0.5, 1.5, 200)
    rows = sparse_codes((amount[:, None] * directions[which]).T, 0.375)
    assert rows.shape == (3, 200)
    for row in rows:
        mine = which == which[np.abs(row).argmax()]
        assert np.abs(row[~mine]).max() < 1e-6 * np.abs(row).max()
        ratio = row[mine] / amount[mine]
        assert np.abs(ratio / ratio[0] - 1).max() < 1e-6


def test_a_hundred_mini_batches_of_learning_and_two_codes_for_each_feature():
    """What the best directions for these codes leave: 0.13 where they start, 0.10 after 20, 0.08, 0.04 after 400."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((9, 12))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((200, 9))
    for row in codes:
        row[rng.choice(9, 2, replace=False)] = 20 * rng.standard_normal(2)
    samples = codes @ directions
    rows = sparse_codes(samples.T, 0.75)
    assert set((rows != 0).sum(0).tolist()) <= {1, 2}
    left = samples - rows.T @ np.linalg.lstsq(rows.T, samples, rcond=None)[0]
    assert 0.06 < (left**2).sum() / (samples**2).sum() < 0.095


@pytest.mark.parametrize(("videos", "share", "rows"), [(5, 0.9, 4), (5, 0.5, 2), (1, 0.4, 1)])
def test_number_of_rows_is_the_share_rounded_half_to_even_and_at_least_one(videos, share, rows):
    assert sparse_codes(np.random.default_rng(0).standard_normal((videos, 20)), share).shape == (rows, 20)


def test_alike_videos_still_give_a_dictionary():
    assert np.isfinite(sparse_codes(np.ones((3, 20)), 0.9)).all()
    assert (sparse_codes(np.zeros((3, 20)), 0.9) == 0).all()


def test_what_is_kept_takes_the_shape_of_what_is_loaded():
    one, other = Kept(torch.zeros(1, 4, 3)), Kept(torch.zeros(1, 4, 3).double())
    one.keep(torch.arange(6.0).reshape(2, 3))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.value, torch.arange(6.0).reshape(2, 3).double())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_the_authors_dictionary_is_read_from_its_own_file(tmp_path):
    head, bag = setup()
    theirs = give_back(head, head.published(), {})
    assert not [n for n in theirs if "dictionary" in n]  # their strict loading would refuse it
    assert head.published().beside == {"dictionary.value": "dictionary"}
    np.save(tmp_path / "rows.npy", head.dictionary.value.numpy())
    dims, options = S3RHead.infer({n: tuple(v.shape) for n, v in theirs.items()})
    assert dims == {"rgb": 16}
    assert options == {k: list(v) if k == "hidden" else v for k, v in SMALL.items()}
    same = S3RHead(16, dictionary=str(tmp_path / "rows.npy"), **options).double().eval()
    take_in(same, same.published(), theirs)
    # through float32, as the head keeps it
    assert (same(bag).scores - head(bag).scores).abs().max() < 1e-6
    assert not same.refresh_due(Progress(0, 1, 1))
    for content, words in ((np.zeros((3, 5)), r"holds \(3, 5\)"), (np.full((3, 16), np.nan), "finite numbers")):
        np.save(tmp_path / "rows.npy", content)
        with pytest.raises(ValueError, match=words):
            S3RHead(16, dictionary=str(tmp_path / "rows.npy"), **options)
    with pytest.raises(ValueError, match=r"cannot be read as a dictionary.*--set head.dictionary=FILE.npy"):
        S3RHead(16, dictionary=str(tmp_path / "none.npy"), **options)


def test_scores_without_a_dictionary_are_warned_of_once(caplog):
    bag = random_bag(LENGTHS, LABELS, dims={"rgb": 16})
    head = S3RHead(16, **SMALL)
    with caplog.at_level(logging.WARNING):
        head.train()(bag)
        assert not caplog.records
        head.eval()(bag)
        head(bag)
    assert [r.message for r in caplog.records] == [
        "s3r scores without a dictionary: train it, or import weights with --set head.dictionary=FILE.npy"
    ]
    assert "--set head.dictionary=FILE.npy" in head.published().notes[0]


def test_size_and_names_of_the_published_net():
    with torch.device("meta"):
        head = S3RHead(2048)
    form, own = head.published(), head.state_dict()
    shapes = {theirs: tuple(own[ours].shape) for theirs, ours in form.names.items()}
    shapes |= form.unused
    expected = {
        "video_embedding.0.conv_3.0.weight": (512, 2048, 3),
        "macro_embedding.0.conv_5.1.weight": (2048,),
        "video_embedding.0.non_local.alter.0.weight": (512, 256, 1),
        "macro_embedding.0.non_local.alter.1.running_mean": (512,),
        "en_normal.en_normal_module.query_embedding.weight": (512, 2048),
        "en_normal.en_normal_module.cache_embedding.weight": (512, 2048),
        "en_normal.en_normal_module.value_embedding.weight": (2048, 2048),
        "de_normal.channel_attention.channel_gate.mlp.1.weight": (128, 2048),
        "de_normal.channel_attention.channel_gate.mlp.3.weight": (2048, 128),
        "video_projection.0.weight": (2048, 2048, 3),
        "macro_projection.1.bias": (2048,),
        "video_classifier.3.weight": (128, 512),
        "macro_classifier.mlp.6.weight": (1, 128),
    }
    assert {n: shapes[n] for n in expected} == expected
    assert len(shapes) == 2 * 29 + 6 + 4 + 8 + 6 + 6
    scorer = 2048 * 512 + 512 + 512 * 128 + 128 + 128 + 1
    network = 3 * (512 * 2048 * 3 + 3 * 512) + 512 * 2048 + 2048 * 2048 * 3 + 2 * 2048
    network += 3 * (256 * 512 + 256) + 512 * 256 + 512 + 2 * 512
    attention = 2 * (512 * 2048 + 512) + 2048 * 2048 + 2048
    gate = 128 * 2048 + 128 + 2048 * 128 + 2048
    assert sum(p.numel() for p in head.parameters()) == 2 * (scorer + network) + attention + gate
    assert sum(math.prod(s) for s in form.unused.values()) == 2 * (2048 * 2048 * 3 + 3 * 2048)


@pytest.mark.parametrize("options", [{"hidden": [512]}, {"atoms": 0.0}, {"atoms": 1.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"two hidden widths and atoms in \(0, 1\]"):
        S3RHead(8, **options)


@pytest.mark.parametrize(("name", "atoms", "seed"), [("s3r_ucf", 0.5, 49), ("s3r_sh", 0.9, 823)])
def test_recipes_hold_what_the_authors_code_sets(name, atoms, seed):
    """louisYen/S3R: opts.py, configs, detector.py, trainer.py, the scripts that learn the dictionaries."""
    config = configs.load(name)
    assert config.head.options == {
        "atoms": atoms,
        "width": 512,
        "hidden": [512, 128],
        "key": 512,
        "gate": 128,
        "dropout": 0.7,
        "topk": 3,
        "margin": 100.0,
        "alpha": 1e-4,
        "smooth": 8e-4,
        "sparse": 8e-3,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("resize", 32, "none")
    train = config.train
    assert (train.steps, train.sampler, train.pairs, train.samples) == (15000, "passes", 32, "videos")
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 1e-3, 0.005)
    assert (train.lr_schedule, config.seed, config.select.rule) == ("constant", seed, "last")
