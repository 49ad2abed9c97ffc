"""The WSAL head against plain loops in float64, written from the authors' code (ktr-hubrt/WSAL)."""

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.wsal import WSALHead
from mil.optim import Schedule
from mil.published import give_back, take_in
from tests.mil_helpers import random_bag, take

LENGTHS, LABELS = [7, 4, 1, 6, 2, 9], [0, 1, 0, 1, 1, 0]
WEIGHTS = {"smooth": 0.3, "sparse": 0.2}


def make(**options):
    torch.manual_seed(0)
    return WSALHead(6, hidden=(10, 5), **{**WEIGHTS, **options}).double().eval()


def bag_of(lengths=LENGTHS, labels=LABELS, crops=2, **more):
    return random_bag(lengths, labels, crops={"rgb": crops}, dtype=torch.float64, **more)


def authors_video(state, x):
    """One crop (T, D) of one video by itself -> semantic (T,), distances (T - 1,), scores (T,); their names."""
    w = {name: v.double().numpy() for name, v in state.items()}
    fea = [np.maximum(w["fc0.weight"] @ row + w["fc0.bias"], 0) for row in x]
    half = w["conv.weight"].shape[2] // 2
    padded = [fea[0]] * half + fea + [fea[-1]] * half
    seen = []
    for t in range(len(x)):
        out = w["conv.bias"].copy()
        for j in range(2 * half + 1):
            out += w["conv.weight"][:, :, j] @ padded[t + j]
        seen.append(out)
    semantic, f = [], []
    for row in seen:
        h = np.maximum(w["fc1_1.weight"] @ row + w["fc1_1.bias"], 0)
        semantic.append(1 / (1 + np.exp(-(w["fc1_2.weight"] @ h + w["fc1_2.bias"])[0])))
        h = np.maximum(w["fc2_1.weight"] @ row + w["fc2_1.bias"], 0)
        f.append(w["fc2_2.weight"] @ h + w["fc2_2.bias"])
    d = [1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(f[1:], f[:-1], strict=True)]
    dynamic = []
    for t in range(len(x)):
        near = [d[i] for i in (t - 1, t) if 0 <= i < len(d)]
        dynamic.append(sum(near) / len(near) if near else 0.0)
    return np.array(semantic), np.array(d), (np.array(dynamic) + semantic) / 2


def authors_all(head, bag):
    """Each video alone, the mean over its crops: lists of semantic, distances and scores."""
    state = give_back(head, head.published(), {})
    found = []
    for b, n in enumerate(bag.mask.sum(1).tolist()):
        crops = [authors_video(state, bag.x[b, k, :n].numpy()) for k in range(bag.x.shape[1])]
        found.append([np.mean([c[i] for c in crops], axis=0) for i in range(3)])
    return tuple(zip(*found, strict=True))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_scores_are_the_mean_of_semantics_and_of_the_distances_beside(kernel):
    head, bag = make(kernel=kernel), bag_of(pad=3)
    scores = head(bag).scores.detach().numpy()
    for b, expected in enumerate(authors_all(head, bag)[2]):
        assert np.abs(scores[b, : len(expected)] - expected).max() < 1e-12
        assert (scores[b, len(expected) :] == 0).all()


def test_an_end_has_one_distance_and_a_segment_between_the_mean_of_two():
    """With semantics of 1/2 everywhere the dynamic part can be read off the scores."""
    head, bag = make(), bag_of([4, 2, 1], [0, 1, 1], crops=1)
    torch.nn.init.zeros_(head.semantic2.weight)
    torch.nn.init.zeros_(head.semantic2.bias)
    out = head(bag)
    dynamic, d = 2 * out.scores - 0.5, out.aux["distances"]
    assert (d[0] > 1e-6).all()
    assert torch.allclose(dynamic[0], torch.stack([d[0, 0], (d[0, 0] + d[0, 1]) / 2, (d[0, 1] + d[0, 2]) / 2, d[0, 2]]))
    assert torch.allclose(dynamic[1, :2], d[1, [0, 0]])
    assert dynamic[2, 0] == 0  # by convention, a segment without neighbours
    assert (d[1, 1:] == 0).all()
    assert (d[2] == 0).all()


