"""What nets do on devices that this machine may not have, by stand-ins: which stream, which arithmetic, which batch."""

import contextlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from data.types import FeatureSpec, Video
from extract import device
from extract.backbones import Backbone, backbones, create
from extract.backbones.net import Net
from extract.device import torch_device
from extract.runner import extract_all
from extract.workers import Job, prepared
from tests.helpers import write_small


class Sums(nn.Module):
    def forward(self, x):
        return x.sum(dim=(3, 4)).mean(2)


class Plain(Net):
    """Sums of pixels, 3-d."""

    recipe = FeatureSpec(backbone="plain_net", dim=3, clip_len=2, stride=2, resize="8x8:area")

    def build(self):
        return Sums()


class Batched(Backbone):
    """Takes a batch, as nets on a GPU do, 1-d."""

    made: list[int] = []  # noqa: RUF012
    given: list[int] = []  # noqa: RUF012

    def __init__(self, *, batch=8):
        self.batch = batch
        self.made.append(batch)
        self.spec = FeatureSpec(backbone="batched", dim=1, clip_len=2, stride=2, resize="8x8:area")

    def extract(self, clips, fps):
        return np.zeros((len(clips), 1, 1), np.float32)

    def submit(self, clips, fps):
        self.given.append(len(clips))
        return super().submit(clips, fps)


@pytest.fixture(autouse=True)
def registered():
    backbones.names()
    backbones.register("plain_net")(Plain)
    backbones.register("batched")(Batched)
    yield
    for name in ("plain_net", "batched"):
        backbones._items.pop(name)


@pytest.fixture
def gpus(monkeypatch):
    """Two of them; `current` is the one that events and pinned memory belong to."""
    current = []

    @contextlib.contextmanager
    def chosen(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return current


CLIP = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)


def test_the_second_gpu_is_the_current_one_while_it_works(gpus, monkeypatch):
    """Event.record takes the current device's stream: on another one nobody waits for the copy to the host."""
    net = create("plain_net", weights="random", device="cpu")
    net.device = torch.device("cuda:1")

    def submit(clips):
        assert gpus == [torch.device("cuda:1")]
        assert torch.is_inference_mode_enabled()
        return lambda: np.zeros((len(clips), 1, 3), np.float32)

    monkeypatch.setattr(net, "_submit_to_device", submit)
    assert net.submit([CLIP], [25.0])().shape == (1, 1, 3)
    assert gpus == []


def test_a_mac_has_neither_pinned_memory_nor_events(monkeypatch):
    net = create("plain_net", weights="random", device="cpu")
    wanted = net.submit([CLIP, CLIP[::-1].copy()], [25.0] * 2)()
    real, sent = torch.Tensor.to, []

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.device) and args[0].type == "mps":
            sent.append(self.shape)
            return self
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("not on a Mac"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: pytest.fail("not on a Mac"))
    net.device = torch.device("mps")
    np.testing.assert_array_equal(net.submit([CLIP, CLIP[::-1].copy()], [25.0] * 2)(), wanted)
    assert sent == [CLIP.shape] * 2


def test_a_full_memory_is_let_go_of_before_the_next_attempt(monkeypatch):
    """The error's frames hold what was computed until then; while it is handled, that cannot be freed."""
    net = create("plain_net", weights="random", device="cpu")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    plain_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: plain_empty(*a, **k))
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    alive: list[bool] = []
    big: list[object] = []

    class Big:
        def __del__(self):
            big.clear()

    def forward(x):
        if len(x) > 1:
            activations = Big()
            big.append(id(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sum(dim=(3, 4)).mean(2)

    monkeypatch.setattr(net, "forward", forward)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(bool(big)))
    net.batch = 4
    found = net._submit_to_device([CLIP, CLIP])()
    np.testing.assert_array_equal(found[0], found[1])
    assert alive == [False, False]  # 4 -> 2 -> 1


def test_float32_is_float32_on_a_gpu_too(gpus):
    """cuDNN's default for convolutions is TF32, a factor's first 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert torch_device("cpu") == torch.device("cpu")
        assert torch.backends.cudnn.allow_tf32
        assert torch_device("cuda:1") == torch.device("cuda:1")
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
    with pytest.raises(ValueError, match="wanted cuda:2, found 2 CUDA devices"):
        device.torch_device("cuda:2")


@pytest.mark.parametrize(("backbone", "threads", "wanted"), [("motion", 0, 1), ("tiny", 2, 2)])
def test_workers_share_the_cores_for_optical_flow_too(backbone, threads, wanted):
    cv2.setNumThreads(3)
    try:
        with prepared(Job("store", backbone, {}, threads=threads)):
            assert cv2.getNumThreads() == wanted
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(-1)


@pytest.mark.parametrize(("batch", "made"), [(0, 8), (3, 3)])
def test_a_batch_is_what_the_net_is_made_for_too(tmp_path, batch, made):
    """Otherwise a net on a GPU fills up every batch to the size of its own."""
    path = write_small(tmp_path / "v.mp4", 60)
    Batched.made.clear()
    Batched.given.clear()
    report = extract_all([Video("v", str(path), "train", 0)], tmp_path / "s", "batched", batch=batch, workers=1)
    assert report.clips == 30
    assert Batched.made[-1] == made
    assert max(Batched.given) <= made
    other = extract_all([Video("v", str(path), "train", 0)], tmp_path / "m", "motion", batch=batch, workers=1)
    assert not other.failures  # it takes no batch, and is not asked to
