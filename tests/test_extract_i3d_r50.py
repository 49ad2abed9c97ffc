"""I3D ResNet-50 of Caffe2's zoo against a forward pass by the names of Caffe2's blobs, and against published totals."""

import functools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fvcore.nn import FlopCountAnalysis

from extract.backbones import BackboneError, backbones, create
from extract.catalogue import WeightsError
from extract.nets.i3d_r50 import I3DResNet50, NonLocal, from_caffe2
from extract.weights import load_strict, read

# (stage in Caffe2's count, width, frames that each block's first convolution sees), Wang et al. table 1 and the
# configuration of the zoo's 32 x 2 nets
STAGES = ((2, 64, (3, 3, 3)), (3, 128, (3, 1, 3, 1)), (4, 256, (3, 1, 3, 1, 3, 1)), (5, 512, (1, 3, 1)))
NON_LOCAL = ("3_1", "3_3", "4_1", "4_3", "4_5")


@functools.cache
def random_blobs(*, non_local):
    """A Caffe2 dictionary of float32 arrays by the names of the published pickles."""
    rng = np.random.default_rng(7)
    blobs = {}

    def conv(name, *shape):
        blobs[f"{name}_w"] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)

    def norm(name, width):
        blobs[f"{name}_s"] = rng.uniform(0.3, 1, width).astype(np.float32)
        blobs[f"{name}_b"] = rng.normal(0, 0.2, width).astype(np.float32)
        blobs[f"{name}_rm"] = rng.normal(0, 0.2, width).astype(np.float32)
        blobs[f"{name}_riv"] = rng.uniform(0.5, 2, width).astype(np.float32)
        blobs[f"{name}_riv"][:2], blobs[f"{name}_s"][:2] = 1e-5, 1e-3  # here the epsilon counts

    conv("conv1", 64, 3, 5, 7, 7)
    norm("res_conv1_bn", 64)
    inputs = 64
    for stage, width, frames in STAGES:
        for block, extent in enumerate(frames):
            name = f"res{stage}_{block}"
            if block == 0:
                conv(f"{name}_branch1", 4 * width, inputs, 1, 1, 1)
                norm(f"{name}_branch1_bn", 4 * width)
            conv(f"{name}_branch2a", width, inputs, extent, 1, 1)
            conv(f"{name}_branch2b", width, width, 1, 3, 3)
            conv(f"{name}_branch2c", 4 * width, width, 1, 1, 1)
            for letter, outputs in (("a", width), ("b", width), ("c", 4 * width)):
                norm(f"{name}_branch2{letter}_bn", outputs)
            inputs = 4 * width
            if non_local and f"{stage}_{block}" in NON_LOCAL:
                for part, shape in (("theta", (0.5, 1)), ("phi", (0.5, 1)), ("g", (0.5, 1)), ("out", (1, 0.5))):
                    out, into = (int(inputs * share) for share in shape)
                    conv(f"nonlocal_conv{stage}_{block}_{part}", out, into, 1, 1, 1)
                    blobs[f"nonlocal_conv{stage}_{block}_{part}_b"] = rng.normal(0, 0.1, out).astype(np.float32)
                    if part in ("theta", "phi"):  # attention that is neither even nor one position's
                        blobs[f"nonlocal_conv{stage}_{block}_{part}_w"] *= 0.3
                norm(f"nonlocal_conv{stage}_{block}_bn", inputs)
    blobs["pred_w"] = rng.normal(0, 0.05, (400, 2048)).astype(np.float32)
    blobs["pred_b"] = rng.normal(0, 0.1, 400).astype(np.float32)
    return blobs


