"""What every registered head promises. A new file in mil/heads is tested here the same day.

A head that is large, or has options that change its computation, says so in tests/cases/NAME.py; everything else is
found by the registry. What a paper forces a head to break stands in its `exceptions`, and must break.
"""

import importlib
import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from data.types import FeatureSpec
from mil import checkpoint
from mil.bags import Bag
from mil.config import SelectConfig, validate
from mil.evaluate import evaluate_run
from mil.heads import Progress, heads
from mil.loop import Loop
from mil.model import Model
from mil.optimistic import optimistic_look
from mil.published import PublishedError, give_back, take_in
from mil.train import fit
from tests.mil_helpers import make_world, random_bag, take

LENGTHS, LABELS = [6, 3, 9, 1, 5, 7], [1, 0, 0, 1, 1, 0]
CLASSES = ("Fighting", "Robbery")


@cache
def case(name):
    try:
        return importlib.import_module(f"tests.cases.{name}")
    except ModuleNotFoundError:
        return None


def options_of(name, variant=()):
    own = {"classes": CLASSES} if heads.get(name).takes_classes else {}
    return {**own, **getattr(case(name), "SMALL", {}), **dict(variant)}


CASES = [(name, variant) for name in heads for variant in ({}, *getattr(case(name), "VARIANTS", []))]


def _id(name, variant):
    return f"{name}-{','.join(f'{k}={v}' if not isinstance(v, bool) else k for k, v in variant.items()) or 'default'}"


DEFAULTS = [(name, {}) for name in heads]
each_head = pytest.mark.parametrize(("name", "variant"), CASES, ids=[_id(*c) for c in CASES])
# the whole loop takes seconds: options that change a loss are held to what is above
each_default = pytest.mark.parametrize(("name", "variant"), DEFAULTS, ids=list(heads))


def dims_of(name, *, several=False):
    """Feature sizes a head wants: its own parts; else one modality, or two side by side."""
    named = {"visual": ("rgb", 6), "audio": ("audio", 3), "text": ("text", 5)}
    parts = heads.get(name).modalities
    if parts:
        return dict(named[p.split("|")[0]] for p in parts)
    return {"rgb": 6, "audio": 3} if several else {"rgb": 6}


def make(name, variant=(), dims=None, seed=0):
    torch.manual_seed(seed)
    kind = heads.get(name)
    return kind(*kind.sizes(dims or dims_of(name)), **options_of(name, variant))


def bag_for(name, lengths=LENGTHS, labels=LABELS, *, several=False, crops=1, **more):
    """Random features in the modalities that the head takes, as a training bag: with classes and indices."""
    dims = dims_of(name, several=several)
    bag = random_bag(lengths, labels, dims=dims, crops={n: 1 if n == "audio" else crops for n in dims}, **more)
    shown = torch.zeros(len(labels), len(CLASSES), dtype=bag.labels.dtype)
    for row, label in enumerate(labels):
        shown[row, row % len(CLASSES)] = label
    return replace(bag, classes=shown, index=torch.arange(len(labels)))


_exceptions = {}  # by case, since each is asked for by every test


@pytest.fixture(autouse=True)
def _excused(request):
    """What a head declares as its paper's is expected to fail here, strictly."""
    values = getattr(request.node, "callspec", None)
    if values is None or "name" not in values.params:
        return
    name, variant = values.params["name"], values.params.get("variant", {})
    if (key := _id(name, variant)) not in _exceptions:
        _exceptions[key] = make(name, variant).exceptions()
    reason = _exceptions[key].get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def numbers(head, bag):
    """Scores and weighted losses in evaluation mode."""
    out = head.eval()(bag)
    return out.scores.detach(), {k: v.detach() for k, v in head.loss(out, bag).items()}


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        assert float((found[name] - expected[name]).abs()) < tolerance * (1 + float(expected[name].abs())), name


def test_every_exception_and_every_case_names_something_that_there_is():
    for name, variant in CASES:
        assert set(make(name, variant).exceptions()) <= set(globals()), name
    for module in importlib.resources.files("tests.cases").iterdir():
        stem = module.name.removesuffix(".py")
        assert stem in heads.names() or not module.name.endswith(".py") or stem == "__init__", stem
    assert CASES


@each_head
def test_padding_changes_nothing(name, variant):
    head = make(name, variant)
    scores, losses = numbers(head, bag_for(name))
    padded, padded_losses = numbers(head, bag_for(name, pad=5))
    assert (padded[:, : scores.shape[1]] - scores).abs().max() < 2e-6
    assert (padded[:, scores.shape[1] :] == 0).all()
    assert_close(padded_losses, losses)


