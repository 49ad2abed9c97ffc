"""The sound of a video file: decoded, mono, at one rate, every sample where its timestamp says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.decode import AGAIN, DecodeError, open_container, reason_of

Samples = NDArray[np.float32]

_JITTER_S = 0.01  # timestamps are rounded to 1 ms in places; a lost packet is 20 ms or more
_BACK_S = 1.0  # packets may repeat a little of what was there; more is another recording's clock
_REENCODE = f"{AGAIN}, or re-encode its sound: ffmpeg -i IN -c:v copy -c:a aac OUT.mp4"
_KEEP = f"{_REENCODE}, or pass --damaged keep to have silence where it cannot be decoded"


class SoundTrack:
    """The first sound track of a video file, mono, at one rate.

    Args:
        path: a local video file.
        rate: samples per second to convert to.
        damaged: "refuse" sound of which something is lost, or "keep" the rest in its place, with silence between.
        container: the open file, where somebody else reads it, closes it and calls `feed` and `flush`.

    Raises DecodeError on opening and, once it is known how much is lost, while reading.
    """

    def __init__(
        self,
        path: Path,
        rate: int,
        *,
        damaged: str = "refuse",
        container: "av.container.InputContainer | None" = None,
    ) -> None:
        self.path = path
        self.rate = rate
        self.end = 0
        """Samples from time 0 to the end of what was read."""
        self.gaps = 0
        """Samples of silence put in between."""
        self.lost = 0
        """Packets that are missing or cannot be decoded, so far."""
        self.reason = "marked as damaged"
        """Of the last loss."""
        self.is_through = False
        """Whether nothing comes behind `end`."""
        self.notes: list[str] = []
        self._keep = damaged == "keep"
        self._packets = 0
        self._run: _Run | None = None
        self._container = container or open_container(path)
        tracks: tuple[Any, ...] = self._container.streams.audio
        self._track = tracks[0] if tracks else None
        if len(tracks) > 1:
            self.notes.append(f"{len(tracks)} sound tracks: the first is taken")
        if self._track is not None and self._track.codec_context is None:
            self.close()
            raise self._bad("FFmpeg has no decoder for its sound")

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    @property
    def is_there(self) -> bool:
        """Whether the file has a sound track, be it an empty one."""
        return self._track is not None

    def stretches(self, zero: float) -> Iterator[Samples]:
        """The sound from time 0 on without a gap, (n,) float32 in [-1, 1], a packet or up to a second at a time.

        Args:
            zero: time 0 on the file's clock, seconds.
        """
        for samples, rate, time in self._decoded():
            yield from self._placed(samples, rate, time, zero)
        yield from self.flush()

    def feed(self, packet: Any, zero: float) -> Iterator[Samples]:
        """The stretches that are there once a packet of the track is; `zero` as in `stretches`."""
        for samples, rate, time in self._samples(packet):
            yield from self._placed(samples, rate, time, zero)

    def flush(self) -> Iterator[Samples]:
        """What was still under way behind the last packet."""
        if self._run:
            for at, made in self._run.flush():
                yield from self._joined(at, made)
        self.is_through = True

    def _placed(self, samples: Samples, rate: int, time: float | None, zero: float) -> Iterator[Samples]:
        for at, made in self._resampled(samples, rate, time, zero):
            yield from self._joined(at, made)

    def _joined(self, at: int, samples: Samples) -> Iterator[Samples]:
        """Samples that belong at `at`, with silence up to there, without what was there before."""
        if self.end == 0 and at > self.rate:
            self.notes.append(f"the sound begins {at / self.rate:.1f} s after the picture: silence before")
        if self.end:
            self.gaps += max(at - self.end, 0)
        while at > self.end:
            gap = min(at - self.end, self.rate)
            self.end += gap
            yield np.zeros(gap, np.float32)
        fresh = samples[min(self.end - at, len(samples)) :]
        self.end += len(fresh)
        yield fresh

    def _resampled(self, samples: Samples, rate: int, time: float | None, zero: float) -> Iterator[tuple[int, Samples]]:
        """Samples at `self.rate` with the place of the first one; a new start wherever timestamps jump."""
        run = self._run
        due = run.due if run else 0.0
        time = due if time is None else time - zero
        if run and due - time > _BACK_S:
            raise self._bad(f"the time of the sound jumps back by {due - time:.2f} s, to {time:.2f} s")
        if run is None or rate != run.rate_in or abs(time - due) > _JITTER_S:
            if run:
                yield from run.flush()
            run = self._run = _Run(time, rate, self.rate)
        yield from run.feed(samples)

    def _decoded(self) -> Iterator[tuple[Samples, int, float | None]]:
        for packet in self._demuxed():
            yield from self._samples(packet)
        self._judge()

    def _samples(self, packet: Any) -> Iterator[tuple[Samples, int, float | None]]:
        """Mono samples as they are in the file, their rate, and the time of the first one on the file's clock."""
        self._packets += packet.size > 0
        try:
            frames: list[Any] = packet.decode()
        except (av.error.FFmpegError, OSError) as error:
            self.reason = reason_of(error)
            self.lost += 1
            return
        pieces = [(to_mono(frame), frame.sample_rate, frame.time) for frame in frames]
        whole = not packet.is_corrupt and not any(frame.is_corrupt for frame in frames)
        if not whole:
            self.lost += 1
        elif not all(np.isfinite(samples).all() for samples, _, _ in pieces):
            self.reason = "samples that are no numbers"
            self.lost += 1
        elif self._keep or not self.lost:  # what comes behind a loss that is refused is only counted
            yield from pieces

    def _judge(self) -> None:
        """Raises DecodeError on a loss that is refused."""
        index = getattr(self._track, "index_entries", None)  # as for pictures: an edit list cuts packets away
        declared = 0 if self._track is None else self._track.frames
        absent = max(min(declared, declared if index is None else len(index)) - self._packets, 0)
        if absent:
            self.reason = "the file is truncated"
        self.lost += absent
        if self.lost and not self._keep:
            said = f"{self.lost} of {self._packets + absent} packets of the sound cannot be decoded"
            raise DecodeError(self.path, f"{said} ({self.reason})", _KEEP)

    def _demuxed(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._track)
        except (av.error.FFmpegError, OSError) as error:
            self.lost += 1
            self.reason = f"reading stops: {reason_of(error)}"

    def _bad(self, reason: str) -> DecodeError:
        return DecodeError(self.path, reason, _REENCODE)


