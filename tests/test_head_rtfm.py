"""RTFM against an independent numpy implementation that reads the authors' tensor names (tests/magnitude_reference)."""

import numpy as np
import pytest
import torch

from benchmarks.plain import rtfm as plain_rtfm
from mil import config as configs
from mil.bags import Bag
from mil.heads.rtfm import RTFMHead
from mil.layers.magnitude import MagnitudeLoss
from mil.optim import Schedule
from mil.published import give_back
from tests.magnitude_reference import conv1d, losses, mtn, sequences, shake, sigmoid, state_of, three_layers
from tests.mil_helpers import random_bag, take

LENGTHS, LABELS = [7, 2, 9, 4, 5], [0, 1, 0, 1, 1]
WEIGHTS = {"margin": 6.0, "alpha": 0.3, "smooth": 0.2, "sparse": 0.1}


def setup(**options):
    torch.manual_seed(0)
    head = shake(RTFMHead(8, **{"width": 4, "hidden": (6, 5), **WEIGHTS, **options}).double()).eval()
    return head, random_bag(LENGTHS, LABELS, dims={"rgb": 8}, crops={"rgb": 2}, dtype=torch.float64)


def reference(head, bag, training=False):
    """Scores [(T_i,)] and features [(K, T_i, D)] of every video."""
    state, videos = state_of(head), sequences(bag)
    crops = len(videos[0])
    flat = mtn([crop for video in videos for crop in video], state, "Aggregate", training=training)
    features = [np.stack(flat[b * crops : (b + 1) * crops]) for b in range(len(videos))]
    return [sigmoid(three_layers(f, state, ("fc1", "fc2", "fc3"))).mean(0) for f in features], features


def close(found, expected, tolerance=1e-10):
    for row, scores in zip(found.detach().numpy(), expected, strict=True):
        assert np.abs(row[: len(scores)] - scores).max() < tolerance
        assert (row[len(scores) :] == 0).all()


def test_scores_in_evaluation_are_those_of_the_authors_tensors():
    head, bag = setup()
    scores, features = reference(head, bag)
    out = head(bag)
    close(out.scores, scores)
    spread = [float(s.std()) for s in scores if len(s) > 2]
    assert min(spread) > 1e-3, "scores that hardly differ would compare nothing"
    for row, feature in zip(out.aux["features"].detach().numpy(), features, strict=True):
        assert np.abs(row[:, : feature.shape[1]] - feature).max() < 1e-10


