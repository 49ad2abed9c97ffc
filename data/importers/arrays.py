"""Arrays in files, opened without reading them, checked, and read straight into crop-major memory.

A file is never unpickled. Sizes are compared before memory is taken, so a damaged header cannot ask for terabytes.
"""

import os
import threading
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.types import is_finite

_CHUNK = 2 << 20  # stays in the cache between being read, checked and moved to its place
_FLOATS = ("float16", "float32")
# numpy parses headers with ast, whose recursion counter threads share in Python 3.11: two that parse at once
# can end in "SystemError: AST constructor recursion depth mismatch" (python/cpython#106905)
_HEADERS = threading.Lock()


class ArrayError(ValueError):
    """A file holds no usable array; the message says why and what to do."""


@dataclass(frozen=True)
class NpyFile:
    """A C-ordered .npy file, read in pieces: one pass over the disk, one over the memory.

    `stride` is the number of frames from clip to clip, where a file says so.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    stride: int | None = None

    def into(self, out: NDArray[Any], axes: str) -> None:
        """Reads and checks everything into `out` (K, T, D); `axes` says how the file's axes lie.

        Raises ArrayError naming the first entry that is NaN, infinite, or too large for `out`.
        """
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        step = max(_CHUNK // row, 1)
        piece = np.empty((min(step, self.shape[0]), *self.shape[1:]), self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            for start in range(0, self.shape[0], step):
                part = piece[: self.shape[0] - start]
                _fill(file, part, self.path)
                _place(part, out, axes, start)


@dataclass(frozen=True)
class ArrayInMemory:
    """An array whose file has to be read as a whole: text, zip, HDF5."""

    path: Path
    array: NDArray[Any]
    stride: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        return self.array.shape

    def into(self, out: NDArray[Any], axes: str) -> None:
        """As NpyFile.into."""
        _place(self.array, out, axes, 0)


Source = NpyFile | ArrayInMemory


def open_npy(path: Path, key: str = "") -> Source:
    """A .npy file. Raises ArrayError when it is truncated, pickled, or of other numbers than floats."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # headers of Python 2 write 32L, and are read all the same
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            with _HEADERS:
                shape, fortran, dtype = read(file)
        except (ValueError, EOFError, OSError) as error:
            what = "is empty" if not os.fstat(file.fileno()).st_size else f"is no .npy file ({_first_line(error)})"
            raise ArrayError(f"{what}; download it again") from error
        offset = file.tell()
        size = os.fstat(file.fileno()).st_size - offset
    check_dtype(dtype)
    wanted = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
    if size < wanted:
        raise ArrayError(
            f"is truncated: its header says {tuple(shape)} {dtype}, {wanted:,} bytes, but {size:,} follow; "
            "download it again"
        )
    if size > wanted:
        raise ArrayError(f"holds {size - wanted:,} bytes more than its header says; download it again")
    if fortran:
        with _HEADERS:
            return ArrayInMemory(path, np.load(path, allow_pickle=False))
    return NpyFile(path, tuple(int(n) for n in shape), dtype, offset)


def open_npz(path: Path, key: str) -> Source:
    """An array of a .npz file; `key` may be "" where there is only one."""
    array = read_npz(path, (key,))[0]
    check_dtype(array.dtype)
    return ArrayInMemory(path, array)


def read_npz(path: Path, keys: tuple[str, ...]) -> list[NDArray[Any]]:
    """Arrays of a .npz file. Raises ArrayError on a damaged file, a missing key, or pickled objects."""
    try:
        with path.open("rb") as raw, _HEADERS:  # np.load leaves a file open that is no zip
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ArrayError("is no .npz file but a .npy one; import it with format npy")
            held = list(file.files)
            keys = tuple(held) if keys == ("",) and len(held) == 1 else keys
            if missing := [key for key in keys if key not in held]:
                raise ArrayError(f"has no array '{missing[0]}', it holds {', '.join(held)}; declare --option key=NAME")
            return [np.asarray(file[key]) for key in keys]
    except ArrayError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, NotImplementedError) as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise ArrayError(PICKLED) from error
        raise ArrayError(f"is damaged ({_first_line(error)}); download it again") from error


def open_h5(path: Path, key: str) -> Source:
    """A dataset of an HDF5 file. Raises ArrayError on a damaged file or a missing dataset."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.get(key)
            if not isinstance(found, h5py.Dataset):
                held = ", ".join(list(file)[:5])
                raise ArrayError(f"has no dataset '{key}', it holds {held}, ...; declare --option key=NAME")
            check_dtype(found.dtype)
            return ArrayInMemory(path, found[()])
    except ArrayError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ArrayError(f"is damaged, or no HDF5 file ({_first_line(error)}); download it again") from error


PICKLED = (
    "is an object array, which only unpickling can read and unpickling runs what the file says; convert it where you "
    "trust it: np.save(FILE, np.stack(list(np.load(FILE, allow_pickle=True))).astype(np.float32))"
)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raises ArrayError unless it is a 16 or 32 bit float of this machine's byte order."""
    if dtype.hasobject:
        raise ArrayError(PICKLED)
    if dtype.name not in _FLOATS or not dtype.isnative:
        order = "" if dtype.isnative else " of the other byte order"
        raise ArrayError(
            f"holds {dtype.name}{order}, features are float32 or float16; convert it: "
            "np.save(FILE, np.load(FILE).astype(np.float32))"
        )


def _fill(file: Any, part: NDArray[Any], path: Path) -> None:
    view = part.reshape(-1).view(np.uint8).data
    while view:
        count = file.readinto(view)
        if not count:
            raise ArrayError(f"became shorter while it was read; is {path.name} still being downloaded?")
        view = view[count:]


def _place(part: NDArray[Any], out: NDArray[Any], axes: str, start: int) -> None:
    """Checks `part`, the rows from `start` on of a file's first axis, and moves it to where it belongs in (K, T, D)."""
    if not is_finite(part):
        where = np.argwhere(~np.isfinite(part))[0]
        entry = ", ".join(str(int(i) + (start if axis == 0 else 0)) for axis, i in enumerate(where))
        raise ArrayError(
            f"entry [{entry}] is {part[tuple(where)]}; features must be finite: download or extract it again"
        )
    if part.dtype != out.dtype:
        largest = float(np.abs(part).max())
        with np.errstate(over="ignore"):
            part = part.astype(out.dtype)
        if not is_finite(part):
            raise ArrayError(f"holds {largest:g}, but float16 ends at 65504; import with --dtype float32")
    rows = slice(start, start + len(part))
    if axes == "tkd":
        target, moved = out[:, rows], part.transpose(1, 0, 2)
    elif axes == "ktd":
        target, moved = out[rows], part
    else:
        target, moved = out[0, rows], part
    target[...] = moved


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]
