"""Whole videos through a head: in batches as one by one, for every head, and never more in memory than was promised."""

import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.store import FeatureStore, StoreError
from mil import scored as scored_module
from mil import scoring
from mil.bags import collate
from mil.config import validate
from mil.heads import Head, HeadOutput, heads
from mil.model import Model
from mil.scored import scored
from mil.scoring import batched, ignores_padding, score_videos
from tests.mil_helpers import make_world, small_config
from tests.test_head_contract import CASES, _id, dims_of, options_of

CPU = torch.device("cpu")
LENGTHS = [9, 1, 7, 2, 9, 6, 1, 7]
LOOK_AT_PADDING = ("cma_la", "hlnet", "macil_sd", "pel4vad")  # in their published forms


def model_of(name, variant=(), dims=None, **data):
    torch.manual_seed(0)
    values = {"head": {"name": name, **options_of(name, variant)}, "data": data}
    return Model(validate(values, "test"), dims or dims_of(name, several=True))


def items_of(dims, lengths=LENGTHS, crops=1, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {m: rng.standard_normal((1 if m == "audio" else crops, n, d)).astype(np.float32) for m, d in dims.items()}
        for n in lengths
    ]


@torch.no_grad()
def alone(model, item):
    """One video by itself, all crops at once."""
    return model.eval()(collate([item], np.zeros(1, np.int64))).scores[0].double().numpy()


def score_items(model, items, precision="fp32"):
    """Scores of videos in memory, in their order."""
    lengths = {i: next(iter(x.values())).shape[1] for i, x in enumerate(items)}
    crops = max((len(x) for item in items for x in item.values()), default=1)
    found = dict(score_videos(model, lengths, items.__getitem__, crops=crops, device=CPU, precision=precision))
    return [found[i] for i in range(len(items))]


def lengths_of(items):
    return {f"v{i}": next(iter(x.values())).shape[1] for i, x in enumerate(items)}


@pytest.mark.parametrize(("name", "variant"), CASES, ids=[_id(*c) for c in CASES])
@pytest.mark.parametrize("crops", [1, 5])
def test_in_batches_every_head_scores_a_video_as_alone(name, variant, crops, monkeypatch):
    """Several lengths together where the head takes no notice of padding, equal lengths together everywhere.

    In float64: what padding changes is not to hide behind rounding.
    """
    model = model_of(name, variant).double()
    scaled = model.scaled
    doubled = lambda bag: bag.with_features({n: x.double() for n, x in scaled(bag).features.items()})  # noqa: E731
    monkeypatch.setattr(model, "scaled", doubled)
    items = items_of(model.dims, crops=crops)
    expected = [alone(model, item) for item in items]
    masks, real = [], model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda bag: masks.append(bag.mask) or real(bag))
    for item, found, wanted in zip(items, score_items(model, items), expected, strict=True):
        assert found.shape == (item["rgb"].shape[1],)
        assert found.dtype == np.float64
        assert np.abs(found - wanted).max() < 1e-9
    assert max(len(mask) for mask in masks) > 1
    looks_at_padding = name in LOOK_AT_PADDING and variant.get("as_published", False)
    assert ignores_padding(model.head) != looks_at_padding
    assert any(not mask.all() for mask in masks) != looks_at_padding
    assert sum(len(mask) for mask in masks) == len(items)


lengths = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 4000), max_size=30)


