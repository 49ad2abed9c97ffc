"""Clips of running sources, checked against those of the finished file; files grow, pipes break, servers hang up."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from data.types import Video
from extract.backbones import plan
from extract.decode import DecodeError
from extract.live import Ended, Gap, LiveClip, LiveSource
from extract.live_clips import Connection, span
from extract.live_wish import Wish
from extract.streams import Reading, clips_from
from tests.helpers import numbered_frames, spec_of

SOUND = plan("logmel_stats")
GRAY = plan("motion")
RGB = plan("tiny")
FORMATS = {
    "ts": ("mpegts", {}),
    "mkv": ("matroska", {"live": "1"}),
    "mp4": ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "flv": ("flv", {}),
}


def remux(source, path, form, options=None, *, shift_s=0.0):
    """The same packets in another container."""
    with av.open(str(source)) as found, av.open(str(path), "w", format=form, options=options or {}) as out:
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in found.streams}
        for packet in found.demux():
            if packet.dts is not None:
                packet.pts += round(shift_s / packet.time_base)
                packet.dts += round(shift_s / packet.time_base)
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
    return path


def video(path, count, fps=25, *, seed=0, **options):
    """H.264 with frames out of order, and stereo-less noise."""
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, round(count / fps * 16000)).astype(np.float32)
    write_video(path, numbered_frames(count, 48, 64, seed=seed), fps, audio=sound, gop=20, **options)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Four seconds, by suffix."""
    folder = tmp_path_factory.mktemp("live")
    whole = video(folder / "whole.mp4", 103)
    return {name: remux(whole, folder / f"v.{name}", *how) for name, how in FORMATS.items()} | {"whole": whole}


def wanted(path, spec, **options):
    reading = Reading(**options) if options else None
    return [clip for clip, _ in clips_from(Video("v", str(path), "test", 0), spec, reading)]


def watch(source, specs, **options):
    """All pieces of a source, and the notes."""
    notes = []
    defaults = {"patience_s": 0.15, "backoff_s": 0.01}
    with LiveSource(source, specs, on_note=notes.append, **(defaults | options)) as live:
        return list(live), notes


def wait_until(condition):
    """Two minutes at most."""
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come about")


def clips_in(pieces):
    return [piece for piece in pieces if isinstance(piece, LiveClip)]


def assert_clips(pieces, path, specs, *, offset=0, **options):
    """They are the clips of a file, to the bit, with their numbers, spans and times."""
    clips = clips_in(pieces)
    assert [clip.index for clip in clips] == list(range(len(clips)))
    for spec in specs:
        reference = wanted(path, spec, **options)
        assert len(clips) == len(reference) > offset
        for clip, data in zip(clips[offset:], reference[offset:], strict=True):
            assert clip.data[spec.modality].dtype == data.dtype
            np.testing.assert_array_equal(clip.data[spec.modality], data)


def write_slowly(data, file, sizes=(997, 1, 15000)):
    """In pieces that end anywhere, with pauses."""
    at = 0
    for i in range(len(data)):
        if at >= len(data):
            return
        size = sizes[i % len(sizes)]
        file.write(data[at : at + size])
        at += size
        time.sleep(0.003)


def watch_growing(path, data, specs):
    """All pieces of a file that is written meanwhile, and the notes."""
    path.write_bytes(b"")
    notes = []
    with LiveSource(path, specs, patience_s=60, on_note=notes.append) as live:

        def write():
            with path.open("wb", buffering=0) as file:
                write_slowly(data, file)
            live._input._patience_s = 0.0  # however slow this machine is, nothing more comes

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        pieces = list(live)
        thread.join()
    return pieces, notes


@contextmanager
def writing(handle, data):
    """A thread that writes `data` to a pipe, a piece at a time, and closes it."""

    def write():
        with open(handle, "wb", buffering=0) as file:
            write_slowly(data, file)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join()


