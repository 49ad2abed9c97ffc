"""Flow has the right sign, size and number of frames, and its eight-bit forms are what nets were trained on."""

import importlib
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from extract import flow as flow_module
from extract import weights as weight_store
from extract.decode import VideoReader
from extract.flow import ALGORITHMS, QUANTISATIONS, ZERO_MOTION, FlowReader, dequantise, flow_algorithm, quantise
from extract.nets.raft import RaftFlow, _margins
from extract.resample import ResampledReader
from extract.shim import import_torchvision

H, W = 72, 96


def texture(seed=0, height=H + 80, width=W + 80):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5).astype(float)
    return np.clip((smooth - smooth.mean()) * 8 + 128, 0, 255).astype(np.uint8)


def moving(dx, dy, count=2, seed=0):
    """What is seen of a larger picture that moves by (dx, dy) whole pixels per frame: no border comes in."""
    picture = texture(seed)
    return [picture[40 - dy * i : 40 - dy * i + H, 40 - dx * i : 40 - dx * i + W].copy() for i in range(count)]


class Pictures:
    """A reader of frames that are there."""

    def __init__(self, frames):
        self.frames, self.path = frames, "here"
        self.num_frames, self.fps, self.num_bytes, self.lost, self.notes, self.closed = 0, 25.0, 7, 0, ["a note"], False

    def __iter__(self):
        for frame in self.frames:
            self.num_frames += 1
            yield frame

    def close(self):
        self.closed = True


def flows_of(frames, name="dis", **options):
    return list(FlowReader(Pictures(frames), flow_algorithm(name), **{"quantise": "none", **options}))


# -- the algorithms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tvl1", "dis"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-3, 0), (0, 2), (0, -2), (2, -3)])
def test_a_moving_picture(name, dx, dy):
    found = flows_of(moving(dx, dy), name)[0]
    assert found.shape == (H, W, 2)
    assert found.dtype == np.float32
    inner = found[12:-12, 12:-12]
    assert np.abs(np.median(inner, axis=(0, 1)) - (dx, dy)).max() < 0.1
    assert np.abs(inner - (dx, dy)).mean() < 0.3


@pytest.mark.parametrize("name", ["tvl1", "dis"])
def test_a_mirrored_video_moves_the_other_way(name):
    frames = moving(3, 1)
    one = flows_of(frames, name)[0]
    other = flows_of([f[:, ::-1].copy() for f in frames], name)[0][:, ::-1]
    difference = np.abs(one * (-1, 1) - other)[12:-12, 12:-12]
    assert np.median(difference) < 0.05  # neither method is exactly symmetric
    still = [frames[0], frames[0]]
    assert np.abs(flows_of(still, name)[0]).max() < 0.01


def test_the_two_agree():
    """As extract.md measured on a video of little motion: a mean distance of 0.15 to 0.18 pixels."""
    frames = moving(1, 1, 3)
    for a, b in zip(flows_of(frames, "tvl1"), flows_of(frames, "dis"), strict=True):
        assert np.linalg.norm(a - b, axis=2)[8:-8, 8:-8].mean() < 0.25


def test_tvl1_has_opencvs_defaults():
    """The parameters with which the published TV-L1 features were computed, read back from the object."""
    method = flow_algorithm("tvl1").method
    names = ("Tau", "Lambda", "Theta", "ScalesNumber", "WarpingsNumber", "Epsilon", "InnerIterations")
    more = ("OuterIterations", "ScaleStep", "Gamma", "MedianFiltering")
    found = [getattr(method, f"get{name}")() for name in (*names, *more)]
    assert found == pytest.approx([0.25, 0.15, 0.3, 5, 5, 0.01, 30, 10, 0.8, 0.0, 5])
    assert not method.getUseInitialFlow()


def test_flow_is_of_luma():
    """0.299 R + 0.587 G + 0.114 B: a channel that moves against the others hardly counts if it is blue."""
    there, back = moving(2, 0), moving(-2, 0)
    for i, share in ((0, 0.299), (1, 0.587), (2, 0.114)):
        only = np.zeros_like(there[0])
        only[..., i] = there[0][..., i]
        grey = flow_algorithm("dis").prepare(only)
        assert np.abs(grey - only[..., i] * share).max() <= 1
    mixed = [np.dstack([a[..., 0], a[..., 1], b[..., 2]]) for a, b in zip(there, back, strict=True)]
    assert np.median(flows_of(mixed)[0][..., 0]) == pytest.approx(2, abs=0.2)


def test_presets_and_unknown_names():
    assert set(ALGORITHMS) == {"tvl1", "dis", "raft", "raft_small"}
    fine = {
        name: flow_algorithm("dis", preset=name).method.getFinestScale() for name in ("ultrafast", "fast", "medium")
    }
    assert fine == {"ultrafast": 2, "fast": 2, "medium": 1}
    assert flow_algorithm("dis").method.getFinestScale() == 1
    with pytest.raises(ValueError, match=r"no flow algorithm called 'tvl'\. Did you mean 'tvl1'"):
        flow_algorithm("tvl")
    with pytest.raises(ValueError, match="preset must be one of ultrafast, fast, medium, got 'slow'"):
        flow_algorithm("dis", preset="slow")


