"""Frames by torchcodec instead of PyAV: on the CPU the same pixels, on a GPU by its own decoder (NVDEC).

https://docs.pytorch.org/torchcodec. It needs an FFmpeg of the system beside it, so it is no dependency.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from extract.decode import REENCODE, DecodeError, Frame, Reader, VideoReader

_AT_ONCE = 32  # frames per call: on a GPU a call costs more than a frame
_INSTALL = "pip install torchcodec (docs.pytorch.org/torchcodec says which version fits this torch), and FFmpeg 4 to 8"


class TorchcodecReader(Reader):
    """Frames of a video file, decoded by torchcodec.

    Every frame goes through the host: what is read is what `VideoReader` reads.
    Resizing and gray are computed from RGB, not from the coded planes, and so differ from PyAV's by a grey level or
    two; unresized RGB is the same. A GPU rounds in its own way, too, and is another decoder by name: nvdec.

    Args:
        path, resize, color: as for `Reader`.
        damaged: "refuse" only.
        device: "cpu", "cuda" or "cuda:1".

    Raises DecodeError where torchcodec is missing or cannot read the file, and for files it cannot judge: rotated ones,
    since its versions differ in turning them.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        resize: str = "none",
        color: str = "rgb",
        damaged: str = "refuse",
        device: str = "cpu",
    ) -> None:
        if damaged != "refuse":
            raise ValueError(f"damaged='{damaged}' needs PyAV, which says what is lost; leave --decoder out")
        super().__init__(path, resize=resize, color=color, damaged=damaged)
        self._look()
        decoders = _torchcodec()
        try:
            # given a name, torchcodec would open whatever FFmpeg can; PyAV has just made sure that it is one file
            self._decoder = decoders.VideoDecoder(
                str(self.path.absolute()),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=device,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            raise self._refused(error) from error

    def __iter__(self) -> Iterator[Frame]:
        total = len(self._decoder)
        for start in range(0, total, _AT_ONCE):
            try:
                batch = self._decoder.get_frames_in_range(start, min(start + _AT_ONCE, total))
            except (RuntimeError, ValueError, IndexError) as error:
                raise self._refused(error) from error
            for image, seconds in zip(batch.data.cpu().numpy(), batch.pts_seconds.tolist(), strict=True):
                self.times.add(self.num_frames, seconds)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                given = self._upright(frame, f"frame {self.num_frames}")
                self.num_frames += 1
                yield given
        if self.num_frames == 0:
            raise DecodeError(self.path, "no frame can be decoded", REENCODE)
        self.notes += self.times.notes(self.fps)

    def _look(self) -> None:
        """Looks at the first frame by PyAV, which refuses playlists, devices and files without video."""
        with VideoReader(self.path) as reader:
            first = next(iter(reader), None)
            if first is not None and reader.rotation:
                turned = f"its metadata turns it by {reader.rotation} degrees, and torchcodec's versions differ in that"
                raise DecodeError(self.path, turned, "leave --decoder out")
            self.rate, self.fps, self.num_bytes = reader.rate, reader.fps, reader.num_bytes
            self.notes += reader.notes

    def _refused(self, error: Exception) -> DecodeError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DecodeError(
            self.path,
            f"torchcodec stops after {self.num_frames} frames ({reason})",
            f"{REENCODE}, or leave --decoder out",
        )


def _torchcodec() -> Any:
    try:
        return importlib.import_module("torchcodec.decoders")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchcodec":
            raise
        raise DecodeError("torchcodec", "it is not installed", f"{_INSTALL}; or leave --decoder out") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise DecodeError(
            "torchcodec", f"it does not load ({str(error).splitlines()[0]})", f"{_INSTALL}; or leave --decoder out"
        ) from error
