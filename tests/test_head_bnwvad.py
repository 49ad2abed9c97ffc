"""BN-WVAD against loops in numpy, written from the authors' code (cool-xuan/BN-WVAD) alone; nothing here calls
mil.layers or mil.losses. Its encoder is UR-DMU's and is written out there."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads import HeadOutput
from mil.heads.bnwvad import BNWVADHead, mean_hinge
from mil.published import take_in
from tests.mil_helpers import random_bag, take
from tests.test_head_urdmu import sigmoid, slow_encoder, state_of

SMALL = {"hidden": 8, "heads": 2, "attention": 12, "ffn": 10, "narrow": (5, 3)}
LENGTHS, LABELS = [17, 5, 1, 6, 20], [0, 1, 0, 1, 1]


def make(seed=0, **options):
    """Small, double, with statistics of their own, and weights large enough that every part moves the result."""
    torch.manual_seed(seed)
    head = BNWVADHead(6, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for bn in (head.bn1, head.bn2):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
    return head


def kernel(state, name, x):
    return x @ state[f"normal_head.{name}.weight"][:, :, 0].T + state[f"normal_head.{name}.bias"]


def slow_tail(state, encoded, *, training):
    """All samples' (L, H) -> [{"s", "far": (2, L)}], and the statistics as they are afterwards."""
    stats, far = {}, []
    sizes = np.cumsum([len(e) for e in encoded])[:-1]
    x = np.concatenate(encoded)
    for i in (1, 2):
        x = kernel(state, f"conv{i}", x)
        before = x
        mean, var = (state[f"normal_head.bn{i}.running_{s}"] for s in ("mean", "var"))
        own_mean, own_var = mean, var
        if training:
            own_mean, own_var = x.mean(0), x.var(0)
            mean = 0.9 * mean + 0.1 * own_mean
            var = 0.9 * var + 0.1 * x.var(0, ddof=1)
        stats[i] = mean, var
        far.append([math.sqrt(sum((row[c] - mean[c]) ** 2 / var[c] for c in range(len(mean)))) for row in before])
        x = (x - own_mean) / np.sqrt(own_var + 1e-5)
        x = np.maximum(x * state[f"normal_head.bn{i}.weight"] + state[f"normal_head.bn{i}.bias"], 0)
    s = sigmoid(kernel(state, "conv3", x))[:, 0]
    pieces = zip(np.split(s, sizes), *(np.split(np.array(f), sizes) for f in far), strict=True)
    return [{"s": a, "far": (b, c)} for a, b, c in pieces], stats


def slow_samples(head, bag, *, training=False):
    """One after another: the videos, of each its crops; no padding."""
    state = state_of(head)
    encoded = [
        slow_encoder(state, bag.x[b, k, :n].numpy(), 2)
        for b, n in enumerate(bag.mask.sum(1).tolist())
        for k in range(bag.crops)
    ]
    return slow_tail(state, encoded, training=training)


def slow_triplet(low, high, *, paired):
    """Lists of divergences, one array for each sample -> the triplet loss of one layer."""
    chosen = set()
    for i, far in enumerate(high):
        chosen |= {(i, t) for t in sorted(range(len(far)), key=lambda t: -far[t])[: int(len(far) * 0.2)]}
    every = [(far[t], i, t) for i, far in enumerate(high) for t in range(len(far))]
    chosen |= {(i, t) for _, i, t in sorted(every, reverse=True)[: int(len(every) * 0.4)]}
    negative = [high[i][t] for i, t in sorted(chosen)]
    positive = []
    for rank in range(max(map(len, low))):
        row = [sorted(far, reverse=True)[rank] for far in low if len(far) > rank]
        positive += row if paired else sorted(row, reverse=True)
    positive = positive[: len(negative)]
    if paired:
        return np.mean([max(0, 1 + p - n) for p, n in zip(positive, negative, strict=False)])
    return np.mean([max(0, 1 + p - n) for p in positive for n in negative])


