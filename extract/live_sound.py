"""The sound of a running source as one window per clip: the samples of `extract.audio`, as soon as they are there.

How far sound lies from its pictures in the source is not known beforehand. A clip waits for its sound until pictures
10 s later are there, and then has silence in its place; from there on clips wait 1 s, until there is sound again. Sound
10 s before its pictures, or 1 s behind sound that was there, is of another clock and left out.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.types import FeatureSpec
from extract.audio import SoundRule, Windows
from extract.decode import DecodeError
from extract.live_clock import LiveClock
from extract.soundtrack import Samples, SoundTrack

_APART_S = 10.0
_ABSENT_S = 1.0  # muxers put sound and picture of one moment within less
_BACK_S = 1.0
_EARLY = 2000  # packets that are kept before the first picture


class LiveSound:
    """The first sound track of a container that somebody else reads: packets go in, windows come out.

    Args:
        container: open; stays the giver's.
        name: of the source, for messages.
        spec: of an audio backbone; its `options` state the rule.
        clock: of the pictures.

    Raises DecodeError on a source without sound, unless the rule has silence then.
    """

    def __init__(
        self, container: "av.container.InputContainer", name: str, spec: FeatureSpec, clock: LiveClock
    ) -> None:
        self.rule = SoundRule.of(spec)
        self.notes: list[str] = []
        """What is unusual; taken away by whoever says it."""
        self._sound = SoundTrack(Path(name), self.rule.rate, damaged="keep", container=container)
        self._clock = clock
        self._windows = Windows(self.rule.window)
        self._early: deque[Any] = deque(maxlen=_EARLY)
        self._needed = 0  # no sample before it is asked for any more
        self._absent = False
        self._stray = False
        if not self._sound.is_there:
            if self.rule.missing == "error":
                remedy = "connect a microphone, or take a run that was trained without sound"
                raise DecodeError(name, "it has no sound, and the run wants some", remedy)
            self._sound.is_through = True
            self.notes.append("it has no sound: silence")

    def feed(self, packet: Any) -> None:
        """Takes a packet of the track."""
        self._early.append(packet)
        while self._early and (zero := self._clock.zero) is not None:
            self._feed(self._early.popleft(), zero)

    def flush(self) -> None:
        """No more packets come."""
        self._add(self._sound.flush())
        if not self._sound.is_there or self._sound.end:
            return
        self.notes.append("its sound track is empty: silence")

    def first_sample(self, begin_s: float, end_s: float) -> int:
        """The first sample of the window of a clip between those moments, seconds since the first frame."""
        rate = self.rule.rate
        return int(self.rule.first_samples(np.array([begin_s * rate]), np.array([end_s * rate]))[0])

    def is_there(self, first: int) -> bool:
        """Whether the window from sample `first` on is whole, or will not become so."""
        self._needed = first
        end = first + self.rule.window
        if self._sound.is_through or self._windows.end >= end:
            return True
        if self._clock.latest_s - end / self.rule.rate <= (_ABSENT_S if self._absent else _APART_S):
            return False
        if not self._absent:
            self.notes.append(f"no sound at {end / self.rule.rate:.1f} s, though pictures {_APART_S:g} s later are "
                              "there: silence until it comes")  # fmt: skip
        self._absent = True
        return True

    def window(self, first: int) -> Samples:
        """(S,) float32 in [-1, 1] from sample `first` on, silence where there is no sound."""
        return self._windows.cut(first)

    def take_notes(self) -> list[str]:
        """What is unusual, said once."""
        said = [*self.notes, *self._sound.notes]
        self.notes.clear()
        self._sound.notes.clear()
        return said

    @property
    def damage(self) -> tuple[int, str]:
        """How many packets so far could not be decoded, and what FFmpeg said last."""
        return self._sound.lost, self._sound.reason

    def _feed(self, packet: Any, zero: float) -> None:
        if packet.pts is not None and packet.time_base is not None:
            at = float(packet.pts * packet.time_base) - zero
            ahead, behind = at - self._clock.latest_s, self._sound.end / self.rule.rate - at
            stray = ahead > _APART_S or (behind > _BACK_S and self._sound.end > 0)
            if stray:
                if not self._stray:
                    text = f"{ahead:.1f} s ahead of the pictures" if ahead > _APART_S else f"set back by {behind:.1f} s"
                    self.notes.append(f"the sound is {text}: silence until their times agree")
                self._stray = True
                return
        self._stray = self._absent = False
        try:
            self._add(self._sound.feed(packet, zero))
        except DecodeError as error:  # its time jumps back within a packet
            self.notes.append(f"{error.reason}: left out")

    def _add(self, stretches: Iterable[Samples]) -> None:
        for stretch in stretches:
            self._windows.add(stretch, self._needed)
