"""Every recipe that comes with the package: each head has one per dataset, it trains, and says where it is from."""

import re
from importlib import resources

import pytest
import yaml

from mil import checkpoint
from mil import config as configs
from mil.heads import heads
from mil.run import start_run
from tests.mil_helpers import make_world

RECIPES = configs.recipe_names()
TEXTS = {name: (resources.files("mil") / "recipes" / f"{name}.yaml").read_text() for name in RECIPES}
OWN = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
# a recipe without values of its own trains as the one that it builds on does
BARE = [name for name, values in OWN.items() if values.keys() <= {"about", "base"}]
# of every recipe a short run: two videos of each class, a few segments; what it publishes is read, not waited for
SHORT = ["train.epochs=null", "train.steps=2", "train.pairs=2", "train.batch=4", "data.count=8"]
NARROW = {
    "mgfn": ["head.dims=[64, 64]", "head.depths=[1, 1]"],
    "vadclip": ["head.width=64", "head.length=64"],
    "s3r": ["head.width=32", "head.key=32"],
    "bnwvad": ["head.hidden=64", "head.attention=64", "head.ffn=64"],
    "urdmu": ["head.hidden=64", "head.attention=64", "head.ffn=64"],
}
DATASETS = {"ucf": "UCF-Crime", "xd": "XD-Violence", "sh": "ShanghaiTech"}
# who published what on which dataset, with code or values
PUBLISHED = {
    "ranking": ["ucf"], "deepmil": ["ucf"], "tcn_ibl": ["ucf"], "gcn": ["ucf", "sh"], "arnet": ["sh"], "hlnet": ["xd"],
    "wsal": ["ucf"], "mist": ["ucf", "sh"], "rtfm": ["ucf", "xd", "sh"], "sfa": ["ucf"], "s3r": ["ucf", "sh"],
    "cma_la": ["xd"], "macil_sd": ["xd"], "mgfn": ["ucf", "xd"], "urdmu": ["ucf", "xd"], "bnwvad": ["xd"],
    "tevad": ["ucf", "xd", "sh", "ped2"], "pel4vad": ["ucf", "xd", "sh"], "vadclip": ["ucf", "xd"], "attention": [],
    "transformer": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    modalities = ("rgb", "audio", "text")
    return make_world(tmp_path_factory.mktemp("recipes"), train=3, test=1, crops=2, modalities=modalities)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in BARE])
def test_it_trains_on_features_of_any_size_with_the_modalities_it_names(world, tmp_path, name):
    config = configs.load(name)
    parts = config.data.modalities or heads.get(config.head.name).modalities
    stores = [s.root for s in world.stores if parts or s.spec.modality == "rgb"]
    narrow = NARROW.get(config.head.name, []) if not name.startswith("motion_") else []
    wanted = {"ped2": ["data.count=4"]}.get(name.rsplit("_", 1)[-1], [])
    run, summary = start_run(name, [*SHORT, *narrow, *wanted], world.manifest, stores, tmp_path / "run", seed=1)
    assert summary["steps"] == 2
    kept = checkpoint.load(run.checkpoint)
    used = {s.modality for s in kept.specs}
    assert used == ({"rgb"} if not parts or parts == ("visual",) else used)
    assert len(used) == max(len(parts), 1)


@pytest.mark.parametrize("name", RECIPES)
def test_its_first_line_says_what_it_is_and_its_about_is_one_line(name):
    assert TEXTS[name].startswith("# ")
    assert max(map(len, TEXTS[name].splitlines())) <= 125
    head, about = configs.head_of(name), OWN[name]["about"]
    assert "\n" not in about
    assert name in (head, f"motion_{head}") or name.startswith(f"{head}_")


