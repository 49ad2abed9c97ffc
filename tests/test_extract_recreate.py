"""Backbones made again from the spec of their features: every registered one, under every kind of option."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data.types import FeatureSpec, Video
from extract import recreate as module
from extract.backbones import Backbone, BackboneError, backbones, create, option_names, plan
from extract.backbones.net import Net
from extract.catalogue import CATALOGUE
from extract.recreate import files_of, reading_of, recreate, unrelated
from extract.video import extract_video
from tests.helpers import write_small

OTHERWISE = {
    "dtype": ["float16"],
    "crops": ["10", "5", "3", "1", "center,top_left", "mirror_center"],
    "fps": ["none", 12.5],
    "stride": [7],
    "clip_len": [20, 32],
    "step": [2],
    "tail": ["drop", "loop"],
    "resize": ["171x128:area", "short200:pil_bicubic"],
    "precision": ["bfloat16"],
    "decoder": ["torchcodec"],
    "compile": [True],
    "bn_eps": [1e-5, 2e-3],
    "padding": ["same", "static"],
    "flow": ["dis", "raft", "raft_small"],
    "quantise": ["round128"],
    "inflate": [True],
    "mean": ["channels"],
    "pool5": ["symmetric"],
    "frames": ["mean", "first"],
    "align": ["start", "hop"],
    "missing": ["silence"],
    "hop": [8000],
}
REQUIRED = {"weights", "flow_weights", "device", "batch", "rate", "window", "resampler"}

FIXED = {
    "c3d_sports1m": {"clip_len"},
    "vggish": {"decoder", "resize"},
    "mvit_base_16x4": {"clip_len"},
    "mvit_v2_s": {"clip_len"},
}
"""What a preset does not let anybody change."""


def untrained(name):
    known = option_names(backbones.get(name))
    given = {"weights": "random:3"} if issubclass(backbones.get(name), Net) or name == "tiny" else {}
    return given | ({"flow_weights": "random:5"} if "flow_weights" in known else {})


def plans(name):
    """(options, spec) of every option alone, and of neighbouring pairs of them, that the backbone takes."""
    known = [k for k in OTHERWISE if k in option_names(backbones.get(name))]
    single = [{k: v} for k in known for v in OTHERWISE[k]]
    pairs = [{a: OTHERWISE[a][0], b: OTHERWISE[b][-1]} for a, b in itertools.pairwise(known)]
    for given in ({}, *single, *pairs):
        try:
            yield given, plan(name, **untrained(name), **given)
        except ValueError:  # a preset that refuses it
            continue


@pytest.fixture
def asked(monkeypatch):
    """What `create` is asked for, where making the net would only cost time."""
    seen = []
    monkeypatch.setattr(module, "create", lambda name, **options: seen.append((name, options)))
    return seen


@pytest.mark.parametrize("name", backbones.names())
def test_every_backbone_is_recreated_from_its_spec_field_by_field(name, asked):
    tried = set()
    for given, spec in plans(name):
        recreate(FeatureSpec.from_json(spec.to_json()), device="cpu")
        made, options = asked.pop()
        assert made == name
        plan(made, **options).check_equal(spec, f"{name} {given}")
        assert plan(made, **options) == spec
        if spec != plan(name, **untrained(name)):
            tried |= set(given)
    # nothing that could be asked for otherwise has been left untried, but for what this preset cannot vary
    fixed = FIXED.get(name, set())
    if issubclass(backbones.get(name), Net) and not backbones.get(name).crop_order:
        fixed = fixed | {"crops"}
    assert set(option_names(backbones.get(name))) - REQUIRED - tried == fixed


@pytest.mark.parametrize(("name", "given"), [("tiny", {"weights": "random:4"}), ("motion", {"dtype": "float16"})])
def test_it_makes_the_same_features(name, given, tmp_path):
    video = Video("v", str(write_small(tmp_path / "v.mp4", 40)), "test", 0)
    first = create(name, **given)
    again = recreate(first.spec, device="auto")
    assert again.spec == first.spec
    np.testing.assert_array_equal(extract_video(video, again)[0].x, extract_video(video, first)[0].x)


def test_sound_has_no_frame_rate_to_resample_to():
    assert recreate(plan("logmel_stats", align="end", missing="silence")).spec.options["align"] == "end"


def test_motion_is_recreated_for_a_head_on_a_gpu():
    assert recreate(plan("motion"), device="cuda").spec == plan("motion")


def file_of(path, text):
    path.write_bytes(text)
    return path


def cube(path):
    np.save(path, np.full((3, 16, 128, 171), 90, np.float32))
    return path


def test_files_are_told_apart_by_their_hash(tmp_path, asked):
    net, flow, table = file_of(tmp_path / "a", b"net"), file_of(tmp_path / "b", b"flow"), cube(tmp_path / "c.npy")
    of_flow = plan("i3d_vf_flow", weights=str(net), flow_weights=str(flow))
    of_cube = plan("c3d_sports1m", weights=str(net), mean=str(table))
    assert of_flow.options["flow_weights"] != of_flow.weights
    recreate(of_flow, [flow, net], "cpu")
    assert plan("i3d_vf_flow", **asked.pop()[1]) == of_flow
    recreate(of_cube, (table, str(net)), "cpu")
    assert plan("c3d_sports1m", **asked.pop()[1]) == of_cube
    assert files_of(of_flow, [table, net, flow]) == [net, flow]
    assert reading_of(of_flow, [net, flow], damaged="keep").flow_weights == str(flow)
    assert reading_of(of_flow, [net, flow], damaged="keep").damaged == "keep"
    assert reading_of(of_cube).flow_weights is None
    assert reading_of(plan("i3d_vf_flow", weights=str(net), flow_weights="random:2")).flow_weights == "random:2"
    with pytest.raises(BackboneError, match=r"optical flow of i3d_vf_flow .*--weights FILE"):
        recreate(of_flow, net)
    with pytest.raises(BackboneError, match=r"option 'mean' of c3d_sports1m .*--weights FILE"):
        recreate(of_cube, [net])


def test_a_file_that_made_nothing_is_refused(tmp_path):
    net, other = file_of(tmp_path / "a", b"net"), file_of(tmp_path / "b", b"other")
    spec = plan("i3d_vf", weights=str(net))
    for stray in ([other], [net, other]):
        with pytest.raises(BackboneError, match=rf"b has sha256 .*weights of i3d_vf: {spec.weights[:12]}"):
            recreate(spec, stray)
    with pytest.raises(BackboneError, match="made with no files at all"):
        recreate(plan("motion"), other)
    with pytest.raises(BackboneError, match="no such file"):
        recreate(spec, tmp_path / "nothing")
    unrelated([net], [plan("motion"), spec])


def test_a_fetched_file_is_found_by_its_hash_whatever_its_name(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    mine = file_of(tmp_path / "mine", b"published")
    spec = plan("i3d_vf", weights=str(mine))
    shutil.move(mine, CATALOGUE["i3d_rgb_hassony"].path)
    recreate(spec, device="cpu")
    assert asked.pop()[1]["weights"] == str(CATALOGUE["i3d_rgb_hassony"].path)
    CATALOGUE["i3d_rgb_hassony"].path.unlink()
    with pytest.raises(BackboneError, match=r"wsvad weights ls.*--weights FILE"):
        recreate(spec)
    known = CATALOGUE["clip_vit_b32"]
    with pytest.raises(BackboneError, match="run `wsvad weights fetch clip_vit_b32`"):
        recreate(replace(plan("clip_b32", weights="random"), weights=known.sha256))


def test_what_cannot_be_made_again_is_refused_with_what_to_do():
    with pytest.raises(BackboneError, match=r"imported.*wsvad ls backbones.*--plugin"):
        recreate(FeatureSpec("i3d_rgb_somebody", 1024, tail="given"))
    with pytest.raises(BackboneError, match=r"has revision=1, asked for 99; train on features"):
        recreate(replace(plan("motion"), revision=99))
    with pytest.raises(BackboneError, match=r"has dim=.*, asked for 7"):
        recreate(replace(plan("motion"), dim=7))


def test_a_backbone_of_a_plugin_with_options_of_its_own(monkeypatch):
    class Own(Backbone):
        """A backbone that somebody registers, with a frame rate and an option of its own."""

        uses_torch = False

        def __init__(self, *, fps: float = 25.0, bins: int = 4) -> None:
            self.spec = FeatureSpec("own", bins, fps=fps, options={"bins": bins})

        def extract(self, clips, fps):
            raise NotImplementedError

    monkeypatch.setitem(backbones._items, "own", Own)
    for options in ({}, {"fps": 10.0}, {"bins": 9}):
        spec = create("own", **options).spec
        assert recreate(spec, device="cuda").spec == spec
