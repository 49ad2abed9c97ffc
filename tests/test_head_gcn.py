"""The GCN label noise cleaner against plain numpy, written from the paper (Zhong et al., CVPR 2019) and from what the
authors' code does, one video at a time; nothing here calls mil.layers or mil.losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mil import checkpoint
from mil import config as configs
from mil.bags import Bag, BagDataset
from mil.config import validate
from mil.heads import Progress
from mil.heads.gcn import Cleaner, GCNHead
from mil.layers.per_video import PerVideo
from mil.train import fit
from tests.mil_helpers import make_world, random_bag, take

LENGTHS, LABELS, INDEX = [7, 14, 40, 1, 5], [0, 1, 1, 1, 0], [3, 0, 6, 2, 5]
STEPS = 50


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, float)))


def cross_entropy(z, y):
    return -(y * np.log(sigmoid(z)) + (1 - y) * np.log(sigmoid(-z)))


def weights(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def classify(head, x):
    """Logit of one vector."""
    w = weights(head.classifier)
    return float(w["3.weight"][0] @ np.maximum(w["0.weight"] @ x + w["0.bias"], 0) + w["3.bias"][0])


def clean(cleaner, x, places):
    """The authors' cleaner on the segments x (n, D) that lie at `places` of the video; n logits."""
    w, n = weights(cleaner), len(x)
    h = [np.maximum(w["fc1.weight"] @ v + w["fc1.bias"], 0) for v in x]
    h = [np.maximum(w["fc2.weight"] @ v + w["fc2.bias"], 0) for v in h]

    def normalized(a):
        degree = [sum(row) for row in a]
        return [[a[i][j] / np.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)]

    def convolve(a, v, weight):
        return [sum(a[i][j] * (v[j] @ weight) for j in range(n)) for i in range(n)]

    near = normalized([[np.exp(-abs(places[i] - places[j])) for j in range(n)] for i in range(n)])
    alike = [[h[i] @ h[j] for j in range(n)] for i in range(n)]
    alike = normalized([[np.exp(alike[i][j] - max(alike[i])) for j in range(n)] for i in range(n)])
    outs = []
    for graph, first, second in ((near, "gc1", "gc2"), (alike, "gc3", "gc4")):
        g = [np.maximum(v, 0) for v in convolve(graph, h, w[f"{first}.weight"])]
        outs.append(convolve(graph, g, w[f"{second}.weight"]))
    return np.array([(outs[0][i][0] + outs[1][i][0]) / 2 for i in range(n)])


def make(**options):
    torch.manual_seed(1)
    head = GCNHead(6, **{"hidden": (10, 8, 5), "classifier": 7, "dropout": 0.0, **options}).double()
    with torch.no_grad():  # as initialised, all features of a video look alike and all predictions are near 1/2
        head.cleaner.fc1.weight.mul_(3)
        head.cleaner.fc2.weight.mul_(3)
        head.classifier[3].weight.mul_(20)
    return head


def make_bag(crops=3, pad=2):
    bag = random_bag(LENGTHS, LABELS, crops={"rgb": crops}, pad=pad, dtype=torch.float64)
    return replace(bag, index=torch.tensor(INDEX))


def scan_of(bag):
    def scan():
        for b, n in enumerate(LENGTHS):
            one = take(bag, [b])
            yield Bag({k: x[:, :, :n] for k, x in one.features.items()}, one.mask[:, :n], one.labels, None, one.index)

    return scan


def at(head, bag, stage):
    """Enters the stages up to that one as the trainer does; five stages of 10 steps."""
    with torch.no_grad():
        for s in range(1, stage + 1):
            progress = Progress(10 * s, STEPS, 7)
            assert head.eval().refresh_due(progress)
            head.refresh(progress, scan_of(bag))
    assert int(head.stage) == stage
    return head