@given(lengths, st.sampled_from([1, 5, 10]), st.sampled_from([0.75, 1.0]), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_batches_hold_every_video_once_within_the_limits_and_no_fewer_than_they_could(found, crops, similar, order):
    batches = batched(found, crops, similar)
    assert sorted(key for batch in batches for key in batch) == sorted(found)
    longest = [found[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for i, batch in enumerate(batches):
        ends = [found[key] for key in batch]
        assert longest[i] == max(ends)
        assert min(ends) >= similar * longest[i]
        assert len(batch) == 1 or len(batch) * crops * longest[i] <= 2048
        if i + 1 < len(batches):
            room = (len(batch) + 1) * crops * longest[i] <= 2048
            assert not room or longest[i + 1] < similar * longest[i]
    shuffled = list(found.items())
    order.shuffle(shuffled)
    assert batched(dict(shuffled), crops, similar) == batches


def test_the_order_in_which_videos_are_named_changes_no_byte():
    model = model_of("urdmu")
    items = items_of(model.dims, LENGTHS * 3, crops=2)
    by_name = {f"v{i}": item for i, item in enumerate(items)}
    names = lengths_of(items)

    def once(order):
        return dict(score_videos(model, {k: names[k] for k in order}, by_name.__getitem__, crops=2, device=CPU))

    first, again = once(sorted(names)), once(sorted(names, reverse=True))
    assert all(np.array_equal(first[k], again[k]) for k in names)


class Watched(Head):
    """Scores by the first feature; notes the rows of each pass, and what is alive of the features then."""

    compares = False

    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.alive, self.seen = lambda: 0, []

    def forward(self, bag):
        self.seen.append((bag.mask.shape[0] * bag.crops * bag.mask.shape[1], bag.crops, self.alive()))
        return HeadOutput((self.weight * bag.x[..., 0]).sigmoid().mean(1) * bag.mask, {})

    def loss(self, out, bag):
        return {"none": out.scores.sum()}


@pytest.mark.parametrize("longest", [40, 700])
def test_what_is_held_at_once_is_bounded_by_the_longest_video(longest, monkeypatch):
    """A test set of many videos and a long one: rows of features alive, at every reading and at every pass."""
    monkeypatch.setattr(scoring, "_AT_ONCE", 200)
    monkeypatch.setitem(heads._items, "watched", Watched)
    model = Model(validate({"head": {"name": "watched"}}, "test"), {"rgb": 2})
    rng, crops, lock = np.random.default_rng(0), 5, threading.RLock()
    lengths = {i: int(n) for i, n in enumerate([longest, *rng.integers(1, 35, 80)])}
    held, most, read = {}, [], []

    def let_go(key):
        with lock:
            del held[key]

    def reader(key):
        x = np.random.default_rng(key).standard_normal((crops, lengths[key], 2)).astype(np.float32)
        with lock:
            held[key] = crops * lengths[key]
            most.append(sum(held.values()))
            read.append(key)
        weakref.finalize(x, let_go, key)
        return {"rgb": x}

    model.head.alive = lambda: sum(held.values())
    found = dict(score_videos(model, lengths, reader, crops=crops, device=CPU))
    limit = max((torch.get_num_threads() + 1) * 200, crops * longest)
    assert max(most) <= limit
    assert max(alive for _, _, alive in model.head.seen) <= limit
    assert not held
    assert sorted(read) == sorted(lengths)  # each of them once
    for rows, at_once, _ in model.head.seen:
        assert rows <= 200 or (at_once, rows) == (1, longest)
    assert len(model.head.seen) < len(lengths)
    for key, scores in found.items():
        x = np.random.default_rng(key).standard_normal((crops, lengths[key], 2)).astype(np.float32)
        assert scores == pytest.approx((1 / (1 + np.exp(-x[..., 0].astype(float)))).mean(0), abs=1e-6)


def test_who_stops_early_reads_no_further():
    model, before = model_of("ranking", dims={"rgb": 6}), threading.active_count()
    items = items_of(model.dims, [900 - i for i in range(20)], crops=2)
    read = []

    def reader(key):
        read.append(key)
        return items[key]

    found = score_videos(model, {i: 900 - i for i in range(20)}, reader, crops=2, device=CPU)
    next(found)
    found.close()
    assert len(read) <= 2 + torch.get_num_threads()
    assert threading.active_count() == before


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_as_many_passes_as_threads_go_on_while_the_next_is_read(threads, precision, monkeypatch):
    """Each waits for the others, so that one after the other would never end; and the bytes are the same.

    All but the first, which shows whether the head draws random numbers.
    """
    model = model_of("urdmu", dims={"rgb": 6})
    items = items_of(model.dims, [500 + i for i in range(12)], crops=3)
    torch.set_num_threads(1)
    expected = score_items(model, items, precision)
    torch.set_num_threads(threads)
    together = threading.Barrier(threads + 1, timeout=60)
    lock, real, read, used = threading.Lock(), scoring._scores, [], []

    def reader(key):
        with lock:
            read.append(key)
            last = len(read) == threads + 2
        if last:  # the one beyond those that are scored
            together.wait()
        return items[key]

    def scores(model, forward, *rest):
        with lock:
            used.append((forward, torch.get_num_threads()))
            first = 1 < len(used) <= threads + 1
        if first:
            together.wait()
        return real(model, forward, *rest)

    monkeypatch.setattr(scoring, "_scores", scores)
    lengths = {i: 500 + i for i in range(12)}
    found = dict(score_videos(model, lengths, reader, crops=3, device=CPU, precision=precision))
    assert all((found[i] == expected[i]).all() for i in range(12))
    assert len({id(forward) for forward, _ in used[1 : threads + 1]}) == (threads if precision == "bf16" else 1)
    assert {each for _, each in used} == {1}
    assert torch.get_num_threads() == threads


def test_a_head_that_draws_has_its_passes_in_one_order(threads, monkeypatch):
    """The longest ones sleep longest: side by side, the last would draw first."""
    model = model_of("ranking", dims={"rgb": 6})
    items, real = items_of(model.dims, [300 + 100 * i for i in range(8)], crops=3), model.head.forward

    def forward(bag):
        time.sleep(bag.x.shape[2] / 50_000)
        out = real(bag)
        return replace(out, scores=out.scores * torch.rand(()))

    monkeypatch.setattr(model.head, "forward", forward)
    found = []
    for count in (threads, 1):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        found.append(score_items(model, items))
    assert all((a == b).all() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("the disk is on fire"), "v3: the disk is on fire"),
        (OSError(5, "Input/output error"), r"v3: \[Errno 5\] Input/output error"),
        (ValueError("v3: has no clips"), "^v3: has no clips"),
        (KeyError("what a programmer did"), "what a programmer did"),
    ],
)
def test_what_cannot_be_read_is_named(error, said):
    model = model_of("ranking", dims={"rgb": 6})
    items = items_of(model.dims)

    def reader(key):
        if key == "v3":
            raise error
        return items[int(key[1:])]

    kind = KeyError if isinstance(error, KeyError) else ValueError
    with pytest.raises(kind, match=said):
        list(score_videos(model, lengths_of(items), reader, crops=1, device=CPU))


def test_a_video_of_other_clips_than_were_said_is_refused():
    model = model_of("ranking", dims={"rgb": 6})
    items = items_of(model.dims)
    with pytest.raises(ValueError, match="v4: 8 clips were to be scored, 9 were read"):
        list(score_videos(model, {**lengths_of(items), "v4": 8}, lambda k: items[int(k[1:])], crops=1, device=CPU))


def test_a_video_of_other_crops_than_were_said_is_refused():
    model = model_of("ranking", dims={"rgb": 6})
    items = items_of(model.dims, crops=3)
    with pytest.raises(ValueError, match="v1: 2 crops were to be scored, 3 were read"):
        list(score_videos(model, lengths_of(items), lambda k: items[int(k[1:])], crops=2, device=CPU))


def test_weights_that_change_between_two_scorings_are_seen():
    """Whatever a scoring keeps of them, and by whichever way they change."""
    model = model_of("rtfm", dims={"rgb": 6})
    items = items_of(model.dims)
    score_items(model, items)
    for p in model.head.parameters():
        p.data.mul_(-0.5)
    for item, scores in zip(items, score_items(model, items), strict=True):
        assert np.abs(scores - alone(model, item)).max() < 1e-6


def test_nothing_to_score_is_no_error():
    assert score_items(model_of("ranking"), []) == []


@pytest.mark.parametrize("name", ["ranking", "deepmil", "rtfm"])
def test_in_groups_of_crops_a_video_scores_as_all_at_once(name, monkeypatch):
    model = model_of(name, dims={"rgb": 6, "audio": 3}).train()
    (item,) = items_of(model.dims, [20], crops=5)
    seen, real = [], model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda bag: seen.append(bag.crops) or real(bag))
    found = {}
    for limit, groups in ((100, [5]), (99, [2, 3]), (59, [1, 2, 2]), (1, [1] * 5)):
        monkeypatch.setattr(scoring, "_AT_ONCE", limit)
        seen.clear()
        (found[limit],) = score_items(model, [item])
        assert sorted(seen) == groups
        assert (found[limit].shape, found[limit].dtype) == ((20,), np.float64)
        assert np.abs(found[limit] - found[100]).max() < 1e-6
    assert found[100].std() > 1e-3
    assert not model.training
    # by hand: each crop with the same sound, then the mean
    each = [score_items(model, [{"rgb": item["rgb"][k : k + 1], "audio": item["audio"]}])[0] for k in range(5)]
    assert np.abs(found[1] - np.mean(each, axis=0)).max() < 1e-12