@each_head
def test_a_video_scores_the_same_alone(name, variant):
    head, bag = make(name, variant).eval(), bag_for(name)
    together = head(bag).scores
    for b, length in enumerate(LENGTHS):
        one = take(bag, [b])
        cut = Bag({n: x[:, :, :length] for n, x in one.features.items()}, one.mask[:, :length], one.labels)
        assert (head(cut).scores[0] - together[b, :length]).abs().max() < 2e-6


@each_head
def test_classes_are_told_apart_by_label_and_not_by_position(name, variant):
    """Anomalous first, normal first, mixed: the order inside each class stays, which is what pairing may depend on."""
    head, bag = make(name, variant), bag_for(name)
    scores, losses = numbers(head, bag)
    for order in ([0, 3, 4, 1, 2, 5], [1, 2, 5, 0, 3, 4], [1, 0, 3, 2, 4, 5]):
        moved, moved_losses = numbers(head, take(bag, order))
        assert (moved - scores[order]).abs().max() < 2e-6
        assert_close(moved_losses, losses)


@each_head
def test_the_order_of_the_batch_changes_no_score(name, variant):
    head, bag = make(name, variant), bag_for(name)
    scores, order = numbers(head, bag)[0], [5, 4, 3, 2, 1, 0]
    assert (numbers(head, take(bag, order))[0] - scores[order]).abs().max() < 2e-6


@each_head
def test_the_order_of_the_batch_changes_no_loss(name, variant):
    head, bag = make(name, variant), bag_for(name)
    losses = numbers(head, bag)[1]
    for order in ([5, 4, 3, 2, 1, 0], [3, 4, 0, 1, 2, 5]):  # the second moves one class against the other
        assert_close(numbers(head, take(bag, order))[1], losses)


@each_head
def test_any_number_of_crops_and_segments(name, variant):
    head = make(name, variant, dims_of(name, several=True)).eval()
    for crops, length in itertools.product((1, 5, 10), (1, 2, 7)):
        bag = bag_for(name, [length] * 4, [0, 1, 0, 1], several=True, crops=crops)
        out = head(bag)
        assert out.scores.shape == (4, length)
        assert torch.isfinite(out.scores).all()
        assert all(torch.isfinite(v) for v in head.loss(out, bag).values())
        # the order of the crops means nothing
        swapped = replace(bag, features={n: x.flip(1) for n, x in bag.features.items()})
        assert (head(swapped).scores - out.scores).abs().max() < 2e-6, (crops, length)


@each_head
def test_a_video_scores_the_mean_of_its_crops(name, variant):
    """What scoring crops one by one relies on."""
    head, bag = make(name, variant).eval(), bag_for(name, crops=3)
    alone = torch.stack([head(bag.crop(k)).scores for k in range(3)]).mean(0)
    assert (head(bag).scores - alone).abs().max() < 2e-6


@each_head
def test_every_crop_and_every_modality_takes_part(name, variant):
    dims = dims_of(name, several=True)
    head = make(name, variant, dims).eval()
    bag = bag_for(name, [4, 4], [0, 1], several=True, crops=2)
    scores = head(bag).scores
    for modality, x in bag.features.items():
        for crop in range(x.shape[1]):
            features = {n: v.clone() for n, v in bag.features.items()}
            features[modality][:, crop] += torch.linspace(-1, 1, 4)[None, :, None] + torch.randn(dims[modality])
            moved = head(replace(bag, features=features)).scores
            assert (moved - scores).abs().max() > 1e-6, (modality, crop)


@each_head
def test_scores_lie_between_0_and_1(name, variant):
    head = make(name, variant).eval()
    bag = bag_for(name, pad=2)
    for b in (bag, replace(bag, features={n: 100 * x for n, x in bag.features.items()})):
        scores = head(b).scores
        assert ((scores >= 0) & (scores <= 1)).all()


@each_head
def test_scores_are_0_where_masked_and_finite(name, variant):
    head = make(name, variant).eval()
    bag = bag_for(name, pad=2)
    for b in (bag, replace(bag, features={n: 100 * x for n, x in bag.features.items()})):
        scores = head(b).scores
        assert (scores[~b.mask] == 0).all()
        assert torch.isfinite(scores).all()
    assert (head(bag).scores[bag.mask] > 0).any()


