"""The plain transformer against loops in numpy: layer norms, heads, softmax, GELU and positions written out."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.bags import Bag
from mil.heads.transformer import TransformerHead
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 4, 1, 18], [0, 1, 0, 1]


def norm(w, name, x):
    return w[f"{name}.weight"] * (x - x.mean()) / math.sqrt(x.var() + 1e-5) + w[f"{name}.bias"]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def logits_of(head, x, *, heads, layers, positions):
    """Segments x (T, D) -> their logits (T,)."""
    w = {n: p.detach().double().numpy() for n, p in head.named_parameters()}
    h = [linear(w, "embed", segment) for segment in x]
    width = len(h[0])
    if positions:
        for t, row in enumerate(h):
            for i in range(width // 2):
                row[2 * i] += math.sin(t / 10000 ** (2 * i / width))
                row[2 * i + 1] += math.cos(t / 10000 ** (2 * i / width))
    for layer in range(layers):
        own = {n.removeprefix(f"blocks.{layer}."): v for n, v in w.items() if n.startswith(f"blocks.{layer}.")}
        qkv = [linear(own, "to_qkv", norm(own, "norm1", row)) for row in h]
        part = width // heads
        mixed = np.zeros((len(h), width))
        for a in range(heads):
            at = slice(a * part, (a + 1) * part)
            q, k, v = ([row[s * width : (s + 1) * width][at] for row in qkv] for s in range(3))
            for i in range(len(h)):
                e = np.array([math.exp(q[i] @ k[j] / math.sqrt(part)) for j in range(len(h))])
                mixed[i, at] = sum(e[j] / e.sum() * v[j] for j in range(len(h)))
        h = [row + linear(own, "out", m) for row, m in zip(h, mixed, strict=True)]
        for t, row in enumerate(h):
            inner = linear(own, "up", norm(own, "norm2", row))
            inner = np.array([u * (1 + math.erf(u / math.sqrt(2))) / 2 for u in inner])
            h[t] = row + linear(own, "down", inner)
    return np.array([linear(w, "classify", norm(w, "norm", row))[0] for row in h])


def make(**options):
    torch.manual_seed(0)
    sizes = {"width": 12, "heads": 3, "feedforward": 7, "layers": 2}
    head = TransformerHead(6, **{**sizes, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))  # norms and biases off their start, attention far from flat
    return head, random_bag(LENGTHS, LABELS, crops={"rgb": 2}, dtype=torch.float64)


def expected_logits(head, bag, *, heads=3, layers=2, positions=True):
    return [
        [logits_of(head, x, heads=heads, layers=layers, positions=positions) for x in bag.x[b, :, :length].numpy()]
        for b, length in enumerate(LENGTHS)
    ]


def cross_entropy(logits, k_of):
    losses = []
    for crops, label in zip(logits, LABELS, strict=True):
        for z in crops:
            mean = np.sort(z)[::-1][: k_of(len(z))].mean()
            p = 1 / (1 + math.exp(-mean))
            losses.append(-math.log(p if label else 1 - p))
    return np.mean(losses)


@pytest.mark.parametrize("positions", ["sinusoidal", "none"])
@pytest.mark.parametrize(("heads", "layers"), [(3, 2), (2, 1)])
def test_scores_are_those_written_out(positions, heads, layers):
    head, bag = make(positions=positions, heads=heads, layers=layers)
    logits = expected_logits(head, bag, heads=heads, layers=layers, positions=positions == "sinusoidal")
    scores = head(bag).scores.detach().numpy()
    for b, length in enumerate(LENGTHS):
        expected = np.mean([1 / (1 + np.exp(-z)) for z in logits[b]], axis=0)
        assert np.abs(scores[b, :length] - expected).max() < 1e-10
        assert (scores[b, length:] == 0).all()


@pytest.mark.parametrize(("topk", "k_of"), [(None, lambda n: n // 16 + 1), (3, lambda n: min(n, 3))])
def test_loss_is_the_cross_entropy_of_every_crops_highest_logits(topk, k_of):
    """One video has 18 segments: its k is 2 where nothing is said."""
    head, bag = make(topk=topk)
    expected = cross_entropy(expected_logits(head, bag), k_of)
    assert {k: v.item() for k, v in head.loss(head(bag), bag).items()} == pytest.approx({"bce": expected}, abs=1e-10)


def test_order_matters_by_positions_alone():
    order = [3, 0, 6, 2, 5, 1, 4]
    bag = random_bag([7], [1], dtype=torch.float64)
    moved = Bag({"rgb": bag.x[:, :, order]}, bag.mask, bag.labels)
    for positions, same in (("none", True), ("sinusoidal", False)):
        head, _ = make(positions=positions)
        apart = float((head(moved).scores - head(bag).scores[:, order]).detach().abs().max())
        assert apart < 1e-12 if same else apart > 1e-3


def test_every_segment_sees_every_other_of_its_video_and_none_of_the_padding():
    head, _ = make()
    bag = random_bag([6, 9], [1, 0], dtype=torch.float64)
    x = bag.x.clone().requires_grad_()
    scores = head(Bag({"rgb": x}, bag.mask, bag.labels)).scores
    for t in range(6):
        (grad,) = torch.autograd.grad(scores[0, t], x, retain_graph=True)
        reach = grad[0, 0].abs().sum(-1)
        assert (reach[:6] > 1e-9).all()
        assert (reach[6:] == 0).all()
        assert (grad[1] == 0).all()


def test_dropout_works_in_training_alone_and_where_it_is_said():
    """With everything dropped no segment keeps more than its last norm's bias."""
    head, bag = make(dropout=1.0)
    assert torch.equal(head(bag).scores, head(bag).scores)
    bare = torch.sigmoid(head.classify(head.norm.bias)).item()
    assert head.train()(bag).scores[bag.mask].tolist() == pytest.approx([bare] * sum(LENGTHS), abs=1e-12)
    head, bag = make(dropout=0.5)
    head.blocks[0].drop.p = head.blocks[1].drop.p = head.drop.p = 0.0  # what is left is of the attention
    assert not torch.equal(head.train()(bag).scores, head(bag).scores)


def test_size_of_the_default_net():
    with torch.device("meta"):
        head = TransformerHead(1024)
    block = 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    assert sum(p.numel() for p in head.parameters()) == 1024 * 256 + 256 + 2 * block + 512 + 257


@pytest.mark.parametrize("options", [{"width": 20, "heads": 4}, {"layers": 0}, {"feedforward": 0}, {"topk": 0}])
def test_impossible_options_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"multiple of 2 \* heads.* got .*{name}={value}"):
        TransformerHead(4, **options)


def test_recipes_name_this_head_and_say_that_their_values_are_ours():
    for name in ("transformer_ucf", "motion_transformer"):
        assert configs.load(name).head.name == "transformer"
    assert "not published" in configs.load("transformer_ucf").about
    assert configs.load("motion_transformer").data.scale == "standardize"
