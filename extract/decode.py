"""Video files to frames: sequential, with exact indices, resized by the decoder, one thread per process.

Seeking is never used: frame i is the i-th frame the decoder gives. Only regular local files are opened, and the demuxer
may not follow references to other files or the network. A video of which frames are lost is refused, with how many, or
kept with every frame in its place: `extract.damage` keeps the books.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from extract.containers import container_fault
from extract.damage import DAMAGED, Ledger, lost_frames
from extract.times import Times

Frame = NDArray[np.uint8]  # (H, W, 3) RGB or BGR, or (H, W) gray

_FORMATS = {"rgb": "rgb24", "bgr": "bgr24", "gray": "gray"}
_FILTERS = {
    "area": Interpolation.AREA,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
    "fast_bilinear": Interpolation.FAST_BILINEAR,
}
# Containers of single files. Playlists and scripts (hls, concat, ...) name other files and are not among them.
CONTAINERS = (
    "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,mxf,rm,nut,ivf,y4m,yuv4mpegpipe"
)
_LOW_FPS = 12.0  # below it, a 16-frame clip lasts longer than the nets and descriptors were made for


AGAIN = "copy or download it again"
REENCODE = f"{AGAIN}, or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
KEEP = "pass --damaged keep to take what can be decoded, with lost frames replaced by the ones before them"


class DecodeError(ValueError):
    """A file gives no frames, or not all of them; the message names the file, the reason and the remedy."""

    def __init__(self, path: Path | str, reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.reason = reason


class Reader(ABC):
    """Frames of one video in order: `with VideoReader(path) as reader: for frame in reader: ...`.

    Args:
        path: a local video file, or a folder of pictures.
        resize: "none"; "160x120:area", width x height; or "short120:area", the short side with the aspect kept.
            Filters: area, bilinear, bicubic, fast_bilinear.
        color: "rgb", "bgr" or "gray" (luma, at the full range 0..255 as in RGB).
        damaged: "refuse" a video of which frames are lost, or "keep" what can be decoded of it. Then a frame that is
            missing between two others shows the one before it (at the start, the one behind), so that every frame has
            the number it has in the whole video; frames missing at the end are not made up; one of another size is
            scaled to the first one's.

    `rate` is exact, `fps` the same as a float, None where the source does not say; `num_bytes` is its size. A rotation
    in the file's metadata is applied, as a player does, before resizing rules are read. After the last frame
    `num_frames` is exact, `lost` says how many frames are missing or not whole (at least: what depends on a damaged
    frame looks whole to the decoder), `times` whether they came at a constant rate, and `notes` what is unusual.

    Raises:
        DecodeError: on opening (nothing there, empty, no video in it) and while reading (truncated, damaged, changed
            size), once it is known how much is lost.
    """

    rate: Fraction | None = None
    fps: float | None = None
    again: ClassVar[str] = REENCODE
    """What helps against damage."""

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb", damaged: str = "refuse") -> None:
        self.path = Path(path)
        self.num_frames = 0
        self.num_bytes = 0
        self.lost = 0
        self.times = Times()
        self.notes: list[str] = []
        if damaged not in DAMAGED:
            raise ValueError(f"damaged must be one of {', '.join(DAMAGED)}, got '{damaged}'")
        self._keep = damaged == "keep"
        self._shape: tuple[int, int, int] | None = None  # width, height and rotation of the first frame
        self._first_name = ""
        self._changed = False
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

    @property
    def rotation(self) -> int:
        """Degrees by which the frames are turned, counter-clockwise; known once there was one."""
        return self._shape[2] if self._shape else 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def _convert(self, frame: av.VideoFrame, width: int, height: int, rotation: int) -> Frame:
        """The frame in the size that one of `width` x `height` is resized to, upright."""
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

    def _damaged(self, reason: str) -> DecodeError:
        return DecodeError(self.path, reason, f"{self.again}, or {KEEP}")

    def _upright(self, frame: av.VideoFrame, name: str) -> Frame:
        """The frame `name` as it is given; of another size than the first, it raises DecodeError or is scaled."""
        shape = (frame.width, frame.height, round(frame.rotation) % 360)
        if self._shape is None:
            self._shape, self._first_name = shape, name
            if shape[2]:
                self.notes.append(f"rotated by {shape[2]} degrees in its metadata: turned upright")
        elif shape != self._shape:
            changed = f"{name} is {shape[0]}x{shape[1]}, {self._first_name} is {self._shape[0]}x{self._shape[1]}"
            if not self._keep:
                raise self._damaged(changed)
            if not self._changed:
                self.notes.append(f"{changed}: scaled to that")
            self._changed = True
        return self._convert(frame, *self._shape)


class VideoReader(Reader):
    """Frames of a video file."""

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb", damaged: str = "refuse") -> None:
        super().__init__(path, resize=resize, color=color, damaged=damaged)
        self._begin(open_container(self.path))
        self._stream.thread_type = "NONE"
        self.num_bytes = self.path.stat().st_size
        self._fault = container_fault(self.path, self._container.format.name)
        self._ledger.broken_container = self._fault is not None

    def _begin(self, container: "av.container.InputContainer") -> None:
        """Gets ready for the first picture track of an open container."""
        self._container = container
        self._stream = container.streams.video[0]
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(self.rate) if self.rate else None
        self.notes += slow(self.fps)
        name = container.format.name
        self._duration = declared_seconds(container, self._stream)
        self._ledger = Ledger(self.fps, self._stream.time_base, self._stream.codec_context.name, name, self._duration)
        self.times = self._ledger.times
        self._packets = 0

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        last: Frame | None = None
        for frame in self._decoded():
            missing = self._ledger.come(self.num_frames, frame.pts, marked=frame.is_corrupt)
            if self._ledger.lost and not self._keep:  # what comes now is only counted
                self.num_frames += missing + 1
                continue
            image = self._upright(frame, f"frame {self.num_frames}")
            for _ in range(missing):
                self.num_frames += 1
                yield image if last is None else last
            self.num_frames += 1
            last = image
            yield image
        for _ in range(self._ledger.end(self.num_frames)):
            self.num_frames += 1
            if last is not None and self._keep:
                yield last
        self._judge()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self._demuxed():
            yield from self._decode(packet)

    def _decode(self, packet: "av.Packet[av.VideoStream]") -> list[av.VideoFrame]:
        """The frames that come out when a packet goes in; none after an error, of which the books are kept."""
        self._packets += packet.size > 0
        if packet.size and not packet.is_discard:
            self._ledger.send(packet.pts, marked=packet.is_corrupt)
        try:
            return packet.decode()
        except (av.error.FFmpegError, OSError) as error:
            self._ledger.fail(packet.pts, self.num_frames, reason_of(error))
            return []

    def _demuxed(self) -> Iterator["av.Packet[av.VideoStream]"]:
        try:
            yield from self._container.demux(self._stream)
        except (av.error.FFmpegError, OSError) as error:
            self._ledger.fail(None, self.num_frames, f"reading stops: {reason_of(error)}")

    def _judge(self) -> None:
        """Raises DecodeError on a loss, or says it in the notes."""
        ledger = self._ledger
        absent, said = self._absent()
        here, self.lost = ledger.lost, ledger.lost + absent
        if here and ledger.first is not None:
            end = ledger.behind == here
            text = lost_frames(here, self.num_frames + absent, ledger.first, end=end)
            said.append(f"{text} ({ledger.reason})" if ledger.reason else text)
        if self.num_frames == ledger.behind:
            raise DecodeError(self.path, "; ".join(["no frame can be decoded", *said]), REENCODE)
        if said and not self._keep:
            raise self._damaged("; ".join(said))
        self.notes += said
        self.notes += self.times.notes(self.fps)

    def _absent(self) -> tuple[int, list[str]]:
        """How many frames are missing at the end of the file, and what to say about it."""
        if self._fault is None and self._container.format.name == "asf" and self._duration:
            short = self._duration - self.times.span
            if short > max(2.0, 0.05 * self._duration):  # the header has the length of sound and picture together
                self._fault = f"it ends {short:.1f} s before the time in its header"
        if self._fault is not None:
            return self._cut_off(self._fault)
        # the index leaves out what an edit list cuts away (a clip trimmed on a phone); the count in the header does not
        index = getattr(self._stream, "index_entries", None)
        wanted = self._stream.frames if index is None else min(self._stream.frames, len(index))
        if self._packets < wanted:
            return wanted - self._packets, [f"truncated: {self._packets} of {wanted} frames are in the file"]
        return 0, []

    def _cut_off(self, fault: str) -> tuple[int, list[str]]:
        total = self._stream.frames or round((self._duration or 0) * (self.fps or 0))
        if not total:
            return 1, [f"truncated: {fault}; nobody knows how many frames are missing"]
        absent = max(total - self.num_frames, 0)
        if absent:
            return absent, [f"truncated: {fault}; about {absent} of {total} frames are missing"]
        if not self._ledger.lost:
            self.notes.append(f"{fault}, but every frame is there")
        return 0, []


def open_container(path: Path) -> "av.container.InputContainer":
    """Opens a video file, and nothing that it refers to. Raises DecodeError."""
    if not path.exists():
        raise DecodeError(path, "no such file", "correct its path in the manifest")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise DecodeError(path, f"{kind}, and no such file as a video is", "correct its path in the manifest")
    if path.stat().st_size == 0:
        raise DecodeError(path, "the file is empty (0 bytes)", "copy or download it again")
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        container = av.open(f"file:{path}", options=options)
    except (av.error.FFmpegError, OSError) as error:
        raise DecodeError(
            path, f"not a video, or cut off ({reason_of(error)})", "copy or download it again, or take it out"
        ) from error
    if not container.streams.video:
        container.close()
        remedy = f"take it out of the manifest, or, if it should have pictures, {AGAIN}"
        raise DecodeError(path, "the file holds no video stream, or is cut off before it", remedy)
    return container


def declared_seconds(container: "av.container.InputContainer", stream: "av.VideoStream") -> float | None:
    """How long the header says the video is; None where it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    found = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found:  # Matroska's tag of one track; its header has the length of the longest one
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return container.duration / av.time_base if container.duration else None


