"""UR-DMU against loops in numpy, written from the authors' code (henrryzh1/UR-DMU) alone; nothing here calls mil.layers
or mil.losses."""

import math

import numpy as np
import pytest
import torch

from benchmarks.plain import urdmu as plain_urdmu
from mil import config as configs
from mil.heads.urdmu import URDMUHead
from mil.layers.distance_attention import near_mean
from mil.published import take_in
from tests.mil_helpers import random_bag, take

SMALL = {"hidden": 8, "heads": 2, "attention": 12, "ffn": 10, "slots": (33, 20), "classifier": 5}
LENGTHS, LABELS = [17, 5, 1, 6, 20], [0, 1, 0, 1, 1]


def state_of(head):
    """The authors' names -> float64 arrays."""
    own = head.state_dict()
    return {theirs: own[ours].double().numpy() for theirs, ours in head.published().names.items()}


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def layer_norm(x, state, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def slow_encoder(state, x, heads):
    """One video alone: (T, D) -> (T, H)."""
    kernel, bias = state["embedding.conv_1.0.weight"], state["embedding.conv_1.0.bias"]
    T = len(x)
    h = np.zeros((T, len(bias)))
    for t in range(T):
        for tap in range(3):
            if 0 <= t + tap - 1 < T:
                h[t] += kernel[:, :, tap] @ x[t + tap - 1]
        h[t] = np.maximum(h[t] + bias, 0)
    for layer in range(2):
        name = f"selfatt.layers.{layer}"
        parts = np.split(layer_norm(h, state, f"{name}.0.norm") @ state[f"{name}.0.fn.to_qkv.weight"].T, 4, axis=1)
        size = parts[0].shape[1] // heads
        out = []
        for head in range(heads):
            q, k, v, t = (p[:, head * size : (head + 1) * size] for p in parts)
            dots = np.exp(q @ k.T / math.sqrt(size))
            far = (dots / dots.sum(1, keepdims=True)) @ v
            weight = np.array([[math.exp(-abs(i - j) / math.e) for j in range(T)] for i in range(T)])
            near = (weight / weight.sum(0, keepdims=True)) @ t  # the columns sum to 1
            out += [far, near]
        h = h + linear(np.concatenate(out, axis=1), state, f"{name}.0.fn.to_out.0")
        wide = linear(layer_norm(h, state, f"{name}.1.norm"), state, f"{name}.1.fn.net.0")
        gelu = wide * np.vectorize(lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2))))(wide)
        h = h + linear(gelu, state, f"{name}.1.fn.net.3")
    return h


