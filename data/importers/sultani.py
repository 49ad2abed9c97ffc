"""The first features of the field: C3D fc6 in 32 segments (Sultani et al., CVPR 2018)."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.importers.arrays import ArrayError, ArrayInMemory, Source
from data.importers.base import Format, importers
from data.types import FeatureSpec

SEGMENTS, DIM = 32, 4096


@importers.register("sultani")
def describe() -> Format:
    """Sultani's C3D: {id}_C.txt or {id}.txt, 32 lines of 4,096 numbers of norm 1, for 32 equal parts of a video."""
    spec = FeatureSpec(
        "c3d_sports1m",
        DIM,
        weights="published:sultani",
        tail="equal",
        resize="171x128:bilinear",
        color="bgr",
        crops=("center",),
        decoder="unknown",
        options={"segments": SEGMENTS, "pool": "mean", "norm": "l2", "mean": "sports1m cube"},
    )
    return Format(spec, (("{id}_C.txt", "{id}.txt"),), dims=(DIM,), open=open_text, segments=SEGMENTS, check=norms)


def open_text(path: Path, key: str = "") -> Source:
    """32 lines of 4,096 numbers. Raises ArrayError naming the line that is not."""
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    if len(lines) != SEGMENTS:
        raise ArrayError(f"has {len(lines)} lines of numbers, wanted {SEGMENTS}; download it again")
    x = np.empty((SEGMENTS, DIM), np.float32)
    for number, line in enumerate(lines, 1):
        tokens = line.split()
        if len(tokens) != DIM:
            raise ArrayError(f"line {number} has {len(tokens)} numbers, wanted {DIM}; download it again")
        try:
            with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused by its place
                x[number - 1] = tokens
        except ValueError as error:
            raise ArrayError(f"line {number} holds something else than numbers ({error}); download it again") from error
    return ArrayInMemory(path, x)


def norms(x: NDArray[Any]) -> str:
    """A note when rows are not of norm 1, as the published ones are."""
    found = np.linalg.norm(x.astype(np.float32), axis=-1)
    if np.abs(found - 1).max() < 0.01:  # six decimals and float16 leave 1e-3
        return ""
    return "rows are not L2-normalised as the published ones are; they are kept as they are"