def predictions(head, bag, b):
    """What the classifier says of one video, and how much its logits vary over the crops."""
    x = bag.x[b].numpy()
    logits = np.array([[classify(head, x[k, t]) for t in range(LENGTHS[b])] for k in range(len(x))])
    return sigmoid(logits.mean(0)), ((logits - logits.mean(0)) ** 2).mean(0), logits


def certain(doubt, share=0.3):
    """The authors' threshold: the value at place int(0.3 n) of the sorted, and all up to it."""
    threshold = sorted(doubt)[int(share * len(doubt))]
    return [t for t, d in enumerate(doubt) if d <= threshold]


def around(sure, n):
    return sorted({j for i in sure for j in range(i - 4, i + 5) if 0 <= j < n})


# -- forward -----------------------------------------------------------------------------------------------------------


def test_scores_are_the_classifiers_and_the_mean_over_the_crops():
    head, bag = make().eval(), make_bag()
    scores = head(bag).scores.detach().numpy()
    expected = np.zeros_like(scores)
    for b, n in enumerate(LENGTHS):
        expected[b, :n] = sigmoid(predictions(head, bag, b)[2]).mean(0)
    assert np.abs(scores - expected).max() < 1e-12


def test_the_cleaner_sees_two_graphs_of_the_segments_that_take_part():
    head, bag = make().eval(), make_bag(crops=1)
    nodes = bag.mask.clone()
    nodes[1, [0, 3, 4, 9]] = False
    nodes[2, ::3] = False
    found = head.cleaner(bag.x[:, 0], nodes).detach().numpy()
    for b in range(len(LENGTHS)):
        places = np.flatnonzero(nodes[b])
        expected = clean(head.cleaner, bag.x[b, 0].numpy()[places], places)
        assert np.abs(found[b, places] - expected).max() < 1e-10, b
        assert not found[b, ~nodes[b].numpy()].any()
    # both branches speak, and what one hears differs from what the other hears
    for silent in ("gc2", "gc4"):
        other = make().eval()
        torch.nn.init.zeros_(getattr(other.cleaner, silent).weight)
        assert np.abs(other.cleaner(bag.x[:, 0], nodes).detach().numpy() - found)[2].max() > 1e-3


@pytest.mark.parametrize(("dim", "parameters"), [(1024, 598_720), (4096, 2_171_584)])
def test_size_of_the_cleaner(dim, parameters):
    """D * 512 + 512, 512 * 128 + 128, and twice 128 * 32 + 32 * 1 without biases; names are the authors'."""
    cleaner = Cleaner(dim, (512, 128, 32), 0.6)
    shapes = {name: tuple(p.shape) for name, p in cleaner.state_dict().items()}
    layers = {"fc1.weight": (512, dim), "fc1.bias": (512,), "fc2.weight": (128, 512), "fc2.bias": (128,)}
    graphs = {"gc1.weight": (128, 32), "gc2.weight": (32, 1), "gc3.weight": (128, 32), "gc4.weight": (32, 1)}
    assert shapes == layers | graphs
    assert sum(p.numel() for p in cleaner.parameters()) == parameters


def test_graph_kernels_start_uniform_in_the_root_of_their_outputs():
    torch.manual_seed(0)
    cleaner = Cleaner(8, (16, 400, 100), 0.6)
    for layer in (cleaner.gc1, cleaner.gc3):
        assert 0.0995 < float(layer.weight.detach().abs().max()) <= 0.1
        assert float(layer.weight.detach().std()) == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    assert 0.9 < float(cleaner.gc2.weight.detach().abs().max()) <= 1


# -- losses ------------------------------------------------------------------------------------------------------------


def losses(head, bag):
    return {name: term.item() for name, term in head.loss(head(bag), bag).items()}


def test_first_every_segment_has_its_videos_label():
    head, bag = make().eval(), make_bag()
    each = [cross_entropy(predictions(head, bag, b)[2], LABELS[b]).mean() for b in range(len(LENGTHS))]
    assert losses(head, bag) == pytest.approx({"classifier": np.mean(each)}, abs=1e-12)
    assert losses(head, replace(bag, index=None)).keys() == {"classifier"}