def slow_loss(samples, labels, *, paired=False):
    low = [s for s, y in zip(samples, labels, strict=True) if y == 0]
    high = [s for s, y in zip(samples, labels, strict=True) if y == 1]
    far = [([s["far"][i] for s in low], [s["far"][i] for s in high]) for i in (0, 1)]
    return {
        "normal": np.mean([math.sqrt((s["s"] ** 2).sum()) for s in low]),
        "triplet1": 5 * slow_triplet(*far[0], paired=paired),
        "triplet2": 20 * slow_triplet(*far[1], paired=paired),
    }


def bag_of(lengths=LENGTHS, labels=LABELS, crops=2, **more):
    return random_bag(lengths, labels, crops={"rgb": crops}, dtype=torch.float64, **more)


def test_scores_are_distances_times_sigmoid_of_each_crop_and_their_mean():
    head, bag = make(), bag_of(pad=2)
    scores = head(bag).scores.detach().numpy()
    samples, _ = slow_samples(head, bag)
    for b, n in enumerate(LENGTHS):
        expected = np.mean([sum(s["far"]) * s["s"] for s in samples[2 * b : 2 * b + 2]], axis=0)
        assert np.abs(scores[b, :n] - expected).max() < 1e-11
        assert (scores[b, n:] == 0).all()
    assert scores.max() > 1.5, "a score is no probability"


