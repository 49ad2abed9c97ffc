"""The reader gives every frame once, in order and upright, and refuses by name what is broken."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from extract.decode import DecodeError, VideoReader, parse_resize, target_size
from tests.helpers import number_of, numbered_frames, write_numbered, write_small

REMEDY = "copy or download it again|take it out|correct its path"


def frames_of(path, **options):
    with VideoReader(path, **options) as reader:
        frames = list(reader)
    assert reader.num_frames == len(frames)
    return frames


def assert_refused(path, reason, **options):
    with pytest.raises(DecodeError, match=reason) as caught, VideoReader(path, **options) as reader:
        list(reader)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert any(remedy in message for remedy in REMEDY.split("|"))


# -- right frames, right pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "count"), [(".mp4", 300), (".mkv", 60), (".avi", 60), (".mov", 33)])
def test_every_frame_once_in_order_with_its_pixels(tmp_path, suffix, count):
    """B-frames make the file's order differ from the picture's."""
    options = {"options": {"bf": "0"}} if suffix == ".avi" else {"options": {"bf": "3"}}
    path = write_numbered(tmp_path / f"v{suffix}", count, fps=30, gop=12, **options)
    found = frames_of(path)
    assert [number_of(f) for f in found] == list(range(count))
    for frame, wanted in zip(found, numbered_frames(count), strict=True):
        np.testing.assert_array_equal(frame, wanted)


def test_bgr_is_rgb_reversed(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 3)
    for rgb, bgr in zip(frames_of(path), frames_of(path, color="bgr"), strict=True):
        np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])


def test_gray_is_luma_at_full_range(tmp_path):
    """Against the Y plane of the coded picture, stretched from 16..235 to 0..255."""
    path = write_small(tmp_path / "v.mp4", 10)
    with av.open(str(path)) as container:
        coded = [f.to_ndarray(format="yuv420p")[:32].astype(float) for f in container.decode(video=0)]
    for gray, y in zip(frames_of(path, color="gray"), coded, strict=True):
        assert gray.shape == (32, 48)
        wanted = np.clip((y - 16) * 255 / 219, 0, 255)
        assert np.abs(gray - wanted).max() <= 1  # rounding of the scaler's integers


@pytest.mark.parametrize("count", [1, 15, 16, 17])
def test_short_videos(tmp_path, count):
    assert len(frames_of(write_small(tmp_path / "v.mp4", count))) == count


@pytest.mark.parametrize("rate", [Fraction(8), Fraction(25), Fraction(30000, 1001), Fraction(60)])
def test_frame_rate(tmp_path, rate):
    path = write_small(tmp_path / "v.mp4", 20, fps=rate)
    with VideoReader(path) as reader:
        assert reader.fps == pytest.approx(float(rate), rel=1e-6)
        list(reader)
    assert any("8 frames/s: 16 frames last 2.0 s" in note for note in reader.notes) == (rate == 8)


def test_sound_beside_the_picture_changes_nothing(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 40, audio=np.zeros(30000, np.float32))
    assert [number_of(f) for f in frames_of(path)] == list(range(40))


def test_a_reader_cannot_be_confused_by_its_path(tmp_path, monkeypatch):
    for name in ("v=a#1?b%20 %d__.x.mp4", "http:x.mp4", "-i.mp4", "\u4e2d.mp4"):
        path = write_numbered(tmp_path / name, 5)
        assert len(frames_of(path)) == 5
        monkeypatch.chdir(tmp_path)
        assert len(frames_of(Path(name))) == 5


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        ("none", (48, 64)),
        ("20x10:area", (10, 20)),
        ("short24:bilinear", (24, 32)),
        ("short100:bicubic", (100, 133)),
        ("7x9:fast_bilinear", (9, 7)),
    ],
)
def test_resizing(tmp_path, rule, shape):
    path = write_numbered(tmp_path / "v.mp4", 4)
    for color, tail in (("rgb", (3,)), ("gray", ())):
        assert {f.shape for f in frames_of(path, resize=rule, color=color)} == {shape + tail}


def test_area_is_the_mean_of_the_pixels(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 6)
    for small, full in zip(frames_of(path, resize="16x12:area"), numbered_frames(6), strict=True):
        wanted = full.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - wanted).max() <= 2  # chroma and rounding in the scaler


def test_odd_sizes(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, [np.full((37, 51, 3), 90, np.uint8)] * 5, pix_fmt="yuv444p")
    assert frames_of(path)[0].shape == (37, 51, 3)
    assert frames_of(path, resize="short20:area")[0].shape == (20, 28, 3)
    assert np.abs(frames_of(path)[4].astype(int) - 90).max() <= 2  # lossy


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 512))
def test_short_side_rule(width, height, size):
    w, h = target_size(parse_resize(f"short{size}:area"), width, height)
    assert min(w, h) == size
    assert abs(max(w, h) - max(width, height) * size / min(width, height)) <= 0.5
    assert (w >= h) == (width >= height) or w == h


@pytest.mark.parametrize("text", ["", "160", "160x120", "160x120:lanczos", "0x10:area", "short0:area", "short:area"])
def test_unknown_resize_rules(text):
    with pytest.raises(ValueError, match=r"resize must be 'none', '160x120:area' or .* got "):
        parse_resize(text)


def test_unknown_color(tmp_path):
    with pytest.raises(ValueError, match="color must be one of rgb, bgr, gray, got 'hsv'"):
        VideoReader(write_small(tmp_path / "v.mp4", 2), color="hsv")


# -- rotation ---------------------------------------------------------------------------------------------------------


def rotate(path, matrix):
    """Writes a display matrix (a, b, c, d: x' = a x + c y, y' = b x + d y, y downwards) into the track header."""
    raw = bytearray(path.read_bytes())
    at = raw.find(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times to duration, reserved to volume
    assert struct.unpack(">9i", raw[at : at + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (v * 65536 for v in matrix)
    raw[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)


@pytest.mark.parametrize(("matrix", "quarters"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotated_as_a_player_shows_it(tmp_path, matrix, quarters):
    """(0, 1, -1, 0) sends right to down: clockwise, a phone held upright."""
    path = write_numbered(tmp_path / "v.mp4", 5)
    rotate(path, matrix)
    with VideoReader(path) as reader:
        found = list(reader)
    for frame, wanted in zip(found, numbered_frames(5), strict=True):
        np.testing.assert_array_equal(frame, np.rot90(wanted, quarters))
    assert any("in its metadata: turned upright" in note for note in reader.notes)


def test_resizing_rules_are_read_upright(tmp_path):
    path = write_numbered(tmp_path / "v.mp4", 3)
    rotate(path, (0, 1, -1, 0))
    assert frames_of(path, resize="20x30:area")[0].shape == (30, 20, 3)
    assert frames_of(path, resize="short24:area", color="gray")[0].shape == (32, 24)


# -- broken files -----------------------------------------------------------------------------------------------------


def test_missing_and_empty_files(tmp_path):
    assert_refused(tmp_path / "nope.mp4", "no such file")
    assert_refused(tmp_path, "no such file")
    (tmp_path / "empty.mp4").touch()
    assert_refused(tmp_path / "empty.mp4", r"the file is empty \(0 bytes\)")


@pytest.mark.parametrize("text", ["404 not found\n", "<html>" * 2000, "\0" * 5000, "ftypmoovmdat" * 99])
def test_text_named_mp4(tmp_path, text):
    path = tmp_path / "v.mp4"
    path.write_text(text)
    assert_refused(path, "not a video, or cut off|no frame can be decoded|no video stream")


_MASTER = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"
_PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.6,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("text", [_MASTER, _PLAYLIST, "ffconcat version 1.0\nfile {}\n"])
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat"])
def test_playlists_are_not_followed(tmp_path, text, name):
    """Each would make the reader open another file, or an address, of the author's choice."""
    target = write_small(tmp_path / "target.mkv", 20)
    path = tmp_path / name
    for entry in (target.name, str(target)):
        path.write_text(text.format(entry))
        assert_refused(path, "not a video, or cut off")


