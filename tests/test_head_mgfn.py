"""The MGFN head against plain loops in float64, written from the authors' code (carolchenyx/MGFN.)."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.mgfn import MGFNHead
from mil.optim import Schedule
from mil.published import give_back, take_in
from tests.mil_helpers import random_bag, take

DIMS, DEPTHS, HEAD_DIM = [4, 8, 6], [2, 1, 1], 2
LENGTHS, LABELS = [7, 4, 1, 6, 2, 9], [0, 1, 0, 1, 1, 0]


def make(seed=0, **options):
    """Every parameter and statistic random: at first norms are 1 and biases 0, which hides a wrong one."""
    torch.manual_seed(seed)
    small = {"dims": DIMS, "depths": DEPTHS, "head_dim": HEAD_DIM, "kernel": 3}
    head = MGFNHead(6, **{**small, **options}).double().eval()
    with torch.no_grad():
        for name, value in head.state_dict().items():
            if value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value) if name.endswith("var") else 0.3 * torch.randn_like(value))
    return head


def bag_of(lengths=LENGTHS, labels=LABELS, crops=2, **more):
    return random_bag(lengths, labels, crops={"rgb": crops}, dtype=torch.float64, **more)


# -- the network -------------------------------------------------------------------------------------------------------


def convolve(x, weight, bias):
    """Rows (T, I) with (O, I, k) and zeros around -> (T, O)."""
    half, out = weight.shape[2] // 2, []
    for t in range(len(x)):
        y = np.zeros(weight.shape[0]) if bias is None else bias.copy()
        for j in range(weight.shape[2]):
            if 0 <= t + j - half < len(x):
                y = y + weight[:, :, j] @ x[t + j - half]
        out.append(y)
    return np.array(out)


def channel_norm(x, g, b):
    return np.array([(row - row.mean()) / (row.std() + 1e-5) for row in x]) * g[0, :, 0] + b[0, :, 0]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def glance(w, x):
    x = channel_norm(x, w["norm.g"], w["norm.b"])
    qkv = convolve(x, w["to_qkv.weight"], None)
    dim, heads = x.shape[1], x.shape[1] // HEAD_DIM
    q, k, v = qkv[:, :dim], qkv[:, dim : 2 * dim], qkv[:, 2 * dim :]
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        for i in range(len(x)):
            sim = np.array([q[i, part] @ k[j, part] for j in range(len(x))]) / math.sqrt(HEAD_DIM)
            share = np.exp(sim - sim.max())
            out[i, part] = (share / share.sum()) @ v[:, part]
    return convolve(out, w["to_out.weight"], w["to_out.bias"])


def focus(w, xs, training):
    """All videos at once, for the statistics of training are those of all."""
    rows = np.concatenate(xs)
    mean, var = (rows.mean(0), rows.var(0)) if training else (w["norm.running_mean"], w["norm.running_var"])
    out, heads = [], xs[0].shape[1] // HEAD_DIM
    for x in xs:
        v = convolve((x - mean) / np.sqrt(var + 1e-5) * w["norm.weight"] + w["norm.bias"], w["to_v.weight"], None)
        near = np.zeros_like(v)
        for c in range(v.shape[1]):
            h = c % heads
            near[:, c] = convolve(v[:, [c]], w["rel_pos.weight"][h : h + 1], w["rel_pos.bias"][h : h + 1])[:, 0]
        out.append(convolve(near, w["to_out.weight"], w["to_out.bias"]))
    return out, (rows.mean(0), rows.var(0, ddof=1))


def under(w, prefix):
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def authors_net(head, xs, *, training=False):
    """Each (T, D) -> scores (T,) and normalised features (T, width); and the focus blocks' statistics by name."""
    w = {n: v.double().numpy() for n, v in give_back(head, head.published(), {}).items()}
    statistics = {}
    hs = []
    for x in xs:
        norm = np.linalg.norm(x, axis=1)[:, None]
        h = convolve(x, w["to_tokens.weight"], w["to_tokens.bias"])
        hs.append(h + 0.1 * convolve(norm, w["to_mag.weight"], w["to_mag.bias"]))
    for s, depth in enumerate(DEPTHS):
        for i in range(depth):
            b = under(w, f"stages.{s}.0.layers.{i}.")
            hs = [h + convolve(h, b["0.weight"], b["0.bias"]) for h in hs]
            if s == 0:
                added = [glance(under(b, "1."), h) for h in hs]
            else:
                added, statistics[f"stages.{s}.0.layers.{i}.1.norm"] = focus(under(b, "1."), hs, training)
            hs = [h + a for h, a in zip(hs, added, strict=True)]
            wide = [gelu(convolve(channel_norm(h, b["2.0.g"], b["2.0.b"]), b["2.1.weight"], b["2.1.bias"])) for h in hs]
            hs = [h + convolve(y, b["2.4.weight"], b["2.4.bias"]) for h, y in zip(hs, wide, strict=True)]
        if s + 1 < len(DEPTHS):
            c = under(w, f"stages.{s}.1.")
            hs = [convolve(channel_norm(h, c["0.g"], c["0.b"]), c["1.weight"], c["1.bias"]) for h in hs]
    features = []
    for h in hs:
        z = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        features.append(z * w["to_logits.0.weight"] + w["to_logits.0.bias"])
    scores = [1 / (1 + np.exp(-(f @ w["fc.weight"][0] + w["fc.bias"][0]))) for f in features]
    return scores, features, statistics


