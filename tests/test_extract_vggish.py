"""VGGish against a forward pass written with plain numpy in TensorFlow's layout, channels last."""

import numpy as np
import pytest
import torch

from extract import logmel
from extract.audio import SoundRule
from extract.backbones import BackboneError, create
from extract.nets.vggish import VGGish

# Names and shapes of the published file: 18 tensors (reference, section 1.6).
PUBLISHED = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}


@pytest.fixture(scope="module")
def net():
    return create("vggish", weights="random:3", device="cpu")


def windows(count, seed=0):
    return (np.random.default_rng(seed).normal(size=(count, 15600)) * 0.1).astype(np.float32)


def slow_forward(state, example):
    """(96, 64) -> (128,), one (H, W, C) map after the other."""
    x = example[:, :, None].astype(np.float64)
    for name, pooled in [("0", 1), ("3", 1), ("6", 0), ("8", 1), ("11", 0), ("13", 1)]:
        weight, bias = (state[f"features.{name}.{kind}"].double().numpy() for kind in ("weight", "bias"))
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        y = np.zeros((*x.shape[:2], len(bias))) + bias
        for i in range(3):
            for j in range(3):
                y += padded[i : i + x.shape[0], j : j + x.shape[1]] @ weight[:, :, i, j].T
        x = np.maximum(y, 0)
        if pooled:
            x = np.maximum(np.maximum(x[::2, ::2], x[1::2, ::2]), np.maximum(x[::2, 1::2], x[1::2, 1::2]))
    x = x.reshape(-1)
    for name in "024":
        weight, bias = (state[f"embeddings.{name}.{kind}"].numpy() for kind in ("weight", "bias"))
        x = np.maximum(weight.astype(np.float64) @ x + bias, 0)
    return x


def test_against_a_forward_pass_in_another_layout(net):
    clips = windows(1)
    found = net.extract(clips, np.array([25.0]))[0, 0]
    wanted = slow_forward(net.net.state_dict(), logmel.log_mel(clips[0]))
    assert 0.2 < (wanted > 0).mean() < 0.8  # the last ReLU is there, and not everything is below it
    np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.max())  # float32 over 72 million weights


def test_names_shapes_and_sizes_are_the_published_ones(net):
    with torch.device("meta"):
        module = VGGish()
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {f"{n}.weight": s for n, s in PUBLISHED.items()} | {
        f"{n}.bias": s[:1] for n, s in PUBLISHED.items()
    }
    assert len(shapes) == 18
    assert round(sum(np.prod(s) for s in shapes.values()) / 1e6, 2) == net.params_m == 72.14
    places = [96 * 64, 48 * 32, 24 * 16, 24 * 16, 12 * 8, 12 * 8, 1, 1, 1]
    macs = sum(p * np.prod(s) for p, s in zip(places, PUBLISHED.values(), strict=True))
    assert macs / 1e9 == pytest.approx(net.gmac, abs=5e-4)


def test_features_of_several_clips(net):
    clips = windows(3, seed=1)
    together = net.extract(clips, np.full(3, 25.0))
    assert together.shape == (3, 1, 128)
    assert len(np.unique(together[:, 0], axis=0)) == 3
    for i in range(3):
        np.testing.assert_array_equal(net.extract(clips[i : i + 1], np.array([25.0]))[0], together[i])


def test_the_spec_states_the_sound(net):
    rule = SoundRule.of(net.spec)
    assert (rule.rate, rule.window, rule.align, rule.missing, rule.hop) == (16000, 15600, "end", "error", 15360)
    assert net.spec.modality == "audio"
    assert net.spec.crops == ("full",)
    assert net.spec.options == type(net).default_spec().options


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 32, 33, 100])
def test_there_is_a_window_for_every_clip_of_other_presets(net, frames):
    """Counts may differ by one between modalities: (n - 1) // 16, floor(n / 16) and ceil(n / 16) all go with it."""
    count = len(net.spec.grid(frames))
    for others in ((frames - 1) // 16, frames // 16, -(-frames // 16)):
        assert 0 <= count - max(others, 1) <= 1


def test_options():
    def message(**options):
        with pytest.raises(BackboneError) as caught:
            create("vggish", weights="random:0", device="cpu", **options)
        return str(caught.value)

    assert "trained with rate=16000, got 44100" in message(rate=44100)
    assert "trained with window=15600, got 16000" in message(window=16000)
    assert "resize=64x64:area is for pictures" in message(resize="64x64:area")
    assert "align must be one of end, start, center, hop, got 'front'" in message(align="front")
    assert "missing must be" in message(missing="skip")
    assert "no option 'aling'. Did you mean 'align'" in message(aling="end")


def test_windows_of_another_length_are_refused(net):
    with pytest.raises(ValueError, match=r"vggish wants float32 windows \(15600,\), got \(15360,\)"):
        net.extract(np.zeros((1, 15360), np.float32), np.array([25.0]))
