"""What every registered head promises. A new file in mil/heads is tested here the same day.

A head with options that change its computation gets a line in VARIANTS; everything else is found by the registry.
"""

import pytest
import torch

from data.types import FeatureSpec
from mil import checkpoint
from mil.bags import Bag
from mil.config import validate
from mil.evaluate import evaluate_run
from mil.heads import heads
from mil.model import Model
from mil.train import fit
from tests.mil_helpers import make_world, random_bag, take

VARIANTS = {
    "ranking": [{"deepmil": True}, {"as_published": True, "l2": 1e-3}, {"topk": 3}],
}
CASES = [(name, options) for name in heads for options in ({}, *VARIANTS.get(name, []))]
each_head = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{n}-{','.join(o) or 'default'}" for n, o in CASES]
)
LENGTHS, LABELS = [6, 3, 9, 1, 5, 7], [1, 0, 0, 1, 1, 0]


def make(name, options, dim=6, seed=0):
    torch.manual_seed(seed)
    return heads.get(name)(dim, **options)


def numbers(head, bag):
    """Scores and weighted losses in evaluation mode."""
    out = head.eval()(bag)
    return out.scores.detach(), {k: v.detach() for k, v in head.loss(out, bag).items()}


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        assert float((found[name] - expected[name]).abs()) < tolerance, name


def test_every_variant_names_a_registered_head():
    assert set(VARIANTS) <= set(heads)
    assert CASES


@each_head
def test_padding_changes_nothing(name, options):
    head = make(name, options)
    scores, losses = numbers(head, random_bag(LENGTHS, LABELS))
    padded, padded_losses = numbers(head, random_bag(LENGTHS, LABELS, pad=5))
    assert (padded[:, : scores.shape[1]] - scores).abs().max() < 1e-6
    assert (padded[:, scores.shape[1] :] == 0).all()
    assert_close(padded_losses, losses)


@each_head
def test_a_video_scores_the_same_alone(name, options):
    head, bag = make(name, options).eval(), random_bag(LENGTHS, LABELS)
    together = head(bag).scores
    for b, length in enumerate(LENGTHS):
        one = take(bag, [b])
        cut = Bag({n: x[:, :, :length] for n, x in one.features.items()}, one.mask[:, :length], one.labels)
        assert (head(cut).scores[0] - together[b, :length]).abs().max() < 1e-6


@each_head
def test_classes_are_told_apart_by_label_and_not_by_position(name, options):
    """Anomalous first, normal first, mixed: the order inside each class stays, which is what pairing may depend on."""
    head, bag = make(name, options), random_bag(LENGTHS, LABELS)
    scores, losses = numbers(head, bag)
    for order in ([0, 3, 4, 1, 2, 5], [1, 2, 5, 0, 3, 4], [1, 0, 3, 2, 4, 5]):
        moved, moved_losses = numbers(head, take(bag, order))
        assert (moved - scores[order]).abs().max() < 1e-6
        assert_close(moved_losses, losses)


@each_head
def test_the_order_of_the_batch_changes_no_score_and_but_for_paired_losses_no_loss(name, options):
    head, bag = make(name, options), random_bag(LENGTHS, LABELS)
    scores, losses = numbers(head, bag)
    order = [5, 4, 3, 2, 1, 0]
    moved, moved_losses = numbers(head, take(bag, order))
    assert (moved - scores[order]).abs().max() < 1e-6
    if not options.get("deepmil"):
        assert_close(moved_losses, losses)


@each_head
@pytest.mark.parametrize("crops", [1, 5, 10])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_any_number_of_crops_and_segments(name, options, crops, length):
    head = make(name, options, dim=9)
    bag = random_bag([length] * 4, [0, 1, 0, 1], dims={"rgb": 6, "audio": 3}, crops={"rgb": crops})
    out = head.eval()(bag)
    assert out.scores.shape == (4, length)
    assert all(torch.isfinite(v) for v in head.loss(out, bag).values())
    # the order of the crops means nothing
    swapped = Bag({n: x.flip(1) for n, x in bag.features.items()}, bag.mask, bag.labels)
    assert (head(swapped).scores - out.scores).abs().max() < 1e-6


