"""Annotated videos, decoded again: frames in their places and times, each with its own score, red in events alone."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from data.datasets.toy_video import write_video
from extract.frame_times import frame_times
from mil.annotate import annotate
from mil.events import EventRule, Span, find_events
from mil.overlay import BLUE, CURVE_S, RED, TRACK, WHITE, Overlay
from tests.test_extract_decode import rotate
from tests.test_extract_frame_times import PHONE, write_stamped

WIDTH, HEIGHT = 160, 120


def grays(count, height=HEIGHT, width=WIDTH):
    """Frames of one gray each, no two neighbours of which are near."""
    for number in range(count):
        yield np.full((height, width, 3), gray_of(number), np.uint8)


def gray_of(number):
    return 90 + 37 * number % 150


def decoded(path):
    """Frames (F, H, W, 3) BGR, and their seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="bgr24") for f in frames]), np.array([f.time for f in frames])


def is_near(pixels, colour, tolerance=60):
    return np.abs(pixels.astype(np.int64) - colour).max(axis=-1) < tolerance


def is_red(frames):
    """Whether the picture has a red border on the left: (F,)."""
    return is_near(frames[:, 20:60, :2], RED).mean(axis=(1, 2)) > 0.9


def bar_of(frame):
    """How much of the lower edge the bar covers, 0 to 1, without the mark of the threshold."""
    row = frame[-2:].mean(axis=0)
    return np.mean(is_near(row, RED) | is_near(row, BLUE))


