"""Times of frames against the stamps they were written with, and against plain decoding."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract import frame_times as module
from extract.decode import DecodeError, VideoReader
from extract.frame_times import frame_times
from tests.helpers import numbered_frames, write_small
from tests.test_extract_decode import rotate

CODECS = {"libx264": {"preset": "veryfast", "x264-params": "mbtree=0"}, "mpeg4": {}, "libvpx": {"deadline": "realtime"}}
PHONE = [0, 33, 67, 100, 133, 200, 233, 267, 300, 433, 467, 500, 533, 567, 600, 720, 753, 800, 900, 1033, 1066, 1100]


def write_stamped(path, stamps, codec="libx264", *, size=32, fps=30, **options):
    """Frames with the given time stamps, milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=CODECS[codec] | options)
        stream.width, stream.height, stream.pix_fmt = 48, size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for stamp, picture in zip(stamps, numbered_frames(len(stamps), size, 48), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path):
    """What plain decoding says: seconds since the first frame, and the header's rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
        return np.array([float(t - times[0]) for t in times]), float(stream.average_rate or stream.guessed_rate)


def no_decoding(monkeypatch):
    monkeypatch.setattr(module, "FrameClock", None)


def no_packets(monkeypatch):
    monkeypatch.setattr(module, "_from_packets", lambda container, num_frames: None)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
def test_a_constant_rate_is_exact(tmp_path, name, monkeypatch):
    path = write_small(tmp_path / name, 40, fps=Fraction(30000, 1001), options={"bf": "3"})
    no_decoding(monkeypatch)
    fps = 30000 / 1001
    assert frame_times(path, 40, fps).tolist() == [i / fps for i in range(41)]
    assert frame_times(str(path), 40, fps).dtype == np.float64


@pytest.mark.parametrize("path_taken", [no_decoding, no_packets])
def test_a_transport_stream(tmp_path, monkeypatch, path_taken):
    path = write_stamped(tmp_path / "v.ts", [40 * i for i in range(30)], fps=25, bf="3")
    path_taken(monkeypatch)
    assert frame_times(path, 30, 25.0).tolist() == [i / 25 for i in range(31)]


@pytest.mark.parametrize("path_taken", [no_decoding, no_packets])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.mp4", "libx264", {"bf": "3", "g": "7"}),
        ("v.mov", "libx264", {"bf": "0"}),
        ("v.mkv", "libx264", {"bf": "16", "b_strategy": "0", "g": "250", "refs": "16"}),
        ("v.mp4", "mpeg4", {"bf": "2"}),
        ("v.webm", "libvpx", {}),
    ],
)
def test_a_phones_frames_have_their_own_times(tmp_path, monkeypatch, path_taken, name, codec, options):
    path = write_stamped(tmp_path / name, PHONE, codec, **options)
    plain, fps = decoded(path)
    np.testing.assert_allclose(plain, np.array(PHONE) / 1000, atol=1e-4)  # the file is as meant
    path_taken(monkeypatch)
    found = frame_times(path, len(PHONE), fps)
    np.testing.assert_allclose(found[:-1], plain, rtol=0, atol=1e-9)
    assert found[0] == 0
    assert 0 < found[-1] - found[-2] < 0.2


stamps = st.lists(st.integers(3, 400), min_size=1, max_size=30).map(lambda gaps: np.cumsum([0, *gaps]).tolist())


@given(stamps, st.sampled_from(["0", "2", "4"]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_times_come_back(tmp_path_factory, drawn, bf, forced):
    path = write_stamped(tmp_path_factory.mktemp("v") / "v.mkv", drawn, bf=bf)
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == len(drawn)
    with pytest.MonkeyPatch.context() as monkeypatch:
        (no_packets if forced else no_decoding)(monkeypatch)
        found = frame_times(path, len(drawn), reader.fps)
    assert found.shape == (len(drawn) + 1,)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    frame_s = 1 / reader.fps
    wanted = np.array(drawn) / 1000
    even = np.arange(len(drawn) + 1) * frame_s
    if np.abs(wanted - even[:-1]).max() > 0.501 * frame_s:
        np.testing.assert_allclose(found[:-1], wanted, rtol=0, atol=1e-9)
    elif np.abs(wanted - even[:-1]).max() < 0.499 * frame_s:
        np.testing.assert_allclose(found, even, rtol=1e-12)


def test_the_last_frame_lasts_as_long_as_the_file_says_or_as_the_mean(tmp_path, monkeypatch):
    path = write_stamped(tmp_path / "v.mp4", PHONE, bf="2")
    with av.open(str(path)) as container:
        last = max((p for p in container.demux(video=0) if p.size), key=lambda p: p.pts)
    assert frame_times(path, 22, 20.0)[-1] == pytest.approx(1.1 + float(last.duration * last.time_base), abs=1e-6)
    no_packets(monkeypatch)
    assert frame_times(path, 22, 20.0)[-1] == pytest.approx(1.1 + 1.1 / 21, abs=1e-6)


def test_rotated(tmp_path):
    path = write_stamped(tmp_path / "v.mp4", PHONE)
    rotate(path, (0, 1, -1, 0))
    np.testing.assert_allclose(frame_times(path, 22, 20.0)[:-1], np.array(PHONE) / 1000, atol=1e-4)


@pytest.mark.parametrize("path_taken", [no_decoding, no_packets])
def test_trimmed_by_an_edit_list(tmp_path, monkeypatch, path_taken):
    """The first ten frames lie in the file, but are not shown."""
    path = write_stamped(tmp_path / "v.mp4", PHONE, bf="0", g="60")
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        begins = [p.pts for p in container.demux(video=0) if p.size][10]
    at = whole.find(b"elst") + 12 + 4
    path.write_bytes(whole[:at] + struct.pack(">I", begins) + whole[at + 4 :])
    with VideoReader(path) as reader:
        count = sum(1 for _ in reader)
    assert count == 12
    path_taken(monkeypatch)
    found = frame_times(path, count, 20.0)
    np.testing.assert_allclose(found[:-1], np.array(PHONE[10:]) / 1000 - PHONE[10] / 1000, atol=1e-4)


def test_one_frame(tmp_path):
    path = write_small(tmp_path / "v.mp4", 1)
    assert frame_times(path, 1, 25.0).tolist() == [0, 0.04]


def test_a_folder_and_an_unknown_rate(tmp_path):
    assert frame_times(tmp_path, 4, 10.0).tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert frame_times(tmp_path, 2, None).tolist() == [0, 0.04, 0.08]


def test_a_rate_that_the_header_gets_wrong(tmp_path):
    path = write_stamped(tmp_path / "v.mkv", [100 * i for i in range(30)], bf="2")
    np.testing.assert_allclose(frame_times(path, 30, 25.0)[:-1], np.arange(30) / 10, atol=1e-9)


def test_frames_at_the_same_time_lie_between_their_neighbours(tmp_path):
    """Matroska rounds to milliseconds: two frames of one millisecond."""
    shown = [0, 40, 80, 81, 200, 240, 500]
    path = write_stamped(tmp_path / "v.mkv", shown, "mpeg4", bf="0")
    raw = bytearray(path.read_bytes())
    block = raw.find(b"\xa3", raw.find((81).to_bytes(2, "big"), raw.find(b"\x1f\x43\xb6\x75") + 12) - 12)
    at = raw.find((81).to_bytes(2, "big"), block)
    raw[at : at + 2] = (80).to_bytes(2, "big")
    path.write_bytes(raw)
    plain, _ = decoded(path)
    assert plain.tolist() == [0, 0.04, 0.08, 0.08, 0.2, 0.24, 0.5]
    np.testing.assert_allclose(frame_times(path, 7, 14.0)[:-1], [0, 0.04, 0.08, 0.14, 0.2, 0.24, 0.5])


@pytest.mark.parametrize("tail", [22, 8])
def test_two_recordings_in_one_file_are_only_counted(tmp_path, tail):
    """The clock of the second one begins anew: nobody knows when its frames come."""
    one = write_stamped(tmp_path / "1.ts", [100 * i for i in range(40)], bf="2")
    two = write_stamped(tmp_path / "2.ts", PHONE[:tail], bf="2")
    both = tmp_path / "v.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with VideoReader(both, damaged="keep") as reader:
        count = sum(1 for _ in reader)
    assert count >= 40 + tail - 2
    assert np.diff(decoded(both)[0]).min() < -1  # else this tests nothing
    assert frame_times(both, count, 10.0).tolist() == [i / 10 for i in range(count + 1)]


@pytest.mark.parametrize(
    ("stamps", "sent"),
    [
        ([0, 10, 20, 30, 5, 15], [0, 10, 20, 30, 5, 15]),  # a clock that begins anew
        ([*range(0, 300, 10), *range(5, 100, 10)], [None] * 40),  # told by the order alone
        ([0, 10, None], [0, 10, 20]),
        ([0, 10, 10], [0, 10, 20]),
    ],
)
def test_packets_that_leave_a_doubt(stamps, sent):
    packets = [
        SimpleNamespace(size=9, is_discard=False, is_corrupt=False, pts=pts, dts=dts, duration=1)
        for pts, dts in zip(stamps, sent, strict=True)
    ]
    streams = SimpleNamespace(video=[SimpleNamespace(time_base=Fraction(1, 100))])
    container = SimpleNamespace(streams=streams, demux=lambda stream: packets)
    assert module._from_packets(container, len(stamps)) is None
    del packets[2:]
    seconds, last_s = module._from_packets(container, 2)
    assert (seconds.tolist(), last_s) == ([0, 0.1], 0.01)


def test_damaged_and_kept(tmp_path):
    """A frame that is lost has its place, and its time lies between."""
    path = write_stamped(tmp_path / "v.mkv", PHONE, bf="0", g="250")
    raw = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    start, size = packets[9]
    at = raw.find(bytes(raw[start + 8 : start + size - 8]))
    raw[at : at + size - 16] = b"\xff" * (size - 16)
    path.write_bytes(raw)
    with VideoReader(path, damaged="keep") as reader:
        count = sum(1 for _ in reader)
    assert reader.lost
    found = frame_times(path, count, reader.fps)
    assert found.shape == (count + 1,)
    assert (np.diff(found) > 0).all()
    if count == len(PHONE):
        np.testing.assert_allclose(np.delete(found[:-1], 9), np.delete(np.array(PHONE) / 1000, 9), atol=1e-6)


def test_another_number_of_frames(tmp_path):
    path = write_stamped(tmp_path / "v.mkv", PHONE)
    with pytest.raises(ValueError, match=r"v\.mkv: it has 22 frames, not 23; did the file change"):
        frame_times(path, 23, 20.0)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        frame_times(path, 0, 20.0)
    with pytest.raises(ValueError, match="fps must be above 0, or None where nobody knows, got 0"):
        frame_times(path, 22, 0.0)
    with pytest.raises(DecodeError, match="no such file"):
        frame_times(tmp_path / "gone.mp4", 22, 20.0)