# ---- the same clips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_clips_of_a_growing_file_are_those_of_the_finished_one(tmp_path, recording, suffix):
    flow = spec_of(
        modality="flow", options={"flow": "dis", "quantise": "denseflow"}, resize="32x24:area", tail="drop_one"
    )
    for specs in ([GRAY, SOUND], [RGB, flow, SOUND]):
        path = tmp_path / f"grows.{suffix}"
        pieces, notes = watch_growing(path, recording[suffix].read_bytes(), specs)
        assert pieces[-1] == Ended(103, ())
        assert notes == []
        clips = clips_in(pieces)
        count = min(len(spec.grid(103)) for spec in specs)
        assert len(clips) == count == len(pieces) - 1
        for spec in specs:
            for clip, data in zip(clips, wanted(recording[suffix], spec), strict=False):
                assert clip.data[spec.modality].dtype == data.dtype
                np.testing.assert_array_equal(clip.data[spec.modality], data)


def test_clips_resampled_in_time(tmp_path, recording):
    for fps, tail in ((15.0, "repeat"), (40.0, "drop")):
        rgb = spec_of(fps=fps, resize="short20:bilinear", tail=tail)
        sound = spec_of(modality="audio", fps=fps, tail=tail, options=SOUND.options)
        pieces, _ = watch_growing(tmp_path / "grows.ts", recording["ts"].read_bytes(), [rgb, sound])
        assert_clips(pieces, recording["ts"], [rgb, sound])
        grid = rgb.grid(103, fps=25.0)
        assert [[c.start, c.stop] for c in clips_in(pieces)] == grid.spans.tolist()
        assert [[c.start_s, c.stop_s] for c in clips_in(pieces)] == (grid.spans / 25).tolist()


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """Videos of 1, 7 and 33 frames."""
    folder = tmp_path_factory.mktemp("lengths")
    return {count: video(folder / f"{count}.mkv", count, seed=count) for count in (1, 7, 33)}


@pytest.mark.parametrize(
    ("tail", "clip_len", "stride", "step", "align"),
    [
        ("drop", 8, 5, 2, "end"),
        ("drop_one", 16, 16, 1, "start"),
        ("repeat", 4, 9, 1, "center"),
        ("loop", 16, 16, 1, "hop"),
    ],
)
def test_every_rule_of_clips_and_windows(lengths, tail, clip_len, stride, step, align):
    rule = {"clip_len": clip_len, "stride": stride, "step": step, "tail": tail}
    options = {"rate": 8000, "window": 3000, "align": align, "hop": 700}
    specs = [spec_of(color="gray", **rule), spec_of(modality="audio", options=options, **rule)]
    for count, path in lengths.items():
        pieces, _ = watch(path, specs, follow=False)
        assert pieces[-1].num_frames == count
        assert_clips(pieces, path, specs)
        assert [[c.start, c.stop] for c in clips_in(pieces)] == specs[0].grid(count).spans.tolist()


