"""MACIL-SD against an independent numpy implementation, in loops, under the names of the authors' state dict."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads import Progress
from mil.heads.macil_sd import MACILSDHead
from mil.optim import make_optimizer
from mil.published import give_back
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [20, 3, 33, 1, 17, 8], [1, 0, 0, 1, 1, 0]
VISUAL, AUDIO, TERMS = 7, 5, ("a2v_background", "a2v_normal", "v2a_background", "v2a_normal")


def make(epoch=7, **options):
    torch.manual_seed(0)
    sizes = {"hidden": 8, "attention_heads": 2, "feedforward": 6}
    head = MACILSDHead(VISUAL, AUDIO, **{**sizes, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.25 * torch.randn_like(p))
        head.fc.bias.fill_(-1.3)  # some videos of either prediction
        head.epoch.fill_(epoch)
    return head


def make_bag(pad=0, lengths=LENGTHS, labels=LABELS):
    dims = {"rgb": VISUAL, "audio": AUDIO}
    return random_bag(lengths, labels, dims=dims, crops={"rgb": 2}, pad=pad, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attend(s, x, seen, heads=2):
    """The shared layer on (T, H) arrays, row by row and head by head."""

    def linear(name, v):
        return s[f"cma.layer.{name}.weight"] @ v + s[f"cma.layer.{name}.bias"]

    def normed(i, v):
        v = (v - v.mean()) / np.sqrt(((v - v.mean()) ** 2).mean() + 1e-5)
        return v * s[f"cma.layer.sublayer.{i}.norm.weight"] + s[f"cma.layer.sublayer.{i}.norm.bias"]

    keys = [linear("self_attn.linears.1", v) for v in seen]
    values = [linear("self_attn.linears.2", v) for v in seen]
    out, size = [], x.shape[1] // heads
    for row in x:
        q, parts = linear("self_attn.linears.0", normed(0, row)), []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            z = np.array([q[own] @ k[own] / math.sqrt(size) for k in keys])
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            parts.append(sum(w * v[own] for w, v in zip(p, values, strict=True)))
        y = row + linear("self_attn.linears.3", np.concatenate(parts))
        hidden = np.maximum(linear("feed_forward.w_1", normed(1, y)), 0)
        out.append(y + linear("feed_forward.w_2", hidden))
    return np.array(out)


def samples(head, bag, *, padded):
    """For each crop of each video: (length, label, v, a (T, H), z_v, z_a, teacher's z (T,))."""
    s = {n: v.double().numpy() for n, v in give_back(head, head.published(), {}).items()}
    names = {n.split(".", 1)[1]: v.double().numpy() for n, v in head.state_dict().items() if n.startswith("teacher.")}
    inner = {ours.removeprefix("layer."): n for n, ours in head.published().names.items() if ours.startswith("layer.")}
    teacher = {inner[n.removeprefix("layer.")]: v for n, v in names.items() if n.startswith("layer.")}
    for b, (length, label) in enumerate(zip(bag.mask.sum(1).tolist(), bag.labels.tolist(), strict=True)):
        n = bag.mask.shape[1] if padded else length
        for k in range(2):
            x, y = bag.features["rgb"][b, k, :n].numpy(), bag.features["audio"][b, 0, :n].numpy()
            v, a = x @ s["fc_v.weight"].T + s["fc_v.bias"], y @ s["fc_a.weight"].T + s["fc_a.bias"]
            v, a = attend(s, v, a), attend(s, a, v)
            z_v, z_a = (r @ s["att_mmil.fc.weight"][0] + s["att_mmil.fc.bias"][0] for r in (v, a))
            t = x @ names["visual.weight"].T + names["visual.bias"]
            t = attend(teacher, t, t) @ names["fc.weight"][0] + names["fc.bias"][0]
            yield length, label, v, a, z_v, z_a, t


def expected(head, bag, *, padded, swapped):
    """Scores (B, T), and every loss before it is weighed, as the authors' training loop computes them."""
    scores, mil, teacher = np.zeros(bag.mask.shape), [], []
    sets = {f"{m}_{part}": [] for m in ("audio", "visual") for part in ("abn", "bgd", "nor")}
    for i, (n, y, v, a, z_v, z_a, t) in enumerate(samples(head, bag, padded=padded)):
        k = n // 16 + 1
        scores[i // 2, :n] += sigmoid(z_v + z_a)[:n] / 2
        probability = sigmoid(np.sort((z_v + z_a)[:n])[::-1][:k].mean())
        mil.append(-math.log(probability if y else 1 - probability))
        seen = sigmoid(np.sort(t[:n])[::-1][:k].mean())
        teacher.append(-math.log(seen if y else 1 - seen))
        audio_rep, visual_rep = (v, a) if swapped else (a, v)
        for name, logits, rep in (("audio", z_a, audio_rep), ("visual", z_v, visual_rep)):
            order = np.argsort(logits[:n])
            sets[f"{name}_bgd"] += list(rep[order[:k]])
            top = rep[order[::-1][:k]]
            if probability > 0.5:
                sets[f"{name}_abn"] += [top.mean(0)] * k
            else:
                sets[f"{name}_nor"] += list(top)

    def info_nce(queries, positives, negatives):
        def cosine(x, y):
            return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))

        found = []
        for q, p in zip(queries, positives, strict=True):
            z = [math.exp(cosine(q, other) / 0.1) for other in [p, *negatives]]
            found.append(-math.log(z[0] / sum(z)))
        return np.mean(found)

    terms = {"mil": np.mean(mil), "teacher": np.mean(teacher), **dict.fromkeys(TERMS, 0.0)}
    if sets["audio_abn"] and sets["audio_nor"]:
        a, v = sets["audio_abn"], sets["visual_abn"]
        terms["a2v_background"] = info_nce(a, v, sets["visual_bgd"])
        terms["a2v_normal"] = info_nce(a, v, sets["visual_nor"])
        terms["v2a_background"] = info_nce(v, a, sets["audio_bgd"])
        terms["v2a_normal"] = info_nce(v, a, sets["audio_nor"])
    return scores, terms, len(sets["audio_abn"])


