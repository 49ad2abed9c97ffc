"""VadCLIP against plain loops in float64, written from the authors' code (nwpu-zxr/VadCLIP)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mil import config as configs
from mil.heads.vadclip import VadCLIPHead, clip_shapes
from mil.optim import Schedule
from mil.published import give_back, take_in
from tests.mil_helpers import random_bag

CLASSES = ("Fighting", "Robbery", "Shooting")
SMALL = {"width": 8, "length": 12, "window": 4, "layers": 2, "classes": CLASSES}
# shorter than a chunk, a whole one, longer than one and than two; 20 and 30 segments have k = 2
LENGTHS, LABELS, CROPS = [7, 12, 1, 20, 30], [0, 1, 1, 0, 1], 2
SHOWN = [[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def quick_gelu(z):
    return z * sigmoid(1.702 * z)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def norm(v):
    return v / np.linalg.norm(v)


def layer_norm(x, weight, bias):
    return np.stack([(r - r.mean()) / np.sqrt(r.var() + 1e-5) * weight + bias for r in x])


def attention(x, w, name, window):
    """One attention head; row i sees the rows of its own window, as a block-diagonal mask of -inf lets it."""
    D = x.shape[1]
    q, k, v = (
        x @ w[f"{name}.in_proj_weight"][i * D : (i + 1) * D].T + w[f"{name}.in_proj_bias"][i * D : (i + 1) * D]
        for i in range(3)
    )
    out = np.zeros_like(x)
    for i in range(len(x)):
        rows = [j for j in range(len(x)) if j // window == i // window]
        share = softmax(np.array([q[i] @ k[j] / math.sqrt(D) for j in rows]))
        out[i] = sum(s * v[j] for s, j in zip(share, rows, strict=True))
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def graph_conv(x, graph, w, name):
    rest = x
    if f"{name}.residual.weight" in w:
        rest = np.tile(w[f"{name}.residual.bias"], (len(x), 1))
        for t in range(len(x)):
            for tap in range(5):
                if 0 <= t + tap - 2 < len(x):
                    rest[t] += w[f"{name}.residual.weight"][:, :, tap] @ x[t + tap - 2]
    return graph @ x @ w[f"{name}.weight"] + rest


def perceptron(x, w, name):
    h = quick_gelu(x @ w[f"{name}.c_fc.weight"].T + w[f"{name}.c_fc.bias"])
    return h @ w[f"{name}.c_proj.weight"].T + w[f"{name}.c_proj.bias"]


def slow_chunk(w, text, x, length, window=4):
    """The authors' forward of one chunk, rows from `length` on being padding that only one graph leaves out."""
    T = len(x)
    x = x + w["frame_position_embeddings.weight"][:T]
    for i in range(2):
        name = f"temporal.resblocks.{i}"
        x = x + attention(layer_norm(x, w[f"{name}.ln_1.weight"], w[f"{name}.ln_1.bias"]), w, f"{name}.attn", window)
        x = x + perceptron(layer_norm(x, w[f"{name}.ln_2.weight"], w[f"{name}.ln_2.bias"]), w, f"{name}.mlp")
    alike, near = np.zeros((2, T, T))
    for i in range(T):
        for j in range(T):
            near[i, j] = math.exp(-abs(i - j) / math.e)
    for i in range(length):
        cosines = np.array([norm(x[i]) @ norm(x[j]) for j in range(length)])
        alike[i, :length] = softmax(np.where(cosines > 0.7, cosines, 0))
    one = quick_gelu(graph_conv(quick_gelu(graph_conv(x, alike, w, "gc1")), alike, w, "gc2"))
    two = quick_gelu(graph_conv(quick_gelu(graph_conv(x, near, w, "gc3")), near, w, "gc4"))
    x = np.concatenate([one, two], axis=1) @ w["linear.weight"].T + w["linear.bias"]
    coarse = (x + perceptron(x, w, "mlp2")) @ w["classifier.weight"][0] + w["classifier.bias"][0]
    moved = text + norm(sum(z * row for z, row in zip(coarse, x, strict=True)))
    moved = moved + perceptron(moved, w, "mlp1")
    fine = np.array([[norm(row) @ norm(t) / 0.07 for t in moved] for row in x])
    return coarse[:length], fine[:length]


