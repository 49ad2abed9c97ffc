"""XD-Violence's I3D and VGGish features (Wu et al., ECCV 2020, https://github.com/Roc-Ng/XDVioDet)."""

from data.importers.base import CENTER_FIVE, Format, importers, per_crop
from data.registry import suggest
from data.types import FeatureSpec

_RGB, _FLOW = ("rgb", "rgbtest"), ("flow", "flowtest")


@importers.register("xd")
def describe(*, modality: str = "rgb") -> Format:
    """XD-Violence: {id}__0.npy to __4.npy (T, 1024) of I3D, {id}__vggish.npy (T, 128); option modality=rgb|flow|audio.

    RGB and flow files have the same names and are told apart by their folders, RGB* and Flow*. Flow may have one clip
    less than RGB: bags of several stores cut all of them to the shortest.
    """
    if modality not in ("rgb", "flow", "audio"):
        raise ValueError(f"format xd has no modality '{modality}'.{suggest(modality, ['rgb', 'flow', 'audio'])}")
    if modality == "audio":
        spec = FeatureSpec(
            "vggish",
            128,
            weights="published:xd",
            modality="audio",
            tail="given",
            fps=24.0,
            decoder="unknown",
            options={"window_s": 0.96, "align": "end"},  # a window ends where its clip does
        )
        return Format(spec, (("{id}__vggish.npy",),), dims=(128,))
    rgb = modality == "rgb"
    spec = FeatureSpec(
        "i3d_rocng" if rgb else "imported:xd_i3d_flow",
        1024,
        weights="published:xd",
        modality=modality,
        tail="given",
        fps=24.0,
        resize="unknown",
        crops=CENTER_FIVE,
        mean=(127.5,) * 3 if rgb else (),
        std=(127.5,) * 3 if rgb else (),
        decoder="unknown",
    )
    files = per_crop("{id}__{k}.npy", range(5))
    return Format(spec, files, dims=(1024,), inside=_RGB if rgb else _FLOW, outside=_FLOW if rgb else _RGB)
