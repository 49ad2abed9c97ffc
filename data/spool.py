"""Features of one video while they are being made: clip by clip, in memory that does not grow with the video."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.grid import ClipGrid
from data.types import VideoFeatures, is_finite

_IN_MEMORY = 16 << 20  # bytes of a video that stay in memory; what is longer goes to an unnamed file
_BLOCK = 4 << 20  # bytes read back at once


class FeatureSpool:
    """Takes blocks (n, K, D) in order and gives them back, once or more, as they are to be stored.

    Args:
        crops: names, K of them; for messages.
        dim: D.
        dtype: "float16" or "float32", what is kept.
        folder: where a long video's unnamed file goes; it vanishes with the process.
    """

    def __init__(self, crops: tuple[str, ...], dim: int, dtype: str, folder: Path | None = None) -> None:
        self.crops = crops
        self.dim = dim
        self.dtype = np.dtype(dtype)
        self.clips = 0
        self._row = len(crops) * dim * self.dtype.itemsize
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(folder) if folder else None)  # noqa: SIM115  # closed by close

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, N, D) so far."""
        return len(self.crops), self.clips, self.dim

    def append(self, block: NDArray[np.float32]) -> None:
        """Adds clips (n, K, D). Raises ValueError on another shape, or on a value that is not finite as stored."""
        if block.ndim != 3 or block.shape[1:] != (len(self.crops), self.dim):
            raise ValueError(f"features must be (n, {len(self.crops)}, {self.dim}), got {block.shape}")
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused by name
            kept = np.ascontiguousarray(block, dtype=self.dtype)
        if not is_finite(kept):
            n, k, d = np.argwhere(~np.isfinite(kept))[0]
            raise ValueError(
                f"feature {d} of clip {self.clips + n}, crop '{self.crops[k]}', is {kept[n, k, d]}; "
                f"features must be finite ({self._remedy(float(block[n, k, d]))})"
            )
        self._file.seek(0, 2)
        self._file.write(kept.reshape(-1).view(np.uint8).data)
        self.clips += len(kept)

    def _remedy(self, made: float) -> str:
        """What to type about a feature that was made as `made` and cannot be kept."""
        if np.isfinite(made):
            return "a float16 store overflows at 65504: use --dtype float32"
        return "the backbone made it so; a net under --precision float16: use bfloat16 or float32"

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first clip, (n, K, D)) from the first clip on, a few MB at a time."""
        size = max(_BLOCK // self._row, 1)
        for start in range(0, self.clips, size):
            self._file.seek(start * self._row)
            raw = self._file.read(min(size, self.clips - start) * self._row)
            yield start, np.frombuffer(raw, self.dtype).reshape(-1, len(self.crops), self.dim)

    def array(self) -> NDArray[Any]:
        """Everything, (K, N, D)."""
        x = np.empty(self.shape, self.dtype)
        for start, block in self.blocks():
            x[:, start : start + len(block)] = block.transpose(1, 0, 2)
        return x

    def close(self) -> None:
        """Gives memory and file back."""
        with contextlib.suppress(OSError):  # of a full disk, on what was not written yet and nobody wants any more
            self._file.close()


@dataclass(frozen=True)
class SpooledFeatures:
    """As VideoFeatures, with the numbers in a spool; `with` closes it."""

    video_id: str
    spool: FeatureSpool
    grid: ClipGrid
    fps: float | None = None
    source_bytes: int = 0
    length_from: str = "decoded"
    lost: int = 0

    def __post_init__(self) -> None:
        if self.spool.clips != len(self.grid):
            raise ValueError(f"{self.video_id}: {self.spool.clips} clips in its features, {len(self.grid)} in its grid")

    @property
    def crops(self) -> tuple[str, ...]:
        """K names in order."""
        return self.spool.crops

    def load(self) -> VideoFeatures:
        """The same with the numbers in memory."""
        return VideoFeatures(
            self.video_id,
            self.spool.array(),
            self.grid,
            self.fps,
            self.crops,
            self.source_bytes,
            self.length_from,
            self.lost,
        )

    def __enter__(self) -> "SpooledFeatures":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spool.close()
