"""The sound of one video put into another beside its frames, in step with them."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from extract.decode import DecodeError
from extract.soundtrack import Samples, SoundTrack

_RATE = 48_000
_CHUNK = 1024  # samples of an AAC frame


class SoundOut:
    """The first sound track of `source` as mono AAC in a container that nothing has been written to yet.

    Args:
        container: to write to.
        source: a video file, or a folder of pictures, which has no sound.
        zero: time 0 of the new file on the clock of `source`, seconds.
        notes: what is unusual is added to them, also later.
    """

    def __init__(self, container: "av.container.OutputContainer", source: Path, zero: float, notes: list[str]) -> None:
        self._container, self._notes = container, notes
        self._track = _track_of(source, notes)
        self._held: Samples = np.zeros(0, np.float32)
        self._sent = 0
        self._pieces: Iterator[Samples] = iter(())
        if self._track is not None:
            self._stream: Any = container.add_stream("aac", rate=_RATE, layout="mono")
            self._pieces = self._track.stretches(zero)

    def close(self) -> None:
        """Closes the source."""
        if self._track is not None:
            self._track.close()

    def write(self, until_s: float) -> None:
        """Sends the sound up to that time, in whole chunks."""
        until = round(until_s * _RATE)
        while self._sent + len(self._held) < until and (piece := self._next()) is not None:
            self._held = np.concatenate([self._held, piece])
        ready = min(until - self._sent, len(self._held))
        for start in range(0, ready - _CHUNK + 1, _CHUNK):
            self._send(self._held[start : start + _CHUNK])
        self._held = self._held[max(ready, 0) // _CHUNK * _CHUNK :]

    def end(self, until_s: float) -> None:
        """Sends the rest of the sound up to that time: the end of the video."""
        self.write(until_s)
        if self._track is not None:
            self._send(self._held[: max(round(until_s * _RATE) - self._sent, 0)])
            self._container.mux(self._stream.encode(None))

    def _next(self) -> Samples | None:
        try:
            return next(self._pieces, None)
        except DecodeError as error:
            self._notes.append(f"sound only up to {(self._sent + len(self._held)) / _RATE:.1f} s: {error.reason}")
            self._pieces = iter(())
            return None

    def _send(self, samples: Samples) -> None:
        if not len(samples):
            return
        frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = _RATE, self._sent, Fraction(1, _RATE)
        self._container.mux(self._stream.encode(frame))
        self._sent += len(samples)


def _track_of(source: Path, notes: list[str]) -> SoundTrack | None:
    """None where there is none, or none that can be read; a note says so."""
    if source.is_dir():
        return None
    try:
        track = SoundTrack(source, _RATE, damaged="keep")
    except DecodeError as error:
        notes.append(f"without its sound: {error.reason}")
        return None
    if track.is_there:
        return track
    track.close()
    return None
