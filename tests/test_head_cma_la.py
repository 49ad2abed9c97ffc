"""CMA-LA against an independent numpy implementation, in loops, under the names of the authors' state dict."""

import math

import numpy as np
import pytest
import torch

from mil import config as configs
from mil.heads.cma_la import CMALAHead
from mil.optim import Schedule
from mil.published import give_back
from tests.mil_helpers import random_bag

LENGTHS, LABELS = [20, 3, 33, 1, 17], [1, 0, 0, 1, 1]
VISUAL, AUDIO = 7, 5


def make(**options):
    torch.manual_seed(0)
    head = CMALAHead(VISUAL, AUDIO, **{"attention": 4, "hidden": (6, 3), "kernel": 3, **options}).double().eval()
    with torch.no_grad():  # away from where they start, so that a confusion of the two shows
        head.slope.fill_(-0.3)
        head.offset.fill_(0.7)
        for name, p in head.named_parameters():
            if p.ndim > 1:
                p.mul_(1.5)
            elif name not in ("slope", "offset"):
                p.add_(0.5 * torch.randn_like(p))
    return head


def make_bag(pad=0, lengths=LENGTHS, labels=LABELS):
    dims = {"rgb": VISUAL, "audio": AUDIO}
    return random_bag(lengths, labels, dims=dims, crops={"rgb": 2}, pad=pad, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))(x)


def one_video(state, visual, audio):
    """(T, D_v), (T, D_a) -> scores (T,), in the authors' names."""
    s = {n: v.double().numpy() for n, v in state.items()}
    T, inner = len(visual), "cross_attention.cross_attention."

    def linear(name, x):
        return s[f"{name}.weight"].reshape(-1, x.shape[-1]) @ x + s[f"{name}.bias"]

    q = [linear(inner + "q", a) for a in audio]
    k = [linear(inner + "k", v) for v in visual]
    values = [linear(inner + "v", v) for v in visual]
    rows = []
    for i in range(T):
        z = [
            q[i] @ k[j] / math.sqrt(len(q[i])) + math.exp(-abs(s["dis_adj.w"][0] * (i - j) ** 2 + s["dis_adj.bias"][0]))
            for j in range(T)
        ]
        p = np.exp(np.array(z) - max(z))
        p /= p.sum()
        x = visual[i] + linear(inner + "o", sum(w * v for w, v in zip(p, values, strict=True)))
        x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        x = x * s["cross_attention.norm.weight"] + s["cross_attention.norm.bias"]
        rows.append(linear("cross_attention.ffn.3", gelu(linear("cross_attention.ffn.0", x))))
    w, scores = s["classifier.weight"][0], []
    for t in range(T):
        z = s["classifier.bias"][0]
        for back in range(w.shape[1]):
            if t - back >= 0:
                z += w[:, -1 - back] @ rows[t - back]
        scores.append(sigmoid(z))
    return np.array(scores)


def crop_scores(head, bag, *, padded):
    """(B, K, T); of padded rows what comes out, or 0 where they are left away."""
    state = give_back(head, head.published(), {})
    x, a = bag.features["rgb"].numpy(), bag.features["audio"].numpy()
    out = np.zeros(x.shape[:3])
    for b, length in enumerate(bag.mask.sum(1).tolist()):
        n = x.shape[2] if padded else length
        for k in range(x.shape[1]):
            out[b, k, :n] = one_video(state, x[b, k, :n], a[b, 0, :n])
    return out