@pytest.mark.parametrize(("weights", "most"), [(1, 1), (2 * 20**2, 2), (2**28, 5)])
def test_of_a_very_long_video_few_crops_go_through_at_a_time(weights, most, monkeypatch):
    """Heads that compare all segments take T x T numbers for each."""
    model = model_of("ranking", dims={"rgb": 6})
    (item,) = items_of(model.dims, [20], crops=5)
    (expected,) = score_items(model, [item])
    lock, real, now, seen = threading.Lock(), scoring._scores, [0], []

    def scores(*values):
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.02)
        found = real(*values)
        with lock:
            now[0] -= 1
        return found

    monkeypatch.setattr(scoring, "_AT_ONCE", 20)
    monkeypatch.setattr(scoring, "_WEIGHTS", weights)
    monkeypatch.setattr(scoring, "_scores", scores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert np.abs(score_items(model, [item])[0] - expected).max() < 1e-6
    assert len(seen) == 5
    assert max(seen) <= most


def test_features_are_taken_as_they_lie_in_a_pack():
    """fp16 and read-only; and a video in memory that may be written stays as it is."""
    model = model_of("ranking", dims={"rgb": 6}, scale="l2")
    items = [{"rgb": x["rgb"].astype(np.float16)} for x in items_of(model.dims, [5, 900], crops=3)]
    for item in items:
        item["rgb"].flags.writeable = False
    full = [{"rgb": x["rgb"].astype(np.float32)} for x in items]
    kept = [x["rgb"].copy() for x in full]
    for a, b in zip(score_items(model, items), score_items(model, full), strict=True):
        assert np.array_equal(a, b)
    assert all(np.array_equal(x["rgb"], y) for x, y in zip(full, kept, strict=True))


@pytest.mark.parametrize("name", ["ranking", "rtfm", "urdmu"])
def test_bf16_scores_are_near_and_fp32_ones_the_plain_call(name):
    model = model_of(name, dims={"rgb": 6})
    items = items_of(model.dims, [30, 12, 11], crops=2)
    plain, low = score_items(model, items), score_items(model, items, "bf16")
    for item, a, b in zip(items, plain, low, strict=True):
        assert 0 < np.abs(a - b).max() < 2e-2
        assert np.abs(score_items(model, [item])[0] - alone(model, item)).max() < 1e-6
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["bnwvad", "hlnet", "pel4vad", "transformer", "urdmu"])
def test_bf16_knows_where_the_segments_of_a_long_video_are(name):
    """It holds whole numbers up to 256 alone: neighbours that come later would have the same place."""
    model = model_of(name)
    items = items_of(model.dims, [600])
    (plain,), (low,) = score_items(model, items), score_items(model, items, "bf16")
    assert 0 < np.abs(plain - low).max() < 0.06 * plain.std()