def reference_labels(head, bag, as_published):
    """Certain segments, the graph's and the supervision of every video, when the first round's cleaner begins."""
    for b, n in enumerate(LENGTHS):
        predicted, variance, _ = predictions(head, bag, b)
        sure = certain(variance, head.certain)
        if as_published and len(sure) < 4:
            sure = sorted(np.argsort(predicted)[:2])
        nodes = around(sure, n) if as_published else list(range(n))
        yield predicted, sure, nodes, bag.x[b].numpy().mean(0)[:n]


@pytest.mark.parametrize("as_published", [False, True])
def test_the_cleaner_learns_certain_predictions_and_the_ensemble(as_published):
    head, bag = make(as_published=as_published, certain=0.1 if as_published else 0.3), make_bag()
    at(head, bag, 1)
    ensemble = {b: np.random.default_rng(b).random(n) for b, n in enumerate(LENGTHS)}
    for b, n in enumerate(LENGTHS):
        head.ensemble.write(bag.index[b : b + 1], torch.from_numpy(ensemble[b][None, :n]))
    direct, indirect, covered, enough = [], [], [], []
    for b, (predicted, sure, nodes, x) in enumerate(reference_labels(head, bag, as_published)):
        out = dict(zip(nodes, clean(head.cleaner, x[nodes], nodes), strict=True))
        covered.append(len(nodes))
        enough.append(len(certain(predictions(head, bag, b)[1], head.certain)) >= 4)
        if LABELS[b]:
            direct.append(np.mean([cross_entropy(out[t], predicted[t]) for t in sure]))
            indirect.append(np.mean([abs(sigmoid(out[t]) - ensemble[b][t]) for t in nodes]))
        elif as_published:  # the i-th of the graph towards the video's i-th prediction
            direct.append(np.mean([cross_entropy(out[t], predicted[i]) for i, t in enumerate(nodes)]))
        else:
            direct.append(np.mean([cross_entropy(out[t], 0) for t in nodes]))
    # the case is one: not all segments are in the authors' graph, and not all videos have enough certain ones
    assert (sum(covered) < sum(LENGTHS)) == as_published
    assert any(enough)
    assert not all(enough)
    parts = len(LENGTHS) if not as_published else 1  # a mean over the batch, a sum over the authors' 32 videos
    expected = {"direct": sum(direct) / parts, "indirect": sum(indirect) / parts}
    assert losses(head.eval(), bag) == pytest.approx(expected, abs=1e-10)


def test_as_published_normal_videos_learn_their_first_predictions():
    """A long normal video whose graph leaves out its beginning."""
    head = make(as_published=True)
    bag = replace(random_bag([30], [0], dtype=torch.float64), index=torch.tensor([0]))
    at_one, predicted, sure = torch.tensor([0]), np.linspace(0.1, 0.9, 30), np.zeros((1, 30))
    sure[0, [14, 20]] = 1
    head.predicted.write(at_one, torch.from_numpy(predicted[None]))
    head.sure.write(at_one, torch.from_numpy(sure))
    head.stage.fill_(1)
    nodes = list(range(10, 25))
    out = clean(head.cleaner, bag.x[0, 0].numpy()[nodes], nodes)
    expected = np.mean([cross_entropy(z, predicted[i]) for i, z in enumerate(out)])
    assert losses(head.eval(), bag) == pytest.approx({"direct": expected, "indirect": 0.0}, abs=1e-10)