def slow(fps: float | None) -> list[str]:
    """A note on a frame rate at which clips last longer than usual."""
    if fps is None or fps >= _LOW_FPS:
        return []
    return [f"{fps:g} frames/s: 16 frames last {16 / fps:.1f} s; motion looks faster than it is"]


ResizeRule = tuple[tuple[int, int] | int, str] | None
TORCH_FILTERS = ("pil_bilinear", "pil_bicubic", "pil_lanczos", "cv2_linear")
"""Filters of `extract.transforms`, which work behind the decoder."""


def parse_resize(text: str) -> ResizeRule:
    """Reads "none", "160x120:area" as ((160, 120), "area"), "short256:bilinear" as (256, "bilinear"). Or ValueError.

    None too for a filter of `extract.transforms` ("short256:pil_bilinear"): the decoder then leaves frames as they are.
    """
    return None if is_torch_side(text) else read_rule(text)


def read_rule(text: str) -> ResizeRule:
    """As `parse_resize`, with the filters of `extract.transforms` as they are written."""
    if text == "none":
        return None
    match = re.fullmatch(r"(?:([1-9]\d*)x([1-9]\d*)|short([1-9]\d*)):(\w+)", text)
    filters = (*_FILTERS, *TORCH_FILTERS)
    if match is None or match[4] not in filters:
        wanted = f"'none', '160x120:area' or 'short120:area' with one of {', '.join(filters)}"
        raise ValueError(f"resize must be {wanted}, got '{text}'")
    return (int(match[3]) if match[3] else (int(match[1]), int(match[2]))), match[4]


def is_torch_side(rule: str) -> bool:
    """Whether `extract.transforms` follows a rule ("short256:pil_bilinear"); the decoder leaves frames as they are.

    Raises ValueError on what is no rule.
    """
    read = read_rule(rule)
    return read is not None and read[1] in TORCH_FILTERS


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