def expected_loss(scores, lengths=LENGTHS, labels=LABELS):
    """The sigmoid comes twice: the mean is one of probabilities already."""
    terms = []
    for crops, length, y in zip(scores, lengths, labels, strict=True):
        for s in crops:
            p = sigmoid(np.sort(s[:length])[::-1][: length // 16 + 1].mean())
            terms.append(-math.log(p if y == 1 else 1 - p))
    return np.mean(terms)


@pytest.mark.parametrize("as_published", [False, True])
def test_scores_and_loss_of_a_padded_batch(as_published):
    head, bag = make(as_published=as_published), make_bag(pad=2)
    found, expected = head(bag), crop_scores(head, bag, padded=as_published)
    scores = expected.mean(1) * bag.mask.numpy()
    assert np.abs(found.scores.detach().numpy() - scores).max() < 1e-12
    assert head.loss(found, bag)["mil"].item() == pytest.approx(expected_loss(expected), abs=1e-12)
    assert scores.max() - scores[bag.mask.numpy()].min() > 0.3  # or nothing would show


def test_as_published_lets_padding_in_and_scores_a_single_video_alike():
    bag, alone = make_bag(), make_bag(lengths=[20], labels=[1])
    published, default = make(as_published=True), make()
    assert torch.equal(published(alone).scores, default(alone).scores)
    assert (published(bag).scores[0] - default(bag).scores[0]).abs().max() > 1e-3
    assert (default(bag).scores[0, :20] - default(alone).scores[0]).abs().max() < 1e-12


def test_a_score_looks_back_on_kernel_segments_and_never_ahead():
    """With the attention silenced, segment 5 moves scores 5, 6, 7 and no other."""
    head, bag = make(), make_bag(lengths=[12], labels=[1])
    torch.nn.init.zeros_(head.out.weight)
    before = head(bag).scores
    bag.features["rgb"][:, :, 5] += torch.linspace(-1, 2, VISUAL).double()
    moved = ((head(bag).scores - before).abs() > 1e-9)[0].tolist()
    assert [t for t, m in enumerate(moved) if m] == [5, 6, 7]


def test_size_and_names_of_the_authors_file():
    with torch.device("meta"):
        head = CMALAHead(1024, 128)
    assert sum(p.numel() for p in head.parameters()) == 1_004_419
    own = head.state_dict()
    assert {n: tuple(own[ours].shape) for n, ours in head.published().names.items() if not n.endswith(".bias")} == {
        "dis_adj.w": (1,),
        "cross_attention.cross_attention.q.weight": (128, 128),
        "cross_attention.cross_attention.k.weight": (128, 1024),
        "cross_attention.cross_attention.v.weight": (128, 1024),
        "cross_attention.cross_attention.o.weight": (1024, 128),
        "cross_attention.ffn.0.weight": (512, 1024, 1),
        "cross_attention.ffn.3.weight": (128, 512, 1),
        "cross_attention.norm.weight": (1024,),
        "classifier.weight": (1, 128, 7),
    }
    assert sum(n.endswith(".bias") for n in head.published().names) == 9


def test_it_begins_with_xavier_uniform_weights_and_a_distance_that_can_move():
    torch.manual_seed(0)
    head = CMALAHead(1024, 128)
    limit = math.sqrt(6 / (1024 + 128))
    assert 0.99 * limit < float(head.key.weight.detach().abs().max()) <= limit
    assert float(head.slope.detach()) != 0
    assert float(head.offset.detach()) != 0


@pytest.mark.parametrize("options", [{"hidden": (6, 0)}, {"attention": 0}, {"kernel": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(
        ValueError, match="cma_la needs two hidden widths, attention and kernel of at least 1, and a past of at least 0"
    ):
        make(**options)


def test_recipe_holds_what_the_authors_code_sets():
    config = configs.load("cma_la_xd")
    assert config.head.options == {
        "attention": 128,
        "hidden": (512, 128),
        "kernel": 7,
        "dropout": 0.1,
        "as_published": True,
    }
    assert (config.data.resample, config.data.count, config.data.scale) == ("pick", 200, "none")
    train = config.train
    assert (train.epochs, train.sampler, train.batch, train.samples) == (50, "mixed", 128, "crops")
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == ("adam", 5e-4, 0)
    assert (config.seed, config.evaluate.smooth) == (9, 1)
    schedule = Schedule(train, per_epoch=7)
    assert schedule.steps == 350
    # CosineAnnealingLR(T_max=60), stepped after each epoch: the last one is not at 0
    for epoch in (0, 1, 30, 49):
        expected = 0.5 * (1 + math.cos(math.pi * epoch / 60))
        assert schedule.factor(7 * epoch + 1) == schedule.factor(7 * epoch + 7) == pytest.approx(expected)
    assert configs.load("motion_cma_la").data.scale == "standardize"