@pytest.mark.parametrize("as_published", [False, True])
def test_scores_and_every_loss_of_a_padded_batch(as_published):
    head, bag = make(as_published=as_published), make_bag(pad=2)
    found = head(bag)
    scores, terms, anomalous = expected(head, bag, padded=as_published, swapped=as_published)
    assert np.abs(found.scores.detach().numpy() - scores).max() < 1e-12
    losses = {name: term.item() for name, term in head.loss(found, bag).items()}
    # after seven epochs each contrast weighs 0.7
    weighed = {name: term * (0.7 if name in TERMS else 1) for name, term in terms.items()}
    assert losses == pytest.approx(weighed, abs=1e-11)
    assert 3 < anomalous < sum(2 * (n // 16 + 1) for n in LENGTHS)
    assert min(terms.values()) > 0.01


def test_logits_choose_among_features_of_their_own_modality_unless_as_published():
    """One video length, so that padding plays no part: the four contrasts alone differ."""
    bag = make_bag(lengths=[20] * 6)
    published, default = make(as_published=True), make()
    assert torch.equal(published(bag).scores, default(bag).scores)
    a, b = (head.loss(head(bag), bag) for head in (published, default))
    assert torch.equal(a["mil"], b["mil"])
    assert torch.equal(a["teacher"], b["teacher"])
    swapped = expected(default, bag, padded=False, swapped=True)[1]
    assert {n: a[n].item() for n in TERMS} == pytest.approx({n: 0.7 * swapped[n] for n in TERMS}, abs=1e-11)
    assert all(abs(float(a[n].detach() - b[n].detach())) > 1e-3 for n in TERMS)


def test_as_published_lets_padding_in():
    bag, alone = make_bag(), make_bag(lengths=[20], labels=[1])
    published, default = make(as_published=True), make()
    assert torch.equal(published(alone).scores, default(alone).scores)
    assert (published(bag).scores[0] - default(bag).scores[0]).abs().max() > 1e-3
    assert (default(bag).scores[0, :20] - default(alone).scores[0]).abs().max() < 1e-12


def test_gradients_of_the_contrasts_agree_with_finite_differences():
    """Into the mean of the highest features too, and into both sides; along a random direction in all parameters."""
    head, bag = make(), make_bag()

    def total():
        terms = head.loss(head(bag), bag)
        return torch.stack([terms[n] for n in TERMS]).sum()

    named = [p for n, p in head.named_parameters() if not n.startswith("teacher.")]
    found = torch.autograd.grad(total(), named, allow_unused=True)
    for p, grad in zip(named, found, strict=True):
        way = torch.randn_like(p)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                p.add_(step * way)
            values.append(float(total().detach()))
        with torch.no_grad():
            p.add_(1e-6 * way)
        slope = 0.0 if grad is None else float((grad * way).sum())
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bias", [-50.0, 50.0])
def test_contrasts_are_0_without_a_gradient_where_all_videos_are_predicted_alike(bias):
    head, bag = make(), make_bag()
    torch.nn.init.constant_(head.fc.bias, bias)
    terms = head.loss(head(bag), bag)
    total = torch.stack([terms[n] for n in TERMS]).sum()
    assert total.item() == 0
    total.backward()
    assert not any(p.grad.any() for p in head.layer.parameters() if p.grad is not None)


def test_predictions_and_not_labels_decide_what_is_contrasted():
    head, bag = make(), make_bag()
    other = replace(bag, labels=1 - bag.labels)
    a, b = head.loss(head(bag), bag), head.loss(head(other), other)
    assert all(torch.equal(a[n], b[n]) for n in TERMS)
    assert not torch.equal(a["mil"], b["mil"])


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.0), (1, 0.1), (14, 1.4), (15, 1.5), (49, 1.5)])
def test_contrasts_grow_with_the_epochs_up_to_a_limit(epoch, weight):
    bag = make_bag()
    once, now = (make(epoch=e) for e in (10, epoch))  # at 10 they weigh 1
    full, found = once.loss(once(bag), bag), now.loss(now(bag), bag)
    for name in TERMS:
        assert found[name].item() == pytest.approx(weight * full[name].item(), rel=1e-6, abs=1e-15)