def test_frame_i_shows_score_i_and_is_red_in_events_alone(tmp_path):
    count, fps = 70, 25.0
    source = tmp_path / "v.mp4"
    write_video(source, grays(count), fps, crf=10, options={"bf": "3"})
    scores = np.random.default_rng(0).uniform(0, 1, count)
    scores[20:31] = 0.9
    times = frame_times(source, count, fps)
    events = [Span(20 / fps, 31 / fps, 0.9, 20 / fps), Span(60 / fps, 2.8, 0.9, 2.5)]
    told = []
    notes = annotate(
        source, tmp_path / "o.mp4", scores, times, threshold=None, events=events, title="x", progress=told.append
    )
    frames, seconds = decoded(tmp_path / "o.mp4")
    assert notes == ()
    assert told == list(range(1, count + 1))
    assert frames.shape == (count, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(seconds, times[:-1], atol=2e-5)
    middles = frames[:, 40:60, 60:100].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(middles, [gray_of(i) for i in range(count)], atol=3)
    np.testing.assert_allclose([bar_of(f) for f in frames], scores, atol=2.5 / WIDTH)
    inside = is_red(frames)
    assert np.flatnonzero(inside).tolist() == [*range(20, 31), *range(60, 70)]
    for frame, yes in zip(frames, inside, strict=True):
        assert is_near(frame[-2:, :2], RED if yes else BLUE).all() or bar_of(frame) < 0.05


def test_a_phones_video_keeps_its_times_and_stands_upright(tmp_path):
    source = write_stamped(tmp_path / "v.mp4", PHONE, bf="2", **{"x264-params": "sar=4/3"})  # 48x32 in the file
    rotate(source, (0, 1, -1, 0))
    times = frame_times(source, 22, 20.0)
    assert np.ptp(np.diff(times)) > 0.05
    annotate(source, tmp_path / "o.mp4", np.linspace(0, 1, 22), times, threshold=0.5, events=())
    frames, seconds = decoded(tmp_path / "o.mp4")
    assert frames.shape == (22, 48, 32, 3)
    np.testing.assert_allclose(seconds, np.array(PHONE) / 1000, atol=1e-4)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
        assert container.duration / 1e6 == pytest.approx(times[-1], abs=2e-3)


def test_colours_stay_what_they_are(tmp_path):
    """Of a large picture, which players take for BT.709, as of a small one: they look alike to a decoder."""
    for height, width in ((720, 1280), (144, 176)):
        colours = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 220], [230, 200, 60]], np.uint8)
        picture = np.repeat(np.repeat(colours[None], width // 4, axis=1), height, axis=0)
        source, out = tmp_path / "v.mp4", tmp_path / "o.mp4"
        write_video(source, [picture] * 3, 25, codec="libx264rgb", pix_fmt="rgb24", crf=0)
        annotate(source, out, np.zeros(3), np.arange(4) / 25, threshold=None, events=())
        with av.open(str(out)) as container:
            found = next(container.decode(video=0))
            assert (found.colorspace, found.color_range) == (1, 1)
            image = found.to_ndarray(format="rgb24")
        middles = image[height // 3, width // 8 :: width // 4]
        np.testing.assert_allclose(middles.astype(int), colours, atol=12)


def tone(frequency, seconds, rate=16000):
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_sound_stays_with_the_picture(tmp_path):
    sound = tone(440, 3)
    sound[: 16000 * 2] = 0  # it begins after two seconds
    source, out = tmp_path / "v.mp4", tmp_path / "o.mp4"
    write_video(source, grays(75, 32, 48), 25, audio=sound)
    assert annotate(source, out, np.zeros(75), np.arange(76) / 25, threshold=None, events=()) == ()
    with av.open(str(out)) as container:
        track = container.streams.audio[0]
        assert (track.codec_context.name, track.rate) == ("aac", 48000)
        pieces = [(f.time, f.to_ndarray().ravel()) for f in container.decode(track)]
    at, loud = next((time, p) for time, p in pieces if np.abs(p).max() > 0.1)
    begins = at + np.flatnonzero(np.abs(loud) > 0.1)[0] / 48000
    for (time, piece), (following, _) in pairwise(pieces):
        assert following - time == pytest.approx(len(piece) / 48000, abs=1e-4)
    assert begins == pytest.approx(2.0, abs=0.03)
    assert pieces[-1][0] + len(pieces[-1][1]) / 48000 == pytest.approx(3.0, abs=0.05)


def test_odd_sizes_folders_and_a_single_frame(tmp_path):
    write_video(tmp_path / "v.mkv", grays(1, 37, 51), 25, codec="libx264rgb", pix_fmt="rgb24", crf=0)
    annotate(tmp_path / "v.mkv", tmp_path / "o.mp4", np.ones(1), np.array([0, 0.04]), threshold=0.5, events=())
    assert decoded(tmp_path / "o.mp4")[0].shape == (1, 38, 52, 3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(grays(5, 32, 48)):
        codec = av.CodecContext.create("png", "w")
        codec.width, codec.height, codec.pix_fmt, codec.time_base = 48, 32, "rgb24", Fraction(1, 25)
        packets = [*codec.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *codec.encode(None)]
        (folder / f"{number}.png").write_bytes(b"".join(bytes(p) for p in packets))
    annotate(folder, tmp_path / "f.mp4", np.ones(5), np.arange(6) / 10, threshold=0.5, events=())
    frames, seconds = decoded(tmp_path / "f.mp4")
    np.testing.assert_allclose(seconds, np.arange(5) / 10, atol=1e-4)
    np.testing.assert_allclose(frames[:, 8, 8].mean(axis=-1), [gray_of(i) for i in range(5)], atol=4)


@pytest.mark.parametrize("count", [9, 11])
def test_nothing_is_written_of_a_video_with_other_frames_than_scores(tmp_path, count):
    source, out = tmp_path / "v.mp4", tmp_path / "o.mp4"
    write_video(source, grays(10, 32, 48), 25)
    out.write_text("of before")
    wanted = "9 scores, but more frames" if count == 9 else "11 scores, but 10 frames"
    with pytest.raises(ValueError, match=rf"v\.mp4: {wanted}; did the file change"):
        annotate(source, out, np.zeros(count), np.arange(count + 1) / 25, threshold=None, events=())
    assert out.read_text() == "of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mp4", "v.mp4"]


def test_what_is_refused(tmp_path):
    source = tmp_path / "v.mp4"
    write_video(source, grays(2, 32, 48), 25)
    scores, times = np.zeros(2), np.arange(3) / 25
    options = {"threshold": None, "events": ()}
    with pytest.raises(ValueError, match=r"that is the video itself"):
        annotate(source, tmp_path / "v.mp4", scores, times, **options)
    with pytest.raises(ValueError, match=r"is an \.mp4, got 'o\.avi'"):
        annotate(source, tmp_path / "o.avi", scores, times, **options)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(2,\)"):
        annotate(source, tmp_path / "o.mp4", scores, times[:2], **options)
    with pytest.raises(ValueError, match="must be finite"):
        annotate(source, tmp_path / "o.mp4", scores + np.nan, times, **options)
    assert len(list(tmp_path.iterdir())) == 1


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(64, 48), (160, 120), (320, 240), (1280, 720), (1080, 1920)])
def test_sizes_follow_the_picture(width, height):
    scores, times = np.repeat([0.1, 0.8, 0.3], 50), np.arange(151) / 10
    rule = EventRule(0.5, 0.5)
    overlay = Overlay(scores, times, find_events(scores, times, rule), 0.5, "Überfall 視頻 $x$", width, height)
    for index, red in ((20, False), (75, True), (120, False)):
        frame = np.full((height, width, 3), 128, np.uint8)
        overlay.draw(frame, index)
        bar = frame[-1]
        mark = is_near(bar, WHITE, 5)
        assert mark[width // 2]
        assert 0 < mark.mean() < 0.1
        end = round(scores[index] * width)
        ours = is_near(bar, RED if red else BLUE, 5)
        assert (ours | mark)[:end].all()
        assert (is_near(bar, TRACK, 5) | mark)[end:].all()
        changed = (frame != 128).any(axis=(1, 2))
        assert changed.mean() < 1 or red  # the border runs along the whole side
        untouched = frame[height // 3 : height // 2, width // 4 : -width // 4]
        assert (untouched == 128).all()
        assert is_near(frame[height // 3, 0], RED, 5) == red


def test_the_curve_shows_the_last_seconds_up_to_now():
    width, height = 400, 240
    scores = np.repeat([0.0, 1.0], 500)  # it jumps at 50 s
    overlay = Overlay(scores, np.arange(1001) / 10, (), None, "", width, height)
    for second in (52.0, 55.0, 69.0):
        frame = np.zeros((height, width, 3), np.uint8)
        index = int(second * 10) - 1
        overlay.draw(frame, index)
        row = frame[height * 9 // 10]  # the middle of the panel: only a rise crosses it
        rise = np.flatnonzero(is_near(row, WHITE, 120))
        wanted = (50.0 - second + CURVE_S) / CURVE_S * (width - 1)
        assert abs(rise.mean() - wanted) < 2
    frame = np.zeros((height, width, 3), np.uint8)
    overlay.draw(frame, 800)
    assert not is_near(frame[height * 9 // 10], WHITE, 120).any()  # out of sight


def test_scores_without_bounds_fill_the_bar_from_the_lowest_to_the_highest():
    scores = np.array([-3.0, 0.0, 5.0])
    overlay = Overlay(scores, np.arange(4.0), (), 5.0, "", 160, 120)
    found = []
    for index in range(3):
        frame = np.zeros((120, 160, 3), np.uint8)
        overlay.draw(frame, index)
        found.append(is_near(frame[-1], BLUE, 5).mean())
    np.testing.assert_allclose(found, [0, 3 / 8, 1], atol=0.02)
    constant = Overlay(np.full(3, 7.0), np.arange(4.0), (), None, "", 160, 120)
    constant.draw(frame, 0)  # no division by nothing
