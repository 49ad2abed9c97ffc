"""What every registered backbone promises, checked on real encoded video; nets with random weights and one crop."""

import inspect
import re

import numpy as np
import pytest

from data.datasets.toy_video import write_video
from data.registry import UnknownNameError
from data.types import FeatureSpec, Video
from extract.backbones import BackboneError, backbones, create, option_names, plan
from extract.backbones.net import Net
from extract.streams import Reading, clips_from
from extract.video import extract_video
from tests.helpers import numbered_frames

NAMES = backbones.names()
NETS = [name for name in NAMES if issubclass(backbones.get(name), Net)]
LARGE = 8  # GMAC: beyond it, a second instance tells no more than it costs
# Frames, and pixels of a crop, for the same reason: what a net does with its own size is asked for without arithmetic,
# beside its number of operations (tests/test_extract_*.py).
SHORTER = {
    **dict.fromkeys(("i3d_rocng", "i3d_rocng_flow", "i3d_urdmu", "i3d_vf", "i3d_vf_flow", "i3d_xd", "i3d_xd_flow"), 10),
    **dict.fromkeys(("i3d_rtfm", "i3d_rtfm_nl", "i3d_gowtham"), 8),
    **dict.fromkeys(("swin3d_b", "swin3d_s", "swin3d_t", "r3d_18", "mc3_18", "r2plus1d_18"), 4),
    "r2plus1d_r50": 13,
    "csn_r101": 25,
}
SMALLER = dict.fromkeys(("c2d_r50", "i3d_r50", "slow_r50", "slowfast_r50", "csn_r101", "r2plus1d_r50"), 224)


def options_for(name: str) -> dict[str, object]:
    """The default preset, as cheap as it can be had here: untrained, one crop, a flow that takes no minutes."""
    known = option_names(backbones.get(name))
    given: dict[str, object] = {"device": "cpu"} if "device" in known else {}
    if name in NETS:
        given |= {"weights": "random:0"}
    if "crops" in known and backbones.get(name).crop_order:
        given |= {"crops": "1"}
    if "flow" in known:
        given |= {"flow": "dis"}
    if name in SHORTER:
        given |= {"clip_len": SHORTER[name]}
    return given


