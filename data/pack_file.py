"""One pack's two files: written block by block, read as a map, claimed by one process at a time."""

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files import aside, write_text

FORMAT = 1
Segments = Callable[[], Iterator[NDArray[np.float32]]]
"""(K, T, D) of one video after another; asked anew where a pack is begun again."""
_DETAIL = 0.01  # rounding error, in deviations of a feature, from which on a warning is due

log = logging.getLogger(__name__)


class _DoesNotFitError(ValueError):
    """A value beyond float16."""


def _blocks(shape: tuple[int, ...], dtype: str, segments: Segments, lengths: list[int]) -> Iterator[NDArray[Any]]:
    """(K, T, D) of each video, in `dtype`, padded; appends to `lengths`. Raises _DoesNotFitError."""
    detail = _Detail(shape[-1])
    for x in segments():
        block = np.zeros(shape[1:], dtype)
        with np.errstate(over="ignore"):
            block[:, : x.shape[1]] = x
        if dtype == "float16":
            if not np.isfinite(block).all():
                raise _DoesNotFitError(f"{np.abs(x).max():g}")
            detail.add(x, block[:, : x.shape[1]])
        lengths.append(x.shape[1])
        yield block
    if lost := detail.lost():
        log.warning(
            "float16 blurs %d of %d features: they vary by less than %d times its rounding; set data.dtype=float32",
            lost,
            shape[-1],
            round(1 / _DETAIL),
        )


def _with_fallback(dtype: str, make: Callable[[str], Any]) -> tuple[Any, str]:
    try:
        return make(dtype), dtype
    except _DoesNotFitError as error:
        log.warning("a segment holds %s, float16 ends at 65504: packed as float32 instead", error)
        return make("float32"), "float32"


def write_pack(final: Path, shape: tuple[int, ...], segments: Segments, meta: dict[str, Any]) -> None:
    """Writes the numbers to `final`, then the JSON beside it: `meta`, and what the writing found.

    Raises OSError on a full disk.
    """

    def write(dtype: str) -> dict[str, Any]:
        lengths: list[int] = []
        crc = 0
        # plain writes, not a map: on a full disk they raise, where a map would kill the process
        with aside(final) as temporary, temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in _blocks(shape, dtype, segments, lengths):
                crc = zlib.crc32(block.data.cast("B"), crc)
                file.write(block.data)
        return {"lengths": lengths, "crc32": crc}

    found, stored = _with_fallback(meta["made"]["dtype"], write)
    write_text(final.with_suffix(".json"), json.dumps({**meta, "stored": stored, "shape": shape, **found}))


def in_memory(shape: tuple[int, ...], dtype: str, segments: Segments) -> tuple[NDArray[Any], list[int]]:
    """The same without a file: (V, K, T, D), read-only, and the lengths."""

    def fill(kind: str) -> tuple[NDArray[Any], list[int]]:
        x, lengths = np.empty(shape, kind), list[int]()
        for row, block in enumerate(_blocks(shape, kind, segments, lengths)):
            x[row] = block
        x.flags.writeable = False
        return x, lengths

    found: tuple[NDArray[Any], list[int]] = _with_fallback(dtype, fill)[0]
    return found


def metas(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The JSON files of this format that can be read."""
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            if meta["made"]["format"] == FORMAT:
                yield path, meta
        except (OSError, ValueError, LookupError, TypeError):
            continue  # removed by another process, or damaged: then it is made anew


def opened_pack(path: Path, meta: dict[str, Any]) -> NDArray[Any] | None:
    """The numbers of a pack, (V, K, T, D), as a read-only map; None where they are not what `meta` says."""
    try:
        x: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None  # gone or cut short
    return x if list(x.shape) == meta["shape"] and x.dtype == meta["stored"] else None


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Holds the pack for this process. Without locks on that disk two may make it: both write the same."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process makes %s; waiting", path.with_suffix(".npy"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


class _Detail:
    """Whether the rounding to float16 is small beside the variation of each feature, over all videos."""

    def __init__(self, dim: int) -> None:
        self.count, self.start = 0, np.zeros(0)
        self.total, self.squares, self.error = np.zeros((3, dim))

    def add(self, x: NDArray[np.float32], rounded: NDArray[Any]) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if not self.count:
            self.start = rows.mean(0, dtype=np.float64)  # else the difference of squares would cancel
        away = rows - self.start
        error = rows - rounded.reshape(rows.shape).astype(np.float32)
        self.count += len(rows)
        self.total += away.sum(0)
        self.squares += np.einsum("nd,nd->d", away, away)
        self.error += np.einsum("nd,nd->d", error, error, dtype=np.float64)

    def lost(self) -> int:
        """How many features move, but by little more than they are rounded."""
        if not self.count:
            return 0
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        moves = deviation > 1e-6 * np.abs(mean + self.start)
        return int((moves & (np.sqrt(self.error / self.count) > _DETAIL * deviation)).sum())