@pytest.mark.parametrize("head", list(heads))
def test_every_head_has_a_recipe_for_every_dataset_and_one_for_whatever_features(head):
    names = [f"{head}_{end}" for end in (*DATASETS, "folder")]
    assert {*names, f"motion_{head}"} <= set(RECIPES)
    assert [configs.head_of(name) for name in names] == [head] * 4
    assert [configs.dataset_of(name) for name in names] == ["ucf_crime", "xd_violence", "shanghaitech", "folder"]
    published = {f"{head}_{end}" for end in PUBLISHED[head]}
    assert {f"{head}_ucf" if name == head else name for name in configs.published(head)} == published
    for end, dataset in DATASETS.items():
        name = f"{head}_{end}"
        said = [
            re.search(r"not published on ([\w-]+); values of (\w+)", text)
            for text in (TEXTS[name].split("\nabout")[0].replace("\n# ", " "), OWN[name]["about"])
        ]
        if name in published or OWN[name]["about"].endswith("a control; values not published"):
            assert said == [None, None], name
            continue
        assert [(s[1], s[2]) for s in said if s] == [(dataset, OWN[name]["base"])] * 2, name
        assert name in BARE, "values of its own would be nobody's"
        assert configs.head_of(OWN[name]["base"]) == head
        assert "not published on" not in OWN[OWN[name]["base"]]["about"], "values of one that nobody published"
    for name in ("ranking", "deepmil"):
        assert (f"{name}_ucf" in BARE, OWN[f"{name}_ucf"]["base"]) == (True, name)


@pytest.mark.parametrize("head", list(heads))
def test_recipes_for_a_folder_suit_few_videos_and_look_at_no_test_label(head):
    config = configs.load(f"{head}_folder")
    assert "judgement" in TEXTS[f"{head}_folder"].split("\nabout")[0]
    assert (config.select.rules, config.train.epochs, config.evaluate.protocol) == (("val",), None, "auto")
    assert config.train.steps <= 2000
    assert max((*config.train.milestones, config.train.t_max or 0)) <= config.train.steps
    assert (config.train.batch if config.train.sampler == "mixed" else config.train.pairs) <= 20
    assert config.data.scale == ("none" if head == "vadclip" else "standardize")
    assert not config.head.options.get("as_published")
    assert config.evaluate.smoothing == "centred"


# What the papers' code sets, typed from a reading of it and not from the recipes: optimizer, rate, decay; pairs or
# batch; steps or epochs (None: it counts neither, or stages apart); then single values by their key.
_RTFM = {"head.alpha": 1e-4, "head.margin": 100, "head.smooth": 8e-4, "head.sparse": 8e-3, "head.topk": 3}
_URDMU = {"head.memory": 0.1, "head.triplet": 0.1, "head.kl": 0.001, "head.distance": 1e-4, "head.margin": 100,
          "head.slots": [60, 60], "data.count": 200, "train.samples": "crops", "seed": 2022}  # fmt: skip
_COSINE = {"train.sampler": "mixed", "train.lr_schedule": "cosine", "train.t_max": 60, "data.count": 200,
           "data.resample": "pick", "train.samples": "crops"}  # fmt: skip