class _Run:
    """Sound without a jump, put at its place and brought to another rate."""

    def __init__(self, time: float, rate_in: int, rate_out: int) -> None:
        self.rate_in = rate_in
        self._start = time
        self._fed = 0
        self._at = round(time * rate_out)
        self._resampler: Any = None
        if rate_in != rate_out:
            self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_out)

    @property
    def due(self) -> float:
        """When the next sample is due, seconds."""
        return self._start + self._fed / self.rate_in

    def feed(self, samples: Samples) -> Iterator[tuple[int, Samples]]:
        self._fed += len(samples)
        if self._resampler is None:
            yield from self._placed(samples)
            return
        frame: Any = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = self.rate_in
        for made in self._resampler.resample(frame):
            yield from self._placed(made.to_ndarray()[0])

    def flush(self) -> Iterator[tuple[int, Samples]]:
        if self._resampler is not None and self._fed:
            for made in self._resampler.resample(None):
                yield from self._placed(made.to_ndarray()[0])

    def _placed(self, samples: Samples) -> Iterator[tuple[int, Samples]]:
        at = self._at
        self._at += len(samples)
        yield at, np.clip(samples, -1, 1)


def to_mono(frame: "av.AudioFrame") -> Samples:
    """Decoded sound of any format -> the mean of its channels, (n,) float32; whole numbers at full scale become 1."""
    raw = frame.to_ndarray()
    channels = frame.layout.nb_channels
    planes = raw if frame.format.is_planar else raw.reshape(-1, channels).T  # (channels, n)
    if planes.dtype.kind == "f":
        return np.asarray(planes.mean(axis=0, dtype=np.float64), np.float32)
    full = 2.0 ** (8 * planes.dtype.itemsize - 1)
    middle = full if planes.dtype.kind == "u" else 0.0
    return np.asarray((planes.mean(axis=0, dtype=np.float64) - middle) / full, np.float32)
