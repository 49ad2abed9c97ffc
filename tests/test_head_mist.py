"""MIST against plain numpy, written from the paper (Feng et al., CVPR 2021) and from what the authors' code does, one
video at a time; nothing here calls mil.layers or mil.losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.bags import Bag
from mil.heads import Progress
from mil.heads.mist import MISTHead
from mil.published import give_back, take_in
from tests.mil_helpers import random_bag, take

LENGTHS, LABELS, INDEX = [7, 14, 23, 1, 5], [0, 1, 1, 1, 0], [3, 0, 6, 2, 5]


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, float)))


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def weights(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def generate(head, x):
    """The generator's score of one clip; no ReLU after the second layer."""
    w = weights(head.generator)
    return float(sigmoid(linear(w, "5", linear(w, "3", np.maximum(linear(w, "0", x), 0)))[0]))


def encode(head, x):
    """The encoder's two probabilities of one clip, and those of the attention branch."""
    w = weights(head.encoder)
    m = np.maximum(linear(w, "body.0", x), 0)
    f = np.maximum(linear(w, "branch.2", np.maximum(linear(w, "branch.0", x), 0)), 0)
    detected = linear(w, "guide", f)
    half = len(detected) // 2
    guided = softmax(np.array([detected[:half].mean(), detected[half:].mean()]))
    gate = float(sigmoid(linear(w, "gate", f)[0]))
    return softmax(linear(w, "out", (1 + gate) * m)), guided


def make(**options):
    torch.manual_seed(2)
    small = {"hidden": (9, 5), "width": 8, "detectors": 3, "dropout": (0.0, 0.0), "sub_bags": 4, "clips": 3, "topk": 3}
    return MISTHead(6, **{**small, **options}).double()


def make_bag(crops=3, pad=2):
    bag = random_bag(LENGTHS, LABELS, crops={"rgb": crops}, pad=pad, dtype=torch.float64)
    return replace(bag, index=torch.tensor(INDEX))


def scan_of(bag):
    def scan():
        for b, n in enumerate(LENGTHS):
            one = take(bag, [b])
            yield Bag({k: x[:, :, :n] for k, x in one.features.items()}, one.mask[:, :n], one.labels, None, one.index)

    return scan


def in_stage_two(head, bag):
    with torch.no_grad():
        head.eval().refresh(Progress(10, 20, 5), scan_of(bag))
    return head


def scores_of(head, bag, b):
    """The generator's, the mean over the crops, of one video."""
    x = bag.x[b].numpy()
    return np.array([[generate(head, x[k, t]) for t in range(LENGTHS[b])] for k in range(len(x))]).mean(0)


def sampled(n, parts, length, move=0):
    """The authors' sparse continuous sampling; a video shorter than a sub-bag repeats its last clip."""
    starts = np.linspace(0, max(n - length, 0), num=parts + 1, dtype=int)[:parts] + move
    return [[min(s + i, n - 1) for i in range(length)] for s in starts]


# -- stage one ---------------------------------------------------------------------------------------------------------


def test_scores_are_the_generators_at_first():
    head, bag = make().eval(), make_bag()
    found = head(bag).scores.detach().numpy()
    expected = np.zeros_like(found)
    for b, n in enumerate(LENGTHS):
        expected[b, :n] = scores_of(head, bag, b)
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("as_published", [False, True])
def test_a_video_stands_for_its_best_sub_bag_or_as_published_for_its_best_clips(as_published):
    head, bag = make(as_published=as_published, sparse=0.3).eval(), make_bag()
    best, mean, other = [], [], []
    for b, n in enumerate(LENGTHS):
        s = scores_of(head, bag, b)
        drawn = [[s[t] for t in places] for places in sampled(n, 4, 3)]
        sub_bags = max(np.mean(part) for part in drawn)
        clips = np.mean(sorted(np.concatenate(drawn))[::-1][:3])
        best.append(clips if as_published else sub_bags)
        other.append(sub_bags if as_published else clips)
        mean.append(np.mean(drawn))
    pairs = [(a, n) for a in range(5) if LABELS[a] for n in range(5) if not LABELS[n]]
    expected = {
        "rank": np.mean([max(0, 1 - best[a] + best[n]) for a, n in pairs]),
        "sparse": 0.3 * np.mean([mean[b] for b in range(5) if LABELS[b]]),
    }
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert abs(np.mean([max(0, 1 - other[a] + other[n]) for a, n in pairs]) - expected["rank"]) > 1e-3


def test_as_published_is_the_authors_loss_on_pairs_of_equal_number():
    """Summed over anomalous and normal videos and divided by B squared; 32 sub-bags of 7 clips, the 7 highest."""
    head = make(as_published=True, sub_bags=32, clips=7, topk=7).eval()
    bag = random_bag([300, 40, 64, 9], [1, 0, 1, 0], dtype=torch.float64)
    best, spare = {}, []
    for b, n in enumerate([300, 40, 64, 9]):
        s = np.array([generate(head, bag.x[b, 0, t].numpy()) for t in range(n)])
        drawn = s[np.array(sampled(n, 32, 7)).ravel()]
        best[b] = np.sort(drawn)[-7:].mean()
        spare += [drawn.mean()] if b in (0, 2) else []
    rank = sum(max(0, 1 - best[a] + best[n]) for a in (0, 2) for n in (1, 3)) / 2**2
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found == pytest.approx({"rank": rank, "sparse": 0.01 * np.mean(spare)}, abs=1e-12)


