"""Whether a file of weights is what it should be: its hashes, its size, and what it begins with."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from data import files
from extract.catalogue import WeightFile, WeightsError

_CHUNK = 1 << 20
_SIZE_TOLERANCE = 0.06  # publishers print MiB as MB, which is 4.9 % off


def sha256_of(path: Path) -> str:
    """Hex digits. Computed once per process for a file that does not change.

    Raises WeightsError where there is no file.
    """
    return _digests_of(path)[0]


def git_blob_of(path: Path) -> str:
    """What `git hash-object` prints: sha1 of "blob ", the size, a zero byte and the bytes. Raises as `sha256_of`."""
    return _digests_of(path)[1]


def require_file(path: Path) -> None:
    """Raises WeightsError when there is no such file."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; --weights takes one file")
    if not path.is_file():
        raise WeightsError(f"no weights file {path}; pass a file's path, or a name from `wsvad weights ls`")


def foreign(head: bytes) -> str:
    """What a file that begins like this is instead of weights; "" when it may be weights."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page: the download met a login, a warning or an error"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs: run `git lfs pull` in the repository it comes from"
    return ""


def is_checkable(entry: WeightFile) -> bool:
    """Whether its publisher tells what it hashes to."""
    return bool(entry.git_blob or entry.sha256)


def mismatch(entry: WeightFile, path: Path) -> str:
    """What is wrong with a downloaded file, as "wanted ..., found ..."; "" when it is the published one.

    Where nobody published a checksum, the one of the first download counts (`remember`); before that, the size.
    """
    with path.open("rb") as file:
        if what := foreign(file.read(512)):
            return f"wanted {entry.about}, found {what}"
    wanted = entry.sha256 or ("" if entry.git_blob else remembered(entry))
    found = sha256_of(path)
    if wanted and not found.startswith(wanted):
        return f"wanted sha256 {wanted}{'...' if len(wanted) < 64 else ''}, found {found}"
    if entry.git_blob and git_blob_of(path) != entry.git_blob:
        return f"wanted git blob {entry.git_blob}, found {git_blob_of(path)}"
    size = path.stat().st_size
    if not is_checkable(entry) and entry.size and abs(size - entry.size) > _SIZE_TOLERANCE * entry.size:
        return f"wanted about {entry.size} bytes, found {size}"
    return ""


def state_of(entry: WeightFile) -> tuple[str, str]:
    """A state and what was found: "absent"; "WRONG" and why; "good" and the sha256 where its publisher tells one,
    "as first" and the sha256 where it is the first download's, "unknown" and the sha256 where nothing tells."""
    if not entry.path.is_file():
        return "absent", ""
    if wrong := mismatch(entry, entry.path):
        return "WRONG", wrong
    state = "good" if is_checkable(entry) else "as first" if remembered(entry) else "unknown"
    return state, f"sha256 {sha256_of(entry.path)}"


def note_of(entry: WeightFile) -> Path:
    """Where the sha256 of the first download is kept: beside the file."""
    return entry.path.with_name(entry.path.name + ".json")


def remember(entry: WeightFile, path: Path) -> None:
    """Writes down the sha256 of a file whose publisher tells none: trust on first use."""
    found = {"sha256": sha256_of(path), "size": path.stat().st_size, "url": entry.url}
    files.write_text(note_of(entry), json.dumps(found, indent=2) + "\n")


def remembered(entry: WeightFile) -> str:
    """The sha256 of the first download; "" when there was none.

    Raises WeightsError on a note that cannot be read.
    """
    note = note_of(entry)
    if not note.is_file():
        return ""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{note} cannot be read ({error}); delete it, and fetch {entry.name} again") from error


def _digests_of(path: Path) -> tuple[str, str]:
    require_file(path)
    found = path.stat()
    return _digests(path.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _digests(path: Path, size: int, mtime_ns: int) -> tuple[str, str]:
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()
