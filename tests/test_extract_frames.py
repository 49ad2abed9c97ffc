"""Folders of pictures are read as the video they were: same frames, same resizing, and refused by name when broken."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.store import FeatureStore
from data.types import Video
from extract.backbones import create
from extract.decode import DecodeError, VideoReader
from extract.pictures import FolderReader, open_video
from extract.runner import extract_all
from extract.video import extract_video
from tests.helpers import number_of, numbered_frames, write_numbered


def write(path: Path, frame, *options: int) -> Path:
    """A picture of an RGB or gray frame, by another library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), frame[..., ::-1] if frame.ndim == 3 else frame, list(options))
    return path


def folder(root: Path, count: int = 20, name: str = "{:03d}.png", first: int = 0, **size) -> Path:
    for i, frame in enumerate(numbered_frames(count, **size)):
        write(root / name.format(i + first), frame)
    return root


def frames_of(path, **options):
    with open_video(path, **options) as reader:
        frames = list(reader)
    assert reader.num_frames == len(frames)
    return frames


def assert_refused(path, reason):
    with pytest.raises(DecodeError, match=reason) as caught, open_video(path) as reader:
        list(reader)
    assert str(caught.value).startswith(f"{path}: ")
    assert "again" in str(caught.value) or "correct its path" in str(caught.value)


# -- right frames, right pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first"), [("{:03d}.png", 0), ("{}.png", 1), ("frame 2_{}.x.PNG", 95), ("{:05d}.tif", 7), ("{}.bmp", 0)]
)
def test_every_picture_once_in_numeric_order_with_its_pixels(tmp_path, name, first):
    found = frames_of(folder(tmp_path / "v", 21, name, first))
    assert [number_of(f) for f in found] == list(range(21))
    for frame, wanted in zip(found, numbered_frames(21), strict=True):
        np.testing.assert_array_equal(frame, wanted)


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("resize", ["none", "20x10:area", "short24:bilinear", "short100:bicubic"])
def test_as_the_video_of_the_same_frames(tmp_path, color, resize):
    video = write_numbered(tmp_path / "v.mp4", 6)
    pictures = folder(tmp_path / "v", 6)
    options = {"color": color, "resize": resize}
    for picture, frame in zip(frames_of(pictures, **options), frames_of(video, **options), strict=True):
        assert (picture.shape, picture.dtype) == (frame.shape, frame.dtype)
        # planes of green, blue, red in the video, RGB in the picture: the scaler rounds them at other places
        assert np.abs(picture.astype(int) - frame).max() <= 2


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".tif", 0), (".bmp", 0), (".jpg", 6)])
@pytest.mark.parametrize("gray", [False, True])
def test_against_another_reader(tmp_path, suffix, tolerance, gray):
    """OpenCV's; JPEG decoders differ in how they widen the chroma."""
    smooth = cv2.resize(next(numbered_frames(1, 6, 8)), (64, 48), interpolation=cv2.INTER_CUBIC)
    path = write(tmp_path / "v" / f"1{suffix}", smooth[:, :, 1] if gray else cv2.GaussianBlur(smooth, (0, 0), 8))
    (found,) = frames_of(tmp_path / "v")
    assert np.abs(found.astype(int) - cv2.imread(str(path))[:, :, ::-1]).max() <= tolerance
    if gray:
        (found,) = frames_of(tmp_path / "v", color="gray")
        assert np.abs(found.astype(int) - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).max() <= max(tolerance, 1)


def test_what_is_no_picture_is_passed_over(tmp_path):
    path = folder(tmp_path / "v", 5)
    for name in ("._001.png", ".DS_Store", "Thumbs.db", "labels.txt", "006"):
        (path / name).write_bytes(b"x")
    (path / "deeper.png").mkdir()
    assert len(frames_of(path)) == 5


@pytest.mark.parametrize("name", ["v=a#1?b%20 %03d__.x", "http:x", "-i", "\u4e2d*"])
def test_a_name_is_a_name(tmp_path, name):
    path = folder(tmp_path / name, 3, "%03d#{}.png")
    assert [number_of(f) for f in frames_of(path)] == [0, 1, 2]


def test_content_counts_and_not_the_suffix(tmp_path):
    path = folder(tmp_path / "v", 3)
    (path / "001.png").rename(path / "001.jpg")
    assert [number_of(f) for f in frames_of(path)] == [0, 1, 2]


def test_a_reader_for_each_kind(tmp_path):
    video, pictures = write_numbered(tmp_path / "v.mp4", 3), folder(tmp_path / "v", 3)
    with open_video(video) as one, open_video(str(pictures)) as other:
        assert (type(one), type(other)) == (VideoReader, FolderReader)
        assert (one.fps, other.fps) == (25.0, None)
        assert one.num_bytes == video.stat().st_size
        assert other.num_bytes == sum(p.stat().st_size for p in pictures.iterdir())


