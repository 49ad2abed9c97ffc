"""Video files to frames: sequential, with exact indices, resized by the decoder, one thread per process.

Seeking is never used: frame i is the i-th frame the decoder gives. Only local files are opened, and the demuxer may not
follow references to other files or the network.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3) RGB or BGR, or (H, W) gray

_FORMATS = {"rgb": "rgb24", "bgr": "bgr24", "gray": "gray"}
_FILTERS = {
    "area": Interpolation.AREA,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "fast_bilinear": Interpolation.FAST_BILINEAR,
}
# Containers of single files. Playlists and scripts (hls, concat, ...) name other files and are not among them.
_CONTAINERS = (
    "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,mxf,rm,nut,ivf,y4m,yuv4mpegpipe"
)
_LOW_FPS = 12.0  # below it, a 16-frame clip lasts longer than the nets and descriptors were made for


class DecodeError(ValueError):
    """A file gives no frames, or not all of them; the message names the file, the reason and the remedy."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")


class Reader(ABC):
    """Frames of one video in order: `with VideoReader(path) as reader: for frame in reader: ...`.

    Args:
        path: a local video file, or a folder of pictures.
        resize: "none"; "160x120:area", width x height; or "short120:area", the short side with the aspect kept.
            Filters: area, bilinear, bicubic, fast_bilinear.
        color: "rgb", "bgr" or "gray" (luma, at the full range 0..255 as in RGB).

    `fps` is None where the source does not say, `num_bytes` is its size. A rotation in the file's metadata is applied,
    as a player does, before resizing rules are read. After the last frame `num_frames` is exact and `notes` says what
    is unusual about the file.

    Raises:
        DecodeError: on opening (nothing there, empty, no video in it) and while reading (truncated, damaged, changed
            size).
    """

    fps: float | None = None

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb") -> None:
        self.path = Path(path)
        self.num_frames = 0
        self.num_bytes = 0
        self.notes: list[str] = []
        self._rule = parse_resize(resize)
        if color not in _FORMATS:
            raise ValueError(f"color must be one of {', '.join(_FORMATS)}, got '{color}'")
        self._format = _FORMATS[color]
        self._reformatter = VideoReformatter()  # kept: a new one per frame builds a scaler each time, 2.4x slower

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of what is open."""
        return

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def _convert(self, frame: av.VideoFrame, width: int, height: int, rotation: int) -> Frame:
        turned = rotation in (90, 270)
        w, h = target_size(self._rule, height, width) if turned else target_size(self._rule, width, height)
        if turned:
            w, h = h, w
        interpolation = _FILTERS[self._rule[1]] if self._rule else Interpolation.BILINEAR
        small = self._reformatter.reformat(
            frame, width=w, height=h, format=self._format, interpolation=interpolation, threads=1
        )
        image: Frame = np.asarray(small.to_ndarray(), dtype=np.uint8)
        # the rotation is counter-clockwise, in degrees, as numpy's
        return np.ascontiguousarray(np.rot90(image, rotation // 90)) if rotation else image


class VideoReader(Reader):
    """Frames of a video file."""

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb") -> None:
        super().__init__(path, resize=resize, color=color)
        self._container = self._open()
        self.num_bytes = self.path.stat().st_size
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else None
        self.notes += slow(self.fps)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        packets = 0
        first: tuple[int, int, int] | None = None
        try:
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise self._damaged(f"packet {packets} is damaged")
                for frame in packet.decode():
                    shape = (frame.width, frame.height, round(frame.rotation) % 360)
                    if first is None:
                        first = shape
                        if shape[2]:
                            self.notes.append(f"rotated by {shape[2]} degrees in its metadata: turned upright")
                    elif shape != first:
                        raise self._damaged(
                            f"frame {self.num_frames} is {shape[0]}x{shape[1]}, frame 0 {first[0]}x{first[1]}"
                        )
                    self.num_frames += 1
                    yield self._convert(frame, *shape)
        except (av.error.FFmpegError, OSError) as error:
            raise self._damaged(f"decoding stops after {self.num_frames} frames ({reason_of(error)})") from error
        if self.num_frames == 0:
            raise self._damaged("no frame can be decoded")
        # the index leaves out what an edit list cuts away (a clip trimmed on a phone); the count in the header does not
        index = getattr(self._stream, "index_entries", None)
        wanted = self._stream.frames if index is None else min(self._stream.frames, len(index))
        if packets < wanted:
            raise self._damaged(f"truncated: {packets} of {wanted} frames are in the file")

    def _damaged(self, reason: str) -> DecodeError:
        return DecodeError(
            self.path, reason, "copy or download it again, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
        )

    def _open(self) -> "av.container.InputContainer":
        if not self.path.is_file():
            raise DecodeError(self.path, "no such file", "correct its path in the manifest")
        if self.path.stat().st_size == 0:
            raise DecodeError(self.path, "the file is empty (0 bytes)", "copy or download it again")
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        try:
            container = av.open(f"file:{self.path}", options=options)
        except (av.error.FFmpegError, OSError) as error:
            raise DecodeError(
                self.path, f"not a video, or cut off ({reason_of(error)})", "copy or download it again, or take it out"
            ) from error
        if not container.streams.video:
            container.close()
            raise DecodeError(self.path, "the file holds no video stream", "take it out of the manifest")
        return container


def slow(fps: float | None) -> list[str]:
    """A note on a frame rate at which clips last longer than usual."""
    if fps is None or fps >= _LOW_FPS:
        return []
    return [f"{fps:g} frames/s: 16 frames last {16 / fps:.1f} s; motion looks faster than it is"]


ResizeRule = tuple[tuple[int, int] | int, str] | None


def parse_resize(text: str) -> ResizeRule:
    """Reads "none", "160x120:area" as ((160, 120), "area"), "short256:bilinear" as (256, "bilinear"). Or ValueError."""
    if text == "none":
        return None
    match = re.fullmatch(r"(?:(\d+)x(\d+)|short(\d+)):(\w+)", text)
    if match is None or match[4] not in _FILTERS or "0" in match.groups():
        wanted = f"'none', '160x120:area' or 'short120:area' with one of {', '.join(_FILTERS)}"
        raise ValueError(f"resize must be {wanted}, got '{text}'")
    return (int(match[3]) if match[3] else (int(match[1]), int(match[2]))), match[4]


def target_size(rule: ResizeRule, width: int, height: int) -> tuple[int, int]:
    """(width, height) after resizing an upright frame; the long side is rounded to the nearest pixel, at least 1."""
    if rule is None:
        return width, height
    size = rule[0]
    if isinstance(size, tuple):
        return size
    short = min(width, height)
    return max(round(width * size / short), 1), max(round(height * size / short), 1)


def reason_of(error: Exception) -> str:
    """What the system or FFmpeg says, for the middle of a sentence."""
    return str(getattr(error, "strerror", None) or error).strip().lower()