def test_after_each_epoch_what_both_have_moves_towards_the_teacher():
    """The authors' loop: m = 1 + 0.5 (0.91 - 1) (1 + cos(pi e / 50)) after epoch e, counted from 0."""
    head, per_epoch, epochs = make(epoch=0), 3, 50
    own = {n: p.detach().clone().numpy() for n, p in head.named_parameters()}
    for step in range(1, epochs * per_epoch + 1):
        head.after_step(Progress(step, epochs * per_epoch, per_epoch))
        if step % per_epoch == 0:
            e = step // per_epoch - 1
            m = 1 + 0.5 * (0.91 - 1) * (1 + math.cos(math.pi * e / 50))
            for name in own:
                if not name.startswith(("teacher.", "audio.")):
                    own[name] = m * own[name] + (1 - m) * own["teacher." + name]
            assert int(head.epoch) == e + 1
        if step in (2, 3, 4, 9, 149, 150):
            for name, p in head.named_parameters():
                assert np.abs(p.detach().numpy() - own[name]).max() < 1e-12, (step, name)
    assert m > 0.9999
    assert np.abs(own["fc.weight"] - own["teacher.fc.weight"]).max() < 0.2  # it has moved


def test_teacher_learns_from_its_own_loss_alone_at_its_own_rate():
    head, bag = make().train(), make_bag()
    terms = head.loss(head(bag), bag)
    teacher = list(head.teacher.parameters())
    rest = [p for n, p in head.named_parameters() if not n.startswith("teacher.")]
    assert all(g is None for g in torch.autograd.grad(terms["teacher"], rest, retain_graph=True, allow_unused=True))
    others = torch.stack([t for n, t in terms.items() if n != "teacher"]).sum()
    assert all(g is None for g in torch.autograd.grad(others, teacher, allow_unused=True))
    optimizer = make_optimizer(configs.load("macil_sd_xd").train.optimizer, head)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {rates[id(p)] for p in teacher} == {8e-5}
    assert {rates[id(p)] for p in rest} == {4e-4}


def test_size_and_names_of_the_authors_file():
    with torch.device("meta"):
        head = MACILSDHead(1024, 128)
    form = head.published()
    own = head.state_dict()
    used = {n: tuple(own[ours].shape) for n, ours in form.names.items()}
    assert sum(math.prod(s) for s in used.values()) == 247_425
    assert sum(math.prod(s) for s in (*used.values(), *form.unused.values())) == 347_009
    assert len(used) + len(form.unused) == 38
    assert used["fc_v.weight"] == (128, 1024)
    assert used["fc_a.weight"] == used["cma.layer.feed_forward.w_2.weight"] == (128, 128)
    assert used["att_mmil.fc.weight"] == (1, 128)
    assert form.unused["cma.layer.self_attn.layer_norm.bias"] == (128,)
    assert form.unused["multiheadattn.linears.3.weight"] == (128, 128)


def test_four_projections_begin_as_copies_of_one():
    """What deep copies of one layer in the authors' code come to."""
    layer = MACILSDHead(VISUAL, AUDIO).layer
    assert all(torch.equal(p.weight, layer.query.weight) for p in (layer.key, layer.value, layer.out))
    assert layer.key.weight is not layer.query.weight


@pytest.mark.parametrize("options", [{"hidden": 9}, {"attention_heads": 0}, {"momentum": 1.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"macil_sd needs .* got"):
        MACILSDHead(VISUAL, AUDIO, **{"hidden": 8, "attention_heads": 2, **options})


def test_recipe_holds_what_the_authors_code_sets():
    config = configs.load("macil_sd_xd")
    assert config.head.options == {
        "hidden": 128,
        "attention_heads": 4,
        "feedforward": 128,
        "dropout": 0.1,
        "contrast": 1.5,
        "ramp": 0.1,
        "momentum": 0.91,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("pick", 200, "none")
    train = config.train
    assert (train.epochs, train.sampler, train.batch, train.samples) == (50, "mixed", 128, "crops")
    assert (train.lr_schedule, train.t_max, config.seed, config.evaluate.smooth) == ("cosine", 60, 2333, 1)
    assert (train.optimizer.name, train.optimizer.weight_decay) == ("adam", 0)
    small = configs.load("motion_macil_sd").train.optimizer
    assert small.groups["teacher"].lr == pytest.approx(small.lr / 5)
