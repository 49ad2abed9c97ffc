"""The sound of a video as one window of samples per clip, in step with its pictures.

Time 0 is the first picture. A clip begins and ends when its first picture and the one behind its last are due: by the
frame rate, or by the pictures' own timestamps where these stray from it. Samples stand where their timestamps say, so
that sound that begins late, pauses or runs at a clock of its own stays with what is seen.

`FeatureSpec.options` of an audio backbone:

- rate: samples per second; other rates are converted (resampler "swr": FFmpeg's, with its defaults);
- window: S, samples per clip;
- align: which S samples a clip gets. With t the time of its beginning, end or middle and r the rate, the first one is
  "end": round(r t_end) - S, so that a window ends where its clip does (the features published with XD-Violence);
  "start": round(r t_begin); "center": round(r t_middle) - S // 2;
  "hop": of the windows that begin every `hop` samples from time 0 on, the last that begins by the clip's middle;
- missing: "error" or "silence", for a video without sound.

Channels are averaged. Before the first picture and behind the sound's end there is silence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.types import FeatureSpec
from extract.decode import DecodeError, Reader
from extract.frame_clock import FrameClock
from extract.pictures import open_video
from extract.resample import check_constant
from extract.soundtrack import Samples, SoundTrack

ALIGNMENTS = ("end", "start", "center", "hop")
MISSING = ("error", "silence")

_USUAL_FPS = 25.0


@dataclass(frozen=True)
class SoundRule:
    """Which samples each clip gets; see the module's text. Raises ValueError on options that make no sense."""

    rate: int
    window: int
    align: str = "end"
    missing: str = "error"
    hop: int = 0
    resampler: str = "swr"

    def __post_init__(self) -> None:
        if self.align not in ALIGNMENTS:
            raise ValueError(f"align must be one of {', '.join(ALIGNMENTS)}, got '{self.align}'")
        if self.missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(MISSING)}, got '{self.missing}'")
        if self.resampler != "swr":
            raise ValueError(f"resampler must be swr, got '{self.resampler}'")
        for name, least in (("rate", 1), ("window", 1), ("hop", int(self.align == "hop"))):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 10_000_000:
                raise ValueError(f"{name} must be a whole number from {least} to 10000000, got {value!r}")

    @classmethod
    def of(cls, spec: FeatureSpec) -> "SoundRule":
        """The rule that a spec's options state; further options are somebody else's."""
        if absent := [name for name in ("rate", "window") if name not in spec.options]:
            raise ValueError(f"{spec.backbone}: the options of an audio backbone lack '{absent[0]}'")
        known: dict[str, Any] = {k: v for k, v in spec.options.items() if k in cls.__dataclass_fields__}
        return cls(**known)

    def first_samples(self, begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.int64]:
        """The first sample of the windows of clips that begin and end at those times, in samples (N,), maybe < 0."""
        if self.align == "end":
            return np.rint(end).astype(np.int64) - self.window
        if self.align == "start":
            return np.rint(begin).astype(np.int64)
        middle = np.rint((begin + end) / 2).astype(np.int64)
        return middle - self.window // 2 if self.align == "center" else middle // self.hop * self.hop


