"""A video's stored numbers without reading them: of any crop or clip, only what is touched comes from the disk."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.store_file import opened


def mapped(path: Path) -> NDArray[Any]:
    """(K, N, D) as stored, read-only, of the file of a video in a store. Nothing is checked: `FeatureStore.read` does.

    Files of a store are contiguous, immutable and replaced as a whole, so the map stays right whatever happens to the
    name. Raises StoreError where the file cannot be opened.
    """
    with opened(path) as (file, _):
        stored = file["features"]
        shape, dtype, offset = stored.shape, stored.dtype, stored.id.get_offset()
        if offset is None:  # written by other means, in chunks
            x: NDArray[Any] = stored[()]
            x.flags.writeable = False
            return x
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