def test_an_avi(tmp_path):
    """Its time stamps are made up, by us not to be believed."""
    path = video(tmp_path / "v.avi", 40, codec="mpeg4", crf=None, preset=None, audio_codec="pcm_s16le")
    pieces, _ = watch_growing(tmp_path / "grows.avi", path.read_bytes(), [GRAY, SOUND])
    assert_clips(pieces, path, [GRAY, SOUND])


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_a_clip_does_not_wait_for_later_ones(tmp_path, recording, suffix):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = recording[suffix].read_bytes()
    arrived, in_time, went_on = threading.Event(), [], []

    def write():
        with pipe.open("wb", buffering=0) as file:
            file.write(data[: 2 * len(data) // 5])  # some 41 frames: two clips, and part of the third
            in_time.append(arrived.wait(30))
            went_on.append(time.monotonic())
            file.write(data[2 * len(data) // 5 :])

    thread = threading.Thread(target=write, daemon=True)
    began = time.monotonic()
    thread.start()
    with LiveSource(pipe, [GRAY, SOUND], reconnect=False) as live:
        for piece in live:
            if isinstance(piece, LiveClip):
                assert began < piece.ready < time.monotonic()
                began = piece.ready
                if piece.index == 1:
                    arrived.set()
                if piece.index >= 2:
                    assert piece.ready > went_on[0]
    thread.join()
    assert in_time == [True]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.floats(1, 120))
def test_spans_are_those_of_the_grid(frames, clip_len, stride, step, fps):
    spec = spec_of(clip_len=clip_len, stride=stride, step=step, fps=fps)
    grid = spec.grid(frames, fps=25.0)
    assert [list(span(spec, grid.rate, i, frames)) for i in range(len(grid))] == grid.spans.tolist()


def test_an_mp4_that_is_finished_already(tmp_path, recording):
    path = remux(recording["whole"], tmp_path / "v.mp4", "mp4")
    pieces, _ = watch(path, [GRAY, SOUND], patience_s=60)  # its index says that nothing more comes
    assert_clips(pieces, path, [GRAY, SOUND])
    growing = tmp_path / "grows.mp4"
    growing.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeError, match=r"still written.*record as \.ts, \.mkv or fragmented MP4"):
        watch(growing, [GRAY])


# ---- sound -------------------------------------------------------------------------------------------------------


def timed(path, video_s, sound_s, form="matroska"):
    """A file whose frames, and chunks of 800 samples at 8 kHz, have the given times."""
    with av.open(str(path), "w", format=form) as out:
        pictures = out.add_stream("mpeg4", rate=25)
        pictures.width = pictures.height = 16
        pictures.pix_fmt = "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 1000)
        track = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        packets = []
        for i, seconds in enumerate(video_s):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), i % 256, np.uint8), format="gray8")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        sound = np.random.default_rng(0).integers(-9999, 9999, (len(sound_s), 800)).astype(np.int16)
        for chunk, seconds in zip(sound, sound_s, strict=True):
            frame = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, round(8000 * seconds)
            packets += track.encode(frame)
        packets += track.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def heard(**options):
    return spec_of(modality="audio", options={"rate": 8000, "window": 4000, "align": "end", **options})


def test_sound_that_begins_late_and_pauses_and_ends_early(tmp_path):
    begins_late = [12.5 + 0.1 * i for i in range(10)]  # pictures 10 s later are there before
    pauses = [15.03 + 0.1 * i for i in range(15)]
    path = timed(tmp_path / "v.mkv", np.arange(500) / 25, begins_late + pauses)
    for align in ("end", "start"):
        pieces, notes = watch(path, [heard(align=align)], follow=False)
        assert_clips(pieces, path, [heard(align=align)])
        silent = [not clip.data["audio"].any() for clip in clips_in(pieces)]
        assert 0 < sum(silent) < len(silent)
        assert any("no sound at" in note for note in notes)
        assert any("the sound begins 12.5 s after the picture" in note for note in notes)


@pytest.mark.parametrize("late_s", [6, 14])
def test_sound_that_stands_far_behind_its_pictures(tmp_path, late_s):
    """A fragment of an MP4 holds all its pictures and then all its sound. What comes too late is told."""
    whole = video(tmp_path / "whole.mp4", 15 * late_s, 10)
    options = {"movflags": "empty_moov+default_base_moof", "frag_duration": str(late_s * 1_000_000)}
    path = remux(whole, tmp_path / "v.mp4", "mp4", options)
    pieces, notes = watch_growing(tmp_path / "grows.mp4", path.read_bytes(), [SOUND])
    same = [
        np.array_equal(clip.data["audio"], data)
        for clip, data in zip(clips_in(pieces), wanted(path, SOUND), strict=True)
    ]
    if late_s == 6:
        assert all(same)
    else:
        assert not same[0]
        assert not clips_in(pieces)[0].data["audio"].any()
        assert any("no sound at" in note for note in notes)
    assert sum(same) >= len(same) // 2 - 1


def steps(path, specs):
    """The clips of a file, each with what is kept in memory when it is given out."""
    wish = Wish(specs, None, Reading("keep"), lambda note: None, lambda: False)
    with av.open(str(path)) as container:
        connection = Connection(container, "v", wish)
        for piece in connection.pieces():
            yield piece, connection._stretch


