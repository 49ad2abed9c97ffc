"""The training loop's hooks, samplers and averages, seen by a small head that keeps a diary.

The order of what happens is written down here by hand; batches are drawn again outside the loop.
"""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mil import checkpoint
from mil import config as configs
from mil.config import validate
from mil.evaluate import evaluate_run
from mil.heads import Head, HeadOutput, Progress, heads
from mil.losses import topk_bce
from mil.run import start_run
from mil.train import TrainError, check, fit, resolved
from tests.mil_helpers import make_world, metrics_lines

DIARY: list[tuple] = []


class Diary(Head):
    """One layer, a slow copy of it, and a memory of every training video that grows at its first refresh."""

    compares = False

    def __init__(self, dim, *, every: int = 3, memory: float = 0.9):
        super().__init__()
        self.every, self.memory = every, memory
        self.layer = nn.Linear(dim, 1)
        self.register_buffer("teacher", self.layer.weight.detach().clone())
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("bank", torch.zeros(0, dim))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.bank = torch.zeros_like(state_dict[f"{prefix}bank"])  # as many videos as there were
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, bag):
        if self.training:
            DIARY.append(("forward", bag, self.layer.weight.detach().clone()))
        scores = self.layer(bag.x).squeeze(-1).sigmoid().mean(1)
        return HeadOutput(scores * bag.mask)

    def loss(self, out, bag):
        near = self.bank[bag.index].mean() if len(self.bank) else 0.0
        return {
            "bce": topk_bce(out.scores, bag.mask, bag.labels, 2),
            "near": 0.1 * (self.layer.weight.mean() - near) ** 2,
        }

    def after_step(self, progress):
        assert not torch.is_grad_enabled()
        DIARY.append(("after_step", progress, self.layer.weight.detach().clone()))
        self.teacher.lerp_(self.layer.weight, 1 - self.memory)
        self.updates += 1

    def refresh_due(self, progress):
        DIARY.append(("refresh_due", progress))
        return progress.step % self.every == 0

    def refresh(self, progress, scan):
        bags = list(scan())
        DIARY.append(("refresh", progress, self.training, torch.is_grad_enabled(), bags))
        self.bank = torch.cat([bag.x.mean((1, 2)) for bag in bags]) * self.teacher


class Named(Diary):
    """Takes classes too."""

    takes_classes = True

    def __init__(self, dim, *, classes: tuple[str, ...] = (), every: int = 3):
        super().__init__(dim, every=every)
        self.classes = classes


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """Heads of this module are known to its own tests alone."""
    heads.names()
    monkeypatch.setattr(heads, "_items", dict(heads._items))
    heads.register("diary")(Diary)
    heads.register("named")(Named)
    DIARY.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """5 anomalous and 5 normal training videos of 3 crops, with sound of one."""
    root = tmp_path_factory.mktemp("hooks")
    return make_world(root, train=5, test=2, crops=3, modalities=("rgb", "audio"), shift=1.0)


def config_of(name="diary", head=(), data=(), select=(), **train):
    return validate(
        {
            "head": {"name": name, **dict(head)},
            "data": {"count": 6, "scale": "standardize", "dtype": "float32", **dict(data)},
            "train": {"steps": 7, "pairs": 2, "batch": 4, "log_every": 1, "optimizer": {"lr": 0.05}, **train},
            "select": dict(select),
            "seed": 3,
        },
        "test",
    )


def train(world, request, name, config):
    run = world.run(f"{request.node.name}-{name}".replace("/", "_"), config)
    fit(config, world.train, world.stores, run)
    return run


# -- the order of things ----------------------------------------------------------------------------------------------