# -- broken folders ---------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    assert_refused(tmp_path, "the folder holds no pictures; correct its path")
    assert_refused(tmp_path / "nope", "no such file")
    with pytest.raises(DecodeError, match="no such folder"):
        FolderReader(tmp_path / "nope")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.9, 0.99])
def test_a_truncated_picture(tmp_path, suffix, part):
    path = folder(tmp_path / "v", 4, "{}." + suffix)
    picture = path / f"2.{suffix}"
    picture.write_bytes(picture.read_bytes()[: int(picture.stat().st_size * part)])
    assert_refused(path, rf"2\.{suffix} (is empty \(0 bytes\)|is no JPEG|is truncated|cannot be decoded)")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_damaged_picture(tmp_path, suffix):
    path = folder(tmp_path / "v", 4, "{}." + suffix)
    raw = bytearray((path / f"2.{suffix}").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 50] = b"\xff" * 50
    (path / f"2.{suffix}").write_bytes(raw)
    assert_refused(path, rf"2\.{suffix} cannot be decoded")


@pytest.mark.parametrize(
    "content", [b"404 not found\n", b"<svg/>", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"]
)
def test_text_named_jpg(tmp_path, content):
    path = folder(tmp_path / "v", 3)
    (path / "003.jpg").write_bytes(content)
    assert_refused(path, r"003\.jpg (is no JPEG, PNG, TIFF or BMP|cannot be decoded|holds 0 pictures)")


def test_a_size_that_changes(tmp_path):
    path = folder(tmp_path / "v", 4)
    write(path / "004.png", np.zeros((10, 20, 3), np.uint8))
    assert_refused(path, r"004\.png is 20x10, 000\.png is 64x48; copy or download the folder again")


def test_a_missing_picture(tmp_path):
    path = folder(tmp_path / "v", 9)
    (path / "004.png").unlink()
    assert_refused(path, r"005\.png follows 003\.png: pictures between them are missing")


def test_a_number_twice(tmp_path):
    path = folder(tmp_path / "v", 4)
    shutil.copy(path / "002.png", path / "2.jpg")
    assert_refused(path, r"2\.jpg has the number of 002\.png")
    for name in ("000.png", "001.png", "003.png"):
        (path / name).unlink()
    assert_refused(path, r"2\.jpg has the number of 002\.png")


@pytest.mark.parametrize("names", ["0 5 10 15", "a b c", "img7", "1_0 1_1 2_0 2_1", "x1 y2 y9"])
def test_names_that_leave_nothing_out(tmp_path, names):
    """Every fifth frame, letters, one picture, two numbers: nothing says that one is missing."""
    for name in names.split():
        write(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    assert len(frames_of(tmp_path)) == len(names.split())


# -- in the runner ----------------------------------------------------------------------------------------------------


def test_features_of_a_folder_are_those_of_the_video(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 40, fps=24)
    pictures = folder(tmp_path / "v", 40)
    net = create("motion")
    wanted, _ = extract_video(Video("v", str(path), "test", 0), net)
    found, notes = extract_video(Video("v", str(pictures), "test", 0, num_frames=40, fps=24.0), net)
    assert (found.grid, found.fps, notes) == (wanted.grid, 24.0, ())
    assert found.source_bytes == sum(p.stat().st_size for p in pictures.iterdir())
    # pixels differ by a grey level or two where the scaler rounds
    np.testing.assert_allclose(found.x, wanted.x, rtol=0.05, atol=0.05)


def test_the_rate_comes_from_the_manifest(tmp_path):
    net, path = create("motion"), str(folder(tmp_path / "v", 20))
    slow, notes = extract_video(Video("v", path, "test", 0, fps=10.0), net)
    assert slow.fps == 10.0
    assert notes == ("10 frames/s: 16 frames last 1.6 s; motion looks faster than it is",)
    unknown, notes = extract_video(Video("v", path, "test", 0), net)
    assert unknown.fps is None
    assert notes == ("no frame rate in the file or the manifest: 25 taken",)
    with_own = write_numbered(tmp_path / "v.mp4", 20, fps=30)
    assert extract_video(Video("v", str(with_own), "test", 0, fps=10.0), net)[0].fps == 30.0


def test_one_bad_folder_costs_nobody_else_anything(tmp_path):
    videos = [Video(n, str(folder(tmp_path / n, 20)), "train", 0, fps=24.0) for n in ("a", "b", "c", "d")]
    (tmp_path / "b" / "007.png").write_bytes(b"")
    (tmp_path / "c" / "007.png").unlink()
    short = Video("s", str(tmp_path / "d"), "train", 0, num_frames=21)
    report = extract_all([*videos, short], tmp_path / "store", "motion", workers=1)
    assert report.written == ["a", "d"]
    assert "007.png is empty" in report.failures["b"]
    assert "008.png follows 006.png" in report.failures["c"]
    assert "the manifest says 21 frames, decoding gave 20" in report.failures["s"]
    assert FeatureStore(tmp_path / "store").length("a") == FeatureStore(tmp_path / "store").length("d")
