"""One video of a published set: its files opened, compared with the format and the manifest, made crop-major."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.importers.arrays import ArrayError, Source
from data.importers.base import Format, RefusedError
from data.types import Video, VideoFeatures

_OTHER = "import it under the format it has (wsvad ls formats), or declare its axes with format npy"


def read_video(video: Video, files: Sequence[Path], fmt: Format) -> tuple[VideoFeatures, list[str]]:
    """The features of one video, and notes on what is unusual about them.

    Raises RefusedError naming the file, the reason and the remedy.
    """
    x, axes = read_array(video, files, fmt)
    grid = _grid(video, x.shape[1], fmt, files[0])
    notes = [note] if fmt.check and (note := fmt.check(x)) else []
    if axes != fmt.axes:
        notes.append(f"axes {axes}, not the published {fmt.axes}: read so")
    length_from = "features" if video.num_frames is None else "manifest"
    return VideoFeatures(video.id, x, grid, video.fps, fmt.spec.crops, length_from=length_from), notes


def read_array(video: Video, files: Sequence[Path], fmt: Format) -> tuple[NDArray[Any], str]:
    """The finished (K, T, D) of a video, finite, and the axes of its files. Raises RefusedError."""
    sources = [open_source(path, video, fmt) for path in files]
    shapes = [_shape(source, fmt) for source in sources]
    axes, clips, dim = shapes[0]
    for source, (_, others, size) in zip(sources, shapes, strict=True):
        if others != clips:
            raise RefusedError(
                f"{source.path}: {others} clips, but {clips} in {files[0].name}; all crops of a video have the same T, "
                "download them again"
            )
        if size != fmt.spec.dim:
            also = f" (the format has {' or '.join(map(str, fmt.dims))})" if len(fmt.dims) > 1 else ""
            raise RefusedError(
                f"{source.path}: features of size {size}, wanted {fmt.spec.dim}{also}; it is another format's or "
                f"experiment's file: import it into a store of its own (--option dim={size} where that is meant)"
            )
    _grid(video, clips, fmt, files[0])  # before the numbers are read: a wrong length is the commoner fault
    x = np.empty((len(fmt.spec.crops), clips, dim), fmt.spec.dtype)
    for k, source in enumerate(sources):
        try:
            source.into(x[k : k + 1] if fmt.per_crop else x, axes)
        except ArrayError as error:
            raise RefusedError(f"{source.path}: {error}") from error
    return x, axes


def open_source(path: Path, video: Video, fmt: Format) -> Source:
    """A file of a video, its shape known, its numbers not yet read. Raises RefusedError naming it."""
    try:
        return fmt.open(path, fmt.key.replace("{id}", video.id))
    except ArrayError as error:
        raise RefusedError(f"{path}: {error}") from error
    except OSError as error:
        raise RefusedError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def _shape(source: Source, fmt: Format) -> tuple[str, int, int]:
    """Order of the axes, T and D of a file."""
    shape, K = source.shape, len(fmt.spec.crops)
    if fmt.axes == "td":
        if len(shape) != 2:
            raise RefusedError(f"{source.path}: an array of shape {shape}, wanted (T, D) of one crop; {_OTHER}")
        axes, clips = "td", shape[0]
    else:
        if len(shape) != 3:
            raise RefusedError(f"{source.path}: an array of shape {shape}, wanted (T, {K}, D) or ({K}, T, D); {_OTHER}")
        fits = [name for name, k in (("tkd", shape[1]), ("ktd", shape[0])) if k == K]
        if not fits or (fmt.declared and fmt.axes not in fits):
            which = f"of axes {fmt.axes}" if fmt.declared else "of any axis"
            raise RefusedError(
                f"{source.path}: {shape} does not hold the {K} crops {which}; crops are missing, the axes are declared "
                "wrongly (--option axes=tkd or ktd), or it is another format"
            )
        if len(fits) == 2 and not fmt.declared:
            raise RefusedError(
                f"{source.path}: {shape} may be (T, K, D) or (K, T, D), since T is {K} too; declare "
                "--option axes=tkd or --option axes=ktd"
            )
        axes = fmt.axes if fmt.axes in fits else fits[0]
        clips = shape[0] if axes == "tkd" else shape[1]
    if not clips or not shape[-1]:
        raise RefusedError(f"{source.path}: an empty array of shape {shape}; download or extract it again")
    if source.stride is not None and source.stride != fmt.spec.stride:
        raise RefusedError(
            f"{source.path}: a clip every {source.stride} frames, the others have one every {fmt.spec.stride}; import "
            "the two kinds into stores of their own"
        )
    return axes, clips, shape[-1]


def _grid(video: Video, clips: int, fmt: Format, path: Path) -> ClipGrid:
    """Which frames the clips show. Raises RefusedError when T cannot be this video's."""
    spec, frames = fmt.spec, video.num_frames
    if fmt.segments and clips != fmt.segments:
        raise RefusedError(f"{path}: {clips} segments, wanted {fmt.segments}; it is another format, or not segmented")
    if frames is None:
        frames = clips * spec.stride if spec.clip_len <= spec.stride else (clips - 1) * spec.stride + spec.clip_len
    elif not fmt.segments:
        low = max(min(frames // spec.stride - 1, (frames - spec.clip_len) // spec.stride), 1)
        high = -(-frames // spec.stride)
        if not low <= clips <= high:
            raise RefusedError(
                f"{path}: T={clips}, but the manifest's {frames} frames make {low} to {high} clips at stride "
                f"{spec.stride}; the file is another video's, or num_frames is wrong"
            )
    try:
        return spec.grid(frames, count=clips)
    except ValueError as error:
        raise RefusedError(f"{path}: {error}") from error
