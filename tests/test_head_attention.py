"""Attention-based MIL against loops in numpy, written from Ilse et al. 2018, equations 7 to 9."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.bags import Bag
from mil.heads.attention import AttentionHead
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 4, 1, 6], [0, 1, 0, 1]


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def of_a_crop(head, x):
    """Segments x (T, D) -> their scores, their attention, and the bag's probability."""
    w = {n: p.detach().double().numpy() for n, p in head.named_parameters()}
    scores, embedded, weights = [], [], []
    for segment in x:
        h = np.maximum(w["embed.weight"] @ segment + w["embed.bias"], 0)
        inner = np.tanh(w["content.weight"] @ h + w["content.bias"])
        if "gate.weight" in w:
            inner = inner * sigmoid(w["gate.weight"] @ h + w["gate.bias"])
        weights.append(math.exp((w["weigh.weight"] @ inner)[0]))
        embedded.append(h)
        scores.append(sigmoid((w["classify.weight"] @ h + w["classify.bias"])[0]))
    shares = np.array(weights) / sum(weights)
    if head.pool == "features":
        z = sum(a * h for a, h in zip(shares, embedded, strict=True))
        p = sigmoid((w["classify.weight"] @ z + w["classify.bias"])[0])
    else:
        p = sum(a * s for a, s in zip(shares, scores, strict=True))
    return np.array(scores), shares, p


def make(seed=0, **options):
    torch.manual_seed(seed)
    head = AttentionHead(6, **{"hidden": 10, "attention": 5, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(0.6 * torch.randn_like(p))  # attention and scores far from flat
    return head, random_bag(LENGTHS, LABELS, crops={"rgb": 3}, dtype=torch.float64)


KINDS = [{}, {"gated": False}, {"pool": "features"}, {"pool": "features", "gated": False}]


@pytest.mark.parametrize("options", KINDS)
def test_scores_attention_and_loss_are_the_papers(options):
    head, bag = make(**options)
    out = head(bag)
    losses = []
    for b, (length, label) in enumerate(zip(LENGTHS, LABELS, strict=True)):
        found = [of_a_crop(head, x) for x in bag.x[b, :, :length].numpy()]
        assert np.abs(out.scores[b, :length].detach().numpy() - np.mean([f[0] for f in found], 0)).max() < 1e-12
        assert (out.scores[b, length:] == 0).all()
        for k, (_, shares, p) in enumerate(found):
            assert np.abs(out.aux["attention"][b, k, :length].detach().numpy() - shares).max() < 1e-12
            losses.append(-math.log(p if label else 1 - p))
        assert (out.aux["attention"][b, :, length:] == 0).all()
    terms = {k: v.item() for k, v in head.loss(out, bag).items()}
    assert terms == pytest.approx({"bce": np.mean(losses)}, abs=1e-12)


def test_a_segments_score_does_not_depend_on_its_bag():
    """What attention weights, shares of one bag, could not promise."""
    head, _ = make()
    bag = random_bag([9], [1], dtype=torch.float64)
    one = Bag({"rgb": bag.x[:, :, 4:5]}, bag.mask[:, 4:5], bag.labels)
    assert head(one).scores[0, 0].item() == pytest.approx(head(bag).scores[0, 4].item(), abs=1e-12)
    assert head(one).aux["attention"].item() == 1
    assert head(bag).aux["attention"][0, 0, 4].item() < 0.9


@pytest.mark.parametrize("pool", ["probabilities", "features"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_bag_that_is_sure_and_wrong_keeps_a_gradient(pool, sign):
    """In float32 the probability of logit 200 is 1, and the logarithm of what is left of it is no number."""
    torch.manual_seed(0)
    head = AttentionHead(6, hidden=8, attention=4, pool=pool).eval()
    with torch.no_grad():
        head.classify.weight.zero_()
        head.classify.bias.fill_(200 * sign)
    bag = random_bag([5], [0 if sign > 0 else 1])
    (loss,) = head.loss(head(bag), bag).values()
    loss.backward()
    assert loss.item() == pytest.approx(200, rel=1e-5)
    assert head.classify.bias.grad.item() == pytest.approx(sign, rel=1e-5)


def test_dropout_is_of_the_embedding_in_training_alone():
    """With all of it dropped every segment has the classifier's bias for a logit, and the same attention."""
    head, bag = make(dropout=1.0)
    assert float(head(bag).scores.detach()[0, :7].std()) > 1e-3
    out = head.train()(bag)
    bare = torch.sigmoid(head.classify.bias).item()
    assert out.scores[bag.mask].tolist() == pytest.approx([bare] * sum(LENGTHS), abs=1e-12)
    assert out.aux["attention"][0, 0, :7].tolist() == pytest.approx([1 / 7] * 7, abs=1e-12)


@pytest.mark.parametrize(
    ("gated", "parameters"),
    [(True, 1024 * 512 + 512 + 2 * (512 * 128 + 128) + 128 + 513), (False, 1024 * 512 + 512 + 512 * 128 + 128 + 641)],
)
def test_size_of_the_default_nets(gated, parameters):
    with torch.device("meta"):
        head = AttentionHead(1024, gated=gated)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("option", ["hidden", "attention"])
def test_impossible_options_are_refused(option):
    with pytest.raises(ValueError, match=rf"at least 1, got .*{option}=0"):
        AttentionHead(4, **{option: 0})


def test_recipes_name_this_head_and_say_that_their_values_are_ours():
    for name in ("attention_ucf", "motion_attention"):
        config = configs.load(name)
        assert config.head.name == "attention"
        assert config.head.options["gated"] is True
    assert "not published" in configs.load("attention_ucf").about
    assert configs.load("motion_attention").data.scale == "standardize"
