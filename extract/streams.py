"""One video as a stream of clips: read, resampled in time, turned to flow or cut from its sound, as a spec says."""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from data.types import FeatureSpec, Video
from extract.audio import AudioClips
from extract.clips import clips_of
from extract.decode import DecodeError, Reader, is_torch_side, slow
from extract.flow import FlowAlgorithm, FlowReader, flow_algorithm
from extract.pictures import open_video
from extract.resample import ResampledReader, check_constant
from extract.wrapped import WrappedReader

ASSUMED_FPS = 25.0
"""Where neither the file nor the manifest says a frame rate."""


@dataclass(frozen=True)
class Reading:
    """How files are read where that is no matter of the spec: it changes no number of an undamaged video.

    Args:
        damaged: "refuse" a video of which frames are lost, or "keep" what can be decoded.
        device: where optical flow by a net is computed, and frames are decoded by torchcodec.
        flow_weights: of such a net, as `--weights` would name them; None for the published ones.
    """

    damaged: str = "refuse"
    device: str = "cpu"
    flow_weights: str | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a video once it has been read to its end."""

    num_frames: int
    fps: float | None
    num_bytes: int
    notes: tuple[str, ...] = ()
    lost: int = 0


Clips = Generator[tuple[NDArray[Any], float], None, Facts]


def clips_from(video: Video, spec: FeatureSpec, reading: Reading | None = None) -> Clips:
    """Yields the clips of a video, those of its grid and in order, each with the video's frame rate; returns the facts.

    Raises DecodeError on a file that cannot be read whole.
    """
    reading = reading or Reading()
    return _sounds(video, spec, reading) if spec.modality == "audio" else _pictures(video, spec, reading)


def _pictures(video: Video, spec: FeatureSpec, reading: Reading) -> Clips:
    with open_video(
        video.path,
        resize=spec.resize,
        color=spec.color,
        damaged=reading.damaged,
        decoder=spec.decoder,
        device=reading.device,
    ) as reader:
        fps = reader.fps or video.fps  # a folder of pictures has none of its own
        rate = rate_of(spec, fps, video.path)
        frames = shown(reader, spec, rate, reading)
        for clip in clips_of(frames, spec):
            yield clip, fps or ASSUMED_FPS
        if (
            spec.fps is not None and rate == 1.0
        ):  # a time rule, though this video needs no resampling: its frames must come evenly
            check_constant(reader)
        notes = list(reader.notes)
    if not reader.fps:
        notes += slow(fps)
    return Facts(reader.num_frames, fps, reader.num_bytes, (*notes, *_no_rate(fps)), reader.lost)


def rate_of(spec: FeatureSpec, fps: float | None, path: Path | str) -> float:
    """`spec.rate(fps)`. Raises DecodeError where the spec resamples in time and the video's rate is not known."""
    if spec.fps is not None and not fps:
        raise DecodeError(
            path,
            f"its frame rate is not known, and the recipe takes {spec.fps:g} frames/s",
            "write it into the manifest (fps), or take the frames as they are: --option fps=none",
        )
    return spec.rate(fps)


def shown(reader: Reader, spec: FeatureSpec, rate: float, reading: Reading) -> Any:
    """The frames of a video that clips are made of: resampled by `rate`, turned to flow, as the spec says."""
    frames: Reader | WrappedReader = reader
    if rate != 1.0:
        frames = ResampledReader(reader, rate)
    if "flow" in spec.options:
        algorithm = _algorithm(str(spec.options["flow"]), reading)
        quantise = str(spec.options.get("quantise", "none"))
        resize = spec.resize if is_torch_side(spec.resize) else "none"
        frames = FlowReader(frames, algorithm, quantise=quantise, resize=resize)
    return frames


def _sounds(video: Video, spec: FeatureSpec, reading: Reading) -> Clips:
    with AudioClips(video.path, spec, fps=video.fps, damaged=reading.damaged) as clips:
        for clip in clips:
            yield clip, clips.fps or ASSUMED_FPS
        notes = list(clips.notes)
    return Facts(clips.num_frames, clips.fps, clips.num_bytes, (*notes, *_no_rate(clips.fps)), clips.lost)


def _no_rate(fps: float | None) -> list[str]:
    return [] if fps else [f"no frame rate in the file or the manifest: {ASSUMED_FPS:g} taken"]


@lru_cache(maxsize=2)  # RAFT's weights are read once for all videos
def _algorithm(name: str, reading: Reading) -> FlowAlgorithm[Any]:
    options = {"weights": reading.flow_weights, "device": reading.device} if name.startswith("raft") else {}
    return flow_algorithm(name, **options)