def pictures_and_sound(folder, frames):
    """At 25 frames a second, 16 kHz."""
    rng = np.random.default_rng(0)
    samples = frames * 16000 // 25
    sound = (0.2 * rng.normal(size=samples) * np.linspace(0, 1, samples)).astype(np.float32)
    write_video(folder / "v.mp4", numbered_frames(frames, 120, 160), fps=25, audio=sound)
    return folder / "v.mp4"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Seven seconds."""
    return pictures_and_sound(tmp_path_factory.mktemp("contract"), 175)


@pytest.fixture(scope="module")
def short_path(tmp_path_factory):
    """Not quite three seconds: enough for more than one clip of most nets."""
    return pictures_and_sound(tmp_path_factory.mktemp("short"), 70)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def net(name):
    with pytest.MonkeyPatch.context() as patch:
        if name in SMALLER:
            patch.setattr(backbones.get(name), "crop_size", SMALLER[name])
        yield create(name, **options_for(name))


@pytest.fixture(scope="module")
def clips(name, net, path):
    """The first clips of the video, as the engine hands them to this backbone, one of a net; and the first inverted."""
    found = []
    for clip, _ in clips_from(Video("v", str(path), "test", 0), net.spec, Reading()):
        found.append(clip)
        if len(found) == (1 if name in NETS else 2):
            break
    return [*found, inverted(found[0])]


@pytest.fixture(scope="module")
def features(net, clips):
    given = [clip.copy() for clip in clips]
    x = net.submit(given, [25.0] * len(given))()
    for clip, before in zip(given, clips, strict=True):
        np.testing.assert_array_equal(clip, before)  # what it was given is as it was
    return x


def inverted(clip):
    return 255 - clip if clip.dtype == np.uint8 else clip[::-1].copy()


def test_shape_type_and_finiteness(net, clips, features):
    assert features.shape == (len(clips), len(net.spec.crops), net.spec.dim)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.isfinite(features.astype(net.spec.dtype)).all()


def test_it_sees_the_video(features):
    """A backbone that returns the same for every clip passes everything else here."""
    assert features.std() > 0
    assert not np.allclose(features[-1], features[0], rtol=1e-3)


def test_another_one_alone_in_its_batch_gives_the_same_to_the_bit(name, net, clips, features):
    """Features depend on the clip alone: not on the batch, not on what came before, not on the instance."""
    if net.gmac > LARGE:
        pytest.skip("the path is the same for all nets")
    kept = features.copy()
    again = create(name, **options_for(name))
    np.testing.assert_array_equal(again.submit([clips[-1]], [25.0])()[0], features[-1])
    np.testing.assert_array_equal(features, kept)  # no buffer is handed out twice


@pytest.mark.parametrize("level", [0, 255])
def test_constant_clips_give_finite_features(net, clips, level):
    if net.gmac > 10:
        pytest.skip("too large to run once more")
    flat = np.full_like(clips[0], level if clips[0].dtype == np.uint8 else level / 255)
    for fps in (1.0, 240.0) if net.gmac == 0 else (25.0,):
        assert np.isfinite(net.submit([flat], [fps])()).all()


def test_a_whole_video_has_the_clips_of_its_grid(name, net, path, short_path):
    if net.gmac > 6:
        pytest.skip("the path is the same for all nets")
    seen, frames = (short_path, 70) if name in NETS else (path, 175)
    features, _ = extract_video(Video("v", str(seen), "test", 0), net)
    assert features.grid == net.spec.grid(frames, fps=25.0)
    assert features.x.shape == (len(net.spec.crops), len(features.grid), net.spec.dim)


def test_the_spec_is_complete_and_survives_json(name, net):
    spec = net.spec
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert FeatureSpec.from_json(spec.to_json()).id == spec.id
    assert spec.backbone == name
    assert spec.tail not in ("given", "equal")
    assert spec.is_random == spec.weights.startswith("random")
    assert ("-random-" in spec.id) == spec.is_random
    assert plan(name, **options_for(name)) == spec


def test_the_class_describes_itself(name):
    cls = backbones.get(name)
    assert len(inspect.getdoc(cls).split("\n")[0]) > 20
    assert cls.licence
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    recipe = cls.default_spec()
    assert recipe.backbone == name
    assert str(recipe.dim) in inspect.getdoc(cls).split("\n")[0]
    if name in NETS:
        assert cls.gmac > 0
        assert cls.params_m > 0
        assert cls.paper


def test_an_unknown_option_is_refused_with_a_suggestion(name):
    known = option_names(backbones.get(name))
    wrong = known[0] + "x"
    with pytest.raises(BackboneError, match=rf"{name} takes no option '{wrong}'.*mean.*'{known[0]}'"):
        create(name, **{wrong: 1})


@pytest.mark.parametrize("name", NETS)
def test_a_net_without_weights_says_what_to_type(name, monkeypatch, tmp_path):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    with pytest.raises(BackboneError, match=r"--weights FILE.*--weights random") as error:
        create(name)
    files = backbones.get(name).weight_files
    assert not files or f"wsvad weights fetch {files[0]}" in str(error.value)


def test_there_are_at_least_24_presets_with_distinct_recipes():
    assert len(NAMES) >= 24
    recipes = {re.sub(r'"backbone": "[^"]*"', "", backbones.get(n).default_spec().to_json()) for n in NAMES}
    assert len(recipes) > 20


def test_options_that_are_none_are_not_given():
    assert plan("tiny", weights=None, device=None) == plan("tiny")
    assert plan("i3d_vf", weights="random", crops=None, stride=None) == plan("i3d_vf", weights="random")


def test_an_unknown_backbone_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"no backbone called 'tinny'. Did you mean 'tiny'.* Known: .*tiny"):
        create("tinny")
