"""The clips of an open source while it runs, from pictures that are decoded once and sound that is cut as it comes."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from data.grid import ratio_of
from data.types import FeatureSpec
from extract.clips import clips_of
from extract.decode import DecodeError
from extract.live_pictures import LivePictures
from extract.live_pieces import Gap, LiveClip
from extract.live_sound import LiveSound
from extract.live_wish import Stopped, Wish
from extract.streams import ASSUMED_FPS, rate_of, shown

_NOTE_S = 10.0  # between two notes on damage


class Connection:
    """An open container, read once from where it stands: clips until it gives out, and a gap wherever its time leaps.

    Raises DecodeError on a container that the specs cannot be met from: without pictures, without sound, without a
    frame rate.
    """

    def __init__(self, container: "av.container.InputContainer", name: str, wish: Wish) -> None:
        self._container, self._name, self._wish = container, name, wish
        if not container.streams.video:
            raise DecodeError(name, "it has no pictures", "see what it holds: ffprobe SOURCE")
        pictures = container.streams.video[0]
        pictures.thread_type = "NONE"
        if all(spec.modality == "audio" for spec in wish.specs):  # pictures are only counted
            codec = pictures.codec_context
            codec.options = {**codec.options, "skip_loop_filter": "all"}
        sound = container.streams.audio[:1] if any(spec.modality == "audio" for spec in wish.specs) else ()
        self._tracks = (pictures, *sound)
        self._packets = self._demuxed()
        self._stretch = Stretch(container, name, wish, self._more)
        self.error: Exception | None = None
        """What broke reading off; None at an ordinary end."""
        self.frames = 0
        """Frames of all that was given out."""
        self.num_frames = 0
        """Frames since the last gap."""

    def pieces(self) -> Iterator[LiveClip | Gap]:
        """The clips, to the end. Raises Stopped when `wish.stopped` says so."""
        while True:
            stretch = self._stretch
            yield from stretch.clips()
            self.num_frames = stretch.pictures.num_frames
            self.frames += self.num_frames
            if not stretch.left:
                return
            yield Gap(stretch.leap, time.time())
            self._stretch = Stretch(self._container, self._name, self._wish, self._more)
            self._stretch.take(stretch.left)

    def _more(self) -> bool:
        """Reads a packet; False when the stretch is over."""
        if self._wish.stopped():
            raise Stopped
        stretch = self._stretch
        if stretch.over:
            return False
        packet = next(self._packets, None)
        if packet is None:
            stretch.end(flush=self.error is not None)
        elif packet.stream.type == "video":
            stretch.take(stretch.pictures.decode(packet))
        elif stretch.sound is not None:
            stretch.sound.feed(packet)
        return True

    def _demuxed(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(*self._tracks)
        except (av.error.FFmpegError, OSError) as error:
            self.error = error


class Stretch:
    """What is seen without a break."""

    def __init__(
        self, container: "av.container.InputContainer", name: str, wish: Wish, more: Callable[[], bool]
    ) -> None:
        self._wish, self._more = wish, more
        self.pictures = LivePictures(container, name, wish.fps or ASSUMED_FPS)
        fps = self.pictures.fps or wish.fps
        self.fps = fps or ASSUMED_FPS
        if not fps:
            wish.note(f"no frame rate in the source: {ASSUMED_FPS:g} taken")
        self._rates = [rate_of(spec, fps, name) for spec in wish.specs]
        self._clips = [
            clips_of(shown(self.pictures.tap(spec, more), spec, rate, wish.reading), spec)
            for spec, rate in zip(wish.specs, self._rates, strict=True)
        ]
        for spec in wish.specs:
            if spec.modality != "audio" and spec.decoder != "pyav":
                wish.note(f"{spec.backbone}: the run's features were decoded by {spec.decoder}, a running source is by "
                          "PyAV, whose pixels differ a little")  # fmt: skip
        heard = [spec for spec in wish.specs if spec.modality == "audio"]
        self.sound = LiveSound(container, name, heard[0], self.pictures.clock) if heard else None
        self.over = False
        self.left: Sequence[av.VideoFrame] = ()
        """Frames behind a leap, and why they are none of this stretch."""
        self.leap = ""
        self._said = (0, 0)
        self._said_at = -_NOTE_S
        self._uneven = False

    def take(self, frames: Sequence[av.VideoFrame]) -> None:
        """Frames have been decoded."""
        self.leap, self.left = self.pictures.take(frames)
        if self.left:
            self.end(flush=False)

    def end(self, *, flush: bool) -> None:
        """Nothing more comes; `flush`: the decoder was not told."""
        if flush:
            self.leap, self.left = self.pictures.take(self.pictures.flush())
        self.pictures.end()
        if self.sound is not None:
            self.sound.flush()
        self.over = True

    def clips(self) -> Iterator[LiveClip]:
        """The clips that all modalities have, each as soon as it is whole."""
        first, pictures = self._wish.specs[0], self.pictures
        for index in count():
            parts = [next(clips, None) for clips in self._clips]
            data: dict[str, NDArray[Any]] = {}
            for spec, rate, part in zip(self._wish.specs, self._rates, parts, strict=True):
                if part is not None:
                    data[spec.modality] = self._heard(spec, rate, index) if spec.modality == "audio" else part
            if len(data) < len(parts):
                break
            start, stop = span(first, self._rates[0], index, pictures.num_frames)
            while not pictures.clock.knows(stop) and self._more():
                pass
            start_s, stop_s = pictures.clock.due(start), pictures.clock.due(stop)
            yield LiveClip(index, start, stop, start_s, stop_s, data, self.fps, pictures.came(stop - 1))
            pictures.forget(span(first, self._rates[0], index + 1, pictures.num_frames)[0] - 1)
            self._say()
        self._say(last=True)

    def _heard(self, spec: FeatureSpec, rate: float, index: int) -> NDArray[np.float32]:
        sound, clock = self.sound, self.pictures.clock
        if sound is None:
            raise RuntimeError("a source was opened without its sound")
        begin = index * spec.stride / rate  # the video's own frames; not whole where it is resampled
        end = (index * spec.stride + spec.clip_len * spec.step) / rate
        while not clock.knows(end) and self._more():
            pass
        start = sound.first_sample(clock.due(begin), clock.due(end))
        while not sound.is_there(start) and self._more():
            pass
        return sound.window(start)

    def _say(self, *, last: bool = False) -> None:
        """Tells what is unusual; what is damaged, every few seconds at most."""
        notes = self.pictures.take_notes() + (self.sound.take_notes() if self.sound else [])
        if not self._uneven and self.pictures.clock.strayed and any(spec.fps for spec in self._wish.specs):
            self._uneven = True
            notes.append("its frames do not come at the rate of its header, and the recipe resamples by it")
        (lost, reason), (unheard, why) = self.pictures.damage, self.sound.damage if self.sound else (0, "")
        if (lost, unheard) != self._said and (last or time.monotonic() - self._said_at >= _NOTE_S):
            if lost > self._said[0]:
                text = f"{lost} of {self.pictures.num_frames} frames so far are damaged or missing"
                notes.append(f"{text} ({reason})" if reason else text)
            if unheard > self._said[1]:
                notes.append(f"packets of the sound that cannot be decoded: {unheard} so far ({why})")
            self._said, self._said_at = (lost, unheard), time.monotonic()
        for note in notes:
            self._wish.note(note)


def span(spec: FeatureSpec, rate: float, index: int, num_frames: int) -> tuple[int, int]:
    """The frames that clip `index` covers, half-open, of a source of `num_frames` so far: `ClipGrid.spans`, one row."""
    ratio = ratio_of(rate)
    p, q = ratio.numerator, ratio.denominator
    first, behind = (
        max(-((1 - 2 * frame) * q // (2 * p)), 0) if rate != 1.0 else frame
        for frame in (index * spec.stride, index * spec.stride + spec.clip_len * spec.step)
    )
    start = min(first, num_frames - 1)
    return start, max(min(behind, num_frames), start + 1)
