"""What several tests need: videos with the frame number in their pixels, specs, and the folder of reference data."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.datasets.toy_video import write_video
from data.grid import ClipGrid
from data.types import FeatureSpec, VideoFeatures

ROOT = Path(__file__).resolve().parent.parent
_BITS, _CELL = 12, 4  # a row of twelve 4x4 blocks, black or white


def shared(*parts: str) -> Path:
    """A file or folder of the reference data, or a skip with its name."""
    base = Path(os.environ.get("WSVAD_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {'/'.join(parts)} below {base} (set WSVAD_SHARED)")
    return path


def numbered_frames(count: int, height: int = 48, width: int = 64, *, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Frames whose number stands in their first rows of pixels, over a fixed random picture."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for number in range(count):
        frame = np.roll(picture, 3 * number, axis=1)
        for bit in range(_BITS):
            frame[:_CELL, bit * _CELL : (bit + 1) * _CELL] = 255 * (number >> bit & 1)
        yield frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number in a frame, by the brightness of its blocks."""
    row = frame[:_CELL, : _BITS * _CELL].reshape(_CELL, _BITS, _CELL, -1).mean(axis=(0, 2, 3))
    return sum(1 << bit for bit, brightness in enumerate(row) if brightness > 127)


def write_numbered(path: Path, count: int, height: int = 48, width: int = 64, **options: object) -> Path:
    """A lossless RGB video of `numbered_frames`."""
    seed = int(options.pop("seed", 0))  # type: ignore[call-overload]
    lossless = {"codec": "libx264rgb", "pix_fmt": "rgb24", "crf": 0, **options}
    write_video(path, numbered_frames(count, height, width, seed=seed), **lossless)  # type: ignore[arg-type]
    return path


def write_small(path: Path, count: int, *, seed: int = 0, **options: object) -> Path:
    """An ordinary lossy H.264 video, 32x32, written in milliseconds."""
    write_video(path, numbered_frames(count, 32, 48, seed=seed), **options)  # type: ignore[arg-type]
    return path


def spec_of(**changes: object) -> FeatureSpec:
    return FeatureSpec(**({"backbone": "test", "dim": 5, "weights": "none"} | changes))  # type: ignore[arg-type]


def features_of(
    video_id: str, spec: FeatureSpec, frames: int = 50, *, seed: int = 0, **changes: object
) -> VideoFeatures:
    """Random features that fit a spec."""
    grid: ClipGrid = spec.grid(frames)
    shape = (len(spec.crops), len(grid), spec.dim)
    x = np.random.default_rng(seed).normal(size=shape).astype(spec.dtype)
    return VideoFeatures(**({"video_id": video_id, "x": x, "grid": grid, "fps": 25.0, "crops": spec.crops} | changes))


def run_cli(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """`python -m mil ...` from the repository's root."""
    command = [sys.executable, "-m", "mil", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, timeout=600, check=False)


def contents(root: Path) -> dict[str, bytes]:
    """The files of all videos in a feature store, by their paths in it."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("videos/*/*.h5"))}
