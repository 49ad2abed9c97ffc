"""Packed segments: what training takes from many videos of a store in one array, derived from it and rebuilt at will.

STORE/packed/<16 hex>.npy   (V, K, T, D) float16 or float32, shorter videos padded with zeros
STORE/packed/<16 hex>.json  what it was made from; written last, so its presence means complete

The name is a hash of everything that decides the numbers: a pack that does not fit any more is simply not found.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files import reserve, sweep
from data.pack_file import FORMAT, claimed, in_memory, metas, opened_pack, write_pack
from data.store import FeatureStore, StoreError

FOLDER = "packed"
Resample = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
_ORPHAN_S = 3600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packed:
    """Segments of videos.

    Args:
        x: (V', K, T, D) float16 or float32, read-only; a map of the file, or memory where none could be written.
        rows: (V,) where in `x` each of the videos asked for is.
        lengths: (V,) how many of its T segments are its own; zeros follow.
        path: the file, None in memory.
        built: made just now.
    """

    x: NDArray[Any]
    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    path: Path | None
    built: bool


def packed(
    store: FeatureStore,
    ids: Sequence[str],
    name: str,
    resample: Resample,
    count: int,
    dtype: str = "float16",
    *,
    beside: Sequence[FeatureStore] = (),
    read: Callable[[str], NDArray[np.float32]] | None = None,
) -> Packed:
    """Opens the pack of those videos, or one that holds more; makes it where there is none or features have changed.

    Several processes may ask for the same pack: one makes it, the others wait. One video at a time is in memory.

    Args:
        store: where the features are.
        ids: the videos, in order.
        name: of `resample`.
        resample: (K, N, D), count -> (K, T <= count, D), a pure function.
        count: T of the pack.
        dtype: "float16" or "float32"; one value beyond float16 makes the pack float32, with a warning.
        beside: stores whose files decide too what `read` gives.
        read: (K, N, D) float32 of a video as training takes it; None: all of `store.read`.

    Raises:
        StoreError: a video without features, or with damaged ones.
    """
    made = {
        "format": FORMAT,
        "spec": store.spec.to_json(),
        "resample": name,
        "probe": _probe(resample, count),
        "count": count,
        "dtype": dtype,
        "beside": sorted(s.spec.id for s in beside),
    }
    stores = (store, *sorted(beside, key=lambda s: s.spec.id))
    stamps = {i: _stamp(stores, i) for i in ids}
    folder = store.root / FOLDER
    digest = hashlib.sha256(json.dumps([made, list(stamps.items())], sort_keys=True).encode()).hexdigest()
    final = folder / f"{digest[:16]}.npy"
    wanted = {"made": made, "sha256": digest}
    if (found := _find(final, wanted, stamps, ids)) is not None:
        return found

    def segments() -> Iterator[NDArray[np.float32]]:
        for video_id in stamps:
            yield resample(read(video_id) if read else store.read(video_id).x.astype(np.float32), count)

    shape = (len(stamps), len(store.spec.crops), count, store.spec.dim)
    try:
        folder.mkdir(exist_ok=True)
        with claimed(final.with_suffix(".lock")):
            if (found := _find(final, wanted, stamps, ids)) is not None:
                return found
            sweep(folder)
            _remove_stale(stores, made)
            reserve(folder, prod(shape) * np.dtype(dtype).itemsize)
            write_pack(final, shape, segments, {**wanted, "videos": list(stamps.items())})
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): segments are kept in memory, the next run makes them anew", final, error
        )
        x, lengths = in_memory(shape, dtype, segments)
        return Packed(x, *_places(ids, {i: row for row, i in enumerate(stamps)}, lengths), None, True)
    found = _find(final, wanted, stamps, ids)
    if found is None:
        raise StoreError(f"{final} reads back differently than written; is the disk or its driver failing?")
    return Packed(found.x, found.rows, found.lengths, found.path, True)


def listing(root: Path) -> list[dict[str, Any]]:
    """The packs of a store, by name: {"file", "resample", "count", "dtype" as stored, "shape", "bytes", "beside",
    "stale": features have changed since}."""
    store, rows = FeatureStore(root), []
    for path, meta in metas(root / FOLDER):
        made, data = meta["made"], path.with_suffix(".npy")
        rows.append(
            {
                "file": str(data),
                "resample": made["resample"],
                "count": made["count"],
                "dtype": meta["stored"],
                "shape": meta["shape"],
                "bytes": data.stat().st_size if data.is_file() else 0,
                "beside": made["beside"],
                "stale": _stale(meta, (store,)),
            }
        )
    return rows


def damaged(root: Path) -> list[str]:
    """One line for each pack of a store whose numbers are not those that were written."""
    bad: list[str] = []
    for path, meta in metas(root / FOLDER):
        x = opened_pack(path.with_suffix(".npy"), meta)
        if x is None or not _sound(x, meta):
            bad.append(f"{path.with_suffix('.npy')} is damaged; delete it, it is made anew when needed")
    return bad


# -- finding ---------------------------------------------------------------------------------------------------------


def _find(final: Path, wanted: dict[str, Any], stamps: dict[str, str], ids: Sequence[str]) -> Packed | None:
    """The pack of that name, else one made the same way that holds all those videos and more."""
    for path, meta in sorted(metas(final.parent), key=lambda found: found[0].stem != final.stem):
        exact = meta["sha256"] == wanted["sha256"]
        # one that fell back to float32 for the sake of other videos would change the numbers of these
        if not exact and (meta["made"] != wanted["made"] or meta["stored"] != meta["made"]["dtype"]):
            continue
        place = {video_id: row for row, (video_id, _) in enumerate(meta["videos"])}
        if any(i not in place or meta["videos"][place[i]][1] != stamp for i, stamp in stamps.items()):
            continue
        x = opened_pack(path.with_suffix(".npy"), meta)
        if x is None:
            continue
        if not _sound(x, meta):
            log.warning("%s is damaged (crc32 differs): it is made anew", path.with_suffix(".npy"))
            path.unlink(missing_ok=True)
            continue
        if exact and meta["stored"] != meta["made"]["dtype"]:
            log.warning("%s is float32: not all values fit %s", path.with_suffix(".npy"), meta["made"]["dtype"])
        return Packed(x, *_places(ids, place, meta["lengths"]), path.with_suffix(".npy"), False)
    return None


def _sound(x: NDArray[Any], meta: Mapping[str, Any]) -> bool:
    """Whether the numbers are those that were written: reads all of them, at the disk's pace."""
    crc = 0
    for block in x:
        crc = zlib.crc32(np.ascontiguousarray(block).data.cast("B"), crc)
    return bool(crc == meta["crc32"])


def _places(
    ids: Sequence[str], place: Mapping[str, int], lengths: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and lengths of the videos asked for."""
    rows = np.array([place[i] for i in ids], np.int64)
    return rows, np.array(lengths, np.int64)[rows]


def _stamp(stores: Sequence[FeatureStore], video_id: str) -> str:
    """Changes when a stored file of the video does; files are immutable, so a new one has a new time."""
    parts = []
    for store in stores:
        try:
            found = store.path(video_id).stat()
        except FileNotFoundError:
            message = f"no features of '{video_id}' in {store.root}; extract again, it does what is missing"
            raise StoreError(message) from None
        parts.append(f"{found.st_size}:{found.st_mtime_ns}")
    return "|".join(parts)


def _probe(resample: Resample, count: int) -> str:
    """Hash of what the function does to a long and a short example: packs are not to outlive a change of its code."""
    digest = hashlib.sha256()
    for clips in (37, 5):
        example = (np.arange(2 * clips) * 7 % 11).reshape(1, clips, 2).astype(np.float32)
        digest.update((resample(example, count).astype(np.float64).round(3) + 0.0).tobytes())
    return digest.hexdigest()[:16]


def _stale(meta: dict[str, Any], stores: Sequence[FeatureStore]) -> bool:
    """Whether a file of its videos has changed; of the stores beside it, only those given are looked at."""
    for video_id, stamp in meta["videos"]:
        try:
            now = _stamp(stores, video_id).split("|")
        except StoreError:
            return True
        if stamp.split("|")[: len(now)] != now:
            return True
    return False


def _remove_stale(stores: Sequence[FeatureStore], made: dict[str, Any]) -> None:
    """Removes packs of the same parameters that features, or the code, have left behind."""
    folder = stores[0].root / FOLDER
    for path, meta in metas(folder):
        old = meta["made"]
        if any(old[key] != made[key] for key in ("resample", "count", "dtype")):
            continue
        same = old["beside"] == made["beside"]
        if old["probe"] != made["probe"] or _stale(meta, stores if same else stores[:1]):
            log.info("%s is stale: removed", path.with_suffix(".npy"))
            path.unlink(missing_ok=True)
            path.with_suffix(".npy").unlink(missing_ok=True)
    for data in folder.glob("[!.]*.npy"):  # its writer was killed before the JSON
        with_json = data.with_suffix(".json").is_file()
        try:
            if not with_json and time.time() - data.stat().st_mtime > _ORPHAN_S:
                data.unlink()
        except FileNotFoundError:
            continue