def theirs(head):
    own = head.state_dict()
    return {a: own[b].double().numpy() for a, b in head.published().names.items()}


def slow_video(head, x, *, padded):
    """(T, D) -> logits (T,) and (T, C + 1): chunks of 12, each padded with zeros to 12 or left as it is."""
    w, text = theirs(head), head.text.double().numpy()
    coarse, fine = [], []
    for start in range(0, len(x), 12):
        chunk = x[start : start + 12]
        rows = np.concatenate([chunk, np.zeros((12 - len(chunk), 8))]) if padded else chunk
        z1, z2 = slow_chunk(w, text, rows, len(chunk))
        coarse, fine = [*coarse, *z1], [*fine, *z2]
    return np.array(coarse), np.array(fine)


def head_of(**options):
    torch.manual_seed(0)
    head = VadCLIPHead(8, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for p in head.parameters():  # the published scales would leave positions and biases unnoticed
            p.copy_(0.5 * torch.randn_like(p))
    return head


def bag_of(lengths=LENGTHS, labels=LABELS, shown=SHOWN, crops=CROPS, **more):
    bag = random_bag(lengths, labels, dims={"rgb": 8}, crops={"rgb": crops}, dtype=torch.float64, **more)
    return replace(bag, classes=torch.tensor(shown, dtype=torch.float64))


@pytest.fixture(scope="module")
def slow():
    """Both logits of every video and crop, from the loops; {as_published: [[(coarse, fine) of each crop] ...]}."""
    x = bag_of().x.numpy()
    return {
        padded: [
            [slow_video(head_of(), x[b, k, :n], padded=padded) for k in range(CROPS)] for b, n in enumerate(LENGTHS)
        ]
        for padded in (False, True)
    }


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("score", ["coarse", "fine"])
def test_scores_are_those_of_the_loops(slow, as_published, score):
    """Videos of all lengths in one batch; as published, padding of the chunks takes part."""
    bag = bag_of()
    out = head_of(as_published=as_published, score=score)(bag)
    for b, n in enumerate(LENGTHS):
        coarse = np.stack([z for z, _ in slow[as_published][b]])
        fine = np.stack([z for _, z in slow[as_published][b]])
        assert np.abs(out.aux["coarse"][b, :, :n].detach().numpy() - coarse).max() < 1e-9
        assert np.abs(out.aux["fine"][b, :, :n].detach().numpy() - fine).max() < 1e-9
        each = sigmoid(coarse) if score == "coarse" else np.array([[1 - softmax(r)[0] for r in crop] for crop in fine])
        assert np.abs(out.scores[b, :n].detach().numpy() - each.mean(0)).max() < 1e-9
        assert (out.scores[b, n:] == 0).all()


def test_padding_of_the_chunk_moves_published_scores_and_whole_chunks_agree():
    """The authors pad each chunk and mask it in one graph only; a video of whole chunks has no padding."""
    bag, ours, published = bag_of(), head_of(), head_of(as_published=True)
    gap = (ours(bag).aux["coarse"] - published(bag).aux["coarse"]).abs().amax(dim=1) * bag.mask
    assert gap[1].max() < 1e-12
    assert all(gap[b].max() > 1e-3 for b in (0, 2, 3, 4))
    assert gap[3, :12].max() < 1e-12  # the first chunk of 20 segments is whole


def test_the_scores_of_these_tests_hold_cosines_on_both_sides_of_the_threshold():
    """Otherwise the graph of similar segments would not be tested."""
    everything, nothing, half = (head_of(threshold=t)(bag_of()).aux["coarse"][1] for t in (-2.0, 2.0, 0.7))
    assert (everything - half).abs().max() > 1e-3
    assert (nothing - half).abs().max() > 1e-3


def test_windows_bound_what_a_segment_attends_to():
    """With the graphs silenced, a segment in the second window moves nothing in the first."""
    head = head_of(window=4)
    with torch.no_grad():
        for part in (*head.alike, *head.near):
            part.weight.zero_()
    bag = bag_of([12], [1], [[1, 0, 0]], crops=1)
    before, moved = head(bag).aux["coarse"][0, 0], bag.x.clone()
    moved[0, 0, 6, 0] += 1  # one feature alone: the norm takes away what all have in common
    after = head(replace(bag, features={"rgb": moved})).aux["coarse"][0, 0]
    touched = ((after - before).abs() > 1e-12).nonzero().flatten().tolist()
    assert touched == list(range(2, 10))  # rows 4 to 7 attend to row 6, and the convolution reaches two further


def slow_losses(slow, weight):
    coarse, fine = [], []
    for b, length in enumerate(LENGTHS):
        for z1, z2 in slow[b]:
            k = length // 16 + 1
            p = np.mean(sorted(sigmoid(z1))[::-1][:k])
            coarse.append(-math.log(p) if LABELS[b] else -math.log(1 - p))
            best = np.array([np.mean(sorted(z2[:, c])[::-1][:k]) for c in range(4)])
            target = np.array([1.0 - LABELS[b], *SHOWN[b]])
            fine.append(-(target / target.sum()) @ np.log(softmax(best)))
    text = head_of().text.double().numpy()
    apart = weight / 3 * sum(abs(norm(text[0]) @ norm(t)) for t in text[1:])
    return {"coarse": np.mean(coarse), "fine": np.mean(fine), "apart": apart}


@pytest.mark.parametrize("as_published", [False, True])
def test_losses_are_those_of_the_loops(slow, as_published):
    """The mean of sigmoids (not of logits), k of each class by itself, several classes in equal shares."""
    head, bag = head_of(as_published=as_published, apart=0.4), bag_of()
    found = {name: v.item() for name, v in head.loss(head(bag), bag).items()}
    assert found == pytest.approx(slow_losses(slow[as_published], 0.4), abs=1e-9)


def test_an_anomalous_video_of_no_known_class_takes_no_part_in_the_fine_term():
    """Where the authors' code divides 0 by 0."""
    head, shown = head_of(), [list(row) for row in SHOWN]
    shown[1] = [0, 0, 0]
    bag, rest = bag_of(shown=shown), bag_of([7, 1, 20, 30], [0, 1, 0, 1], SHOWN[:1] + SHOWN[2:])
    rows = torch.tensor([0, 2, 3, 4])
    rest = replace(rest, features={"rgb": bag.x[rows]})
    both = [head.loss(head(b), b)["fine"].item() for b in (bag, rest)]
    assert both[0] == pytest.approx(both[1], abs=1e-12)


def test_normal_videos_are_of_class_0_and_classes_of_normal_videos_are_ignored():
    head, wrong = head_of(), [[1, 1, 1], *SHOWN[1:]]
    out, bag = head(bag_of()), bag_of()
    assert head.loss(out, bag_of(shown=wrong))["fine"].item() == head.loss(out, bag)["fine"].item()
    sure = torch.full((5, CROPS, 30, 4), -40.0, dtype=torch.float64)
    for b, row in enumerate(SHOWN):
        sure[b, ..., 0] = 40 if not LABELS[b] else -40
        sure[b, ..., 1:] = 80 * torch.tensor(row, dtype=torch.float64) - 40
    assert head.loss(replace(out, aux={**out.aux, "fine": sure}), bag)["fine"].item() == pytest.approx(
        math.log(2) / 5  # the third video shows two classes: half of each is as near as it gets
    )


def test_a_bag_that_does_not_name_the_classes_is_refused():
    head, bag = head_of(), bag_of()
    for classes, found in ((None, "none"), (torch.zeros(5, 2), "2")):
        with pytest.raises(ValueError, match=f"made for 3 classes, the bag has {found}"):
            head.loss(head(bag), replace(bag, classes=classes))


def test_features_of_another_size_are_projected_first_and_padding_stays_zero():
    """A bias of the projection must not reach the rows that the published chunk pads with zeros."""
    torch.manual_seed(0)
    head = VadCLIPHead(6, **SMALL, as_published=True).double().eval()
    assert head.project.weight.shape == (8, 6)
    bag = random_bag([7], [1], pad=3, dtype=torch.float64)
    w, text = theirs(head), head.text.double().numpy()
    x = head.project(bag.x)[0, 0, :7].detach().numpy()
    coarse, _ = slow_chunk(w, text, np.concatenate([x, np.zeros((5, 8))]), 7)
    assert np.abs(head(bag).scores[0, :7].detach().numpy() - sigmoid(coarse)).max() < 1e-9
    assert VadCLIPHead(8, **SMALL).project is None


# -- the class vectors -------------------------------------------------------------------------------------------------


def vectors(*names, width=8):
    rng = np.random.default_rng(0)
    return {name: (5 * rng.standard_normal(width)).astype(np.float32) for name in names}


@pytest.mark.parametrize("end", ["npz", "safetensors"])
def test_stored_vectors_stand_in_the_order_of_the_classes_as_they_are(tmp_path, end):
    table, path = vectors("Shooting", "normal", "Fighting", "Robbery", "Arson"), tmp_path / f"classes.{end}"
    np.savez(path, **table) if end == "npz" else save_file(table, path)
    text = VadCLIPHead(8, **SMALL, prompts=str(path)).text.numpy()
    assert np.array_equal(text, np.stack([table[n] for n in ("normal", "Fighting", "Robbery", "Shooting")]))


def test_a_table_without_a_class_is_refused(tmp_path):
    np.savez(tmp_path / "classes.npz", **vectors("Fighting", "Robbery", "Shooting"))
    with pytest.raises(ValueError, match="no vector for the class 'normal'"):
        VadCLIPHead(8, **SMALL, prompts=str(tmp_path / "classes.npz"))


def test_without_a_file_names_alone_decide_unit_vectors():
    """The same name has the same vector among other classes, in another order, whatever the seed."""
    torch.manual_seed(1)
    one = VadCLIPHead(8, **SMALL).text
    other = VadCLIPHead(8, **{**SMALL, "classes": ("Shooting", "Arson")}).text
    assert torch.equal(one[[0, 3]], other[[0, 1]])
    assert (one.norm(dim=1) - 1).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(one) == 4


# -- sizes, names, recipes ---------------------------------------------------------------------------------------------


def published_shapes(layers):
    """What the authors' module holds beside its CLIP, at width 512."""
    W = 512
    shapes = {
        "disAdj.sigma": (1,),
        "text_prompt_embeddings.weight": (77, W),
        "frame_position_embeddings.weight": (256, W),
        "linear.weight": (W, W),
        "linear.bias": (W,),
        "classifier.weight": (1, W),
        "classifier.bias": (1,),
    }
    for n in (1, 3):
        shapes |= {f"gc{n}.weight": (W, 256), f"gc{n}.residual.weight": (256, W, 5), f"gc{n}.residual.bias": (256,)}
        shapes |= {f"gc{n + 1}.weight": (256, 256)}
    perceptrons = ["mlp1", "mlp2"]
    for i in range(layers):
        name = f"temporal.resblocks.{i}"
        shapes |= {f"{name}.attn.in_proj_weight": (3 * W, W), f"{name}.attn.in_proj_bias": (3 * W,)}
        shapes |= {f"{name}.attn.out_proj.weight": (W, W), f"{name}.attn.out_proj.bias": (W,)}
        shapes |= {f"{name}.{ln}.{p}": (W,) for ln in ("ln_1", "ln_2") for p in ("weight", "bias")}
        perceptrons.append(f"{name}.mlp")
    for name in perceptrons:
        shapes |= {f"{name}.c_fc.weight": (4 * W, W), f"{name}.c_fc.bias": (4 * W,)}
        shapes |= {f"{name}.c_proj.weight": (W, 4 * W), f"{name}.c_proj.bias": (W,)}
    return shapes


@pytest.mark.parametrize(("recipe", "layers"), [("vadclip_ucf", 2), ("vadclip_xd", 1)])
def test_the_authors_files_hold_these_tensors_and_a_clip(recipe, layers):
    shapes = published_shapes(layers) | clip_shapes()
    dims, options = VadCLIPHead.infer(shapes)
    assert (dims, options) == ({"rgb": 512}, {"width": 512, "length": 256, "layers": layers})
    with torch.device("meta"):
        head = VadCLIPHead(512, **configs.load(recipe).head.options | options)
    form, own = head.published(), {n: tuple(v.shape) for n, v in head.state_dict().items()}
    assert {a: own[b] for a, b in form.names.items()} | dict(form.unused) == shapes
    assert set(own) - set(form.names.values()) == form.extra == {"text"}


def test_the_clip_inside_is_a_whole_vit_b_16():
    """OpenAI's ViT-B/16 has 149,620,737 parameters."""
    assert sum(math.prod(s) for s in clip_shapes().values()) == 149_620_737
    assert len(clip_shapes()) == 302


def test_a_file_of_the_authors_goes_in_and_comes_out_with_the_vectors_left_alone():
    head = head_of()
    before, form = head.text.clone(), head.published()
    shapes = {n: v.shape for n, v in theirs(head).items()} | dict(form.unused)
    state = {n: torch.randn(s, dtype=torch.float64) for n, s in shapes.items()}
    kept = take_in(head, form, state)
    assert torch.equal(head.text, before)
    back = give_back(head, form, kept)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], state[n]) for n in state)


