"""One video's file in a feature store: HDF5, immutable, with everything said about its numbers beside them."""

import errno
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data.grid import ClipGrid
from data.spool import SpooledFeatures
from data.types import FeatureSpec, VideoFeatures

FORMAT = 1
_BLOCK = 4 << 20  # bytes of a dataset checked at once
_REMEDY = "delete it and extract again"


class StoreError(ValueError):
    """A store or one of its files cannot be used; the message says what was found and what to type."""


def digest_of(spec: FeatureSpec) -> str:
    """sha256 of a spec's JSON."""
    return hashlib.sha256(spec.to_json().encode()).hexdigest()


def write_file(path: Path, features: VideoFeatures | SpooledFeatures, spec: FeatureSpec) -> None:
    """Writes one video's features, the same bytes for the same features."""
    grid = features.grid
    said = {
        "format": FORMAT,
        "video": features.video_id,
        "spec": spec.to_json(),
        "spec_digest": digest_of(spec),
        "num_frames": grid.num_frames,
        "fps": float(features.fps or 0.0),
        "clip_len": grid.clip_len,
        "stride": grid.stride,
        "step": grid.step,
        "tail": grid.tail,
        "count": -1 if grid.count is None else grid.count,
        "crops": json.dumps(features.crops),
        "source_bytes": features.source_bytes,
        "length_from": features.length_from,
    }
    if grid.rate != 1.0:  # said where it is the case: files without are as they always were
        said["rate"] = grid.rate
    if features.lost:
        said["lost"] = features.lost
    # v110: files that HDF5 1.10 and everything since can read
    with h5py.File(path, "w", libver=("earliest", "v110"), locking=False) as file:
        # contiguous and uncompressed: gzip reads 40 times slower for 36 % less disk
        if isinstance(features, VideoFeatures):
            x = np.ascontiguousarray(features.x)
            file.create_dataset("features", data=x, track_times=False)
            crc = zlib.crc32(x.data.cast("B"))
        else:
            shape, dtype = features.spool.shape, features.spool.dtype
            stored = file.create_dataset("features", shape, dtype, track_times=False)
            for start, block in features.spool.blocks():
                for k in range(shape[0]):
                    stored[k, start : start + len(block)] = block[:, k]
            crc = _crc_of(stored)
        file.attrs.update(said)
        file.attrs["crc32"] = _checksum(crc, said)
        file.attrs["complete"] = True  # written last


def _checksum(crc: int, said: dict[str, Any]) -> int:
    """crc32 over the numbers, given, and over what is said about them: HDF5 notices a flipped bit in neither."""
    attributes = ((k, v) for k, v in sorted(said.items()) if k not in ("crc32", "complete"))
    text = "\n".join(f"{k}={v.item() if isinstance(v, np.generic) else v}" for k, v in attributes)
    return zlib.crc32(text.encode(), crc)


def _crc_of(stored: h5py.Dataset) -> int:
    """crc32 of a dataset (K, N, D) in its order on disk, a few MB at a time."""
    crc, (crops, clips, dim) = 0, stored.shape
    size = max(_BLOCK // (dim * stored.dtype.itemsize), 1)
    for k in range(crops):
        for start in range(0, clips, size):
            crc = zlib.crc32(np.ascontiguousarray(stored[k, start : start + size]).data.cast("B"), crc)
    return crc


def reads_back(path: Path, features: VideoFeatures | SpooledFeatures, digest: str) -> bool:
    """Whether a file holds these features, bit for bit."""
    if isinstance(features, VideoFeatures):
        back = load(path, features.video_id, digest, check=False)
        bits = f"u{back.x.itemsize}"
        return back.grid == features.grid and np.array_equal(
            back.x.view(bits), np.ascontiguousarray(features.x).view(bits)
        )
    bits = f"u{features.spool.dtype.itemsize}"
    with opened(path) as (file, found):
        _check_said(path, found, features.video_id, digest)
        stored = file["features"]
        if grid_of(found) != features.grid or stored.shape != features.spool.shape:
            return False
        for start, block in features.spool.blocks():
            for k in range(stored.shape[0]):
                back_k = np.ascontiguousarray(stored[k, start : start + len(block)])
                if not np.array_equal(back_k.view(bits), np.ascontiguousarray(block[:, k]).view(bits)):
                    return False
        return True


@contextmanager
def opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    """A video's file and its attributes; whatever h5py raises on a damaged one, also while the block reads it, becomes
    StoreError."""
    try:
        # immutable files need no HDF5 lock, and read-only or network mounts may not offer one
        with h5py.File(path, "r", locking=False) as file:
            found = dict(file.attrs)
            if found["format"] != FORMAT:
                raise StoreError(f"{path} is of format {found['format']}, this wsvad reads {FORMAT}; upgrade wsvad")
            yield file, found
    except StoreError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise StoreError(f"{path}: too many files are open; raise the limit: ulimit -n 8192") from error
        raise StoreError(f"{path} is damaged ({error}); delete it and extract again") from error


def grid_of(found: dict[str, Any]) -> ClipGrid:
    """The grid that a file's attributes describe."""
    count = int(found["count"])
    numbers = (int(found["num_frames"]), int(found["clip_len"]), int(found["stride"]))
    rate = float(found.get("rate", 1.0))
    return ClipGrid(*numbers, str(found["tail"]), None if count < 0 else count, int(found["step"]), rate)


def _check_said(path: Path, found: dict[str, Any], video_id: str | None, digest: str) -> None:
    """Raises StoreError unless a file is complete, of that video and of the store's spec."""
    if not found.get("complete"):
        raise StoreError(f"{path} was never completed; {_REMEDY}")
    if video_id is not None and str(found["video"]) != video_id:
        raise StoreError(f"{path} holds '{found['video']}', not '{video_id}'; {_REMEDY}")
    if found["spec_digest"] != digest:
        raise StoreError(f"{path} was made with another spec than its store's; {_REMEDY}")


def load(path: Path, video_id: str | None, digest: str, *, check: bool) -> VideoFeatures:
    """One video's features, for `FeatureStore.read`; `check` compares the crc32. Raises StoreError."""
    with opened(path) as (file, found):
        _check_said(path, found, video_id, digest)
        x = file["features"][()]
        if check and _checksum(zlib.crc32(np.ascontiguousarray(x).data.cast("B")), found) != int(found["crc32"]):
            raise StoreError(f"{path} is damaged (crc32 differs); {_REMEDY}")
        fps, crops = float(found["fps"]) or None, tuple(json.loads(found["crops"]))
        size, length_from, lost = int(found["source_bytes"]), str(found["length_from"]), int(found.get("lost", 0))
        return VideoFeatures(str(found["video"]), x, grid_of(found), fps, crops, size, length_from, lost)