def test_in_training_the_distance_is_to_statistics_that_this_pass_has_updated_and_padding_is_no_part_of_them():
    head, bag = make().train(), bag_of(pad=3)
    samples, stats = slow_samples(head, bag, training=True)
    with torch.no_grad():
        out = head(bag)
    for i, bn in ((1, head.bn1), (2, head.bn2)):
        assert np.abs(bn.running_mean.numpy() - stats[i][0]).max() < 1e-12
        assert np.abs(bn.running_var.numpy() - stats[i][1]).max() < 1e-12
        assert int(bn.num_batches_tracked) == 1
    for row, sample in enumerate(samples):
        n = len(sample["s"])
        for name, expected in (
            ("chance", sample["s"]),
            ("divergence1", sample["far"][0]),
            ("divergence2", sample["far"][1]),
        ):
            assert np.abs(out.aux[name][row, :n].numpy() - expected).max() < 1e-11, name
            assert (out.aux[name][row, n:] == 0).all()


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_each_term_is_the_authors_with_each_crop_a_sample(paired, training):
    bag, labels = bag_of(pad=2), [y for y in LABELS for _ in range(2)]
    head = make(as_published=paired).train(training)
    samples, _ = slow_samples(head, bag, training=training)
    found = {k: v.item() for k, v in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(slow_loss(samples, labels, paired=paired), rel=1e-9)
    other = slow_loss(samples, labels, paired=not paired)
    assert all(abs(found[k] - other[k]) > 1e-4 for k in ("triplet1", "triplet2"))


def test_halves_of_equal_lengths_are_selected_as_in_the_authors_code():
    """Their counts, written as they count: int(T r), int(B T r), k = int(n / B) + 1 ranks of every normal video."""
    B, T = 3, 23
    bag = bag_of([T] * 2 * B, [0] * B + [1] * B, crops=1)
    far = np.random.default_rng(0).random((2 * B, T))
    far[B] += 2  # this video fills most of the batch's share, so that the others' own shares matter
    aux = {name: torch.from_numpy(far) for name in ("divergence1", "divergence2", "chance")}
    found = make(as_published=True).loss(HeadOutput(bag.labels, aux), bag)["triplet1"].item()
    low, high = far[:B], far[B:]
    keep = np.zeros(B * T, bool)
    keep[np.argsort(-high.ravel())[: int(B * T * 0.4)]] = True
    for i in range(B):
        keep[i * T + np.argsort(-high[i])[: int(T * 0.2)]] = True
    n = keep.sum()
    assert n > int(B * T * 0.4), "a video of its own must add to the batch's"
    ranks = -np.sort(-low, axis=1)[:, : int(n / B) + 1]
    positive = ranks.T.ravel()[:n]
    assert n % B, "the last rank must be cut"
    assert found == pytest.approx(5 * np.maximum(1 + positive - high.ravel()[keep], 0).mean(), rel=1e-12)


def test_no_term_sees_the_sigmoid_of_an_anomalous_video():
    head = make().train()
    bag = bag_of()
    out = head(bag)
    out.aux["chance"].retain_grad()
    torch.stack(list(head.loss(out, bag).values())).sum().backward()
    rows = out.aux["chance"].grad.abs().amax(1)
    labels = bag.labels.repeat_interleave(2)
    assert (rows[labels == 1] == 0).all()
    assert (rows[labels == 0] > 0).all()


def test_the_last_normal_segments_are_the_farthest_by_default_and_the_first_videos_as_published():
    far = torch.tensor([[5.0, 1.0, 0.0], [6.0, 3.0, 0.0], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    for as_published, expected in ((False, [6, 5, 4, 3, 1, 0]), (True, [5, 6, 4, 1, 3, 0])):
        values, there = make(as_published=as_published)._farthest(far, mask)
        assert values[there].tolist() == expected


def test_videos_too_short_for_a_share_of_their_own_still_give_one_segment():
    """int(1 * 0.2) and int(2 * 0.4) are 0; a mean over nothing would be no number."""
    head, bag = make(), bag_of([1, 1, 1, 1], [0, 1, 0, 1], crops=1)
    terms = head.loss(head(bag), bag)
    assert all(torch.isfinite(v) for v in terms.values())
    far = head(bag).aux["divergence1"].detach().numpy()[:, 0]
    expected = max(0, 1 + max(far[0], far[2]) - max(far[1], far[3]))
    assert terms["triplet1"].item() == pytest.approx(5 * expected, rel=1e-12)


def test_a_feature_that_never_varies_has_no_distance_unless_eps_is_given():
    """The authors divide by the running variance alone."""
    bag = bag_of([4], [0], crops=1)
    for eps, finite in ((0.0, False), (1e-5, True)):
        head = make(eps=eps)
        head.bn1.running_var[0] = 0
        assert bool(torch.isfinite(head(bag).scores).all()) is finite
    scores = [make(eps=eps)(bag).scores for eps in (0.0, 0.5)]
    assert (scores[1] < scores[0]).all()


def test_padding_beside_the_first_mean_of_0_leaves_gradients_finite():
    """There the root is taken of 0, whose slope is infinite."""
    torch.manual_seed(0)
    head = BNWVADHead(6, **SMALL).double().eval()
    bag = bag_of(pad=2)
    torch.stack(list(head.loss(head(bag), bag).values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_the_order_of_the_batch_moves_only_the_published_loss():
    """In training mode, where the contract does not look."""
    bag = bag_of()
    for paired in (False, True):
        found = []
        for order in ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1]):
            moved = take(bag, order)
            head = make(as_published=paired).train()
            found.append(head.loss(head(moved), moved)["triplet2"].item())
        assert (abs(found[0] - found[1]) < 1e-9) is not paired


def test_mean_hinge_is_that_of_all_pairs_with_its_gradient():
    torch.manual_seed(0)
    high = (3 * torch.rand(60, dtype=torch.float64)).requires_grad_()
    low = (3 * torch.rand(33, dtype=torch.float64)).requires_grad_()
    of_high, of_low = torch.arange(60) % 3 > 0, torch.arange(33) % 4 > 0  # 40 and 24 of them
    found = mean_hinge(high, low, of_high, of_low, 0.7)
    pairs = [(a, b) for a in high[of_high].tolist() for b in low[of_low].tolist()]
    assert found.item() == pytest.approx(sum(max(0.0, 0.7 - a + b) for a, b in pairs) / (40 * 24), rel=1e-12)
    found.backward()
    below = (0.7 - high[:, None] + low > 0).double().detach() * of_high[:, None] * of_low
    assert torch.allclose(high.grad, -below.sum(1) / (40 * 24))
    assert torch.allclose(low.grad, below.sum(0) / (40 * 24))
    assert mean_hinge(low + 10, low, of_low, of_low, 0.7).item() == pytest.approx(0, abs=1e-15)


def test_nothing_is_dropped_by_default():
    head, bag = make().train(), bag_of()
    assert torch.equal(head(bag).scores, make().train()(bag).scores)
    assert not torch.equal(make(dropout=0.5).train()(bag).scores, head.eval()(bag).scores)


def test_size_and_format_of_the_published_net():
    """40 tensors and 5,791,905 parameters at D = 1024, all used."""
    with torch.device("meta"):
        head = BNWVADHead(1024)
    assert sum(p.numel() for p in head.parameters()) == 5_791_905
    form = head.published()
    assert len(form.names) == 40
    assert not form.unused
    own = {theirs: tuple(head.state_dict()[ours].shape) for theirs, ours in form.names.items()}
    assert own["normal_head.conv1.weight"] == (32, 512, 1)
    assert own["normal_head.conv2.weight"] == (16, 32, 1)
    assert own["normal_head.conv3.weight"] == (1, 16, 1)
    assert own["normal_head.bn2.num_batches_tracked"] == ()
    assert BNWVADHead.infer(own) == (
        {"rgb": 1024},
        {"hidden": 512, "layers": 2, "attention": 512, "ffn": 512, "narrow": (32, 16)},
    )
    with pytest.raises(KeyError):
        BNWVADHead.infer({n: s for n, s in own.items() if "normal_head" not in n})


def test_the_authors_tensors_reach_the_parts_they_name_with_or_without_counters():
    head = make()
    form = head.published()
    theirs = {n: torch.rand(head.state_dict()[o].shape, dtype=torch.float64) for n, o in form.names.items()}
    theirs = {n: v for n, v in theirs.items() if not n.endswith("num_batches_tracked")}
    take_in(head, form, theirs)
    bag = bag_of([7], [0], crops=1)
    state = {n: v.numpy() for n, v in theirs.items()}
    (sample,), _ = slow_tail(state, [slow_encoder(state, bag.x[0, 0].numpy(), 2)], training=False)
    expected = sum(sample["far"]) * sample["s"]
    assert np.abs(head(bag).scores[0].detach().numpy() / expected - 1).max() < 1e-10


@pytest.mark.parametrize("options", [{"narrow": (3,)}, {"triplet": (5.0, 20.0, 1.0)}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"two BatchNorms, got narrow=.*triplet="):
        BNWVADHead(4, **options)


@pytest.mark.parametrize("recipe", ["bnwvad_xd", "bnwvad_ucf"])
def test_recipes_hold_what_the_authors_code_sets(recipe):
    """options.py, main.py and train.py of cool-xuan/BN-WVAD, for XD-Violence; nothing was released for UCF-Crime."""
    config = configs.load(recipe)
    assert config.head.name == "bnwvad"
    assert config.head.options == {
        "hidden": 512,
        "layers": 2,
        "heads": 4,
        "attention": 512,
        "ffn": 512,
        "narrow": [32, 16],
        "dropout": 0.0,
        "video_ratio": 0.2,
        "batch_ratio": 0.4,
        "triplet": [5.0, 20.0],
        "eps": 0.0,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 200, "none")
    train = config.train
    assert (train.steps, train.epochs, train.sampler, train.pairs, train.samples) == (1000, None, "passes", 64, "crops")
    assert (train.shuffle, train.lr_schedule, train.clip_norm) == (True, "constant", 1.0)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 1e-4, 5e-5)
    assert config.select.rule == "last"
    assert config.evaluate.smooth == 1


def test_motion_recipe_is_narrow_and_keeps_the_chain_of_motion_ranking():
    config, base = configs.load("motion_bnwvad"), configs.load("motion_ranking")
    assert config.head.name == "bnwvad"
    assert config.head.options["hidden"] == 64
    assert (config.data, config.evaluate) == (base.data, base.evaluate)
    assert config.train.steps <= 800
