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
_ENDS = {"mjpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}


def open_video(path: Path | str, *, resize: str = "none", color: str = "rgb") -> "Reader":
    """The reader for a video file, or for a folder that holds the frames of one as pictures."""
    reader = FolderReader if Path(path).is_dir() else VideoReader
    return reader(path, resize=resize, color=color)


class FolderReader(Reader):
    """Frames of a video that lies as pictures in a folder.

    They are read in the numeric order of their names (9.jpg before 10.jpg); hidden files and others are passed over.
    A number that is missing between two pictures is an error, since every later frame would be displaced.
    """

    def __init__(self, path: Path | str, *, resize: str = "none", color: str = "rgb") -> None:
        super().__init__(path, resize=resize, color=color)
        if not self.path.is_dir():
            raise DecodeError(self.path, "no such folder", "correct its path in the manifest")
        self._files = sorted((p for p in self.path.iterdir() if is_frame(p) and p.is_file()), key=_order)
        if not self._files:
            raise DecodeError(self.path, "the folder holds no pictures", "correct its path in the manifest")
        self.num_bytes = sum(p.stat().st_size for p in self._files)
        self._check_numbers()

    def __iter__(self) -> Iterator[Frame]:
        first: tuple[int, int, int] | None = None
        for path in self._files:
            frame = self._read(path)
            shape = (frame.width, frame.height, round(frame.rotation) % 360)
            if first is None:
                first = shape
            elif shape != first:
                raise self._damaged(path, f"is {shape[0]}x{shape[1]}, {self._files[0].name} is {first[0]}x{first[1]}")
            self.num_frames += 1
            yield self._convert(frame, *shape)

    def _read(self, path: Path) -> av.VideoFrame:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged(path, f"cannot be read ({reason_of(error)})") from error
        name = next((name for start, name in _PICTURES.items() if data.startswith(start)), None)
        if name is None:
            raise self._damaged(path, "is no JPEG, PNG, TIFF or BMP" if data else "is empty (0 bytes)")
        if (end := _ENDS.get(name)) and end not in data[-4096:]:  # some writers leave bytes behind the end
            raise self._damaged(path, "is truncated")
        # of its own for each picture: decoders carry tables and sizes over
        codec: Any = av.CodecContext.create(name, "r")
        codec.thread_type = "NONE"
        if name in _ENDS:  # FFmpeg's TIFF decoder takes a tag it does not know for an error
            codec.options = {"err_detect": "explode"}
        try:
            frames: list[av.VideoFrame] = [*codec.decode(av.Packet(data)), *codec.decode(None)]
        except (av.error.FFmpegError, OSError) as error:
            raise self._damaged(path, f"cannot be decoded ({reason_of(error)})") from error
        if len(frames) != 1:
            raise self._damaged(path, f"holds {len(frames)} pictures")
        return frames[0]

    def _check_numbers(self) -> None:
        """Raises DecodeError when pictures that differ in one number only leave one out, or have one twice."""
        keys = [_order(p)[0] for p in self._files]
        varying = [i for i, column in enumerate(zip(*keys, strict=False)) if len(set(column)) > 1]
        if len({len(key) for key in keys}) > 1 or len(varying) > 1 or any(i % 2 == 0 for i in varying):
            return  # not one number counting up: then nothing is known of what should be there
        numbers = [int(key[varying[0]]) if varying else 0 for key in keys]
        steps = [b - a for a, b in pairwise(numbers)]
        for step, (before, path) in zip(steps, pairwise(self._files), strict=True):
            if step == 0:
                raise self._damaged(path, f"has the number of {before.name}")
            if step > min(s for s in steps if s):
                raise self._damaged(path, f"follows {before.name}: pictures between them are missing")

    def _damaged(self, path: Path, reason: str) -> DecodeError:
        return DecodeError(self.path, f"{path.name} {reason}", "copy or download the folder again")


def _order(path: Path) -> tuple[list[str | int], str]:
    """Texts and numbers of a name in turn, so that 9 comes before 10; the name itself where they are equal."""
    parts = re.split(r"([0-9]+)", path.name[: -len(path.suffix)])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
