"""C3D against its published facts: Caffe's pooling windows, the mean cube at the crop's place, key names and totals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from extract.backbones import BackboneError, create, plan
from extract.backbones.c3d import C3DSports1M, read_cube
from extract.catalogue import WeightsError, find
from extract.nets.c3d import C3D, last_pool, rename
from extract.weights import load_strict

WIDTHS = (3, 64, 128, 256, 256, 512, 512, 512, 512)
LAYERS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
MMACTION2 = ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


def cube_of(seed=0):
    """A mean cube (1, 3, 16, 128, 171) in which every place has a value of its own."""
    return np.random.default_rng(seed).uniform(80, 120, (1, 3, 16, 128, 171)).astype(np.float32)


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def binaryproto(cube):
    """C3D's BlobProto: num, channels, length, height, width as fields 1 to 5, packed data as 6, an empty diff as 7."""
    head = b"".join(bytes([number << 3]) + varint(size) for number, size in enumerate(cube.shape, 1))
    data = cube.astype("<f4").tobytes()
    return head + bytes([6 << 3 | 2]) + varint(len(data)) + data + bytes([7 << 3 | 2, 0])


@pytest.fixture(scope="module")
def state():
    """Random weights under the names of c3d.pickle."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    shapes = {name: (o, i, 3, 3, 3) for name, i, o in zip(LAYERS, WIDTHS, WIDTHS[1:], strict=False)}
    for name, shape in (shapes | {"fc6": (4096, 8192), "fc7": (4096, 4096), "fc8": (487, 4096)}).items():
        found[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        found[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return found


def in_mmaction2(state, prefix=""):
    """The same weights as mmaction2 names them."""
    named = {}
    for ours, theirs in zip(LAYERS, MMACTION2, strict=True):
        for part in ("weight", "bias"):
            named[f"{prefix}{theirs}.conv.{part}"] = state[f"{ours}.{part}"]
    for key in ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"):
        named[f"{prefix}{key}"] = state[key]
    return named


def reference(state, x, windows):
    """(1, 3, 16, 112, 112) -> fc6 behind its ReLU and the logits; the last map is pooled window by window."""
    for name in LAYERS:
        x = torch.relu(F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
        if name in ("conv1", "conv2", "conv3b", "conv4b"):
            step = 1 if name == "conv1" else 2
            x = F.max_pool3d(x, (step, 2, 2))
    assert x.shape == (1, 512, 2, 7, 7)
    x = x.amax(dim=2)
    rows = torch.stack([x[:, :, window].amax(dim=2) for window in windows], dim=2)
    pooled = torch.stack([rows[..., window].amax(dim=3) for window in windows], dim=3)
    fc6 = torch.relu(F.linear(pooled.reshape(1, 8192), state["fc6.weight"], state["fc6.bias"]))
    fc7 = torch.relu(F.linear(fc6, state["fc7.weight"], state["fc7.bias"]))
    return fc6, F.linear(fc7, state["fc8.weight"], state["fc8.bias"])


WINDOWS = {"ceil": [[0, 1], [2, 3], [4, 5], [6]], "symmetric": [[0], [1, 2], [3, 4], [5, 6]]}


@pytest.mark.parametrize("pool5", ["ceil", "symmetric"])
def test_features_and_logits_by_the_prototxt(state, pool5):
    with torch.device("meta"):
        net = C3D(pool5=pool5)
    net = net.to_empty(device="cpu").eval().requires_grad_(False)
    load_strict(net, rename(state), where="the test's weights")
    x = torch.randn(1, 16, 112, 112, 3, generator=torch.Generator().manual_seed(1)).permute(0, 4, 1, 2, 3) * 50
    wanted, logits = reference(state, x, WINDOWS[pool5])
    found = net(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.max().item())
    torch.testing.assert_close(net.classify(found), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())
    assert (found == 0).float().mean() > 0.1  # behind the ReLU
    assert found.min() == 0


@pytest.mark.parametrize(("windows", "wanted"), [("ceil", [1, 3, 5, 6]), ("symmetric", [0, 2, 4, 6])])
def test_windows_of_the_last_pool_on_a_ramp(windows, wanted):
    """Caffe gives 1, 3, 5, 6 and the torch ports 0, 2, 4, 6."""
    ramp = torch.arange(7.0)
    across = last_pool(ramp.expand(1, 1, 2, 7, 7), windows)
    assert across.shape == (1, 1, 1, 4, 4)
    assert across[0, 0, 0, 0].tolist() == wanted
    assert last_pool(ramp[:, None].expand(1, 1, 2, 7, 7), windows)[0, 0, 0, :, 0].tolist() == wanted


def test_totals():
    with torch.device("meta"):
        net, x = C3D(), torch.empty(1, 3, 16, 112, 112)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = net.classify(net(x))
    assert logits.shape == (1, 487)
    assert round(counter.get_total_flops() / 2e9, 2) == C3DSports1M.gmac == 38.55
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == C3DSports1M.params_m == 79.99
    assert len(net.state_dict()) == 22
    with pytest.raises(ValueError, match="takes clips"):
        net(torch.empty(1, 3, 16, 128, 171, device="meta"))


def test_the_names_of_mmaction2(state):
    plain = rename(in_mmaction2(state))
    assert {k for k in state if "fc8" not in k} == set(plain)
    assert all(plain[k] is state[k] for k in plain)
    head = {"cls_head.fc_cls.weight": torch.zeros(101, 4096), "cls_head.fc_cls.bias": torch.zeros(101)}
    whole = rename(in_mmaction2(state, "backbone.") | head)
    assert set(whole) == set(state)
    assert whole["fc8.weight"].shape == (101, 4096)


# -- the preset --------------------------------------------------------------------------------------------------------


def test_the_whole_path_with_the_cube(state, tmp_path, monkeypatch):
    """From a frame of 171 x 128 in BGR: minus the cube, then the crop, from row 8 and column 29; mmaction2's file."""
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    torch.save(in_mmaction2(state), tmp_path / "c3d.pth")
    cube = cube_of()
    with find("c3d_mean_cube").path.open("wb") as file:
        np.save(file, cube)
    net = create("c3d_sports1m", weights=str(tmp_path / "c3d.pth"), device="cpu")
    assert net.spec.options["mean"] == "cube"
    assert len(net.spec.options["mean_cube"]) == 64
    assert net.spec.mean == ()
    frames = np.random.default_rng(1).integers(0, 256, (1, 16, 128, 171, 3), dtype=np.uint8)
    whole = frames[0].astype(np.float32).transpose(3, 0, 1, 2) - cube[0]
    x = torch.from_numpy(whole[None, :, :, 8 : 8 + 112, 29 : 29 + 112].copy())
    wanted, _ = reference(state, x, WINDOWS["ceil"])
    found = torch.from_numpy(net.extract(frames, np.array([25.0]))[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.max().item())
    with pytest.raises(ValueError, match=r"no classifier \(fc8\)"):
        net.net.classify(found)


class Small(C3DSports1M):
    """The preset without its eighty million parameters: what goes into the net is looked at."""

    def build(self):
        super().build()
        return torch.nn.Identity()


def test_every_crop_takes_the_mean_of_its_own_place(tmp_path, monkeypatch):
    monkeypatch.setattr("extract.backbones.c3d.C3D", lambda pool5: None)
    cube = cube_of(3)
    (tmp_path / "mean.binaryproto").write_bytes(binaryproto(cube))
    net = Small(weights="random", mean=str(tmp_path / "mean.binaryproto"), crops="10", device="cpu")
    assert net.spec.options["mean"] == "cube"  # and not the file's path, which is another on another machine
    frames = np.random.default_rng(1).integers(0, 256, (16, 128, 171, 3), dtype=np.uint8)
    whole = frames.astype(np.float32).transpose(3, 0, 1, 2) - cube[0]
    places = [(8, 29), (0, 0), (0, 59), (16, 0), (16, 59)]
    cut = [whole[:, :, top : top + 112, left : left + 112] for top, left in places]
    wanted = np.stack(cut + [part[..., ::-1] for part in cut])
    np.testing.assert_array_equal(net.prepare(torch.from_numpy(frames)).numpy(), wanted)


def test_an_untrained_net_takes_the_averages_and_says_so(monkeypatch):
    monkeypatch.setattr("extract.backbones.c3d.C3D", lambda pool5: None)
    net = Small(weights="random", device="cpu")
    assert net.spec == plan("c3d_sports1m", weights="random")
    assert net.spec.options["mean"] == "channels"
    assert net.spec.mean == (90.25, 97.66, 101.41)  # blue, green, red
    assert (net.spec.color, net.spec.resize, net.spec.crops) == ("bgr", "171x128:cv2_linear", ("center",))
    frames = np.random.default_rng(1).integers(0, 256, (16, 128, 171, 3), dtype=np.uint8)
    wanted = frames[:, 8:120, 29:141].astype(np.float32) - np.array([90.25, 97.66, 101.41], np.float32)
    np.testing.assert_array_equal(net.prepare(torch.from_numpy(frames))[0].numpy(), wanted.transpose(3, 0, 1, 2))


def test_trained_weights_want_the_cube(tmp_path, monkeypatch):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    (tmp_path / "c3d.pickle").write_bytes(b"never read by plan")
    weights = str(tmp_path / "c3d.pickle")
    with pytest.raises(WeightsError, match=r"fetch c3d_mean_cube`, or pass mean=FILE .*mean=channels"):
        plan("c3d_sports1m", weights=weights)
    with pytest.raises(WeightsError, match="none for mean=chanels"):
        plan("c3d_sports1m", weights=weights, mean="chanels")
    assert plan("c3d_sports1m", weights=weights, mean="channels").mean == (90.25, 97.66, 101.41)
    with find("c3d_mean_cube").path.open("wb") as file:
        np.save(file, cube_of())
    first = plan("c3d_sports1m", weights=weights)
    with find("c3d_mean_cube").path.open("wb") as file:
        np.save(file, cube_of(1))
    assert first != plan("c3d_sports1m", weights=weights)  # another cube, other features
    assert plan("c3d_sports1m", weights=weights, mean="channels", resize="128x128:cv2_linear")
    with pytest.raises(BackboneError, match="mean cube is of 171x128 pixels, got resize=short128:cv2_linear"):
        plan("c3d_sports1m", weights=weights, resize="short128:cv2_linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_len": 8}, "needs clips of 16 frames or more, got clip_len=8"),
        ({"clip_len": 32}, "takes clips of 16 frames, got clip_len=32"),
        ({"pool5": "floor"}, "pool5 must be one of ceil, symmetric, got 'floor'"),
        ({"mean": "random"}, "mean must be cube, channels or a file, got 'random'"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(BackboneError, match=message):
        plan("c3d_sports1m", weights="random", **options)


def test_cubes_are_read_from_either_format(tmp_path):
    cube = cube_of(5)
    (tmp_path / "a.binaryproto").write_bytes(binaryproto(cube))
    np.save(tmp_path / "a.npy", cube)
    np.save(tmp_path / "b.npy", cube[0].astype(np.float64))
    for name in ("a.binaryproto", "a.npy", "b.npy"):
        np.testing.assert_array_equal(read_cube(tmp_path / name), cube[0])


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "nan", "pickle", "empty"])
def test_what_is_no_cube_is_refused(tmp_path, damage):
    path = tmp_path / "mean"
    if damage in ("shape", "nan", "pickle"):
        cube = {"shape": cube_of()[..., :112], "nan": cube_of() * np.nan, "pickle": np.array([{}], dtype=object)}[
            damage
        ]
        with path.open("wb") as file:
            np.save(file, cube, allow_pickle=True)
    else:
        whole = binaryproto(cube_of())
        path.write_bytes({"cut": whole[:-100], "text": b"<html>404</html>", "empty": b""}[damage])
    with pytest.raises(WeightsError, match="mean cube"):
        read_cube(path)