def test_then_the_classifier_learns_what_was_cleaned():
    head, bag = make(), make_bag()
    at(head, bag, 2)
    kept = {b: np.random.default_rng(b).random(n) for b, n in enumerate(LENGTHS)}
    for b in kept:
        head.cleaned.write(bag.index[b : b + 1], torch.from_numpy(kept[b][None]))
    each = [cross_entropy(predictions(head, bag, b)[2], kept[b] * LABELS[b]).mean() for b in kept]
    assert losses(head.eval(), bag) == pytest.approx({"classifier": np.mean(each)}, abs=1e-12)


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_round_begins_with_the_classifiers_predictions_and_their_variance_over_the_crops():
    head, bag = make(), make_bag()
    at(head, bag, 1)
    for b, n in enumerate(LENGTHS):
        predicted, variance, _ = predictions(head, bag, b)
        row = torch.tensor([INDEX[b]])
        assert np.abs(head.predicted.read(row, n)[0].numpy() - predicted).max() < 1e-12
        assert torch.equal(head.ensemble.read(row, n), head.predicted.read(row, n))
        assert np.flatnonzero(head.sure.read(row, n)[0]).tolist() == certain(variance)
    assert not head.predicted.values[[1, 4]].any()  # no video has these numbers


def test_with_a_single_crop_what_is_far_from_one_half_is_certain():
    head, bag = make(), make_bag(crops=1)
    at(head, bag, 1)
    for b, n in enumerate(LENGTHS):
        predicted = predictions(head, bag, b)[0]
        expected = certain(-np.abs(predicted - 0.5))
        assert np.flatnonzero(head.sure.read(torch.tensor([INDEX[b]]), n)[0]).tolist() == expected
        assert len(expected) == int(0.3 * n) + 1


def test_cleaned_labels_are_stretched_probabilities_and_0_for_normal_videos():
    head, bag = make(), make_bag()
    at(head, bag, 2)
    for b, n in enumerate(LENGTHS):
        p = sigmoid(clean(head.cleaner, bag.x[b].numpy().mean(0)[:n], range(n)))
        expected = (p - p.min()) / (p.max() - p.min()) if n > 1 else p  # one segment: there is nothing to stretch
        found = head.cleaned.read(torch.tensor([INDEX[b]]), n)[0].numpy()
        assert np.abs(found - expected * LABELS[b]).max() < 1e-10, b


def test_as_published_cleaned_labels_mix_logits_and_old_probabilities():
    head, bag = make(as_published=True, certain=0.1), make_bag()
    at(head, bag, 2)
    mixed = 0
    for b, (predicted, _, nodes, x) in enumerate(reference_labels(head, bag, True)):
        if not LABELS[b] or len(x) == 1:
            continue
        labels = predicted.copy()
        labels[nodes] = clean(head.cleaner, x[nodes], nodes)
        expected = (labels - labels.min()) / (labels.max() - labels.min())
        assert np.abs(head.cleaned.read(torch.tensor([INDEX[b]]), len(x))[0].numpy() - expected).max() < 1e-10
        mixed += len(nodes) < len(x)
    assert mixed


@pytest.mark.parametrize("as_published", [False, True])
def test_the_ensemble_is_a_running_mean_of_what_the_cleaner_said(as_published):
    """Also where two crops of one video are in a batch: the second finds what the first left."""
    head, bag = make(as_published=as_published, certain=0.1, alpha=0.3), make_bag()
    at(head, bag, 1)
    before = head.ensemble.values.clone()
    labels = list(reference_labels(head, bag, as_published))
    rows, crops = [2, 1, 2], [0, 2, 1]
    parts = [take(bag, [b]).crop(k) for b, k in zip(rows, crops, strict=True)]
    batch = Bag({"rgb": torch.cat([p.x for p in parts])}, bag.mask[rows], bag.labels[rows], None, bag.index[rows])
    head.loss(head.eval()(batch), batch)
    head.after_step(Progress(11, STEPS, 7))
    assert torch.equal(head.ensemble.values, before)  # a look in evaluation mode is none
    head.train().loss(head(batch), batch)
    head.after_step(Progress(11, STEPS, 7))
    expected = before.numpy().copy()
    for b, k in zip(rows, crops, strict=True):
        nodes = labels[b][2]
        said = sigmoid(clean(head.cleaner, bag.x[b, k].numpy()[nodes], nodes))
        expected[INDEX[b], nodes] = 0.3 * expected[INDEX[b], nodes] + 0.7 * said
    assert np.abs(head.ensemble.values.numpy()[:, :40] - expected).max() < 1e-10
    after = head.ensemble.values.clone()
    head.after_step(Progress(12, STEPS, 7))  # nothing was said in between
    assert torch.equal(head.ensemble.values, after)


