"""The ranking head against an independent numpy implementation of Sultani et al. 2018 and of its I3D port.

Facts from the authors' Keras code and from Roc-Ng/DeepMIL (reference/heads.md 1.1); nothing here calls mil.losses.
"""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.deepmil import DeepMILHead
from mil.heads.ranking import RankingHead
from mil.optim import Schedule, make_optimizer
from tests.mil_helpers import random_bag


def numpy_scores(head, bag):
    """Plain matrix products in float64; (B, K, T, D) -> (B, T)."""
    layers = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in (head.fc1, head.fc2)]
    last = (head.fc3.weight.detach().double().numpy(), head.fc3.bias.detach().double().numpy())
    x = bag.x.double().numpy()
    out = np.zeros(bag.mask.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[2]):
            crops = []
            for k in range(x.shape[1]):
                h = np.maximum(layers[0][0] @ x[b, k, t] + layers[0][1], 0)
                h = layers[1][0] @ h + layers[1][1]
                if isinstance(head, DeepMILHead):
                    h = np.maximum(h, 0)
                crops.append(1 / (1 + np.exp(-(last[0] @ h + last[1])[0])))
            out[b, t] = np.mean(crops) if bag.mask[b, t] else 0
    return out


def sultani_loss(scores, lengths, labels, *, smooth, sparse, kernels, l2):
    """The Keras code: for every normal bag the hinges of all anomalous bags are summed, then the mean over normal."""
    a = [s[:n] for s, n, y in zip(scores, lengths, labels, strict=True) if y == 1]
    n = [s[:n] for s, n, y in zip(scores, lengths, labels, strict=True) if y == 0]
    rank = 0.0
    for low in n:
        for high in a:
            rank += max(0.0, 1 - max(high) + max(low)) / len(n)
    steps = sum((s[t] - s[t + 1]) ** 2 for s in a for t in range(len(s) - 1))
    return {
        "rank": rank,
        "smooth": smooth * steps,
        "sparse": sparse * sum(sum(s) for s in a),
        "l2": l2 * sum((w.detach().double().numpy() ** 2).sum() for w in kernels),
    }


LENGTHS, LABELS = [7, 4, 1, 6, 5], [0, 1, 0, 1, 1]


def head_and_scores(kind=RankingHead, **options):
    torch.manual_seed(0)
    head = kind(6, hidden=(10, 5), **options).double().eval()
    bag = random_bag(LENGTHS, LABELS, crops={"rgb": 3}, dtype=torch.float64)
    return head, bag, head(bag)


@pytest.mark.parametrize("kind", [RankingHead, DeepMILHead])
def test_scores_are_three_layers_and_the_mean_of_the_crops(kind):
    head, bag, out = head_and_scores(kind)
    assert np.abs(out.scores.detach().numpy() - numpy_scores(head, bag)).max() < 1e-12


def test_as_published_sums_over_anomalous_videos_and_adds_the_kernels():
    head, bag, out = head_and_scores(as_published=True, l2=1e-3, smooth=0.3, sparse=0.2)
    kernels = [head.fc1.weight, head.fc2.weight, head.fc3.weight]
    expected = sultani_loss(numpy_scores(head, bag), LENGTHS, LABELS, smooth=0.3, sparse=0.2, kernels=kernels, l2=1e-3)
    found = {name: term.item() for name, term in head.loss(out, bag).items()}
    assert found == pytest.approx(expected, abs=1e-12)


def test_default_takes_means_where_the_code_sums():
    head, bag, out = head_and_scores(smooth=0.3, sparse=0.2)
    summed = sultani_loss(numpy_scores(head, bag), LENGTHS, LABELS, smooth=0.3, sparse=0.2, kernels=[], l2=0)
    found = {name: term.item() for name, term in head.loss(out, bag).items()}
    assert found == pytest.approx({k: v / 3 for k, v in summed.items() if k != "l2"}, abs=1e-12)


def test_deepmil_pairs_in_order_of_the_batch():
    """Roc-Ng: i-th normal against i-th anomalous, every term divided by the pairs or videos it is summed over."""
    head, bag, out = head_and_scores(DeepMILHead, smooth=0.3, sparse=0.2)
    s = numpy_scores(head, bag)
    hinge = [max(0.0, 1 - s[1, :4].max() + s[0, :7].max()), max(0.0, 1 - s[3, :6].max() + s[2, :1].max())]
    steps = [sum((s[b, t] - s[b, t + 1]) ** 2 for t in range(n - 1)) for b, n in ((1, 4), (3, 6), (4, 5))]
    expected = {"rank": np.mean(hinge), "smooth": 0.3 * np.mean(steps), "sparse": 0.2 * s[[1, 3, 4]].sum() / 3}
    assert {k: v.item() for k, v in head.loss(out, bag).items()} == pytest.approx(expected, abs=1e-12)