def reference(blobs, x):
    """(M, 3, T, h, w) float64 -> features and logits, straight from the blobs."""
    blobs = {name: torch.from_numpy(blob).double() for name, blob in blobs.items()}

    def conv(x, name, stride=(1, 1, 1)):
        weight = blobs[f"{name}_w"]
        padding = tuple(size // 2 for size in weight.shape[2:])
        return F.conv3d(x, weight, blobs.get(f"{name}_b"), stride, padding)

    def norm(x, name):
        s, b, mean, var = (blobs[f"{name}_{kind}"].reshape(-1, 1, 1, 1) for kind in ("s", "b", "rm", "riv"))
        return (x - mean) / (var + 1.0000001e-5).sqrt() * s + b

    def attend(x, name):
        theta = conv(x, f"{name}_theta").flatten(2)
        small = F.max_pool3d(x, (1, 2, 2))
        phi, g = conv(small, f"{name}_phi").flatten(2), conv(small, f"{name}_g").flatten(2)
        share = (torch.einsum("mci,mcj->mij", theta, phi) / theta.shape[1] ** 0.5).softmax(dim=2)
        y = torch.einsum("mij,mcj->mci", share, g).reshape(len(x), -1, *x.shape[2:])
        return x + norm(conv(y, f"{name}_out"), f"{name}_bn")

    x = norm(conv(x, "conv1", (2, 2, 2)), "res_conv1_bn").relu()
    x = F.max_pool3d(x, (2, 3, 3), (2, 2, 2))
    for stage, _, frames in STAGES:
        for block in range(len(frames)):
            name = f"res{stage}_{block}"
            stride = (1, 2, 2) if stage > 2 and block == 0 else (1, 1, 1)
            y = norm(conv(x, f"{name}_branch2a"), f"{name}_branch2a_bn").relu()
            y = norm(conv(y, f"{name}_branch2b", stride), f"{name}_branch2b_bn").relu()
            y = norm(conv(y, f"{name}_branch2c"), f"{name}_branch2c_bn")
            x = norm(conv(x, f"{name}_branch1", stride), f"{name}_branch1_bn") if block == 0 else x
            x = (x + y).relu()
            if f"nonlocal_conv{stage}_{block}_g_w" in blobs:
                x = attend(x, f"nonlocal_conv{stage}_{block}")
        if stage == 2:
            x = F.max_pool3d(x, (2, 1, 1))
    features = x.mean(dim=(2, 3, 4))
    return features, features @ blobs["pred_w"].T + blobs["pred_b"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "non_local"])
def blobs(request):
    return random_blobs(non_local=request.param)


def is_non_local(blobs):
    return "nonlocal_conv3_1_g_w" in blobs


def write_pickle(path, blobs):
    """As Caffe2 wrote them: everything under "blobs", with momenta and where training stood."""
    beside = {"conv1_w_momentum": blobs["conv1_w"], "lr": np.array([1e-4], np.float32), "model_iter": 400000}
    with path.open("wb") as file:
        pickle.dump({"blobs": {**blobs, **beside}}, file, protocol=2)
    return path


def as_tensors(blobs):
    return {name: torch.from_numpy(blob) for name, blob in blobs.items()}


def relative(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


# ---- the net -------------------------------------------------------------------------------------------------------


def test_it_equals_a_forward_pass_by_blob_names(blobs):
    net = I3DResNet50(non_local=is_non_local(blobs)).eval()
    load_strict(net, from_caffe2(as_tensors(blobs)), where="blobs")
    x = torch.randn(2, 3, 16, 72, 56, generator=torch.Generator().manual_seed(1))
    features, logits = reference(blobs, x.double())
    with torch.inference_mode():
        found = net(x)
        assert relative(found, features) < 1e-4  # float32 through 50 layers
        assert relative(net.classify(found), logits) < 1e-4
        assert relative(net(x[:1]), features[:1]) < 1e-4
    assert features.std() > 0.01


def attention(inputs, outputs):
    """Multiply-accumulates of scaled_dot_product_attention: query by key, and their shares by value."""
    query, key, value = (value.type().sizes() for value in inputs[:3])
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]