def test_stages_have_equal_shares_and_each_trains_one_part():
    head, bag = make(), make_bag()
    for step in range(STEPS):
        due = head.refresh_due(Progress(step, STEPS, 7))
        assert due == (step in (10, 20, 30, 40)), step
        if due:
            with torch.no_grad():
                head.eval().refresh(Progress(step, STEPS, 7), scan_of(bag))
        if step % 10 == 3:
            head.train().zero_grad(set_to_none=True)
            torch.stack(list(head.loss(head(bag), bag).values())).sum().backward()
            part = "cleaner" if step // 10 % 2 else "classifier"
            moved = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
            assert moved == {n for n, _ in head.named_parameters() if n.startswith(part)}, step
    assert int(head.stage) == 4


def test_a_stage_without_a_step_is_entered_all_the_same():
    """Two steps for five stages: the classifier's labels are there although the cleaner never learnt."""
    head, bag = make(), make_bag()
    with torch.no_grad():
        head.eval().refresh(Progress(1, 2, 7), scan_of(bag))
    assert int(head.stage) == 2
    assert head.cleaned.read(torch.tensor([INDEX[1]]), 14).max() == 1


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("as_published", [False, True])
def test_later_losses_change_neither_with_padding_nor_with_the_order_of_the_batch(stage, as_published):
    head, bag = make(as_published=as_published), make_bag(pad=0)
    at(head, bag, stage)
    expected = losses(head.eval(), bag)
    assert losses(head, make_bag(pad=6)) == pytest.approx(expected, abs=1e-12)
    assert losses(head, take(bag, [4, 2, 0, 3, 1])) == pytest.approx(expected, abs=1e-12)


def test_gradients_of_the_cleaner_agree_with_finite_differences():
    head, bag = make(as_published=True), make_bag()
    at(head, bag, 1).eval()
    head.ensemble.values.mul_(0.5)  # away from the corner of the absolute value
    parameters = list(head.cleaner.parameters())

    def total():
        return sum(head.loss(head(bag), bag).values())

    torch.manual_seed(3)
    for p, grad in zip(parameters, torch.autograd.grad(total(), parameters), strict=True):
        way = torch.randn_like(p)
        with torch.no_grad():
            start = p.clone()
            high, low = (float(total()) for step in (1e-6, -1e-6) if p.copy_(start + step * way) is not None)
            p.copy_(start)
        assert float((grad * way).sum()) == pytest.approx((high - low) / 2e-6, rel=1e-4, abs=1e-6)


def test_labels_are_kept_by_the_number_of_the_video():
    head, bag = make(), make_bag()
    at(head, bag, 1)
    with pytest.raises(ValueError, match=r"kept by bag\.index, and this bag has none"):
        losses(head, replace(bag, index=None))


def test_a_fresh_head_takes_the_state_of_a_trained_one():
    head, bag = make(), make_bag()
    at(head, bag, 3)
    fresh = make()
    fresh.load_state_dict(head.state_dict(), strict=True)
    assert fresh.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in fresh.state_dict().items())
    assert losses(fresh.eval(), bag) == losses(head.eval(), bag)