GOLDEN = {
    # WaqasSultani, Keras: 30 + 30, Adagrad 0.01, 20,000 iterations, 8e-5 twice, L2 0.001 on each layer
    "ranking": ("adagrad", 0.01, 0, 30, "steps", 20000, {"head.smooth": 8e-5, "head.sparse": 8e-5, "head.l2": 1e-3,
        "train.optimizer.eps": 1e-8, "data.scale": "l2", "data.count": 32, "head.dropout": 0.6}),
    # Roc-Ng/DeepMIL: 50 epochs of 30 iterations, StepLR(10, 0.5) stepped before the epoch
    "deepmil": ("adam", 5e-5, 5e-5, 32, "steps", 50 * 30, {"head.smooth": 8e-5, "head.sparse": 8e-5, "seed": 2333,
        "train.milestones": [30 * e for e in (9, 19, 29, 39, 49)], "train.gamma": 0.5}),
    # GCN cleaner, TSN RGB: SGD 1e-4, momentum 0.9, decay 8e-4, gradients of 32 videos
    "gcn_ucf": ("sgd", 1e-4, 8e-4, 32, "epochs", None, {"train.optimizer.momentum": 0.9, "head.certain": 0.3,
        "head.alpha": 0.5, "head.hidden": [512, 128, 32], "head.dropout": 0.6}),
    # AR-Net: 30 + 30, Adam 1e-4, decay 5e-4, k = T / 4, center loss x 20, up to 300 clips
    "arnet_sh": ("adam", 1e-4, 5e-4, 30, "epochs", None, {"head.share": 4, "head.center": 20, "head.dropout": 0.7,
        "data.count": 300}),
    # XDVioDet: batch 128, 50 epochs, Adam 1e-4, approximator 5e-5, drop after 9 trained epochs, distillation x 5
    "hlnet_xd": ("adam", 1e-4, 0, 128, "epochs", 50, {"head.distill": 5, "head.threshold": 0.7, "train.milestones": [9],
        "train.gamma": 0.1, "train.optimizer.groups.approximator..lr": 5e-5, "data.count": 200, "head.dropout": 0.6}),
    # ktr-hubrt/WSAL: 30 pairs, 500 epochs, Adagrad 1e-3, milestones 300 and 400, gamma 0.5
    "wsal_ucf": ("adagrad", 1e-3, 0, 30, "epochs", 500, {"train.milestones": [300, 400], "train.gamma": 0.5,
        "head.dropout": 0.8, "head.smooth": 8e-5, "head.sparse": 8e-5, "evaluate.protocol": "ratio32"}),
    # MIST's generator: batch 40, Adagrad 0.01, decay 0.001, clip 10, 32 parts x 7 clips, sparsity 0.01
    "mist_sh": ("adagrad", 0.01, 1e-3, 40, "epochs", None, {"train.clip_norm": 10, "head.sparse": 0.01,
        "head.sub_bags": 32, "head.clips": 7, "head.smooth": 5, "head.topk": 7, "head.weights": [0.8, 0.65]}),
    # RTFM: 32 + 32, 15,000 iterations, Adam 1e-3, decay 0.005 on every dataset
    **{f"rtfm_{d}": ("adam", 1e-3, 5e-3, 32, "steps", 15000, _RTFM) for d in DATASETS},
    # S3R: as RTFM, OpenCV's resize, half or nine tenths of the normal videos in the dictionary
    "s3r_ucf": ("adam", 1e-3, 5e-3, 32, "steps", 15000, {**_RTFM, "head.atoms": 0.5, "seed": 49,
        "data.resample": "resize"}),
    "s3r_sh": ("adam", 1e-3, 5e-3, 32, "steps", 15000, {**_RTFM, "head.atoms": 0.9, "seed": 823}),
    # cma_xdVioDet: batch 128, 50 epochs, Adam 5e-4, cosine over 60, seed 9
    "cma_la_xd": ("adam", 5e-4, 0, 128, "epochs", 50, {**_COSINE, "head.kernel": 7, "head.dropout": 0.1, "seed": 9}),
    # MACIL-SD: Adam 4e-4, its teacher 8e-5, weight of the contrasts 0.1 an epoch up to 1.5, momentum from 0.91
    "macil_sd_xd": ("adam", 4e-4, 0, 128, "epochs", 50, {**_COSINE, "train.optimizer.groups.teacher.lr": 8e-5,
        "head.contrast": 1.5, "head.ramp": 0.1, "head.momentum": 0.91, "seed": 2333}),
    # MGFN: 16 + 16 not shuffled, up to 1000 epochs, Adam 1e-3, decay 5e-4, 0.001 * (0.001 con + con_a + con_n)
    "mgfn_ucf": ("adam", 1e-3, 5e-4, 16, "epochs", 1000, {"head.apart": 1e-6, "head.together": 1e-3, "head.margin": 200,
        "head.smooth": 8e-4, "head.sparse": 8e-3, "train.shuffle": False, "head.amplify": 0.1}),
    # UR-DMU: 64 + 64 crops, 3,000 iterations, Adam 1e-4, decay 5e-5, on both datasets
    **{f"urdmu_{d}": ("adam", 1e-4, 5e-5, 64, "steps", 3000, _URDMU) for d in ("ucf", "xd")},
    # BN-WVAD: 64 + 64, 1,000 iterations, clip 1, triplets x 5 and x 20, 20 % of a video, 40 % of the batch
    "bnwvad_xd": ("adam", 1e-4, 5e-5, 64, "steps", 1000, {"train.clip_norm": 1, "head.triplet": [5, 20],
        "head.video_ratio": 0.2, "head.batch_ratio": 0.4, "head.dropout": 0, "data.count": 200}),
    # TEVAD: RTFM's losses, 1,000 iterations, seed 4869, concatenation on UCF-Crime and sums elsewhere; Ped2: pairs of 2
    "tevad_ucf": ("adam", 1e-3, 5e-3, 32, "steps", 1000, {**_RTFM, "head.fusion": "concat", "seed": 4869}),
    **{f"tevad_{d}": ("adam", 1e-3, 5e-3, 32, "steps", 1000, {"head.fusion": "add"}) for d in ("xd", "sh")},
    # PEL4VAD: batch 128, 50 epochs, Adam 5e-4, cosine over 60; window, gamma / bias, norm, kernel, temperature, lambda
    **{
        f"pel4vad_{d}": ("adam", 5e-4, 0, 128, "epochs", 50, {**_COSINE, "head.window": w, "head.gamma": g,
            "head.bias": b, "head.norm": n, "head.kernel": t, "head.temperature": tau, "head.kl": kl, "seed": seed,
            "evaluate.smooth": s, "evaluate.smoothing": kind})
        for d, w, g, b, n, t, tau, kl, seed, s, kind in (
            ("ucf", 9, 0.6, 0.2, True, 9, 0.09, 1, 9, 7, "ahead"),
            ("xd", 9, 0.06, 0.02, False, 3, 0.05, 1, 4, 8, "blocks"),
            ("sh", 5, 0.08, 0.1, True, 3, 0.2, 9, 0, 3, "ahead"),
        )
    },
    # VadCLIP: AdamW (decay 0.01), 10 epochs, 64 + 64 with 2e-5 (4, 8) or 96 mixed with 1e-5 (3, 6, 10)
    "vadclip_ucf": ("adamw", 2e-5, 0.01, 64, "epochs", 10, {"train.milestones": [4, 8], "head.layers": 2, "seed": 234,
        "head.window": 8, "head.temperature": 0.07, "head.apart": 0.1, "head.score": "coarse", "data.count": 256}),
    "vadclip_xd": ("adamw", 1e-5, 0.01, 96, "epochs", 10, {"train.milestones": [3, 6, 10], "head.layers": 1,
        "head.window": 64, "head.apart": 1e-4, "head.score": "fine", "train.sampler": "mixed"}),
    # SFA: RAdam's defaults, d_a = 64, r = 3, attention dropout 0.3, test chunks of 28
    "sfa_ucf": ("radam", 1e-3, 0, 32, "epochs", 10, {"head.attention": 64, "head.hops": 3, "head.dropout": 0.3,
        "head.chunk": 28, "head.hidden": 32}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_published_values_are_the_published_ones(name):
    optimizer, rate, decay, size, unit, length, further = GOLDEN[name]
    config = configs.load(name)
    train = config.train
    assert (train.optimizer.name, train.optimizer.lr, train.optimizer.weight_decay) == (optimizer, rate, decay)
    assert (train.batch if train.sampler == "mixed" else train.pairs) == size
    assert train.epochs == (length if unit == "epochs" else None)
    assert unit == "epochs" or train.steps == length
    values = config.model_dump(mode="json")
    for key, wanted in further.items():
        found = values
        for part in re.split(r"\.(?!\.)", key):
            found = found[part]
        assert found == wanted, key
