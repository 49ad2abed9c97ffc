"""I3D Inception against a forward pass from the paper's figure 3 with padding by definition, and published totals."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from data.crops import ORDERS
from extract.backbones import BackboneError, create, plan
from extract.catalogue import WeightsError, find
from extract.flow import dequantise, quantise
from extract.folding import fold_batch_norms
from extract.nets.conv3d import Conv3d, max_pool_3x3x3
from extract.nets.i3d import InceptionI3D, Stem, mean_of_windows, rename, same_padding
from extract.weights import load_strict, read

# (block, inputs, widths of b0, b1a, b1b, b2a, b2b, b3b): the net's published topology
BLOCKS = (
    ("3b", 192, (64, 96, 128, 16, 32, 32)),
    ("3c", 256, (128, 128, 192, 32, 96, 64)),
    ("4b", 480, (192, 96, 208, 16, 48, 64)),
    ("4c", 512, (160, 112, 224, 24, 64, 64)),
    ("4d", 512, (128, 128, 256, 24, 64, 64)),
    ("4e", 512, (112, 144, 288, 32, 64, 64)),
    ("4f", 528, (256, 160, 320, 32, 128, 128)),
    ("5b", 832, (256, 160, 320, 32, 128, 128)),
    ("5c", 832, (384, 192, 384, 48, 128, 128)),
)
BRANCHES = (
    ("b0", "branch_0"),
    ("b1a", "branch_1.0"),
    ("b1b", "branch_1.1"),
    ("b2a", "branch_2.0"),
    ("b2b", "branch_2.1"),
    ("b3b", "branch_3.1"),
)


def layers(channels):
    """(piergiaj's name, hassony2's name, shape of the kernel) of every layer with a batch norm."""
    yield "Conv3d_1a_7x7", "conv3d_1a_7x7", (64, channels, 7, 7, 7)
    yield "Conv3d_2b_1x1", "conv3d_2b_1x1", (64, 64, 1, 1, 1)
    yield "Conv3d_2c_3x3", "conv3d_2c_3x3", (192, 64, 3, 3, 3)
    for block, inputs, (b0, b1a, b1b, b2a, b2b, b3b) in BLOCKS:
        shapes = ((b0, inputs, 1), (b1a, inputs, 1), (b1b, b1a, 3), (b2a, inputs, 1), (b2b, b2a, 3), (b3b, inputs, 1))
        for (ours, theirs), (out, into, k) in zip(BRANCHES, shapes, strict=True):
            yield f"Mixed_{block}.{ours}", f"mixed_{block}.{theirs}", (out, into, k, k, k)


def weights_of(channels, *, counters=True, classes=400, seed=0):
    """Random weights under piergiaj's names, and the same under hassony2's."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = {}, {}
    for name, other, shape in layers(channels):
        out = shape[0]
        variance = torch.rand(out, generator=generator) + 0.5
        variance[::7] = 2e-3  # here the epsilon counts
        parts = {
            "weight": torch.rand(out, generator=generator) * 0.3 + 0.3,
            "bias": torch.randn(out, generator=generator) * 0.2,
            "running_mean": torch.randn(out, generator=generator) * 0.2,
            "running_var": variance,
        }
        if counters:
            parts["num_batches_tracked"] = torch.tensor(5)
        kernel = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        ours[f"{name}.conv3d.weight"] = theirs[f"{other}.conv3d.weight"] = kernel
        for part, value in parts.items():
            ours[f"{name}.bn.{part}"] = theirs[f"{other}.batch3d.{part}"] = value
    head = torch.randn(classes, 1024, 1, 1, 1, generator=generator) * 0.05
    bias = torch.randn(classes, generator=generator)
    ours |= {"logits.conv3d.weight": head, "logits.conv3d.bias": bias}
    theirs |= {"conv3d_0c_1x1.conv3d.weight": head, "conv3d_0c_1x1.conv3d.bias": bias}
    return ours, theirs


def zeros_around(size, kernel, stride, rule):
    """(before, behind): TensorFlow's SAME by definition, or what depends on kernel and stride alone."""
    outputs = math.ceil(size / stride)
    total = max((outputs - 1) * stride + kernel - size, 0) if rule == "same" else max(kernel - stride, 0)
    return total // 2, total - total // 2


