"""torchvision's nets against torchvision itself: its forward passes, its transforms, what it says of its weights."""

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from extract.backbones import BackboneError, backbones, create
from extract.backbones import tv as presets
from extract.nets.tv import Mvit, ResNet18, S3d, Swin3d
from extract.shim import import_torchvision
from extract.weights import randomise

torchvision = import_torchvision()
from torchvision.models import video  # noqa: E402
from torchvision.models.video.mvit import MSBlockConfig, MViT  # noqa: E402

# frames, rate; tensors; MACs (10^9) as fvcore counts them, norms included, where the survey of features has them
# (extract.md 1.0 and 1.9: "Swin3D-T 88.06 @32", "S3D 18.07 @16", ...)
NETS = {
    "swin3d_t": (32, 2, 185, 88.06),
    "swin3d_s": (32, 2, 353, None),
    "swin3d_b": (32, 2, 353, 281.9),
    "s3d": (16, 2, 464, 18.07),
    "r3d_18": (16, 2, 122, None),
    "mc3_18": (16, 2, 122, None),
    "r2plus1d_18": (16, 2, 224, 40.6),
    "mvit_v2_s": (16, 4, 397, 64.5),
}
DIMS = {"swin3d_b": 1024, "s3d": 1024, "r3d_18": 512, "mc3_18": 512, "r2plus1d_18": 512}
KINDS = {"swin3d": Swin3d, "s3d": S3d, "r3d": ResNet18, "mc3": ResNet18, "r2plus1d": ResNet18, "mvit": Mvit}


def entry(name):
    """torchvision's own description of the published weights."""
    return torchvision.models.get_model_weights(name).DEFAULT


def scrambled(net, seed=0):
    """Every norm's statistics and every bias matter."""
    randomise(net, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.ndim == 1 and value.is_floating_point():
                value += torch.rand(value.shape, generator=generator) * (0.5 if name.endswith("var") else 0.1)
    return net.eval()


def assert_close(mine, theirs, tolerance=1e-4):
    np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=tolerance * theirs.abs().max().item())


def small_mvit():
    """Three blocks with all that MViTv2-S has: pooled keys, a wider middle, relative positions."""
    blocks = [
        MSBlockConfig(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
        MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    ]
    return MViT((32, 32), 8, blocks, True, False, True, True)


@pytest.mark.parametrize("name", ["swin3d_t", "s3d", "r3d_18", "mc3_18", "r2plus1d_18", "mvit"])
def test_features_and_logits_are_those_of_the_untouched_net(name):
    whole = scrambled(small_mvit() if name == "mvit" else getattr(video, name)())
    mine = KINDS[name.split("_")[0]](copy.deepcopy(whole)).eval()
    assert mine.state_dict().keys() == whole.state_dict().keys()  # the published names, the classifier's among them
    shape = {"s3d": (24, 72, 72), "swin3d_t": (10, 72, 72), "mvit": (8, 32, 32)}.get(name, (9, 40, 40))
    if name == "s3d":
        for net in (mine, whole):
            net.avgpool.kernel_size = (2, 2, 2)  # smaller, so that 72 pixels suffice and 2x2x2 positions remain
    classifier = next(m for m in reversed(list(whole.modules())) if isinstance(m, nn.Linear | nn.Conv3d))
    seen = []
    classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = whole(x)
        features = mine(x)
        assert_close(features, seen[0].flatten(2).mean(2) if name == "s3d" else seen[0])
        assert_close(mine.classify(features), logits)
    assert (logits[0] != logits[1]).all()  # nothing is averaged over the batch


@pytest.mark.parametrize("name", NETS)
def test_size_and_work_are_those_of_torchvision_and_the_survey(name):
    frames, rate, tensors, fvcore = NETS[name]
    preset, spec, meta = backbones.get(name), backbones.get(name).default_spec(), entry(name).meta
    maker = object.__new__(preset)
    maker.spec = spec
    with torch.device("cpu" if name == "mvit_v2_s" else "meta"):  # MViT reads numbers off tensors while it is made
        net = maker.build().eval().to("meta")

    assert (spec.clip_len, spec.step, spec.stride, spec.fps) == (frames, rate, frames * rate, 30.0)
    assert f"frame_rate={30 / rate:g}`" in meta["_docs"]  # what torchvision tests at
    assert preset.weight_files == (name,)
    assert len(net.state_dict()) == tensors
    assert preset.params_m == pytest.approx(meta["num_params"] / 1e6, abs=0.0005)

    norms = []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d | nn.LayerNorm):
            cost = 5 if isinstance(module, nn.LayerNorm) else 2
            module.register_forward_hook(lambda _, x, out, cost=cost: norms.append(cost * out.numel()))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        out = net(torch.empty(1, 3, frames, preset.crop_size, preset.crop_size, device="meta"))
    assert out.shape == (1, spec.dim)
    assert spec.dim == DIMS.get(name, 768)
    macs = counter.get_total_flops() / 2e9
    assert preset.gmac == pytest.approx(macs, abs=0.006)
    # torchvision counts a Swin on 16 frames
    assert preset.gmac == pytest.approx(meta["_ops"] * (2 if name.startswith("swin3d") else 1), abs=0.006)
    if fvcore:
        assert macs + sum(norms) / 1e9 == pytest.approx(fvcore, rel=2e-3)


