"""A video's stored numbers without reading them: of any crop or clip, only what is touched comes from the disk."""

import logging
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.store_file import opened

log = logging.getLogger(__name__)

_SPARE = 256  # open files that are left to everything else


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


def maps_at_once(videos: int, per_video: int) -> int:
    """How many of these videos' files may stay mapped, at least 1, when each map holds an open file, `per_video` each.

    Raises this process's limit on open files as far as that needs and the system lets it. Warns where that is not
    enough: what is not kept is opened and checked again.
    """
    in_use, needed = len(os.listdir("/dev/fd")), videos * per_video
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = in_use + needed + _SPARE
    if limit != resource.RLIM_INFINITY and limit < enough:
        with suppress(OSError, ValueError):  # macOS calls unlimited what it does not give
            raised = enough if most == resource.RLIM_INFINITY else min(enough, most)
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit >= enough:
        return max(videos, 1)
    free = limit - in_use
    kept = max(min((free - min(_SPARE, free // 2)) // per_video, videos), 1)
    if kept < videos:
        log.warning(
            "%d of %d videos' files stay open, the others are read whole each time: %d open files are allowed; "
            "`ulimit -n %d` before wsvad is faster", kept, videos, limit, enough,
        )  # fmt: skip
    return kept
