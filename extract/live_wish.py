"""What is wanted of a running source, and whether one source can meet it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.types import FeatureSpec
from extract.streams import Reading


class Stopped(Exception):  # noqa: N818  (no error: somebody closed the source)
    """Whoever takes the clips wants no more."""


@dataclass(frozen=True)
class Wish:
    """What is wanted of a source.

    Args:
        specs: one per modality.
        fps: frames per second where the source does not say.
        reading: where flow is computed, and with which weights.
        note: is told what is unusual.
        stopped: whether to stop, asked for every packet.
    """

    specs: Sequence[FeatureSpec]
    fps: float | None
    reading: Reading
    note: Callable[[str], None]
    stopped: Callable[[], bool]


def check_specs(specs: Sequence[FeatureSpec]) -> None:
    """Raises ValueError on specs that one running source cannot meet together."""
    names = [spec.modality for spec in specs]
    if not names:
        raise ValueError("specs must hold at least one spec")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two specs have the modality '{twice[0]}'; pass one per modality")
    for spec in specs:
        if spec.modality == "text":
            raise ValueError(f"{spec.backbone}: text does not come from a running source; take a run without it")
        if spec.tail in ("given", "equal"):
            raise ValueError(
                f"{spec.backbone}: its clips were cut by somebody else's rule (tail '{spec.tail}'); take a run whose "
                "features wsvad extracted"
            )
        if (spec.stride, spec.fps) != (specs[0].stride, specs[0].fps):
            raise ValueError(
                f"{spec.backbone} has a clip every {spec.stride} frames (fps {spec.fps}), {specs[0].backbone} every "
                f"{specs[0].stride} (fps {specs[0].fps}): give all modalities one stride"
            )
