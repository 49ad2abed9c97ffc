"""PEL4VAD against an independent numpy implementation, in loops, under the names of the authors' state dict."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mil import config as configs
from mil.heads.pel4vad import PEL4VADHead
from mil.layers.prompts import prompt_table
from mil.published import give_back
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [20, 3, 33, 1, 17, 8], [1, 0, 0, 1, 1, 0]
DIM, CLASSES = 7, ("Arson", "Fighting", "Robbery")
SHOWN = [[0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


def make(**options):
    torch.manual_seed(0)
    sizes = {"attention": 4, "hidden": (6, 5), "kernel": 3, "window": 5, "classes": CLASSES}
    head = PEL4VADHead(DIM, **{**sizes, **options}).double().eval()
    with torch.no_grad():
        for name, p in head.named_parameters():
            if p.ndim > 1:
                p.mul_(2.5)
            elif name not in ("gamma", "bias", "mix", "log_scale"):
                p.add_(0.5 * torch.randn_like(p))
        head.mix.fill_(0.4)
        head.log_scale.fill_(-math.log(options.get("temperature", 0.09)))  # again, in float64
    return head


def make_bag(pad=0, lengths=LENGTHS, labels=LABELS, shown=SHOWN):
    bag = random_bag(lengths, labels, dims={"rgb": DIM}, crops={"rgb": 2}, pad=pad, dtype=torch.float64)
    return replace(bag, classes=torch.tensor(shown, dtype=torch.float64))


def softmax(z):
    p = np.exp(np.array(z) - max(z))
    return p / p.sum()


def one_video(state, x, *, window, norm):
    """(T, D) -> scores (T,) and the features that prompts draw, (T, H); in the authors' names."""
    s = {n: v.double().numpy() for n, v in state.items()}
    T, inner = len(x), "self_attention.self_attn."

    def linear(name, v):
        return s[f"{name}.weight"].reshape(-1, v.shape[-1]) @ v + s[f"{name}.bias"]

    def gelu(v):
        return np.array([0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in v])

    q, k, v = ([linear(inner + n, row) for row in x] for n in "qkv")
    share = 1 / (1 + math.exp(-float(s[inner + "alpha"])))
    mixed = []
    for i in range(T):
        z = [
            q[i] @ k[j] / math.sqrt(len(q[i]))
            + math.exp(-abs(s["self_attention.loc_adj.w"][0] * (i - j) ** 2 - s["self_attention.loc_adj.b"][0]))
            for j in range(T)
        ]
        seen = [min(max(i - window // 2 + step, 0), T - 1) for step in range(window)]
        near = [z[j] if j in seen else -1e9 for j in range(T)]
        mixed.append(
            share * sum(w * r for w, r in zip(softmax(z), v, strict=True))
            + (1 - share) * sum(w * r for w, r in zip(softmax(near), v, strict=True))
        )
    mixed = np.array(mixed)
    if norm:
        mixed = np.sign(mixed) * np.sqrt(np.abs(mixed))
        mixed = mixed / np.sqrt((mixed**2).sum(axis=0))  # every feature over time
    features, rows = [], []
    for i in range(T):
        y = x[i] + linear(inner + "o", mixed[i])
        y = (y - y.mean()) / np.sqrt(((y - y.mean()) ** 2).mean() + 1e-5)
        y = y * s["self_attention.norm.weight"] + s["self_attention.norm.bias"]
        features.append(gelu(linear("self_attention.linear1", y)))
        rows.append(gelu(linear("self_attention.linear2", features[-1])))
    w, scores = s["classifier.weight"][0], []
    for t in range(T):
        z = s["classifier.bias"][0] + sum(w[:, -1 - b] @ rows[t - b] for b in range(w.shape[1]) if t >= b)
        scores.append(1 / (1 + np.exp(-z)))
    return np.array(scores), np.array(features)


def expected(head, bag, *, window=5, norm=True, padded=False, several="mean", scale=1 / 0.09):
    """Scores (B, T) and both losses."""
    state, prompts = give_back(head, head.published(), {}), head.prompts.double().numpy()
    out, mil, videos, texts, numbers = np.zeros(bag.mask.shape), [], [], [], []
    for b, n in enumerate(bag.mask.sum(1).tolist()):
        for k in range(2):
            rows = bag.mask.shape[1] if padded else n
            s, f = one_video(state, bag.features["rgb"][b, k, :rows].numpy(), window=window, norm=norm)
            out[b, :n] += s[:n] / 2
            label = int(bag.labels[b])
            p = np.sort(s[:n])[::-1][: n // 16 + 1 if label else 1].mean()
            mil.append(-math.log(p if label else 1 - p))
            own = [c + 1 for c in range(len(CLASSES)) if bag.classes[b, c]]
            weights = np.exp(10 * s) - 1
            videos.append(sum(w * r for w, r in zip(weights / weights.sum(), f, strict=True)))
            numbers.append(own[0] if own else 0)
            texts.append(prompts[own[:1] if several == "first" else own].mean(0) if own else prompts[0])
            if own:
                weights = np.exp(10 * (1 - s)) - 1
                videos.append(sum(w * r for w, r in zip(weights / weights.sum(), f, strict=True)))
                numbers.append(0)
                texts.append(prompts[0])
    kl = 0.0
    for i, v in enumerate(videos):
        cosines = [v @ t / (np.linalg.norm(v) * np.linalg.norm(t)) for t in texts]
        found = softmax([scale * c for c in cosines])
        target = softmax([10.0 * (numbers[i] == other) for other in numbers])
        kl += sum(p * math.log(p / q) for p, q in zip(target, found, strict=True)) / len(videos)
    return out, {"mil": np.mean(mil), "prompts": kl}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, {}),
        ({"window": 4, "norm": False, "several": "first", "gamma": 0.06, "bias": 0.02}, {}),
        ({"as_published": True}, {"padded": True}),
        ({"temperature": 0.2}, {"scale": 5.0}),
    ],
    ids=["default", "even window, no norm, first class", "as published", "temperature"],
)
def test_scores_and_losses_of_a_padded_batch(options, said):
    head, bag = make(**options), make_bag(pad=2)
    own = {k: options[k] for k in ("window", "norm", "several") if k in options}
    scores, terms = expected(head, bag, **own, **said)
    found = head(bag)
    assert np.abs(found.scores.detach().numpy() - scores).max() < 1e-12
    assert {n: t.item() for n, t in head.loss(found, bag).items()} == pytest.approx(terms, rel=1e-10)
    assert np.ptp(scores[bag.mask.numpy()]) > 0.2  # or nothing would show


def test_weight_of_the_prompts_is_the_option():
    bag, one, nine = make_bag(), make(), make(kl=9.0)
    a, b = (h.loss(h(bag), bag) for h in (one, nine))
    assert b["prompts"].item() == pytest.approx(9 * a["prompts"].item(), rel=1e-12)
    assert torch.equal(a["mil"], b["mil"])


def test_as_published_lets_padding_in_and_scores_a_single_video_alike():
    bag, alone = make_bag(), make_bag(lengths=[20], labels=[1], shown=SHOWN[:1])
    published, default = make(as_published=True), make()
    assert torch.equal(published(alone).scores, default(alone).scores)
    assert (published(bag).scores[0] - default(bag).scores[0]).abs().max() > 1e-3
    assert (default(bag).scores[0, :20] - default(alone).scores[0]).abs().max() < 1e-12


def test_only_the_foreground_of_normal_videos_and_of_anomalous_ones_both_are_drawn():
    """Prompts move nothing where the other term is taken; a video of no class is normal whatever its place."""
    head, bag = make(), make_bag()
    terms = head.loss(head(bag), bag)
    grads = torch.autograd.grad(terms["mil"], [head.log_scale], retain_graph=True, allow_unused=True)
    assert grads == (None,)
    order = torch.tensor([5, 1, 2, 4, 0, 3])
    moved = replace(
        bag,
        features={"rgb": bag.features["rgb"][order]},
        mask=bag.mask[order],
        labels=bag.labels[order],
        classes=bag.classes[order],
    )
    again = head.loss(head(moved), moved)
    assert again["prompts"].item() == pytest.approx(terms["prompts"].item(), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "made for 3 classes, the bag has none"),
        ({"classes": torch.zeros(6, 2)}, "made for 3 classes, the bag has 2"),
        ({"classes": torch.zeros(6, 3)}, "shows none of the classes Arson, Fighting, Robbery"),
    ],
)
def test_classes_that_do_not_fit_are_refused(change, message):
    head, bag = make(), replace(make_bag(), **change)
    out = head(bag)
    with pytest.raises(ValueError, match=message):
        head.loss(out, bag)
    away = torch.device("meta")  # where nobody can ask for a value
    with pytest.raises(ValueError, match=message):
        head.to(away).loss(head(bag.to(away)), bag.to(away))


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"temperature": 0.0}, {"hidden": (0, 5)}, {"classes": ("normal", "Arson")}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"pel4vad (needs|takes)"):
        make(**options)


