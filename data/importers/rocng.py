"""Roc-Ng's I3D Inception features of UCF-Crime (https://github.com/Roc-Ng/DeepMIL): UR-DMU, PEL4VAD, BN-WVAD."""

from data.importers.base import CENTER_TEN, Format, importers, per_crop
from data.types import FeatureSpec


@importers.register("rocng")
def describe() -> Format:
    """Roc-Ng's UCF-Crime: {id}__0.npy to {id}__9.npy (T, 1024) of I3D; crop 0 also as {id}.npy, as PEL4VAD lists it."""
    spec = FeatureSpec(
        "i3d_rocng",
        1024,
        weights="published:rocng",
        tail="given",
        resize="unknown",  # its author documents neither the resizing nor which corner is which
        crops=CENTER_TEN,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        decoder="unknown",
    )
    (first, *others) = per_crop("{id}__{k}.npy", range(10))
    return Format(spec, ((*first, "{id}.npy"), *others), dims=(1024,))