def padded(x, kernel, stride, rule):
    pads = [p for n, k, s in zip(x.shape[2:], kernel, stride, strict=True) for p in [zeros_around(n, k, s, rule)]]
    return F.pad(x, [p for pair in reversed(pads) for p in pair])


def reference(state, x, *, eps=1e-3, rule="same"):
    """(M, C, T, h, w) -> output of Mixed_5c, in float64, every padding a copy with zeros around it."""
    state = {k: v.double() for k, v in state.items()}

    def unit(x, name, stride=1):
        kernel = state[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, kernel.shape[2:], (stride,) * 3, rule), kernel, stride=stride)
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, gain, shift = (state[f"{name}.bn.{part}"][:, None, None, None] for part in parts)
        return torch.clamp((x - mean) / torch.sqrt(var + eps) * gain + shift, min=0)

    def pool(x, kernel, stride):
        # the old ports pad statically and let the last window begin anywhere inside
        return F.max_pool3d(padded(x, kernel, stride, rule), kernel, stride, ceil_mode=rule == "static")

    x = pool(unit(x.double(), "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for block, _, _ in BLOCKS:
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        name = f"Mixed_{block}"
        branches = [
            unit(x, f"{name}.b0"),
            unit(unit(x, f"{name}.b1a"), f"{name}.b1b"),
            unit(unit(x, f"{name}.b2a"), f"{name}.b2b"),
            unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b"),
        ]
        x = torch.cat(branches, dim=1)
    return x


def official_head(x):
    """Mixed_5c -> features and, given the classifier, logits as the published net computes them: its window is all of
    the map in space, which is 7 x 7 at 224 x 224."""
    windows = torch.nn.AvgPool3d((2, *x.shape[3:]), stride=1)(x)
    return windows.mean(dim=(2, 3, 4)), windows


def loaded(state, **options):
    channels = rename(state)["Conv3d_1a_7x7.conv3d.weight"].shape[1]
    net = InceptionI3D(channels, **options).eval().requires_grad_(False)
    load_strict(net, rename(state), where="the test's weights")
    return net


def clip(*shape, seed=1):
    """In the layout that Net gives: channels last in memory."""
    m, c, t, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(m, t, h, w, c, generator=generator) * 2 - 1).permute(0, 4, 1, 2, 3)


def distance(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


STATE, _ = weights_of(3)
with torch.device("meta"):
    GHOSTS = {rule: InceptionI3D(padding=rule).eval() for rule in ("same", "static")}


# -- the net -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["same", "static"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 32, 32), (2, 3, 11, 50, 39), (1, 3, 18, 33, 64)])
def test_features_are_those_of_the_paper_s_figure(shape, rule):
    x = clip(*shape)
    wanted, _ = official_head(reference(STATE, x, rule=rule))
    assert distance(loaded(STATE, padding=rule)(x), wanted) < 1e-5


@pytest.mark.parametrize("frames", [16, 24, 34])
def test_logits_of_the_features_are_those_of_the_whole_net(frames):
    x = clip(1, 3, frames, 32, 32)
    _, windows = official_head(reference(STATE, x))
    head = STATE["logits.conv3d.weight"].double(), STATE["logits.conv3d.bias"].double()
    wanted = F.conv3d(windows, *head).mean(dim=(2, 3, 4))  # a classification per window, then the mean over time
    net = loaded(STATE)
    found = net.classify(net(x))
    assert found.shape == (1, 400)
    assert distance(found, wanted) < 1e-5


@pytest.mark.parametrize("channels", [3, 2])
@pytest.mark.parametrize("counters", [True, False])
def test_both_naming_schemes_load_strictly_and_give_the_same(channels, counters):
    ours, theirs = weights_of(channels, counters=counters)
    assert len(ours) == len(theirs) == (344 if counters else 287)  # as the published files
    x = clip(1, channels, 9, 32, 32)
    assert torch.equal(loaded(ours)(x), loaded(theirs)(x))
    del theirs["mixed_4e.branch_2.1.batch3d.running_mean"]
    with pytest.raises(WeightsError, match=r"1 missing: Mixed_4e\.b2b\.bn\.running_mean"):
        loaded(theirs)


@pytest.mark.parametrize(
    ("channels", "total", "parameters"),
    [(3, 12_711_881, 12_697_264), (2, 12_689_929, 12_675_312)],  # numbers of the published files
)
def test_totals(channels, total, parameters):
    net = InceptionI3D(channels)
    assert sum(t.numel() for t in net.state_dict().values()) == total
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == 344
    preset = plan("i3d_rocng" if channels == 3 else "i3d_rocng_flow", weights="random")
    assert preset.dim == 1024


@pytest.mark.parametrize(
    ("channels", "frames", "gmac"), [(3, 16, 27.83), (3, 64, 111.33), (2, 16, 25.63), (2, 64, 102.52)]
)
def test_arithmetic(channels, frames, gmac):
    """Counted as fvcore does, which gave these numbers: a batch norm costs two per value."""
    with torch.device("meta"):
        net, x = InceptionI3D(channels).eval(), torch.empty(1, channels, frames, 224, 224)
    norms = []
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.register_forward_hook(lambda _, __, out: norms.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    assert round((counter.get_total_flops() / 2 + 2 * sum(norms)) / 1e9, 2) == gmac


@pytest.mark.parametrize(
    ("frames", "windows"), [(9, 1), (16, 1), (17, 2), (24, 2), (25, 3), (64, 7)]
)  # T' = 1 for 9..16, 2 for 17..24, 7 for 64
def test_windows_of_time(frames, windows):
    with torch.device("meta"):
        net, x = InceptionI3D().eval(), torch.empty(1, 3, frames, 224, 224)
    shapes = []
    net.Mixed_5c.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    assert net(x).shape == (1, 1024)
    assert shapes == [(1, 1024, windows + 1, 7, 7)]


@pytest.mark.parametrize(("frames", "rule"), [(8, "same"), (9, "static")])
def test_shorter_clips_are_refused(frames, rule):
    with pytest.raises(ValueError, match="too short"):
        GHOSTS[rule](torch.empty(1, 3, frames, 32, 32, device="meta"))


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_the_head_s_mean_is_that_of_torch_s_pooling(steps):
    x = torch.randn(2, 5, steps, 7, 7, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.AvgPool3d((2, 7, 7), stride=1)(x).mean(dim=(2, 3, 4))
    torch.testing.assert_close(mean_of_windows(x), wanted)
    plain = x.mean(dim=(2, 3, 4))
    assert torch.allclose(wanted, plain, atol=1e-6) == (steps == 2)  # further steps: the edges count half
    assert mean_of_windows(x.bfloat16()).dtype == torch.float32


def test_the_epsilon_counts():
    x = clip(1, 3, 16, 32, 32)
    trained, port = (loaded(STATE, bn_eps=eps)(x) for eps in (1e-3, 1e-5))
    assert distance(port, trained) > 0.01
    assert distance(port, official_head(reference(STATE, x, eps=1e-5))[0]) < 1e-5


def test_static_padding_differs_where_four_does_not_divide_the_length():
    """Of the sizes 16, 8, 4, 2 of a 16-frame clip no stride leaves a rest; of 10, 5, ... one does, and of 20, 10, 5
    only the last, where both rules give the window of one step."""
    same, static = loaded(STATE), loaded(STATE, padding="static")
    for frames in range(10, 21):
        x = clip(1, 3, frames, 32, 32)
        assert torch.equal(same(x), static(x)) == (frames % 4 == 0), frames
    for size in (16, 8, 4, 224, 112, 56, 28, 14):
        assert same_padding(size, 3, 2) == (0, 1)
        assert same_padding(size, 7, 2) == (2, 3)


def test_folding_changes_rounding_only():
    x = clip(1, 3, 16, 32, 32)
    net = loaded(STATE)
    before = net(x)
    assert fold_batch_norms(net, (1, 3, 16, 224, 224)) == 57
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in net.modules())
    assert distance(net(x), before) < 1e-5


def test_bfloat16_is_near():
    x = clip(1, 3, 16, 48, 48)
    net = loaded(STATE)
    fold_batch_norms(net, tuple(x.shape))
    wanted = net(x)
    found = net.bfloat16()(x.bfloat16())
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, wanted).item() > 0.999
    assert distance(found, wanted) < 0.03  # 8 bits of mantissa through 22 layers


# -- its fast parts ----------------------------------------------------------------------------------------------------


def test_padding_of_the_stem_by_the_definition():
    """Sums written out: output o sees inputs from 2 o - before on; what lies outside is zero."""
    stem = Stem(2, "same").double()
    x = torch.randn(1, 2, 4, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = stem(x).detach().numpy()
    kernel, picture = stem.weight.detach().numpy(), x[0].numpy()
    sizes = picture.shape[1:]
    outputs = [math.ceil(n / 2) for n in sizes]
    assert found.shape == (1, 64, *outputs)
    before = [max((o - 1) * 2 + 7 - n, 0) // 2 for o, n in zip(outputs, sizes, strict=True)]
    wanted = np.zeros((64, *outputs))
    for place in np.ndindex(*outputs):
        for tap in np.ndindex(7, 7, 7):
            at = [2 * o - b + t for o, b, t in zip(place, before, tap, strict=True)]
            if all(0 <= i < n for i, n in zip(at, sizes, strict=True)):
                wanted[(slice(None), *place)] += kernel[(..., *tap)] @ picture[(slice(None), *at)]
    np.testing.assert_allclose(found[0], wanted, atol=1e-12)


@pytest.mark.parametrize("rule", ["same", "static"])
@pytest.mark.parametrize("width", [13, 14, 15, 16])
def test_paired_columns_give_the_same_sums(rule, width):
    stem = Stem(3, rule).double()
    x = clip(2, 3, 9, 10, width).double()
    pads = [2, 3] * 3
    wanted = F.conv3d(F.pad(x, pads), stem.weight, stride=2)
    torch.testing.assert_close(stem._paired(x, pads), wanted, atol=1e-12, rtol=0)


@given(st.integers(1, 60), st.sampled_from([(7, 2), (3, 2), (2, 2), (3, 1), (1, 1)]))
def test_same_padding(size, axis):
    kernel, stride = axis
    before, behind = same_padding(size, kernel, stride)
    assert (before, behind) == zeros_around(size, kernel, stride, "same")
    assert (size + before + behind - kernel) // stride + 1 == math.ceil(size / stride)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]),
    st.sampled_from(["same", "static"]),
)
def test_pools_pad_with_zeros_as_the_originals_do(sizes, axes, rule):
    kernel, stride = axes
    x = torch.rand(1, 2, *sizes, generator=torch.Generator().manual_seed(sum(sizes)))
    around = padded(x, kernel, stride, rule)
    if rule == "static" and any(n < k for n, k in zip(around.shape[2:], kernel, strict=True)):
        return  # too small for the old port
    wanted = F.max_pool3d(around, kernel, stride, ceil_mode=rule == "static")
    assert torch.equal(GHOSTS[rule]._pool(x, kernel, stride), wanted)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 3), *[st.integers(1, 6)] * 3), st.sampled_from([torch.float32, torch.bfloat16]))