@each_head
def test_every_crop_and_every_modality_takes_part(name, options):
    head = make(name, options, dim=9).eval()
    bag = random_bag([4, 4], [0, 1], dims={"rgb": 6, "audio": 3}, crops={"rgb": 2})
    scores = head(bag).scores
    for modality, crop in (("rgb", 0), ("rgb", 1), ("audio", 0)):
        features = {n: x.clone() for n, x in bag.features.items()}
        features[modality][:, crop] += 1
        assert (head(Bag(features, bag.mask, bag.labels)).scores - scores).abs().max() > 1e-6, (modality, crop)


@each_head
def test_scores_lie_between_0_and_1_and_are_0_where_masked(name, options):
    head = make(name, options).eval()
    bag = random_bag(LENGTHS, LABELS, pad=2)
    loud = Bag({n: 100 * x for n, x in bag.features.items()}, bag.mask, bag.labels)
    for b in (bag, loud):
        scores = head(b).scores
        assert ((scores >= 0) & (scores <= 1)).all()
        assert (scores[~b.mask] == 0).all()
    assert (head(bag).scores[bag.mask] > 0).any()


@each_head
def test_losses_are_named_finite_scalars_and_reach_every_parameter(name, options):
    head = make(name, options).train()
    bag = random_bag([12] * 16, [0, 1] * 8)
    terms = head.loss(head(bag), bag)
    assert terms
    for key, term in terms.items():
        assert isinstance(key, str)
        assert term.shape == ()
        assert torch.isfinite(term)
        assert term.requires_grad, key
    torch.stack(list(terms.values())).sum().backward()
    silent = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@each_head
def test_the_seed_decides_everything(name, options):
    def once(seed):
        head = make(name, options, seed=seed).train()
        bag = random_bag(LENGTHS, LABELS)
        out = head(bag)
        total = torch.stack(list(head.loss(out, bag).values())).sum()
        total.backward()
        return out.scores.detach(), total.detach(), [p.grad for p in head.parameters()]

    (scores, total, grads), (again, total_again, grads_again) = once(3), once(3)
    assert torch.equal(scores, again)
    assert torch.equal(total, total_again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert not torch.equal(scores, once(4)[0])


@each_head
@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_a_batch_of_one_class_is_refused_with_both_counts(name, options, labels):
    head, bag = make(name, options), random_bag([3, 4], labels)
    counts = f"{sum(labels)} anomalous and {2 - sum(labels)} normal"
    with pytest.raises(ValueError, match=counts):
        head.loss(head(bag), bag)


@each_head
def test_a_checkpoint_gives_the_same_scores_to_the_bit(name, options, tmp_path):
    torch.manual_seed(0)
    values = {"head": {"name": name, **options}, "data": {"scale": "standardize"}}
    config = validate(values, "test")
    model = Model(config, {"rgb": 6, "audio": 3}).eval()
    model.scalers["rgb"].fit([torch.randn(2, 30, 6).numpy()])
    specs = [FeatureSpec("a", 6, crops=("left", "right")), FeatureSpec("b", 3, modality="audio")]
    checkpoint.save(
        tmp_path / "last", model.state_dict(), config, model.dims, specs, selected_by="the test, step 7", step=7
    )
    kept = checkpoint.load(tmp_path / "last")
    bag = random_bag(LENGTHS, LABELS, dims={"rgb": 6, "audio": 3}, crops={"rgb": 2})
    assert torch.equal(kept.model(bag).scores, model(bag).scores)
    assert not kept.model.training
    assert (kept.config, kept.specs, kept.selected_by, kept.step) == (config, tuple(specs), "the test, step 7", 7)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("contract"), train=16, test=6, crops=2, shift=3.0)


@each_head
def test_it_learns_planted_anomalies_from_video_labels_alone(name, options, world, request):
    """The real loop on a real store, the real evaluation: frame AUC of unseen videos, from defaults of the head."""
    values = {
        "head": {"name": name, **options},
        "data": {"scale": "standardize"},
        "train": {"steps": 200, "pairs": 8, "optimizer": {"name": "adam", "lr": 1e-3}},
    }
    config = validate(values, "test")
    run = world.run(request.node.name, config)
    fit(config, world.train, world.stores, run)
    found = evaluate_run(run).numbers
    assert found["auc"] > 0.95
    assert found["ano_auc"] > 0.95
