"""The hub's nets against pytorchvideo itself; sizes, tensors and MACs against the survey of features, section 1.8."""

import contextlib
import copy

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from extract.backbones import BackboneError, backbones, create
from extract.backbones import hub as presets
from extract.nets.hub import Blocks, Mvit, SlowFast
from extract.shim import import_pytorchvideo_hub
from extract.weights import randomise

HUB = import_pytorchvideo_hub()

# frames, rate, short side and crop of the preset; tensors and parameters (millions) of the net; MACs (10^9) as fvcore
# counts them, norms included, at a side in pixels: "28.54 @224^2", "0.63 / 2.03 / 4.90 / 18.93", ...
NETS = {
    "i3d_r50": (8, 8, 256, 256, 320, 28.04, 28.54, 224),
    "slow_r50": (8, 8, 256, 256, 320, 32.45, 41.9, 224),
    "slowfast_r50": (32, 2, 256, 256, 662, 34.6, 65.71, 256),
    "x3d_xs": (4, 12, 182, 182, 563, 3.79, 0.63, 160),
    "x3d_s": (13, 6, 182, 182, 563, 3.79, 2.03, 160),
    "x3d_m": (16, 5, 256, 256, 563, 3.79, 4.90, 224),
    "x3d_l": (16, 5, 356, 312, 1141, 6.15, 18.93, 312),
    "c2d_r50": (8, 8, 256, 256, 320, 24.33, 19.6, 224),
    "csn_r101": (32, 2, 256, 256, 626, 22.2, 57.0, 224),
    "r2plus1d_r50": (16, 4, 256, 256, 416, 28.11, 57.9, 224),
    "mvit_base_16x4": (16, 4, 256, 224, 377, 36.6, 70.8, 224),
}
DIMS = {"slowfast_r50": 2304, "mvit_base_16x4": 768}
SLOW = [0, 4, 8, 13, 17, 22, 26, 31]  # k * 31 / 7 rounded down: pytorchvideo's slow pathway


def built(name):
    """The preset's own module, on the meta device."""
    preset = object.__new__(backbones.get(name))
    preset.spec = preset.recipe
    if name == "mvit_base_16x4":  # it reads numbers off tensors while it is made
        return preset.build().eval().to("meta")
    with torch.device("meta"):
        return preset.build().eval()


def whole_net(name, seed=0):
    """pytorchvideo's own net, with weights of ours."""
    with torch.device("meta"):
        net = getattr(HUB, name)(pretrained=False).eval()
    return scrambled(net.to_empty(device="cpu"), seed)


