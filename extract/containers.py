"""Whether a container holds together: its elements follow each other without a gap, and the file goes on to their end.

Only headers of elements are read. FFmpeg passes over what it cannot parse and takes the end of a file for the end of
the video; where frames can vanish that way without a trace, this tells.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

# Element identifiers of Matroska and WebM (RFC 9559)
_EBML, _SEGMENT, _CLUSTER, _BLOCK = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xA3
_TRACKS, _TRACK, _NUMBER = 0x1654AE6B, 0xAE, 0xD7
_IN_SEGMENT = {
    *(0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, 0x1C53BB6B),  # SeekHead, Info, Tracks, Cluster, Cues
    *(0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF),  # Attachments, Chapters, Tags, Void, CRC-32
}
_IN_CLUSTER = {0xE7, _BLOCK, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, 0xBF}  # Timestamp, SimpleBlock, BlockGroup, ...


def container_fault(path: Path, name: str) -> str | None:
    """What is wrong with the structure of a file in FFmpeg's format `name`; None where nothing is, or none is known.

    Known are Matroska and WebM, AVI, FLV, and fragmented MP4. A plain MP4 is not looked at: its index says which frames
    there should be.
    """
    check = next((check for part, check in _CHECKS.items() if part in name.split(",")), None)
    if check is None:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return check(data)


def _cut(data: mmap.mmap, wanted: int) -> str:
    return f"the file ends at byte {len(data)}, its container says {wanted}"


def _matroska(data: mmap.mmap) -> str | None:
    at, stop = 0, len(data)
    while at < stop:
        found = _element(data, at)
        if found is None or found[0] not in (_EBML, _SEGMENT):
            return None if at else "it does not begin as Matroska does"  # what follows the segment is nobody's concern
        identifier, start, end = found
        if identifier == _SEGMENT:
            if end is not None and end > stop:
                return _cut(data, end)
            return _children(data, start, stop if end is None else end, live=end is None)
        at = stop if end is None else end
    return None


def _children(data: mmap.mmap, at: int, stop: int, *, live: bool) -> str | None:
    """A fault among the elements of a segment, data[at:stop]; those of its clusters are gone through with them.

    The segment of a live recording has no size of its own: it ends where the file does.
    """
    tracks: set[int] = set()
    cluster_end = at  # of the cluster that the element lies in; of unknown size: the segment's
    while at < stop:
        found = _element(data, at)
        allowed = _IN_SEGMENT | _IN_CLUSTER if at < cluster_end else _IN_SEGMENT
        if found is None or found[0] not in allowed:
            return f"its structure is broken at byte {at}"
        identifier, start, end = found
        if identifier == _TRACKS and end is not None:
            tracks = _tracks(data, start, min(end, len(data)))
        if identifier == _BLOCK and tracks and _number(data, start) not in tracks:
            return f"its structure is broken at byte {at}"
        if identifier == _CLUSTER:
            if end is not None and end > stop:
                return _cut(data, end) if live else f"its structure is broken at byte {at}"
            at, cluster_end = start, stop if end is None else end
            continue
        if end is None or end > (cluster_end if at < cluster_end else stop):
            beyond = live and end is not None and end > stop
            return _cut(data, end or 0) if beyond else f"its structure is broken at byte {at}"
        at = end
    return None


def _tracks(data: mmap.mmap, at: int, stop: int) -> set[int]:
    """The numbers of the tracks, told in data[at:stop]."""
    found: set[int] = set()
    while at < stop and (element := _element(data, at)) is not None:
        identifier, start, end = element
        if identifier == _NUMBER and end is not None:
            found.add(int.from_bytes(data[start:end], "big"))
        at = start if identifier == _TRACK or end is None else end
    return found


def _number(data: mmap.mmap, at: int) -> int:
    """A number of variable length, as a block begins with that of its track; -1 where none is."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1) if width < 9 else -1


def _element(data: mmap.mmap, at: int) -> tuple[int, int, int | None] | None:
    """Identifier, first byte of the content and byte behind it (None for an unknown size); None where none is."""
    head = data[at : at + 12]
    width = 9 - head[0].bit_length()
    if width > 4 or len(head) < width + 1:
        return None
    identifier = int.from_bytes(head[:width], "big")
    length = 9 - head[width].bit_length()
    if length > 8 or len(head) < width + length:
        return None
    size = int.from_bytes(head[width : width + length], "big") & ((1 << 7 * length) - 1)
    start = at + width + length
    return identifier, start, None if size == (1 << 7 * length) - 1 else start + size


def _avi(data: mmap.mmap) -> str | None:
    at = 0
    while at + 12 <= len(data) and data[at : at + 4] == b"RIFF":
        (size,) = struct.unpack("<I", data[at + 4 : at + 8])
        if not size:  # a recorder that was switched off has not filled it in
            return None
        at += 8 + size + size % 2
    return _cut(data, at) if at > len(data) + 1 else None  # the byte that fills up an odd chunk is left out by some


def _flv(data: mmap.mmap) -> str | None:
    at = int.from_bytes(data[5:9], "big") + 4  # the header's size; each tag is followed by its own in 4 bytes
    while at + 11 <= len(data):
        if data[at] & 0x1F not in (8, 9, 18):  # sound, picture, text
            return f"its structure is broken at byte {at}"
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    return None if at - 4 <= len(data) <= at else _cut(data, at)


def _fragmented(data: mmap.mmap) -> str | None:
    boxes = list(_boxes(data))
    if all(kind != b"moof" for kind, _ in boxes):
        return None
    end = boxes[-1][1]
    return _cut(data, end) if end > len(data) else None


def _boxes(data: mmap.mmap) -> Iterator[tuple[bytes, int]]:
    """Type and end of the boxes of an MP4 file, one after the other."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack(">Q", data[at + 8 : at + 16])
        elif size == 0:
            size = len(data) - at
        if size < 8:
            return
        at += size
        yield kind, at


_CHECKS = {"matroska": _matroska, "webm": _matroska, "avi": _avi, "flv": _flv, "mp4": _fragmented}
