"""Scores while a video runs are those of the whole video for causal heads, and a plain loop's for the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.config import EvalConfig
from mil.heads import heads
from mil.online import OnlineScorer, Smoother
from mil.protocol import smooth
from tests.test_head_contract import CASES, _id, bag_for, make
from tests.test_mil_scoring import alone, items_of, model_of, score_items

SAME = 1e-6  # of scores in [0, 1]: products of matrices of other shapes round otherwise
CAUSAL = {
    "tcn_ibl": ("tcn_ibl", {}),
    "hlnet": ("hlnet", {"score": "online"}),
    "cma_la-5": ("cma_la", {"past": 5}),  # shorter than most of the videos
    "cma_la-200": ("cma_la", {"past": 200}),  # longer than all
}
PLAIN = EvalConfig()


def of_clip(item, clip):
    return {name: x[:, clip] for name, x in item.items()}


def length_of(item):
    return next(iter(item.values())).shape[1]


def given_out(scorer, item):
    """[what each push gave], [what closing gave], both as lists of (clip, score)."""
    return [scorer.push(of_clip(item, i)) for i in range(length_of(item))], scorer.close()


def scores_of(scorer, item):
    pushed, last = given_out(scorer, item)
    found = [pair for pairs in [*pushed, last] for pair in pairs]
    assert [clip for clip, _ in found] == list(range(length_of(item))), "each clip once, in order"
    return np.array([score for _, score in found])


@pytest.mark.parametrize("case", CAUSAL)
@pytest.mark.parametrize("crops", [1, 5])
def test_a_causal_head_scores_each_clip_at_once_as_in_the_whole_video(case, crops):
    model = model_of(*CAUSAL[case])
    lengths = [*range(1, 9), 12, 40]
    items = items_of(model.dims, lengths, crops=crops, seed=1)
    assert len(model.dims) == 2, "two modalities"
    scorer = OnlineScorer(model, PLAIN)
    assert scorer.delay == 0
    spread = 0.0
    for item, whole in zip(items, score_items(model, items), strict=True):
        pushed, last = given_out(scorer, item)  # one scorer for all: closing begins anew
        assert [[clip for clip, _ in pairs] for pairs in pushed] == [[i] for i in range(len(whole))]
        assert last == []
        assert np.abs(np.array([pairs[0][1] for pairs in pushed]) - whole).max() < SAME
        spread = max(spread, float(np.ptp(whole)))
    assert spread > 1e-3, "scores that differ, or equality says nothing"


@pytest.mark.parametrize("case", CAUSAL)
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 14), st.integers(0, 6), st.sampled_from([1, 3]), st.integers(0, 99))
def test_what_comes_later_does_not_change_a_causal_score_that_is_out(case, seen, later, clips, seed):
    """Nor a smoothed one: what is given out holds for the whole video, however it goes on."""
    model, rules = model_of(*CAUSAL[case]), EvalConfig(smooth=clips)
    (item,) = items_of(model.dims, [seen + later], seed=seed)
    scorer = OnlineScorer(model, rules)
    early = [pair for i in range(seen) for pair in scorer.push(of_clip(item, i))]
    for x in item.values():
        x[:, seen:] = 10 * np.random.default_rng(seed).standard_normal(x[:, seen:].shape)
    whole = smooth(score_items(model, [item])[0], clips)
    assert len(early) == max(seen - clips // 2, 0)
    assert all(abs(score - whole[clip]) < SAME for clip, score in early)


LOOKS = [(n, v) for n, v in CASES if make(n, v).lookback is not None]
LOOKS += [(n, {**v, **o}) for n, v in CASES if (o := heads.get(n).causal_options)]


@pytest.mark.parametrize(("name", "variant"), LOOKS, ids=[_id(*c) for c in LOOKS])
def test_lookback_is_as_far_as_a_score_looks_and_no_farther(name, variant):
    """In float64, over several heads of random weights: a rectifier may hide a clip from one of them."""
    farthest = 0.0
    for seed in range(3):
        head = make(name, variant, seed=seed).double().eval()
        back = head.lookback
        length = back + 3

        @torch.no_grad()
        def scores(clip=None, head=head, length=length):
            bag = bag_for(name, [length], [1], dtype=torch.float64)
            for x in bag.features.values():
                if clip is not None:
                    x[:, :, clip] += 3
            return head(bag).scores[0]

        whole = scores()
        for score in (length - 1, length - 2):  # one that sees the beginning of nothing, whichever it is
            assert scores(score - back)[score] == pytest.approx(float(whole[score]), abs=1e-12)
            farthest = max(farthest, float((scores(score - back + 1)[score] - whole[score]).abs()))
        assert (scores(length - 1)[:-1] - whole[:-1]).abs().max() < 1e-12, "a later clip changes nothing"
    assert farthest > 1e-9


def test_causal_options_make_a_head_causal_with_the_same_weights():
    for name in heads:
        kind = heads.get(name)
        if kind.causal_options:
            assert make(name, kind.causal_options).lookback is not None, name
            own, causal = (make(name, v).state_dict() for v in ({}, kind.causal_options))
            assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in causal.items()}, name


def windowed(model, item, window, delay):
    """Slowly: clip t in the last `window` clips there are when clip t + delay has come, or the last one."""
    count, found = length_of(item), []
    for t in range(count):
        stop = min(t + delay + 1, count)
        start = max(stop - window, 0)
        found.append(alone(model, {n: x[:, start:stop] for n, x in item.items()})[t - start])
    return np.array(found)


WINDOWED = ["rtfm", "transformer", "bnwvad"]  # convolutions, graphs, attention and norms


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(("window", "delay"), [(1, 0), (6, 0), (6, 5), (7, 2)])
def test_other_heads_score_in_a_window_that_ends_with_the_delay(name, window, delay):
    model = model_of(name)
    scorer = OnlineScorer(model, PLAIN, window=window, delay=delay)
    for item in items_of(model.dims, [1, 5, 7, 12], crops=2, seed=3):
        pushed, _ = given_out(scorer, item)
        assert [[clip for clip, _ in pairs] for pairs in pushed] == [
            [i - delay] * (i >= delay) for i in range(len(pushed))
        ]
        assert np.abs(scores_of(scorer, item) - windowed(model, item, window, delay)).max() < SAME


@pytest.mark.parametrize(("name", "variant"), CASES, ids=[_id(*c) for c in CASES])
def test_every_head_in_a_window_as_long_as_the_video_scores_as_the_whole(name, variant):
    model = model_of(name, variant)
    causal = model.head.lookback is not None
    scorer = OnlineScorer(model, PLAIN, **({} if causal else {"window": 9, "delay": 8}))
    for item in items_of(model.dims, [1, 4, 9], seed=5):
        assert np.abs(scores_of(scorer, item) - alone(model, item)).max() < SAME


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1), max_size=30),
    st.sampled_from([(1, "centred"), (3, "centred"), (7, "centred")])
    | st.tuples(st.integers(1, 9), st.sampled_from(["ahead", "blocks"])),
)
def test_smoothing_as_it_comes_is_that_of_the_whole_series_to_the_bit(series, rule):
    smoother, found = Smoother(*rule), []
    for i, score in enumerate(series):
        found += smoother.push(score)
        assert len(found) > i - smoother.delay, "never later than it says"
    assert found + smoother.close() == smooth(np.array(series), *rule).tolist()
    assert smoother.close() == [], "and it begins anew"


@pytest.mark.parametrize("rule", [(3, "centred"), (4, "ahead"), (4, "blocks")])
@pytest.mark.parametrize("case", [("tcn_ibl", {}), ("rtfm", {"window": 6, "delay": 2})])
def test_the_smoothing_of_the_recipe_comes_on_top(case, rule):
    name, options = case
    model, rules = model_of(name), EvalConfig(smooth=rule[0], smoothing=rule[1])
    scorer, bare = OnlineScorer(model, rules, **options), OnlineScorer(model, PLAIN, **options)
    assert scorer.delay == bare.delay + (rule[0] // 2 if rule[1] == "centred" else rule[0] - 1)
    for item in items_of(model.dims, [1, 3, 4, 11], seed=2):
        assert scores_of(scorer, item).tolist() == smooth(scores_of(bare, item), *rule).tolist()
        pushed, _ = given_out(scorer, item)
        late = [i - clip for i, pairs in enumerate(pushed) for clip, _ in pairs]
        assert max(late, default=0) <= scorer.delay
        assert len(item["rgb"][0]) <= scorer.delay or max(late) == scorer.delay


@pytest.mark.parametrize("case", [("cma_la", {"past": 5}, {}), ("transformer", {}, {"window": 6, "delay": 2})])
def test_after_a_reset_nothing_is_left_of_the_video_before(case):
    name, variant, options = case
    model = model_of(name, variant)
    scorer = OnlineScorer(model, EvalConfig(smooth=3), **options)
    first, second = items_of(model.dims, [9, 8], seed=4)
    alone_ = scores_of(scorer, second)
    for i in range(7):
        scorer.push(of_clip(first, i))
    scorer.reset()
    assert scores_of(scorer, second).tolist() == alone_.tolist()


def test_a_long_video_is_forgotten_but_for_the_window():
    model = model_of("tcn_ibl")
    scorer = OnlineScorer(model, EvalConfig(smooth=5))
    (item,) = items_of(model.dims, [1])
    for i in range(60):
        found = scorer.push(of_clip(item, 0))
        assert [clip for clip, _ in found] == [i - 2] * (i >= 2)
        assert len(scorer._kept) <= model.head.lookback
        assert len(scorer._smoother._kept) <= 5


def test_what_cannot_be_scored_is_refused_with_its_reason():
    model = model_of("rtfm")
    for options, why in (
        ({"window": 0}, "at least 1 clip"),
        ({"window": 4, "delay": 4}, "--delay is 0 to 3"),
        ({"delay": -1}, "--delay is 0 to 63"),
    ):
        with pytest.raises(ValueError, match=why):
            OnlineScorer(model, PLAIN, **options)
    for options in ({"window": 9}, {"delay": 1}):
        with pytest.raises(ValueError, match="looks back on 4 clips"):
            OnlineScorer(model_of("tcn_ibl"), PLAIN, **options)
    scorer = OnlineScorer(model, PLAIN)
    assert (scorer.window, scorer.delay) == (64, 16)
    good = of_clip(items_of(model.dims, [1])[0], 0)
    with pytest.raises(ValueError, match=r"clip 0: rgb features must be .* NaN"):
        scorer.push({**good, "rgb": good["rgb"] * np.nan})
    with pytest.raises(ValueError, match=r"clip 0: rgb features must be \(K, D\)"):
        scorer.push({**good, "rgb": good["rgb"][0]})
