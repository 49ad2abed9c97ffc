"""Windows of sound, checked to the sample against files written with known sound at known times."""

import tracemalloc
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.datasets.toy_video import write_video
from extract.audio import AudioClips, SoundRule, _windows
from extract.decode import DecodeError, VideoReader
from extract.soundtrack import SoundTrack, to_mono
from tests.helpers import numbered_frames, spec_of

RATE = 16000
PCM = 2**-15  # of 16 bits


def spec(window=1000, align="end", missing="error", rate=RATE, hop=0, **changes):
    options = {"rate": rate, "window": window, "align": align, "missing": missing, "hop": hop}
    return spec_of(**{"modality": "audio", "options": options} | changes)


def noise(seconds, rate=RATE, seed=0):
    return (np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))).astype(np.float32)


def black(count):
    frame = np.zeros((16, 16, 3), np.uint8)
    return (frame for _ in range(count))


def write(path, count, sound, fps=24, *, rate=RATE, codec="pcm_s16le", **options):
    if path.suffix == ".mov":
        options = {"codec": "mpeg4", "crf": None, "preset": None} | options
    write_video(path, black(count), fps, audio=sound, sample_rate=rate, audio_codec=codec, **options)
    return path


def write_timed(path, *, video_pts, sound, sound_pts, rate=RATE, fps=24):
    """A file whose pictures and sound have the given times: in milliseconds, and for chunks of 800 samples."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("mpeg4", rate=fps)
        pictures.width = pictures.height = 16
        pictures.pix_fmt = "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 1000)
        track = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        packets = []
        for pts in video_pts:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        for chunk, pts in zip(np.split(sound, range(800, len(sound), 800)), sound_pts, strict=True):
            data = np.rint(chunk * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
            packets += track.encode(frame)
        packets += track.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def read(path, spec, **options):
    """Windows (N, S), notes, number of frames."""
    with AudioClips(path, spec, **options) as clips:
        windows = list(clips)
        return np.stack(windows), clips.notes, clips.num_frames


def cut(sound, first, size):
    """The reference: sample by sample, zeros outside."""
    return np.array([sound[i] if 0 <= i < len(sound) else 0 for i in range(first, first + size)], np.float32)


def seconds_of(clip, spec, fps):
    return Fraction(clip * spec.stride) / fps, Fraction(clip * spec.stride + spec.clip_len * spec.step) / fps


# ---- which samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [24, 25, Fraction(30000, 1001)])
@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 100),
        ({"tail": "drop"}, 100),
        ({"tail": "drop_one"}, 96),
        ({"clip_len": 8, "stride": 5, "step": 2}, 61),
        ({}, 1),
        ({"stride": 40}, 90),
    ],
)
def test_every_window_is_the_sound_of_its_clip(tmp_path, fps, changes, count):
    sound = np.round(noise(4.5) / PCM) * PCM
    path = write(tmp_path / "v.mov", count, sound, fps)
    size = 1801
    rules = {
        "end": lambda begin, end: round(end * RATE) - size,
        "start": lambda begin, end: round(begin * RATE),
        "center": lambda begin, end: round((begin + end) / 2 * RATE) - size // 2,
        "hop": lambda begin, end: int((begin + end) / 2 // Fraction(1500, RATE)) * 1500,
    }
    for align, first in rules.items():
        wanted = spec(size, align, hop=1500, **changes)
        windows, notes, frames = read(path, wanted)
        assert (frames, notes) == (count, [])
        assert len(windows) == len(wanted.grid(count))
        assert windows.dtype == np.float32
        for i, window in enumerate(windows):
            np.testing.assert_array_equal(window, cut(sound, first(*seconds_of(i, wanted, fps)), size))


def test_the_first_windows_of_xd_violence():
    """16 frames at 24 per second end at 0.667 s: 0.96 s before, a window begins 4,693 samples before the sound."""
    rule = SoundRule(RATE, 15360)
    ends = np.array([16, 32, 48]) / 24 * RATE
    assert rule.first_samples(ends - 1, ends).tolist() == [10667 - 15360, 21333 - 15360, 32000 - 15360]


def test_resampled_video_is_cut_by_time(tmp_path):
    sound = np.round(noise(4) / PCM) * PCM
    path = write(tmp_path / "v.mov", 120, sound, 30)
    wanted = spec(fps=24.0)
    windows, _, frames = read(path, wanted)
    assert frames == 120  # its own: 4 s
    assert len(windows) == len(wanted.grid(120, fps=30.0)) == 6  # 96 frames at 24 per second
    for i, window in enumerate(windows):
        np.testing.assert_array_equal(window, cut(sound, round(Fraction(16 * (i + 1), 24) * RATE) - 1000, 1000))


@pytest.mark.parametrize(("suffix", "fps"), [(".mkv", Fraction(30000, 1001)), (".mkv", 24), (".mov", 25)])
def test_ten_minutes_do_not_drift(tmp_path, suffix, fps):
    """A click every second, at 8 kHz. Matroska rounds times to milliseconds; 29.97 frames/s drift 0.6 s from 30."""
    frames = round(600 * fps)
    sound = np.zeros(600 * 8000, np.float32)
    sound[4000::8000] = 0.9
    path = write(tmp_path / f"v{suffix}", frames, sound, fps, rate=8000)
    rule = spec(RATE, "start", stride=16 * 9)
    windows, notes, counted = read(path, rule)
    assert counted == frames
    assert not notes
    for i, window in enumerate(windows):
        first = round(Fraction(i * rule.stride) / fps * RATE)
        due = [s * RATE + RATE // 2 - first for s in range(600)]
        [due] = [d for d in due if 0 <= d < RATE]
        assert abs(int(np.argmax(np.abs(window))) - due) <= 1


def test_blocks_of_any_size_give_the_same_windows():
    sound = noise(0.5, seed=3)

    @given(
        st.lists(st.integers(0, 3000), max_size=20),
        st.lists(st.integers(-500, 9000), min_size=1, max_size=20).map(sorted),
        st.integers(1, 2500),
    )
    def check(cuts, first, size):
        stretches = iter(np.split(sound, sorted(cuts)))
        for start, window in zip(first, _windows(stretches, np.array(first), size), strict=True):
            padded = np.concatenate([np.zeros(500), sound, np.zeros(9000 + size)])
            np.testing.assert_array_equal(window, padded[500 + start : 500 + start + size].astype(np.float32))

    check()


def test_memory_does_not_grow_with_the_sound():
    def hour() -> Iterator[np.ndarray]:
        for second in range(3600):
            yield np.full(RATE, second, np.float32)

    tracemalloc.start()
    first = np.arange(0, 3600 * RATE, 10667)
    count = sum(1 for _ in _windows(hour(), first, 15600))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(first)
    assert peak < 4e6  # the hour has 230e6 bytes


# ---- rates, channels, codecs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_clicks_keep_their_place_at_other_rates(tmp_path, rate):
    at = [0.25, 1.0, 2.9]
    sound = np.zeros(3 * rate, np.float32)
    sound[[round(t * rate) for t in at]] = 0.9
    path = write(tmp_path / "v.mov", 72, sound, rate=rate)
    windows, _, _ = read(path, spec(3 * RATE, "start", clip_len=72, stride=72))
    peaks = [int(np.argmax(np.abs(windows[0][t - 200 : t + 200]))) - 200 for t in (round(t * RATE) for t in at)]
    assert np.abs(peaks).max() <= 1


def test_tones_survive_another_rate_and_those_above_its_half_do_not(tmp_path):
    t = np.arange(44100) / 44100
    for hertz, amplitude in ((440, 0.5), (6000, 0.5), (12000, 0.0)):
        sound = (0.5 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)
        path = write(tmp_path / "v.mov", 24, sound, rate=44100)
        windows, _, _ = read(path, spec(RATE, "start", clip_len=24, stride=24))
        wanted = amplitude * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)
        np.testing.assert_allclose(windows[0][2000:-2000], wanted[2000:-2000], atol=2e-3)  # 16 bits, and the filter


def test_channels_are_averaged(tmp_path):
    sound = np.stack([noise(2, seed=1), noise(2, seed=2)])
    path = tmp_path / "v.mov"
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("mpeg4", rate=24)
        pictures.width = pictures.height = 16
        pictures.pix_fmt = "yuv420p"
        track = out.add_stream("pcm_f32le", rate=RATE, layout="stereo")
        out.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        out.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1).copy(), format="flt", layout="stereo")
        frame.sample_rate = RATE
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    windows, _, frames = read(path, spec(2 * RATE, "start"))
    assert frames == len(windows) == 1
    np.testing.assert_array_equal(windows[0], np.array([(a + b) / 2 for a, b in sound.T], np.float32))


@pytest.mark.parametrize(
    ("name", "kind", "levels"),
    [
        ("u8", np.uint8, [0, 128, 192]),
        ("s16", np.int16, [-(2**15), 0, 2**14]),
        ("s32", np.int32, [-(2**31), 0, 2**30]),
        ("flt", np.float32, [-1, 0, 0.5]),
        ("dbl", np.float64, [-1, 0, 0.5]),
    ],
)
def test_every_sample_format_has_the_same_scale(name, kind, levels):
    planes = np.array([levels, levels[::-1]], dtype=kind)
    wanted = np.array([-0.25, 0, -0.25], np.float32)
    packed = av.AudioFrame.from_ndarray(planes.T.reshape(1, -1).copy(), format=name, layout="stereo")
    planar = av.AudioFrame.from_ndarray(planes, format=f"{name}p", layout="stereo")
    np.testing.assert_array_equal(to_mono(packed), wanted)
    np.testing.assert_array_equal(to_mono(planar), wanted)


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"), [(".mp4", "aac", RATE), (".mkv", "aac", 44100), (".mkv", "flac", 48000)]
)
def test_compressed_sound_is_not_displaced(tmp_path, suffix, codec, rate):
    """An AAC encoder puts 1024 samples before the sound (priming): the lag of the best match must be 0."""
    sound = np.repeat(noise(4, seed=5, rate=rate // 4), 4)[: 4 * rate]  # low-passed, so that AAC keeps it
    path = write(tmp_path / f"v{suffix}", 96, sound, rate=rate, codec=codec)
    windows, _, _ = read(path, spec(RATE * 3, "start", clip_len=96, stride=96))
    grid = np.arange(3 * RATE) / RATE * rate
    source = np.interp(grid, np.arange(len(sound)), sound)
    spectrum = np.fft.rfft(windows[0], 8 * RATE) * np.conj(np.fft.rfft(source, 8 * RATE))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 8 * RATE - lag) <= 1


def test_loud_sound_stays_within_one(tmp_path):
    path = write(tmp_path / "v.mov", 24, 3 * noise(1), codec="pcm_f32le")
    windows, _, _ = read(path, spec(RATE, "start", clip_len=24))
    assert np.abs(windows).max() == 1


def test_avi_with_reordered_frames(tmp_path):
    """AVI has no presentation times: the first frame seems to come late, the sound must not."""
    sound = np.round(noise(3) / PCM) * PCM
    path = tmp_path / "v.avi"
    write_video(path, numbered_frames(72), 24, audio=sound, sample_rate=RATE, audio_codec="pcm_s16le")
    windows, _, _ = read(path, spec(RATE, "start"))
    np.testing.assert_array_equal(windows[0], sound[:RATE])


# ---- time ---------------------------------------------------------------------------------------------------------

FRAMES_72 = [round(i * 1000 / 24) for i in range(72)]


@pytest.mark.parametrize(("late_video", "late_sound"), [(0, 0.5), (0.5, 0), (0.25, 0.75), (0.75, 0.25), (0, 2.0)])
def test_streams_that_begin_at_different_times(tmp_path, late_video, late_sound):
    sound = np.round(noise(3) * 32767) * PCM
    pts = [round(late_sound * RATE) + 800 * i for i in range(60)]
    video = [t + round(1000 * late_video) for t in FRAMES_72]
    path = write_timed(tmp_path / "v.mkv", video_pts=video, sound=noise(3), sound_pts=pts)
    windows, notes, _ = read(path, spec(2000))
    moved = round((late_sound - late_video) * RATE)
    padded = np.concatenate([np.zeros(max(moved, 0)), sound[max(-moved, 0) :]])
    for i, window in enumerate(windows):
        np.testing.assert_array_equal(window, cut(padded, round(Fraction(16 * (i + 1), 24) * RATE) - 2000, 2000))
    late = "the sound begins 2.0 s after the picture: silence before"
    assert [n for n in notes if "begins" in n] == ([late] if late_sound == 2.0 else [])


def test_a_hole_in_the_sound_stays_where_it_is(tmp_path):
    """20 of 60 chunks are missing: a second of silence, and what follows is in its place."""
    sound = noise(3)
    pts = [800 * i for i in range(60)]
    kept = [i for i in range(60) if not 20 <= i < 40]
    path = write_timed(
        tmp_path / "v.mkv",
        video_pts=FRAMES_72,
        sound=np.concatenate([sound[800 * i : 800 * i + 800] for i in kept]),
        sound_pts=[pts[i] for i in kept],
    )
    sound = np.round(sound * 32767) * PCM
    sound[16000:32000] = 0
    windows, notes, _ = read(path, spec(3 * RATE, "start", clip_len=72))
    np.testing.assert_array_equal(windows[0], sound.astype(np.float32))
    assert notes == ["1.00 s are missing within the sound: silence there"]


def test_a_hole_in_the_pictures_moves_the_clips_behind_it(tmp_path):
    """The camera lost a second of pictures behind frame 31; the sound went on."""
    sound = noise(4)
    video = [t + 1000 * (i >= 32) for i, t in enumerate(FRAMES_72)]
    path = write_timed(tmp_path / "v.mkv", video_pts=video, sound=sound, sound_pts=[800 * i for i in range(80)])
    windows, notes, _ = read(path, spec(1000, "start", fps=None))
    sound = np.round(sound * 32767) * PCM
    for i, window in enumerate(windows):
        np.testing.assert_array_equal(window, cut(sound, round(video[16 * i] / 1000 * RATE), 1000))
    assert notes[1:] == ["sound is placed by the times of the frames"]


def track_of(path, *pieces):
    """The sound track of a file, with other decoded pieces than it has: (samples, rate, time)."""
    track = SoundTrack(path, RATE)
    track._decoded = lambda: iter(pieces)
    return track


def test_sound_that_overlaps_or_jumps_back(tmp_path):
    """Muxers do not write such files, cameras do."""
    path = write(tmp_path / "v.mov", 24, noise(1))
    sound = noise(3)
    overlapping = track_of(path, (sound[:RATE], RATE, 5.0), (sound[8000:24000], RATE, 5.5), (sound[24000:], RATE, 6.5))
    np.testing.assert_array_equal(np.concatenate(list(overlapping.stretches(5.0))), sound)
    overlapping.close()
    back = track_of(path, *((sound[:RATE], RATE, t) for t in (5.0, 6.0, 7.0, 5.25)))
    with pytest.raises(DecodeError, match=r"v.mov: the time of the sound jumps back by 2.75 s, to 0.25 s; .*ffmpeg"):
        list(back.stretches(5.0))
    back.close()


def test_a_rate_that_changes_within_the_sound(tmp_path):
    path = write(tmp_path / "v.mov", 24, noise(1))
    tone = {rate: np.sin(2 * np.pi * 300 * np.arange(rate) / rate).astype(np.float32) for rate in (8000, RATE, 48000)}
    track = track_of(path, (tone[RATE], RATE, 0.0), (tone[48000], 48000, None), (tone[8000], 8000, 2.0))
    sound = np.concatenate(list(track.stretches(0.0)))[: 3 * RATE]
    track.close()
    assert track.gaps <= 1  # what the filter held back was let out
    wanted = np.sin(2 * np.pi * 300 * np.arange(3 * RATE) / RATE)
    inside = np.abs(np.arange(3 * RATE) % RATE - RATE / 2) < RATE / 2 - 100  # the filter's ends
    np.testing.assert_allclose(sound[inside], wanted[inside], atol=2e-3)


def test_sound_shorter_and_longer_than_the_picture(tmp_path):
    sound = np.round(noise(10) / PCM) * PCM
    short = write(tmp_path / "short.mov", 240, sound[: 4 * RATE])
    windows, notes, _ = read(short, spec())
    assert notes == ["the sound ends 6.0 s before the picture: silence from there"]
    assert len(windows) == 15
    assert not windows[6:].any()
    np.testing.assert_array_equal(windows[5], sound[63000:64000])
    long = write(tmp_path / "long.mov", 48, sound)
    windows, notes, _ = read(long, spec())
    assert len(windows) == 3
    assert notes == []
    np.testing.assert_array_equal(windows[-1], sound[31000:32000])


def test_a_last_clip_that_reaches_beyond_the_picture_hears_what_is_there(tmp_path):
    sound = np.round(noise(1.4) / PCM) * PCM
    path = write(tmp_path / "v.mov", 20, sound)
    windows, _, _ = read(path, spec())
    np.testing.assert_array_equal(windows[1], cut(sound, 21333 - 1000, 1000))
    assert windows[1].any()


# ---- files that lack something --------------------------------------------------------------------------------------


def test_a_video_without_sound(tmp_path):
    path = tmp_path / "mute.mp4"
    write_video(path, numbered_frames(40), 24)
    with pytest.raises(DecodeError, match=r"mute.mp4: it has no sound; .*--option missing=silence"):
        AudioClips(path, spec())
    windows, notes, frames = read(path, spec(missing="silence"))
    assert windows.shape == (3, 1000)
    assert not windows.any()
    assert (notes, frames) == (["it has no sound: silence"], 40)


def test_a_folder_of_pictures_has_no_sound(tmp_path):
    import cv2

    folder = tmp_path / "v"
    folder.mkdir()
    for i, frame in enumerate(numbered_frames(20)):
        cv2.imwrite(str(folder / f"{i:03d}.png"), frame)
    with pytest.raises(DecodeError, match="it has no sound"):
        AudioClips(folder, spec())
    windows, notes, frames = read(folder, spec(missing="silence"), fps=24.0)
    assert (len(windows), frames, notes) == (2, 20, ["it has no sound: silence"])


def test_an_empty_sound_track_is_no_sound(tmp_path):
    path = write(tmp_path / "v.mkv", 40, np.zeros(0, np.float32))
    with pytest.raises(DecodeError, match="it has no sound"):
        read(path, spec())
    windows, notes, _ = read(path, spec(missing="silence"))
    assert not windows.any()
    assert notes == ["it has no sound: silence"]


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        track = out.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(1)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    with pytest.raises(DecodeError, match="holds no video stream"):
        AudioClips(path, spec())


def test_a_playlist_is_refused(tmp_path):
    write(tmp_path / "v.mp4", 40, noise(2), codec="aac")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2,\nv.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(DecodeError, match="not a video"):
        AudioClips(tmp_path / "list.m3u8", spec())


def spoil(path, *packets):
    """Writes zeros over packets of the sound."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.audio[0]) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in (places[i] for i in packets):
        data[start : start + size] = bytes(size)
    path.write_bytes(data)


