"""Exported files against the run they came from, by programs that see the file alone.

All heads take minutes: tests/export_all.py. Here are those that the exporter has to do something for.
"""

import io
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from data.types import FeatureSpec
from mil import checkpoint, doctor, export
from mil.config import validate
from mil.evaluate import evaluate_run
from mil.export import ExportError, export_model
from mil.export_about import kept_shared
from mil.heads import HeadOutput
from mil.heads.base import Head
from mil.heads.ranking import RankingHead
from mil.model import Model
from tests.export_all import differences, small_model
from tests.mil_helpers import call_wsvad, make_world, small_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(
        tmp_path_factory.mktemp("export"), train=2, test=3, crops=2, weights="random:0", modalities=("rgb", "audio")
    )


def kept_run(world, name, config, rules=("last",)):
    """A run whose weights nobody trained; its scaling is that of the training videos."""
    run = world.run(name, config)
    dims = {s.spec.modality: s.spec.dim for s in world.stores}
    for seed, rule in enumerate(rules):
        torch.manual_seed(seed)
        model = Model(config, dims)
        for store in world.stores:
            scaler = model.scalers[store.spec.modality]
            scaler.fit(lambda store=store: [store.read(v.id).x for v in world.train])
        said = {"selected_by": f"the test, by {rule}", "step": 7}
        checkpoint.save(
            run.checkpoint_of(rule), model.state_dict(), config, dims, [s.spec for s in world.stores], **said
        )
    run.set_status("done", step=7)
    return run


@pytest.fixture(scope="module")
def exported(world):
    """A run, its two files, and what the command printed."""
    run = kept_run(world, "run", small_config("select.rule=last", "select.also=[test]"), ("last", "test"))
    onnx_file, script = world.root / "out" / "model.onnx", world.root / "out" / "model.pt"
    result = call_wsvad("export", run.root, "--onnx", onnx_file, "--torchscript", script, "--rule", "test", "--json")
    assert result.exit_code == 0, result.stderr
    return run, onnx_file, script, result


def run_onnx(path):
    session = onnxruntime.InferenceSession(path.read_bytes())
    return lambda **own: session.run(["scores"], own)[0], json.loads(
        session.get_modelmeta().custom_metadata_map["wsvad"]
    )


def run_torchscript(path):
    extra = {"wsvad.json": ""}
    loaded = torch.jit.load(path, _extra_files=extra)
    order = [i["name"] for i in json.loads(extra["wsvad.json"])["inputs"]]
    return lambda **own: loaded(*(torch.from_numpy(own[n]) for n in order)).numpy(), json.loads(extra["wsvad.json"])


def test_a_file_and_its_metadata_give_the_frame_scores_of_the_evaluation(world, exported):
    """From stored features, as somebody would in another language: the first clip that covers a frame is its own."""
    run, onnx_file, script, _ = exported
    picture, sound = world.stores
    expected = {v.video_id: v.scores for v in evaluate_run(run, rule="test").videos}
    other = {v.video_id: v.scores for v in evaluate_run(run, rule="last").videos}
    for score, about in (run_onnx(onnx_file), run_torchscript(script)):
        grid = about["clip_grid"]
        assert grid["stride"] == grid["clip_len"]
        for video in world.test:
            clips = score(audio=sound.read(video.id).x[None], rgb=picture.read(video.id).x[None])[0]
            frames = clips[np.arange(video.num_frames) // grid["stride"]]
            assert np.abs(frames - expected[video.id]).max() < 1e-5
            assert np.abs(frames - other[video.id]).max() > 1e-3, "the weights of another rule would not be noticed"


def test_the_file_says_what_it_is_and_warns(exported):
    run, onnx_file, script, result = exported
    (_, about), (_, same) = run_onnx(onnx_file), run_torchscript(script)
    assert about == same == json.loads(result.stdout)["metadata"]
    assert (about["head"], about["rule"], about["selected_by"], about["step"]) == (
        "ranking",
        "test",
        "the test, by test",
        7,
    )
    own = {i["name"]: i for i in about["inputs"]}
    assert {n: i["shape"] for n, i in own.items()} == {"rgb": [1, "K", "T", 8], "audio": [1, 1, "T", 3]}
    for store in run.open_stores():
        assert FeatureSpec.from_json(json.dumps(own[store.spec.modality]["features"])) == store.spec
    assert about["head_options"]["hidden"] == [16, 8]
    for word in ("OPTIMISTIC", "random weights"):
        assert any(word in line for line in about["warnings"])
        assert word in result.stderr
    assert str(run.root) not in json.dumps(about), "no paths of this machine"
    for value in onnx.load(onnx_file).graph.input:
        shape = value.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in shape] == own[value.name]["shape"]