@pytest.mark.parametrize("published", [False, True])
def test_each_loss_term(published):
    head, bag = setup(as_published=published)
    scores, features = reference(head, bag)
    expected = losses(scores, features, LABELS, published=published, **WEIGHTS)
    found = {n: t.item() for n, t in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(expected, rel=1e-9)
    other = losses(scores, features, LABELS, published=not published, **WEIGHTS)
    assert abs(other["magnitude"] - expected["magnitude"]) > 1e-6
    assert abs(other["smooth"] - expected["smooth"]) > 1e-6


def test_default_weights_are_those_of_the_authors_code():
    """0.0001 and a margin of 100, 8e-4 smoothness, 8e-3 sparsity, the top 32 // 10."""
    head = shake(RTFMHead(8, width=4, hidden=(6, 5)).double()).eval()
    bag = setup()[1]
    scores, features = reference(head, bag)
    found = {n: t.item() for n, t in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(losses(scores, features, LABELS, published=False), rel=1e-9)
    assert head.objective == MagnitudeLoss(3, 100.0, 1e-4, 8e-4, 8e-3, 0.7, False)


def test_batch_statistics_are_of_the_segments_that_are_there():
    head, bag = setup(dropout=0.0)
    scores, _ = reference(head, bag, training=True)
    padded = random_bag(LENGTHS, LABELS, dims={"rgb": 8}, crops={"rgb": 2}, pad=4, dtype=torch.float64)
    norm = head.mtn.branches[0].norm
    before = norm.running_mean.clone().numpy()
    close(head.train()(padded).scores, scores, 1e-9)
    conv = head.mtn.branches[0].conv
    rows = [conv1d(x, conv.weight.detach().numpy(), conv.bias.detach().numpy()) for v in sequences(bag) for x in v]
    mean = np.maximum(np.concatenate(rows), 0).mean(0)
    assert np.abs(norm.running_mean.numpy() - (0.9 * before + 0.1 * mean)).max() < 1e-9


def test_selection_passes_over_segments_while_training_with_a_mask_for_each_class():
    head, _ = setup(dropout=0.5, as_published=True)
    bag = random_bag([12] * 4, [0, 0, 1, 1], dims={"rgb": 8}, crops={"rgb": 2}, dtype=torch.float64)
    out = head.train()(bag)
    dropped = out.aux["features"].detach().numpy()
    assert 0.4 < (dropped == 0).mean() < 0.6, "magnitudes are of features after dropout"
    torch.manual_seed(5)
    found = {n: t.item() for n, t in head.loss(out, bag).items()}
    torch.manual_seed(5)
    high = torch.nn.functional.dropout(torch.ones(2, 12, dtype=torch.float64), 0.5)  # first, as in the authors' code
    low = torch.nn.functional.dropout(torch.ones(2, 12, dtype=torch.float64), 0.5)
    assert min(int((m > 0).sum(1).min()) for m in (high, low)) >= 3
    assert set(high.flatten().tolist()) == {0.0, 2.0}
    scores = list(out.scores.detach().numpy())
    keep = [*low.numpy(), *high.numpy()]
    expected = losses(scores, list(dropped), [0, 0, 1, 1], published=True, keep=keep, **WEIGHTS)
    assert found == pytest.approx(expected, rel=1e-9)
    unmasked = losses(scores, list(dropped), [0, 0, 1, 1], published=True, **WEIGHTS)
    assert abs(unmasked["bce"] - expected["bce"]) > 1e-6


def test_the_selection_goes_by_magnitude_and_not_by_score():
    objective = MagnitudeLoss(topk=1, margin=10.0, alpha=1.0, smooth=0.0, sparse=0.0)
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.3]])
    features = torch.tensor([[[[1.0], [5.0]]], [[[2.0], [3.0]]]])  # (2, 1, 2, 1): the second segment is the larger
    bag = Bag({"rgb": features}, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0]))
    terms = objective.terms(scores, features, bag, "rtfm", training=False)
    assert float(terms["bce"]) == pytest.approx(-(np.log(0.2) + np.log(0.7)) / 2)
    assert float(terms["magnitude"]) == pytest.approx((abs(10 - 5) + 3) ** 2)


def test_crops_share_one_selection():
    """Each crop's own choice would be its own largest; the mean of the magnitudes decides for both."""
    objective = MagnitudeLoss(topk=1, margin=0.0, alpha=1.0, smooth=0.0, sparse=0.0)
    features = torch.tensor([[[[9.0], [1.0]], [[2.0], [8.0]]], [[[1.0], [0.0]], [[1.0], [0.0]]]])
    bag = Bag({"rgb": features}, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0]))
    terms = objective.terms(torch.full((2, 2), 0.5), features, bag, "rtfm", training=False)
    assert float(terms["magnitude"]) == pytest.approx(((9 + 1) ** 2 + (2 + 1) ** 2) / 2)


def test_a_single_pair_is_no_evaluation():
    """Their code takes a batch of one pair for one test video and lets the normal one stand for both."""
    head, bag = setup()
    pair = take(bag, [0, 3])
    scores, features = reference(head, pair)
    found = {n: t.item() for n, t in head.loss(head(pair), pair).items()}
    assert found == pytest.approx(losses(scores, features, [0, 1], published=False, **WEIGHTS), rel=1e-9)


def test_sparsity_grows_with_the_root_of_the_videos():
    head, bag = setup()
    one = head.loss(head(b := take(bag, [0, 3])), b)["sparse"].item()
    four = head.loss(head(b := take(bag, [0, 3, 3, 3, 3])), b)["sparse"].item()
    assert four == pytest.approx(2 * one, rel=1e-12)