def test_size_and_names_of_the_authors_files():
    with torch.device("meta"):
        head = PEL4VADHead(1024)
    assert sum(p.numel() for p in head.parameters()) == 1_209_149
    form, own = head.published(), head.state_dict()
    shapes = {n: tuple(own[ours].shape) for n, ours in form.names.items()}
    assert len(shapes) == 20
    weights = {n: s for n, s in shapes.items() if not n.endswith(".bias")}
    inner = "self_attention.self_attn"
    assert weights == {
        "logit_scale": (),
        f"{inner}.alpha": (),
        f"{inner}.q.weight": (128, 1024),
        f"{inner}.k.weight": (128, 1024),
        f"{inner}.v.weight": (128, 1024),
        f"{inner}.o.weight": (1024, 128),
        "self_attention.linear1.weight": (512, 1024, 1),
        "self_attention.linear2.weight": (300, 512, 1),
        "self_attention.norm.weight": (1024,),
        "self_attention.loc_adj.w": (1,),
        "self_attention.loc_adj.b": (1,),
        "classifier.weight": (1, 300, 9),
    }
    assert form.extra == {"prompts"}


def test_it_begins_where_the_authors_code_does():
    head = PEL4VADHead(DIM, gamma=0.06, bias=0.02, temperature=0.05)
    assert (head.gamma.item(), head.bias.item()) == (pytest.approx(0.06), pytest.approx(0.02))
    assert head.mix.item() == 0
    assert head.log_scale.item() == pytest.approx(math.log(1 / 0.05), rel=1e-6)
    limit = math.sqrt(6 / (DIM + 128))
    assert 0.95 * limit < float(head.key.weight.detach().abs().max()) <= limit


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["npz", "safetensors"])
def test_prompts_come_from_a_file_in_the_order_of_the_classes(tmp_path, end):
    vectors = {n: np.arange(6, dtype=np.float32) + 10 * i for i, n in enumerate(["Robbery", "Arson", "normal", "more"])}
    path = str(tmp_path / f"prompts.{end}")
    save_file(vectors, path) if end == "safetensors" else np.savez(path, **vectors)
    head = PEL4VADHead(DIM, hidden=(6, 5), classes=("Arson", "Robbery"), prompts=path)
    assert head.prompts.tolist() == [vectors[n].tolist() for n in ("normal", "Arson", "Robbery")]
    assert "prompts" in head.state_dict()


