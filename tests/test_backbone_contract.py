"""What every registered backbone promises, checked on real encoded video with its defaults."""

import inspect

import numpy as np
import pytest

from data.registry import UnknownNameError
from data.types import FeatureSpec
from extract.backbones import BackboneError, backbones, create
from extract.clips import clips_of
from extract.decode import VideoReader
from tests.helpers import numbered_frames

NAMES = backbones.names()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    from data.datasets.toy_video import write_video

    path = tmp_path_factory.mktemp("contract") / "v.mp4"
    write_video(path, numbered_frames(70, 120, 160), fps=25)
    return path


@pytest.fixture(scope="module", params=NAMES)
def net(request):
    return create(request.param)


@pytest.fixture(scope="module")
def clips(net, path):
    with VideoReader(path, resize=net.spec.resize, color=net.spec.color) as reader:
        return np.stack(list(clips_of(reader, net.spec)))


def extract(net, clips, fps=25.0):
    return net.extract(clips.copy(), np.full(len(clips), fps))


def test_shape_type_and_finiteness(net, clips):
    x = extract(net, clips)
    assert x.shape == (len(clips), len(net.spec.crops), net.spec.dim)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.isfinite(x.astype(net.spec.dtype)).all()


def test_it_sees_the_video(net, clips):
    """A backbone that returns the same for every clip passes everything else here."""
    x = extract(net, clips)
    assert x.std() > 0
    assert not np.array_equal(x, extract(net, 255 - clips))
    assert not np.array_equal(x, extract(net, clips[:, ::-1, :, ::-1]))


def test_a_clip_does_not_depend_on_its_batch(net, clips):
    together = extract(net, clips)
    for i in range(len(clips)):
        np.testing.assert_array_equal(extract(net, clips[i : i + 1])[0], together[i])
    np.testing.assert_array_equal(extract(net, clips[::-1])[::-1], together)


def test_it_is_deterministic_and_leaves_its_input_alone(net, clips):
    given = clips.copy()
    first = net.extract(given, np.full(len(given), 25.0))
    np.testing.assert_array_equal(given, clips)
    kept = first.copy()
    np.testing.assert_array_equal(extract(net, clips), first)
    np.testing.assert_array_equal(extract(create(net.spec.backbone), clips), first)
    np.testing.assert_array_equal(first, kept)  # no buffer is handed out twice


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_frames_give_finite_features(net, clips, level):
    assert np.isfinite(extract(net, np.full_like(clips, level))).all()


@pytest.mark.parametrize("fps", [1.0, 12.5, 25.0, 240.0])
def test_any_frame_rate_gives_finite_features(net, clips, fps):
    assert np.isfinite(extract(net, clips[:1], fps)).all()


def test_the_spec_is_complete_and_survives_json(net):
    spec = net.spec
    assert FeatureSpec.from_json(spec.to_json()) == spec
    assert FeatureSpec.from_json(spec.to_json()).id == spec.id
    assert spec == create(spec.backbone).spec
    assert spec.backbone in NAMES
    assert spec.tail != "given"
    assert spec.is_random == spec.weights.startswith("random")


def test_the_class_describes_itself(net):
    assert len(inspect.getdoc(type(net)).split("\n")[0]) > 20
    assert net.licence
    parameters = inspect.signature(type(net)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


def test_an_unknown_option_is_refused_with_a_suggestion(net):
    known = list(inspect.signature(type(net)).parameters)
    wrong = known[0] + "x"
    with pytest.raises(BackboneError, match=rf"{net.spec.backbone} takes no option '{wrong}'.*mean.*'{known[0]}'"):
        create(net.spec.backbone, **{wrong: 1})


def test_options_that_are_none_are_not_given(net):
    assert create(net.spec.backbone, **dict.fromkeys(inspect.signature(type(net)).parameters)).spec == net.spec


def test_an_unknown_backbone_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"no backbone called 'tinny'. Did you mean 'tiny'.* Known: .*tiny"):
        create("tinny")
