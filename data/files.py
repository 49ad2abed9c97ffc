"""Files that are either whole or not there: written aside, fsynced, then moved in one step."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STALE_S = 24 * 3600.0


@contextmanager
def aside(final: Path) -> Iterator[Path]:
    """Yields a temporary path beside `final`, and moves it there when the block ends without an error.

    The folder must exist. Whoever sees `final` sees all of it. After SIGKILL a temporary file may stay behind under a
    name that starts with a dot; `sweep` removes those.
    """
    temporary = temporary_name(final)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(final.parent)  # the name itself must survive a power cut


def temporary_name(final: Path) -> Path:
    """Where this process writes `final` until it is whole: a hidden name that says whose it is, for `sweep`."""
    return final.parent / f".{final.name[:160]}.{_host()}.{os.getpid()}.tmp"


def write_text(final: Path, text: str) -> None:
    """Writes a text file in one step."""
    with aside(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Has the operating system put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, pattern: str = "**/.*.tmp") -> int:
    """Removes temporary files in `folder` whose writer is gone: dead on this host, or older than a day.

    The pattern says which; by default all below. Returns how many were removed.
    """
    removed = 0
    for path in folder.glob(pattern):
        *_, host, pid, _ = ("", "", *path.name.split("."))  # .name.h5.HOST.PID.tmp
        try:
            old = time.time() - path.stat().st_mtime > _STALE_S
            if old or (host == _host() and pid.isdecimal() and not _alive(int(pid))):
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # another sweeper was faster
    return removed


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def reserve(folder: Path, size: int) -> None:
    """Raises OSError where a disk has no room for `size` bytes: HDF5 finds out while it closes a file, and crashes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
