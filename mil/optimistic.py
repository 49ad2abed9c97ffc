"""The rule `test`: a look at the test videos, labels of frames and all, as is the field's habit. OPTIMISTIC.

Training is given the function alone; the videos and their labels stay here.
"""

from collections.abc import Sequence

from data.store import FeatureStore
from data.types import Video
from mil.config import Config
from mil.curves import Tally, roc_area, step_precision
from mil.errors import TrainError
from mil.model import Model
from mil.scored import scored
from mil.selection import Look


def optimistic_look(
    config: Config, videos: Sequence[Video], stores: Sequence[FeatureStore], device: str = "cpu"
) -> Look:
    """`config.select.metric` over the frames of test videos, as `wsvad eval` gives it by the recipe's protocol.

    Args:
        config: the experiment.
        videos: of the test split, with features in every store.
        stores: one per modality.
        device: where torch runs.

    Raises:
        TrainError: one class only, or an anomalous video without events: there is nothing to select by.
    """
    counts = [sum(v.label == label for v in videos) for label in (0, 1)]
    if min(counts) == 0:
        raise TrainError(
            f"selection by test compares two classes, but the test split has {counts[0]} normal and {counts[1]} "
            "anomalous videos; take test out of select.rule and select.also"
        )
    if bare := [v.id for v in videos if v.label and not v.events]:
        raise TrainError(
            f"selection by test goes by frames, but the test video '{bare[0]}' has no annotated events; add them to "
            "the manifest, or take test out of select.rule and select.also"
        )
    area = roc_area if config.select.metric == "auc" else step_precision

    def look(model: Model) -> float:
        frames = scored(model, config.evaluate, videos, stores, device=device).videos
        return float(area(*Tally.of(frames).counts()))

    return look