def test_the_playlist_test_has_teeth(tmp_path):
    write_small(tmp_path / "target.mkv", 20)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile target.mkv\n")
    with av.open(str(tmp_path / "list.mp4")) as container:  # unguarded, the demuxer follows
        assert len(list(container.decode(video=0))) == 20


def fast_start(path, count=60):
    """An mp4 with its index in front, so that a part of it can still be opened."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in numbered_frames(count, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def packets_of(path):
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size]


@pytest.mark.parametrize("box", ["mdat", "moov", "stsd", "stsz"])
def test_truncated_with_the_index_at_the_end(tmp_path, box):
    """Cut in the middle of the pictures, and at several places of the index behind them."""
    path = write_small(tmp_path / "v.mp4", 60)
    raw = path.read_bytes()
    at = raw.find(box.encode()) + (5000 if box == "mdat" else 8)
    path.write_bytes(raw[:at])
    assert_refused(path, "not a video, or cut off|decoding stops after 0 frames|no frame|no video stream|truncated")


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_with_the_index_in_front(tmp_path, part):
    path = fast_start(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert_refused(path, "truncated|is damaged|decoding stops")


@pytest.mark.parametrize("packet", [1, 30, 59])
def test_truncated_between_two_packets(tmp_path, packet):
    """Nothing is damaged then; only the index knows that frames are missing."""
    path = fast_start(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[: packets_of(path)[packet][0]])
    assert_refused(path, f"truncated: {packet} of 60 frames are in the file")


def test_a_damaged_middle(tmp_path):
    path = fast_start(tmp_path / "v.mp4")
    position, size = packets_of(path)[30]
    raw = bytearray(path.read_bytes())
    raw[position : position + size] = b"\xff" * size
    path.write_bytes(raw)
    assert_refused(path, "decoding stops after [0-9]+ frames|is damaged")


def test_a_size_that_changes(tmp_path):
    def stream(height, width):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="h264") as container:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            for _ in range(20):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))))
            container.mux(video.encode(None))
        return buffer.getvalue()

    path = tmp_path / "v.h264"
    path.write_bytes(stream(48, 64) + stream(64, 96))
    assert_refused(path, "frame 20 is 96x64, frame 0 is 64x48")


def test_sound_alone(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_refused(path, "the file holds no video stream")


def test_a_clip_trimmed_by_its_edit_list_is_whole(tmp_path):
    """As phones trim: all packets stay in the file, the edit list shows the first part of them."""
    path = write_numbered(tmp_path / "v.mp4", 40, gop=10, options={"bf": "0"})
    raw = bytearray(path.read_bytes())
    at = raw.find(b"elst") + 4 + 4 + 4  # version and flags, number of entries
    (duration,) = struct.unpack(">I", raw[at : at + 4])
    raw[at : at + 4] = struct.pack(">I", duration // 2)
    path.write_bytes(raw)
    assert [number_of(f) for f in frames_of(path)] == list(range(20))