def test_sub_bags_move_together_in_training_by_less_than_their_distance():
    head = make(sub_bags=4, clips=3).train()
    lengths = [53, 14, 3, 2]
    mask = torch.arange(53) < torch.tensor(lengths)[:, None]
    torch.manual_seed(0)
    seen = {n: set() for n in lengths}
    for _ in range(200):
        for n, places in zip(lengths, head._drawn(mask).tolist(), strict=True):
            move = places[0][0]
            assert places == sampled(n, 4, 3, move), n
            seen[n].add(move)
    # randint((n - 3) // 5): 0 to 9, 0 to 1, and none
    assert seen == {53: set(range(10)), 14: {0, 1}, 3: {0}, 2: {0}}
    head.eval()
    assert all(head._drawn(mask)[b].tolist() == sampled(n, 4, 3) for b, n in enumerate(lengths))


@pytest.mark.parametrize(("dim", "parameters"), [(1024, 541_249), (4096, 2_114_113)])
def test_size_of_the_generator(dim, parameters):
    head = MISTHead(dim, width=1)
    assert sum(p.numel() for p in head.generator.parameters()) == parameters


def test_the_generator_starts_from_he_normal_kernels_and_no_bias():
    torch.manual_seed(0)
    head = MISTHead(1024, width=1)
    first, second = head.generator[0], head.generator[3]
    assert float(first.weight.detach().std()) == pytest.approx((2 / 1024) ** 0.5, rel=5e-3)
    assert float(first.weight.detach().abs().max()) > 4 * (2 / 1024) ** 0.5
    assert float(second.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert not first.bias.any()
    assert not second.bias.any()


# -- between the stages ------------------------------------------------------------------------------------------------


def smoothed(y, window):
    y = np.array([y[0]] * (window // 2) + list(y) + [y[-1]] * (window // 2))
    return np.array([y[i : i + window].mean() for i in range(len(y) - window + 1)])


@pytest.mark.parametrize("window", [5, 3])
def test_pseudo_labels_are_smoothed_twice_and_stretched(window):
    head, bag = make(smooth=window), make_bag()
    in_stage_two(head, bag)
    for b, n in enumerate(LENGTHS):
        s = smoothed(smoothed(scores_of(head, bag, b), window), window)
        expected = (s - s.min()) / (s.max() - s.min()) if n > 1 else s  # one clip keeps its score
        found = head.pseudo.read(torch.tensor([INDEX[b]]), n)[0].numpy()
        assert np.abs(found - expected * LABELS[b]).max() < 1e-10, b
    assert not head.pseudo.values[[1, 4]].any()  # no video has these numbers


def test_a_video_of_equal_scores_keeps_them():
    head, bag = make(), make_bag()
    torch.nn.init.zeros_(head.generator[5].weight)  # every score is sigmoid(0)
    in_stage_two(head, bag)
    assert head.pseudo.read(torch.tensor([0]), 14).tolist() == [[0.5] * 14]


@pytest.mark.parametrize(("share", "border"), [(0.5, 10), (0.29, 5), (0.01, 1), (1.0, 20)])
def test_the_encoders_stage_begins_once_after_the_first_share(share, border):
    head, bag = make(first_stage=share), make_bag()
    due = [step for step in range(20) if head.refresh_due(Progress(step, 20, 5))]
    assert due == list(range(border, 20))
    in_stage_two(head, bag)
    assert not any(head.refresh_due(Progress(step, 20, 5)) for step in range(20))


# -- stage two ---------------------------------------------------------------------------------------------------------


def test_scores_are_then_the_encoders():
    head, bag = make(), make_bag()
    before = head.eval()(bag).scores.detach().numpy()
    found = in_stage_two(head, bag)(bag).scores.detach().numpy()
    expected = np.zeros_like(found)
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            expected[b, t] = np.mean([encode(head, bag.x[b, k, t].numpy())[0][1] for k in range(3)])
    assert np.abs(found - expected).max() < 1e-12
    assert np.abs(found - before).max() > 1e-3


@pytest.mark.parametrize("as_published", [False, True])
def test_both_outputs_learn_the_pseudo_labels_with_weights_of_the_classes(as_published):
    head, bag = make(weights=(0.8, 0.65), as_published=as_published), make_bag()
    in_stage_two(head, bag)
    classes, guided = [], []
    for b, n in enumerate(LENGTHS):
        wanted = np.random.default_rng(b).random(n)
        head.pseudo.write(bag.index[b : b + 1], torch.from_numpy(wanted[None]))
        wanted = wanted * LABELS[b]  # a normal video's are 0 whatever is kept
        for k in range(3):
            both = [encode(head, bag.x[b, k, t].numpy()) for t in range(n)]
            for terms, p in ((classes, [c[1] for c, _ in both]), (guided, [g[1] for _, g in both])):
                each = -0.8 * wanted * np.log(np.array(p) + 1e-8) - 0.65 * (1 - wanted) * np.log(1 - np.array(p) + 1e-8)
                terms.append(each.mean())
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found == pytest.approx({"classes": np.mean(classes), "guided": np.mean(guided)}, abs=1e-10)


def test_a_probability_of_0_costs_a_finite_sum():
    head, bag = make().float(), make_bag()
    bag = Bag({"rgb": 1e4 * bag.x.float()}, bag.mask, bag.labels.float(), None, bag.index)
    head.stage.fill_(1)
    head.pseudo.write(bag.index, torch.ones(bag.mask.shape))
    terms = head.loss(head(bag), bag)
    assert all(0 < v.item() <= -np.log(1e-8) for v in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.encoder.parameters() if p.grad is not None)


def test_each_stage_trains_its_part_alone():
    head, bag = make(), make_bag()
    for part in ("generator", "encoder"):
        head.zero_grad(set_to_none=True)
        torch.stack(list(head.train().loss(head(bag), bag).values())).sum().backward()
        moved = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {n for n, _ in head.named_parameters() if n.startswith(part)}
        in_stage_two(head, bag)


def test_stage_two_changes_neither_with_padding_nor_with_the_order_of_the_batch():
    head, bag = make(), make_bag(pad=0)
    in_stage_two(head, bag)

    def losses(bag):
        return {name: term.item() for name, term in head.loss(head(bag), bag).items()}

    expected = losses(bag)
    assert losses(make_bag(pad=6)) == pytest.approx(expected, abs=1e-12)
    assert losses(take(bag, [4, 2, 0, 3, 1])) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"kept by bag\.index, and this bag has none"):
        losses(replace(bag, index=None))


def test_a_fresh_head_takes_the_state_of_a_trained_one():
    head, bag = make(), make_bag()
    in_stage_two(head, bag)
    fresh = make()
    fresh.load_state_dict(head.state_dict(), strict=True)
    assert torch.equal(fresh.pseudo.values, head.pseudo.values)
    assert torch.equal(fresh.eval()(bag).scores, head.eval()(bag).scores)
    assert not fresh.refresh_due(Progress(19, 20, 5))


# -- the authors' files, options, recipes ------------------------------------------------------------------------------


def test_the_authors_generator_scores_as_theirs():
    """Their module is one Sequential called `regressor`."""
    torch.manual_seed(5)
    sizes = {"0": (9, 6), "3": (5, 9), "5": (1, 5)}
    theirs = {f"regressor.{i}.weight": torch.randn(shape) for i, shape in sizes.items()}
    theirs |= {f"regressor.{i}.bias": torch.randn(shape[0]) for i, shape in sizes.items()}
    dims, options = MISTHead.infer({n: tuple(v.shape) for n, v in theirs.items()})
    assert (dims, options) == ({"rgb": 6}, {"hidden": (9, 5)})
    head = MISTHead(6, **options, width=4)
    take_in(head, head.published(), theirs)
    bag = random_bag([8], [1])
    w = {n.removeprefix("regressor."): v.numpy() for n, v in theirs.items()}
    x = bag.x[0, 0].numpy()
    expected = [sigmoid(linear(w, "5", linear(w, "3", np.maximum(linear(w, "0", v), 0)))[0]) for v in x]
    assert np.abs(head.eval()(bag).scores[0].detach().numpy() - expected).max() < 1e-6
    in_stage_two(head.double(), make_bag())
    back = give_back(head, head.published(), {})
    assert {n: v.float().tolist() for n, v in back.items()} == {n: v.tolist() for n, v in theirs.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [512]}, "two hidden widths"),
        ({"clips": 0}, "clips=0"),
        ({"smooth": 4}, "odd smooth.*smooth=4"),
        ({"first_stage": 0.0}, r"first_stage in \(0, 1\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MISTHead(4, **options)


def test_recipes_hold_what_the_authors_code_sets():
    """fjchange/MIST_VAD, stage1training/train_MIL_Generator.py and the options of stage two with I3D."""
    config, other = configs.load("mist_ucf"), configs.load("mist_sh")
    assert config.head.options == {
        "hidden": [512, 32],
        "width": 1024,
        "detectors": 8,
        "dropout": (0.6, 0.8),
        "sub_bags": 32,
        "clips": 7,
        "sparse": 0.01,
        "smooth": 5,
        "weights": (1.2, 0.8),
        "first_stage": 0.2722,
        "topk": 7,
        "as_published": True,
    }
    assert other.head.options == {**config.head.options, "weights": (0.8, 0.65), "first_stage": 0.833}
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adagrad", 0.01, 0.001)
    assert (config.train.pairs, config.train.clip_norm, config.data.scale) == (40, 10, "none")
    for each in (config, other):  # as many steps of the generator as in the code
        head = MISTHead(4, width=4, first_stage=each.head.options["first_stage"])
        steps = each.train.steps
        assert [head.refresh_due(Progress(s, steps, 1)) for s in (3000, 3001)] == [False, True]
