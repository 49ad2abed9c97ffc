"""What UR-DMU's own extractor writes (https://github.com/henrryzh1/UR-DMU, feature_extract/)."""

from data.importers.base import OVERSAMPLE_TEN, Format, importers
from data.types import FeatureSpec


@importers.register("urdmu")
def describe(*, axes: str = "") -> Format:
    """UR-DMU's extractor: {id}_i3d.npy (10, T, 1024) of I3D Inception, crops in oversample order."""
    spec = FeatureSpec(
        "i3d_urdmu",
        1024,
        weights="published:urdmu",
        tail="given",
        resize="340x256:bilinear",
        crops=OVERSAMPLE_TEN,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        decoder="unknown",
        options={"jpeg": 95},  # frames went through JPEG on their way
    )
    return Format(spec, (("{id}_i3d.npy", "{id}.npy"),), axes or "ktd", bool(axes), dims=(1024,))