# -- the stream -------------------------------------------------------------------------------------------------------


class Counting(flow_module.FlowAlgorithm):
    """Frames are told apart by their first pixel; the flow of a pair says which two it is of."""

    def __init__(self, batch):
        self.batch, self.prepared, self.pairs, self.held = batch, [], [], 0

    def prepare(self, frame):
        self.prepared.append(int(frame[0, 0, 0]))
        return int(frame[0, 0, 0])

    def flows(self, pictures):
        assert 2 <= len(pictures) <= self.batch + 1
        pairs = list(pairwise(pictures))
        self.pairs += pairs
        return [np.full((4, 6, 2), (a / 10, b / 10), np.float32) for a, b in pairs]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 9, 10])
def test_every_pair_once_and_the_last_repeated(count, batch):
    algorithm = Counting(batch)
    frames = [np.full((4, 6, 3), i, np.uint8) for i in range(count)]
    found = list(FlowReader(Pictures(frames), algorithm, quantise="none"))
    assert algorithm.prepared == list(range(count))
    assert algorithm.pairs == [(i, i + 1) for i in range(count - 1)]
    said = [tuple(np.round(f[0, 0] * 10).astype(int).tolist()) for f in found]
    assert said == ([*algorithm.pairs, algorithm.pairs[-1]] if count > 1 else [(0, 0)] * count)
    assert all(f.shape == (4, 6, 2) for f in found)


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_one_frame_does_not_move(name):
    (only,) = FlowReader(Pictures([np.zeros((4, 6, 3), np.uint8)]), Counting(1), quantise=name)
    assert only.dtype == (np.float32 if name == "none" else np.uint8)
    assert (only == ZERO_MOTION[name]).all()


def test_it_says_what_the_inner_reader_says():
    inner = Pictures(moving(1, 0, 3))
    with FlowReader(inner, flow_algorithm("dis"), quantise="round128") as reader:
        assert len(list(reader)) == 3
        assert (reader.num_frames, reader.fps, reader.num_bytes, reader.lost) == (3, 25.0, 7, 0)
        assert reader.notes == ["a note"]
    assert inner.closed
    with pytest.raises(AttributeError):
        _ = reader.nothing
    with pytest.raises(ValueError, match="quantise must be one of none, denseflow, round128, got 'jpeg'"):
        FlowReader(inner, flow_algorithm("dis"), quantise="jpeg")


def test_frames_are_resized_first(tmp_path):
    """Motion is in pixels of the small picture: half as large when the sides are halved."""
    frames = [cv2.resize(f, (2 * W, 2 * H), interpolation=cv2.INTER_CUBIC) for f in moving(2, 1)]
    found = flows_of(frames, resize=f"{W}x{H}:cv2_linear")[0]
    assert found.shape == (H, W, 2)
    assert np.median(found[8:-8, 8:-8], axis=(0, 1)) == pytest.approx((2, 1), abs=0.15)
    path = tmp_path / "v.mp4"
    write_video(path, frames * 2, crf=10)
    with VideoReader(path, resize=f"{W}x{H}:area") as reader:
        (first, *_) = FlowReader(reader, flow_algorithm("dis"), quantise="none")
    assert np.median(first[8:-8, 8:-8], axis=(0, 1)) == pytest.approx((2, 1), abs=0.15)


def test_resampled_frames_move_further(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, moving(1, 0, 12), fps=30, crf=10)
    with FlowReader(ResampledReader(VideoReader(path), 0.5), flow_algorithm("dis"), quantise="none") as reader:
        found = list(reader)
        assert (len(found), reader.num_frames) == (6, 12)
    assert [round(float(np.median(f[..., 0]))) for f in found] == [2] * 6


# -- eight bits -------------------------------------------------------------------------------------------------------


def test_quantised_by_the_definitions():
    """Slowly, in exact arithmetic: denseflow cuts (f + 20) 255/40 off, the other rounds 128 + 255/40 f."""
    values = np.array([-25, -20, -19.9, -1, -0.5, -0.01, 0, 0.01, 0.25, 1, 10, 19.9, 20, 25], np.float32)
    dense = [int((min(max(float(v), -20), 20) + 20) * 255 / 40) for v in values]
    middle = [min(round(128 + min(max(float(v), -20), 20) * 255 / 40), 255) for v in values]
    pairs = np.stack([values, values[::-1]], axis=-1)[None]
    np.testing.assert_array_equal(quantise(pairs, "denseflow")[0, :, 0], dense)
    np.testing.assert_array_equal(quantise(pairs, "denseflow")[0, :, 1], dense[::-1])
    np.testing.assert_array_equal(quantise(pairs, "round128")[0, :, 0], middle)
    np.testing.assert_array_equal(quantise(pairs, "none"), np.clip(pairs, -20, 20))
    assert (dense[0], dense[6], dense[-1]) == (0, 127, 255)
    assert (middle[6], middle[-1]) == (128, 255)