@pytest.mark.parametrize(
    ("non_local", "frames", "tensors", "numbers", "gmac"),
    # the official modules, instantiated, and counted by fvcore
    [(False, 16, 320, 28_096_645, 16.49), (False, 32, 320, 28_096_645, 32.97), (True, 16, 385, None, 19.81)],
)
def test_totals_are_the_official_nets(non_local, frames, tensors, numbers, gmac):
    net = I3DResNet50(non_local=non_local).eval()
    state = net.state_dict()
    assert len(state) == tensors
    if numbers:
        assert sum(value.numel() for value in state.values()) == numbers
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert round(millions, 2) == (35.40 if non_local else 28.04)
    count = FlopCountAnalysis(net, torch.zeros(1, 3, frames, 224, 224)).set_op_handle(
        "aten::scaled_dot_product_attention", attention
    )
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert round(count.total() / 1e9, 2) == gmac


def test_seven_frames_are_the_fewest():
    net = I3DResNet50().eval()
    with torch.inference_mode():
        assert net(torch.ones(1, 3, 7, 32, 32)).isfinite().all()
        with pytest.raises(RuntimeError, match="too small"):
            net(torch.ones(1, 3, 6, 32, 32))


def test_a_non_local_block_equals_plain_loops():
    torch.manual_seed(3)
    block = NonLocal(6).eval()
    for tensor in (*block.parameters(), block.bn.running_mean):
        torch.nn.init.normal_(tensor, std=0.7)
    torch.nn.init.uniform_(block.bn.running_var, 0.5, 2)
    x = torch.randn(2, 6, 2, 3, 4)  # an odd height: the last row has no key
    own = {name: value.double().numpy() for name, value in block.state_dict().items()}

    def project(part, column):
        return own[f"{part}.weight"][:, :, 0, 0, 0] @ column + own[f"{part}.bias"]

    wanted = np.zeros(x.shape)
    for m, clip in enumerate(x.double().numpy()):
        keys, values = [], []
        for t in range(2):
            for left in (0, 2):
                pooled = clip[:, t, 0:2, left : left + 2].max(axis=(1, 2))
                keys.append(project("phi", pooled))
                values.append(project("g", pooled))
        for t, i, j in np.ndindex(2, 3, 4):
            query = project("theta", clip[:, t, i, j])
            weight = np.array([math.exp(float(query @ key) / math.sqrt(3)) for key in keys])
            mixed = sum(w * v for w, v in zip(weight / weight.sum(), values, strict=True))
            out = (project("out", mixed) - own["bn.running_mean"]) / np.sqrt(own["bn.running_var"] + 1e-5)
            wanted[m, :, t, i, j] = clip[:, t, i, j] + out * own["bn.weight"] + own["bn.bias"]
    with torch.inference_mode():
        np.testing.assert_allclose(block(x).numpy(), wanted, atol=1e-5, rtol=1e-5)


# ---- the presets ---------------------------------------------------------------------------------------------------


def centre(clip, mean, std):
    """uint8 (T, 256, 340, 3) -> what the net is fed of its middle, (1, 3, T, 224, 224) float64."""
    x = (clip[:, 16:240, 58:282].astype(np.float64) - mean) / std
    return torch.from_numpy(x.transpose(3, 0, 1, 2)[None])


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("i3d_rtfm", 114.75, 57.375), ("i3d_rtfm_nl", 114.75, 57.375), ("i3d_gowtham", 127.5, 127.5)],
)
def test_a_preset_reads_the_pickle_and_feeds_the_net_by_its_recipe(tmp_path, name, mean, std):
    own = random_blobs(non_local=name.endswith("_nl"))
    if name == "i3d_gowtham":  # a fine-tuned net's classes are its own
        own = {**own, "pred_w": own["pred_w"][:101], "pred_b": own["pred_b"][:101]}
    path = write_pickle(tmp_path / "net.pkl", own)
    backbone = create(name, weights=str(path), crops="1", device="cpu", clip_len=7)
    clip = np.random.default_rng(5).integers(0, 256, (7, 256, 340, 3), dtype=np.uint8)
    x = centre(clip, mean, std)
    np.testing.assert_allclose(backbone.prepare(torch.from_numpy(clip)).numpy(), x.numpy(), atol=1e-6)
    found = backbone.forward(x[..., :64, :64].float())
    features, logits = reference(own, x[..., :64, :64])
    assert relative(found, features) < 1e-4
    assert relative(backbone.net.classify(found), logits) < 1e-4


