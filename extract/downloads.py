"""Published weights fetched once: into a file aside, verified, then moved to their place.

A broken download goes on where it stopped, by a Range request under the server's own validator. Where the publisher
tells a checksum, that also holds from one run to the next; otherwise two versions of a file could be glued together
unseen, and the next run starts anew.
"""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from tqdm import tqdm

from data import files
from extract.catalogue import WeightFile, WeightsError
from extract.file_checks import is_checkable, mismatch, note_of, remember, remembered, sha256_of

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Fetched:
    """A file in its place. `state`: "present" (was there), "verified" (by a published checksum), "unpublished" (nobody
    tells its checksum; from now on it must be this one)."""

    path: Path
    sha256: str
    state: str


class _BrokenError(Exception):
    """The connection failed midway; another attempt may succeed."""


def fetch(entry: WeightFile, *, attempts: int = 4, pause_s: float = 2.0) -> Fetched:
    """Downloads a file unless the right one is there. Between attempts it waits `pause_s`, twice that, and so on.

    Raises WeightsError on an answer that is not the published file and on a server that does not give it.
    """
    final = entry.path
    if final.is_file() and not mismatch(entry, final):
        return Fetched(final, sha256_of(final), "present")
    final.parent.mkdir(parents=True, exist_ok=True)
    files.sweep(final.parent)
    kept = final.with_name(f".{final.name}.part")
    with files.aside(final) as temporary:
        if is_checkable(entry):
            with suppress(FileNotFoundError):
                os.replace(kept, temporary)  # in one step: of two processes one goes on with it
        try:
            _download(entry, temporary, attempts, pause_s)
        except (WeightsError, KeyboardInterrupt):
            if is_checkable(entry) and temporary.is_file():
                os.replace(temporary, kept)
            raise
        if wrong := mismatch(entry, temporary):
            hint = f"; to trust the new one delete {note_of(entry)}" if note_of(entry).is_file() else ""
            raise WeightsError(
                f"{entry.url} is not '{entry.name}': {wrong}. Nothing was kept; fetch it again, or pass a file of "
                f"your own by --weights FILE{hint}"
            )
    if not is_checkable(entry) and not remembered(entry):
        remember(entry, final)
    return Fetched(final, sha256_of(final), "verified" if is_checkable(entry) else "unpublished")


def _download(entry: WeightFile, temporary: Path, attempts: int, pause_s: float) -> None:
    opener = build_opener(_Redirects)
    validator = ""
    for attempt in range(attempts):
        try:
            with _ask(opener, entry, temporary, validator) as answer:
                validator = _validator_of(answer)
                _save(answer, temporary, entry.file)
            return
        except HTTPError as error:
            error.close()
            if error.code == 416:  # the server's file ends before ours
                temporary.unlink(missing_ok=True)
            elif error.code not in _TRY_AGAIN:
                raise _refused(entry, f"the server says {error.code} {error.reason}") from error
            last: Exception = error
        except (_BrokenError, URLError, ConnectionError, TimeoutError, HTTPException) as error:
            last = error
        if not validator and not is_checkable(entry):
            temporary.unlink(missing_ok=True)  # nothing would tell whether the rest belongs to it
        if attempt + 1 < attempts:
            time.sleep(pause_s * 2**attempt)
    raise _refused(entry, f"{attempts} attempts failed, the last by: {getattr(last, 'reason', last)}") from last


def _refused(entry: WeightFile, why: str) -> WeightsError:
    return WeightsError(
        f"cannot fetch '{entry.name}' from {entry.url}: {why}. Repeat the command later, or put a copy from elsewhere "
        f"at {entry.path}, or pass it by --weights FILE"
    )


def _ask(opener: OpenerDirector, entry: WeightFile, temporary: Path, validator: str) -> HTTPResponse:
    headers = {"User-Agent": _agent(), "Accept-Encoding": "identity"}
    have = temporary.stat().st_size if temporary.is_file() else 0
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    if urlsplit(entry.url).scheme not in ("http", "https"):
        raise WeightsError(f"'{entry.name}' lies at {entry.url}; only http and https addresses are fetched")
    answer: HTTPResponse = opener.open(Request(entry.url, headers=headers), timeout=_TIMEOUT_S)  # noqa: S310  # see above
    return answer


def _validator_of(answer: HTTPResponse) -> str:
    tag = answer.headers.get("ETag", "")
    if tag.startswith("W/"):  # a weak one does not promise equal bytes
        tag = ""
    return tag or answer.headers.get("Last-Modified", "")


def _save(answer: HTTPResponse, temporary: Path, name: str) -> None:
    """Appends a partial answer to what is there, replaces it by a whole one."""
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    have = temporary.stat().st_size if temporary.is_file() else 0
    if answer.status != 206:
        have, total = 0, answer.headers.get("Content-Length")
    elif part and int(part[1]) == have:
        total = None if part[2] == "*" else part[2]
    else:
        temporary.unlink(missing_ok=True)
        raise _BrokenError("the server sent another part than the one asked for")
    size = int(total) if total else None
    with (
        temporary.open("ab" if have else "wb") as file,
        tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        while chunk := _chunk_of(answer):
            file.write(chunk)
            bar.update(len(chunk))
        written = file.tell()
    if size is not None and written != size:
        raise _BrokenError(f"the connection closed after {written} of {size} bytes")


def _chunk_of(answer: HTTPResponse) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but from https never to anything else."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after != "https" and (before, after) != ("http", "http"):
            fp.close()
            raise URLError(f"it redirects from {before} to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _agent() -> str:
    try:
        return f"wsvad/{version('wsvad')}"
    except PackageNotFoundError:
        return "wsvad"
