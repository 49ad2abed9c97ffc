"""What of a video is lost: which packets gave no frame, and how many frames are missing between two that came.

FFmpeg goes on behind damage and says little about it: an error for a packet, a mark on a packet or on a frame that it
had to make up in part. A frame that never comes leaves no mark at all. So the time stamp of every packet that went in
is kept until its frame comes out.
"""

from fractions import Fraction
from heapq import heappop, heappush

from extract.times import Times

DAMAGED = ("refuse", "keep")
_MEMORY = 17  # frames of reordering in H.264 and HEVC: so far behind an error a frame may be missing because of it
# Codecs in which every packet shows a frame. MPEG-4 and VP8 have packets that do not.
_ONE_FRAME_EACH = {"h264", "hevc", "av1", "vp9", "mpeg1video", "mpeg2video", "mjpeg"}
# Containers with the time stamps of frames; AVI and MXF make theirs up from the order of packets.
_STAMPED = {"mp4", "matroska", "mpegts", "mpeg", "flv"}
_STREAMS = {"mpegts", "mpeg"}  # nothing in them says that a packet is missing, but they have a constant rate


class Ledger:
    """Books on packets and frames of one video.

    Args:
        rate: frames per second by the header, None where it does not say.
        time_base: seconds per unit of a time stamp.
        codec, container: FFmpeg's names.
        duration: seconds, by the header; a leap of the time stamps beyond it is none of missing frames.

    A frame is lost when it is missing or when the decoder made up a part of it; frames that show the fault of one they
    depend on are not known to the decoder, so that the count is a lower bound.
    """

    def __init__(
        self, rate: float | None, time_base: Fraction | None, codec: str, container: str, duration: float | None
    ) -> None:
        self.missing = 0
        """Frames that did not come, with frames that did behind them."""
        self.concealed = 0
        """Frames that came, but were marked."""
        self.behind = 0
        """Frames that did not come at the end, though their packets are there."""
        self.first: int | None = None
        """Number of the first lost frame."""
        self.reason = ""
        """What FFmpeg said first."""
        self.broken_container = False
        """Set when the container is known to be broken: then a gap in the time stamps is a loss, too."""
        self._rate = rate or 0.0
        self._unit = float(time_base or 0)
        names = container.split(",")
        self._most = duration * self._rate + self._rate if duration else float("inf")
        self._stamped = any(name in _STAMPED for name in names)
        self.times = Times(trusted=self._stamped)
        self._one_each = self._stamped and codec in _ONE_FRAME_EACH
        self._stream = any(name in _STREAMS for name in names)
        self._waiting: list[int] = []  # heap of the time stamps of packets whose frames have not come
        self._doubtful: set[int] = set()
        self._errors = 0
        self._error_at = 0
        self._suspicion = 0
        self._last: int | None = None
        self._unstamped = 0  # frames since that came without a time stamp

    @property
    def lost(self) -> int:
        """All of them; where time stamps tell nothing, as many as there were errors."""
        return max(self.missing + self.concealed + self.behind, self._errors)

    def send(self, stamp: int | None, *, marked: bool) -> None:
        """A packet goes in; `marked` as damaged by the container."""
        if stamp is not None:
            heappush(self._waiting, stamp)
        if marked:
            self._suspect(stamp)

    def fail(self, stamp: int | None, index: int, reason: str) -> None:
        """Decoding a packet ended in an error, with `index` frames given so far."""
        self._errors += 1
        if not self.reason:
            self.reason, self._error_at = reason, index
        self._suspect(stamp)

    def come(self, index: int, stamp: int | None, *, marked: bool) -> int:
        """A frame comes out, number `index` if none is missing before it: how many are."""
        missing, bad = self._settle(index, stamp, marked) if stamp is not None else (0, marked)
        if bad:
            self.concealed += 1
            self._suspicion = _MEMORY
        self.missing += missing
        if (bad or missing) and self.first is None:
            self.first = index
        if stamp is None:
            self._unstamped += 1
        else:
            self.times.add(index + missing, stamp * self._unit)
            self._last, self._unstamped = stamp, 0
        self._suspicion = max(self._suspicion - 1, 0)
        return missing

    def end(self, index: int) -> int:
        """No more frames come: how many packets there were behind the last frame, if anything was wrong at all."""
        if self._one_each and self.lost:
            self.behind = len(self._waiting)
        else:
            self.behind = sum(1 for stamp in self._waiting if stamp in self._doubtful)
        if self.lost and self.first is None:
            self.first = index if self.behind else self._error_at
        return self.behind

    def _settle(self, index: int, stamp: int, marked: bool) -> tuple[int, bool]:
        skipped = failed = 0
        oldest = stamp
        while self._waiting and self._waiting[0] <= stamp:
            due = heappop(self._waiting)
            if due < stamp:
                skipped += 1
                failed += due in self._doubtful
                oldest = min(oldest, due)
            elif due in self._doubtful:
                marked = True
            self._doubtful.discard(due)
        if not self._stamped and not (self._suspicion and self.times.ordered):
            return failed, marked
        if self._last is None:  # a whole file may begin with frames that need some it does not hold: nothing is shown
            gap = self._frames(stamp - oldest, skipped) if self._suspicion else 0
        elif self._suspicion or self.broken_container or self._stream or (self._one_each and skipped):
            gap = self._frames(stamp - self._last, skipped + 1) - 1 - self._unstamped
        else:
            gap = 0
        return (gap if 0 < gap <= self._most - index else 0), marked

    def _frames(self, units: int, otherwise: int) -> int:
        """Frames that so much time holds, at a rate that has been constant so far; else `otherwise`, after an error."""
        if self._rate and self.times.constant:
            return round(units * self._unit * self._rate)
        return otherwise if self._suspicion else 0

    def _suspect(self, stamp: int | None) -> None:
        self._suspicion = _MEMORY
        if stamp is not None:
            self._doubtful.add(stamp)


def lost_frames(lost: int, total: int, first: int, *, end: bool) -> str:
    """For the middle of a sentence: 37 of 1200 frames cannot be decoded; with `end`, none can behind the first."""
    if end:
        return f"decoding stops after {first} frames: {lost} of {total} cannot be decoded"
    return f"the file is damaged: {lost} of {total} frames cannot be decoded whole, from frame {first} on"