def test_scores_exceed_1_where_the_embedding_turns_round():
    """The range is [0, 1.5]: nothing is clamped, as in the authors' code."""
    head, bag = make(kernel=1), bag_of([3], [1], crops=1)
    for layer in (head.embed, head.context, head.dynamic1, head.dynamic2, head.semantic2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        # positive and negative first features light one of two units each, which embed to opposite ends
        head.embed.weight[0, 0], head.embed.weight[1, 0] = 1, -1
        for i in (0, 1):
            head.context.weight[i, i, 0] = head.dynamic1.weight[i, i] = 1
        head.dynamic2.weight[0, 0], head.dynamic2.weight[0, 1] = 1, -1
        head.semantic2.bias.fill_(20.0)
    bag.features["rgb"][0, 0, :, 0] = torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(head(bag).scores, torch.full((1, 3), 1.5, dtype=torch.float64))


def test_losses_are_two_rankings_of_pairs_sparsity_of_both_classes_and_smoothness_of_anomalous_videos():
    head, bag = make(margin=0.7), bag_of(pad=2)
    semantic, distances, _ = authors_all(head, bag)
    a, n = [1, 3, 4], [0, 2, 5]
    change = [max(d, default=0.0) for d in distances]
    span = [max(s) - min(s) for s in semantic]
    total = [sum(d) + sum(s) for d, s in zip(distances, semantic, strict=True)]
    steps = [(np.diff(d) ** 2).sum() + (np.diff(s) ** 2).sum() for d, s in zip(distances, semantic, strict=True)]
    expected = {
        "dynamic": np.mean([max(0.0, 0.7 - change[i] + change[j]) for i, j in zip(a, n, strict=True)]),
        "semantic": np.mean([max(0.0, 0.7 - span[i] + span[j]) for i, j in zip(a, n, strict=True)]),
        "sparse": 0.2 * (np.mean([total[i] for i in a]) + np.mean([total[i] for i in n])),
        "smooth": 0.3 * np.mean([steps[i] for i in a]),
    }
    found = {name: term.item() for name, term in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(expected, abs=1e-12)


def test_rankings_take_the_ith_anomalous_against_the_ith_normal_video():
    """A margin that some pairs reach makes the hinge of pairs differ from that of all combinations."""
    head, bag = make(margin=0.0), bag_of([8] * 6, [1, 0] * 3)
    span = [s.max() - s.min() for s in authors_all(head, bag)[0]]
    pairs = np.mean([max(0.0, span[i + 1] - span[i]) for i in (0, 2, 4)])
    swapped = np.mean([max(0.0, span[j] - span[i]) for i, j in ((0, 3), (2, 5), (4, 1))])
    assert abs(pairs - swapped) > 1e-4
    assert head.loss(head(bag), bag)["semantic"].item() == pytest.approx(pairs, abs=1e-12)
    moved = take(bag, [0, 3, 2, 5, 4, 1])
    assert head.loss(head(moved), moved)["semantic"].item() == pytest.approx(swapped, abs=1e-12)


def test_dropout_follows_the_embedding_and_both_inner_layers():
    """With everything dropped only biases are left: scores of a training step no longer depend on the features."""
    head = make(dropout=1.0).train()
    widths = []
    head.drop.register_forward_hook(lambda layer, given, found: widths.append(found.shape[-1]))
    one, other = (head(bag_of(seed=s)) for s in (0, 1))
    assert widths == [10, 5, 5] * 2
    assert torch.equal(one.scores, other.scores)
    assert torch.allclose(one.aux["semantic"][0, 0], head.semantic2.bias.sigmoid())
    assert (one.aux["distances"].abs() < 1e-12).all()


def test_the_authors_shapes():
    with torch.device("meta"):
        head = WSALHead(1024)
    own = head.state_dict()
    assert {theirs: tuple(own[ours].shape) for theirs, ours in head.published().names.items()} == {
        "fc0.weight": (512, 1024),
        "fc0.bias": (512,),
        "conv.weight": (512, 512, 5),
        "conv.bias": (512,),
        "fc1_1.weight": (128, 512),
        "fc1_1.bias": (128,),
        "fc1_2.weight": (1, 128),
        "fc1_2.bias": (1,),
        "fc2_1.weight": (128, 512),
        "fc2_1.bias": (128,),
        "fc2_2.weight": (128, 128),
        "fc2_2.bias": (128,),
    }
    # 524,800 + 1,311,232 + 65,664 + 129 + 65,664 + 16,512
    assert sum(p.numel() for p in head.parameters()) == 1_984_001


def test_size_and_widths_are_read_off_the_authors_file():
    head = WSALHead(9, hidden=(7, 4), kernel=3)
    state = give_back(head, head.published(), {})
    dims, options = WSALHead.infer({name: tuple(v.shape) for name, v in state.items()})
    assert (dims, options) == ({"rgb": 9}, {"hidden": (7, 4), "kernel": 3})
    torch.manual_seed(5)
    same = WSALHead(9, **options)
    take_in(same, same.published(), state)
    bag = random_bag([5, 3], [0, 1], dims={"rgb": 9})
    assert torch.equal(same.eval()(bag).scores, head.eval()(bag).scores)


@pytest.mark.parametrize("options", [{"hidden": [8]}, {"hidden": [8, 0]}, {"kernel": 4}, {"kernel": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"two hidden widths and an odd kernel, got hidden=.*kernel="):
        WSALHead(4, **options)


def test_recipe_holds_what_the_authors_code_sets():
    """Train.py, dataset.py, models.py."""
    config = configs.load("wsal_ucf")
    assert config.head.name == "wsal"
    assert config.head.options == {
        "hidden": [512, 128],
        "kernel": 5,
        "dropout": 0.8,
        "margin": 1.0,
        "smooth": 8e-5,
        "sparse": 8e-5,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("repeat", 32, "none")
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.eps) == ("adagrad", 1e-3, 0.0, None)
    assert (config.train.epochs, config.train.sampler, config.train.pairs) == (500, "passes", 30)
    assert config.select.rule == "last"
    schedule = Schedule(config.train, per_epoch=26)
    assert schedule.steps == 500 * 26
    for epoch, factor in ((1, 1), (300, 1), (301, 0.5), (400, 0.5), (401, 0.25), (500, 0.25)):
        assert schedule.factor(26 * (epoch - 1) + 1) == schedule.factor(26 * epoch) == factor


def test_motion_recipe_can_be_loaded():
    config = configs.load("motion_wsal")
    assert (config.head.name, config.data.scale, config.train.samples) == ("wsal", "standardize", "crops")
    WSALHead(470, **config.head.options)