def test_what_was_printed_is_what_was_written(exported):
    _, onnx_file, script, result = exported
    for file, path in zip(json.loads(result.stdout)["files"], (onnx_file, script), strict=True):
        assert (file["path"], file["bytes"]) == (str(path), path.stat().st_size)
        assert file["max_difference"] <= 1e-5
        assert [1, 1] in file["checked"]
    assert sorted(p.name for p in onnx_file.parent.iterdir()) == ["model.onnx", "model.pt"]


def test_a_stage_decides_which_part_is_exported(tmp_path):
    """It lies in a buffer, by which no graph can branch."""
    model = small_model("mist", {})
    model.head.stage.fill_(1)
    (found,) = differences(model, tmp_path, ["torchscript"], [(1, 1), (2, 2), (4, 45)]).values()
    assert found < 1e-5


class Fixed(Head):
    """What no graph, or only one for some lengths, can hold: `how` it goes wrong."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 1), how

    def forward(self, bag):
        scores = self.layer(bag.x).mean((1, 3)).sigmoid()
        if self.how == "lengths" and bag.mask.shape[1] > 100:
            return HeadOutput(scores * 0.5)
        if self.how == "window" and 400 <= bag.mask.shape[1] < 700:  # torch.export vouches for 700 on
            return HeadOutput(scores * 0.5)
        if self.how == "multiples" and bag.mask.shape[1] % 2:  # no bound that torch.export would tell
            return HeadOutput(scores * 0.5)
        if self.how == "pieces":  # of 8 clips; what is short is one piece
            extra = -bag.mask.shape[1] % 8 if bag.mask.shape[1] > 8 else 0
            rows = 8 if bag.mask.shape[1] > 8 else bag.mask.shape[1]
            pieces = nn.functional.pad(scores, (0, extra)).reshape(-1, rows)
            return HeadOutput((pieces * pieces.sum(1, keepdim=True)).reshape(1, -1)[:, : bag.mask.shape[1]])
        if self.how == "values" and bag.x.sum() > 0:
            return HeadOutput(scores * 0.5)
        return HeadOutput(scores * float("nan") if self.how == "nan" else scores)

    def loss(self, out, bag):
        return {}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("lengths", "not written.*K=1, T=1: scores differ by"),
        ("window", "not written.*K=1, T=699: scores differ by"),
        ("multiples", "not written.*K=1, T=2: scores differ by"),
        ("nan", "not written.*K=1, T=1: scores differ by nan"),
        ("values", r"Fixed cannot be exported: .*[Dd]ata-dependent.*wsvad score"),
    ],
)
def test_a_graph_that_does_not_hold_everywhere_is_never_written(how, says, tmp_path):
    model = Model(validate({"head": {"name": "ranking"}}, "test"), {"rgb": 4}).eval()
    model.head = Fixed(how)
    before = tmp_path / "model.pt"
    before.write_bytes(b"an older one")
    with pytest.raises(ExportError, match=says):
        export_model(model.eval(), {"torchscript": before}, {}, {"rgb": False})
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert before.read_bytes() == b"an older one"


def test_a_graph_of_long_videos_is_taken_where_it_holds_for_short_ones_too(tmp_path):
    """Each of the two ways is right for long videos; only the one of pieces is for short ones."""
    model = Model(validate({"head": {"name": "ranking"}}, "test"), {"rgb": 4}).eval()
    model.head = Fixed("pieces")
    (found,) = differences(model.eval(), tmp_path, ["torchscript"], [(1, 1), (2, 8), (3, 9), (1, 16), (4, 45)]).values()
    assert found < 1e-5


def test_large_scores_are_compared_by_their_size_and_small_ones_are_not(monkeypatch):
    """A difference of 1e-3 passes beside a score of 1000, not beside one of 0.01."""
    model = Model(validate({"head": {"name": "ranking"}}, "test"), {"rgb": 4}).eval()
    for size, fits in ((1000.0, True), (0.01, False)):
        model.head.forward = lambda bag, size=size: HeadOutput(size * bag.mask.float())
        arguments = ("onnx", "it", lambda own, size=size: size + 1e-3 * torch.ones(1, own[0].shape[2]), model)
        if fits:
            assert export._compare(*arguments, {"rgb": False}, [(1, 3)], torch.float32)[0] <= 1e-5
        else:
            with pytest.raises(ExportError, match=r"K=1, T=3: scores differ by 1\.0e-03"):
                export._compare(*arguments, {"rgb": False}, [(1, 3)], torch.float32)


def test_what_float32_rounds_is_said_and_no_error_and_more_is_one():
    """A sum that cancels: float32 is wrong in the fifth place, whichever program adds."""
    model = Model(validate({"head": {"name": "ranking"}}, "test"), {"rgb": 4}).eval()
    model.head.forward = lambda bag: HeadOutput((bag.x[:, 0, :, 0] + 1234.567).sub(1234.567))

    def other(off):
        return lambda own: own[0][:, 0, :, 0] + off

    arguments = ("onnx", "it"), (model, {"rgb": False}, [(1, 300)], torch.float32)
    worst, (note,) = export._compare(*arguments[0], other(0), *arguments[1])
    assert 1e-5 < worst < 1e-3
    assert note.startswith(f"K=1, T=300: scores differ by {worst:.1e}; the model itself, in float32, is")
    with pytest.raises(ExportError, match="T=300: scores differ"):
        export._compare(*arguments[0], other(1e-3), *arguments[1])


def test_features_may_be_float16_and_the_arithmetic_is_not(tmp_path):
    model = small_model("gcn", {})
    (file,) = export_model(model, {"torchscript": tmp_path / "m.pt"}, {}, {"rgb": False}, "float16")
    x = torch.randn(1, 2, 9, 6).half()
    scores = torch.jit.load(io.BytesIO(file.path.read_bytes()))(x)
    assert scores.dtype == torch.float32
    assert (scores - export.Scores(model)(x.float())).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("crops", "shared"),
    [
        ({"rgb": 1}, {"rgb": False}),
        ({"audio": 1}, {"audio": False}),
        ({"rgb": 1, "audio": 1}, {"rgb": False, "audio": True}),
        ({"rgb": 5, "audio": 1}, {"rgb": False, "audio": True}),
        ({"rgb": 5, "text": 5}, {"rgb": False, "text": False}),
        ({"rgb": 5, "flow": 1}, {"rgb": False, "flow": True}),
        ({}, {"rgb": False, "audio": True}),  # imported: nobody says
    ],
)
def test_which_modalities_share_their_one_crop(crops, shared):
    config = validate({"head": {"name": "ranking"}}, "test")
    model = Model(config, dict.fromkeys(shared, 4))
    specs = [FeatureSpec("of", 4, modality=m, crops=tuple(f"c{k}" for k in range(n))) for m, n in crops.items()]
    assert kept_shared(checkpoint.Checkpoint(model, config, tuple(specs), "", 0)) == shared


def test_options_that_do_not_fit_are_refused_with_what_does(world, exported, tmp_path, monkeypatch):
    run, store = exported[0].root, world.stores[0].root
    onnx_file = ("--onnx", tmp_path / "m.onnx")
    monkeypatch.setattr(RankingHead, "lookback", None)
    for arguments, says in (
        ((run,), "is a run; say what to write: --onnx FILE.onnx or --torchscript FILE.pt"),
        ((run, *onnx_file, "--like", "rtfm"), "--like does not fit: .* is a run"),
        ((run, *onnx_file, "--torchscript", onnx_file[1]), "both name"),
        ((run, *onnx_file, "--rule", "val"), "kept no weights by val, only by last, test"),
        ((run, *onnx_file, "--online"), "head 'ranking' scores a clip by later ones too"),
        ((store, *onnx_file), "--onnx does not fit: .* is a feature store"),
        ((store, "--like", "rtfm"), "needs --like LAYOUT and --out FOLDER"),
        ((tmp_path, *onnx_file), "neither a run .* nor a feature store"),
    ):
        result = call_wsvad("export", *arguments)
        assert result.exit_code == 2, arguments
        assert re.search(says, " ".join(result.stderr.split())), result.stderr
    assert not list(tmp_path.iterdir())


def test_a_store_is_still_exported_for_other_code(world, tmp_path):
    result = call_wsvad("export", world.stores[0].root, "--like", "rtfm", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "layout rtfm needs 10 crops" in result.stderr  # the exporter of stores says so


def test_missing_packages_are_named_before_any_work(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    result = call_wsvad("export", exported[0].root, "--onnx", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "--onnx needs onnxscript; pip install 'wsvad[onnx]'" in result.stderr


def test_the_doctor_knows_the_packages_of_onnx(monkeypatch):
    assert doctor._onnx().state == "ok"
    assert onnxruntime.__version__ in doctor._onnx().found

    def none(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", none)
    check = doctor._onnx()
    assert (check.state, check.remedy) == ("WARN", "pip install 'wsvad[onnx]'")
    assert "no onnx;" in check.found
