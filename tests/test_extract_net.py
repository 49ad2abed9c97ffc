"""What all frozen nets share: options, crops, precision, batches, weights; on a small net of two convolutions."""

import numpy as np
import pytest
import torch
from torch import nn

from data.crops import ORDERS
from data.types import FeatureSpec
from extract.backbones import BackboneError, backbones, create, plan
from extract.backbones.net import Net
from extract.file_checks import sha256_of
from extract.weights import WeightsError


class PairModule(nn.Module):
    def __init__(self, eps, classes):
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 5, 3, padding=1, bias=False), nn.BatchNorm3d(5, eps=eps)
        self.second, self.last = nn.Conv3d(5, 6, (1, 3, 3)), nn.BatchNorm3d(6)
        self.classes = nn.Linear(6, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.last(self.second(x))).mean(dim=(2, 3, 4))


class Pair(Net):
    """Two 3-D convolutions with batch norms, for tests, 6-d."""

    weight_files = ("i3d_rgb_imagenet",)
    switches = {"bn_eps": 1e-3, "double": False, "mode": "plain", "levels": 2}  # noqa: RUF012
    crop_order = "center_first"
    crop_size = 20
    min_frames = 2
    gmac = 0.001
    params_m = 0.001
    licence = "none"
    recipe = FeatureSpec(
        backbone="pair",
        dim=6,
        clip_len=4,
        stride=4,
        tail="drop",
        resize="short24:cv2_linear",
        crops=ORDERS["center_first"],
        mean=(100.0, 110.0, 120.0),
        std=(50.0, 51.0, 52.0),
    )

    def build(self):
        classes = 3 if self.state is None else len(self.state["classes.bias"])
        return PairModule(self.options["bn_eps"], classes)


@pytest.fixture(autouse=True)
def pair():
    backbones.names()  # loads the others first
    backbones.register("pair")(Pair)
    yield Pair
    backbones._items.pop("pair")


def clip_of(seed=0, height=24, width=31, frames=4):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def features_of(net, *clips):
    return net.submit(list(clips), [25.0] * len(clips))()


def pair_of(**options):
    return create("pair", **{"weights": "random", "device": "cpu", **options})


# -- options ----------------------------------------------------------------------------------------------------------

OPTIONS = [
    # as typed, field, what the spec must hold
    ({"dtype": "float16"}, "dtype", "float16"),
    ({"precision": "bfloat16"}, "compute", "bfloat16"),
    ({"crops": "1"}, "crops", ("center",)),
    ({"crops": "5"}, "crops", ORDERS["center_first"][:5]),
    ({"crops": "mirror_center,top_left"}, "crops", ("mirror_center", "top_left")),
    ({"clip_len": "8"}, "clip_len", 8),
    ({"stride": "8"}, "stride", 8),
    ({"stride": 2}, "stride", 2),
    ({"step": "2"}, "step", 2),
    ({"tail": "loop"}, "tail", "loop"),
    ({"fps": "12.5"}, "fps", 12.5),
    ({"fps": 30}, "fps", 30.0),
    ({"resize": "40x30:area"}, "resize", "40x30:area"),
    ({"decoder": "torchcodec"}, "decoder", "torchcodec"),
    ({"weights": "random:7"}, "weights", "random:7"),
    ({"bn_eps": "1e-5"}, "options.bn_eps", 1e-5),
    ({"bn_eps": "2"}, "options.bn_eps", 2.0),
    ({"double": "yes"}, "options.double", True),
    ({"double": True}, "options.double", True),
    ({"mode": "fancy"}, "options.mode", "fancy"),
    ({"levels": "3"}, "options.levels", 3),
]


@pytest.mark.parametrize(("options", "field", "value"), OPTIONS, ids=str)
def test_every_option_reaches_the_spec_of_plan_and_of_the_net(options, field, value):
    net = pair_of(**options)
    assert plan("pair", **{"weights": "random", **options}) == net.spec
    name, _, key = field.partition(".")
    found = getattr(net.spec, name)
    found = found[key] if key else found
    assert (found, type(found)) == (value, type(value))
    default = plan("pair", weights="random")
    assert net.spec.id != default.id
    changed = [n for n in default.__dataclass_fields__ if getattr(net.spec, n) != getattr(default, n)]
    assert changed == [name]


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"batch": 3}, {"compile": False}, {"bn_eps": "0.001"}], ids=str)
def test_what_changes_no_number_changes_no_spec(options):
    assert plan("pair", weights="random", **options) == plan("pair", weights="random")