@pytest.fixture(scope="module")
def nets():
    """Without memory: strict loading looks at names and shapes first."""
    with torch.device("meta"):
        return {False: I3DResNet50(), True: I3DResNet50(non_local=True)}


def test_converted_weights_are_the_pickle_s(blobs, nets, tmp_path):
    """The names of Tushar-N's and Gowtham's .pth files, which have no num_batches_tracked."""
    pickled = from_caffe2(read(write_pickle(tmp_path / "net.pkl", blobs)))
    torch.save(pickled, tmp_path / "converted.pth")
    converted = from_caffe2(read(tmp_path / "converted.pth"))
    assert sorted(converted) == sorted(pickled)
    wanted = nets[is_non_local(blobs)].state_dict()
    assert sorted(converted) == sorted(k for k in wanted if not k.endswith("num_batches_tracked"))
    assert all(torch.equal(value, pickled[key]) for key, value in converted.items())
    # where the published table of names gives a blob for a key, or a shape
    for key, blob in (
        ("bn1.running_var", "res_conv1_bn_riv"),
        ("layer1.0.downsample.1.running_mean", "res2_0_branch1_bn_rm"),
        ("layer3.5.conv2.weight", "res4_5_branch2b_w"),
        ("layer4.2.bn3.bias", "res5_2_branch2c_bn_b"),
        ("fc.bias", "pred_b"),
    ):
        np.testing.assert_array_equal(converted[key].numpy(), blobs[blob])
    assert converted["conv1.weight"].shape == (64, 3, 5, 7, 7)
    assert converted["layer1.0.conv1.weight"].shape == (64, 64, 3, 1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b.pop("res3_2_branch2b_bn_riv"), "missing: layer2.2.bn2.running_var"),
        (lambda b: b.update(res6_0_branch2a_w=b["pred_b"]), "unexpected: res6_0_branch2a_w"),
        (lambda b: b.update(pred_c=b["pred_b"]), "unexpected: pred_c"),
        (lambda b: b.update(pred_w=b["pred_w"][:101]), r"fc.weight is \(101, 2048\), wanted \(400, 2048\)"),
    ],
)
def test_blobs_that_do_not_fit_are_refused_by_name(blobs, nets, change, says):
    changed = dict(blobs)
    change(changed)
    with pytest.raises(WeightsError, match=says):
        load_strict(nets[is_non_local(blobs)], from_caffe2(as_tensors(changed)), where="blobs")


def test_plain_and_non_local_weights_are_not_mixed_up(blobs, nets):
    says = "60 unexpected: layer2.1.nl" if is_non_local(blobs) else "60 missing: layer2.1.nl"
    with pytest.raises(WeightsError, match=says):
        load_strict(nets[not is_non_local(blobs)], from_caffe2(as_tensors(blobs)), where="blobs")


def test_too_short_clips_are_refused():
    with pytest.raises(BackboneError, match="i3d_rtfm needs clips of 7 frames or more, got clip_len=6"):
        create("i3d_rtfm", weights="random", device="cpu", clip_len=6)


@pytest.mark.parametrize(
    ("name", "first", "middle", "clips"),
    # the orders of torchvision.TenCrop and of oversample_data; ceil(n / 16) and floor(n / 16) clips
    [("i3d_rtfm", "top_left", 4, 7), ("i3d_rtfm_nl", "top_left", 4, 7), ("i3d_gowtham", "top_left", 2, 6)],
)
def test_the_recipes_are_the_published_ones(name, first, middle, clips):
    spec = backbones.get(name).default_spec()
    assert backbones.get(name).crop_order == ("oversample" if name == "i3d_gowtham" else "torchvision")
    assert (len(spec.crops), spec.crops[0], spec.crops[middle]) == (10, first, "center")
    assert len(spec.grid(100)) == clips  # 6.25 clips: ceil or floor
    assert (spec.color, spec.clip_len, spec.stride, spec.dim) == ("rgb", 16, 16, 2048)
    last = spec.grid(100).frame_indices(clips - 1)
    assert last.tolist() == ([96, 97, 98, 99] * 4 if spec.tail == "loop" else list(range(80, 96)))
