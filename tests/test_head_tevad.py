"""TEVAD against an independent numpy implementation on the authors' tensor names (tests/magnitude_reference)."""

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.tevad import TEVADHead
from mil.layers.magnitude import MagnitudeLoss
from tests.magnitude_reference import losses, mtn, sequences, shake, sigmoid, state_of, three_layers
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [7, 2, 9, 4, 5], [0, 1, 0, 1, 1]
DIMS = {"rgb": 8, "text": 4}
WEIGHTS = {"margin": 6.0, "alpha": 0.3, "smooth": 0.2, "sparse": 0.1}
FUSIONS = ["concat", "add", "product"]


def setup(fusion, text_crops=1, **options):
    torch.manual_seed(0)
    head = shake(TEVADHead(8, 4, fusion=fusion, hidden=(6, 5), **{**WEIGHTS, **options}).double()).eval()
    return head, random_bag(LENGTHS, LABELS, dims=DIMS, crops={"rgb": 2, "text": text_crops}, dtype=torch.float64)


def reference(head, bag, fusion):
    """Scores [(T_i,)] and features [(K, T_i, D)] of every video."""
    state, seen, said = state_of(head), sequences(bag, "rgb"), sequences(bag, "text")
    scores, features = [], []
    for visual, text in zip(seen, said, strict=True):
        together = []
        for x, y in zip(visual, text, strict=True):
            (a,), (b,) = mtn([x], state, "Aggregate"), mtn([y], state, "Aggregate_text")
            if fusion == "concat":
                together.append(np.concatenate([a, b], axis=1))
                continue
            a = np.maximum(a @ state["fc0.weight"].T + state["fc0.bias"], 0)
            together.append(a + b if fusion == "add" else a * b)
        features.append(np.stack(together))
        scores.append(sigmoid(three_layers(features[-1], state, ("fc1", "fc2", "fc3"))).mean(0))
    return scores, features


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("text_crops", [1, 2])
def test_scores_and_features_in_evaluation_are_those_of_the_authors_tensors(fusion, text_crops):
    head, bag = setup(fusion, text_crops)
    scores, features = reference(head, bag, fusion)
    out = head(bag)
    for b, length in enumerate(LENGTHS):
        assert np.abs(out.scores[b, :length].detach().numpy() - scores[b]).max() < 1e-10
        assert np.abs(out.aux["features"][b, :, :length].detach().numpy() - features[b]).max() < 1e-10
    assert scores[0].std() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("published", [False, True])
def test_each_loss_term_is_of_both_together(fusion, published):
    head, bag = setup(fusion, as_published=published)
    expected = losses(*reference(head, bag, fusion), LABELS, published=published, **WEIGHTS)
    assert {n: t.item() for n, t in head.loss(head(bag), bag).items()} == pytest.approx(expected, rel=1e-9)


def test_default_weights_are_those_of_the_authors_code():
    assert TEVADHead(8, 4).objective == MagnitudeLoss(3, 100.0, 1e-4, 8e-4, 8e-3, 0.7, False)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_dropout_of_either_part_before_the_fusion(fusion):
    """Features of visual and text are dropped apart; what goes through `fc0` once more after it, the sum never."""
    head, _ = setup(fusion, dropout=0.5)
    bag = random_bag([200] * 4, [0, 1, 0, 1], dims=DIMS, crops={"rgb": 2}, dtype=torch.float64)
    if head.bridge is not None:
        torch.nn.init.zeros_(head.bridge.weight)
        torch.nn.init.ones_(head.bridge.bias)  # 1 for each, so that after dropout 0 or 2 are left
    features = head.train()(bag).aux["features"].detach()
    if fusion == "concat":
        assert float((features == 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    elif fusion == "add":
        assert {0.0, 2.0} <= set(features.unique().tolist()), "dropped text, and 1 dropped or doubled"
        assert float(((features == 0) | (features == 2)).double().mean()) == pytest.approx(0.5, abs=0.05)
    else:
        assert float((features == 0).double().mean()) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("fusion", "visual", "first", "own"),
    [("concat", 2048, 2816, None), ("add", 2048, 768, (768, 2048)), ("add", 1024, 768, (768, 1024))],
)
def test_sizes_and_names_of_the_published_nets(fusion, visual, first, own):
    """UCF-Crime concatenates; the others add the captions to `fc0` of what is seen; XD-Violence has 1024 features."""
    with torch.device("meta"):
        head = TEVADHead(visual, 768, fusion=fusion)
    state = head.state_dict()
    shapes = {theirs: tuple(state[ours].shape) for theirs, ours in head.published().names.items()}
    assert len(shapes) == 41 * 2 + 6 + (0 if own is None else 2)
    assert shapes["Aggregate.conv_5.0.weight"] == (visual, visual, 3)
    assert shapes["Aggregate.conv_2.0.weight"] == (visual // 4, visual, 3)
    assert shapes["Aggregate_text.conv_1.0.weight"] == (192, 768, 3)
    assert shapes["Aggregate_text.non_local.W.0.weight"] == (192, 96, 1)
    assert shapes["fc1.weight"] == (512, first)
    assert shapes.get("fc0.weight") == own
    assert TEVADHead.infer(shapes) == ({"rgb": visual, "text": 768}, {"hidden": [512, 128], "fusion": fusion})


@pytest.mark.parametrize(
    ("options", "said"), [({"hidden": [3]}, "two hidden widths"), ({"fusion": "sum"}, "got fusion='sum'")]
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TEVADHead(8, 4, **options)


@pytest.mark.parametrize(
    ("name", "fusion", "steps", "pairs"),
    [
        ("tevad_ucf", "concat", 1000, 32),
        ("tevad_xd", "add", 1000, 32),
        ("tevad_sh", "add", 1000, 32),
        ("tevad_ped2", "add", 10000, 2),
    ],
)
def test_recipes_hold_what_the_authors_code_sets(name, fusion, steps, pairs):
    """coranholmes/TEVAD: the commands of its README, option.py, main.py, train.py."""
    config = configs.load(name)
    assert config.head.options == {
        "fusion": fusion,
        "hidden": [512, 128],
        "dropout": 0.7,
        "topk": 3,
        "margin": 100.0,
        "alpha": 1e-4,
        "smooth": 8e-4,
        "sparse": 8e-3,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "none")
    train = config.train
    assert (train.steps, train.sampler, train.pairs, train.samples) == (steps, "passes", pairs, "videos")
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 1e-3, 0.005)
    assert (train.lr_schedule, config.seed, config.select.rule) == ("constant", 4869, "last")
