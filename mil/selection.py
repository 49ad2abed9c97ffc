"""Which step's weights are kept: the rules, and the videos held out for them."""

from collections.abc import Sequence

import numpy as np

from data.types import Video
from mil.config import Config


class SelectionError(ValueError):
    """A rule cannot be followed; the message says what it needs."""


def hold_out(videos: Sequence[Video], config: Config) -> list[Video]:
    """A share of each class, at least one video, drawn by the seed; every class must keep one."""
    rng = np.random.default_rng([config.seed, 2**31])
    held: list[Video] = []
    for label in (0, 1):
        group = [v for v in videos if v.label == label]
        if len(group) < 2:
            raise SelectionError(
                f"select.rule=val needs two videos of each class, found {len(group)} of label {label}; use rule=last"
            )
        count = min(max(round(config.select.fraction * len(group)), 1), len(group) - 1)
        held += [group[i] for i in rng.permutation(len(group))[:count]]
    return held