def test_none_undoes_resampling(monkeypatch):
    monkeypatch.setattr(Pair, "recipe", FeatureSpec(**{**vars(Pair.recipe), "fps": 24.0}))
    assert plan("pair", weights="random").fps == 24.0
    assert plan("pair", weights="random", fps="none").fps is None
    assert plan("pair", weights="random", fps=None).fps == 24.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float64"}, "precision must be one of float32, bfloat16, float16, got 'float64'"),
        ({"stride": "many"}, "stride"),
        ({"stride": "0"}, "stride"),
        ({"stride": 2.5}, "stride"),
        ({"step": "-1"}, "step"),
        ({"clip_len": "1"}, "pair needs clips of 2 frames or more, got clip_len=1"),
        ({"tail": "cut"}, "tail must be one of .*, got 'cut'"),
        ({"tail": "given"}, "tail"),
        ({"fps": "fast"}, "fps"),
        ({"fps": "0"}, "fps"),
        ({"fps": "-25"}, "fps"),
        ({"fps": "nan"}, "fps"),
        ({"fps": "inf"}, "fps"),
        ({"dtype": "float64"}, "float16 or float32, got 'float64'"),
        ({"crops": "7"}, "crops are 1, 5, 10, or names .*, got '7'"),
        ({"crops": "center,middle"}, "got 'middle'"),
        ({"crops": "center,center"}, "each crop is named once"),
        ({"resize": "big"}, "resize must be 'none', .* got 'big'"),
        ({"resize": "10x10:lanczos"}, "resize must be .* got '10x10:lanczos'"),
        ({"decoder": "ffmpeg"}, "decoder must be one of pyav, torchcodec, nvdec, got 'ffmpeg'"),
        ({"bn_eps": "small"}, "option bn_eps of pair must be like 0.001, got 'small'"),
        ({"bn_eps": "nan"}, "option bn_eps of pair must be like 0.001, got 'nan'"),
        ({"double": "perhaps"}, "option double of pair must be yes or no, got 'perhaps'"),
        ({"levels": "2.5"}, "option levels of pair must be like 2, got '2.5'"),
        ({"levels": 2.5}, "option levels of pair must be like 2, got '2.5'"),
        ({"weights": "random:x"}, "random:SEED"),
        ({"bn_esp": 1}, r"backbone pair takes no option 'bn_esp'. Did you mean 'bn_eps'"),
        ({"strid": 1}, r"backbone pair takes no option 'strid'. Did you mean 'stride'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_done(options, message):
    for make in (plan, create):
        with pytest.raises(BackboneError, match=message):
            make("pair", **{"weights": "random", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "0"}, "batch"),
        ({"batch": "lots"}, "batch"),
        ({"compile": "perhaps"}, "compile"),
        ({"device": "tpu"}, "no device called 'tpu'"),
        ({"device": "cuda:99"}, "wanted cuda:99, found"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pair_of(**options)


def test_settings_from_a_command_line(monkeypatch):
    """`--option batch=3 --option compile=no`: texts, as switches are."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("was told not to"))
    net = pair_of(batch="3", compile="no")
    assert net.batch == 1  # a CPU takes one clip at a time


def test_the_constructor_itself_refuses_what_it_does_not_know():
    with pytest.raises(BackboneError, match=r"pair takes no option 'bn_epsilon'. Did you mean 'bn_eps'"):
        Pair(weights="random", bn_epsilon=1e-3)


def test_a_net_without_crops_says_so(monkeypatch):
    monkeypatch.setattr(Pair, "crop_order", "")
    monkeypatch.setattr(Pair, "recipe", FeatureSpec(**{**vars(Pair.recipe), "crops": ("full",)}))
    assert plan("pair", weights="random", crops="1").crops == ("full",)
    with pytest.raises(BackboneError, match="pair has no crops, got --crops 10; leave it out"):
        plan("pair", weights="random", crops="10")


# -- numbers ----------------------------------------------------------------------------------------------------------


def boxes_by_hand(height, width, size):
    """(top, left) of center_first's five: the places of corners are plain, the centre's is rounded down."""
    return {
        "center": ((height - size) // 2, (width - size) // 2),
        "top_left": (0, 0),
        "top_right": (0, width - size),
        "bottom_left": (height - size, 0),
        "bottom_right": (height - size, width - size),
    }


def slow_features(net, clip):
    """The unfolded net in float64 on one crop after the other, sliced by hand."""
    torch.manual_seed(0)
    module = PairModule(net.options["bn_eps"], 3)
    from extract.weights import randomise

    randomise(module, 0)
    module = module.double().eval()
    spec, rows = net.spec, []
    for name in spec.crops:
        top, left = boxes_by_hand(*clip.shape[1:3], 20)[name.removeprefix("mirror_")]
        part = clip[:, top : top + 20, left : left + 20]
        if name.startswith("mirror_"):
            part = part[:, :, ::-1]
        x = (part.astype(np.float64) - spec.mean) / spec.std  # (T, h, w, C)
        with torch.inference_mode():
            rows.append(module(torch.from_numpy(x.transpose(3, 0, 1, 2).copy())[None])[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("crops", ["1", "5", "10", "bottom_right,mirror_top_left"])
def test_features_are_those_of_the_plain_net_on_crops_cut_by_hand(crops):
    net, clip = pair_of(crops=crops), clip_of()
    wanted = slow_features(net, clip)
    found = features_of(net, clip)[0]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    if len(wanted) > 1:  # crops differ by far more than that, so that their order is seen
        assert np.abs(np.diff(wanted, axis=0)).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "shape"), [("pair", (4, 24, 31, 3)), ("tsn_bninception", (1, 256, 340, 3))])
def test_one_crop_of_ten_is_the_same_crop_alone_to_the_bit(name, shape):
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ten = create(name, weights="random", device="cpu", crops="10")
    together = features_of(ten, clip)[0]
    for k in (0, 4, 9):
        alone = create(name, weights="random", device="cpu", crops=ten.spec.crops[k])
        np.testing.assert_array_equal(features_of(alone, clip)[0, 0], together[k])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["pair", "tsn_bninception", "x3d_xs"])
def test_half_precisions_point_where_float32_does(name, precision):
    shape = {"pair": (4, 24, 31, 3), "tsn_bninception": (1, 256, 340, 3), "x3d_xs": (4, 182, 200, 3)}[name]
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    exact, rough = (
        features_of(create(name, weights="random", device="cpu", crops="1", precision=p), clip)[0, 0].astype(np.float64)
        for p in ("float32", precision)
    )
    assert not np.array_equal(exact, rough)
    assert exact @ rough / np.linalg.norm(exact) / np.linalg.norm(rough) >= 0.999


def test_features_do_not_depend_on_the_batch_they_come_in():
    net = pair_of(crops="5")
    clips = [clip_of(i) for i in range(3)]
    together = features_of(net, *clips)
    assert together.shape == (3, 5, 6)
    for clip, found in zip(clips, together, strict=True):
        np.testing.assert_array_equal(features_of(net, clip)[0], found)


def test_clips_of_several_sizes_go_together():
    net = pair_of(crops="1")
    clips = [clip_of(0), clip_of(1, 24, 40), clip_of(2, 60, 48)]  # the last one is resized first
    together = features_of(net, *clips)
    for clip, found in zip(clips, together, strict=True):
        np.testing.assert_array_equal(features_of(net, clip)[0], found)


def test_a_frame_smaller_than_a_crop_says_what_to_type():
    net = pair_of(resize="none")
    with pytest.raises(ValueError, match=r"crops 'center_first' of 20x20 need .*, got 31x19; use resize=short20:"):
        features_of(net, clip_of(height=19))


# -- on a device: the same code on the CPU, with stand-ins for what only CUDA has -------------------------------------


class Event:
    def record(self):
        self.recorded = True

    def synchronize(self):
        assert self.recorded


@pytest.fixture
def on_device(monkeypatch):
    """A net that takes `_submit_to_device`'s way; returns it, and the rows of every forward pass."""
    plain_empty = torch.empty
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: plain_empty(*a, **k))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    net = pair_of(crops="5")
    net.batch = 4
    rows = []
    forward = net.forward

    def counted(x):
        rows.append(len(x))
        return forward(x)

    def submit(*clips):
        with torch.inference_mode():
            return net._submit_to_device(list(clips))()

    monkeypatch.setattr(net, "forward", counted)
    return net, submit, rows


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_forward_passes_have_one_shape_and_results_their_order(on_device, count):
    net, submit, rows = on_device
    clips = [clip_of(i, 24, 31 + i) for i in range(count)]
    found = submit(*clips)
    assert rows == [20] * -(-count // 4)  # 4 clips of 5 crops
    assert found.shape == (count, 5, 6)
    assert found.dtype == np.float32
    wanted = features_of(net, *clips)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)  # another batch size, other roundings
    for clip, row in zip(clips, found, strict=True):
        np.testing.assert_array_equal(submit(clip)[0], row)  # but the same ones however clips meet


def test_a_full_memory_halves_the_batch_once_and_for_good(on_device, monkeypatch):
    net, submit, rows = on_device
    clips = [clip_of(i) for i in range(4)]
    wanted = submit(*clips)
    forward = net.forward

    def scarce(x):
        if len(x) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    monkeypatch.setattr(net, "forward", scarce)
    rows.clear()
    found = submit(*clips)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert rows == [5, 5, 5, 5]
    notes = net.take_notes()
    assert [n for n in notes if "20 crops at once: 10 from here on" in n] == notes[:1]
    assert [n for n in notes if "10 crops at once: 5 from here on" in n] == notes[1:]
    rows.clear()
    submit(*clips[:1])
    assert rows == [5]
    assert net.take_notes() == []


def test_a_memory_that_holds_no_crop_is_an_error(on_device, monkeypatch):
    net, submit, _ = on_device

    def none(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(net, "forward", none)
    with pytest.raises(torch.OutOfMemoryError):
        submit(clip_of())
    assert len(net.take_notes()) == 4  # 20 -> 10 -> 5 -> 2 -> 1


def test_a_result_is_not_overwritten_by_the_next(on_device):
    _, submit, _ = on_device
    first = submit(clip_of(0))
    kept = first.copy()
    submit(clip_of(1))
    np.testing.assert_array_equal(first, kept)


def test_where_forward_passes_share_one_place_for_their_results(on_device, monkeypatch):
    """As CUDA graphs do: every pass writes where the one before it wrote."""
    net, submit, _ = on_device
    clips = [clip_of(i) for i in range(9)]
    wanted = submit(*clips)
    forward, place = net.forward, torch.zeros(20, 6)

    def shared(x):
        place.copy_(forward(x))
        return place

    monkeypatch.setattr(net, "forward", shared)
    np.testing.assert_array_equal(submit(*clips), wanted)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_seeds_make_other_nets_and_the_stamp_is_in_the_id():
    clip = clip_of()
    nets = {seed: pair_of(weights=f"random:{seed}") for seed in (0, 1)}
    a, b = (features_of(net, clip) for net in nets.values())
    assert not np.allclose(a, b, rtol=1e-2)
    np.testing.assert_array_equal(features_of(pair_of(weights="random"), clip), a)  # of seed 0
    assert nets[0].spec.id.startswith("pair-random-")
    assert nets[0].spec.id != nets[1].spec.id
    assert nets[0].spec.is_random


@pytest.fixture
def saved(tmp_path):
    """A trained net of 7 classes: the module and its file."""
    torch.manual_seed(3)
    module = PairModule(1e-3, 7)
    for buffer in (module.norm.running_var, module.last.running_var):
        buffer.uniform_(0.5, 2)
    path = tmp_path / "trained.pt"
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    return module.eval(), path


def test_a_file_is_loaded_strictly_and_named_by_its_hash(saved):
    """`build` sees the file: its number of classes is not the default's."""
    module, path = saved
    net = pair_of(weights=str(path), crops="1")
    assert net.spec.weights == sha256_of(path)
    assert not net.spec.is_random
    assert "random" not in net.spec.id
    assert net.state is None
    assert net.net.classes.out_features == 7
    clip = clip_of()
    with torch.inference_mode():
        wanted = module(net.prepare(torch.from_numpy(clip)))[0].numpy()
    np.testing.assert_allclose(features_of(net, clip)[0, 0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("second.weight"), "missing: second.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"first.weight": torch.zeros(5, 2, 3, 3, 3)}), "first.weight takes 2 channels, not 3"),
        (lambda s: s["second.bias"].fill_(float("nan")), "second.bias holds infinities or no numbers"),
    ],
)
def test_a_file_that_does_not_fit_names_the_keys(saved, tmp_path, change, message):
    module, _ = saved
    state = module.state_dict()
    change(state)
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match=message) as error:
        pair_of(weights=str(tmp_path / "bad.pt"))
    assert str(tmp_path / "bad.pt") in str(error.value)


def test_the_net_is_folded_frozen_and_in_its_precision():
    net = pair_of(precision="bfloat16")
    assert not net.net.training
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in net.net.parameters())
    assert [m for m in net.net.modules() if isinstance(m, nn.BatchNorm3d)] == []
