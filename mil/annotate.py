"""A video with its score burnt in: a bar, the curve of the last seconds, and a red frame inside events."""

from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from data.files import aside
from extract.decode import Reader, open_container
from extract.pictures import open_video
from mil.events import Span
from mil.overlay import Frame, Overlay
from mil.sound_out import SoundOut

_UNIT = Fraction(1, 60_000)  # of time stamps; MPEG-4 knows none below 1 / 65535 s
_BT709 = 1  # in H.264's own numbers


def annotate(
    source: Path,
    out: Path,
    scores: NDArray[np.floating],
    times: NDArray[np.floating],
    *,
    threshold: float | None,
    events: Sequence[Span],
    title: str = "",
    damaged: str = "refuse",
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """Writes an mp4 of a video with its scores, in one pass and in one step; returns notes on what is unusual.

    Frame i shows score i, from `times[i]` on. Frames are upright and keep their size; an odd side grows by a pixel. The
    picture is H.264, or MPEG-4 where FFmpeg was built without it; the first sound track becomes mono AAC. What is drawn
    says `Overlay`. Memory does not grow with the video.

    Args:
        source: the video that was scored: a file, or a folder of pictures.
        out: an .mp4 in a folder that exists.
        scores: (F,) of its frames, finite.
        times: (F + 1,) seconds, rising, as `extract.frame_times` gives them.
        threshold: where events begin: a mark on the bar; None for no mark.
        events: where frames are red.
        title: shown as it is; "" for none.
        damaged: "refuse" or "keep", as the video was read when it was scored.
        progress: called with the number of frames done so far.

    Raises:
        DecodeError: the video cannot be read.
        ValueError: scores and times that do not fit each other or the video's frames, or an `out` that is no .mp4 or is
            the source.
    """
    values, edges = np.asarray(scores, np.float64), np.asarray(times, np.float64)
    _check(source, out, values, edges)
    notes: list[str] = []
    with (
        open_video(source, color="bgr", damaged=damaged) as reader,
        aside(out) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
    ):
        frames = iter(reader)
        first = _even(next(frames))
        height, width = first.shape[:2]
        overlay = Overlay(values, edges, events, threshold, title, width, height)
        zero, aspect = _clock_of(source)
        video = _Picture(container, edges - edges[0], width, height, _turned(aspect, reader), notes)
        with closing(SoundOut(container, source, zero, notes)) as sound:
            frame, done = first, 0
            while True:
                if done == len(values):
                    raise _other_length(source, len(values), "more")
                overlay.draw(frame, done)
                video.write(frame, done)
                done += 1
                sound.write(edges[done] - edges[0])
                if progress is not None:
                    progress(done)
                if (following := next(frames, None)) is None:
                    break
                frame = _even(following)
            if done != len(values):
                raise _other_length(source, len(values), str(done))
            video.end()
            sound.end(edges[-1] - edges[0])
    return tuple(notes)


class _Picture:
    """The video stream: frames of one size with times of their own, (F + 1,) seconds from 0 on."""

    def __init__(
        self,
        container: "av.container.OutputContainer",
        times: NDArray[np.float64],
        width: int,
        height: int,
        aspect: Fraction | None,
        notes: list[str],
    ) -> None:
        place = np.arange(len(times))
        stamps = np.rint(times / float(_UNIT)).astype(np.int64) - place
        self._stamps = np.maximum.accumulate(stamps) + place  # no two the same
        self._container = container
        rate = Fraction((len(times) - 1) / times[-1]).limit_denominator(1001)
        h264 = "libx264" in av.codecs_available
        if not h264:
            notes.append("FFmpeg was built without libx264: annotated as MPEG-4, which not every browser plays")
        options = {"preset": "veryfast", "crf": "22"} if h264 else {"q": "4"}
        options["g"] = str(max(round(2 * rate), 1))  # a player can go to every other second
        stream: Any = container.add_stream("libx264" if h264 else "mpeg4", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.time_base = _UNIT
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = ColorRange.MPEG
        if aspect is not None:
            codec.sample_aspect_ratio = aspect
        self._stream = stream
        self._reformatter = VideoReformatter()  # kept: a new one per frame builds a scaler each time

    def write(self, frame: Frame, index: int) -> None:
        picture: Any = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(frame, format="bgr24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts, picture.time_base = int(self._stamps[index]), _UNIT
        self._send(self._stream.encode(picture))

    def end(self) -> None:
        self._send(self._stream.encode(None))

    def _send(self, packets: "list[av.Packet[av.VideoStream]]") -> None:
        for packet in packets:
            index = int(np.searchsorted(self._stamps, packet.pts or 0))
            packet.duration = int(self._stamps[index + 1] - self._stamps[index])  # encoders forget the last one's
            self._container.mux(packet)


def _check(source: Path, out: Path, values: NDArray[np.float64], edges: NDArray[np.float64]) -> None:
    if values.ndim != 1 or not len(values) or edges.shape != (len(values) + 1,):
        raise ValueError(f"scores must be (F,) and times (F + 1,), got {values.shape} and {edges.shape}")
    if not (np.isfinite(values).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError("scores must be finite, and times rise from frame to frame")
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"an annotated video is an .mp4, got '{out.name}'")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out}: that is the video itself; name another file")


def _other_length(source: Path, wanted: int, found: str) -> ValueError:
    return ValueError(f"{source}: {wanted} scores, but {found} frames; did the file change?")


def _clock_of(source: Path) -> tuple[float, Fraction | None]:
    """The time of the first frame on the file's clock, seconds, and the shape of its pixels, where that is said."""
    if source.is_dir():
        return 0.0, None
    with open_container(source) as container:
        stream = container.streams.video[0]
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        try:
            first = next(container.decode(stream), None)
        except (av.error.FFmpegError, OSError):  # damaged, and kept
            first = None
        return (start if first is None or first.time is None else first.time), stream.sample_aspect_ratio


def _turned(aspect: Fraction | None, reader: Reader) -> Fraction | None:
    return 1 / aspect if aspect and reader.rotation in (90, 270) else aspect


def _even(frame: Frame) -> Frame:
    """A copy whose sides are even: the readers give some frames twice."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
