"""The AR-Net head against plain loops in float64, written from the authors' code (Anomaly_AR_Net_ICME_2020)."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.arnet import ARNetHead
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 4, 1, 6, 2, 9, 8], [0, 1, 0, 1, 1, 0, 1]


def make(**options):
    torch.manual_seed(0)
    head = ARNetHead(6, **options).double().eval()
    with torch.no_grad():
        for p in head.parameters():  # biases are 0 at first
            p.add_(0.2 * torch.randn_like(p))
    return head


def bag_of(lengths=LENGTHS, labels=LABELS, crops=2, **more):
    return random_bag(lengths, labels, crops={"rgb": crops}, dtype=torch.float64, **more)


def authors_scores(head, x):
    """(K, T, D) -> (T,), the mean over the crops."""
    w = {n: v.numpy() for n, v in head.state_dict().items()}
    out = np.zeros(x.shape[1])
    for crop in x:
        for t, row in enumerate(crop):
            h = np.maximum(w["fc.weight"] @ row + w["fc.bias"], 0)
            out[t] += 1 / (1 + math.exp(-(w["classifier.weight"] @ h + w["classifier.bias"])[0])) / len(x)
    return out


def authors_all(head, bag, *, padded=False):
    """Scores of each video; `padded`: of the zeros behind it too, up to the longest of the batch."""
    lengths = bag.mask.sum(1).tolist()
    return [authors_scores(head, bag.x[b, :, : max(lengths) if padded else n].numpy()) for b, n in enumerate(lengths)]


@pytest.mark.parametrize("options", [{}, {"hidden": 9}])
def test_scores_are_two_layers_and_the_mean_of_the_crops(options):
    head, bag = make(**options), bag_of(pad=2)
    scores = head(bag).scores.detach().numpy()
    for b, expected in enumerate(authors_all(head, bag)):
        assert np.abs(scores[b, : len(expected)] - expected).max() < 1e-12
        assert (scores[b, len(expected) :] == 0).all()


def expected_bce(scores, labels, share=4):
    """Every one of the highest ceil(T / 4) scores by itself, all videos in one mean."""
    terms = []
    for s, y in zip(scores, labels, strict=True):
        best = sorted(s, reverse=True)[: math.ceil(len(s) / share)]
        terms += [-math.log(p if y else 1 - p) for p in best]
    return np.mean(terms)


def test_the_loss_takes_every_high_score_and_the_variance_of_normal_videos():
    head, bag = make(), bag_of(pad=3)
    scores = authors_all(head, bag)
    spread = [np.var(scores[b], ddof=1) if len(scores[b]) > 1 else 0.0 for b in (0, 2, 5)]
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found == pytest.approx({"bce": expected_bce(scores, LABELS), "center": 20 * np.mean(spread)}, abs=1e-12)


@pytest.mark.parametrize("share", [1, 2, 3.5])
def test_share_and_weight_are_options(share):
    head, bag = make(share=share, center=3.0), bag_of()
    scores = authors_all(head, bag)
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found["bce"] == pytest.approx(expected_bce(scores, LABELS, share), abs=1e-12)
    assert found["center"] == pytest.approx(
        3 * np.mean([np.var(scores[0], ddof=1), 0, np.var(scores[5], ddof=1)]), abs=1e-12
    )


def test_every_high_score_counts_alone_and_not_each_video():
    """A long and a short video of one class: the mean over scores is not the mean over videos."""
    head, bag = make(), bag_of([16, 2], [1, 1], crops=1)
    long, short = authors_all(head, bag)
    parts = [-np.log(sorted(s, reverse=True)[: math.ceil(len(s) / 4)]) for s in (long, short)]
    found = head.loss(head(bag), bag)["bce"].item()
    assert found == pytest.approx(np.concatenate(parts).mean(), abs=1e-12)
    assert abs(found - np.mean([p.mean() for p in parts])) > 1e-3


def test_as_published_takes_the_padding_into_the_variance():
    """Up to the longest video of the batch, not to what the bag is padded to beyond."""
    head, bag = make(as_published=True), bag_of(pad=3)
    padded = authors_all(head, bag, padded=True)
    spread = np.mean([np.var(padded[b], ddof=1) for b in (0, 2, 5)])
    alone = np.mean([np.var(s, ddof=1) if len(s) > 1 else 0.0 for s in (authors_all(head, bag)[b] for b in (0, 2, 5))])
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found["center"] == pytest.approx(20 * spread, abs=1e-12)
    assert abs(20 * alone - found["center"]) > 1e-3
    assert found["bce"] == pytest.approx(expected_bce(authors_all(head, bag), LABELS), abs=1e-12)


@pytest.mark.parametrize("published", [False, True])
def test_a_single_segment_varies_by_nothing(published):
    head, bag = make(as_published=published), bag_of([1, 1], [0, 1])
    assert head.loss(head(bag), bag)["center"].item() == 0
    bag = bag_of([3, 4], [1, 1])
    assert head.loss(head(bag), bag)["center"].item() == 0  # no normal video at all


def test_only_the_hidden_layer_is_dropped_and_only_in_training():
    """Dropped altogether, every score is that of the classifier's bias."""
    head, bag = make(dropout=1.0).train(), bag_of()
    bias = head.classifier.bias.sigmoid()
    assert torch.allclose(head(bag).scores[bag.mask], bias)
    assert not torch.allclose(head.eval()(bag).scores[bag.mask], bias)


def test_the_authors_shapes_and_start():
    with torch.device("meta"):
        own = {n: tuple(v.shape) for n, v in ARNetHead(2048).state_dict().items()}
    assert own == {
        "fc.weight": (2048, 2048),
        "fc.bias": (2048,),
        "classifier.weight": (1, 2048),
        "classifier.bias": (1,),
    }
    assert set(ARNetHead(4).published().names) == set(own)
    assert sum(math.prod(s) for s in own.values()) == 4_198_401
    assert ARNetHead.infer(own) == ({"rgb": 2048}, {"hidden": 2048})
    torch.manual_seed(0)
    head = ARNetHead(400)
    limit = math.sqrt(6 / 800)  # xavier uniform
    assert 0.99 * limit < float(head.fc.weight.detach().abs().max()) <= limit
    assert 0.9 * math.sqrt(6 / 401) < float(head.classifier.weight.detach().abs().max()) <= math.sqrt(6 / 401)
    assert (head.fc.bias == 0).all()
    assert (head.classifier.bias == 0).all()


@pytest.mark.parametrize("options", [{"hidden": 0}, {"share": 0.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"hidden >= 1 and share >= 1, got hidden=.*share="):
        ARNetHead(4, **options)


def test_recipe_holds_what_the_authors_code_sets():
    """options.py, main.py, utils.py."""
    config = configs.load("arnet_sh")
    assert config.head.name == "arnet"
    assert config.head.options == {"dropout": 0.7, "share": 4, "center": 20.0, "as_published": True}
    assert (config.data.resample, config.data.count, config.data.scale) == ("random", 300, "none")
    train, optimizer = config.train, config.train.optimizer
    assert (train.steps, train.epochs, train.sampler, train.pairs) == (20 * 238, None, "balanced", 30)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-4, 5e-4)
    assert (train.lr_schedule, config.select.rule) == ("constant", "last")


def test_motion_recipe_can_be_loaded():
    config = configs.load("motion_arnet")
    assert (config.head.name, config.head.options["hidden"], config.data.scale) == ("arnet", 256, "standardize")
    ARNetHead(470, **config.head.options)