def test_topk_replaces_the_maximum_of_both_classes():
    head, bag, out = head_and_scores(topk=3)
    s = numpy_scores(head, bag)
    best = [np.sort(s[b, :n])[::-1][:3].mean() for b, n in ((1, 4), (3, 6), (4, 5))]
    normal = [np.sort(s[0, :7])[::-1][:3].mean(), s[2, 0]]  # one of a single segment
    expected = np.mean([max(0.0, 1 - a + n) for a in best for n in normal])
    assert head.loss(out, bag)["rank"].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("dim", "parameters"), [(1024, 541_249), (4096, 2_114_113)])
def test_size_of_the_published_nets(dim, parameters):
    """541,249 is DeepMIL's count at D = 1024 (heads.md 1.1); 4096 * 512 + 512 + 512 * 32 + 32 + 32 + 1 = 2,114,113."""
    head = RankingHead(dim)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "fc1.weight": (512, dim),
        "fc1.bias": (512,),
        "fc2.weight": (32, 512),
        "fc2.bias": (32,),
        "fc3.weight": (1, 32),
        "fc3.bias": (1,),
    }
    assert sum(math.prod(s) for s in shapes.values()) == parameters


def test_initial_kernels_are_glorot_normal_and_in_the_port_xavier_uniform():
    torch.manual_seed(0)
    normal, uniform = RankingHead(1024).fc1.weight.detach(), DeepMILHead(1024).fc1.weight.detach()
    deviation = math.sqrt(2 / (1024 + 512))
    # half a million numbers: the sample deviation is within 0.1 % of the true one
    assert float(normal.std()) == pytest.approx(deviation, rel=5e-3)
    assert float(uniform.std()) == pytest.approx(deviation, rel=5e-3)
    assert float(normal.abs().max()) > 4 * deviation
    assert float(uniform.abs().max()) <= math.sqrt(3) * deviation
    for head in (RankingHead(8), DeepMILHead(8)):
        assert all((layer.bias == 0).all() for layer in (head.fc1, head.fc2, head.fc3))


def test_only_the_port_drops_scores_and_only_in_training():
    bag = random_bag([200] * 6, [0, 1] * 3)
    for port in (False, True):
        torch.manual_seed(0)
        head = (DeepMILHead if port else RankingHead)(6, as_published=True)
        share = float((head(bag).scores == 0).float().mean())
        # 1200 scores, 60 % dropped: deviation 1.4 %
        assert share == (pytest.approx(0.6, abs=0.06) if port else 0)
        head.eval()
        assert (head(bag).scores > 0).all()
        assert torch.equal(head(bag).scores, head(bag).scores)


def test_kept_scores_are_scaled_by_dropout_in_the_port():
    """Inverted dropout after the sigmoid: what survives is divided by 0.4, and may exceed 1 while training."""
    bag = random_bag([50] * 2, [0, 1])
    head = DeepMILHead(6, as_published=True)
    torch.nn.init.zeros_(head.fc3.weight)  # every score is sigmoid(0) = 1/2
    found = {round(v, 6) for v in head(bag).scores.flatten().tolist()}
    assert found == {0.0, 1.25}


@pytest.mark.parametrize("options", [{"hidden": [512]}, {"hidden": [512, 0]}, {"topk": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"two hidden widths and topk >= 1, got hidden=.*topk="):
        RankingHead(4, **options)


def test_recipe_ranking_holds_what_the_authors_code_sets():
    """WaqasSultani/AnomalyDetectionCVPR2018, TrainingAnomalyDetector_public.py; heads.md 1.1."""
    config = configs.load("ranking")
    assert config.head.name == "ranking"
    assert config.head.options == {
        "hidden": [512, 32],
        "dropout": 0.6,
        "smooth": 8e-5,
        "sparse": 8e-5,
        "l2": 0.001,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "l2")
    assert (config.train.steps, config.train.pairs, config.train.lr_schedule) == (20_000, 30, "constant")
    assert config.train.optimizer.model_dump() == {
        "name": "adagrad",
        "lr": 0.01,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "momentum": 0.0,
        "groups": {},
    }
    assert config.select.rule == "last"


def test_recipe_deepmil_holds_what_the_port_sets():
    """Roc-Ng/DeepMIL, option.py and main.py; heads.md 1.1."""
    config = configs.load("deepmil")
    assert config.head.options == {
        "hidden": [512, 32],
        "dropout": 0.6,
        "smooth": 8e-5,
        "sparse": 8e-5,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "none")
    assert (config.train.steps, config.train.pairs) == (50 * 30, 32)
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.eps) == ("adam", 5e-5, 5e-5, None)


def test_deepmil_learning_rate_is_steplr_stepped_before_each_epoch():
    config = configs.load("deepmil")
    optimizer = make_optimizer(config.train.optimizer, torch.nn.Linear(1, 1))
    schedule = Schedule(config.train, per_epoch=30)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    optimizer.step()  # torch warns when a scheduler moves before any step; without a gradient it does nothing
    step = 0
    for epoch in range(50):
        scheduler.step()
        for _ in range(30):
            step += 1
            assert 5e-5 * schedule.factor(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), (epoch, step)
    assert step == config.train.steps