def test_damaged_sound_is_refused_or_silent(tmp_path):
    whole = write(tmp_path / "whole.mp4", 96, noise(4), codec="aac")
    path = write(tmp_path / "v.mp4", 96, noise(4), codec="aac")
    spoil(path, 30, 31)
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == 96  # the pictures are whole
    with pytest.raises(
        DecodeError, match=r"v.mp4: 2 of 64 packets of the sound .*; .*re-encode its sound.*--damaged keep"
    ):
        read(path, spec())
    one = spec(4 * RATE, "start", clip_len=96)
    wanted, _, _ = read(whole, one)
    with AudioClips(path, one, damaged="keep") as clips:
        [found] = clips
        assert clips.lost == 2
    # 1024 samples each, the first one the encoder's own; packets overlap by half
    np.testing.assert_array_equal(found[: 29 * 1024], wanted[0][: 29 * 1024])
    np.testing.assert_array_equal(found[33 * 1024 :], wanted[0][33 * 1024 :])
    assert not found[29 * 1024 : 31 * 1024].any()
    assert clips.notes[0].startswith("packets of the sound that cannot be decoded: 2 (")
    assert clips.notes[1] == "0.13 s are missing within the sound: silence there"


def test_damaged_pictures_are_refused_or_counted(tmp_path):
    """The sound of a kept video is that of the whole one: every frame keeps its number."""
    path = tmp_path / "v.mp4"
    write_video(path, numbered_frames(96), 24, audio=noise(4), sample_rate=RATE, gop=8)
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    whole, _, _ = read(path, spec())
    data = bytearray(path.read_bytes())
    data[places[41][0] : sum(places[41])] = bytes(places[41][1])
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="frames cannot be decoded"):
        read(path, spec())
    with AudioClips(path, spec(), damaged="keep") as clips:
        np.testing.assert_array_equal(np.stack(list(clips)), whole)
        assert clips.num_frames == 96
        assert clips.lost >= 1


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    sound = noise(2)
    sound[5000] = np.nan
    path = write(tmp_path / "v.mov", 48, sound, codec="pcm_f32le")
    with pytest.raises(DecodeError, match=r"1 of 32 packets .* \(samples that are no numbers\)"):
        read(path, spec())