def test_made_up_prompts_are_unit_vectors_that_the_name_alone_decides():
    table = prompt_table(("normal", "Arson", "Fighting"), None, 64)
    assert torch.allclose(table.norm(dim=1), torch.ones(3))
    assert (table @ table.T - torch.eye(3)).abs().max() < 0.5
    assert torch.equal(prompt_table(("Fighting",), None, 64)[0], table[2])
    # a golden number, so that no run on another day or machine has other prompts
    assert table[0, :2].tolist() == pytest.approx([0.07662497, -0.29293019], rel=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"normal": np.ones(6), "Arson": np.ones(6)}, "no vector for the class 'Fighting'.* Known: Arson, normal"),
        ({"normal": np.ones(6), "Arson": np.ones(5), "Fighting": np.ones(6)}, r"'Arson' is \(5,\), \(6,\) was wanted"),
        ({"normal": np.ones(6), "Arson": np.zeros(6), "Fighting": np.ones(6)}, "'Arson' is zero or not finite"),
        ({"normal": np.ones(6), "Arson": np.full(6, np.nan), "Fighting": np.ones(6)}, "'Arson' is zero or not finite"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, vectors, message):
    np.savez(tmp_path / "prompts.npz", **vectors)
    with pytest.raises(ValueError, match=message):
        prompt_table(("normal", "Arson", "Fighting"), str(tmp_path / "prompts.npz"), 6)


def test_files_that_hold_no_prompts_are_refused(tmp_path):
    for name, message in (("gone.npz", "no file of prompts"), ("a.npz", "cannot be read"), ("a.txt", "are read from")):
        if name != "gone.npz":
            (tmp_path / name).write_bytes(b"PK not a file")
        with pytest.raises(ValueError, match=message):
            prompt_table(("normal",), str(tmp_path / name), 6)
    np.savez(tmp_path / "objects.npz", normal=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        prompt_table(("normal",), str(tmp_path / "objects.npz"), 6)


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "window", "gamma", "bias", "norm", "kernel", "temperature", "kl", "seed", "smooth", "smoothing"),
    [
        ("pel4vad_ucf", 9, 0.6, 0.2, True, 9, 0.09, 1.0, 9, 7, "ahead"),
        ("pel4vad_xd", 9, 0.06, 0.02, False, 3, 0.05, 1.0, 4, 8, "blocks"),
        ("pel4vad_sh", 5, 0.08, 0.1, True, 3, 0.2, 9.0, 0, 3, "ahead"),
    ],
)
def test_recipes_hold_what_the_authors_code_sets(
    recipe, window, gamma, bias, norm, kernel, temperature, kl, seed, smooth, smoothing
):
    config = configs.load(recipe)
    found = config.head.options
    assert [found[n] for n in ("window", "gamma", "bias", "norm", "kernel", "temperature", "kl")] == [
        *(window, gamma, bias, norm, kernel, temperature, kl)
    ]
    assert [found[n] for n in ("attention", "hidden", "dropout", "as_published")] == [128, (512, 300), 0.1, True]
    assert found.get("several", "mean") == ("first" if recipe == "pel4vad_xd" else "mean")
    assert (config.seed, config.evaluate.smooth, config.evaluate.smoothing) == (seed, smooth, smoothing)
    assert (config.data.resample, config.data.count, config.data.scale) == ("pick", 200, "none")
    train = config.train
    assert (train.epochs, train.sampler, train.batch, train.samples) == (50, "mixed", 128, "crops")
    assert (train.lr_schedule, train.t_max, train.optimizer.name, train.optimizer.lr) == ("cosine", 60, "adam", 5e-4)
    assert configs.load("motion_pel4vad").data.scale == "standardize"
