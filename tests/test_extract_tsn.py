"""TSN's nets against a Caffe-like reference, torchvision's ResNet and published totals; what the presets feed them."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fvcore.nn import FlopCountAnalysis

from extract.backbones import BackboneError, backbones, create
from extract.catalogue import WeightsError
from extract.nets.bn_inception import BNInception, from_published
from extract.nets.resnet import ResNet50
from extract.shim import import_torchvision
from extract.weights import load_strict

HALVING = ("3c", "4e")  # Ioffe and Szegedy, figure 5: the blocks with stride 2, which pass their pool through
MAX_POOLED = ("3c", "4e", "5b")


def fill(net, seed=0):
    """Weights, biases and statistics such that every one of them shows in the features."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.ndim >= 2:
            value.normal_(std=math.sqrt(2 / value[0].numel()), generator=generator)
        elif name.endswith("weight"):
            value.uniform_(0.3, 1, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=0.1, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def rgb_net():
    return fill(BNInception())


def caffe_pool(x, kind, kernel, stride, padding=0):
    """Caffe's pooling, (N, C, h, w) numpy: sizes rounded up; a mean divides by the window cut at the padded border."""
    h, w = x.shape[2:]
    sizes = [math.ceil((size + 2 * padding - kernel) / stride) + 1 for size in (h, w)]
    out = np.zeros((*x.shape[:2], *sizes))
    for i, j in np.ndindex(*sizes):
        top, left = i * stride - padding, j * stride - padding
        area = (min(top + kernel, h + padding) - top) * (min(left + kernel, w + padding) - left)
        window = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
        out[:, :, i, j] = window.max(axis=(2, 3)) if kind == "max" else window.sum(axis=(2, 3)) / area
    return out


def reference(state, x):
    """(N, C, h, w) -> features and logits in float64, by the published key names."""
    state = {name: value.double() for name, value in state.items()}

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        y = F.conv2d(torch.from_numpy(x), weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)
        mean, var, gain, shift = (
            state[f"{name}_bn.{part}"].reshape(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.maximum(((y - mean) / (var + 1e-5).sqrt() * gain + shift).numpy(), 0)

    x = caffe_pool(conv("conv1_7x7_s2", x.double().numpy(), 2), "max", 3, 2)
    x = caffe_pool(conv("conv2_3x3", conv("conv2_3x3_reduce", x)), "max", 3, 2)
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name, stride = f"inception_{block}", 2 if block in HALVING else 1
        branches = [] if block in HALVING else [conv(f"{name}_1x1", x)]
        branches.append(conv(f"{name}_3x3", conv(f"{name}_3x3_reduce", x), stride))
        double = conv(f"{name}_double_3x3_1", conv(f"{name}_double_3x3_reduce", x))
        branches.append(conv(f"{name}_double_3x3_2", double, stride))
        pooled = caffe_pool(x, "max" if block in MAX_POOLED else "mean", 3, stride, 2 - stride)
        branches.append(pooled if block in HALVING else conv(f"{name}_pool_proj", pooled))
        x = np.concatenate(branches, axis=1)
    features = torch.from_numpy(x.mean(axis=(2, 3)))
    return features, features @ state["fc.weight"].T + state["fc.bias"]


def relative(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def save(path, state):
    torch.save(state, path)
    return str(path)


# ---- BN-Inception --------------------------------------------------------------------------------------------------


def test_bn_inception_equals_the_reference(rgb_net):
    x = torch.randn(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))  # odd maps within: windows are cut
    features, logits = reference(rgb_net.state_dict(), x)
    with torch.inference_mode():
        found = rgb_net(x[:, :, None])
        assert relative(found, features) < 1e-5
        assert relative(rgb_net.classify(found), logits) < 1e-5
        assert relative(rgb_net(x.transpose(0, 1)[None]), features.mean(0, keepdim=True)) < 1e-5  # two frames
    assert features.std() > 0.01


@pytest.mark.parametrize(
    ("make", "shape", "tensors", "millions", "gmac"),
    [
        # the official nets, instantiated, and counted by fvcore
        (BNInception, (1, 3, 1, 224, 224), 485, 11.295, 2.04),
        (ResNet50, (1, 3, 1, 224, 224), 320, 25.557, 4.11),
        # seven channels more in conv1: 7 x 64 x 7 x 7 weights, each used 112 x 112 times
        (lambda: BNInception(channels=2, stack=5), (1, 2, 5, 224, 224), 485, 11.317, 2.31),
    ],
)
def test_totals_are_the_official_nets(make, shape, tensors, millions, gmac):
    net = make().eval()
    assert len(net.state_dict()) == tensors
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 3) == millions
    count = FlopCountAnalysis(net, torch.zeros(shape))
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert round(count.total() / 1e9, 2) == gmac


# Output channels of 1x1; 3x3 reduce, 3x3; double 3x3 reduce, _1, _2; pool projection: the file of TSN's authors.
WIDTHS = {
    "3a": (64, 64, 64, 64, 96, 96, 32),
    "3b": (64, 64, 96, 64, 96, 96, 64),
    "3c": (None, 128, 160, 64, 96, 96, None),
    "4a": (224, 64, 96, 96, 128, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128, 128),
    "4c": (160, 128, 160, 128, 160, 160, 128),
    "4d": (96, 128, 192, 160, 192, 192, 128),
    "4e": (None, 128, 192, 192, 256, 256, None),
    "5a": (352, 192, 320, 160, 224, 224, 128),
    "5b": (352, 192, 320, 192, 224, 224, 128),
}
LAYERS = ("1x1", "3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2", "pool_proj")


def test_every_layer_is_as_wide_as_in_the_published_file(rgb_net):
    state = rgb_net.state_dict()
    found = {
        block: tuple(
            len(state[key]) if (key := f"inception_{block}_{layer}.weight") in state else None for layer in LAYERS
        )
        for block in WIDTHS
    }
    assert found == WIDTHS


def test_flow_goes_in_as_x1_y1_x2_y2():
    net = fill(BNInception(channels=2, stack=5))
    seen = []
    net.conv1_7x7_s2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    clip = torch.empty(3, 2, 10, 32, 32)
    for m, c, t in np.ndindex(3, 2, 10):
        clip[m, c, t] = 100 * m + 10 * t + c
    with torch.inference_mode():
        found = net(clip)
        one = net(clip[1:2, :, 5:])
    stacks = seen[0][:, :, 0, 0].tolist()
    assert stacks[0] == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert stacks[3] == [150, 151, 160, 161, 170, 171, 180, 181, 190, 191]
    assert len(stacks) == 6
    with torch.inference_mode():
        torch.testing.assert_close(found[1], (net(clip[1:2, :, :5]) + one)[0] / 2)
        with pytest.raises(RuntimeError, match="invalid for input"):
            net(clip[:, :, :7])  # no whole stacks: frames must not wander from clip to clip


def test_bn_inception_reads_every_published_naming(rgb_net):
    own = {k: v for k, v in rgb_net.state_dict().items() if not k.endswith("num_batches_tracked")}
    # TSN's authors saved the vectors of batch norms as rows
    authors = {k: v[None] if "_bn." in k else v for k, v in own.items()}
    cadene = {k.replace("fc.", "last_linear."): v for k, v in own.items()}
    checkpoint = {k.replace("fc.", "new_fc.") if k.startswith("fc.") else f"base_model.{k}": v for k, v in own.items()}
    for state in (own, authors, cadene, checkpoint):
        named = from_published(state)
        assert sorted(named) == sorted(own)
        assert all(torch.equal(named[key], own[key]) for key in own)
    odd = from_published({**own, "inception_6a_1x1.weight": own["fc.bias"]})
    with pytest.raises(WeightsError, match=r"unexpected: inception_6a_1x1\.weight"):
        load_strict(rgb_net, odd, where="odd")


# ---- ResNet-50 -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_net():
    import_torchvision()
    from torchvision.models import resnet50

    return fill(resnet50(num_classes=400))


def mmaction2_names(net):
    """Its module tree: a ConvModule for every pair of convolution and batch norm."""
    state = {}
    for name, value in net.state_dict().items():
        *path, layer, kind = name.split(".")
        if layer == "fc":
            key = f"cls_head.fc_cls.{kind}"
        elif path and path[-1] == "downsample":
            key = ".".join(["backbone", *path, "conv" if layer == "0" else "bn", kind])
        elif layer.startswith("bn"):
            key = ".".join(["backbone", *path, f"conv{layer[2:]}", "bn", kind])
        else:
            key = ".".join(["backbone", *path, layer, "conv", kind])
        state[key] = value
    return state


@pytest.mark.parametrize("names", ["mmaction2", "torchvision"])
def test_tsn_r50_equals_torchvision(torchvision_net, tmp_path, names):
    state = mmaction2_names(torchvision_net) if names == "mmaction2" else torchvision_net.state_dict()
    # names of mmaction2's modules
    assert names != "mmaction2" or {"backbone.conv1.conv.weight", "backbone.layer4.2.conv3.bn.running_var"} <= set(
        state
    )
    backbone = create("tsn_r50", weights=save(tmp_path / "r50.pth", {"state_dict": state}), device="cpu", clip_len=3)
    frames = np.random.default_rng(3).integers(0, 256, (3, 256, 341, 3), dtype=np.uint8)
    x = backbone.prepare(torch.from_numpy(frames))
    assert x.shape == (10, 3, 3, 224, 224)
    # ImageNet's mean and deviation, as torchvision's weights are fed: on 0..1; mmaction2's first crop is the top left
    wanted = frames[:, :224, :224].transpose(3, 0, 1, 2) / 255.0
    wanted = (wanted - np.reshape([0.485, 0.456, 0.406], (3, 1, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1, 1)
    )
    np.testing.assert_allclose(x[0].numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(x[1].numpy(), wanted[..., ::-1], atol=1e-5)
    # ... and its seventh the bottom right, which steps by whole quarters and misses the last column
    np.testing.assert_allclose(x[6, 0].numpy(), (frames[:, 32:, 116:340, 0] - 123.675) / 58.395, atol=1e-5)
    x = x[:2, :, :, :96, :96]
    with torch.inference_mode():
        logits = torch.stack([torchvision_net(clip.transpose(0, 1)).mean(0) for clip in x])  # the average consensus
        assert relative(backbone.net.classify(backbone.forward(x)), logits.double()) < 1e-5
    assert logits.std() > 0.01


def test_names_that_do_not_fit_are_refused(torchvision_net, tmp_path):
    state = mmaction2_names(torchvision_net)
    state["backbone.layer1.0.conv4.bn.weight"] = state.pop("backbone.layer1.0.conv3.bn.weight")
    says = "missing: layer1.0.bn3.weight; 1 unexpected: layer1.0.bn4.weight"
    with pytest.raises(WeightsError, match=says):
        create("tsn_r50", weights=save(tmp_path / "odd.pth", state), device="cpu")


# ---- the presets of BN-Inception -----------------------------------------------------------------------------------


def test_tsn_bninception_feeds_blue_green_red_by_its_recipe(rgb_net, tmp_path):
    checkpoint = {f"module.base_model.{k}": v for k, v in rgb_net.state_dict().items() if not k.startswith("fc.")}
    checkpoint |= {"module.new_fc.weight": torch.ones(101, 1024), "module.new_fc.bias": torch.zeros(101)}
    path = save(tmp_path / "tsn.pth.tar", {"epoch": 80, "state_dict": checkpoint})
    backbone = create("tsn_bninception", weights=path, crops="center,mirror_bottom_left", device="cpu")
    assert backbone.spec.color == "bgr"
    assert backbone.net.classify(torch.ones(1, 1024)).shape == (1, 101)
    frame = np.random.default_rng(4).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    small = cv2.resize(frame, (340, 256)).astype(np.float32) - np.array([104, 117, 128], np.float32)
    x = torch.from_numpy(np.stack([small[16:240, 58:282], small[32:, :224][:, ::-1]]).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(backbone.prepare(torch.from_numpy(frame[None]))[:, :, 0].numpy(), x.numpy())
    found = backbone.forward(x[:, :, None, :64, :64])
    assert relative(found, reference(rgb_net.state_dict(), x[:, :, :64, :64])[0]) < 1e-5


def test_mirrored_flow_points_the_other_way():
    backbone = create("tsn_bninception_flow", weights="random", crops="top_left,mirror_top_left", device="cpu")
    flow = np.random.default_rng(5).integers(0, 256, (5, 256, 340, 2), dtype=np.uint8)
    plain, mirrored = backbone.prepare(torch.from_numpy(flow)).numpy()
    cut = flow[:, :224, :224].astype(np.float32)
    np.testing.assert_array_equal(plain, cut.transpose(3, 0, 1, 2) - 128)
    np.testing.assert_array_equal(mirrored[0], (255 - cut[:, :, ::-1, 0]) - 128)
    np.testing.assert_array_equal(mirrored[1], cut[:, :, ::-1, 1] - 128)
    assert backbone.extract(flow[None], np.array([25.0])).shape == (1, 2, 1024)
    with pytest.raises(ValueError, match=r"takes flow in eight bits, got torch\.float32; .* quantise=denseflow"):
        backbone.extract(flow[None].astype(np.float32), np.array([25.0]))


def test_rgb_weights_start_a_flow_net_only_when_asked(rgb_net, tmp_path):
    rgb = save(tmp_path / "rgb.pth", rgb_net.state_dict())
    with pytest.raises(WeightsError, match=r"was given weights of an RGB net: .* inflate=yes"):
        create("tsn_bninception_flow", weights=rgb, device="cpu")
    started = create("tsn_bninception_flow", weights=rgb, device="cpu", inflate=True)
    x = torch.randn(1, 2, 5, 64, 64, generator=torch.Generator().manual_seed(2))
    # every filter answers to the sum of the ten maps by its mean over colours
    grey = x.sum(dim=(1, 2))[:, None].repeat(1, 3, 1, 1) / 3
    assert relative(started.forward(x), reference(rgb_net.state_dict(), grey)[0]) < 1e-5
    assert started.spec.options["inflate"] is True
    trained = save(tmp_path / "flow.pth", fill(BNInception(channels=2, stack=5)).state_dict())
    assert create("tsn_bninception_flow", weights=trained, device="cpu").spec.options["inflate"] is False
    with pytest.raises(WeightsError, match=r"of no RGB net: leave out inflate"):
        create("tsn_bninception_flow", weights=trained, device="cpu", inflate=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"clip_len": 12}, "clip_len must be a multiple, got 12"),
        ({"clip_len": 1}, "needs clips of 5 frames or more, got clip_len=1"),
        ({"flow": "farneback"}, "flow must be one of tvl1, .* got 'farneback'"),
        ({"quantise": "none"}, "quantise must be one of denseflow, round128, got 'none'"),
        ({"inflate": "maybe"}, "inflate of tsn_bninception_flow must be yes or no, got 'maybe'"),
    ],
)
def test_flow_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(BackboneError, match=says):
        create("tsn_bninception_flow", weights="random", device="cpu", **options)


@pytest.mark.parametrize(
    ("name", "clips", "crops"),
    [
        # one clip every 5 frames in the order of caffe.io.oversample; mmaction2's TenCrop is interleaved
        ("tsn_bninception", 21, ("top_left", "top_right", "center", "mirror_top_left")),
        ("tsn_bninception_flow", 21, ("top_left", "top_right", "center", "mirror_top_left")),
        ("tsn_r50", 7, ("top_left", "mirror_top_left", "bottom_left", "mirror_bottom_left")),
    ],
)
def test_the_recipes_are_the_published_ones(name, clips, crops):
    spec = backbones.get(name).default_spec()
    assert backbones.get(name).crop_order == ("tsn" if name == "tsn_r50" else "caffe")
    assert tuple(spec.crops[i] for i in (0, 1, 4, 5)) == crops
    grid = spec.grid(101)
    assert len(grid) == clips
    assert grid.frame_indices(clips - 1)[0] == (100 if spec.stride == 5 else 96)