@each_head
def test_losses_are_named_finite_scalars_and_reach_every_parameter(name, variant):
    head = make(name, variant).train()
    bag = bag_for(name, [12] * 16, [0, 1] * 8)
    terms = head.loss(head(bag), bag)
    assert terms
    for key, term in terms.items():
        assert isinstance(key, str)
        assert term.shape == ()
        assert torch.isfinite(term)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    silent = [n for n, p in head.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert not silent


@each_head
def test_gradients_agree_with_finite_differences(name, variant):
    """In float64 and evaluation mode, along a random direction in each parameter; up to four whose slopes are of one
    magnitude go one such step together, so that none hides behind a steeper one."""
    head, bag = make(name, variant).double().eval(), bag_for(name, dtype=torch.float64)

    def total():
        return torch.stack(list(head.loss(head(bag), bag).values())).sum()

    named = [(n, p) for n, p in head.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(total(), [p for _, p in named], allow_unused=True)
    generator = torch.Generator().manual_seed(1)
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for _, p in named]
    ways = [way / way.norm() for way in ways]
    slopes = [0.0 if grad is None else float((grad * way).sum()) for grad, way in zip(found, ways, strict=True)]
    groups = []
    for i in sorted(range(len(named)), key=lambda i: abs(slopes[i])):
        if not groups or len(groups[-1]) == 4 or abs(slopes[i]) > 10 * max(abs(slopes[groups[-1][0]]), 1e-6):
            groups.append([])
        groups[-1].append(i)
    step = 1e-6
    for group in groups:
        with torch.no_grad():
            start = [named[i][1].clone() for i in group]
            ends = []
            for sign in (1, -1):
                for i, at in zip(group, start, strict=True):
                    named[i][1].copy_(at + sign * step * ways[i])
                ends.append(total())
            for i, at in zip(group, start, strict=True):
                named[i][1].copy_(at)
        expected = float((ends[0] - ends[1]) / (2 * step))
        slope = sum(slopes[i] for i in group)
        assert slope == pytest.approx(expected, abs=1e-6, rel=1e-4), [named[i][0] for i in group]


@each_head
def test_the_seed_decides_everything(name, variant):
    def once(seed):
        head = make(name, variant, seed=seed).train()
        bag = bag_for(name)
        out = head(bag)
        total = torch.stack(list(head.loss(out, bag).values())).sum()
        total.backward()
        return out.scores.detach(), total.detach(), [p.grad for p in head.parameters()]

    (scores, total, grads), (again, total_again, grads_again) = once(3), once(3)
    assert torch.equal(scores, again)
    assert torch.equal(total, total_again)
    for a, b in zip(grads, grads_again, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert not torch.equal(scores, once(4)[0])


@each_head
@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_a_batch_of_one_class_is_refused_with_both_counts_or_gives_a_finite_loss(name, variant, labels):
    head, bag = make(name, variant), bag_for(name, [3, 4], labels)
    if not head.compares:
        assert all(torch.isfinite(v) for v in head.loss(head(bag), bag).values())
        return
    counts = f"{sum(labels)} anomalous and {2 - sum(labels)} normal"
    with pytest.raises(ValueError, match=counts):
        head.loss(head(bag), bag)


@each_head
def test_a_checkpoint_gives_the_same_scores_to_the_bit(name, variant, tmp_path):
    torch.manual_seed(0)
    values = {"head": {"name": name, **options_of(name, variant)}, "data": {"scale": "standardize"}}
    config = validate(values, "test")
    dims = dims_of(name, several=True)
    model = Model(config, dims).eval()
    model.scalers["rgb"].fit(lambda: [torch.randn(2, 30, 6).numpy()])
    crops = {n: ("full",) if n == "audio" else ("left", "right") for n in dims}
    specs = [FeatureSpec(f"of_{n}", d, modality=n, crops=crops[n]) for n, d in dims.items()]
    checkpoint.save(
        tmp_path / "last", model.state_dict(), config, model.dims, specs, selected_by="the test, step 7", step=7
    )
    kept = checkpoint.load(tmp_path / "last")
    bag = bag_for(name, several=True, crops=2)
    assert torch.equal(kept.model(bag).scores, model(bag).scores)
    assert not kept.model.training
    assert (kept.config, kept.specs, kept.selected_by, kept.step) == (config, tuple(specs), "the test, step 7", 7)


@pytest.mark.parametrize("name", list(heads))
def test_the_authors_files_go_in_and_come_out_to_the_bit(name):
    head = make(name)
    form = head.published()
    if form is None:
        pytest.skip("no published format")
    own = head.state_dict()
    assert sorted(form.names.values()) == sorted(set(own) - form.extra), "each tensor of ours is one of theirs, once"
    assert not set(form.names) & set(form.unused)
    theirs = {n: torch.rand_like(own[ours], dtype=torch.float32).to(own[ours].dtype) for n, ours in form.names.items()}
    theirs |= {n: torch.rand(shape) for n, shape in form.unused.items()}
    kept = take_in(head, form, theirs)
    back = give_back(head, form, kept)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[n], theirs[n]) for n in theirs)
    dims, options = heads.get(name).infer({n: tuple(v.shape) for n, v in theirs.items()})
    same = heads.get(name)(*heads.get(name).sizes(dims), **{**options_of(name), **options})
    take_in(same, same.published(), theirs)
    bag = bag_for(name)
    assert torch.equal(same.eval()(bag).scores, head.eval()(bag).scores)
    first = next(iter(form.names))
    with pytest.raises(PublishedError, match=f"missing: {first}".replace(".", r"\.")):
        take_in(head, form, {n: v for n, v in theirs.items() if n != first})
    with pytest.raises(PublishedError, match="unknown: something"):
        take_in(head, form, {**theirs, "something": torch.zeros(2)})


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Planted anomalies in the modalities that a head wants; made once for each set of modalities."""

    @cache
    def of(modalities, train, test):
        root = tmp_path_factory.mktemp("contract")
        return make_world(root, train=train, test=test, crops=2, shift=3.0, modalities=modalities)

    return lambda name, train=16, test=6: of(tuple(dims_of(name)), train, test)


def contract_config(name, variant, **train):
    learns = getattr(case(name), "LEARNS", {}) if not train else {}
    values = {
        "head": {"name": name, **options_of(name, variant)},
        "data": {"scale": "standardize", **({"count": 12} if train else {})},
        "train": {"steps": 200, "pairs": 8, "batch": 16, "optimizer": {"name": "adam", "lr": 1e-3}, **train},
    }
    values["head"].pop("classes", None)  # filled from the training videos
    for part, own in learns.items():
        values[part] = {**values.get(part, {}), **own}
    return validate(values, "test")


@each_default
def test_it_learns_planted_anomalies_from_video_labels_alone(name, variant, worlds, request):
    """The real loop on a real store, the real evaluation: frame AUC of unseen videos, from defaults of the head."""
    world = worlds(name)
    run = world.run(request.node.name, config := contract_config(name, variant))
    fit(config, world.train, world.stores, run)
    found = evaluate_run(run).numbers
    for metric, least in getattr(case(name), "REACHES", {"auc": 0.95, "ano_auc": 0.95}).items():
        assert found[metric] > least, metric


@pytest.mark.parametrize(
    ("name", "variant", "also"),
    [*((name, variant, ()) for name, variant in DEFAULTS), ("mist", {}, ("val", "test"))],
    ids=[*heads, "mist-every rule"],
)
def test_a_resumed_run_ends_with_the_same_bytes(name, variant, also, worlds, request, monkeypatch):
    """Interrupted in the middle of a step, after the last state was saved; several stages fit into these few steps."""
    world = worlds(name, train=6, test=3)
    config = contract_config(name, variant, steps=9, save_every=2, pairs=4, batch=8, ema=0.9)
    config = config.model_copy(update={"select": SelectConfig(also=also, every=3)})
    observer = optimistic_look(config, world.test, world.stores) if also else None
    straight, broken = (world.run(f"{request.node.name}-{kind}", config) for kind in ("straight", "broken"))
    fit(config, world.train, world.stores, straight, observer=observer)
    update = Loop.update

    def stop(self, step):
        if step == 6:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(Loop, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(config, world.train, world.stores, broken, observer=observer)
    monkeypatch.undo()
    fit(config, world.train, world.stores, broken, resume=True, observer=observer)
    for rule in config.select.rules:
        for end in (".safetensors", ".json"):
            files = [run.checkpoint_of(rule).with_suffix(end).read_bytes() for run in (straight, broken)]
            assert files[0] == files[1]
    assert (straight.root / "metrics.jsonl").read_bytes() == (broken.root / "metrics.jsonl").read_bytes()


def test_progress_counts_whole_epochs():
    assert [Progress(step, 30, 7).epoch for step in (0, 6, 7, 13, 14)] == [0, 0, 1, 1, 2]
    assert math.isclose(Progress(15, 30, 7).step / 30, 0.5)
