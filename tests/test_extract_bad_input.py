"""Every kind of bad and odd file, for a backbone of every kind: named with a remedy, nothing stored, the others done.

Nets have a stand-in for their module, which returns means of its input: decoding, resampling, flow, resizing, crops and
normalising are the real ones, and cost next to nothing.
"""

import json
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from data import manifest
from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import Video
from extract.backbones import BackboneError, backbones, plan
from extract.backbones.net import Net
from extract.runner import extract_all
from mil.cli import main

NETS = [name for name in backbones.names() if issubclass(backbones.get(name), Net)]
ODD_IDS = [  # as XD-Violence names videos, and worse
    "A.Beautiful.Mind.2001__#00-25-20_00-29-20_label_A",
    "v=0zE7Hg_bQ-0__#1_label_G-B2-B6",
    "Fast.Furious.2009__#00-01-40_00-02-20_label_B1-B6-0",
    "Léon & co (1994) [50%] 'x' \"y\" a+b,c;d~e@f!.mp4",
    "with/slash\\and:colon?*<>|",
    "../../outside",
]
RNG = np.random.default_rng(0)
SOUND = (0.1 * RNG.normal(size=16000 * 4)).astype(np.float32)


class Means(nn.Module):
    """(M, C, T, h, w), or whatever a net takes -> (M, D) numbers that depend on the input."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x.float().flatten(1).mean(1)[:, None].expand(-1, self.dim).clone()


@pytest.fixture
def stand_ins(monkeypatch):
    for name in NETS:
        monkeypatch.setattr(backbones.get(name), "build", lambda self: Means(self.spec.dim))
        if "flow" in backbones.get(name).switches:  # smaller pictures: flow is the one thing that takes time here
            monkeypatch.setattr(backbones.get(name), "crop_size", 32)


def options_for(name):
    cls, options = backbones.get(name), {}
    if issubclass(cls, Net):
        options = {"weights": "random", "device": "cpu"}
        if cls.crop_order:
            options["crops"] = "1"
        if "flow" in cls.switches:
            options |= {"flow": "dis", "resize": "40x36:pil_bilinear"}
    return options


def pictures(count, height=48, width=64):
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def lossless(path, count, height, width, pix_fmt="bgr0"):
    """Any size and pixel format, with sound."""
    write_video(path, pictures(count, height, width), codec="ffv1", pix_fmt=pix_fmt, crf=None, preset=None, audio=SOUND)
    return path


def with_delays(path, delays_ms):
    """Frames after such delays, and sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        time = 0
        for picture, delay in zip(pictures(len(delays_ms)), delays_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += delay
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        put_sound(container, sound)
    return path


def put_sound(container, stream):
    frame = av.AudioFrame.from_ndarray(SOUND[None].copy(), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def sound_alone(path):
    with av.open(str(path), "w") as container:
        put_sound(container, container.add_stream("aac", rate=16000, layout="mono"))
    return path


def changing_size(path):
    """A raw stream: 20 frames of 64x48, 20 of 64x96."""
    with path.open("wb") as file:
        for height in (48, 96):
            part = path.with_name("part.h264")
            with av.open(str(part), "w", format="h264") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
                for picture in pictures(20, height):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode(None))
            file.write(part.read_bytes())
    return path


def overwritten(path):
    """80 frames, bytes of one packet in the middle overwritten."""
    write_video(path, pictures(80), gop=10, audio=SOUND)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    at, size = packets[40]
    raw = bytearray(path.read_bytes())
    raw[at + size // 4 : at + size] = bytes(size - size // 4)
    path.write_bytes(raw)
    return path


def turned(path):
    """Rotated by its metadata, as phones write it."""
    write_video(path, pictures(40), audio=SOUND)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"tkhd") + 44
    raw[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)
    return path


def folder_of_pictures(path, count=20):
    path.mkdir()
    for number, picture in enumerate(pictures(count)):
        codec = av.CodecContext.create("png", "w")
        codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "rgb24", Fraction(1, 25)
        packets = [*codec.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *codec.encode(None)]
        (path / f"{number}.png").write_bytes(b"".join(bytes(p) for p in packets))
    return path


# What is always refused, and what its message says beside the path: what is wrong, what to do.
REFUSED = {
    "gone": ("no such file", "correct its path in the manifest"),
    "empty": ("the file is empty (0 bytes)", "copy or download it again"),
    "text": ("not a video, or cut off", "copy or download it again, or take it out"),
    "half": ("not a video, or cut off", "copy or download it again, or take it out"),
    "sound_alone": ("the file holds no video stream", "take it out of the manifest"),
    "cut": ("cut off", "copy or download it again"),
    "playlist": ("not a video", "take it out"),
    "script": ("not a video", "take it out"),
    "fifo": ("a pipe, socket or device", "correct its path in the manifest"),
    "device": ("a pipe, socket or device", "correct its path in the manifest"),
    "address": ("no such file", "correct its path in the manifest"),
    "no_pictures": ("the folder holds no pictures", "correct its path in the manifest"),
    "too_long": ("the manifest says 39 frames, decoding gave 40", "correct the manifest, or the file is another one"),
    "too_short": ("the manifest says 41 frames, decoding gave 40", "correct the manifest, or the file is another one"),
}
# What is refused unless damaged files are kept, how much of it is lost, how many frames it has then.
DAMAGED = {
    "overwritten": ("1 of 80 frames cannot be decoded whole, from frame 40 on", 1, 80),
    "truncated": ("truncated: the file ends at byte", 1, None),
}
# What is taken as it is: frames.
TAKEN = {
    "good": 40, "one": 1, "seven": 7, "dot": 20, "tiny": 20, "wide": 20, "tall": 20, "odd": 20, "gray": 20,
    "gray10le": 20, "yuv444p": 20, "yuv420p10le": 20, "turned": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> path of everything there is."""
    folder = tmp_path_factory.mktemp("bad")
    found = {}
    write_video(folder / "good.mp4", pictures(40), audio=SOUND)
    sizes = {"one": (1, 48, 64), "seven": (7, 48, 64), "dot": (20, 1, 1), "tiny": (20, 3, 5), "wide": (20, 16, 320)}
    sizes |= {"tall": (20, 320, 16), "odd": (20, 47, 63)}
    for name, size in sizes.items():
        found[name] = lossless(folder / f"{name}.mkv", *size)
    for pix_fmt in ("gray", "gray10le", "yuv444p", "yuv420p10le"):
        found[pix_fmt] = lossless(folder / f"{pix_fmt}.mkv", 20, 48, 64, pix_fmt)
    good = (folder / "good.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("404 not found\n" * 50)
    (folder / "half.mp4").write_bytes(good[: len(good) // 2])
    (folder / "cut.mp4").write_bytes(good[:-2000])  # in the index: FFmpeg finds the sound in it, but no pictures
    (folder / "truncated.mkv").write_bytes(found["odd"].read_bytes()[:60000])
    (folder / "playlist.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'good.mp4'}\n#EXT-X-ENDLIST\n")
    (folder / "script.mp4").write_text(f"ffconcat version 1.0\nfile {folder / 'good.mp4'}\n")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "no_pictures").mkdir()
    (folder / "no_pictures" / "notes.txt").write_text("none")
    write_video(folder / "silent.mp4", pictures(40))
    folder_of_pictures(folder / "pictures")
    with_delays(folder / "varying.mkv", [40] * 20 + [90] * 20)
    changing_size(folder / "grows.h264")
    overwritten(folder / "overwritten.mp4")
    sound_alone(folder / "sound_alone.mp4")
    turned(folder / "turned.mp4")
    found |= {path.name.partition(".")[0]: path for path in folder.iterdir()}
    found |= {"gone": folder / "gone.mp4", "device": "/dev/null", "address": "http://127.0.0.1:9/v.mp4"}
    return {name: str(path) for name, path in found.items()} | dict.fromkeys(ODD_IDS, str(folder / "good.mp4"))


def videos_of(files, *names, **changes):
    lengths = {"too_long": 39, "too_short": 41}
    return [
        Video(n, files["good" if n in lengths else n], "train", 0, num_frames=lengths.get(n), **changes) for n in names
    ]


def stored(root):
    return {p.name for p in root.rglob("*") if p.is_file() and p.suffix != ".h5"}


KINDS = {
    "motion": "frames", "i3d_rocng": "frames", "x3d_xs": "time", "tsn_bninception": "frames", "c3d_sports1m": "frames",
    "i3d_rocng_flow": "frames", "i3d_xd_flow": "time", "clip_b32": "frames", "vggish": "sound", "logmel_stats": "sound",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_bad_file_is_named_and_every_other_one_done(tmp_path, stand_ins, files, name, kind):
    refused = dict(REFUSED)
    taken = {**TAKEN, **dict.fromkeys(ODD_IDS, 40)}
    odd = {"silent": 40, "varying": 40, "pictures": 20}
    if kind == "sound":
        mute = ("it has no sound", "take it out of the manifest, or give it silence: --option missing=silence")
        refused |= {"silent": mute, "pictures": mute}
    elif kind == "time":
        refused["varying"] = ("its frame rate varies, and the recipe resamples in time", "make it constant: ffmpeg")
        refused["pictures"] = ("its frame rate is not known", "write it into the manifest (fps)")
    taken |= {n: count for n, count in odd.items() if n not in refused}
    damaged = dict(DAMAGED)
    if kind != "sound":
        damaged["grows"] = ("frame 20 is 64x96, frame 0 is 64x48", 0, 40)
    videos = videos_of(files, *refused, *taken, *damaged)
    root, options = tmp_path / "store", options_for(name)
    report = extract_all(videos, root, name, options, workers=1)

    assert sorted(report.failures) == sorted([*refused, *damaged])
    for video in videos:
        if video.id in report.failures:
            message = report.failures[video.id]
            parts = refused.get(video.id) or (damaged[video.id][0], "--damaged keep", "copy or download it again")
            assert all(part in message for part in parts), message
            assert video.path.split("/")[-1] in message
            assert "\n" not in message
    store = FeatureStore(root)
    assert sorted(store.ids()) == sorted(taken)
    assert store.verify().bad == ()
    for video_id, count in taken.items():
        found = store.read(video_id)
        assert found.grid == store.spec.grid(count, fps=found.fps)
        assert found.lost == 0
    assert {json.loads(line)["video"] for line in (root / "failures.jsonl").read_text().splitlines()} == {
        *refused, *damaged
    }  # fmt: skip
    assert not {file for file in stored(root) if file.endswith(".part") or "tmp" in file}
    assert not list(tmp_path.parent.glob("outside*"))

    notes = "\n".join(report.notes)
    assert "one: 1 frames, shorter than one clip of" in notes or store.spec.clip_len == 1
    assert "turned: rotated by 270 degrees" in notes
    if kind == "frames":
        assert "varying: variable frame rate" in notes
        assert "pictures: no frame rate in the file or the manifest" in notes

    kept = extract_all(videos_of(files, *damaged), root, name, options, workers=1, damaged="keep")
    assert kept.failures == {}
    for video_id, (said, least, count) in damaged.items():
        found = store.read(video_id)
        assert found.lost >= least
        assert any(note.startswith(f"{video_id}: ") and said in note for note in kept.notes)
        if count:  # frames in the middle keep their places
            assert found.grid == store.spec.grid(count, fps=found.fps)


@pytest.mark.parametrize("name", NETS)
def test_every_net_takes_short_small_and_grey_videos(tmp_path, stand_ins, files, name):
    taken = ("one", "tiny", "gray10le")
    report = extract_all(videos_of(files, *taken, "empty"), tmp_path / "s", name, options_for(name), workers=1)
    assert list(report.failures) == ["empty"]
    store = FeatureStore(tmp_path / "s")
    for video_id in taken:
        found = store.read(video_id)
        assert found.x.shape == (len(store.spec.crops), len(found.grid), store.spec.dim)
        assert found.grid.num_frames == TAKEN[video_id]


@pytest.mark.parametrize("name", [n for n in NETS if backbones.get(n).min_frames > 1])
def test_clips_too_short_for_the_net_are_refused_before_anything_is_read(tmp_path, name):
    least = backbones.get(name).min_frames
    with pytest.raises(BackboneError, match=rf"{name}.* clips of .*got clip_len={least - 1}"):
        plan(name, **options_for(name), clip_len=least - 1)


def test_silence_may_be_asked_for(tmp_path, stand_ins, files):
    for name in ("vggish", "logmel_stats"):
        videos = videos_of(files, "silent", "pictures", "good")
        options = options_for(name) | {"missing": "silence"}
        report = extract_all(videos, tmp_path / name, name, options, workers=1)
        assert report.failures == {}
        assert [n.split(":")[0] for n in report.notes if "it has no sound: silence" in n] == ["silent", "pictures"]
        store = FeatureStore(tmp_path / name)
        assert store.spec.options["missing"] == "silence"
        assert not np.allclose(store.read("silent").x[:, 0], store.read("good").x[:, 0])


def test_pictures_at_a_rate_of_the_manifests(tmp_path, stand_ins, files):
    """A folder has no rate of its own. 20 pictures at 24 frames/s are 25 at 30."""
    options = options_for("x3d_xs") | {"step": 1, "stride": 4}
    report = extract_all(videos_of(files, "pictures", fps=24.0), tmp_path / "s", "x3d_xs", options, workers=1)
    assert report.failures == {}
    found = FeatureStore(tmp_path / "s").read("pictures")
    assert (found.fps, found.grid.rate, found.grid.num_shown) == (24.0, 1.25, 25)
    assert found.x.shape[1] == 7  # 6 clips of 4 frames and one of 1; of 20 frames it would be 5


def test_pictures_without_a_rate_cannot_be_resampled(tmp_path, stand_ins, files):
    options = options_for("x3d_xs")
    report = extract_all(videos_of(files, "pictures", "good"), tmp_path / "s", "x3d_xs", options, workers=1)
    assert (report.written, list(report.failures)) == (["good"], ["pictures"])
    assert "its frame rate is not known, and the recipe takes 30 frames/s; write it into" in report.failures["pictures"]
    report = extract_all(videos_of(files, "pictures"), tmp_path / "t", "x3d_xs", options | {"fps": "none"}, workers=1)
    assert report.written == ["pictures"]


def test_wide_frames_are_cut_where_they_should_be(tmp_path, files):
    """20 to 1: the centre crop shows the centre; a stand-in that sees only a bright stripe tells."""
    width = 320
    frames = np.zeros((16, 16, width, 3), np.uint8)
    frames[:, :, width // 2 - 6 : width // 2 + 6] = 255
    write_video(tmp_path / "v.mp4", frames, crf=0)

    class Centre(nn.Module):
        def forward(self, x):  # (1, 3, 16, 224, 224)
            return x[:, :, :, 100:124, 60:164].float().mean((1, 2, 3, 4))[:, None].expand(-1, 1024).clone()

    cls = backbones.get("i3d_rocng")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "build", lambda self: Centre())
        videos = [Video("v", str(tmp_path / "v.mp4"), "train", 0)]
        extract_all(videos, tmp_path / "s", "i3d_rocng", {"weights": "random", "crops": "1"}, workers=1)
    # 12 of 320 columns are 192 of the resized 5120: white fills the middle 104 columns of the crop
    assert FeatureStore(tmp_path / "s").read("v").x.min() > 0.97


def test_the_command_names_them_without_a_traceback(tmp_path, files):
    file = tmp_path / "m.csv"
    manifest.write(file, videos_of(files, *REFUSED, "good", *ODD_IDS))
    typed = ["extract", str(file), "--backbone", "motion", "--out", str(tmp_path / "s"), "--workers", "1"]
    result = CliRunner().invoke(main, typed)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("7 videos extracted")
    named = [line.strip().partition(": ") for line in lines if line.startswith("  ")]
    assert sorted(name for name, _, _ in named) == sorted(REFUSED)
    for name, _, said in named:
        assert all(part in said for part in REFUSED[name])
    assert "Traceback" not in result.output


def test_numbers_that_are_none_are_refused(tmp_path, stand_ins, files, monkeypatch):
    """A net that overflows in half precision: the feature is named, nothing is stored, the other video is done."""

    class Overflows(nn.Module):
        def forward(self, x):
            short = x.float().mean() > 0
            return torch.full((len(x), 2048), float("inf") if short else 1.0)

    monkeypatch.setattr(backbones.get("x3d_xs"), "build", lambda self: Overflows())
    for name, level in (("bright", 250), ("dark", 5)):
        write_video(tmp_path / f"{name}.mp4", [np.full((48, 64, 3), level, np.uint8)] * 20)
    videos = [Video(n, str(tmp_path / f"{n}.mp4"), "train", 0) for n in ("bright", "dark")]
    report = extract_all(videos, tmp_path / "s", "x3d_xs", options_for("x3d_xs"), workers=1)
    assert (report.written, list(report.failures)) == (["dark"], ["bright"])
    assert "feature 0 of clip 0, crop 'center', is inf" in report.failures["bright"]
