"""SFA against loops in numpy, written from the authors' code (sakurada-cnq/salient_feature_anomaly)."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.bags import Bag
from mil.heads.sfa import SFAHead
from mil.optim import make_optimizer
from mil.published import take_in
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [9, 4, 1, 13], [1, 0, 1, 0]


def judge(state, x):
    """One probability for the segments x (T, D), by the authors' names of the weights."""
    w = {n: v.detach().double().numpy() for n, v in state.items()}
    logits = []
    for segment in x:
        h = np.tanh(w["self_anttention.0.weight"] @ segment + w["self_anttention.0.bias"])
        logits.append(w["self_anttention.2.weight"] @ h + w["self_anttention.2.bias"])
    logits = np.array(logits)  # (T, r)
    flat = np.zeros(x.shape[1] * logits.shape[1])
    for r in range(logits.shape[1]):
        shares = np.exp(logits[:, r]) / np.exp(logits[:, r]).sum()
        for d in range(x.shape[1]):
            flat[d * logits.shape[1] + r] = sum(shares[t] * x[t, d] for t in range(len(x)))
    h = w["fc1.weight"] @ flat + w["fc1.bias"]
    return 1 / (1 + math.exp(-float((w["fc2.weight"] @ h + w["fc2.bias"])[0])))


def spread_over_chunks(state, x, chunk):
    """The authors' evaluation of one video x (K, T, D): chunks, mean over crops, the chunk's score to its segments."""
    out = []
    for start in range(0, x.shape[1], chunk):
        part = x[:, start : start + chunk]
        out += [np.mean([judge(state, crop) for crop in part])] * part.shape[1]
    return np.array(out)


def theirs(head):
    own = head.state_dict()
    return {name: own[ours] for name, ours in head.published().names.items()}