def scrambled(net, seed=0):
    """Every norm's statistics and every bias matter."""
    randomise(net, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.ndim == 1 and value.is_floating_point():
                value += torch.rand(value.shape, generator=generator) * (0.5 if name.endswith("var") else 0.1)
    return net


def pools_of(net):
    return [module for module in net.modules() if isinstance(module, nn.AvgPool3d)]


def whole_and_seen(whole, x):
    """Logits of pytorchvideo's own net, and what its classifier was given, averaged over positions."""
    seen = []
    head = whole.head if hasattr(whole, "head") else whole.blocks[-1]
    head.proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    with torch.inference_mode():
        logits = whole(x)
    return logits, seen[0].flatten(1, -2).mean(1) if seen[0].ndim > 2 else seen[0]


def assert_close(mine, theirs, tolerance=1e-4):
    np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("name", [n for n in NETS if n != "mvit_base_16x4"])
def test_features_and_logits_are_those_of_the_untouched_net(name):
    whole = whole_net(name)
    copied = copy.deepcopy(whole)
    mine = SlowFast(copied, 32) if name == "slowfast_r50" else Blocks(copied)
    assert mine.state_dict().keys() == whole.state_dict().keys()  # the published names, the classifier's among them
    for pool in pools_of(mine) + pools_of(whole):  # smaller, so that 72 pixels suffice and 2x2x2 positions remain
        pool.kernel_size = (pool.kernel_size[0] - 1, 2, 2)
    if name.startswith(("x3d", "r2plus1d")):
        assert isinstance(whole.blocks[-1].activation, nn.Softmax)
        whole.blocks[-1].activation = None  # see the next test
    x = torch.randn(2, 3, NETS[name][0], 72, 72, generator=torch.Generator().manual_seed(1))
    logits, seen = whole_and_seen(whole, [x[:, :, SLOW], x.clone()] if name == "slowfast_r50" else x.clone())
    with torch.inference_mode():
        features = mine(x)
        assert features.shape == (2, DIMS.get(name, 2048))
        assert_close(features, seen)
        assert_close(mine.classify(features), logits)
    assert (logits[0] != logits[1]).all()  # nothing is averaged over the batch


def test_the_classifier_stops_before_the_softmax_of_the_untouched_net():
    whole = whole_net("x3d_xs")
    with torch.inference_mode():
        whole.blocks[-1].proj.weight /= 1000  # else the softmax of untrained weights is one-hot
        mine = Blocks(copy.deepcopy(whole))
        x = torch.randn(1, 3, 4, 160, 160, generator=torch.Generator().manual_seed(1))
        logits = mine.classify(mine(x))
        probabilities = whole(x)
    assert 0.001 < probabilities.max() < 0.9
    np.testing.assert_allclose(logits.softmax(1).numpy(), probabilities.numpy(), rtol=1e-3)


def test_x3ds_strides_are_numbers_that_torch_compile_takes():
    """pytorchvideo leaves numpy's integers in them, and the compiled net falls apart into a graph for each block."""

    def kinds(net):
        sides = [getattr(module, name, ()) for module in net.modules() for name in ("kernel_size", "stride")]
        return {type(side) for row in sides if isinstance(row, tuple) for side in row}

    assert kinds(built("x3d_m")) == {int}
    assert kinds(HUB.x3d_m()) == {int, np.int64}  # or this test tests nothing


def test_mvits_class_token_and_logits_are_those_of_the_untouched_net():
    whole = scrambled(HUB.mvit_base_16x4(spatial_size=64, temporal_size=4).eval())
    mine = Mvit(copy.deepcopy(whole))
    assert mine.state_dict().keys() == whole.state_dict().keys()
    x = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    logits, seen = whole_and_seen(whole, x)
    with torch.inference_mode():
        features = mine.eval()(x)
        assert_close(features, seen)
        assert_close(mine.classify(features), logits)


def test_slowfast_takes_a_clip_twice_and_leaves_it_alone():
    """pytorchvideo's net writes into the list it is given: a second call with that list fails."""
    net = SlowFast(whole_net("slowfast_r50"), 32)
    for pool in pools_of(net):
        pool.kernel_size = (pool.kernel_size[0], 1, 1)
    assert net.slow.tolist() == SLOW
    assert "slow" not in net.state_dict()
    x = torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    given = x.clone()
    with torch.inference_mode():
        first = net(given)
        np.testing.assert_array_equal(net(given).numpy(), first.numpy())
    np.testing.assert_array_equal(given.numpy(), x.numpy())


def macs_of(net, frames, side):
    """10^9 multiply-accumulates of one forward pass on the meta device, of convolutions and matrices alone, and with
    fvcore's rule for norms (2 per element of a BatchNorm, 5 of a LayerNorm); and the features' shape."""
    work, norms, hooks = [], [], []
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            each = module.weight[0].numel()
            hooks.append(module.register_forward_hook(lambda _, x, out, each=each: work.append(each * out.numel())))
        elif isinstance(module, nn.BatchNorm3d | nn.LayerNorm):
            cost = 5 if isinstance(module, nn.LayerNorm) else 2
            hooks.append(module.register_forward_hook(lambda _, x, out, cost=cost: norms.append(cost * out.numel())))
    products = FlopCounterMode(display=False) if isinstance(net, Mvit) else contextlib.nullcontext()
    with products, torch.inference_mode():
        out = net(torch.empty(1, 3, frames, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    # attention multiplies matrices that are no module's weights
    plain = products.get_total_flops() / 2e9 if isinstance(net, Mvit) else sum(work) / 1e9
    return plain, plain + sum(norms) / 1e9, out.shape


@pytest.mark.parametrize("name", NETS)
def test_size_and_work_are_those_of_the_survey(name):
    frames, rate, short, crop, tensors, params, fvcore, side = NETS[name]
    preset = backbones.get(name)
    spec = preset.default_spec()
    net = built(name).to("meta")

    assert (spec.clip_len, spec.step, spec.stride, spec.fps) == (frames, rate, frames * rate, 30.0)
    assert (spec.resize, spec.crops, preset.crop_size) == (f"short{short}:cv2_linear", ("center",), crop)
    np.testing.assert_allclose(spec.mean, [0.45 * 255] * 3, rtol=1e-12)
    np.testing.assert_allclose(spec.std, [0.225 * 255] * 3, rtol=1e-12)
    assert preset.weight_files == (f"{name}_hub",)

    assert len(net.state_dict()) == tensors
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert count == pytest.approx(
        params, abs=0.05 if params in (34.6, 22.2, 36.6) else 0.005
    )  # as many digits as given
    assert preset.params_m == pytest.approx(count, abs=0.0005)

    plain, _, shape = macs_of(net, frames, crop)
    assert shape == (1, spec.dim)
    assert preset.gmac == pytest.approx(plain, abs=0.006)
    plain, with_norms, _ = macs_of(net, frames, side)
    # 65.71 is the model zoo's own figure, which leaves the norms out; the others are fvcore's
    assert (plain if name == "slowfast_r50" else with_norms) == pytest.approx(fvcore, rel=2e-3, abs=0.006)


@pytest.mark.parametrize("name", [n for n in NETS if n != "mvit_base_16x4"])
def test_the_shortest_clip_is_what_the_head_can_pool(name):
    preset = backbones.get(name)
    shortest = preset.min_frames

    whole = built(name)

    def run(frames):
        net = SlowFast(whole, frames).to("meta") if name == "slowfast_r50" else whole
        return net(torch.empty(1, 3, frames, preset.crop_size, preset.crop_size, device="meta"))

    assert run(shortest).shape == (1, preset.recipe.dim)
    with pytest.raises(RuntimeError, match="smaller than kernel size"):
        run(shortest - (4 if name == "slowfast_r50" else 1))
    with pytest.raises(BackboneError, match=f"{name} needs clips of {shortest} frames or more, got .*={shortest - 1}"):
        create(name, weights="random", clip_len=shortest - 1)


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(BackboneError, match="slowfast_r50 needs clips of a multiple of 4 frames, got clip_len=33"):
        create("slowfast_r50", weights="random", clip_len=33)
    for length in (15, 17, 32):
        with pytest.raises(BackboneError, match=f"mvit_base_16x4 takes clips of 16 frames alone, got .*={length}"):
            create("mvit_base_16x4", weights="random", clip_len=length)


@pytest.fixture(scope="module")
def clip():
    smooth = np.random.default_rng(5).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC) for frame in smooth])


