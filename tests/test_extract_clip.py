"""CLIP's image side: a numpy transformer in float64, published sizes, official key names, the choice of frames."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from data.types import FeatureSpec
from extract import weights
from extract.backbones import BackboneError, backbones
from extract.backbones.clip import Clip, ClipB16, ClipB32, ClipL14
from extract.nets.clip import TEXT_SIDE, Block, QuickGELU, VisionTransformer, visual_side

PRESETS = (ClipB16, ClipB32, ClipL14)
SMALL = {"patch": 8, "width": 24, "layers": 2, "dim": 10, "side": 32, "heads": 3}


def on_meta(preset):
    with torch.device("meta"):
        return VisionTransformer(
            patch=preset.patch, width=preset.width, layers=preset.layers, dim=preset.recipe.dim
        ).eval()


def filled(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return net.eval().requires_grad_(False)


def archive(net, *, layers=12, width=16):
    """A whole CLIP in OpenAI's key names: the image side of `net`, and a text side, in half precision."""
    state = {f"visual.{name}": x.half() for name, x in net.state_dict().items()}
    block = {
        **{f"ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    text = {f"transformer.resblocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    text |= {"positional_embedding": (77, width), "text_projection": (width, 10), "logit_scale": ()}
    text |= {"token_embedding.weight": (100, width), "ln_final.weight": (width,), "ln_final.bias": (width,)}
    return state | {name: torch.full(shape, 9.0) for name, shape in text.items()}


# -- sizes, from the reference's table and the paper's model list ----------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "tensors", "millions", "printed"),
    [(ClipB16, 152, 86.19, 16.87), (ClipB32, 152, 87.85, 4.37), (ClipL14, 296, 303.97, 77.8)],
)
def test_parameters_tensors_and_multiply_accumulates(preset, tensors, millions, printed):
    net = on_meta(preset)
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert preset.params_m == millions
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert net(torch.empty(2, 3, 1, 224, 224, device="meta")).shape == (2, preset.recipe.dim)
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(preset.gmac, abs=0.005)
    # fvcore prints less: it leaves out attention's two products, and takes 5 for each number a layer norm gives
    counts = {str(name): flops / 2 / 2 for name, flops in counter.get_flop_counts()["Global"].items()}
    tokens = (224 // preset.patch) ** 2 + 1
    norms = 5 * preset.width * ((2 * preset.layers + 1) * tokens + 1)
    seen = sum(n for name, n in counts.items() if "bmm" not in name) + norms
    assert seen / 1e9 == pytest.approx(printed, abs=0.05 if printed > 50 else 0.005)


def test_shapes_that_the_reference_names():
    found = {name: tuple(x.shape) for name, x in on_meta(ClipB16).state_dict().items()}
    assert found["conv1.weight"] == (768, 3, 16, 16)
    assert found["positional_embedding"] == (197, 768)
    assert found["transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert found["proj"] == (768, 512)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_official_preprocessing(preset):
    recipe = preset.default_spec()
    assert backbones.get(recipe.backbone) is preset
    assert (recipe.resize, recipe.crops, recipe.color) == ("short224:pil_bicubic", ("center",), "rgb")
    assert np.array(recipe.mean) / 255 == pytest.approx([0.48145466, 0.4578275, 0.40821073], abs=1e-9)
    assert np.array(recipe.std) / 255 == pytest.approx([0.26862954, 0.26130258, 0.27577711], abs=1e-9)
    assert (recipe.clip_len, recipe.stride, recipe.tail) == (16, 16, "repeat")


# -- the transformer -------------------------------------------------------------------------------------------------


def np_norm(x, state, name):
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def np_attention(x, state, heads):
    """(N, W), head by head and token by token."""
    N, W = x.shape
    size = W // heads
    q, k, v = np.split(x @ state["attn.in_proj_weight"].T + state["attn.in_proj_bias"], 3, axis=1)
    out = np.zeros((N, W))
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for n in range(N):
            logits = np.array([q[n, own] @ k[m, own] / math.sqrt(size) for m in range(N)])
            share = np.exp(logits - logits.max())
            out[n, own] = sum(s * v[m, own] for m, s in enumerate(share / share.sum()))
    return out @ state["attn.out_proj.weight"].T + state["attn.out_proj.bias"]


def np_block(x, state, heads):
    x = x + np_attention(np_norm(x, state, "ln_1"), state, heads)
    inner = np_norm(x, state, "ln_2") @ state["mlp.c_fc.weight"].T + state["mlp.c_fc.bias"]
    inner = inner / (1 + np.exp(-1.702 * inner))
    return x + inner @ state["mlp.c_proj.weight"].T + state["mlp.c_proj.bias"]


def np_net(frame, state, *, patch, layers, heads):
    """One frame (3, H, W) -> (D,)."""
    weight = state["conv1.weight"].reshape(len(state["conv1.weight"]), -1)
    tokens = [state["class_embedding"]]
    for y in range(0, frame.shape[1], patch):
        across = range(0, frame.shape[2], patch)
        tokens += [weight @ frame[:, y : y + patch, x : x + patch].reshape(-1) for x in across]
    x = np_norm(np.array(tokens) + state["positional_embedding"], state, "ln_pre")
    for i in range(layers):
        head = f"transformer.resblocks.{i}."
        x = np_block(x, {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}, heads)
    return np_norm(x[0], state, "ln_post") @ state["proj"]


def in_numpy(net):
    return {name: x.double().numpy() for name, x in net.state_dict().items()}


def test_a_block_equals_a_slow_one_in_float64():
    block = filled(Block(24, 3).double())
    x = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = np.stack([np_block(row, in_numpy(block), 3) for row in x.numpy()])
    np.testing.assert_allclose(block(x).numpy(), wanted, rtol=1e-9, atol=1e-11)


def test_the_net_equals_a_slow_one_in_float64():
    net = filled(VisionTransformer(**SMALL).double())
    x = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes = {key: SMALL[key] for key in ("patch", "layers", "heads")}
    wanted = [np.mean([np_net(clip[:, t], in_numpy(net), **sizes) for t in range(3)], axis=0) for clip in x.numpy()]
    np.testing.assert_allclose(net(x).numpy(), wanted, rtol=1e-8, atol=1e-10)


def test_published_widths_have_heads_of_64():
    assert [on_meta(p).transformer.resblocks[0].attn.heads for p in PRESETS] == [12, 12, 16]


def test_quick_gelu_is_not_gelu():
    x = torch.linspace(-4, 4, 9)
    # x / (1 + exp(-1.702 x)), by hand at 1 and -2
    assert QuickGELU()(x)[5].item() == pytest.approx(0.845796, abs=1e-6)
    assert QuickGELU()(x)[2].item() == pytest.approx(-0.064341, abs=1e-6)
    assert (QuickGELU()(x) - torch.nn.functional.gelu(x)).abs().max() > 0.01


# -- weights in OpenAI's key names -----------------------------------------------------------------------------------


def test_a_whole_archive_loads_strictly_in_float32():
    made = filled(VisionTransformer(**SMALL))
    state = archive(made)
    assert sum(not name.startswith("visual.") for name in state) == 150  # with B/16's 152 visual ones: 302
    state |= {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    found = visual_side(state)
    assert {x.dtype for x in found.values()} == {torch.float32}
    net = VisionTransformer(**SMALL)
    weights.load_strict(net, found, where="test.pt")
    for name, x in net.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), made.state_dict()[name].half().float().numpy(), err_msg=name)
    assert visual_side({k: v for k, v in state.items() if k.startswith("visual.")}).keys() == found.keys()


def test_the_text_side_is_exactly_the_known_names():
    assert set(archive(VisionTransformer(**SMALL))) - {
        "visual." + n for n in VisionTransformer(**SMALL).state_dict()
    } == (TEXT_SIDE - {"input_resolution", "context_length", "vocab_size"})


@pytest.mark.parametrize("name", ["transformer.resblocks.12.ln_1.weight", "conv1.weight", "visual_projection.weight"])
def test_a_tensor_of_neither_side_is_refused(name):
    state = archive(VisionTransformer(**SMALL)) | {name: torch.zeros(1)}
    with pytest.raises(weights.WeightsError, match=rf"1 unknown tensors, the first is '{name}'; wanted 'visual"):
        visual_side(state)


def test_missing_and_unexpected_visual_tensors_are_refused():
    """A ResNet of CLIP's has `visual.` tensors too: the strict load names them."""
    state = archive(VisionTransformer(**SMALL)) | {"visual.layer1.0.conv1.weight": torch.zeros(1)}
    del state["visual.proj"]
    with pytest.raises(weights.WeightsError, match=r"1 missing: proj; 1 unexpected: layer1\.0\.conv1\.weight"):
        weights.load_strict(VisionTransformer(**SMALL), visual_side(state), where="test.pt")


# -- frames ----------------------------------------------------------------------------------------------------------


class SmallClip(Clip):
    """CLIP with two blocks of 64 channels: the preset's whole way from frames to features in milliseconds."""

    recipe = FeatureSpec(**(ClipB16.recipe.__dict__ | {"backbone": "clip_small", "dim": 16}))
    patch, width, layers = 32, 64, 2


@pytest.fixture(scope="module")
def clip():
    """One clip of 16 frames that all differ, (1, 16, 60, 81, 3)."""
    return np.random.default_rng(0).integers(0, 256, (1, 16, 60, 81, 3), dtype=np.uint8)


def features(clip, frames, **options):
    return SmallClip(weights="random:3", device="cpu", frames=frames, **options).extract(clip, np.array([25.0]))[0]


def test_the_mean_is_the_mean_of_single_frames(clip):
    single = [features(clip[:, [t] * 16], "first") for t in range(16)]
    np.testing.assert_allclose(features(clip, "mean"), np.mean(single, axis=0), rtol=1e-4, atol=1e-5)


def test_which_frame_is_seen(clip):
    single = [features(clip[:, [t] * 16], "first") for t in range(16)]
    np.testing.assert_array_equal(features(clip, "first"), single[0])
    np.testing.assert_array_equal(features(clip, "middle"), single[8])
    np.testing.assert_array_equal(features(clip[:, :7], "middle", clip_len=7), single[3])


def test_permuting_frames_changes_single_ones_but_not_the_mean(clip):
    other = clip[:, np.random.default_rng(1).permutation(16)]
    np.testing.assert_allclose(features(other, "mean"), features(clip, "mean"), rtol=1e-4, atol=1e-5)
    assert np.abs(features(other, "first") - features(clip, "first")).max() > 1e-2
    assert np.abs(features(other, "middle") - features(clip, "middle")).max() > 1e-2


def test_the_choice_stands_in_the_spec():
    specs = {f: SmallClip(weights="random", device="cpu", frames=f).spec for f in ("middle", "first", "mean")}
    assert [s.options["frames"] for s in specs.values()] == list(specs)
    assert len({s.id for s in specs.values()}) == 3
    assert SmallClip(weights="random", device="cpu").spec == specs["middle"]
    with pytest.raises(BackboneError, match="frames must be one of middle, first, mean, got 'last'"):
        SmallClip(weights="random", device="cpu", frames="last")


def test_the_net_sees_what_the_official_preprocessing_gives(clip):
    """PIL's bicubic filter, short side 224: 81x60 -> 302x224; the centre at (302 - 224) / 2 = 39; then mean and std."""
    net = SmallClip(weights="random", device="cpu")
    image = Image.fromarray(clip[0, 8]).resize((302, 224), Image.Resampling.BICUBIC).crop((39, 0, 263, 224))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    wanted = (np.asarray(image) / 255 - mean) / std
    found = net.prepare(torch.from_numpy(clip[0])).numpy()
    assert found.shape == (1, 3, 1, 224, 224)
    off = np.abs(found[0, :, 0].transpose(1, 2, 0) - wanted) * std * 255
    assert off.max() <= 2.01  # grey levels: torch's kernel for bytes against PIL's
    assert (off > 0.01).mean() < 0.01
