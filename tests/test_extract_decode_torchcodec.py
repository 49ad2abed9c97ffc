"""The reader by torchcodec asks it for every frame once, in order, by what its documentation promises."""

import sys
from dataclasses import dataclass
from types import ModuleType

import av
import numpy as np
import pytest
import torch

from extract.decode import DecodeError, VideoReader
from extract.pictures import open_video
from tests.helpers import number_of, numbered_frames, write_numbered, write_small
from tests.test_extract_decode import rotate


@dataclass
class FrameBatch:
    data: torch.Tensor  # (N, H, W, C) or (N, C, H, W) uint8, on the device
    pts_seconds: torch.Tensor  # (N,) float, on the CPU
    duration_seconds: torch.Tensor


class VideoDecoder:
    """What docs.pytorch.org/torchcodec says of torchcodec.decoders.VideoDecoder, and nothing else."""

    calls: list = []  # noqa: RUF012
    fail_at: int | None = None

    def __init__(
        self,
        source,
        *,
        stream_index=None,
        dimension_order="NCHW",
        num_ffmpeg_threads=1,
        device="cpu",
        seek_mode="exact",
    ):
        assert isinstance(source, str)
        assert seek_mode in ("exact", "approximate")
        assert num_ffmpeg_threads >= 0
        self.calls.append((source, device, seek_mode))
        self._order = dimension_order
        try:
            with av.open(source) as container:
                self._frames = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]
        except av.error.FFmpegError as error:
            raise RuntimeError(f"Could not open input file: {source} {error}") from error

    def __len__(self):
        return len(self._frames)

    def get_frames_in_range(self, start, stop, step=1):
        if not 0 <= start < len(self) or not start <= stop <= len(self) or step < 1:
            raise IndexError(f"Start index {start} is out of bounds")
        if self.fail_at is not None and stop > self.fail_at:
            raise RuntimeError("Could not push packet to decoder: Invalid data found\nmore lines")
        part = self._frames[start:stop:step]
        data = torch.from_numpy(np.stack([image for image, _ in part]))
        seconds = torch.tensor([time for _, time in part], dtype=torch.float64)
        return FrameBatch(data if self._order == "NHWC" else data.permute(0, 3, 1, 2), seconds, seconds * 0)


@pytest.fixture
def torchcodec(monkeypatch):
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = type("VideoDecoder", (VideoDecoder,), {"calls": [], "fail_at": None})
    package.decoders = decoders
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return decoders.VideoDecoder


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)


def read(path, **options):
    with open_video(path, decoder="torchcodec", **options) as reader:
        frames = list(reader)
    assert reader.num_frames == len(frames)
    return frames, reader


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_every_frame_once_in_order(tmp_path, torchcodec, count):
    path = write_numbered(tmp_path / "v.mp4", count)
    frames, reader = read(path, device="cpu")
    for frame, wanted in zip(frames, numbered_frames(count), strict=True):
        np.testing.assert_array_equal(frame, wanted)
    assert (reader.fps, reader.num_bytes, reader.lost, reader.notes) == (25.0, path.stat().st_size, 0, [])
    assert reader.times.count == count
    assert torchcodec.calls == [(str(path), "cpu", "exact")]


def test_colors_and_sizes_as_by_pyav(tmp_path, torchcodec):
    path = write_numbered(tmp_path / "v.mp4", 5)
    for options in ({"color": "bgr"}, {"color": "gray"}, {"resize": "short24:area"}, {"resize": "20x10:bicubic"}):
        frames, _ = read(path, **options)
        with VideoReader(path, **options) as reader:
            for frame, wanted in zip(frames, reader, strict=True):
                assert frame.shape == wanted.shape
                assert np.abs(frame.astype(int) - wanted).max() <= 2  # from RGB instead of the coded planes


def test_what_stops_it_is_said(tmp_path, torchcodec):
    path = write_small(tmp_path / "v.mp4", 80)
    torchcodec.fail_at = 40
    message = r"torchcodec stops after 32 frames \(Could not push packet to decoder: Invalid data found\); copy or "
    with pytest.raises(DecodeError, match=message):
        read(path)


def test_files_that_are_no_videos_do_not_reach_it(tmp_path, torchcodec):
    write_small(tmp_path / "target.mkv", 5)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile target.mkv\n")
    with pytest.raises(DecodeError, match="not a video"):
        read(tmp_path / "list.mp4")
    with pytest.raises(DecodeError, match="no such file"):
        read("http://127.0.0.1:9/v.mp4")
    assert torchcodec.calls == []


def test_rotated_videos_are_refused(tmp_path, torchcodec):
    path = write_numbered(tmp_path / "v.mp4", 3)
    rotate(path, (0, 1, -1, 0))
    with pytest.raises(DecodeError, match=r"its metadata turns it by 270 degrees.*leave --decoder out"):
        read(path)


def test_options_that_do_not_go_together(tmp_path, torchcodec):
    path = write_small(tmp_path / "v.mp4", 3)
    with pytest.raises(ValueError, match="damaged='keep' needs PyAV"):
        read(path, damaged="keep")
    with pytest.raises(ValueError, match="decoder must be one of pyav, torchcodec, nvdec, got 'decord'"):
        open_video(path, decoder="decord")


def test_without_it_the_message_says_what_to_install(tmp_path, absent):
    with pytest.raises(DecodeError, match=r"torchcodec: it .*; pip install torchcodec .*or leave --decoder out"):
        read(write_small(tmp_path / "v.mp4", 3))


def test_the_real_one_gives_the_same_frames(tmp_path):
    pytest.importorskip("torchcodec.decoders", exc_type=ImportError)
    path = write_small(tmp_path / "v.mp4", 70)
    frames, _ = read(path)
    with VideoReader(path) as reader:
        for frame, wanted in zip(frames, reader, strict=True):
            np.testing.assert_array_equal(frame, wanted)
    assert number_of(frames[69]) == 69


def test_nvdec_is_a_decoder_of_its_own(tmp_path, torchcodec):
    """Its pixels are others than those of torchcodec on a CPU, whose name means the CPU wherever the net runs."""
    path = write_numbered(tmp_path / "v.mp4", 5)
    for decoder, device in (("nvdec", "cuda:1"), ("torchcodec", "cuda:1"), ("torchcodec", "cpu")):
        with open_video(path, decoder=decoder, device=device) as reader:
            assert len(list(reader)) == 5
    assert [device for _, device, _ in torchcodec.calls] == ["cuda:1", "cpu", "cpu"]
    with pytest.raises(ValueError, match="nvdec wants a GPU, got device 'cpu'"):
        open_video(path, decoder="nvdec")
