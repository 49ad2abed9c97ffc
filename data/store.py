"""The feature store: one immutable HDF5 file per video, one spec per store. The layout stands in the README.

ROOT/spec.json                 the FeatureSpec, for people and for the check that nothing is mixed
ROOT/videos/<2 hex>/<name>.h5  one video; presence under this name means complete
ROOT/locks/<name>              flock claims, dropped by the kernel when a worker dies
ROOT/failures.jsonl            what could not be extracted, and why
ROOT/features.h5               external links to every video: one logical store, rebuilt at will
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py

from data.files import aside, reserve, sweep, sync, temporary_name
from data.grid import ClipGrid
from data.spool import SpooledFeatures
from data.store_file import FORMAT, StoreError, digest_of, grid_of, load, opened, reads_back, write_file
from data.types import FeatureSpec, VideoFeatures

__all__ = ["FORMAT", "FeatureStore", "StoreError", "StoreReport", "file_name"]


_SLACK = 1 << 20  # bytes of a file beside its numbers, at most


@dataclass(frozen=True)
class StoreReport:
    """What `FeatureStore.verify` found: ids that are whole, and one line for each file that is not."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    clips: int
    bytes: int


class FeatureStore:
    """Features of many videos, made with one spec.

    Many processes, on many machines, may write at once. A file under its final name is complete; a killed writer
    leaves at most a hidden temporary file.

    Args:
        root: the store's folder.
        spec: what new features are made with; the store is created when it is not there. None opens an existing one.

    Raises:
        StoreError: no store at `root`, or one of a newer format.
        SpecMismatchError: the store was made with another spec; the message names the field.
    """

    def __init__(self, root: Path | str, spec: FeatureSpec | None = None) -> None:
        self.root = Path(root)
        file = self.root / "spec.json"
        if not file.is_file():
            if spec is None:
                raise StoreError(
                    f"no feature store at {self.root}; make one: wsvad extract or wsvad import, with --out"
                )
            strangers = self.root.is_dir() and any(not p.name.startswith(".") for p in self.root.iterdir())
            if strangers and not file.is_file():  # asked again: another worker may have made the store meanwhile
                raise StoreError(f"{self.root} is not empty and no feature store; choose another folder for --out")
            self._create(file, spec)
        self.spec = _read_spec(file)
        if spec is not None:
            self.spec.check_equal(spec, f"the store {self.root}")
        self._digest = digest_of(self.spec)

    # -- names ---------------------------------------------------------------------------------------------------

    def path(self, video_id: str) -> Path:
        """Where the features of a video are. No id leads out of the store: all but letters, digits and a few signs
        are percent-encoded, and very long ids are cut and completed with a hash."""
        name = file_name(video_id)
        return self.root / "videos" / hashlib.sha256(video_id.encode()).hexdigest()[:2] / f"{name}.h5"

    def __contains__(self, video_id: str) -> bool:
        return self.path(video_id).is_file()

    def missing(self, video_ids: Iterable[str]) -> list[str]:
        """The ids that have no features yet, in the given order."""
        return [i for i in video_ids if i not in self]

    def ids(self) -> list[str]:
        """The ids of all videos in the store, sorted. Opens every file; raises StoreError on one that is damaged."""
        found: list[str] = []
        for path in self.files():
            with opened(path) as (_, attributes):
                found.append(str(attributes["video"]))
        return sorted(found)

    def files(self) -> list[Path]:
        """The files of all videos, sorted by path."""
        return sorted((self.root / "videos").glob("??/[!.]*.h5"))

    # -- write ---------------------------------------------------------------------------------------------------

    def write(self, features: VideoFeatures | SpooledFeatures) -> Path:
        """Stores one video: written aside, closed, reopened and checked, fsynced, then moved under its final name.

        Equal features give equal bytes, in memory or in a spool. Raises ValueError when they do not fit the store's
        spec.
        """
        self._check_fits(features)
        final = self.path(features.video_id)
        final.parent.mkdir(parents=True, exist_ok=True)
        held = features.x if isinstance(features, VideoFeatures) else features.spool
        reserve(self.root, prod(held.shape) * held.dtype.itemsize + _SLACK)
        with aside(final) as temporary:
            write_file(temporary, features, self.spec)
            # compared bit for bit, which is stronger than the checksum, and faster
            if not reads_back(temporary, features, self._digest):
                raise StoreError(f"{temporary} reads back differently than written; is the disk or its driver failing?")
        return final

    @contextmanager
    def claim(self, video_id: str) -> Iterator[bool]:
        """Claims a video for this process while the block runs; yields False when another one has it.

        The kernel drops the claim when the process dies. Losing the race costs time only: both would write the same.
        """
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        handle = os.open(folder / file_name(video_id), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
            except BlockingIOError:
                mine = False
            except OSError:  # a network disk without flock: correctness does not depend on it
                mine = True
            yield mine
        finally:
            os.close(handle)

    def record_failure(self, video_id: str, error: str, **details: object) -> None:
        """Appends a line to failures.jsonl, whole even when several workers append."""
        line = json.dumps(
            {"video": video_id, "error": error, "time": time.strftime("%FT%TZ", time.gmtime()), **details}
        )
        handle = os.open(self.root / "failures.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, (line + "\n").encode())
        finally:
            os.close(handle)

    def sweep(self) -> int:
        """Removes temporary files of writers that are gone. Returns how many."""
        return sweep(self.root)

    # -- read ----------------------------------------------------------------------------------------------------

    def read(self, video_id: str, *, check: bool = True) -> VideoFeatures:
        """The features of one video.

        Args:
            video_id: the manifest's id.
            check: compare the stored crc32 (about 1 ms per MB), since HDF5 does not notice a flipped bit.

        Raises StoreError when there are none, or the file is damaged or of another spec.
        """
        return load(self._held(video_id), video_id, self._digest, check=check)

    def length(self, video_id: str) -> tuple[ClipGrid, float | None]:
        """Grid and fps of one video, without reading its features."""
        with opened(self._held(video_id)) as (_, found):
            return grid_of(found), float(found["fps"]) or None

    def origin(self, video_id: str) -> tuple[ClipGrid, str]:
        """Grid of one video, and where its length comes from: "decoded", "manifest" or "features"."""
        with opened(self._held(video_id)) as (_, found):
            return grid_of(found), str(found["length_from"])

    def verify(self) -> StoreReport:
        """Opens and checks every file: readable, complete, of this store's spec, right name, right crc32, finite."""
        good: list[str] = []
        bad: list[str] = []
        clips = size = 0
        for path in self.files():
            try:
                features = load(path, None, self._digest, check=True)
                if self.path(features.video_id) != path:
                    raise StoreError(f"{path} holds '{features.video_id}', which belongs elsewhere; delete it")
            except StoreError as error:
                bad.append(str(error))
                continue
            good.append(features.video_id)
            clips += len(features.grid)
            size += path.stat().st_size
        return StoreReport(tuple(sorted(good)), tuple(bad), clips, size)

    def info(self) -> dict[str, Any]:
        """Spec, number of videos, bytes on disk and failures on record, without opening the videos."""
        files = self.files()
        failures = self.root / "failures.jsonl"
        return {
            "root": str(self.root),
            "format": FORMAT,
            "id": self.spec.id,
            "videos": len(files),
            "bytes": sum(f.stat().st_size for f in files),
            "failures": len(failures.read_text().splitlines()) if failures.is_file() else 0,
            "spec": asdict(self.spec),
        }

    def link(self) -> Path:
        """Rebuilds features.h5: /videos/<name> is an external link to each file, relative, so the folder can move.

        Links and not a virtual dataset, which reads zeros where a file is missing; a broken link raises KeyError.
        """
        master = self.root / "features.h5"
        reserve(self.root, _SLACK + 2048 * len(self.files()))
        with aside(master) as temporary, h5py.File(temporary, "w", libver=("earliest", "v110"), locking=False) as file:
            file.attrs["format"] = FORMAT
            file.attrs["spec"] = self.spec.to_json()
            group = file.create_group("videos")
            for path in self.files():
                group[path.stem] = h5py.ExternalLink(str(path.relative_to(self.root)), "/")
        return master

    # -- inside --------------------------------------------------------------------------------------------------

    def _held(self, video_id: str) -> Path:
        """The file of a video. Raises StoreError where there is none."""
        path = self.path(video_id)
        if not path.is_file():
            raise StoreError(f"no features of '{video_id}' in {self.root}; extract again, it does what is missing")
        return path

    def _create(self, file: Path, spec: FeatureSpec) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(file)
        try:
            temporary.write_text(
                json.dumps({"format": FORMAT, "id": spec.id, "spec": json.loads(spec.to_json())}, indent=2)
            )
            sync(temporary)
            os.link(temporary, file)  # unlike replace, fails when another worker created the store first
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        sync(self.root)

    def _check_fits(self, features: VideoFeatures | SpooledFeatures) -> None:
        want, grid = self.spec, features.grid
        made = (grid.clip_len, grid.stride, grid.tail, grid.step)
        if made != (want.clip_len, want.stride, want.tail, want.step):
            raise ValueError(
                f"{features.video_id}: clips of (length, stride, tail, step) {made} in a store of {want.id}"
            )
        held = features.x if isinstance(features, VideoFeatures) else features.spool
        if features.crops != want.crops or held.shape[2] != want.dim or held.dtype != want.dtype:
            raise ValueError(
                f"{features.video_id}: {held.shape} {held.dtype} of crops {features.crops}; the store "
                f"{want.id} holds (K, N, {want.dim}) {want.dtype} of crops {want.crops}"
            )


def file_name(video_id: str) -> str:
    """An id as a file name, one-to-one: `Bad.Boys.1995__#00-26_label_A` stays readable, `../x` becomes `%2E.%2Fx`."""
    name = quote(video_id, safe="#=()+,@ ")
    name = re.sub(r"^\.", "%2E", name).replace("~", "%7E")  # ~ marks a cut name, so no id may hold one
    if len(name) <= 160:
        return name
    return f"{name[:120]}~{hashlib.sha256(video_id.encode()).hexdigest()[:32]}"


def _read_spec(file: Path) -> FeatureSpec:
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise StoreError(f"{file} is of format {found['format']}, this wsvad reads {FORMAT}; upgrade wsvad")
        return FeatureSpec.from_json(json.dumps(found["spec"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{file} is damaged ({error}); restore it from any file's 'spec' attribute") from error
