"""HL-Net against plain loops in float64, written from the authors' code (Roc-Ng/XDVioDet) and the paper."""

import math

import numpy as np
import pytest
import torch

from benchmarks.plain import hlnet as plain_hlnet
from mil import config as configs
from mil.bags import Bag
from mil.heads.hlnet import HLNetHead
from mil.optim import Schedule, make_optimizer
from mil.published import give_back, take_in
from tests.mil_helpers import random_bag

SMALL = {"hidden": [10, 8], "graph": 6, "approximator": [7, 5]}
LENGTHS, LABELS, CROPS = [7, 20, 1, 4], [0, 1, 0, 1], 2


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def relu(z):
    return np.maximum(z, 0)


def softmax_rows(a):
    e = np.exp(a - a.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def conv5(x, weight, bias, before):
    """x (T, D) -> (T, out): sum over 5 taps, `before` of them ahead of each row, zeros outside."""
    out = np.tile(bias, (len(x), 1))
    for t in range(len(x)):
        for tap in range(5):
            if 0 <= t + tap - before < len(x):
                out[t] += weight[:, :, tap] @ x[t + tap - before]
    return out


def slow(state, x, length):
    """The authors' forward of one crop of one video, (T, D) -> offline and online logits (T,).

    Rows from `length` on are padding: the two softmax graphs end there, everything else in their code does not.
    """
    w = {k: v.double().numpy() for k, v in state.items()}
    T = len(x)
    h = x
    for name in ("conv1d1", "conv1d2"):
        h = relu(h @ w[f"{name}.weight"][:, :, 0].T + w[f"{name}.bias"])
    z = h
    for name in ("approximator.0", "approximator.2"):
        z = relu(z @ w[f"{name}.weight"][:, :, 0].T + w[f"{name}.bias"])
    online = conv5(z, w["conv1d_approximator.weight"], w["conv1d_approximator.bias"], 4)[:, 0]

    alike, scored, near = np.zeros((3, T, T))
    cosine, close = np.zeros((2, length, length))
    for i in range(T):
        for j in range(T):
            near[i, j] = math.exp(-abs(i - j) / math.e)
            if max(i, j) < length:
                c = x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))
                cosine[i, j] = c if c > 0.7 else 0
                gap = 1 - abs(sigmoid(online[i]) - sigmoid(online[j]))
                close[i, j] = 1 / (1 + math.exp(-(gap - 0.5) / 0.1))
    alike[:length, :length], scored[:length, :length] = softmax_rows(cosine), softmax_rows(close)
    parts = []
    for n, graph in ((1, alike), (3, near), (5, scored)):
        rest = conv5(h, w[f"gc{n}.residual.weight"], w[f"gc{n}.residual.bias"], 2)
        part = relu(graph @ h @ w[f"gc{n}.weight"] + rest)
        parts.append(relu(graph @ part @ w[f"gc{n + 1}.weight"] + part))
    offline = np.concatenate(parts, axis=1) @ w["classifier.weight"][0] + w["classifier.bias"][0]
    return offline, online


def theirs(head):
    """The head's numbers under the authors' names."""
    own = head.state_dict()
    return {a: own[b] for a, b in head.published().names.items()}


def slow_logits(head, bag):
    """Both logits of every crop, {name: (B, K, T)}; each video cut to its length, or as published, padded."""
    x, out = bag.x.numpy(), {n: np.zeros(bag.x.shape[:3]) for n in ("offline", "online")}
    for b, length in enumerate(bag.mask.sum(1).tolist()):
        rows = x.shape[2] if head.as_published else length
        for k in range(x.shape[1]):
            found = slow(theirs(head), x[b, k, :rows], length)
            for name, logits in zip(out, found, strict=True):
                out[name][b, k, :length] = logits[:length]
    return out


def similar_bag(**more):
    """Rows that resemble each other, so that cosines lie on both sides of the threshold."""
    bag = random_bag(LENGTHS, LABELS, crops={"rgb": CROPS}, dtype=torch.float64, **more)
    shift = torch.tensor([2.0, -1.0, 1.0, 0.5, 0.0, -0.5], dtype=torch.float64)
    return Bag({"rgb": (bag.x + shift) * bag.mask[:, None, :, None]}, bag.mask, bag.labels)


def head_of(**options):
    torch.manual_seed(0)
    return HLNetHead(6, **{**SMALL, **options}).double().eval()


