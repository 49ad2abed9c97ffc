"""Loss terms against plain loops in float64, and their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mil.losses import both_classes, hinge, sixteenth, smoothness, sparsity, topk_bce, topk_mean
from tests.mil_helpers import random_bag


@st.composite
def batches(draw):
    """Scores (B, T), a prefix mask with at least one segment per video, and arbitrary numbers where padded."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    longest = max(lengths) + draw(st.integers(0, 3))
    scores = rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], (len(lengths), longest)) + draw(st.sampled_from([0.0, 1e-3]))
    mask = np.arange(longest) < np.array(lengths)[:, None]
    return scores, mask


def tensors(scores, mask):
    return torch.from_numpy(scores), torch.from_numpy(mask)


@given(batches(), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_topk_mean_sorts_each_video_by_itself(batch, k):
    scores, mask = batch
    found = topk_mean(*tensors(scores, mask), k)
    for row, kept, value in zip(scores, mask, found.tolist(), strict=True):
        own = sorted((float(s) for s, m in zip(row, kept, strict=True) if m), reverse=True)[:k]
        assert value == pytest.approx(sum(own) / len(own), abs=1e-12)


@given(batches())
@settings(max_examples=80, deadline=None)
def test_smoothness_and_sparsity_stay_inside_each_video(batch):
    scores, mask = batch
    smooth, sparse = smoothness(*tensors(scores, mask)).tolist(), sparsity(*tensors(scores, mask)).tolist()
    for b, row in enumerate(scores):
        own = [float(s) for s, m in zip(row, mask[b], strict=True) if m]
        steps = 0.0
        for t in range(len(own) - 1):
            steps += (own[t] - own[t + 1]) ** 2
        assert smooth[b] == pytest.approx(steps, abs=1e-12)
        assert sparse[b] == pytest.approx(sum(own), abs=1e-12)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@settings(max_examples=80, deadline=None)
def test_hinge_over_all_pairs_and_over_pairs_in_order(high, low, margin):
    a, n = torch.tensor(high, dtype=torch.float64), torch.tensor(low, dtype=torch.float64)
    every = hinge(a, n, margin)
    assert every.shape == (len(high), len(low))
    for i, x in enumerate(high):
        for j, y in enumerate(low):
            assert float(every[i, j]) == pytest.approx(max(0.0, margin - x + y), abs=1e-12)
    paired = hinge(a, n, margin, paired=True).tolist()
    assert paired == pytest.approx([max(0.0, margin - x + y) for x, y in zip(high, low, strict=False)], abs=1e-12)


def test_a_jump_from_one_video_to_the_next_costs_nothing():
    """RTFM flattens its batch first, and pays for the border between two videos (heads.md 2.1)."""
    scores = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert smoothness(scores, torch.ones(2, 2, dtype=torch.bool)).tolist() == [0, 0]


def test_a_jump_into_the_padding_costs_nothing():
    scores, mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[True, True, False, False]])
    assert smoothness(scores, mask).tolist() == [0]


def test_gradients_equal_finite_differences():
    # distinct values, far from the kinks of max and relu
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.permutation(24).reshape(4, 6) / 25.0).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    assert gradcheck(lambda s: topk_mean(s, mask, 1), scores)
    assert gradcheck(lambda s: topk_mean(s, mask, 4), scores)
    assert gradcheck(lambda s: smoothness(s, mask), scores)
    assert gradcheck(lambda s: sparsity(s, mask), scores)
    high = torch.tensor([0.9, 0.13, 0.4], dtype=torch.float64, requires_grad=True)
    low = torch.tensor([0.7, 0.31], dtype=torch.float64, requires_grad=True)
    assert gradcheck(hinge, (high, low))
    assert gradcheck(lambda a, n: hinge(a, n, 0.5, paired=True), (high, low))


def test_padding_gets_no_gradient_at_all():
    scores = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    total = topk_mean(scores, mask, 3).sum() + smoothness(scores, mask).sum() + sparsity(scores, mask).sum()
    (gradient,) = torch.autograd.grad(total, scores)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