class AudioClips:
    """Windows of sound of one video: `with AudioClips(path, spec) as clips: for window in clips: ...`.

    Yields (S,) float32 in [-1, 1], exactly one for each clip of `spec.grid` of the video. Memory does not grow with the
    sound. The pictures are decoded first, only to be counted: exactly as many as the visual backbones see.

    Args:
        path: a local video file, or a folder of pictures, which has no sound.
        spec: of an audio backbone; its `options` state the rule.
        fps: frames per second where the file does not say.
        damaged: "refuse" a video of which pictures or sound are lost, or "keep" the rest of it in its place.

    `fps` is None where neither says, `num_bytes` is the file's size. After the last window `num_frames` is exact,
    `lost` says how many pictures and packets of sound are missing or not whole, and `notes` what is unusual.

    Raises:
        DecodeError: on opening (nothing there, no video in it, no sound in it while `missing` is "error") and while
            reading (truncated, damaged).
        ValueError: on options that make no sense.
    """

    def __init__(
        self, path: Path | str, spec: FeatureSpec, *, fps: float | None = None, damaged: str = "refuse"
    ) -> None:
        self.path = Path(path)
        self.spec = spec
        self.rule = SoundRule.of(spec)
        self.num_frames = 0
        self.lost = 0
        self.notes: list[str] = []
        self._pictures: Reader = (open_video if self.path.is_dir() else FrameClock)(path, damaged=damaged)
        self._sound: SoundTrack | None = None
        self.num_bytes = self._pictures.num_bytes
        self.fps = self._pictures.fps or fps
        try:
            if not self.path.is_dir():
                self._sound = SoundTrack(self.path, self.rule.rate, damaged=damaged)
            if self._sound is None or not self._sound.is_there:
                self._without_sound()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AudioClips":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._pictures.close()
        if self._sound is not None:
            self._sound.close()

    def __iter__(self) -> Iterator[Samples]:
        for _ in self._pictures:
            pass
        self.num_frames, self.lost = self._pictures.num_frames, self._pictures.lost
        self.notes += self._pictures.notes
        first, length = self._plan()
        if self._sound is None or not self._sound.is_there:
            for _ in first:
                yield np.zeros(self.rule.window, np.float32)
            return
        zero = self._pictures.zero if isinstance(self._pictures, FrameClock) else 0.0
        yield from _windows(self._sound.stretches(zero), first, self.rule.window)
        self.notes += self._sound.notes
        if self._sound.lost:
            self.lost += self._sound.lost
            self.notes.append(f"packets of the sound that cannot be decoded: {self._sound.lost} ({self._sound.reason})")
        rate, end = self.rule.rate, self._sound.end
        if self._sound.gaps:
            self.notes.append(f"{self._sound.gaps / rate:.2f} s are missing within the sound: silence there")
        if self._sound.is_through and not end:
            self._without_sound()  # a track without a sample
        elif self._sound.is_through and length - end > self.rule.window:
            self.notes.append(f"the sound ends {(length - end) / rate:.1f} s before the picture: silence from there")

    def _plan(self) -> tuple[NDArray[np.int64], int]:
        """The first sample of each window, (N,), and the length of the video in samples."""
        fps = self.fps or _USUAL_FPS
        grid = self.spec.grid(self.num_frames, fps=self.fps)
        begin = np.arange(len(grid)) * grid.stride
        frames = np.stack([begin, begin + grid.extent]) / grid.rate  # the video's own; not whole where it is resampled
        seconds = frames / fps
        length_s = self.num_frames / fps
        if grid.rate != 1:
            check_constant(self._pictures)  # as for pictures
        elif isinstance(self._pictures, FrameClock) and (stamps := self._pictures.strayed(fps)) is not None:
            self.notes.append("sound is placed by the times of the frames")
            index, times = stamps
            seconds = np.interp(frames, index, times) + np.maximum(frames - index[-1], 0) / fps
            length_s = times[-1] + (self.num_frames - index[-1]) / fps
        rate = self.rule.rate
        return self.rule.first_samples(seconds[0] * rate, seconds[1] * rate), round(length_s * rate)

    def _without_sound(self) -> None:
        if self.rule.missing == "error":
            raise DecodeError(
                self.path,
                "it has no sound",
                "take it out of the manifest, or give it silence: --option missing=silence",
            )
        self.notes.append("it has no sound: silence")


def _windows(stretches: Iterator[Samples], first: NDArray[np.int64], size: int) -> Iterator[Samples]:
    """Sound from sample 0 on -> windows of `size` samples from each of `first`, in order; silence outside the sound."""
    windows = Windows(size)
    for start in first.tolist():
        while windows.end < start + size and (stretch := next(stretches, None)) is not None:
            windows.add(stretch, start)
        yield windows.cut(start)


class Windows:
    """Sound from sample 0 on, in memory as far as windows of it are still to be cut."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._begin = 0
        self._held = np.zeros(0, np.float32)

    @property
    def end(self) -> int:
        """Samples that there are so far, those let go included."""
        return self._begin + len(self._held)

    def add(self, stretch: Samples, first: int) -> None:
        """Puts a stretch behind what is there, and lets go of everything before sample `first`."""
        gone = min(max(first - self._begin, 0), len(self._held))
        self._held = np.concatenate([self._held[gone:], stretch])
        self._begin += gone

    def cut(self, start: int) -> Samples:
        """The samples from `start` on, silence where there are none."""
        window = np.zeros(self._size, np.float32)
        low, high = max(start, self._begin), min(start + self._size, self.end)
        if low < high:
            window[low - start : high - start] = self._held[low - self._begin : high - self._begin]
        return window