def test_frames_are_counted_as_the_visual_stage_counts_them(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, numbered_frames(61), 24, audio=noise(3), gop=7)
    with VideoReader(path) as reader:
        wanted = sum(1 for _ in reader)
    with AudioClips(path, spec()) as clips:
        assert clips.fps == 24.0
        assert clips.num_bytes == path.stat().st_size
        list(clips)
        assert clips.num_frames == wanted == 61


def test_the_frame_rate_of_the_file_comes_before_the_manifest(tmp_path):
    path = write(tmp_path / "v.mov", 48, noise(2))
    with AudioClips(path, spec(), fps=30.0) as clips:
        assert clips.fps == 24.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": "middle"}, "align must be one of end, start, center, hop, got 'middle'"),
        ({"missing": "zero"}, "missing must be one of error, silence, got 'zero'"),
        ({"window": 0}, "window must be a whole number from 1"),
        ({"rate": 0.5}, "rate must be a whole number from 1"),
        ({"align": "hop"}, "hop must be a whole number from 1"),
        ({"resampler": "sinc"}, "resampler must be swr"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SoundRule.of(spec_of(options={"rate": RATE, "window": 100, "colour": "red"} | options))


def test_a_spec_without_a_rate_is_refused():
    with pytest.raises(ValueError, match="test: the options of an audio backbone lack 'rate'"):
        SoundRule.of(spec_of(options={"window": 100}))