@pytest.fixture(scope="module")
def clip():
    smooth = np.random.default_rng(5).integers(0, 256, (16, 30, 40, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC) for frame in smooth])


def transformed(name, clip):
    """Frames (T, H, W, 3) -> (1, 3, T, h, w) as torchvision's documented transform has it."""
    return entry(name).transforms()(torch.from_numpy(clip).permute(0, 3, 1, 2))[None]


@pytest.mark.parametrize("name", NETS)
def test_the_input_is_that_of_torchvisions_transform(name, clip):
    """Within the one grey level by which OpenCV's resize for bytes differs from torch's."""
    preset = object.__new__(backbones.get(name))
    preset.spec, preset._dtype = preset.recipe, torch.float32
    mine, theirs = preset.prepare(torch.from_numpy(clip)), transformed(name, clip)
    assert mine.shape == theirs.shape
    level = 1 / min(preset.spec.std)
    assert (mine - theirs).abs().max() <= level * 1.001
    assert (mine - theirs).abs().mean() < 0.2 * level
    upside_down = preset.prepare(torch.from_numpy(clip[:, ::-1].copy()))
    assert (upside_down - theirs).abs().mean() > 5 * level  # the picture is no constant


def test_a_preset_equals_torchvisions_transform_and_net(clip):
    """All of Net's steps, with folded norms, against torchvision's net on torchvision's transform."""
    net = create("r3d_18", weights="random:3", device="cpu", clip_len=4)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in net.net.modules())
    whole = video.r3d_18().eval()
    randomise(whole, 3)  # what "random:3" means
    whole.fc = nn.Identity()
    with torch.inference_mode():
        theirs = whole(transformed("r3d_18", clip[:4]))
    mine = torch.from_numpy(net.extract(clip[None, :4], np.array([30.0]))[:, 0])
    assert_close(mine, theirs, tolerance=5e-3)  # the grey level of the transforms
    assert mine.shape == (1, 512)


def test_the_shortest_clips():
    """S3D pools two maps of T / 8 frames; MViT's position table has one length; the others take a single frame."""
    assert presets.S3dNet.min_frames == 13
    net = S3d(video.s3d().to("meta")).eval()
    assert net(torch.empty(1, 3, 13, 224, 224, device="meta")).shape == (1, 1024)
    with pytest.raises(RuntimeError, match="smaller than kernel size"):
        net(torch.empty(1, 3, 12, 224, 224, device="meta"))
    with pytest.raises(BackboneError, match="s3d needs clips of 13 frames or more, got clip_len=12"):
        create("s3d", weights="random", clip_len=12)
    for length in (15, 17, 32):
        with pytest.raises(BackboneError, match=f"mvit_v2_s takes clips of 16 frames alone, got .*={length}"):
            create("mvit_v2_s", weights="random", clip_len=length)
    for kind, whole in ((Swin3d, video.swin3d_t()), (ResNet18, video.r2plus1d_18())):
        assert kind(whole.to("meta")).eval()(torch.empty(1, 3, 1, 112, 112, device="meta")).ndim == 2


def test_bfloat16_on_a_cpu_stays_near_float32():
    """AvgPool3d has no such kernel there."""
    net = S3d(scrambled(video.s3d())).eval()
    net.avgpool.kernel_size = (2, 2, 2)
    x = torch.randn(1, 3, 16, 72, 72, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        full = net(x)
        half = net.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert 0 < (half - full).norm() < 0.05 * full.norm()


def test_every_preset_of_the_file_is_tested_here():
    classes = [c for c in vars(presets).values() if isinstance(c, type) and issubclass(c, presets.Net)]
    assert {c.recipe.backbone for c in classes if hasattr(c, "recipe")} == set(NETS)