def test_another_heads_file_is_not_taken_for_vadclip():
    with pytest.raises(KeyError):
        VadCLIPHead.infer({"fc1.weight": (512, 1024)})


@pytest.mark.parametrize(
    "options", [{"length": 10, "window": 4}, {"window": 0}, {"width": 7}, {"width": 8, "attention_heads": 3}]
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=r"multiple of the window, and an even width"):
        VadCLIPHead(8, **{**SMALL, **options})


def test_fine_scores_need_a_class():
    """Over "normal" alone, 1 - its probability is 0 everywhere."""
    bag = replace(bag_of(), classes=None)
    head = head_of(classes=())
    assert all(torch.isfinite(v) for v in head.loss(head(bag), bag).values())
    with pytest.raises(ValueError, match=r"head.score=fine needs the classes; pass --set head.classes="):
        head_of(classes=(), score="fine")(bag)


def test_normal_is_no_class_of_its_own():
    with pytest.raises(ValueError, match="'normal' comes before them by itself"):
        VadCLIPHead(8, **{**SMALL, "classes": ("normal", "Robbery")})


def test_recipes_hold_what_the_authors_code_sets():
    ucf, xd = configs.load("vadclip_ucf"), configs.load("vadclip_xd")
    shared = {"width": 512, "length": 256, "attention_heads": 1, "temperature": 0.07, "threshold": 0.7}
    shared |= {"prompts": None, "as_published": True}
    assert ucf.head.options == shared | {"layers": 2, "window": 8, "apart": 0.1, "score": "coarse"}
    assert xd.head.options == shared | {"layers": 1, "window": 64, "apart": 1e-4, "score": "fine"}
    for config, lr in ((ucf, 2e-5), (xd, 1e-5)):
        assert (config.data.resample, config.data.count, config.data.scale) == ("shrink", 256, "none")
        assert (config.seed, config.train.epochs, config.train.samples) == (234, 10, "crops")
        optimizer = config.train.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", lr, 0.01)
    assert (ucf.train.sampler, ucf.train.pairs) == ("passes", 64)
    assert (xd.train.sampler, xd.train.batch) == ("mixed", 96)


@pytest.mark.parametrize(("recipe", "drops"), [("vadclip_ucf", (4, 8)), ("vadclip_xd", (3, 6))])
def test_the_rate_drops_after_so_many_epochs(recipe, drops):
    schedule = Schedule(configs.load(recipe).train, per_epoch=5)
    assert schedule.steps == 50
    for epoch in range(10):
        assert schedule.factor(5 * epoch + 1) == pytest.approx(0.1 ** sum(epoch >= d for d in drops))
