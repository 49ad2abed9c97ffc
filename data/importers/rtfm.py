"""RTFM's I3D ResNet-50, ten crops (https://github.com/tianyu0207/RTFM), also read by S3R, MGFN and TEVAD."""

from data.importers.base import TORCHVISION_TEN, Format, importers
from data.types import FeatureSpec


@importers.register("rtfm")
def describe(*, axes: str = "", segments: int = 0) -> Format:
    """RTFM: {id}_i3d.npy (T, 10, 2048) of I3D R50, torchvision's ten crops; also MGFN's 2049 with the magnitude.

    `segments=32` for files that hold 32 equal parts of a video, as MGFN's training set does.
    """
    spec = FeatureSpec(
        "i3d_rtfm",
        2048,
        weights="published:rtfm",
        tail="equal" if segments else "given",
        resize="short256:bilinear",
        crops=TORCHVISION_TEN,
        mean=(114.75,) * 3,
        std=(57.375,) * 3,
        decoder="unknown",
        options={"segments": segments} if segments else {},
    )
    files = (("{id}_i3d.npy", "{id}.npy"),)
    return Format(spec, files, axes or "tkd", bool(axes), dims=(2048, 2049), segments=segments)