def test_smoothness_crosses_borders_only_as_published():
    level = torch.tensor([[0.1, 0.1, 0.0], [0.9, 0.9, 0.9], [0.5, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    features = torch.ones(3, 1, 3, 2)
    bag = Bag({"rgb": features}, mask, torch.tensor([1.0, 1.0, 0.0]))
    found = [
        float(MagnitudeLoss(smooth=1.0, as_published=p).terms(level, features, bag, "rtfm", training=False)["smooth"])
        for p in (False, True)
    ]
    assert found == pytest.approx([0.0, 0.64])


def test_the_non_local_block_starts_as_the_identity_and_then_learns():
    torch.manual_seed(0)
    head = RTFMHead(8, width=4, hidden=(6, 5), dropout=0.0)
    bag = random_bag([6] * 4, [0, 1, 0, 1], dims={"rgb": 8})
    inner = [p for n, p in head.mtn.non_local.named_parameters() if not n.startswith("norm")]

    def gradients():
        head.zero_grad()
        sum(head.loss(head(bag), bag).values()).backward()
        return [float(p.grad.abs().max()) for p in inner]

    assert max(gradients()) == 0
    torch.nn.init.ones_(head.mtn.non_local.norm.weight)
    assert min(g for g, p in zip(gradients(), inner, strict=True) if p.ndim == 3) > 0


def test_kernels_begin_xavier_uniform_with_zero_biases():
    torch.manual_seed(0)
    head = RTFMHead(256, hidden=(64, 32))
    kernel, bias = head.mtn.branches[1].conv.weight.detach(), head.mtn.branches[1].conv.bias
    deviation = np.sqrt(2 / (3 * 256 + 3 * 64))  # fans count the taps
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.02)
    assert float(kernel.abs().max()) <= np.sqrt(3) * deviation
    layers = [m for m in head.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Linear)]
    assert all((m.bias == 0).all() for m in layers if m.bias is not None)
    assert (bias == 0).all()


def test_size_and_names_of_the_published_net():
    with torch.device("meta"):
        head = RTFMHead(2048)
    assert sum(p.numel() for p in head.parameters()) == 24_718_849
    form, own = head.published(), head.state_dict()
    shapes = {theirs: tuple(own[ours].shape) for theirs, ours in form.names.items()}
    assert len(shapes) == 47
    expected = {
        "Aggregate.conv_3.0.weight": (512, 2048, 3),
        "Aggregate.conv_1.2.running_var": (512,),
        "Aggregate.conv_4.0.weight": (512, 2048, 1),
        "Aggregate.conv_5.0.weight": (2048, 2048, 3),
        "Aggregate.conv_5.2.num_batches_tracked": (),
        "Aggregate.non_local.phi.weight": (256, 512, 1),
        "Aggregate.non_local.W.0.weight": (512, 256, 1),
        "Aggregate.non_local.W.1.bias": (512,),
        "fc1.weight": (512, 2048),
        "fc2.weight": (128, 512),
        "fc3.weight": (1, 128),
    }
    assert {n: shapes[n] for n in expected} == expected
    assert "Aggregate.conv_4.0.bias" not in shapes
    assert RTFMHead.infer(shapes) == ({"rgb": 2048}, {"width": 512, "hidden": [512, 128]})


@pytest.mark.parametrize("options", [{"hidden": [512]}, {"hidden": [0, 2]}])
def test_impossible_widths_are_refused(options):
    with pytest.raises(ValueError, match="rtfm needs two hidden widths"):
        RTFMHead(8, **options)


def test_an_impossible_number_of_segments_is_refused():
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        RTFMHead(8, topk=0)


@pytest.mark.parametrize("name", ["rtfm_ucf", "rtfm_xd", "rtfm_sh"])
def test_recipes_hold_what_the_authors_code_sets(name):
    """tianyu0207/RTFM: model.py, train.py, main.py, option.py."""
    config = configs.load(name)
    assert config.head.options == {
        "width": 512,
        "hidden": [512, 128],
        "dropout": 0.7,
        "topk": 3,
        "margin": 100.0,
        "alpha": 1e-4,
        "smooth": 8e-4,
        "sparse": 8e-3,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "none")
    train = config.train
    assert (train.steps, train.epochs, train.sampler, train.pairs, train.samples) == (
        15000,
        None,
        "passes",
        32,
        "videos",
    )
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-3, 0.005)
    assert {Schedule(train, per_epoch=25).factor(s) for s in (1, 7000, 15000)} == {1.0}
    assert (config.select.rule, config.evaluate.smooth) == ("last", 1)


def test_scores_and_losses_are_those_of_the_plain_implementation():
    """benchmarks/plain/rtfm.py, on our weights under the authors' names."""
    torch.manual_seed(0)
    head = shake(RTFMHead(8, width=4, hidden=(6, 5), as_published=True)).eval()
    model = plain_rtfm.Model(8, 4, (6, 5)).eval()
    model.load_state_dict(give_back(head, head.published(), {}))
    bag = random_bag([9] * 6, [0, 0, 0, 1, 1, 1], dims={"rgb": 8}, crops={"rgb": 2})
    out = head(bag)
    for x, scores in zip(bag.x, out.scores, strict=True):
        assert (model.scores(x) - scores).abs().max() < 1e-6
    expected = model.loss(bag.x[:3], bag.x[3:]).item()
    assert sum(head.loss(out, bag).values()).item() == pytest.approx(expected, rel=1e-5)