@given(batches(), st.data())
@settings(max_examples=80, deadline=None)
def test_topk_mean_with_a_k_of_its_own_for_each_video(batch, data):
    scores, mask = batch
    k = data.draw(st.lists(st.integers(1, 9), min_size=len(scores), max_size=len(scores)))
    found = topk_mean(*tensors(scores, mask), torch.tensor(k))
    for row, kept, own_k, value in zip(scores, mask, k, found.tolist(), strict=True):
        own = sorted((float(s) for s, m in zip(row, kept, strict=True) if m), reverse=True)[:own_k]
        assert value == pytest.approx(sum(own) / len(own), abs=1e-12)
    same = topk_mean(*tensors(scores, mask), torch.full((len(scores),), k[0]))
    assert torch.allclose(same, topk_mean(*tensors(scores, mask), k[0]), rtol=0, atol=1e-12)


def test_a_video_without_a_segment_has_no_score_and_no_gradient():
    scores = torch.tensor([[0.4, 0.6], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [False, False]])
    for k in (1, 5, torch.tensor([2, 1])):
        found = topk_mean(scores, mask, k)
        assert found[1] == 0
        (gradient,) = torch.autograd.grad(found.sum(), scores)
        assert gradient[1].tolist() == [0, 0]
        assert float(gradient[0].sum()) == pytest.approx(1)


def test_a_sixteenth_of_each_video_and_one_more():
    """L // 16 + 1: 1 up to 15 segments, 2 from 16, 13 of 200."""
    lengths = torch.tensor([1, 15, 16, 31, 32, 200])
    assert sixteenth(torch.arange(200) < lengths[:, None]).tolist() == [1, 1, 2, 2, 3, 13]


def test_topk_bce_takes_the_mean_before_the_sigmoid():
    """Means of logits 3 and 1, and of -2 alone: -log sigmoid(2) and -log(1 - sigmoid(-2)); both are log(1 + e^-2)."""
    logits = torch.tensor([[3.0, -5.0, 1.0, 9.0], [-2.0, 7.0, 7.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    labels = torch.tensor([1.0, 0.0], dtype=torch.float64)
    expected = math.log1p(math.exp(-2))
    assert float(topk_bce(logits, mask, labels, 2)) == pytest.approx(expected, abs=1e-12)
    assert float(topk_bce(logits, mask, labels, torch.tensor([2, 1]))) == pytest.approx(expected, abs=1e-12)
    sure = topk_bce(torch.full((1, 3), -1e4), torch.ones(1, 3, dtype=torch.bool), torch.ones(1), 1)
    assert float(sure) == pytest.approx(1e4)  # no log of 0


@given(batches(), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_topk_bce_against_a_loop(batch, seed):
    scores, mask = batch
    labels = np.random.default_rng(seed).integers(0, 2, len(scores)).astype(np.float64)
    total = 0.0
    for row, kept, label in zip(scores * 6 - 3, mask, labels, strict=True):
        length = int(kept.sum())
        own = sorted((float(s) for s, m in zip(row, kept, strict=True) if m), reverse=True)[: length // 16 + 1]
        p = 1 / (1 + math.exp(-sum(own) / len(own)))
        total -= label * math.log(p) + (1 - label) * math.log(1 - p)
    logits, kept = tensors(scores * 6 - 3, mask)
    found = topk_bce(logits, kept, torch.from_numpy(labels), sixteenth(kept))
    assert float(found) == pytest.approx(total / len(scores), abs=1e-10)


def test_gradients_of_a_k_for_each_video():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.permutation(24).reshape(4, 6) / 5.0).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    k, labels = torch.tensor([2, 4, 3, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert gradcheck(lambda s: topk_mean(s, mask, k), scores)
    assert gradcheck(lambda s: topk_bce(s, mask, labels, k), scores)


def test_both_classes_are_found_by_value():
    high, low = both_classes(random_bag([2, 2, 2], [0, 1, 1]), "mine")
    assert (high.tolist(), low.tolist()) == ([1, 2], [0])
    for labels, counts in (([1, 1], "2 anomalous and 0 normal"), ([0], "0 anomalous and 1 normal")):
        with pytest.raises(ValueError, match=f"mine compares two classes, this batch has {counts} videos"):
            both_classes(random_bag([2] * len(labels), labels), "mine")