@pytest.mark.parametrize("name", QUANTISATIONS)
@given(values=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20))
def test_quantisation_keeps_order_and_is_undone(name, values):
    flow = np.sort(np.array(values, np.float32))[None, :, None].repeat(2, axis=2)
    found = quantise(flow, name)
    assert found.shape == flow.shape
    assert found.dtype == (np.float32 if name == "none" else np.uint8)
    assert (np.diff(found.astype(float), axis=1) >= 0).all()
    error = dequantise(found, name) - np.clip(flow, -20, 20)
    step = 40 / 255
    if name == "none":
        assert (error == 0).all()
    elif name == "denseflow":
        assert (error <= 1e-5).all()
        assert (error > -step - 1e-5).all()
    else:
        assert np.abs(error).max() <= step / 2 + 1e-5
    np.testing.assert_array_equal(quantise(dequantise(found, name) + (name == "denseflow") * 1e-4, name), found)


def test_unknown_quantisations():
    with pytest.raises(ValueError, match="quantise must be one of none, denseflow, round128, got 'bucket'"):
        quantise(np.zeros((1, 1, 2), np.float32), "bucket")
    with pytest.raises(ValueError, match="got 'bucket'"):
        dequantise(np.zeros((1, 1, 2), np.uint8), "bucket")


# -- RAFT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return RaftFlow("small", weights="random:3", device="cpu", iterations=2)


def test_raft_is_torchvisions_net_on_pixels_from_minus_one_to_one(small):
    """Against the net itself, built and called here, on pictures that need no padding."""
    import_torchvision()
    net = importlib.import_module("torchvision.models.optical_flow").raft_small(weights=None).eval()
    weight_store.randomise(net, 3)
    big = texture(1)
    before, after = big[:128, :136], big[2:130, 3:139]
    images = [torch.from_numpy(f.copy()).permute(2, 0, 1)[None] / 255 * 2 - 1 for f in (before, after)]
    with torch.no_grad():
        wanted = net(*images, num_flow_updates=2)[-1][0].permute(1, 2, 0).numpy()
    found = small.flows([small.prepare(before), small.prepare(after)])
    assert len(found) == 1
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 0


def test_raft_is_deterministic_and_pairs_do_not_meet(small):
    frames = [small.prepare(f) for f in moving(2, 0, 3)]
    both = small.flows(frames)
    again = small.flows(frames[1:])
    assert [f.shape for f in both] == [(H, W, 2)] * 2
    np.testing.assert_array_equal(both[1], small.flows(frames)[1])
    np.testing.assert_allclose(both[1], again[0], rtol=1e-3, atol=1e-3 * np.abs(again[0]).max())
    assert small.identity == "random:3"


class Places(torch.nn.Module):
    """Answers with the picture it got, so that places can be compared."""

    def forward(self, before, after, num_flow_updates):
        assert before.shape == after.shape
        assert before.shape[2] % 8 == before.shape[3] % 8 == 0
        assert min(before.shape[2:]) >= 128
        self.seen = before.shape[2:]
        return [torch.zeros(1), before[:, :2]]


@pytest.mark.parametrize(("height", "width"), [(72, 96), (128, 128), (129, 131), (240, 320), (5, 300)])
def test_the_padding_is_taken_off_again(height, width):
    raft = RaftFlow("small", weights="random", device="cpu", iterations=1)
    raft.net = Places()
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (found,) = raft.flows([raft.prepare(frame), raft.prepare(frame)])
    np.testing.assert_allclose(found, frame[..., :2] / 127.5 - 1, atol=1e-6)
    top, left, bottom, right = _margins(height, width)
    assert tuple(raft.net.seen) == (top + height + bottom, left + width + right)
    assert 0 <= bottom - top <= 1
    assert 0 <= right - left <= 1


def test_a_batch_is_always_full():
    """On a GPU: the last batch of a video is filled up, and only what was asked for comes back."""
    raft = RaftFlow("small", weights="random", device="cpu", iterations=1)
    raft.net, raft.batch = Places(), 4
    shapes = []
    raft.net.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    frames = [np.full((128, 128, 3), 10 * i, np.uint8) for i in range(7)]
    found = list(FlowReader(Pictures(frames), raft, quantise="none"))
    assert shapes == [4, 4]
    assert [round((float(f.mean()) + 1) * 127.5) for f in found] == [0, 10, 20, 30, 40, 50, 50]


def test_raft_as_an_algorithm(tmp_path):
    algorithm = flow_algorithm("raft_small", weights="random:1", device="cpu", iterations=1)
    found = list(FlowReader(Pictures(moving(1, 0, 2)), algorithm))
    assert [f.dtype for f in found] == [np.uint8] * 2
    np.testing.assert_array_equal(found[0], found[1])
    with pytest.raises(ValueError, match=r"RAFT compares RGB frames \(H, W, 3\), got \(72, 96\)"):
        algorithm.prepare(np.zeros((H, W), np.uint8))
    with pytest.raises(ValueError, match="at least one iteration, got 0"):
        flow_algorithm("raft_small", weights="random", iterations=0)
    with pytest.raises(ValueError, match=r"no weights file .*none\.pth"):
        flow_algorithm("raft", weights=str(tmp_path / "none.pth"))
