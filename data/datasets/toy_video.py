"""Real encoded videos from arrays: H.264 picture and AAC sound through PyAV, the same bytes every time.

Used by the `toy` dataset and by every test that needs a file with known frames in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.container import OutputContainer

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi", ".webm": "webm"}
AUDIO_CHUNK = 1024  # samples: one AAC frame


def write_video(
    path: Path | str,
    frames: Iterable[NDArray[np.uint8]],
    fps: int | float | Fraction = 25,
    *,
    audio: NDArray[np.float32] | None = None,
    sample_rate: int = 16000,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    crf: int | None = 23,
    preset: str | None = "veryfast",
    gop: int | None = None,
    audio_codec: str = "aac",
    bitexact: bool = True,
    options: Mapping[str, str] | None = None,
) -> int:
    """Encodes RGB frames (H, W, 3) uint8 at a constant rate, and mono sound (S,) in [-1, 1]; returns their number.

    The file appears under its name only when it is complete. The container follows from the suffix.
    crf: 0 is lossless in `pix_fmt`; for pictures that decode to exactly the given RGB, use codec="libx264rgb",
    pix_fmt="rgb24", crf=0. crf and preset None: not passed on, for codecs that have no such option.
    gop: frames between key frames (the encoder's default when None). bitexact: no dates and one thread, so that the
    same frames give the same bytes on the same machine. Odd sizes need a pix_fmt without subsampled chroma: yuv444p.
    """
    import av

    path = Path(path)
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(f"cannot tell a container from {path.name!r}; known suffixes: {', '.join(CONTAINERS)}")
    rate = Fraction(fps).limit_denominator(1001)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(
            str(aside),
            "w",
            format=CONTAINERS[path.suffix.lower()],
            container_options={"fflags": "+bitexact"} if bitexact else {},
        ) as container:
            count = _encode(
                container, frames, rate, audio, sample_rate, codec, pix_fmt, audio_codec, bitexact,
                _codec_options(crf, preset, gop, options),
            )  # fmt: skip
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def _codec_options(
    crf: int | None, preset: str | None, gop: int | None, more: Mapping[str, str] | None
) -> dict[str, str]:
    named = {"crf": crf, "preset": preset, "g": gop}
    return {name: str(value) for name, value in named.items() if value is not None} | dict(more or {})


def _encode(
    container: OutputContainer,
    frames: Iterable[NDArray[np.uint8]],
    rate: Fraction,
    audio: NDArray[np.float32] | None,
    sample_rate: int,
    codec: str,
    pix_fmt: str,
    audio_codec: str,
    bitexact: bool,
    options: dict[str, str],
) -> int:
    import av

    # Both streams must exist before the first packet is written: it writes the header.
    video: Any = container.add_stream(codec, rate=rate, options=options)
    video.pix_fmt = pix_fmt
    sound: Any = None
    if audio is not None:
        sound = container.add_stream(audio_codec, rate=sample_rate, layout="mono")
    if bitexact:
        video.codec_context.thread_count = 1  # x264 may decide otherwise with every other number of threads
        if codec.startswith("libx264"):
            # x264's macroblock tree reads memory nobody wrote in its AVX-512 code: other bytes from run to run
            given = options.get("x264-params")
            video.options = {**options, "x264-params": f"{given}:mbtree=0" if given else "mbtree=0"}
        for stream in filter(None, (video, sound)):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact

    count = sent = 0
    for frame in frames:
        if count == 0:
            _start(video, frame)
        picture: Any = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = count, 1 / rate
        container.mux(video.encode(picture))
        count += 1
        if audio is not None:  # keeps picture and sound side by side in the file
            until = min(len(audio), int(count / rate * sample_rate))
            sent = _send_sound(container, sound, audio, sent, until, sample_rate)
    if count == 0:
        raise ValueError("a video needs at least one frame, got none")
    container.mux(video.encode(None))
    if audio is not None:
        _send_sound(container, sound, audio, sent, len(audio), sample_rate, last=True)
        container.mux(sound.encode(None))
    return count


def _start(video: Any, frame: NDArray[np.uint8]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frames must be (H, W, 3) uint8 RGB, got {frame.shape} {frame.dtype}")
    height, width = frame.shape[:2]
    if "420" in video.pix_fmt and (height % 2 or width % 2):
        raise ValueError(
            f"{video.pix_fmt} needs an even width and height, got {width}x{height}; pass pix_fmt='yuv444p'"
        )
    video.width, video.height = width, height


def _send_sound(
    container: OutputContainer,
    stream: Any,
    audio: NDArray[np.float32],
    sent: int,
    until: int,
    sample_rate: int,
    *,
    last: bool = False,
) -> int:
    """Encodes audio[sent:until] in whole chunks (the rest too when `last`); returns how far it came."""
    import av

    while until - sent >= AUDIO_CHUNK or (last and until > sent):
        chunk = np.ascontiguousarray(audio[sent : min(sent + AUDIO_CHUNK, until)], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(chunk[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, sent, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
        sent += len(chunk)
    return sent