def authors_all(head, bag, *, training=False):
    """Scores (T,) of each video, the mean over its crops, its features (K, T, width), and the statistics."""
    lengths, crops = bag.mask.sum(1).tolist(), bag.x.shape[1]
    xs = [bag.x[b, k, :n].numpy() for b, n in enumerate(lengths) for k in range(crops)]
    scores, features, statistics = authors_net(head, xs, training=training)
    groups = [slice(b * crops, (b + 1) * crops) for b in range(len(lengths))]
    return [np.mean(scores[g], axis=0) for g in groups], [np.stack(features[g]) for g in groups], statistics


def assert_scores(out, expected):
    scores = out.scores.detach().numpy()
    for row, one in zip(scores, expected, strict=True):
        assert np.abs(row[: len(one)] - one).max() < 1e-10
        assert (row[len(one) :] == 0).all()


def test_scores_are_those_of_the_authors_net():
    head, bag = make(), bag_of(pad=3)
    assert_scores(head(bag), authors_all(head, bag)[0])


def test_in_training_the_statistics_are_those_of_the_unpadded_segments():
    head, bag = make().train(), bag_of(pad=3)
    before = give_back(head, head.published(), {})
    expected, _, statistics = authors_all(head, bag, training=True)
    assert_scores(head(bag), expected)
    after = give_back(head, head.published(), {})
    assert len(statistics) == DEPTHS[1] + DEPTHS[2]
    for name, (mean, var) in statistics.items():
        for kind, new in (("mean", mean), ("var", var)):  # the variance that is kept is unbiased
            kept = 0.9 * before[f"{name}.running_{kind}"].numpy() + 0.1 * new
            assert np.abs(after[f"{name}.running_{kind}"].numpy() - kept).max() < 1e-10
        assert after[f"{name}.num_batches_tracked"] == before[f"{name}.num_batches_tracked"] + 1


