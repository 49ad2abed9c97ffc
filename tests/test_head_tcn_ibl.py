"""TCN-IBL against loops in numpy, written from the paper's description; causality by gradients."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.bags import Bag
from mil.heads.tcn_ibl import TCNIBLHead
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 5, 1, 12, 6], [0, 1, 0, 1, 1]


def scores_of(head, x, *, channels, kernel):
    """Segments x (T, D) -> their scores (T,)."""
    w = {n: p.detach().double().numpy() for n, p in head.named_parameters()}
    h = list(x)
    for layer in range(channels):
        taps, bias = w[f"blocks.{layer}.conv.weight"], w[f"blocks.{layer}.conv.bias"]
        new = []
        for t in range(len(h)):
            y = bias.copy()
            for back in range(kernel):  # the last tap is now, the one before it 2^layer segments ago
                if (at := t - back * 2**layer) >= 0:
                    y = y + taps[:, :, kernel - 1 - back] @ h[at]
            own = h[t]
            if f"blocks.{layer}.skip.weight" in w:
                own = w[f"blocks.{layer}.skip.weight"] @ own + w[f"blocks.{layer}.skip.bias"]
            new.append(np.maximum(own + np.maximum(y, 0), 0))
        h = new
    return np.array([1 / (1 + math.exp(-(w["fc.weight"] @ row + w["fc.bias"])[0])) for row in h])


def make(channels=(6, 4), kernel=2, crops=2, **options):
    torch.manual_seed(0)
    head = TCNIBLHead(6, channels=channels, kernel=kernel, **options).double().eval()
    return head, random_bag(LENGTHS, LABELS, crops={"rgb": crops}, dtype=torch.float64)


@pytest.mark.parametrize(("channels", "kernel"), [((6, 4), 2), ((5, 5, 3), 3), ((4,), 1)])
def test_scores_are_those_written_out(channels, kernel):
    """Of widths that stay the same, 6 of 6 and 5 of 5, the segment itself is added as it is."""
    head, bag = make(channels, kernel)
    scores = head(bag).scores.detach().numpy()
    for b, length in enumerate(LENGTHS):
        crops = [scores_of(head, x, channels=len(channels), kernel=kernel) for x in bag.x[b, :, :length].numpy()]
        assert np.abs(scores[b, :length] - np.mean(crops, axis=0)).max() < 1e-12
        assert (scores[b, length:] == 0).all()


def test_losses_are_the_papers():
    head, bag = make(inner=0.7, smooth=0.3, sparse=0.2)
    out = head(bag)
    s = [out.scores[b, :n].detach().numpy() for b, n in enumerate(LENGTHS)]
    high, low = [s[b] for b in (1, 3, 4)], [s[b] for b in (0, 2)]
    expected = {
        "rank": np.mean([max(0.0, 1 - max(a) + max(n)) for a in high for n in low]),
        "inner_anomalous": 0.7 * np.mean([max(0.0, 1 - max(a) + min(a)) for a in high]),
        "inner_normal": 0.7 * np.mean([max(n) - min(n) for n in low]),
        "smooth": 0.3 * np.mean([sum((a[t] - a[t + 1]) ** 2 for t in range(len(a) - 1)) for a in high]),
        "sparse": 0.2 * np.mean([sum(a) for a in high]),
    }
    assert {k: v.item() for k, v in head.loss(out, bag).items()} == pytest.approx(expected, abs=1e-12)


def test_the_lowest_score_is_of_the_video_and_not_of_its_padding():
    """A normal video of one segment has no gap, however long its neighbour in the batch is."""
    head, _ = make()
    bag = random_bag([1, 9], [0, 1], dtype=torch.float64)
    terms = head.loss(head(bag), bag)
    assert terms["inner_normal"].item() == 0
    assert terms["inner_anomalous"].item() < 1


@pytest.mark.parametrize(("channels", "kernel", "field"), [((6, 4), 2, 4), ((5, 5, 3), 3, 15), ((4,), 1, 1)])
def test_a_score_tells_of_its_receptive_field_and_never_of_later_segments(channels, kernel, field):
    """All weights and features are positive, so that no ReLU hides what a score depends on."""
    head, _ = make(channels, kernel)
    assert head.receptive_field == field
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(0.1 * p.abs() + 0.01)
    x = random_bag([20], [1], dtype=torch.float64).x.abs().requires_grad_()
    scores = head(Bag({"rgb": x}, torch.ones(1, 20, dtype=torch.bool), torch.ones(1))).scores
    for t in range(20):
        (grad,) = torch.autograd.grad(scores[0, t], x, retain_graph=True)
        seen = (grad[0, 0].abs().sum(-1) > 0).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - field + 1), t + 1))


def test_what_comes_later_changes_no_score_to_the_bit():
    head, _ = make((5, 5, 3), 3)
    bag = random_bag([12], [1], dtype=torch.float64)
    other = bag.x.clone()
    other[:, :, 7:] = 50.0
    found, moved = head(bag).scores[0], head(Bag({"rgb": other}, bag.mask, bag.labels)).scores[0]
    assert torch.equal(found[:7], moved[:7])
    assert not torch.equal(found[7:], moved[7:])


def test_what_is_dropped_are_the_convolutions_in_training_alone():
    """With all of them dropped a score is that of its own segment, through the residual paths."""
    head, bag = make(dropout=1.0)
    h = bag.x
    for block in head.blocks:
        h = block.skip(h).relu()
    own = head.fc(h).squeeze(-1).sigmoid().mean(1)
    assert (head.train()(bag).scores - own * bag.mask).abs().max() < 1e-12
    assert (head.eval()(bag).scores - own * bag.mask).abs().max() > 1e-3


def test_size_of_the_default_net():
    with torch.device("meta"):
        head = TCNIBLHead(4096)
    sizes = [(4096, 512), (512, 128), (128, 32)]
    assert sum(p.numel() for p in head.parameters()) == sum(3 * a * b + 2 * b for a, b in sizes) + 33
    assert head.receptive_field == 8


@pytest.mark.parametrize("options", [{"channels": []}, {"channels": [4, 0]}, {"kernel": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"at least 1, got channels=.*kernel="):
        TCNIBLHead(4, **options)


def test_recipe_holds_what_the_paper_says():
    config = configs.load("tcn_ibl_ucf")
    assert (config.head.name, config.head.options["smooth"], config.head.options["sparse"]) == ("tcn_ibl", 8e-5, 8e-5)
    assert config.head.options["inner"] == 1.0
    assert (config.data.resample, config.data.count) == ("segments", 32)
    assert "no code" in config.about


@pytest.mark.parametrize("name", ["tcn_ibl_ucf", "motion_tcn_ibl"])
def test_no_recipe_smooths_over_later_clips(name):
    """Centred smoothing would undo what is causal."""
    assert configs.load(name).evaluate.smooth == 1
