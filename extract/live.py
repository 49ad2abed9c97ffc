"""An endless source of clips: a file that is being written, a pipe, a camera or a stream, for all specs at once.

The clips are bit for bit those that `extract.streams.clips_from` gives for a file of the same bytes, each as soon as
its pictures and its sound are there. What only the whole file could tell is different:

- Damage is kept in its place (`Reading(damaged="keep")`) and told, never refused. Whether the structure of a container
  is broken, and how many frames its index promises, is not known while it grows.
- A frame whose time stamp lies more than 1 s before that of the frame before it, or more than 10 s (or 30 frames)
  behind it, begins anew behind a gap.
- Frames at a rate that varies: sound is placed by the times of the frames from the first clip on at which one strayed
  by half a frame; for a whole file from the beginning on. A spec that resamples in time does so by the header's rate,
  and says so; a whole file is refused.
- Sound that comes later than pictures 10 s behind it in the source is silence, and what `extract.live_sound` says.

Writers of a named pipe that follow each other before the last one's bytes are taken are one to us. The clips begin anew
where their time stamps do (transport streams, Matroska); a fragmented MP4 behind another is lost, which is told.

Memory does not grow with time but for what FFmpeg itself keeps: of a fragmented MP4 the place of every packet, 200 MB
in a day with sound; of Matroska that of every key frame, some 30 MB; of a transport stream nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Condition, Event, Thread
from types import TracebackType

from data.types import FeatureSpec
from extract.decode import DecodeError
from extract.live_clips import Connection
from extract.live_pieces import Ended, Gap, LiveClip, Piece
from extract.live_sources import input_of
from extract.live_wish import Stopped, Wish, check_specs
from extract.streams import Reading

__all__ = ["Ended", "Gap", "LiveClip", "LiveSource", "Piece"]

_MOST_BACKOFF_S = 30.0
_NOTE_S = 10.0  # between two notes on skipped clips
_NOTES = 100
_LATE_S = 10.0  # so long may a clip of a camera or stream wait,
_MOST_BYTES = 256 << 20  # or so much wait: streams come in segments of some seconds, all at once


class LiveSource:
    """Clips of a running source: `for piece in LiveSource(source, specs): ...`; the last piece is `Ended`.

    Whoever stops in between closes it: `with LiveSource(...) as live: for piece in live: ...`. It can be iterated once.

    Args:
        source: "-" for standard input; a URL; else the path of a file, a named pipe or a video device.
        specs: one per modality, all with one stride: a clip is given out when all modalities have it.
        follow: wait for more at the end of a file, until nothing was written for `patience_s`.
        reconnect: wait for the next writer of a named pipe, and open a device or URL again when it breaks off.
        max_retries: openings in a row that may fail or give no picture; None for no limit.
        backoff_s: the pause before opening again, doubled with every failure up to 30 s.
        timeout_s: how long a device or URL may take for opening, or for its next packet.
        ahead: clips that wait to be taken, at least 1. Beyond them the writer of a file or pipe waits, too; of a device
            or URL the oldest clip is skipped, which is noted, once it has waited for 10 s or 256 MB wait.
        fps: frames per second where the source does not say.
        device, flow_weights: of nets that compute optical flow, as in `Reading`.
        options: FFmpeg's, for a device or URL: {"video_size": "640x480"}.
        on_note: is told what is unusual when it happens, by the thread that iterates.

    Raises:
        ValueError: on specs that do not go together.
        DecodeError: nothing there (at once); while iterating: no video in it, or not what the specs want. A source that
            is opened again raises it only when `max_retries` openings failed, or the first that did not lacks it.
    """

    def __init__(
        self,
        source: str | Path,
        specs: Sequence[FeatureSpec],
        *,
        follow: bool = True,
        patience_s: float = 10.0,
        reconnect: bool = True,
        max_retries: int | None = None,
        backoff_s: float = 1.0,
        timeout_s: float = 10.0,
        ahead: int = 4,
        fps: float | None = None,
        device: str = "cpu",
        flow_weights: str | None = None,
        options: Mapping[str, str] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        check_specs(specs)
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead}")
        self.source = str(source)
        self._stop = Event()
        reading = Reading("keep", device, flow_weights)
        self._wish = Wish(tuple(specs), fps, reading, self._note, self._stop.is_set)
        self._reconnect, self._max_retries, self._backoff_s = reconnect, max_retries, backoff_s
        self._ahead = ahead
        self._on_note = on_note
        self._said: deque[str] = deque(maxlen=_NOTES)
        self._waiting: deque[Piece | str | BaseException | None] = deque()
        self._clips = 0  # of those that wait
        self._changed = Condition()
        self._skipped, self._skipped_frames, self._skip_said = 0, 0, -_NOTE_S
        self._input = input_of(
            source, self._stop, follow=follow, patience_s=patience_s, timeout_s=timeout_s, options=options or {}
        )
        self._thread = Thread(target=self._run, name="live", daemon=True)

    def __enter__(self) -> "LiveSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading and lets go of the source; a URL that is silent does so only after `timeout_s`."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        if self._thread.ident is None:
            self._input.close()
        else:
            self._thread.join(1.0 if self._input.realtime else None)

    def __iter__(self) -> Iterator[Piece]:
        self._thread.start()
        try:
            while (piece := self._get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                if isinstance(piece, str):
                    if self._on_note is not None:
                        self._on_note(piece)
                    continue
                yield piece
        finally:
            self.close()

    # -- between the threads

    def _get(self) -> Piece | str | BaseException | None:
        with self._changed:
            while not self._waiting and not self._stop.is_set():
                self._changed.wait()
            if self._stop.is_set():
                return None
            due = time.monotonic() - self._skip_said >= _NOTE_S or not isinstance(self._waiting[0], LiveClip)
            if self._skipped and due:
                return self._skip_note()
            piece = self._waiting.popleft()
            if isinstance(piece, LiveClip):
                self._clips -= 1
                self._changed.notify_all()
            return Ended(piece.num_frames, tuple(self._said)) if isinstance(piece, Ended) else piece

    def _put(self, piece: Piece | str | BaseException | None) -> None:
        with self._changed:
            if isinstance(piece, LiveClip):
                while self._clips >= self._ahead and not self._stop.is_set():
                    if not self._input.realtime:
                        self._changed.wait()
                    elif not self._skip():
                        break
                self._clips += 1
            self._waiting.append(piece)
            self._changed.notify_all()

    def _skip(self) -> bool:
        """Lets go of the oldest clip that waits, if it has waited too long, or too much waits."""
        at, clip = next((i, piece) for i, piece in enumerate(self._waiting) if isinstance(piece, LiveClip))
        size = sum(data.nbytes for data in clip.data.values())
        if time.monotonic() - clip.ready < _LATE_S and self._clips * size < _MOST_BYTES:
            return False
        del self._waiting[at]
        self._clips -= 1
        self._skipped += 1
        self._skipped_frames += min(self._wish.specs[0].stride, clip.stop - clip.start)
        return True

    def _skip_note(self) -> str:
        text = f"slower than the source: {self._skipped_frames} frames ({self._skipped} clips) skipped"
        self._skipped = self._skipped_frames = 0
        self._skip_said = time.monotonic()
        self._said.append(text)
        return text

    def _note(self, text: str) -> None:
        with self._changed:
            if text not in self._said:  # a source that is opened again is unusual in the same way
                self._said.append(text)
                self._put(text)

    # -- in the thread that reads

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            for piece in self._pieces():
                self._put(piece)
        except Stopped:
            pass
        except BaseException as error:  # raised where the pieces are taken
            failure = error
        finally:
            self._input.close()
        self._put(failure)

    def _pieces(self) -> Iterator[Piece]:
        source = self._input
        failures = 0
        fits = False  # whether it ever held what is wanted
        while True:
            source.wait()
            opened, frames, num_frames, reason = False, 0, 0, ""
            try:
                with closing(source.open()) as container:
                    opened = True
                    connection = Connection(container, self.source, self._wish)
                    fits = True
                    yield from connection.pieces()
                    frames, num_frames = connection.frames, connection.num_frames
                    reason = source.said(connection.error) if connection.error else source.reason
            except DecodeError as error:
                if not self._lasts or (opened and not fits):
                    raise
                reason = str(error)
            if self._stop.is_set():
                return
            if not frames and not self._lasts:
                raise DecodeError(
                    self.source, f"no frame can be decoded ({reason})", "see whether it plays: ffplay SOURCE"
                )
            if not self._lasts:
                yield Ended(num_frames)
                return
            if frames:
                failures = 0
                yield Gap(reason, time.time())
            else:
                failures += 1
                if self._max_retries is not None and failures > self._max_retries:
                    raise DecodeError(
                        self.source, f"given up after {failures} attempts ({reason})", "see whether it plays: ffplay"
                    )
            if failures or source.realtime:
                self._pause(failures, reason)

    @property
    def _lasts(self) -> bool:
        return self._reconnect and self._input.lasting

    def _pause(self, failures: int, reason: str) -> None:
        pause = min(self._backoff_s * 2 ** max(failures - 1, 0), _MOST_BACKOFF_S)
        if failures:
            self._note(f"{reason}; next attempt in {pause:g} s")
        self._stop.wait(pause)