def test_what_is_kept_grows_and_is_read_as_far_as_it_goes():
    table = PerVideo()
    assert table.read(torch.tensor([0, 9]), 3).tolist() == [[0, 0, 0]] * 2
    table.write(torch.tensor([2]), torch.tensor([[1.0, 2.0]]))
    table.write(torch.tensor([3, 0]), torch.tensor([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]))
    assert table.values.tolist() == [[6, 7, 8], [0, 0, 0], [1, 2, 0], [3, 4, 5]]
    assert table.read(torch.tensor([2, 7, 0]), 2).tolist() == [[1, 2], [0, 0], [6, 7]]
    assert table.read(torch.tensor([3]), 5).tolist() == [[3, 4, 5, 0, 0]]
    table.put(torch.tensor([3, 0, 3]), torch.tensor([[1.0, 2.0], [6.0, 7.0], [1.0, 2.0]]))
    assert table.values.tolist() == [[6, 7, 8], [0, 0, 0], [1, 2, 0], [1, 2, 5]]
    table.put(torch.tensor([0]), torch.arange(4.0)[None])
    assert table.values[:2].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    with pytest.raises(IndexError):
        table.put(torch.tensor([4]), torch.ones(1, 4))
    other = PerVideo()
    other.write(torch.tensor([9]), torch.ones(1, 9))
    other.load_state_dict(table.state_dict(), strict=True)
    assert torch.equal(other.values, table.values)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({"values": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


@pytest.mark.parametrize(
    "options",
    [{"hidden": [512, 128]}, {"hidden": [4, 0, 4]}, {"classifier": 0}, {"rounds": 0}, {"certain": 1.2}, {"alpha": -1}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"gcn needs three hidden widths.*{next(iter(options))}="):
        GCNHead(4, **options)


def test_labels_get_better_in_a_real_run(tmp_path):
    """Of anomalous training videos the cleaned labels find the planted segments, from video labels alone."""
    world = make_world(tmp_path, train=12, test=1, crops=2, shift=3.0)
    head = {"name": "gcn", "hidden": [16, 12, 8], "classifier": 32, "dropout": 0.2, "rounds": 1}
    train = {"steps": 60, "pairs": 6, "optimizer": {"name": "adam", "lr": 3e-3}}
    data = {"scale": "standardize", "resample": "full"}
    run = world.run("run", config := validate({"head": head, "train": train, "data": data}, "test"))
    fit(config, world.train, world.stores, run)
    kept = checkpoint.load(run.checkpoint).model.head
    assert int(kept.stage) == 2
    lengths = [x["rgb"].shape[1] for x in BagDataset(world.train, world.stores, "full", 32).clips()]
    inside, outside = [], []
    for i, video in enumerate(world.train):
        row = kept.cleaned.read(torch.tensor([i]), lengths[i])[0].numpy()
        if not video.label:
            assert not row.any()
            continue
        planted = np.zeros(lengths[i], bool)
        for event in video.events:
            planted[event.start // 16 : -(-event.stop // 16)] = True
        inside += row[planted].tolist()
        outside += row[~planted].tolist()
    assert np.mean(inside) > 0.7 > 0.4 > np.mean(outside)


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_recipes_hold_what_the_authors_code_sets():
    """jx-zhong-for-academic-purpose/GCN-Anomaly-Detection, pygcn/experiment_rgb.py."""
    config = configs.load("gcn_ucf")
    assert config.head.options == {
        "hidden": [512, 128, 32],
        "classifier": 512,
        "dropout": 0.6,
        "rounds": 2,
        "certain": 0.3,
        "alpha": 0.5,
        "as_published": True,
    }
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 1e-4, 0.9, 8e-4)
    assert (config.train.batch, config.train.sampler, config.train.samples) == (32, "mixed", "crops")
    assert config.data.scale == "none"
    other = configs.load("gcn_sh")
    assert other.head == config.head
    assert (config.train.steps, other.train.steps) == (5000, 750)
    head = GCNHead(6, **config.head.options)
    defaults = GCNHead(6)
    for name in ("rounds", "certain", "alpha"):
        assert getattr(head, name) == getattr(defaults, name)