def test_pictures_wait_for_sound_that_does_not_come_only_once(tmp_path):
    path = timed(tmp_path / "v.mkv", np.arange(700) / 25, [0.1 * i for i in range(20)])
    ahead = [stretch.pictures.num_frames - clip.stop for clip, stretch in steps(path, [heard()])]
    assert ahead[3] > 200  # the first one whose sound does not come: 10 s
    assert all(frames < 50 for frames in ahead[20:])  # those whose pictures were not there already: 1 s, and a clip


def test_what_is_kept_is_bounded(tmp_path):
    path = timed(tmp_path / "v.mkv", np.arange(600) / 25, [0.1 * i for i in range(240)])
    specs = [spec_of(color="gray"), heard()]
    for _, stretch in steps(path, specs):
        pictures, sound = stretch.pictures, stretch.sound
        assert len(pictures.clock._index) == len(pictures.clock._seconds) < 50
        assert len(pictures._came) < 50
        assert len(pictures._ledger._waiting) < 50
        assert all(len(tap._waiting) < 50 for tap in pictures._taps)
        assert len(sound._windows._held) < 16_000
        assert not sound._early


def test_frames_at_a_varying_rate(tmp_path):
    """Until one strays nobody knows; from there on sound is placed by the frames' times, as in a whole file."""
    times = np.concatenate([np.arange(100) / 25, 4.3 + np.arange(100) / 20])
    path = timed(tmp_path / "v.mkv", times, [0.1 * i for i in range(95)])
    pieces, _ = watch(path, [heard()], follow=False)
    clips, whole = clips_in(pieces), wanted(path, heard())
    strayed = 6  # the clip of frame 100
    same = [np.array_equal(clip.data["audio"], data) for clip, data in zip(clips, whole, strict=True)]
    assert all(same[strayed:])
    np.testing.assert_allclose([clip.stop_s for clip in clips[:strayed]], [16 * (i + 1) / 25 for i in range(6)])
    np.testing.assert_allclose([clip.start_s for clip in clips[strayed + 1 :]], times[112::16], atol=1e-9)
    np.testing.assert_allclose(clips[7].stop_s, times[128])


def test_a_source_without_sound(tmp_path):
    write_video(tmp_path / "v.mkv", numbered_frames(20, 32, 48))
    with pytest.raises(DecodeError, match="it has no sound, and the run wants some; "):
        watch(tmp_path / "v.mkv", [GRAY, heard()], follow=False)
    pieces, notes = watch(tmp_path / "v.mkv", [GRAY, heard(missing="silence")], follow=False)
    assert_clips(pieces, tmp_path / "v.mkv", [GRAY, heard(missing="silence")])
    assert notes == ["it has no sound: silence"]


# ---- breaking off and coming back --------------------------------------------------------------------------------


def test_two_writers_of_one_pipe(tmp_path, recording):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    second = remux(video(tmp_path / "second.mp4", 40, seed=2), tmp_path / "second.ts", "mpegts")
    parts: list[list[object]] = [[], []]
    with LiveSource(pipe, [GRAY, SOUND]) as live:
        at, threads = 0, []

        def write(path):
            threads.append(threading.Thread(target=pipe.write_bytes, args=(path.read_bytes(),), daemon=True))
            threads[-1].start()

        write(recording["ts"])
        for piece in live:
            if not isinstance(piece, Gap):
                parts[at].append(piece)
                continue
            assert piece.reason == "the writer closed the pipe"
            assert abs(piece.time - time.time()) < 60
            at += 1
            if at == 2:
                break
            write(second)
        for thread in threads:
            thread.join()
    assert_clips(parts[0], recording["ts"], [GRAY, SOUND])
    assert_clips(parts[1], second, [GRAY, SOUND])
    assert not live._thread.is_alive()