def test_stores_that_do_not_fit_are_refused_before_anything_is_scored(tmp_path, monkeypatch):
    world = make_world(tmp_path, train=1, test=2, modalities=("rgb", "audio"))
    config = small_config()
    model, sound, video = Model(config, {"rgb": 8, "audio": 3}), world.stores[1], world.test[-1].id
    found = sound.read(video)
    shorter = replace(found.grid, num_frames=found.grid.num_frames - 32)
    spec = replace(sound.spec, stride=8)
    other = FeatureStore(tmp_path / "other", spec)
    for v in world.test:
        grid = spec.grid(v.num_frames)
        other.write(replace(sound.read(v.id), x=np.zeros((1, len(grid), 3), np.float32), grid=grid))
    monkeypatch.setattr(scored_module, "score_videos", lambda *a, **k: pytest.fail("it began"))
    with pytest.raises(ValueError, match=r"the stores do not show the same clips .*, stride 8\)"):
        scored(model, config.evaluate, world.test, [world.stores[0], other])
    sound.write(replace(found, x=found.x[:, :-2], grid=shorter))
    with pytest.raises(ValueError, match=f"{video}: the stores do not show the same clips .*{len(shorter)} clips"):
        scored(model, config.evaluate, world.test, world.stores)
    sound.path(video).unlink()
    with pytest.raises(StoreError, match=f"no features of '{video}'"):
        scored(model, config.evaluate, world.test, world.stores)