def test_a_preset_equals_resize_crop_scale_and_net_by_hand(clip):
    """All of Net's steps, with folded norms, against pytorchvideo's net on frames prepared one by one."""
    net = create("x3d_xs", weights="random:3", device="cpu")
    assert not any(isinstance(module, nn.BatchNorm3d) for module in net.net.modules())
    frames = [cv2.resize(frame, (242, 182), interpolation=cv2.INTER_LINEAR) for frame in clip]  # 320 * 182 / 240
    x = np.stack([(frame[:, 30:212] / 255 - 0.45) / 0.225 for frame in frames]).transpose(3, 0, 1, 2)
    whole = HUB.x3d_xs().eval()
    randomise(whole, 3)  # what "random:3" means
    _, seen = whole_and_seen(whole, torch.from_numpy(x[None]).float())
    assert_close(torch.from_numpy(net.extract(clip[None], np.array([30.0]))[:, 0]), seen)


def test_bytes_are_within_one_level_of_pytorchvideos_float_resize(clip):
    from extract.transforms import resize

    for short, (height, width) in ((182, (182, 242)), (256, (256, 341)), (356, (356, 474))):
        mine = resize(torch.from_numpy(clip), f"short{short}:cv2_linear")
        whole = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
        theirs = interpolate(whole, (height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        assert mine.shape == theirs.shape
        assert (mine.float() - theirs).abs().max() <= 1


def test_bfloat16_on_a_cpu_stays_near_float32(clip):
    """AvgPool3d has no such kernel there."""
    exact, rough = (
        create("x3d_xs", weights="random", device="cpu", precision=precision).extract(clip[None], np.array([30.0]))
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)

    net = SlowFast(whole_net("slowfast_r50"), 32)
    for pool in pools_of(net):
        pool.kernel_size = (pool.kernel_size[0], 2, 2)
    with torch.inference_mode():
        x = torch.randn(1, 3, 32, 48, 48, generator=torch.Generator().manual_seed(1))
        full = net(x)
        half = net.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert 0 < (half - full).norm() < 0.05 * full.norm()


def test_every_preset_of_the_file_is_tested_here():
    classes = [c for c in vars(presets).values() if isinstance(c, type) and issubclass(c, presets.Net)]
    assert {c.recipe.backbone for c in classes if hasattr(c, "recipe")} == set(NETS)
