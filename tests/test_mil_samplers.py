"""Samplers: passes over each class, mixed passes, how long an epoch is. Every batch a function of seed and step."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.samplers import mixed_batch, passes_batch, per_epoch

# where the classes lie means nothing; videos are told apart by value
LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0])  # 1 at 1 2 4 7 8 11; 0 at 0 3 5 6 9 10 12


@st.composite
def manifests(draw):
    high, low = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(high + low)
    return np.array([1] * high + [0] * low)[order]


@given(manifests(), st.integers(1, 8), st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_each_class_goes_through_its_own_passes(labels, pairs, seed):
    """Two loaders that shuffle and drop the last: no unit of a class twice before that class is through."""
    steps = [passes_batch(labels, pairs, seed, step).tolist() for step in range(1, 25)]
    for label in (1, 0):
        units = set(np.flatnonzero(labels == label).tolist())
        taken = min(pairs, len(units))
        batches = [step[: min(pairs, int((labels == 1).sum()))] if label else step[-taken:] for step in steps]
        length = max(len(units) // pairs, 1)
        for first in range(0, 24, length):
            one_pass = [unit for batch in batches[first : first + length] for unit in batch]
            assert len(one_pass) == len(set(one_pass)) == taken * len(batches[first : first + length])
            assert set(one_pass) <= units
    assert all(len(s) == sum(min(pairs, int((labels == v).sum())) for v in (0, 1)) for s in steps)


def test_passes_in_the_order_of_the_manifest_by_hand():
    """6 anomalous and 7 normal units, 2 a step: three steps to a pass, the seventh normal unit is never seen."""
    found = [passes_batch(LABELS, 2, 5, step, shuffle=False).tolist() for step in (1, 2, 3, 4)]
    assert found == [[1, 2, 0, 3], [4, 7, 5, 6], [8, 11, 9, 10], [1, 2, 0, 3]]
    # 4 a step: one step to a pass of either class
    assert passes_batch(LABELS, 4, 5, 9, shuffle=False).tolist() == [1, 2, 4, 7, 0, 3, 5, 6]
    # more than a class has: all of it
    assert passes_batch(LABELS, 7, 5, 2, shuffle=False).tolist() == [1, 2, 4, 7, 8, 11, 0, 3, 5, 6, 9, 10, 12]


def test_passes_of_unlike_length_are_not_in_step():
    """5 anomalous and 2 normal units, 1 a step: each pass of the first lasts 5 steps, of the second 2."""
    labels = np.array([1, 1, 1, 1, 1, 0, 0])
    steps = np.array([passes_batch(labels, 1, 3, step) for step in range(1, 11)])
    assert [sorted(part) for part in steps[:, 0].reshape(2, 5).tolist()] == [[0, 1, 2, 3, 4]] * 2
    assert [sorted(part) for part in steps[:, 1].reshape(5, 2).tolist()] == [[5, 6]] * 5


def test_what_a_pass_drops_another_one_sees():
    """7 units, 2 a step: one of them is left out, by chance, of each pass of three steps."""
    labels = np.array([1] * 7 + [0] * 7)
    counts = Counter(unit for step in range(1, 3 * 350 + 1) for unit in passes_batch(labels, 2, 0, step).tolist())
    # each in 6 of 7 passes: 300 of 350, deviation 6.5
    assert set(counts) == set(range(14))
    assert all(abs(n - 300) < 40 for n in counts.values())


def test_orders_differ_by_pass_by_class_and_by_seed():
    labels = np.array([1] * 40 + [0] * 40)
    one, again, other = (passes_batch(labels, 40, seed, step) for seed, step in ((0, 1), (0, 2), (1, 1)))
    assert not np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:40], one[40:] - 40), "the classes must not be shuffled alike"
    np.random.default_rng(5).random()  # draws elsewhere change nothing
    assert np.array_equal(one, passes_batch(labels, 40, 0, 1))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 50), st.integers(0, 4), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_mixed_pass_sees_every_unit_once(count, batch, seed, number, shuffle):
    length = per_epoch(np.zeros(count, np.int64), "mixed", batch)
    steps = [mixed_batch(count, batch, seed, number * length + i + 1, shuffle=shuffle) for i in range(length)]
    assert [len(s) for s in steps] == [batch] * (length - 1) + [count - batch * (length - 1)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(count))
    if not shuffle:
        assert np.concatenate(steps).tolist() == list(range(count))


def test_mixed_batches_by_hand_and_in_new_orders():
    assert [mixed_batch(5, 2, 0, s, shuffle=False).tolist() for s in (1, 2, 3, 4)] == [[0, 1], [2, 3], [4], [0, 1]]
    orders = {tuple(mixed_batch(20, 20, seed, step).tolist()) for seed in (0, 1) for step in (1, 2, 3)}
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("sampler", "size", "steps"),
    [
        ("balanced", 2, 3),  # 6 anomalous and 7 normal units: as many steps as the smaller class has whole batches
        ("passes", 2, 3),
        ("passes", 3, 2),
        ("passes", 4, 1),
        ("passes", 30, 1),  # a class smaller than a batch still makes a step
        ("mixed", 13, 1),
        ("mixed", 12, 2),  # the last, smaller batch counts
        ("mixed", 5, 3),
        ("mixed", 128, 1),
    ],
)
def test_steps_of_an_epoch(sampler, size, steps):
    assert per_epoch(LABELS, sampler, size) == steps
    assert per_epoch(1 - LABELS, sampler, size) == steps
    # twenty more of the larger class: only a mixed pass grows
    more = np.append(LABELS, [0] * 20)
    assert (per_epoch(more, sampler, size) == steps) == (sampler != "mixed" or size == 128)