def slow_memory(state, name, h):
    slots = state[f"{name}.memory_block"]
    answers = sigmoid(h @ slots.T / math.sqrt(slots.shape[1]))
    best = np.sort(answers, axis=1)[:, ::-1][:, : len(slots) // 16 + 1]
    return best.mean(1), answers @ slots


def slow_sample(state, x, heads=2):
    """All that the authors' network computes of one crop of one video, without noise."""
    h = slow_encoder(state, x, heads)
    of_a, read_a = slow_memory(state, "Amemory", h)
    of_n, read_n = slow_memory(state, "Nmemory", h)
    mu_a, mu_n = (linear(r, state, "encoder_mu.0") for r in (read_a, read_n))
    hidden = np.maximum(linear(np.concatenate([h, mu_a + mu_n], axis=1), state, "cls_head.mlp.0"), 0)
    score = sigmoid(linear(hidden, state, "cls_head.mlp.2"))[:, 0]
    return {
        "x": h,
        "of_a": of_a,
        "of_n": of_n,
        "mu_a": mu_a,
        "mu_n": mu_n,
        "log_var": linear(read_n, state, "encoder_var.0"),
        "score": score,
    }


def samples_of(state, bag):
    """For every video, for every crop."""
    return [[slow_sample(state, bag.x[b, k, :n].numpy()) for k in range(bag.crops)] for b, n in enumerate(LENGTHS)]


def best_mean(values, by, largest=True):
    """Mean of `values` where `by` is among its L // 16 + 1 largest."""
    order = sorted(range(len(by)), key=lambda t: -by[t])
    return np.mean([values[t] for t in order[: len(by) // 16 + 1]], axis=0)


def slow_loss(samples, labels, *, paired):
    """samples in the order of the batch, crops side by side; the authors' formulas, one sample after another."""
    high = [s for s, y in zip(samples, labels, strict=True) if y == 1]
    low = [s for s, y in zip(samples, labels, strict=True) if y == 0]
    bce = lambda p, y: -math.log(p) if y else -math.log(1 - p)  # noqa: E731
    unit = lambda v: v / np.sqrt((v**2).sum())  # noqa: E731

    def triplet(n, a):
        anchor, positive, negative = (
            unit(best_mean(n["x"], n["of_n"])),
            unit(best_mean(a["x"], a["of_n"])),
            unit(best_mean(a["x"], a["of_a"])),
        )
        near, away = (np.sqrt(((anchor - v + 1e-6) ** 2).sum()) for v in (positive, negative))
        return max(0.0, near - away + 1)

    def distance(n, a):
        long, short = best_mean(a["mu_a"], a["of_a"]), best_mean(n["mu_n"], n["of_n"])
        return max(0.0, 100 - np.sqrt((long**2).sum()) + np.sqrt((short**2).sum()))

    pairs = list(zip(low, high, strict=False)) if paired else [(n, a) for n in low for a in high]
    kl = [
        -0.5
        * sum(1 + s["log_var"][t, d] - s["mu_n"][t, d] ** 2 - math.exp(s["log_var"][t, d]) for t in range(len(s["x"])))
        for s in low
        for d in range(s["x"].shape[1])
    ]
    return {
        "video": np.mean([bce(best_mean(s["score"], s["score"]), y) for s, y in zip(samples, labels, strict=True)]),
        "anomalous_as_anomalous": 0.1 * np.mean([bce(best_mean(s["of_a"], s["of_a"]), 1) for s in high]),
        "anomalous_as_normal": 0.1 * np.mean([bce(best_mean(1 - s["of_n"], 1 - s["of_n"]), 1) for s in high]),
        "normal_as_normal": 0.1 * np.mean([bce(p, 1) for s in low for p in s["of_n"]]),
        "normal_as_anomalous": 0.1 * np.mean([bce(p, 0) for s in low for p in s["of_a"]]),
        "triplet": 0.1 * np.mean([triplet(n, a) for n, a in pairs]),
        "kl": 0.001 * np.mean(kl),
        "distance": 0.0001 * np.mean([distance(n, a) for n, a in pairs]),
    }


def make(seed=0, **options):
    """Small, double, with weights large enough that every part moves the result."""
    torch.manual_seed(seed)
    head = URDMUHead(6, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return head


@pytest.fixture(scope="module")
def slow():
    head = make()
    bag = random_bag(LENGTHS, LABELS, crops={"rgb": 2}, dtype=torch.float64, pad=2)
    with torch.no_grad():
        return head, bag, samples_of(state_of(head), bag)


def test_scores_are_the_authors_of_each_crop_and_their_mean(slow):
    head, bag, samples = slow
    scores = head(bag).scores.detach().numpy()
    for b, n in enumerate(LENGTHS):
        expected = np.mean([s["score"] for s in samples[b]], axis=0)
        assert np.abs(scores[b, :n] - expected).max() < 1e-12
        assert (scores[b, n:] == 0).all()
        assert expected.min() > 1e-4  # nothing is compared where the sigmoid is flat
        assert expected.max() < 1 - 1e-4


@pytest.mark.parametrize("paired", [False, True])
def test_each_term_is_the_authors_with_each_crop_a_sample(slow, paired):
    """Default: all normal with all anomalous samples. As published: 4 normal against the first 4 of 6 anomalous."""
    head, bag, samples = slow
    head.as_published = paired
    found = {k: v.item() for k, v in head.loss(head(bag), bag).items()}
    flat, labels = [s for crops in samples for s in crops], [y for y in LABELS for _ in range(2)]
    assert found == pytest.approx(slow_loss(flat, labels, paired=paired), rel=1e-9, abs=1e-12)
    other = slow_loss(flat, labels, paired=not paired)
    assert abs(found["triplet"] - other["triplet"]) > 1e-4
    assert all(abs(v) > 1e-6 for v in found.values()), "a term that is 0 would be compared with nothing"


def test_pairs_of_equal_halves_are_what_all_pairs_hold_on_average():
    """Why the default may take all of them: the mean over every way to pair."""
    lengths, labels = [9, 4, 6, 7], [0, 1, 0, 1]
    bag = random_bag(lengths, labels, dtype=torch.float64)
    head = make(as_published=True)
    terms = [head.loss(head(b), b) for b in (bag, take(bag, [0, 3, 2, 1]))]
    all_pairs = make()
    expected = all_pairs.loss(all_pairs(bag), bag)
    for name, value in expected.items():
        assert (terms[0][name] + terms[1][name]).item() / 2 == pytest.approx(value.item(), rel=1e-9), name


def test_divergence_is_summed_over_time_and_so_grows_with_it():
    """The authors' dim=1; a mean over segments would not move."""
    head = make()
    head.mean.weight.data.zero_()
    head.log_variance.weight.data.zero_()  # the same Gaussian at every segment
    values = []
    for length in (4, 12):
        bag = random_bag([length, 3], [0, 1], dtype=torch.float64)
        values.append(head.loss(head(bag), bag)["kl"].item())
    assert values[1] == pytest.approx(3 * values[0], rel=1e-9)


def test_only_normal_videos_in_training_are_drawn():
    """z = mu + eps * sqrt(exp(log variance)) for them; anomalous videos, and all videos in evaluation, take mu."""
    head = make(dropout=0.0).train()
    head.log_variance.weight.data.zero_()
    head.log_variance.bias.data.fill_(math.log(4.0))  # deviation 2
    bag = random_bag([400, 400, 400, 400], [0, 1, 1, 0], dtype=torch.float64)
    torch.manual_seed(3)
    out, again = head(bag), head(bag)
    assert torch.equal(out.scores[1:3], again.scores[1:3])
    assert (out.scores[[0, 3]] != again.scores[[0, 3]]).all()
    noise = (out.aux["drawn"] - out.aux["normal"])[[0, 3]].detach()
    # 6400 draws: the deviation of the sample deviation is 0.9 %
    assert noise.std().item() == pytest.approx(2.0, rel=0.05)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.1)
    calm = head.eval()(bag)
    assert torch.equal(calm.aux["drawn"], calm.aux["normal"])
    assert torch.equal(calm.scores[1:3], out.scores[1:3])


def test_the_length_of_a_normal_video_is_that_of_what_was_drawn():
    """The authors gather z, not mu, for the distance term, and mu for the divergence."""
    head = make(dropout=0.0).train()
    bag = random_bag([5, 5], [0, 1], dtype=torch.float64)
    torch.manual_seed(1)
    out = head(bag)
    terms = head.loss(out, bag)
    row = int(out.aux["of_normal"][0].argmax())
    at = int(out.aux["of_anomalous"][1].argmax())
    drawn, long = out.aux["drawn"][0, row].norm(), out.aux["anomalous"][1, at].norm()
    assert abs(drawn - out.aux["normal"][0, row].norm()) > 1e-3
    assert terms["distance"].item() == pytest.approx(1e-4 * (100 - long + drawn).item(), rel=1e-9)


def test_labels_change_no_score_outside_training():
    bag = random_bag(LENGTHS, LABELS, dtype=torch.float64)
    turned = random_bag(LENGTHS, [1 - y for y in LABELS], dtype=torch.float64)
    head = make()
    assert torch.equal(head(bag).scores, head(turned).scores)


def test_distance_branch_sums_to_1_over_the_segments_that_there_are():
    """A vector of equal values keeps its sum, and what is padded is neither given nor counted."""
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    t = torch.randn(2, 7, 4, dtype=torch.float64)
    found = near_mean(t, mask)
    assert torch.allclose(found[0].sum(0), t[0].sum(0), atol=1e-12)
    assert torch.allclose(found[1, :3].sum(0), t[1, :3].sum(0), atol=1e-12)
    assert torch.allclose(found[1, :3], near_mean(t[1:, :3], mask[1:, :3])[0], atol=1e-12)
    # columns, not rows: the ends of a constant are not the middle
    ends = near_mean(torch.ones(1, 7, 1, dtype=torch.float64), mask[:1])[0, :, 0]
    assert ends[0] < 0.9 < 1.0 < ends[3]


def test_dropout_lies_after_the_attention_and_twice_in_the_feed_forward():
    """With everything dropped both branches of a layer give nothing: the embedding comes through as it is."""
    head = make(dropout=1.0).train()
    bag = random_bag([6, 6], [0, 1], dtype=torch.float64)
    embedded = head.encoder.embed(bag.x[:, 0].transpose(1, 2)).relu().transpose(1, 2)
    assert (head(bag).aux["x"] - embedded).abs().max() < 1e-14
    assert not torch.equal(head.eval()(bag).aux["x"], embedded)


def test_memories_begin_uniform_within_one_over_the_root_of_their_size():
    torch.manual_seed(0)
    head = URDMUHead(4)
    for memory in (head.anomalous, head.normal):
        slots = memory.slots.detach()
        assert slots.shape == (60, 512)
        assert slots.abs().max().item() == pytest.approx(512**-0.5, rel=1e-3)
        assert slots.abs().max().item() <= 512**-0.5
        assert slots.std().item() == pytest.approx(512**-0.5 / math.sqrt(3), rel=0.02)


def test_size_and_format_of_the_published_net():
    """34 tensors and 6,492,929 parameters at D = 1024, all used."""
    with torch.device("meta"):
        head = URDMUHead(1024)
    assert sum(p.numel() for p in head.parameters()) == 6_492_929
    form = head.published()
    assert len(form.names) == 34
    assert not form.unused
    own = {theirs: tuple(head.state_dict()[ours].shape) for theirs, ours in form.names.items()}
    assert own["selfatt.layers.1.0.fn.to_qkv.weight"] == (2048, 512)
    assert own["selfatt.layers.0.0.fn.to_out.0.weight"] == (512, 1024)
    assert own["embedding.conv_1.0.weight"] == (512, 1024, 3)
    assert own["cls_head.mlp.0.weight"] == (128, 1024)
    assert URDMUHead.infer(own) == (
        {"rgb": 1024},
        {"hidden": 512, "layers": 2, "attention": 512, "ffn": 512, "slots": (60, 60), "classifier": 128},
    )
    with pytest.raises(KeyError):
        URDMUHead.infer({n: s for n, s in own.items() if "memory" not in n})


def test_the_authors_names_reach_the_parts_they_name():
    """encoder_mu against encoder_var and one memory against the other have the same shapes: only a value tells."""
    head = make()
    form = head.published()
    theirs = {n: torch.randn(head.state_dict()[o].shape, dtype=torch.float64) * 0.4 for n, o in form.names.items()}
    take_in(head, form, theirs)
    bag = random_bag([7], [0], dtype=torch.float64)
    state = {n: v.numpy() for n, v in theirs.items()}
    expected = slow_sample(state, bag.x[0, 0].numpy())
    aux = head(bag).aux
    for ours, key in (("of_anomalous", "of_a"), ("of_normal", "of_n"), ("log_variance", "log_var"), ("normal", "mu_n")):
        assert np.abs(aux[ours][0].detach().numpy() - expected[key]).max() < 1e-10, ours
    assert np.abs(head(bag).scores[0].detach().numpy() - expected["score"]).max() < 1e-12


@pytest.mark.parametrize("slots", [(60,), (60, 0), (1, 2, 3)])
def test_impossible_slots_are_refused(slots):
    with pytest.raises(ValueError, match="two numbers of slots, anomalous and normal, got"):
        URDMUHead(4, slots=slots)


def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match="attention of size 512 cannot be shared among 3 heads"):
        URDMUHead(4, heads=3)


@pytest.mark.parametrize("recipe", ["urdmu_ucf", "urdmu_xd"])
def test_recipes_hold_what_the_authors_code_sets(recipe):
    """options.py, ucf_main.py and xd_main.py of henrryzh1/UR-DMU."""
    config = configs.load(recipe)
    assert config.head.name == "urdmu"
    assert config.head.options == {
        "hidden": 512,
        "layers": 2,
        "heads": 4,
        "attention": 512,
        "ffn": 512,
        "slots": [60, 60],
        "classifier": 128,
        "dropout": 0.5,
        "memory": 0.1,
        "triplet": 0.1,
        "kl": 0.001,
        "distance": 0.0001,
        "margin": 100.0,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 200, "none")
    train = config.train
    assert (train.steps, train.epochs, train.sampler, train.pairs, train.samples) == (3000, None, "passes", 64, "crops")
    assert (train.shuffle, train.lr_schedule, train.clip_norm) == (True, "constant", None)
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 1e-4, 5e-5)
    assert config.select.rule == "last"
    assert config.evaluate.smooth == 1


def test_motion_recipe_is_narrow_and_keeps_the_chain_of_motion_ranking():
    config, base = configs.load("motion_urdmu"), configs.load("motion_ranking")
    assert config.head.name == "urdmu"
    assert config.head.options["hidden"] == 64
    assert (config.data, config.evaluate) == (base.data, base.evaluate)
    assert config.train.steps <= 800


def test_scores_and_losses_are_those_of_the_plain_implementation(monkeypatch):
    """benchmarks/plain/urdmu.py, on our weights under the authors' names, nothing drawn."""
    torch.manual_seed(0)
    head = URDMUHead(6, hidden=8, heads=2, attention=8, ffn=8, slots=(20, 20), classifier=128, as_published=True).eval()
    model = plain_urdmu.Model(6, 8, 20, heads=2).eval()
    model.load_state_dict({a: head.state_dict()[b] for a, b in head.published().names.items()})
    bag = random_bag([20] * 6, [0, 0, 0, 1, 1, 1], crops={"rgb": 2})
    out = head(bag)
    for x, scores in zip(bag.x, out.scores, strict=True):
        assert (model.scores(x) - scores).abs().max() < 1e-6
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    expected = model.loss(bag.x[:3], bag.x[3:]).item()
    assert sum(head.loss(out, bag).values()).item() == pytest.approx(expected, rel=1e-5)