def make(crops=3, **options):
    torch.manual_seed(0)
    head = SFAHead(6, **{"attention": 5, "hops": 3, "hidden": 4, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(0.7 * torch.randn_like(p))  # attention maps and scores far from flat
    return head, random_bag(LENGTHS, LABELS, crops={"rgb": crops}, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 4, 5, 28])
def test_scores_are_those_of_the_authors_evaluation(chunk):
    head, bag = make(chunk=chunk)
    scores = head(bag).scores.detach().numpy()
    for b, length in enumerate(LENGTHS):
        expected = spread_over_chunks(theirs(head), bag.x[b, :, :length].numpy(), chunk)
        assert np.abs(scores[b, :length] - expected).max() < 1e-12
        assert (scores[b, length:] == 0).all()


def test_what_is_dropped_are_attention_weights_in_training_alone():
    """With all of them dropped, the biases of the last two layers are what is left."""
    head, bag = make(dropout=1.0)
    assert head(bag).scores[:, 0].unique().numel() == len(LENGTHS)
    bare = head.fc2(head.fc1.bias).item()
    assert head.train()(bag).aux["logit"].flatten().tolist() == pytest.approx([bare] * 12, abs=1e-12)


def test_dropped_attention_weights_are_not_normalised_again():
    """Inverted dropout of shares: their sum moves about 1, in mean it stays there."""
    head, _ = make(hops=1)
    with torch.no_grad():
        for p in head.parameters():
            p.zero_()  # every segment has the same share
        head.fc1.weight.fill_(1.0)
        head.fc2.weight[0, 0] = 1.0
    ones = torch.ones(400, 1, 10, 6, dtype=torch.float64)
    mask, labels = torch.ones(400, 10, dtype=torch.bool), torch.zeros(400, dtype=torch.float64)
    found = head.train()(Bag({"rgb": ones}, mask, labels)).aux["logit"].detach().flatten() / 6
    kept = found * 0.7 * 10  # how many of ten shares were kept, each 1 / 10 / 0.7
    assert (kept - kept.round()).abs().max() < 1e-9
    # 4000 draws: deviation 0.7 %
    assert float(kept.mean()) == pytest.approx(7, abs=0.25)
    assert kept.unique().numel() > 3


def test_in_training_a_bag_is_one_chunk():
    head, bag = make(chunk=4, dropout=0.0)
    out = head.train()(bag)
    for b, length in enumerate(LENGTHS):
        whole = spread_over_chunks(theirs(head), bag.x[b, :, :length].numpy(), 99)
        assert np.abs(out.scores[b, :length].detach().numpy() - whole).max() < 1e-12
    assert (out.scores[~bag.mask] == 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_loss_is_the_mean_cross_entropy_of_every_crop_of_the_whole_bag(training):
    head, bag = make(chunk=4, dropout=0.0)
    expected = []
    for b, (length, label) in enumerate(zip(LENGTHS, LABELS, strict=True)):
        for crop in bag.x[b, :, :length].numpy():
            p = judge(theirs(head), crop)
            expected.append(-math.log(p if label else 1 - p))
    out = head.train(training)(bag)
    found = head.loss(out, bag)
    assert {k: v.item() for k, v in found.items()} == pytest.approx({"bce": np.mean(expected)}, abs=1e-12)


def test_the_order_inside_a_chunk_means_nothing_but_which_chunk_does():
    head, _ = make(chunk=4)
    bag = random_bag([8], [1], dtype=torch.float64)

    def scored(order):
        moved = Bag({"rgb": bag.x[:, :, order]}, bag.mask, bag.labels)
        return head(moved).scores[0]

    straight = scored([0, 1, 2, 3, 4, 5, 6, 7])
    assert (scored([2, 0, 3, 1, 7, 6, 5, 4]) - straight).abs().max() < 1e-12
    assert (scored([4, 1, 2, 3, 0, 5, 6, 7]) - straight).abs().max() > 1e-3


def test_the_last_chunk_does_not_see_padding_nor_its_neighbours():
    """A video of 5 in chunks of 4: its last segment is judged alone, whatever stands behind the video's end."""
    head, _ = make(chunk=4)
    bag = random_bag([5, 11], [1, 0], dtype=torch.float64)
    alone = judge(theirs(head), bag.x[0, 0, 4:5].numpy())
    assert head(bag).scores[0, 4].item() == pytest.approx(alone, abs=1e-12)
    assert head(bag).scores[0, :4].unique().numel() == 1


@pytest.mark.parametrize(("attention", "hops", "parameters"), [(64, 3, 328_004), (128, 7, 721_992)])
def test_size_of_the_published_nets_and_what_their_shapes_tell(attention, hops, parameters):
    """2048 d_a + d_a + d_a r + r + 32 (2048 r) + 32 + 32 + 1."""
    with torch.device("meta"):
        head = SFAHead(2048, attention=attention, hops=hops)
    shapes = {name: tuple(v.shape) for name, v in theirs(head).items()}
    assert shapes == {
        "self_anttention.0.weight": (attention, 2048),
        "self_anttention.0.bias": (attention,),
        "self_anttention.2.weight": (hops, attention),
        "self_anttention.2.bias": (hops,),
        "fc1.weight": (32, 2048 * hops),
        "fc1.bias": (32,),
        "fc2.weight": (1, 32),
        "fc2.bias": (1,),
    }
    assert sum(math.prod(s) for s in shapes.values()) == parameters
    assert SFAHead.infer(shapes) == ({"rgb": 2048}, {"attention": attention, "hops": hops, "hidden": 32})


def test_a_file_of_the_authors_scores_as_their_code_does():
    """In float32, 10 crops, more than two chunks of 28."""
    rng = np.random.default_rng(3)
    shapes = {
        "self_anttention.0.weight": (16, 20),
        "self_anttention.0.bias": (16,),
        "self_anttention.2.weight": (7, 16),
        "self_anttention.2.bias": (7,),
        "fc1.weight": (32, 140),
        "fc1.bias": (32,),
        "fc2.weight": (1, 32),
        "fc2.bias": (1,),
    }
    state = {n: torch.from_numpy(0.3 * rng.standard_normal(s)).float() for n, s in shapes.items()}
    dims, options = SFAHead.infer(shapes)
    head = SFAHead(dims["rgb"], **options).eval()
    assert not take_in(head, head.published(), state)
    bag = random_bag([61], [1], dims={"rgb": 20}, crops={"rgb": 10})
    expected = spread_over_chunks(state, bag.x[0].double().numpy(), 28)
    assert np.abs(head(bag).scores[0].detach().numpy() - expected).max() < 1e-5
    assert len(set(expected)) == 3


@pytest.mark.parametrize("option", ["attention", "hops", "hidden", "chunk"])
def test_impossible_options_are_refused(option):
    with pytest.raises(ValueError, match=rf"at least 1, got .*{option}=0"):
        SFAHead(4, **{option: 0})


def test_recipe_holds_what_the_authors_code_sets():
    config = configs.load("sfa_ucf")
    assert config.head.name == "sfa"
    assert config.head.options == {"attention": 64, "hops": 3, "hidden": 32, "dropout": 0.3, "chunk": 28}
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "none")
    train = config.train
    assert (train.epochs, train.sampler, train.pairs, train.samples) == (10, "passes", 32, "crops")
    assert (train.lr_schedule, train.clip_norm, train.ema) == ("constant", None, None)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("radam", 1e-3, 0.0)
    assert (config.evaluate.smooth, config.select.rule) == (1, "last")
    group = make_optimizer(train.optimizer, torch.nn.Linear(1, 1)).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_recipe_for_motion_judges_a_few_clips_at_once():
    config = configs.load("motion_sfa")
    assert config.head.options["chunk"] < 28
    assert (config.data.count, config.data.scale) == (32, "standardize")