def test_segments_without_features_have_finite_slopes():
    """Zeros, as decoders may leave them: the root of a variance of 0 has none."""
    head = MGFNHead(6, dims=[4, 8], depths=[1, 1], head_dim=4)
    for p in head.parameters():
        torch.nn.init.zeros_(p) if p.ndim == 1 else None
    bag = random_bag([3, 4], [0, 1])
    bag.features["rgb"].zero_()
    torch.stack(list(head.loss(head(bag), bag).values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


# -- the loss ----------------------------------------------------------------------------------------------------------

WEIGHTS = {"margin": 9.0, "apart": 0.5, "together": 0.7, "smooth": 0.3, "sparse": 0.2}


def selected(scores, features, keep=None):
    """Top 3 by the crops' mean L2 norm: the video's score, and L1 norms (K, 3) there."""
    l2 = np.linalg.norm(features, axis=2).mean(0) * (1 if keep is None else keep)
    at = list(np.argsort(-l2, kind="stable")[:3])
    video = np.mean([scores[t] for t in at])
    at += [at[-1]] * (3 - len(at))
    return video, np.abs(features).sum(2)[:, at]


def distance(u, v):
    """torch's pairwise_distance adds 1e-6 to every difference."""
    return math.sqrt(sum((a - b + 1e-6) ** 2 for a, b in zip(u, v, strict=True)))


def common_terms(scores, videos, labels, sparse_label):
    chosen = np.concatenate([s for s, y in zip(scores, labels, strict=True) if y == sparse_label])
    return {
        "bce": -np.mean([math.log(v if y else 1 - v) for v, y in zip(videos, labels, strict=True)]),
        "smooth": 0.3 * sum((np.diff(s) ** 2).sum() for s in scores),
        "sparse": 0.2 * math.sqrt((chosen**2).sum()),
    }


def measured(head, bag):
    return {name: term.item() for name, term in head.loss(head(bag), bag).items()}


def test_the_loss_compares_every_two_videos_crop_by_crop_and_keeps_anomalous_scores_sparse():
    head, bag = make(**WEIGHTS), bag_of(crops=3, pad=2)
    scores, features, _ = authors_all(head, bag)
    videos, m = zip(*(selected(s, f) for s, f in zip(scores, features, strict=True)), strict=True)
    high, low = [m[i] for i in (1, 3, 4)], [m[i] for i in (0, 2, 5)]
    apart = [max(0.0, 9 - distance(a[k], n[k])) ** 2 for a in high for n in low for k in range(3)]
    together = 0.0
    for group in (high, low):
        pairs = [(u, v) for i, u in enumerate(group) for j, v in enumerate(group) if i != j]
        together += np.mean([distance(u[k], v[k]) ** 2 for u, v in pairs for k in range(3)])
    expected = common_terms(scores, videos, LABELS, 1) | {"apart": 0.5 * np.mean(apart), "together": 0.7 * together}
    assert min(apart) < max(apart)
    assert measured(head, bag) == pytest.approx(expected, abs=1e-9)


def authors_contrasts(high, low):
    """Their lists: all videos' first crops, then all second crops; halves of it against each other."""
    a, n = ([video[k] for k in range(len(group[0])) for video in group] for group in (high, low))
    apart = np.mean([max(0.0, 9 - distance(u, v)) ** 2 for u, v in zip(a, n, strict=True)])
    half = len(a) // 2
    together = sum(
        np.mean([distance(u, v) ** 2 for u, v in zip(g[half : 2 * half], g[:half], strict=True)]) for g in (a, n)
    )
    return {"apart": 0.5 * apart, "together": 0.7 * together}


@pytest.mark.parametrize("crops", [1, 2, 3, 4])
def test_as_published_compares_halves_of_the_crops_and_keeps_normal_scores_sparse(crops):
    head, bag = make(as_published=True, **WEIGHTS), bag_of(crops=crops)
    scores, features, _ = authors_all(head, bag)
    videos, m = zip(*(selected(s, f) for s, f in zip(scores, features, strict=True)), strict=True)
    contrasts = authors_contrasts([m[i] for i in (1, 3, 4)], [m[i] for i in (0, 2, 5)])
    assert measured(head, bag) == pytest.approx(common_terms(scores, videos, LABELS, 0) | contrasts, abs=1e-9)


def test_as_published_with_an_even_number_of_crops_never_compares_two_videos_of_a_class():
    """Identical crops: the published contrasts within a class vanish, those of the default do not."""
    bag = bag_of([5] * 4, [0, 0, 1, 1], crops=4)
    bag.features["rgb"][:] = bag.features["rgb"][:, :1].clone()
    assert measured(make(as_published=True, **WEIGHTS), bag)["together"] < 1e-9
    assert measured(make(**WEIGHTS), bag)["together"] > 1e-3


def test_a_class_of_one_video_has_nothing_to_be_drawn_together_with():
    bag = bag_of([5, 4], [0, 1], crops=1)
    for published in (False, True):
        assert measured(make(as_published=published, **WEIGHTS), bag)["together"] == 0


def test_selection_hides_segments_while_training_first_of_the_anomalous_videos():
    head, bag = make(**WEIGHTS).train(), bag_of([20] * 4, [0, 1, 1, 0])
    out = head(bag)
    torch.manual_seed(7)
    found = {name: term.item() for name, term in head.loss(out, bag).items()}
    torch.manual_seed(7)
    one, two = (torch.nn.functional.dropout(torch.ones(2, 20, dtype=torch.float64), 0.7).numpy() for _ in range(2))
    keep = [two[0], one[0], one[1], two[1]]
    features = out.aux["features"].detach().numpy()
    scores = out.scores.detach().numpy()
    hidden = [selected(s, f, k)[0] for s, f, k in zip(scores, features, keep, strict=True)]
    seen = [selected(s, f)[0] for s, f in zip(scores, features, strict=True)]
    labels = bag.labels.tolist()
    assert min((k > 0).sum() for k in keep) >= 3, "another seed: fewer survivors leave the choice to torch"
    assert found["bce"] == pytest.approx(common_terms(scores, hidden, labels, 1)["bce"], abs=1e-9)
    assert abs(found["bce"] - common_terms(scores, seen, labels, 1)["bce"]) > 1e-6


@pytest.mark.parametrize("published", [False, True])
def test_gradients_agree_with_finite_differences_where_the_selection_is_clear(published):
    """Random norms, as after training: at first the vectors are too much alike for any step."""
    head, bag = make(as_published=published, **WEIGHTS), bag_of(crops=1)
    parameters = list(head.parameters())
    ways = [torch.randn_like(p) for p in parameters]

    def total():
        return torch.stack(list(head.loss(head(bag), bag).values())).sum()

    @torch.no_grad()
    def after(step):
        for p, way in zip(parameters, ways, strict=True):
            p.add_(step * way)
        return total()

    grads = torch.autograd.grad(total(), parameters)
    slope = float(after(1e-6) - after(-2e-6)) / 2e-6
    assert sum(float((g * w).sum()) for g, w in zip(grads, ways, strict=True)) == pytest.approx(slope, rel=1e-5)


def test_the_order_of_the_batch_changes_the_published_loss_alone():
    bag = bag_of()
    for published in (False, True):
        head = make(as_published=published, **WEIGHTS)
        one, other = (measured(head, b) for b in (bag, take(bag, [3, 4, 0, 1, 2, 5])))
        assert (one == pytest.approx(other, abs=1e-9)) != published


# -- the authors' files ------------------------------------------------------------------------------------------------


def test_the_authors_names_shapes_and_size():
    """145 tensors, 28,652,773 parameters at D = 2048."""
    with torch.device("meta"):
        head = MGFNHead(2048)
    own, names = head.state_dict(), head.published().names
    shapes = {theirs: tuple(own[ours].shape) for theirs, ours in names.items()}
    assert len(shapes) == 145
    assert sum(p.numel() for p in head.parameters()) == 28_652_773
    expected = {"to_tokens.weight": (64, 2048, 3), "to_mag.weight": (64, 1, 3), "fc.weight": (1, 1024)}
    expected |= {"to_logits.0.weight": (1024,), "to_tokens.bias": (64,), "to_mag.bias": (64,), "fc.bias": (1,)}
    for s, (dim, depth) in enumerate(zip((64, 128, 1024), (3, 3, 2), strict=True)):
        for i in range(depth):
            b = f"stages.{s}.0.layers.{i}"
            expected |= {f"{b}.0.weight": (dim, dim, 3), f"{b}.0.bias": (dim,)}
            expected |= {f"{b}.2.0.g": (1, dim, 1), f"{b}.2.0.b": (1, dim, 1)}
            expected |= {f"{b}.2.1.weight": (4 * dim, dim, 1), f"{b}.2.4.weight": (dim, 4 * dim, 1)}
            expected |= {f"{b}.1.to_out.weight": (dim, dim, 1), f"{b}.1.to_out.bias": (dim,)}
            if s == 0:
                expected |= {f"{b}.1.norm.g": (1, dim, 1), f"{b}.1.norm.b": (1, dim, 1)}
                expected[f"{b}.1.to_qkv.weight"] = (3 * dim, dim, 1)
            else:
                expected |= {f"{b}.1.norm.{p}": (dim,) for p in ("weight", "bias", "running_mean", "running_var")}
                expected |= {f"{b}.1.to_v.weight": (dim, dim, 1), f"{b}.1.rel_pos.weight": (dim // 64, 1, 5)}
                expected |= {f"{b}.1.rel_pos.bias": (dim // 64,), f"{b}.1.norm.num_batches_tracked": ()}
    expected |= {"stages.0.1.0.g": (1, 64, 1), "stages.0.1.1.weight": (128, 64, 1)}
    expected |= {"stages.1.1.0.b": (1, 128, 1), "stages.1.1.1.weight": (1024, 128, 1), "stages.1.1.1.bias": (1024,)}
    assert expected.items() <= shapes.items()
    assert MGFNHead.infer(shapes) == (
        {"rgb": 2048},
        {"dims": (64, 128, 1024), "depths": (3, 3, 2), "head_dim": 64, "kernel": 5},
    )


def test_sizes_are_read_off_the_authors_file():
    head = make()
    state = {n: v.float() if v.is_floating_point() else v for n, v in give_back(head, head.published(), {}).items()}
    dims, options = MGFNHead.infer({name: tuple(v.shape) for name, v in state.items()})
    assert (dims, options) == ({"rgb": 6}, {"dims": (4, 8, 6), "depths": (2, 1, 1), "head_dim": 2, "kernel": 3})
    same = MGFNHead(6, **options)
    take_in(same, same.published(), state)
    bag = random_bag([5, 3], [0, 1])
    assert torch.allclose(same.eval()(bag).scores, head.float()(bag).scores, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"dims": [64]}, {"dims": [64, 100], "depths": [1, 1]}, {"depths": [3, 0, 2]}, {"topk": 0}, {"kernel": 4}],
)
def test_impossible_options_are_refused(options):
    with torch.device("meta"), pytest.raises(ValueError, match=r"mgfn needs .*, got "):
        MGFNHead(4, **options)


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_recipe_holds_what_the_authors_code_sets():
    """option.py, main.py, train.py."""
    config = configs.load("mgfn_ucf")
    assert config.head.name == "mgfn"
    assert config.head.options == {
        "dims": [64, 128, 1024],
        "depths": [3, 3, 2],
        "head_dim": 64,
        "kernel": 5,
        "amplify": 0.1,
        "topk": 3,
        "dropout": 0.7,
        "margin": 200.0,
        "apart": 1e-6,
        "together": 1e-3,
        "smooth": 8e-4,
        "sparse": 8e-3,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("segments", 32, "none")
    train, optimizer = config.train, config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-3, 5e-4)
    assert (train.epochs, train.sampler, train.shuffle, train.pairs, train.samples) == (
        1000,
        "passes",
        False,
        16,
        "videos",
    )
    assert {Schedule(train, per_epoch=50).factor(s) for s in (1, 25_000, 50_000)} == {1.0}
    assert config.select.rule == "last"


def test_xd_recipe_differs_in_its_samples():
    ucf, xd = (configs.load(f"mgfn_{name}") for name in ("ucf", "xd"))
    assert xd.head == ucf.head
    assert xd.train.model_dump() == {**ucf.train.model_dump(), "samples": "crops"}


def test_motion_recipe_can_be_loaded():
    config = configs.load("motion_mgfn")
    assert (config.head.name, config.data.scale) == ("mgfn", "standardize")
    MGFNHead(470, **config.head.options)
