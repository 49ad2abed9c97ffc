"""Videos that lie as folders of pictures, as ShanghaiTech and UCSD are distributed."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from data.datasets.sources import is_frame
from extract.decode import DecodeError, Frame, Reader, VideoReader, reason_of

# A picture's codec by its first bytes, whatever its name says.
_PICTURES = {
    b"\xff\xd8\xff": "mjpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"BM": "bmp",
}
DECODERS = ("pyav", "torchcodec", "nvdec")
_MOST_NOTES = 10
_ENDS = {"mjpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}


def open_video(
    path: Path | str,
    *,
    resize: str = "none",
    color: str = "rgb",
    damaged: str = "refuse",
    decoder: str = "pyav",
    device: str = "cpu",
) -> "Reader":
    """The reader for a video file, or for a folder that holds the frames of one as pictures.

    `path`, `resize`, `color` and `damaged` are those of `Reader`. `decoder` is one of DECODERS, for video files:
    pictures are read by PyAV. "torchcodec" decodes on the CPU, "nvdec" is torchcodec on the GPU `device`, whose pixels
    are others.

    Raises DecodeError, and ValueError on options that do not go together.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got '{decoder}'")
    if Path(path).is_dir():
        return FolderReader(path, resize=resize, color=color, damaged=damaged)
    if decoder != "pyav":
        from extract.torchcodec_reader import TorchcodecReader

        if decoder == "torchcodec":
            device = "cpu"
        elif not device.startswith("cuda"):
            raise ValueError(f"decoder nvdec wants a GPU, got device '{device}'; use --decoder torchcodec or pyav")
        return TorchcodecReader(path, resize=resize, color=color, damaged=damaged, device=device)
    return VideoReader(path, resize=resize, color=color, damaged=damaged)


class FolderReader(Reader):
    """Frames of a video that lies as pictures in a folder.

    They are read in the numeric order of their names (9.jpg before 10.jpg); hidden files and others are passed over.
    A number that is missing between two pictures is a lost frame, as is a picture that cannot be read.
    """

    again = "copy or download the folder again"

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb", damaged: str = "refuse") -> None:
        super().__init__(path, resize=resize, color=color, damaged=damaged)
        if not self.path.is_dir():
            raise DecodeError(self.path, "no such folder", "correct its path in the manifest")
        self._files = sorted((p for p in self.path.iterdir() if is_frame(p) and p.is_file()), key=_order)
        if not self._files:
            raise DecodeError(self.path, "the folder holds no pictures", "correct its path in the manifest")
        self.num_bytes = sum(p.stat().st_size for p in self._files)
        self._missing = self._gaps()
        self._given = 0  # frames that were read, which are not lost

    def __iter__(self) -> Iterator[Frame]:
        last: Frame | None = None
        for path, missing in zip(self._files, self._missing, strict=True):
            self.lost += missing
            picture = self._read_or_note(path)
            if picture is None:
                self.lost += 1
                continue
            image = self._upright(picture, path.name)
            yield from self._fill(image if last is None else last)
            self.num_frames += 1
            self._given += 1
            last = image
            yield image
        if last is None:
            raise DecodeError(self.path, f"none of its {len(self._files)} pictures can be read", self.again)
        yield from self._fill(last)
        if self.lost:
            self.notes.append(f"{self.lost} of {self.num_frames} frames lost: their places show the ones before them")

    def _fill(self, image: Frame) -> Iterator[Frame]:
        """The same frame for every one that is lost and has no place yet."""
        while self.num_frames < self._given + self.lost:
            self.num_frames += 1
            yield image

    def _read_or_note(self, path: Path) -> av.VideoFrame | None:
        try:
            return self._read(path)
        except DecodeError as error:
            if not self._keep:
                raise
            if len(self.notes) < _MOST_NOTES:
                self.notes.append(error.reason)
            return None

    def _read(self, path: Path) -> av.VideoFrame:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(f"{path.name} cannot be read ({reason_of(error)})") from error
        name = next((name for start, name in _PICTURES.items() if data.startswith(start)), None)
        if name is None:
            raise self._damaged(f"{path.name} {'is no JPEG, PNG, TIFF or BMP' if data else 'is empty (0 bytes)'}")
        if (end := _ENDS.get(name)) and end not in data[-4096:]:  # some writers leave bytes behind the end
            raise self._damaged(f"{path.name} is truncated")
        # of its own for each picture: decoders carry tables and sizes over
        codec: Any = av.CodecContext.create(name, "r")
        codec.thread_type = "NONE"
        if name in _ENDS:  # FFmpeg's TIFF decoder takes a tag it does not know for an error
            codec.options = {"err_detect": "explode"}
        try:
            frames: list[av.VideoFrame] = [*codec.decode(av.Packet(data)), *codec.decode(None)]
        except (av.error.FFmpegError, OSError) as error:
            raise self._damaged(f"{path.name} cannot be decoded ({reason_of(error)})") from error
        if len(frames) != 1:
            raise self._damaged(f"{path.name} holds {len(frames)} pictures")
        return frames[0]

    def _gaps(self) -> list[int]:
        """How many pictures are missing before each, where they differ in one number only, which counts up.

        Raises DecodeError when a number stands twice, or one is missing and damaged videos are refused.
        """
        keys = [_order(p)[0] for p in self._files]
        varying = [i for i, column in enumerate(zip(*keys, strict=False)) if len(set(column)) > 1]
        if len({len(key) for key in keys}) > 1 or len(varying) > 1 or any(i % 2 == 0 for i in varying):
            return [0] * len(keys)  # then nothing is known of what should be there
        numbers = [int(key[varying[0]]) if varying else 0 for key in keys]
        steps = [b - a for a, b in pairwise(numbers)]
        usual = min((s for s in steps if s), default=1)
        for step, (before, path) in zip(steps, pairwise(self._files), strict=True):
            if step == 0:
                raise self._damaged(f"{path.name} has the number of {before.name}")
            if step > usual and not self._keep:
                raise self._damaged(f"{path.name} follows {before.name}: pictures between them are missing")
        return [0, *(step // usual - 1 for step in steps)]


def _order(path: Path) -> tuple[list[str | int], str]:
    """Texts and numbers of a name in turn, so that 9 comes before 10; the name itself where they are equal."""
    parts = re.split(r"([0-9]+)", path.name[: -len(path.suffix)])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