@pytest.mark.parametrize("as_published", [False, True])
def test_logits_and_scores_are_those_of_the_loops(as_published):
    bag = similar_bag()
    valid = bag.mask[:, None].expand(-1, CROPS, -1).numpy()
    for score in ("offline", "online"):
        head = head_of(score=score, as_published=as_published)
        out, expected = head(bag), slow_logits(head, bag)
        for name, logits in expected.items():
            assert np.abs(out.aux[name].detach().numpy() - logits)[valid].max() < 1e-12, name
        scores = sigmoid(expected[score]).mean(1) * bag.mask.numpy()
        assert np.abs(out.scores.detach().numpy() - scores).max() < 1e-12


def test_the_bag_of_these_tests_has_cosines_on_both_sides_of_the_threshold():
    x = similar_bag().x[1, 0]
    cosine = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(x, dim=-1).T
    share = float((cosine > 0.7).double().mean())
    assert 0.2 < share < 0.8


def test_only_as_published_takes_from_the_padding():
    """Of videos of several lengths; one alone, unpadded, has the same scores with both settings."""
    bag, published, ours = similar_bag(), head_of(as_published=True), head_of()
    gap = (published(bag).scores - ours(bag).scores).abs().amax(dim=1)
    assert gap[1] < 1e-12  # the longest has no padding
    assert (gap[[0, 2, 3]] > 1e-4).all()
    alone = Bag({"rgb": bag.x[:1, :, :7]}, bag.mask[:1, :7], bag.labels[:1])
    assert (published(alone).scores - ours(alone).scores).abs().max() < 1e-12
    assert (ours(alone).scores[0] - ours(bag).scores[0, :7]).abs().max() < 1e-12