def test_hooks_come_in_order_with_the_step_they_belong_to(world, request):
    """Due? Refresh, step, after it. A look is offered before the first step, and none after the last."""
    train(world, request, "a", config_of(steps=7))
    found = [(entry[0], entry[1].step if isinstance(entry[1], Progress) else None) for entry in DIARY]
    expected = []
    for step in range(1, 8):
        expected.append(("refresh_due", step - 1))
        if step - 1 in (0, 3, 6):
            expected.append(("refresh", step - 1))
        expected += [("forward", None), ("after_step", step)]
    assert found == expected
    progress = [entry[1] for entry in DIARY if isinstance(entry[1], Progress)]
    assert {(p.steps, p.per_epoch) for p in progress} == {(7, 2)}  # 5 of each class, 2 of each a step
    assert all(p.epoch == p.step // 2 for p in progress)


def test_after_step_sees_the_updated_weights(world, request):
    run = train(world, request, "a", config_of(head={"memory": 0.75}, steps=4))
    before = [entry[2] for entry in DIARY if entry[0] == "forward"]
    after = [entry[2] for entry in DIARY if entry[0] == "after_step"]
    assert all(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, before[1:], strict=False))
    teacher = before[0].double()
    for weight in after:
        teacher = 0.75 * teacher + 0.25 * weight.double()
    kept = checkpoint.load(run.checkpoint).model.head
    assert torch.allclose(kept.teacher.double(), teacher, rtol=0, atol=1e-6)
    assert torch.equal(kept.layer.weight, after[-1])
    assert kept.updates.item() == 4