def test_a_writer_that_dies_within_a_frame(tmp_path, recording):
    """What is there is given out as a damaged file would be; the next writer is waited for."""
    cut = tmp_path / "cut.ts"
    data = recording["ts"].read_bytes()
    cut.write_bytes(data[: len(data) // 2 + 77])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with writing(pipe, cut.read_bytes()):
        pieces, _ = watch(pipe, [GRAY], reconnect=False)
    assert isinstance(pieces[-1], Ended)
    assert_clips(pieces, cut, [GRAY], damaged="keep")
    assert 40 < pieces[-1].num_frames < 60


def test_damage_is_kept_in_its_place_and_told(tmp_path, recording):
    data = bytearray(recording["ts"].read_bytes())
    rng = np.random.default_rng(3)
    for packet in range(len(data) // 2 // 188, len(data) // 2 // 188 + 20):
        data[packet * 188 + 4 : packet * 188 + 188] = rng.bytes(184)
    path = tmp_path / "bad.ts"
    path.write_bytes(data)
    pieces, notes = watch(path, [GRAY, SOUND])
    assert_clips(pieces, path, [GRAY, SOUND], damaged="keep")
    assert any(re.match(r"\d+ of \d+ frames so far are damaged or missing", note) for note in notes)
    assert pieces[-1].notes == tuple(notes)


@pytest.mark.parametrize("shift_s", [0.0, 60.0])
def test_time_stamps_that_leap(tmp_path, recording, shift_s):
    """Two recordings in one file, as a camera that starts again makes: each has clips of its own."""
    second = remux(video(tmp_path / "second.mp4", 60, seed=2), tmp_path / "second.ts", "mpegts", shift_s=shift_s)
    path = tmp_path / "both.ts"
    path.write_bytes(recording["ts"].read_bytes() + second.read_bytes())
    pieces, _ = watch(path, [GRAY, SOUND])
    gap = next(i for i, piece in enumerate(pieces) if isinstance(piece, Gap))
    assert re.match(f"the time of the frames jumps {'ahead' if shift_s else 'back'} by", pieces[gap].reason)
    for part, source in ((pieces[:gap], recording["ts"]), (pieces[gap + 1 :], second)):
        assert_clips(part, source, [GRAY])
    assert_clips(pieces[:gap], recording["ts"], [SOUND])
    assert_clips(pieces[gap + 1 :], second, [SOUND], offset=1)  # what lies around the seam is of neither clock
    assert pieces[-1].num_frames == 60


@pytest.mark.parametrize("how", ["another file", "in its place"])
def test_a_file_that_is_written_anew(tmp_path, recording, how):
    path = tmp_path / "v.ts"
    path.write_bytes(recording["ts"].read_bytes())
    second = remux(video(tmp_path / "second.mp4", 40, seed=2), tmp_path / "second.ts", "mpegts")
    parts = [[]]
    with LiveSource(path, [GRAY], patience_s=60) as live:
        for piece in live:
            parts[-1].append(piece)
            if isinstance(piece, LiveClip) and piece.index == 5 and len(parts) == 1:
                wait_until(lambda: live._input._file.tell() >= path.stat().st_size)
                if how == "another file":
                    shutil.copy(second, tmp_path / "aside")
                    (tmp_path / "aside").replace(path)
                else:
                    path.write_bytes(second.read_bytes())
            if isinstance(piece, Gap):
                assert piece.reason == "the file is written anew"
                live._input._patience_s = 0.0
                parts.append([])
    assert_clips(parts[0], recording["ts"], [GRAY])
    assert_clips(parts[1], second, [GRAY])


class Server(http.server.BaseHTTPRequestHandler):
    """Gives the bodies one after the other, the last one again and again."""

    bodies: tuple[bytes, ...] = ()
    length = 0
    calls = 0

    def do_GET(self):
        body = self.bodies[min(self.calls, len(self.bodies) - 1)]
        type(self).calls += 1
        self.send_response(200)
        self.send_header("Content-Length", str(self.length or len(body)))  # promises more than it keeps
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(monkeypatch, *bodies, length=0):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Server,), {"bodies": bodies, "length": length})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v.ts", handler
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_hangs_up(tmp_path, recording, monkeypatch):
    data = recording["ts"].read_bytes()
    half = tmp_path / "half.ts"
    half.write_bytes(data[: len(data) // 2])
    parts = [[]]
    with (
        serving(monkeypatch, half.read_bytes(), data, length=len(data)) as (url, handler),
        LiveSource(url, [GRAY], backoff_s=0.01, ahead=100) as live,
    ):
        for piece in live:
            if isinstance(piece, Gap):
                if len(parts) == 2:
                    break
                parts.append([])
            else:
                parts[-1].append(piece)
    assert handler.calls >= 2
    assert_clips(parts[0], half, [GRAY], damaged="keep")
    assert_clips(parts[1], recording["ts"], [GRAY])


@pytest.mark.parametrize(
    ("limit", "value", "skips"), [("_LATE_S", 0.0, True), ("_MOST_BYTES", 1, True), ("_NOTES", 100, False)]
)
def test_clips_are_skipped_aloud_when_nobody_takes_them(recording, monkeypatch, limit, value, skips):
    """Not when a stream comes in a burst, as each segment of HLS does."""
    monkeypatch.setattr(f"extract.live.{limit}", value)
    if not skips:
        monkeypatch.setattr("extract.live._LATE_S", 3600.0)  # however slow this machine is
    notes = []
    with (
        serving(monkeypatch, recording["ts"].read_bytes()) as (url, _),
        LiveSource(url, [GRAY], reconnect=False, ahead=2, on_note=notes.append) as live,
    ):
        pieces = iter(live)
        first = next(pieces)
        wait_until(lambda: not live._thread.is_alive())  # all is there now, but for what was skipped
        rest = list(pieces)
    taken = [clip.index for clip in clips_in([first, *rest])]
    assert taken[-2:] == [5, 6]
    assert (len(taken) < 7) == skips
    skipped = [re.match(r"slower than the source: (\d+) frames \((\d+) clips\) skipped", note) for note in notes]
    assert sum(int(found[2]) for found in skipped) == 7 - len(taken)
    assert sum(int(found[1]) for found in skipped) == 16 * (7 - len(taken))
    assert rest[-1] == Ended(103, tuple(notes))


def test_a_server_that_does_not_answer(monkeypatch):
    with serving(monkeypatch) as (url, _):
        pass
    notes = []
    with (
        pytest.raises(DecodeError, match=r"given up after 3 attempts \(http://.*refused"),
        LiveSource(url, [GRAY], max_retries=2, backoff_s=0.001, on_note=notes.append) as live,
    ):
        list(live)
    assert [note.rsplit("; ", 1)[1] for note in notes] == ["next attempt in 0.001 s", "next attempt in 0.002 s"]


def test_a_picture_makes_up_for_failures(tmp_path, monkeypatch):
    """Only attempts in a row count."""
    one = remux(video(tmp_path / "one.mp4", 3), tmp_path / "one.ts", "mpegts").read_bytes()
    pieces = []
    with serving(monkeypatch, one, b"", one, b"", one, b"") as (url, handler):
        live = LiveSource(url, [spec_of()], max_retries=1, backoff_s=0.001)
        with pytest.raises(DecodeError, match="given up after 2 attempts"):
            pieces.extend(live)
        assert handler.calls == 7
    assert [type(piece) for piece in pieces] == [LiveClip, Gap] * 3


def test_standard_input(recording, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(read) as file, writing(write, recording["mkv"].read_bytes()):
        monkeypatch.setattr(sys, "stdin", file)
        pieces, _ = watch("-", [GRAY, SOUND])
    assert pieces[-1].num_frames == 103  # nobody else can write to it
    assert_clips(pieces, recording["mkv"], [GRAY, SOUND])


# ---- bounds ------------------------------------------------------------------------------------------------------


WRITER = """
import sys
import av
source, pipe, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with av.open(source) as found, av.open(pipe, "w", format="mpegts") as out:
    stream = found.streams.video[0]
    track = out.add_stream_from_template(stream)
    packets = [(packet, packet.pts, packet.dts) for packet in found.demux(stream) if packet.dts is not None]
    for number in range(count):
        packet, *times = packets[number % len(packets)]
        since = round(number // len(packets) * len(packets) / 25 / stream.time_base)
        packet.stream, packet.time_base = track, stream.time_base
        packet.pts, packet.dts = (time + since for time in times)
        out.mux(packet)
"""


@contextmanager
def endless(tmp_path, count):
    """A named pipe into which another process writes `count` frames."""
    pipe, source = tmp_path / "pipe", tmp_path / "few.mp4"
    os.mkfifo(pipe)
    write_video(source, numbered_frames(50, 32, 48), gop=25)
    with subprocess.Popen([sys.executable, "-c", WRITER, source, pipe, str(count)]) as process:
        try:
            yield pipe, process
        finally:
            process.kill()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")
def test_memory_does_not_grow(tmp_path):
    memory = {}
    with endless(tmp_path, 20_000) as (pipe, _), LiveSource(pipe, [spec_of(color="gray")], reconnect=False) as live:
        for piece in live:
            if isinstance(piece, LiveClip) and piece.start in (2000, 19_200):
                memory[piece.start] = resident()
    assert piece == Ended(20_000, ())
    assert memory[19_200] - memory[2000] < 8 << 20  # a frame is 1.5 kB, 27 MB in all


def test_the_writer_of_a_pipe_is_held_back(tmp_path):
    """The clips ahead wait to be taken, and the writer with them."""
    with (
        endless(tmp_path, 1600) as (pipe, process),
        LiveSource(pipe, [spec_of()], reconnect=False, ahead=2) as live,
    ):
        pieces = iter(live)
        next(pieces)
        wait_until(lambda: live._clips == 2)
        time.sleep(0.2)
        assert process.poll() is None
        assert live._clips == 2
        rest = list(pieces)
        assert [clip.index for clip in clips_in(rest)] == list(range(1, 100))
        assert process.wait(120) == 0


def test_closing_stops_everything(tmp_path, recording):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    waiting = LiveSource(pipe, [GRAY])
    taker = threading.Thread(target=lambda: list(waiting))
    taker.start()
    wait_until(waiting._thread.is_alive)  # no writer comes
    waiting.close()
    taker.join(120)
    assert not taker.is_alive()
    assert not waiting._thread.is_alive()
    pieces = iter(live := LiveSource(recording["ts"], [GRAY], patience_s=60, ahead=1))
    assert next(pieces).index == 0
    pieces.close()  # as a loop that is left does
    assert not live._thread.is_alive()
    LiveSource(recording["ts"], [GRAY]).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "live"]


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "at least one spec"),
        ([GRAY, GRAY], "two specs have the modality 'flow'"),
        ([spec_of(modality="text")], "text does not come"),
        ([spec_of(tail="equal")], "tail 'equal'"),
        ([GRAY, spec_of(stride=8)], "test has a clip every 8 frames"),
    ],
)
def test_specs_that_do_not_go_together(specs, said):
    with pytest.raises(ValueError, match=said):
        LiveSource("-", specs)


def test_sources_that_are_none(tmp_path, recording):
    for source, said in (
        (tmp_path / "none.ts", r"none.ts: nothing there \(no such file.*rtsp://"),
        (tmp_path, "a folder, and nothing that can be watched"),
    ):
        with pytest.raises(DecodeError, match=said):
            LiveSource(source, [GRAY])
    text = tmp_path / "text.ts"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4.0,\nfile://{recording['ts']}\n#EXT-X-ENDLIST\n"
    for body in ("no video" * 100, playlist):  # which would read other files
        text.write_text(body)
        with pytest.raises(DecodeError, match=r"no video can be read.*nothing was written for 0.15 s; record as"):
            watch(text, [GRAY])
