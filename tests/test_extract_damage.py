"""Damage is noticed, counted and refused, or kept with every frame in its place; ordinary files are left alone."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from extract.containers import container_fault
from extract.damage import Ledger
from extract.decode import DecodeError, VideoReader
from extract.pictures import FolderReader
from tests.helpers import number_of, numbered_frames, shared

COUNT = 60
INTRA = {"g": "1", "bf": "0"}  # every frame on its own: a lost one harms no other


def encode(path, count=COUNT, codec="libx264", form=None, stamps=None, audio_s=0.0, container_options=None, **options):
    """Numbered frames in any container, at any time stamps (in 1/1000 s), with sound of any length."""
    with av.open(str(path), "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "12", "preset": "veryfast", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_s else None
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(numbered_frames(count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for at in range(0, int(audio_s * 16000) if sound else 0, 1024):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 16000, at, Fraction(1, 16000)
            container.mux(sound.encode(part))
        if sound:
            container.mux(sound.encode(None))
    return path


def packets_of(path):
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size]


def overwrite(path, start, size, byte=0):
    raw = bytearray(path.read_bytes())
    raw[start : start + size] = bytes(np.broadcast_to(byte, size).tolist())
    path.write_bytes(raw)


def read(path, damaged="refuse", **options):
    with VideoReader(path, damaged=damaged, **options) as reader:
        frames = list(reader)
    assert reader.num_frames == len(frames)
    return frames, reader


def refusal(path):
    with pytest.raises(DecodeError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "copy or download it again" in message
    return message


# -- frames that cannot be decoded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv", ".avi"])
@pytest.mark.parametrize("hit", [[30], [5, 6, 7], [0], [0, 1], [59], [58, 59], [10, 40]])
def test_lost_frames_show_the_one_before_and_all_others_stay(tmp_path, suffix, hit):
    if suffix == ".avi" and hit[0] == 0:
        pytest.skip("the headers of the codec are in the first frame")
    path = encode(tmp_path / f"v{suffix}", **INTRA)
    truth, _ = read(path)
    where = packets_of(path)
    for k in hit:
        start, size = where[k]
        head = {".mp4": 0, ".mkv": 8, ".flv": 20, ".avi": 0}[suffix]  # headers of the container stay
        overwrite(path, start + head, size - min(head, 4), 0xFF)
    message = refusal(path)
    assert f"{len(hit)} of {COUNT}" in message
    assert f"stops after {hit[0]} frames" in message if hit[-1] == COUNT - 1 else f"from frame {hit[0]} on" in message
    assert "--damaged keep" in message
    frames, reader = read(path, "keep")
    good = [k for k in range(COUNT) if k not in hit]
    assert (len(frames), reader.lost) == (COUNT, len(hit))
    for k, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, truth[max([g for g in good if g <= k], default=good[0])])
    assert any(f"{len(hit)} of {COUNT}" in note for note in reader.notes)


def test_what_the_decoder_makes_up_is_noticed(tmp_path):
    """One of four slices of a frame is lost: FFmpeg fills it from the frame before and raises nothing, only a mark."""
    path = encode(tmp_path / "v.mp4", **{"x264-params": "slices=4:keyint=20:bframes=0:scenecut=0"})
    truth, _ = read(path)
    start, _ = packets_of(path)[30]
    raw = path.read_bytes()
    for _ in range(2):  # to the third slice: each has its length in front
        start += 4 + int.from_bytes(raw[start : start + 4], "big")
    overwrite(path, start + 4, int.from_bytes(raw[start : start + 4], "big"), 0xFF)
    assert f"the file is damaged: 1 of {COUNT} frames cannot be decoded whole, from frame 30 on" in refusal(path)
    frames, reader = read(path, "keep")
    assert (len(frames), reader.lost) == (COUNT, 1)
    for k in (*range(30), *range(40, COUNT)):  # whole again from the next key frame on
        np.testing.assert_array_equal(frames[k], truth[k])


FIXTURE = HealthCheck.function_scoped_fixture


@settings(deadline=None, max_examples=30, derandomize=True, suppress_health_check=[FIXTURE])
@given(st.sampled_from([".mp4", ".mkv", ".ts"]), st.integers(0, 10**6), st.integers(1, 600), st.integers(0, 255))
def test_frames_keep_their_places_whatever_is_overwritten(tmp_path, suffix, at, size, byte):
    path = tmp_path / f"clean{suffix}"
    if not path.exists():
        encode(path, form={".ts": "mpegts"}.get(suffix), g="10", bf="2")
    where = packets_of(path)
    begin, end = where[5][0], where[45][0]  # frames 50 to 59 depend on none of them
    other = tmp_path / f"v{suffix}"
    other.write_bytes(path.read_bytes())
    overwrite(other, begin + at % (end - begin - size), size, byte)
    frames, reader = read(other, "keep")
    if len(frames) == COUNT:
        assert [number_of(f) for f in frames[-5:]] == list(range(COUNT - 5, COUNT))
    else:
        assert reader.notes


def test_a_transport_stream_with_a_hole(tmp_path):
    """Whole packets of 188 bytes are missing: the container marks the break, the time stamps tell how long it is."""
    path = encode(tmp_path / "v.ts", form="mpegts", **INTRA)
    truth, _ = read(path)
    raw = path.read_bytes()
    starts = [p // 188 * 188 for p, _ in packets_of(path)]
    path.write_bytes(raw[: starts[20]] + raw[starts[24] :])
    message = refusal(path)
    assert f"of {COUNT} frames cannot be decoded whole, from frame " in message
    frames, reader = read(path, "keep")
    assert len(frames) == COUNT
    assert 4 <= reader.lost <= 6  # the packets beside the hole are marked, too
    for k in (*range(19), *range(26, COUNT)):
        np.testing.assert_array_equal(frames[k], truth[k])


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_a_hole_that_the_demuxer_passes_over_in_silence(tmp_path, suffix):
    """Headers of the container lie in it: FFmpeg looks for the next ones and says nothing."""
    path = encode(tmp_path / f"v{suffix}", count=400, **INTRA)
    where = packets_of(path)
    overwrite(path, where[100][0] - 12, 40)
    assert container_fault(path, {".mkv": "matroska,webm", ".flv": "flv"}[suffix]) is not None
    assert "frames cannot be decoded whole, from frame 100 on" in refusal(path) or suffix == ".flv"
    frames, reader = read(path, "keep")
    assert len(frames) == 400
    assert reader.lost >= 1
    assert [number_of(f) for f in frames[-10:]] == list(range(390, 400))
    assert [number_of(f) for f in frames[:99]] == list(range(99))


# -- files that end too early -----------------------------------------------------------------------------------------


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("suffix", "more"), [(".mkv", {}), (".avi", {}), (".flv", {}), (".mp4", FRAGMENTED)])
def test_a_file_that_ends_too_early(tmp_path, suffix, more, part):
    path = encode(tmp_path / f"v{suffix}", container_options=more, g="10", bf="0")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "truncated: " in refusal(path)
    frames, reader = read(path, "keep")
    assert [number_of(f) for f in frames[:-1]] == list(range(len(frames) - 1))
    assert reader.lost > 0
    if suffix != ".mp4":  # its header does not say how long it is
        assert reader.lost >= COUNT - len(frames)
        assert reader.lost + len(frames) <= COUNT + 3


def test_a_matroska_file_without_its_last_index_is_whole(tmp_path):
    path = encode(tmp_path / "v.mkv")
    cues = path.read_bytes().rfind(b"\x1c\x53\xbb\x6b")
    path.write_bytes(path.read_bytes()[: cues + 3])
    frames, reader = read(path)
    assert len(frames) == COUNT
    assert reader.lost == 0
    assert any("but every frame is there" in note for note in reader.notes)


# -- ordinary files: nothing is refused, nothing noted ----------------------------------------------------------------

X265 = "log-level=none:keyint=12"
ORDINARY = {
    "reordered.mp4": {"bf": "3", "g": "25"},
    "open gop.mkv": {"x264-params": "open-gop=1:keyint=12", "bf": "3"},
    "open gop.ts": {"form": "mpegts", "x264-params": "open-gop=1:keyint=12", "bf": "3"},
    "refreshed.mp4": {"x264-params": "intra-refresh=1"},
    "hevc.mp4": {"codec": "libx265", "x265-params": f"{X265}:open-gop=1"},
    "hevc.mkv": {"codec": "libx265", "x265-params": f"{X265}:bframes=4"},
    "old.avi": {"codec": "mpeg4", "bf": "2", "q": "4"},
    "wrong times.avi": {"bf": "2"},
    "vob.mpg": {"codec": "mpeg2video", "form": "mpeg", "bf": "2"},
    "flash.flv": {"bf": "2"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"},
    "vp9.webm": {"codec": "libvpx-vp9", "auto-alt-ref": "1", "deadline": "realtime", "cpu-used": "8"},
    "raw.h264": {"bf": "2"},
    "long sound.mkv": {"audio_s": 9.0},
    "long sound.flv": {"audio_s": 9.0},
    "fragments.mp4": {"container_options": FRAGMENTED, "g": "10"},
    "live.mkv": {"container_options": {"live": "1"}},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files(tmp_path, name):
    frames, reader = read(encode(tmp_path / name, **ORDINARY[name]))
    assert [number_of(f) for f in frames] == list(range(COUNT))
    assert (reader.lost, reader.notes) == (0, [])
    kept, _ = read(tmp_path / name, "keep")
    for a, b in zip(frames, kept, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_is_no_damage(tmp_path, suffix):
    gaps = np.random.default_rng(0).choice([40, 40, 40, 80, 200], COUNT)
    path = encode(tmp_path / f"v{suffix}", stamps=[int(t) for t in gaps.cumsum()], bf="2")
    frames, reader = read(path)
    assert [number_of(f) for f in frames] == list(range(COUNT))
    assert reader.lost == 0
    assert len(reader.notes) == 1
    assert "variable frame rate" in reader.notes[0]


def test_a_recording_that_begins_between_key_frames(tmp_path):
    """Cut from a stream without re-encoding: what depends on frames that are not there is shown nowhere."""
    path = encode(tmp_path / "whole.ts", form="mpegts", g="20", bf="0")
    raw = path.read_bytes()
    cut = tmp_path / "v.ts"
    cut.write_bytes(raw[: 188 * 3] + raw[packets_of(path)[13][0] // 188 * 188 :])
    frames, reader = read(cut)
    assert [number_of(f) for f in frames] == list(range(20, COUNT))
    assert reader.lost == 0


def test_real_videos_raise_no_alarm():
    videos = sorted(shared("datasets").rglob("*.mp4"))
    assert videos
    for path in videos[:: max(len(videos) // 12, 1)]:
        with VideoReader(path, resize="40x30:fast_bilinear", color="gray") as reader:
            count = sum(1 for _ in reader)
        with av.open(str(path)) as container:
            assert count == sum(1 for _ in container.decode(video=0))
        assert (reader.lost, reader.notes, reader.times.constant) == (0, [], True)


# -- the books, by hand -----------------------------------------------------------------------------------------------


def ledger(codec="h264", container="mov,mp4,m4a", duration=None):
    return Ledger(25.0, Fraction(1, 25), codec, container, duration)


def test_a_packet_whose_frame_never_comes_is_lost_without_any_error():
    books = ledger()
    for stamp in (0, 2, 1, 3, 4):  # decoding order
        books.send(stamp, marked=False)
    assert [books.come(i, stamp, marked=False) for i, stamp in enumerate((0, 1))] == [0, 0]
    assert books.come(2, 3, marked=False) == 1
    assert books.come(4, 4, marked=False) == 0
    assert (books.lost, books.missing, books.first) == (1, 1, 2)


def test_a_gap_without_a_packet_is_a_loss_only_where_packets_can_vanish():
    for container, missing in (("mov,mp4,m4a", 0), ("matroska,webm", 0), ("mpegts", 3)):
        books = ledger(container=container)
        for i, stamp in enumerate((0, 1, 2)):
            books.send(stamp, marked=False)
            books.come(i, stamp, marked=False)
        books.send(6, marked=False)
        assert books.come(3, 6, marked=False) == missing


def test_a_leap_of_the_time_stamps_is_not_filled():
    books = ledger(container="mpegts", duration=10.0)
    books.send(0, marked=False)
    books.come(0, 0, marked=False)
    books.send(10**7, marked=True)
    assert books.come(1, 10**7, marked=False) == 0
    assert books.lost == 1  # the mark


def test_an_error_whose_frame_comes_all_the_same_counts_once():
    books = ledger()
    for stamp in range(3):
        books.send(stamp, marked=stamp == 1)
        if stamp == 1:
            books.fail(stamp, 1, "bad")
        books.come(stamp, stamp, marked=stamp == 1)
    assert (books.lost, books.concealed, books.first, books.reason) == (1, 1, 1, "bad")


@pytest.mark.parametrize(("error", "behind"), [(False, 0), (True, 3)])
def test_packets_without_frames_at_the_end_count_only_beside_an_error(error, behind):
    books = ledger()
    for stamp in range(6):
        books.send(stamp, marked=False)
    if error:
        books.fail(3, 3, "bad")
    for i in range(3):
        assert books.come(i, i, marked=False) == 0
    assert books.end(3) == behind
    assert (books.lost, books.first) == ((3, 3) if error else (0, None))


def test_frames_without_a_time_stamp_have_their_place():
    books = ledger(container="mpegts")
    for i, stamp in enumerate((0, 1, None, None, 4)):
        books.send(stamp, marked=False)
        assert books.come(i, stamp, marked=False) == 0
    books.send(7, marked=False)
    assert books.come(5, 7, marked=False) == 2


def test_what_an_edit_list_cuts_away_is_not_lost(tmp_path):
    """The first 30 frames are in the file, since those behind depend on them, but are not shown."""
    path = encode(tmp_path / "v.mp4", g="60", bf="0", **{"x264-params": "scenecut=0"})
    where = packets_of(path)[30]
    with av.open(str(path)) as container:
        frame = int(1 / (container.streams.video[0].time_base * 25))
    raw = bytearray(path.read_bytes())
    at = raw.find(b"elst") + 12
    raw[at : at + 8] = (int.from_bytes(raw[at : at + 4], "big") // 2).to_bytes(4, "big") + (30 * frame).to_bytes(
        4, "big"
    )
    path.write_bytes(raw)
    assert [number_of(f) for f in read(path)[0]] == list(range(30, 60))
    overwrite(path, *where, 0xFF)
    frames, reader = read(path, "keep")
    assert len(frames) == COUNT // 2
    assert 1 <= reader.lost <= 2  # the next one misses what it refers to


# -- containers, by hand ----------------------------------------------------------------------------------------------


def element(identifier, content, size=None):
    """EBML: identifier, size in 8 bytes, content."""
    length = (len(content) if size is None else size) | 1 << 56
    return bytes.fromhex(identifier) + length.to_bytes(8, "big") + content


HEAD, TRACKS = element("1A45DFA3", b""), element("1654AE6B", element("AE", element("D7", b"\x02")))
BLOCK, CLUSTER = element("A3", b"\x82\0\0\0data"), "1F43B675"
MATROSKA = {
    "whole": (TRACKS + element(CLUSTER, element("E7", b"\0") + BLOCK) + element("1C53BB6B", b""), None, None),
    "two clusters": (TRACKS + element(CLUSTER, BLOCK) * 2, None, None),
    "of no known size": (TRACKS + element(CLUSTER, BLOCK * 2, (1 << 56) - 1) * 2, (1 << 56) - 1, None),
    "track that is none": (TRACKS + element(CLUSTER, element("A3", b"\x83\0\0\0data")), None, "broken at byte 67"),
    "block outside": (TRACKS + element(CLUSTER, BLOCK) + BLOCK, None, "broken at byte 84"),
    "too long": (TRACKS + element(CLUSTER, element("A3", b"\x82", 9)) + BLOCK, None, "broken at byte 67"),
    "zeros": (TRACKS + element(CLUSTER, BLOCK + bytes(9)), None, "broken at byte 84"),
    "cut": (TRACKS + element(CLUSTER, BLOCK), 100, "ends at byte 84, its container says 124"),
    "cut while live": (TRACKS + element(CLUSTER, BLOCK[:-2]), (1 << 56) - 1, "ends at byte 82, its container says 84"),
}


@pytest.mark.parametrize("name", MATROSKA)
def test_matroska(tmp_path, name):
    content, size, fault = MATROSKA[name]
    path = tmp_path / "v.mkv"
    path.write_bytes(HEAD + element("18538067", content, size))
    found = container_fault(path, "matroska,webm")
    assert (found is None) == (fault is None), found
    assert fault is None or fault in found


@pytest.mark.parametrize(
    ("tail", "fault"),
    [
        (b"", None),
        (b"RIFF\x05\0\0\0AVIX-\0", None),
        (b"RIFF\x05\0\0\0AVIX-", None),  # without the byte that makes it even
        (b"RIFF\x09\0\0\0AVIX-", "ends at byte 27, its container says 32"),
        (b"RIFF\0\0\0\0AVIX-----", None),  # a recorder that was switched off
        (b"something else, as downloads have it", None),
    ],
)
def test_avi(tmp_path, tail, fault):
    path = tmp_path / "v.avi"
    path.write_bytes(b"RIFF\x05\0\0\0AVI -\0" + tail)
    found = container_fault(path, "avi")
    assert (found is None) == (fault is None), found
    assert fault is None or fault in found


# -- changed sizes, pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "shape"), [("none", (48, 64)), ("short24:area", (24, 32)), ("20x10:area", (10, 20))])
def test_a_size_that_changes_is_scaled_to_the_first(tmp_path, rule, shape):
    path = tmp_path / "v.h264"
    data = b""
    for height, width, level in ((48, 64, 90), (64, 96, 160)):
        part = tmp_path / "part.h264"
        with av.open(str(part), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((height, width, 3), level, np.uint8))))
            container.mux(stream.encode(None))
        data += part.read_bytes()
    path.write_bytes(data)
    assert "frame 20 is 96x64, frame 0 is 64x48" in refusal(path)
    frames, reader = read(path, "keep", resize=rule)
    assert {f.shape[:2] for f in frames} == {shape}
    assert [round(float(f.mean()) / 10) for f in frames] == [9] * 20 + [16] * 20
    assert [note for note in reader.notes if "scaled to that" in note] == [
        "frame 20 is 96x64, frame 0 is 64x48: scaled to that"
    ]


def test_pictures_that_are_missing_or_broken(tmp_path):
    import cv2

    for i, frame in enumerate(numbered_frames(12)):
        if i not in (4, 5):
            cv2.imwrite(str(tmp_path / f"{i + 1:03d}.png"), frame[..., ::-1])
    for broken in (0, 8, 11):
        (tmp_path / f"{broken + 1:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DecodeError, match=r"007\.png follows 004\.png.*--damaged keep"):
        FolderReader(tmp_path)
    with FolderReader(tmp_path, damaged="keep") as reader:
        frames = list(reader)
    assert [number_of(f) for f in frames] == [1, 1, 2, 3, 3, 3, 6, 7, 7, 9, 10, 10]
    assert (reader.lost, reader.num_frames) == (5, 12)
    assert any("5 of 12 frames lost" in note for note in reader.notes)


def test_pictures_none_of_which_can_be_read(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with (
        pytest.raises(DecodeError, match="none of its 3 pictures can be read"),
        FolderReader(tmp_path, damaged="keep") as reader,
    ):
        list(reader)


# -- what poses as a video --------------------------------------------------------------------------------------------


def test_addresses_and_pipes_are_no_files(tmp_path):
    for name in ("http://127.0.0.1:9/v.mp4", "pipe:", "pipe:0", "subfile,,start,0,end,9,,:v.mp4", "concat:a.mp4|b.mp4"):
        with pytest.raises(DecodeError, match="no such file"):
            VideoReader(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "link.mp4"):
        with pytest.raises(DecodeError, match="a pipe, socket or device"):
            VideoReader(tmp_path / name)


def alias(name):
    """A Macintosh alias record for a file beside: volume, name, one level up and down, the path on that volume."""
    path = b"V:" + name
    head = bytes(10) + b"\x01V".ljust(28, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    path_entry = b"\0\x02" + len(path).to_bytes(2, "big") + path + bytes(len(path) % 2)
    return head + b"\0\x01\0\x01" + bytes(16) + path_entry + b"\xff\xff\0\0"


@pytest.mark.parametrize("kind", [b"url ", b"alis"])
def test_a_movie_that_refers_to_another_file_does_not_open_it(tmp_path, kind):
    """A data reference names the file that holds the pictures (ISO/IEC 14496-12, 8.7.2; QuickTime's aliases)."""
    uncompressed = {"codec": "rawvideo", "pix_fmt": "rgb24", "crf": None, "preset": None}  # one layout for both files
    for name, level in (("secret.mov", 250), ("v.mov", 20)):
        write_video(tmp_path / name, [np.full((48, 64, 3), level, np.uint8)] * 9, **uncompressed)
    path = tmp_path / "v.mov"
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"dref") + 12
    size = int.from_bytes(raw[at : at + 4], "big")
    content = bytes(4) + (b"secret.mov\0" if kind == b"url " else alias(b"secret.mov"))
    raw[at : at + size] = (8 + len(content)).to_bytes(4, "big") + kind + content
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = raw.rfind(box) - 4
        grown = int.from_bytes(raw[place : place + 4], "big") + 8 + len(content) - size
        raw[place : place + 4] = grown.to_bytes(4, "big")
    path.write_bytes(raw)
    if kind == b"alis":  # the test has teeth: a demuxer that is allowed to, follows
        with av.open(str(path), options={"enable_drefs": "1"}) as container:
            assert next(container.decode(video=0)).to_ndarray().mean() == 250
    try:
        frames, _ = read(path)
    except DecodeError:
        frames = []  # as good: nothing is shown
    assert all(frame.mean() == 20 for frame in frames)


def test_unknown_choices(tmp_path):
    with pytest.raises(ValueError, match="damaged must be one of refuse, keep, got 'skip'"):
        VideoReader(Path(tmp_path), damaged="skip")