def test_a_refresh_scans_every_training_video_as_the_head_sees_it(world, request):
    """One by one, in the order of the manifest, all crops, resampled and scaled, no noise, no gradient, no dropout."""
    config = config_of(steps=1, samples="crops", noise=5.0)
    run = train(world, request, "a", config)
    ((_, progress, was_training, gradient, bags),) = [entry for entry in DIARY if entry[0] == "refresh"]
    assert (progress.step, was_training, gradient) == (0, False, False)
    assert [bag.index.tolist() for bag in bags] == [[i] for i in range(10)]
    assert [bag.labels.tolist() for bag in bags] == [[float(v.label)] for v in world.train]
    scaler = checkpoint.load(run.checkpoint).model.scalers["rgb"]
    for bag, video in zip(bags, world.train, strict=True):
        x = world.stores[0].read(video.id).x.astype(np.float64)
        bounds = [int(b) for b in np.linspace(0, x.shape[1], 7)]
        parts = [x[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(bounds)]
        expected = (np.stack(parts, 1) - scaler.mean.numpy()) / scaler.deviation.numpy()
        assert np.abs(bag.features["rgb"][0].numpy() - expected).max() < 1e-4
        assert bag.features["audio"].shape == (1, 1, 6, 3)
        assert not bag.features["rgb"].requires_grad
    (forward,) = [entry for entry in DIARY if entry[0] == "forward"]
    assert forward[1].x.std() > 3, "noise belongs to the step"


def test_a_scan_may_be_left_early_or_taken_twice(world, request, monkeypatch):
    seen = []

    def refresh(self, progress, scan):
        seen.append(next(iter(scan())).index.item())
        seen.append(sum(1 for _ in scan()))

    monkeypatch.setattr(Diary, "refresh", refresh)
    train(world, request, "a", config_of(steps=1))
    assert seen == [0, 10]


def test_without_hooks_of_its_own_a_head_is_left_alone():
    head = heads.get("ranking")(3)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert head.refresh_due(Progress(0, 5, 1)) is False
    head.after_step(Progress(1, 5, 1))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


# -- averages ---------------------------------------------------------------------------------------------------------


def test_an_average_takes_what_is_counted_or_grows_as_it_is(world, request):
    """Floating-point tensors of one shape are averaged, after the hook; counters and the bank are those of the end."""
    run = train(world, request, "ema", config_of(head={"every": 4}, steps=6, ema=0.3))
    weights = load_file(run.checkpoint.with_suffix(".safetensors"))
    after = [entry[2].double() for entry in DIARY if entry[0] == "after_step"]
    first = next(entry[2] for entry in DIARY if entry[0] == "forward").double()
    last_bank = [entry for entry in DIARY if entry[0] == "refresh"][-1]
    average = {"layer": first, "teacher": first}
    teacher, teachers = first, []
    for i, weight in enumerate(after):
        teacher = 0.9 * teacher + 0.1 * weight
        teachers.append(teacher)
        decay = min(0.3, (i + 1) / (i + 11))
        average["layer"] = decay * average["layer"] + (1 - decay) * weight
        average["teacher"] = decay * average["teacher"] + (1 - decay) * teacher
    assert torch.allclose(weights["head.layer.weight"].double(), average["layer"], rtol=0, atol=1e-6)
    assert torch.allclose(weights["head.teacher"].double(), average["teacher"], rtol=0, atol=1e-6)
    assert not torch.allclose(weights["head.layer.weight"].double(), after[-1], rtol=0, atol=1e-3)
    assert weights["head.updates"].item() == 6
    assert last_bank[1].step == 4
    own = torch.cat([bag.x.mean((1, 2)) for bag in last_bank[4]]).double() * teachers[3]
    # of one shape from step 2 on: two more steps mixed it with the bank of the first refresh, 0.3 and 0.3 of it
    begun = torch.cat([bag.x.mean((1, 2)) for bag in last_bank[4]]).double() * first
    assert torch.allclose(weights["head.bank"].double(), 0.09 * begun + 0.91 * own, rtol=0, atol=1e-6)


def test_a_buffer_that_changed_its_shape_is_taken_whole(world, request):
    """There is nothing that 10 rows could be averaged with: before, there were none."""
    run = train(world, request, "ema", config_of(steps=1, ema=0.999))
    bank = load_file(run.checkpoint.with_suffix(".safetensors"))["head.bank"]
    (entry,) = [e for e in DIARY if e[0] == "refresh"]
    first = next(e[2] for e in DIARY if e[0] == "forward")
    assert torch.equal(bank, torch.cat([bag.x.mean((1, 2)) for bag in entry[4]]) * first)
    assert evaluate_run(run).numbers["step"] == 1  # and the checkpoint loads


SETUPS = {
    "growing, averaged": {"head": {"every": 2}, "save_every": 2, "ema": 0.9},
    "crops in passes": {"save_every": 3, "sampler": "passes", "samples": "crops"},
    "random segments, mixed": {
        "data": {"resample": "random"},
        "epochs": 3,
        "save_every": 2,
        "sampler": "mixed",
        "noise": 0.1,
        "lr_schedule": "cosine",
    },
    "held out": {"select": {"also": ["val"], "every": 2, "fraction": 0.4}, "save_every": 2, "ema": 0.8, "pairs": 1},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("place", ["refresh", "after_step", "loss"])
def test_interrupted_anywhere_and_resumed_a_run_ends_with_the_same_bytes(world, request, monkeypatch, setup, place):
    config = config_of(**SETUPS[setup])
    whole = train(world, request, "whole", config)
    run = world.run(f"{request.node.name}-cut".replace("/", "_"), config)
    real, calls = getattr(Diary, place), []

    def cut(self, *arguments):
        calls.append(place)
        found = real(self, *arguments)  # done, but the step is not
        if len(calls) == (2 if place == "refresh" else 5):
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Diary, place, cut)
        with pytest.raises(KeyboardInterrupt):
            fit(config, world.train, world.stores, run)
    fit(config, world.train, world.stores, run, resume=True)
    kept = [f"checkpoints/{rule}{end}" for rule in config.select.rules for end in (".safetensors", ".json")]
    for name in ("metrics.jsonl", *kept):
        assert (run.root / name).read_bytes() == (whole.root / name).read_bytes(), name


@cache
def stored(world, number, video):
    """Features of a training video in one of the stores, read once."""
    return world.stores[number].read(world.train[video].id).x


# -- what a step sees -------------------------------------------------------------------------------------------------


def batches():
    return [entry[1] for entry in DIARY if entry[0] == "forward"]


def drawn_by_hand(world, videos, crops, resample="segments"):
    """rgb of those videos, one crop each, scaled by nothing."""
    out = []
    for video, crop in zip(videos, crops, strict=True):
        x = stored(world, 0, video)[crop].astype(np.float64)
        bounds = [int(b) for b in np.linspace(0, len(x), 7)]
        out.append(np.stack([x[a : max(b, a + 1)].mean(0) for a, b in pairwise(bounds)]))
    return np.stack(out)


def test_a_mixed_epoch_of_crops_sees_every_crop_of_every_video_once(world, request):
    config = config_of(data={"scale": "none"}, epochs=2, sampler="mixed", batch=7, samples="crops")
    run = train(world, request, "a", config)
    bags = batches()
    assert [len(bag.labels) for bag in bags] == [7, 7, 7, 7, 2] * 2  # 30 crops
    assert metrics_lines(run)[-1]["step"] == 10
    for epoch in (bags[:5], bags[5:]):
        seen = []
        for bag in epoch:
            assert bag.crops == 1
            for row, video in enumerate(bag.index.tolist()):
                (crop,) = [
                    k
                    for k in range(3)
                    if np.abs(bag.features["rgb"][row, 0].numpy() - drawn_by_hand(world, [video], [k])[0]).max() < 1e-5
                ]
                seen.append((video, crop))
                assert bag.labels[row] == world.train[video].label
                audio = stored(world, 1, video)[0]
                assert (
                    np.abs(bag.features["audio"][row, 0, 0].numpy() - audio[: max(len(audio) // 6, 1)].mean(0)).max()
                    < 1e-5
                )
        assert sorted(seen) == [(video, crop) for video in range(10) for crop in range(3)]


@pytest.mark.parametrize("samples", ["videos", "crops"])
def test_passes_give_pairs_of_both_classes_in_the_order_of_the_manifest(world, request, samples):
    """Without shuffling: odd videos are anomalous; a crop's siblings stand beside it."""
    config = config_of(data={"scale": "none"}, steps=3, sampler="passes", shuffle=False, samples=samples)
    train(world, request, "a", config)
    found = [bag.index.tolist() for bag in batches()]
    if samples == "videos":
        assert found == [[1, 3, 0, 2], [5, 7, 4, 6], [1, 3, 0, 2]]
        assert batches()[0].features["rgb"].shape == (4, 3, 6, 8)
    else:
        assert found == [[1, 1, 0, 0], [1, 3, 0, 2], [3, 3, 2, 2]]
        crops = [[0, 1, 0, 1], [2, 0, 2, 0], [1, 2, 1, 2]]
        for bag, own in zip(batches(), crops, strict=True):
            expected = drawn_by_hand(world, bag.index.tolist(), own)
            assert np.abs(bag.features["rgb"][:, 0].numpy() - expected).max() < 1e-5


def test_balanced_crops_are_drawn_from_all_of_them(world, request):
    train(world, request, "a", config_of(steps=1, pairs=15, samples="crops"))
    (bag,) = batches()
    assert sorted(bag.index.tolist()) == sorted(list(range(10)) * 3)
    assert bag.crops == 1


@pytest.mark.parametrize(
    ("train_values", "steps"),
    [
        ({"epochs": 3, "pairs": 2}, 6),
        ({"epochs": 3, "pairs": 2, "samples": "crops", "sampler": "passes"}, 21),  # 15 crops of a class, 7 steps
        ({"epochs": 2, "batch": 4, "sampler": "mixed"}, 6),
        ({"epochs": 1, "pairs": 60}, 1),
    ],
)
def test_epochs_become_steps_and_milestones_count_them(world, request, train_values, steps):
    config = config_of(lr_schedule="milestones", milestones=[1], gamma=0.1, **train_values)
    run = train(world, request, "a", config)
    rates = [line["lr"] for line in metrics_lines(run)]
    first = steps // train_values["epochs"]
    assert rates == pytest.approx([0.05] * first + [0.005] * (steps - first))
    assert checkpoint.load(run.checkpoint).step == steps


def test_random_segments_are_drawn_anew_for_every_step_and_video(world, request):
    config = config_of(data={"resample": "random", "count": 4, "scale": "none"}, steps=20, sampler="passes")
    train(world, request, "a", config)
    starts = {}
    for bag in batches():
        for row, video in enumerate(bag.index.tolist()):
            x = stored(world, 0, video)
            rows = [
                int(np.abs(x - v[:, None]).sum((0, 2)).argmin())
                for v in bag.features["rgb"][row].numpy().transpose(1, 0, 2)
            ]
            assert np.array_equal(bag.features["rgb"][row].numpy(), x[:, rows]), "all crops at the same clips"
            audio = stored(world, 1, video)
            assert np.array_equal(bag.features["audio"][row].numpy(), audio[:, rows]), "sound at the same clips"
            steps = np.diff(rows)
            assert (steps == 1).all() if world.train[video].label == 0 else (steps >= 1).all()
            starts.setdefault(video, set()).add(tuple(rows))
    long = [i for i, v in enumerate(world.train) if v.num_frames > 16 * 8]
    assert all(len(starts[i]) > 3 for i in long if i in starts)


# -- classes ----------------------------------------------------------------------------------------------------------


def with_classes(videos):
    """Two classes among the anomalous ones, one video of both, one of none; a normal video has none."""
    kinds = iter([("Robbery",), ("Fighting", "Robbery"), (), ("Fighting",), ("Fighting",)])
    return [replace(v, classes=next(kinds) if v.label else (), events=()) for v in videos]


def test_classes_of_training_videos_reach_the_loss_by_name(world, request):
    videos = with_classes(world.train)
    config = config_of("named", steps=4, sampler="mixed", batch=10)
    run = world.run(request.node.name, config)
    fit(config, videos, world.stores, run)
    kept = checkpoint.load(run.checkpoint)
    assert list(kept.config.head.options["classes"]) == ["Fighting", "Robbery", "anomaly"]
    wanted = {1: [0, 1, 0], 3: [1, 1, 0], 5: [0, 0, 1], 7: [1, 0, 0], 9: [1, 0, 0]}
    for bag in batches():
        for row, video in zip(bag.classes.tolist(), bag.index.tolist(), strict=True):
            assert row == wanted.get(video, [0, 0, 0])
    assert all(bag.classes is None for bag in collected(world, request, "diary"))


def collected(world, request, name):
    DIARY.clear()
    config = config_of(name, steps=1)
    fit(config, world.train, world.stores, world.run(f"{request.node.name}-{name}", config))
    return batches()


def test_classes_are_resolved_once_and_a_given_list_stays(world):
    videos = with_classes(world.train)
    config = resolved(config_of("named"), videos)
    assert config.head.options["classes"] == ("Fighting", "Robbery", "anomaly")
    assert resolved(config, videos[:2]) is config
    given = config_of("named", head={"classes": ["Robbery", "Arson"]})
    assert resolved(given, videos) is given
    assert resolved(config_of("diary"), videos) == config_of("diary")
    normal = [replace(v, classes=("Normal",)) if not v.label else v for v in videos]
    assert resolved(config_of("named"), normal).head.options["classes"] == ("Fighting", "Robbery", "anomaly")


def test_a_run_says_the_classes_it_was_trained_with(world, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("head: {name: named}\ntrain: {steps: 1}\n")
    run, _ = start_run(str(recipe), [], world.manifest, [s.root for s in world.stores], tmp_path / "run")
    assert list(run.config.head.options["classes"]) == ["Planted"]


# -- what is refused before a folder is made --------------------------------------------------------------------------


def test_a_group_that_no_parameter_has_is_refused_before_anything_is_done(world, tmp_path):
    places = [world.manifest, [s.root for s in world.stores], tmp_path / "run"]
    overrides = ["head.hidden=[4, 4]", "train.optimizer.groups={fc9: {lr: 1}}"]
    with pytest.raises(configs.ConfigError, match=r"begins with 'fc9'; it has fc1\.weight"):
        start_run("ranking", overrides, *places)
    assert not (tmp_path / "run").exists()


def test_check_wants_both_classes_whatever_the_head_compares(world):
    with pytest.raises(TrainError, match="5 normal and 0 anomalous"):
        check(config_of(), [v for v in world.train if not v.label], world.stores)


def test_check_refuses_batches_that_a_head_cannot_use(world):
    with pytest.raises(TrainError, match=r"ranking compares two classes in every batch, train.sampler=mixed"):
        check(config_of("ranking", sampler="mixed"), world.train, world.stores[:1])
    check(config_of("named", sampler="mixed"), world.train, world.stores[:1])
    with pytest.raises(TrainError, match=r"gcn keeps labels for the segments of every video, data.resample=random"):
        check(config_of("gcn", data={"resample": "random"}), world.train, world.stores[:1])
    with pytest.raises(TrainError, match=r"abnormal_train_.* shows 'Planted', head.classes are Fighting, Arson; add"):
        check(config_of("named", head={"classes": ["Fighting", "Arson"]}), world.train, world.stores[:1])