def test_pooling_by_neighbours_is_max_pooling(shape, dtype):
    m, *sizes = shape
    x = torch.randn(m, *sizes, 4, generator=torch.Generator().manual_seed(m)).to(dtype).permute(0, 4, 1, 2, 3)
    kept = x.clone()
    found = max_pool_3x3x3(x)
    assert torch.equal(found, F.max_pool3d(x, 3, 1, 1))
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1)])
def test_the_convolution_is_torch_s_and_keeps_the_layout(kernel, stride, padding):
    conv = Conv3d(5, 6, kernel, stride, padding).requires_grad_(False)
    x = clip(1, 5, 4, 9, 7)
    found = conv(x)
    wanted = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding)
    assert distance(found, wanted) < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


# -- the presets -------------------------------------------------------------------------------------------------------

# (preset, resize, crops, frame rate, clip_len, rule for T, epsilon, padding), section by section from the projects
PRESETS = [
    ("i3d_rocng", "short256:pil_bilinear", "center_first", 10, None, 16, lambda n: n // 16, 1e-3, "same"),
    ("i3d_rocng_flow", "short256:pil_bilinear", "center_first", 10, None, 16, lambda n: (n - 1) // 16, 1e-3, "same"),
    ("i3d_xd", "short256:pil_bilinear", "center_first", 5, 24.0, 16, lambda n: (n - 1) // 16, 1e-3, "same"),
    ("i3d_xd_flow", "short256:pil_bilinear", "center_first", 5, 24.0, 16, lambda n: (n - 1) // 16, 1e-3, "same"),
    ("i3d_vf", "short256:pil_bilinear", "center_first", 1, None, 64, lambda n: (n - 1) // 64, 1e-5, "static"),
    ("i3d_vf_flow", "short256:pil_bilinear", "center_first", 1, None, 64, lambda n: (n - 1) // 64, 1e-5, "static"),
    ("i3d_urdmu", "340x256:pil_lanczos", "oversample", 10, None, 16, lambda n: -(-n // 16), 1e-5, "static"),
]


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row[0])
def test_presets(row):
    name, resize, order, crops, fps, clip_len, clips, eps, padding = row
    raft = {"flow_weights": "random"} if name == "i3d_vf_flow" else {}
    spec = plan(name, weights="random", **raft)
    assert (spec.backbone, spec.dim, spec.resize, spec.fps) == (name, 1024, resize, fps)
    assert spec.crops == (("center",) if crops == 1 else ORDERS[order][:crops])
    assert (spec.clip_len, spec.stride, spec.step, spec.color) == (clip_len, clip_len, 1, "rgb")
    assert (spec.options["bn_eps"], spec.options["padding"]) == (eps, padding)
    channels = 2 if name.endswith("flow") else 3
    assert spec.modality == ("flow" if channels == 2 else "rgb")
    assert spec.mean == spec.std == (127.5,) * channels  # x * 2 / 255 - 1
    for n in (*range(1, 70), 128, 129):
        assert len(spec.grid(n, fps=24.0)) == max(clips(n), 1), n


def test_the_flow_presets_name_their_flow():
    for name in ("i3d_rocng_flow", "i3d_xd_flow"):
        options = plan(name, weights="random").options
        assert (options["flow"], options["quantise"]) == ("tvl1", "denseflow")
    options = plan("i3d_vf_flow", weights="random", flow_weights="random").options
    assert (options["flow"], options["quantise"]) == ("raft", "round128")
    assert "flow" not in plan("i3d_rocng", weights="random").options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("i3d_rocng", {"clip_len": 8}, "needs clips of 9 frames or more, got clip_len=8"),
        ("i3d_rocng", {"clip_len": 9, "padding": "static"}, "padding=static needs clips of 10 frames"),
        ("i3d_rocng", {"padding": "valid"}, "padding must be one of same, static, got 'valid'"),
        ("i3d_rocng", {"bn_eps": 0.0}, "bn_eps must be a number such as 1e-3"),
        ("i3d_rocng_flow", {"flow": "pwc"}, "flow must be one of tvl1, dis, raft, raft_small, got 'pwc'"),
        ("i3d_rocng_flow", {"quantise": "jpeg"}, "quantise must be one of none, denseflow, round128, got 'jpeg'"),
    ],
)
def test_options_that_cannot_work(name, options, message):
    with pytest.raises(BackboneError, match=message):
        plan(name, weights="random", **options)


@pytest.mark.parametrize(("named", "classes"), [("ours", 400), ("theirs", 400), ("ours", 157)])
def test_a_preset_loads_a_file_and_feeds_the_net(tmp_path, named, classes):
    """The whole path for one centre crop; Charades' files have 157 classes."""
    ours, theirs = weights_of(3, classes=classes)
    torch.save(ours if named == "ours" else theirs, tmp_path / "i3d.pt")
    net = create("i3d_vf", weights=str(tmp_path / "i3d.pt"), clip_len=12, stride=12, bn_eps=1e-3, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (1, 12, 256, 260, 3), dtype=np.uint8)
    found = net.extract(frames, np.array([25.0]))
    x = torch.from_numpy(frames[:, :, 16:240, 18:242].astype(np.float64) * 2 / 255 - 1).permute(0, 4, 1, 2, 3).float()
    wanted = loaded(weights_of(3)[0], padding="static")(x)
    assert found.shape == (1, 1, 1024)
    assert distance(torch.from_numpy(found[0]), wanted) < 2e-5


def test_flow_enters_between_minus_one_and_one():
    pixels = np.zeros((1, 2, 4, 4, 2), np.float32)
    pixels[..., 0, :, 0], pixels[..., 1, :, 1], pixels[..., 2, :, 0] = 20, -20, 5
    for name in ("none", "denseflow", "round128"):
        net = create("i3d_rocng_flow", weights="random", quantise=name, device="cpu")
        x = net.normalise(torch.from_numpy(quantise(pixels, name)))
        assert x.shape == (1, 2, 2, 4, 4)
        step = 0 if name == "none" else 2 / 255
        wanted = torch.from_numpy(pixels / 20).permute(0, 4, 1, 2, 3)
        assert (x - wanted).abs().max() <= step
        assert x.abs().max() == 1
        zero = {"none": 0, "denseflow": -1 / 255, "round128": 1 / 255}[name]  # what no motion becomes
        assert x[0, 0, 0, 3, 3].item() == pytest.approx(zero, abs=1e-7)
        back = torch.from_numpy(dequantise(quantise(pixels, name), name)).permute(0, 4, 1, 2, 3) / 20
        assert (x - back).abs().max() <= step
        with pytest.raises(ValueError, match=f"quantise={name} takes flow as .*FlowReader"):
            net.normalise(torch.zeros(1, 2, 4, 4, 2, dtype=torch.uint8 if name == "none" else torch.float32))
        assert net.spec.std == ((20.0, 20.0) if name == "none" else (127.5, 127.5))


def test_too_fast_motion_counts_as_twenty_pixels():
    net = create("i3d_xd_flow", weights="random", quantise="none", device="cpu")
    assert net.normalise(torch.full((1, 2, 4, 4, 2), 37.5)).max() == 1


# -- with the published weights ----------------------------------------------------------------------------------------


def sample(stream):
    """DeepMind's example clip, already scaled, (1, C, 79, 224, 224)."""
    folder = os.environ.get("WSVAD_KINETICS_I3D")
    if not folder:
        pytest.skip("set WSVAD_KINETICS_I3D to the folder `data` of google-deepmind/kinetics-i3d")
    path = Path(folder) / f"v_CricketShot_g04_c01_{stream}.npy"
    if not path.is_file():
        pytest.skip(f"no {path.name} in $WSVAD_KINETICS_I3D")
    return torch.from_numpy(np.load(path)).float().permute(0, 4, 1, 2, 3)


def published_logits(stream, **options):
    path = find(f"i3d_{stream}_imagenet").path
    if not path.is_file():
        pytest.skip(f"no {path.name} in $WSVAD_WEIGHTS: wsvad weights fetch i3d_{stream}_imagenet")
    net = loaded(read(path), **options)
    return net.classify(net(sample(stream)))[0].double()


@pytest.mark.weights
def test_the_cricket_shot_of_the_original_s_readme():
    """Numbers printed in the README of google-deepmind/kinetics-i3d."""
    rgb, flow = published_logits("rgb"), published_logits("flow")
    logits = rgb + flow
    assert logits.norm().item() == pytest.approx(138.468643, abs=2e-3)
    top = logits.topk(5)
    np.testing.assert_allclose(top.values, [41.8137, 21.494, 20.1341, 19.2256, 18.9154], atol=1e-3)
    cricket = top.indices[0]
    assert rgb.softmax(0)[cricket].item() == pytest.approx(0.999997, abs=2e-6)
    assert rgb.softmax(0).topk(2).values[1].item() == pytest.approx(1.33535e-6, rel=0.01)
    np.testing.assert_allclose(flow.softmax(0).topk(2).values, [0.928604, 0.0406825], atol=1e-4)


@pytest.mark.weights
def test_the_cricket_shot_of_the_old_port_s_readme():
    """Numbers printed in kinetics_i3d_pytorch before its pull request 27: epsilon 1e-5 and static padding."""
    old = {"bn_eps": 1e-5, "padding": "static"}
    logits = published_logits("rgb", **old) + published_logits("flow", **old)
    np.testing.assert_allclose(logits.topk(3).values, [44.53513, 24.17096, 22.98754], atol=2e-3)
