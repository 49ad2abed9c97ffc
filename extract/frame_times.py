"""When each frame of a video is shown: the time axis of its scores and events."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from extract.decode import DecodeError, open_container
from extract.frame_clock import FrameClock
from extract.streams import ASSUMED_FPS
from extract.times import Times

_REORDERED = 17  # H.264 and HEVC put a frame at most 16 places from where it stands in the file
_UNSTAMPED = ("avi", "mxf")  # FFmpeg makes up their time stamps, wrongly where frames are reordered


def frame_times(path: Path | str, num_frames: int, fps: float | None) -> NDArray[np.float64]:
    """(F + 1,) float64 seconds since the first frame: where each frame begins, and where the last one ends.

    They begin with 0 and rise strictly. At a constant rate frame i begins at i / fps exactly. The rate is constant when
    every time stamp lies within half a frame of that, and counts as constant where there are no time stamps (AVI, raw
    streams, folders of pictures) or they jump back by more than a second. Else the times are the file's own: frames
    without a later one than those before lie evenly between their neighbours, and the last frame lasts as long as the
    file says, or as frames do on average.

    The packets' time stamps are read, without decoding, where there is one for every frame; else all is decoded.

    Args:
        path: a video file, or a folder of pictures.
        num_frames: F, at least 1, as the readers of `extract.decode` count.
        fps: frames per second; None where nobody knows: 25 is taken.

    Raises:
        DecodeError: the file cannot be read.
        ValueError: it was decoded and has another number of frames, or the numbers make no sense.
    """
    if num_frames < 1:
        raise ValueError(f"{path}: a video has at least 1 frame, got {num_frames}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"{path}: fps must be above 0, or None where nobody knows, got {fps}")
    rate = fps or ASSUMED_FPS
    if not Path(path).is_dir() and (found := _strayed(Path(path), num_frames, rate)) is not None:
        return _filled(*found, num_frames, rate)
    return np.arange(num_frames + 1, dtype=np.float64) / rate


def _strayed(
    path: Path, num_frames: int, rate: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], float | None] | None:
    """Numbers of frames, their seconds, and how long the last one lasts; None at a constant rate."""
    with open_container(path) as container:
        if container.format.name in _UNSTAMPED:
            return None
        packets = _from_packets(container, num_frames)
    if packets is not None:
        seconds, last_s = packets
        times = Times()
        for i, second in enumerate(seconds.tolist()):
            times.add(i, second)
        return None if times.fits(rate) else (np.arange(num_frames), seconds, last_s)
    clock = FrameClock(path, damaged="keep")
    with clock:
        for _ in clock:
            pass
        if clock.num_frames != num_frames:
            raise ValueError(f"{path}: it has {clock.num_frames} frames, not {num_frames}; did the file change?")
        try:
            strayed = clock.strayed(rate)
        except DecodeError:  # they jump back: two recordings in one file, whose frames are only counted
            return None
    return None if strayed is None else (*strayed, None)


def _from_packets(
    container: "av.container.InputContainer", num_frames: int
) -> tuple[NDArray[np.float64], float | None] | None:
    """Seconds of the frames in order, and how long the last lasts; None where it takes a decoder to know."""
    stream = container.streams.video[0]
    shown: list[int] = []
    sent = last_units = 0
    latest: int | None = None
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt or (shown and packet.dts is not None and packet.dts < sent):
                return None
            sent = packet.dts if packet.dts is not None else sent
            if latest is None or packet.pts > latest:
                latest, last_units = packet.pts, packet.duration or 0
            shown.append(packet.pts)
    except (av.error.FFmpegError, OSError):
        return None
    stamps = np.array(shown, np.int64)
    order = np.argsort(stamps, kind="stable")
    moved = np.abs(order - np.arange(len(order))).max(initial=0)
    if len(stamps) != num_frames or moved >= _REORDERED or (np.diff(stamps[order]) == 0).any():
        return None
    unit = float(stream.time_base or 0)
    return (stamps[order] - stamps.min()) * unit, last_units * unit or None


def _filled(
    index: NDArray[np.int64], seconds: NDArray[np.float64], last_s: float | None, num_frames: int, rate: float
) -> NDArray[np.float64]:
    """Times of all frames: those not told, or not later than one before, lie between the others; and the end."""
    rising = np.diff(np.maximum.accumulate(seconds), prepend=-1.0) > 0
    index, seconds = index[rising], seconds[rising]
    if index[0]:
        index, seconds = np.append(0, index), np.append(0.0, seconds)
    mean_s = float(seconds[-1] / index[-1]) if len(index) > 1 else 1 / rate
    behind = num_frames - int(index[-1])  # the last one with a time, and those after it
    end = seconds[-1] + (behind - 1) * mean_s + (last_s or mean_s)
    every = np.interp(np.arange(num_frames + 1), np.append(index, num_frames), np.append(seconds, end))
    return np.asarray(every, np.float64)