def slow_loss(logits, lengths, labels):
    """The authors' two CLAS terms and 5 x CENTROPY over all crops as samples."""
    found = {"offline": [], "online": [], "distill": []}
    for b, length in enumerate(lengths):
        for k in range(CROPS):
            off, on = logits["offline"][b, k, :length], logits["online"][b, k, :length]
            for name, z in (("offline", off), ("online", on)):
                p = sigmoid(np.mean(sorted(z)[::-1][: length // 16 + 1]))
                found[name].append(-math.log(p) if labels[b] == 1 else -math.log(1 - p))
            found["distill"].append(
                5 * np.mean([-sigmoid(a) * math.log(sigmoid(c)) for a, c in zip(off, on, strict=True)])
            )
    return {name: np.mean(values) for name, values in found.items()}


@pytest.mark.parametrize("as_published", [False, True])
def test_losses_are_those_of_the_loops(as_published):
    """20 segments: k = 2; the others: k = 1. Means over crops and videos, not over segments."""
    head, bag = head_of(as_published=as_published), similar_bag()
    terms = head.loss(head(bag), bag)
    expected = slow_loss(slow_logits(head, bag), LENGTHS, LABELS)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, abs=1e-11)


def test_distillation_has_one_side_and_a_weight():
    """-p log q alone: where the offline score is 0, it says nothing, however high the online score."""
    head, bag = head_of(distill=3.0), random_bag([2], [1], dtype=torch.float64)

    def term(offline, online):
        logits = {"offline": torch.tensor(offline).double(), "online": torch.tensor(online).double()}
        out = head(bag)
        return head.loss(type(out)(out.scores, {n: z.reshape(1, 1, 2) for n, z in logits.items()}), bag)["distill"]

    assert float(term([-40.0, -40.0], [30.0, 5.0])) < 1e-15
    assert float(term([0.0, 0.0], [0.0, 0.0])) == pytest.approx(3 * 0.5 * math.log(2), abs=1e-12)


def test_a_certain_online_branch_has_a_finite_loss():
    """log(sigmoid(-200)) is log(0) in float32, as the authors' code computes it; its value is -200."""
    head, bag = head_of().float(), random_bag([1], [1])
    out = head(bag)
    logits = {"offline": torch.full((1, 1, 1), 200.0), "online": torch.full((1, 1, 1), -200.0)}
    terms = head.loss(type(out)(out.scores, logits), bag)
    assert float(terms["distill"]) == pytest.approx(5 * 200)
    assert all(torch.isfinite(v) for v in terms.values())


def gradients(head, bag, *names):
    head.zero_grad(set_to_none=True)
    terms = head.loss(head(bag), bag)
    torch.stack([terms[n] for n in names]).sum().backward()
    return {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}


def test_nothing_flows_back_through_the_third_graph_or_the_distillation_target():
    head, bag = head_of(), similar_bag()
    assert not [n for n in gradients(head, bag, "offline") if n.startswith("approximator")]
    online = gradients(head, bag, "online", "distill")
    assert not [n for n in online if n.startswith(("alike", "near", "scored", "classifier"))]
    assert {"approximator.conv3.weight", "shared1.weight"} <= online


def test_online_scores_see_the_past_alone():
    """A segment and four before it, whatever comes after: what makes them scores of a running video."""
    head, bag = head_of(score="online"), random_bag([20], [1], dtype=torch.float64)
    before = head(bag).scores[0]
    moved = bag.x.clone()
    moved[0, 0, 10] += 1
    after = head(Bag({"rgb": moved}, bag.mask, bag.labels)).scores[0]
    assert ((after - before).abs() > 1e-12).nonzero().flatten().tolist() == [10, 11, 12, 13, 14]


def test_labels_are_repeated_for_every_crop_and_not_shuffled_among_them():
    """Crops of one video are neighbours: a certain head with the right labels has almost no loss."""
    head, bag = head_of(), similar_bag()
    sure = torch.where(bag.labels == 1, 30.0, -30.0)[:, None, None].expand(-1, CROPS, 20)
    out = head(bag)
    terms = head.loss(type(out)(out.scores, {"offline": sure, "online": sure}), bag)
    assert max(float(terms["offline"]), float(terms["online"])) < 1e-12


def test_dropout_follows_both_shared_layers_and_every_graph_convolution():
    head, calls = head_of(), []
    head.train().drop.register_forward_hook(lambda module, args, out: calls.append(out.shape[-1]))
    head(similar_bag())
    assert calls == [10, 8, *[6] * 6]
    assert head.drop.p == 0.6


def published_shapes():
    """The 31 tensors of ckpt/wsanodet_mix2.pkl."""
    shapes = {
        "conv1d1.weight": (512, 1152, 1),
        "conv1d1.bias": (512,),
        "conv1d2.weight": (128, 512, 1),
        "conv1d2.bias": (128,),
        "conv1d3.weight": (32, 128, 5),
        "conv1d3.bias": (32,),
        "conv1d4.weight": (32, 32, 5),
        "conv1d4.bias": (32,),
        "simAdj.weight0": (1152, 32),
        "simAdj.weight1": (1152, 32),
        "disAdj.sigma": (1,),
        "classifier.weight": (1, 96),
        "classifier.bias": (1,),
        "approximator.0.weight": (64, 128, 1),
        "approximator.0.bias": (64,),
        "approximator.2.weight": (32, 64, 1),
        "approximator.2.bias": (32,),
        "conv1d_approximator.weight": (1, 32, 5),
        "conv1d_approximator.bias": (1,),
    }
    for n in (1, 3, 5):
        shapes |= {f"gc{n}.weight": (128, 32), f"gc{n}.residual.weight": (32, 128, 5), f"gc{n}.residual.bias": (32,)}
        shapes |= {f"gc{n + 1}.weight": (32, 32)}
    return shapes


def test_the_published_checkpoint_fits_to_the_last_tensor():
    shapes = published_shapes()
    assert len(shapes) == 31
    assert sum(math.prod(s) for s in shapes.values()) == 842_883
    dims, options = HLNetHead.infer(shapes)
    assert dims == {"rgb": 1024, "audio": 128}
    with torch.device("meta"):
        head = HLNetHead(*HLNetHead.sizes(dims), **options)
        bare = HLNetHead(1152)
    assert sum(p.numel() for p in head.parameters()) == 743_490
    assert {n: p.shape for n, p in head.named_parameters()} == {n: p.shape for n, p in bare.named_parameters()}
    form = head.published()
    own = {n: tuple(v.shape) for n, v in head.state_dict().items()}
    assert {a: own[b] for a, b in form.names.items()} | dict(form.unused) == shapes


def test_a_file_of_the_authors_scores_as_their_code():
    """Random numbers under their names, unused ones included; each name must land where their code uses it."""
    head = head_of()
    generator = torch.Generator().manual_seed(4)
    shapes = {a: v.shape for a, v in theirs(head).items()} | dict(head.published().unused)
    state = {n: torch.randn(s, generator=generator, dtype=torch.float64) / 3 for n, s in shapes.items()}
    take_in(head, head.published(), state)
    x = similar_bag().x[1, 0].numpy()
    bag = Bag({"rgb": torch.from_numpy(x)[None, None]}, torch.ones(1, 20, dtype=torch.bool), torch.ones(1))
    for name, logits in zip(("offline", "online"), slow(state, x, 20), strict=True):
        assert np.abs(head(bag).aux[name].detach().numpy()[0, 0] - logits).max() < 1e-10


@pytest.mark.parametrize(
    ("dim", "dims"), [(1024, {"rgb": 1024}), (1152, {"rgb": 1024, "audio": 128}), (96, {"rgb": 96})]
)
def test_features_are_split_only_where_the_size_says_how(dim, dims):
    assert HLNetHead.infer(published_shapes() | {"conv1d1.weight": (512, dim, 1)})[0] == dims


def test_another_heads_file_is_not_taken_for_hlnet():
    with pytest.raises(KeyError):
        HLNetHead.infer({"fc1.weight": (512, 1024)})


def test_kernels_are_xavier_uniform_and_biases_as_torch_draws_them():
    torch.manual_seed(0)
    head = HLNetHead(1152)
    for weight, fan_in, fan_out in (
        (head.shared1.weight, 1152, 512),
        (head.near[0].weight, 128, 32),
        (head.scored[0].residual.weight, 128 * 5, 32 * 5),
    ):
        weight, bound = weight.detach(), math.sqrt(6 / (fan_in + fan_out))
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert 0 < float(head.shared1.bias.detach().abs().max()) <= 1 / math.sqrt(1152)


@pytest.mark.parametrize("options", [{"hidden": [512]}, {"approximator": [64, 32, 1]}, {"graph": 0}])
def test_impossible_widths_are_refused(options):
    with pytest.raises(
        ValueError, match=r"two hidden widths, two of the approximator and one of the graphs, got hidden="
    ):
        HLNetHead(4, **options)


def test_recipe_holds_what_the_authors_code_sets():
    config = configs.load("hlnet_xd")
    assert config.head.options == {
        "hidden": [512, 128],
        "graph": 32,
        "approximator": [64, 32],
        "dropout": 0.6,
        "distill": 5.0,
        "threshold": 0.7,
        "score": "offline",
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("pick", 200, "none")
    train = config.train
    assert (train.epochs, train.sampler, train.batch, train.samples) == (50, "mixed", 128, "crops")
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 1e-4, 0)


def test_the_approximator_learns_at_half_the_rate_which_drops_after_nine_epochs():
    config = configs.load("hlnet_xd")
    head = HLNetHead(6, **SMALL)
    optimizer = make_optimizer(config.train.optimizer, head)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in head.named_parameters():
        assert rates[id(p)] == (5e-5 if name.startswith("approximator") else 1e-4), name
    schedule = Schedule(config.train, per_epoch=155)
    assert schedule.steps == 50 * 155
    assert [schedule.factor(step) for step in (1, 9 * 155, 9 * 155 + 1, 50 * 155)] == pytest.approx([1, 1, 0.1, 0.1])


def test_scores_and_losses_are_those_of_the_plain_implementation():
    """benchmarks/plain/hlnet.py, on our weights under the authors' names, padded as their code pads."""
    torch.manual_seed(0)
    head = HLNetHead(6, as_published=True).eval()
    model = plain_hlnet.Model(6).eval()
    model.load_state_dict(give_back(head, head.published(), {}))
    bag = similar_bag()
    bag = Bag({"rgb": bag.x.float()}, bag.mask, bag.labels.float())
    out = head(bag)
    for x, scores, length in zip(bag.x, out.scores, LENGTHS, strict=True):
        if length == 20:  # the others' scores depend on their padding
            assert (model.scores(x) - scores).abs().max() < 1e-6
    terms = head.loss(out, bag)
    offline, online = model(bag.x.flatten(0, 1), [n for n in LENGTHS for _ in range(CROPS)])
    valid = bag.mask.repeat_interleave(CROPS, dim=0)
    for found, logits in ((out.aux["offline"], offline), (out.aux["online"], online)):
        assert (found.flatten(0, 1) - logits).abs()[valid].max() < 1e-5
    full = Bag({"rgb": bag.x[1:2, :, :, :]}, bag.mask[1:2], bag.labels[1:2])
    expected = model.loss(full.x, full.labels).item()
    assert sum(head.loss(head(full), full).values()).item() == pytest.approx(expected, rel=1e-5)
    assert terms.keys() == {"offline", "online", "distill"}
