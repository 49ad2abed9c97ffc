"""VadCLIP's CLIP ViT-B/16 features (Wu et al., AAAI 2024, https://github.com/nwpu-zxr/VadCLIP)."""

from data.importers.base import CENTER_TEN, Format, importers, per_crop
from data.types import FeatureSpec


@importers.register("vadclip")
def describe(*, crops: str = "") -> Format:
    """VadCLIP: {id}__0.npy to {id}__9.npy (T, 512) of CLIP ViT-B/16; option crops=5 (UCF's test list) or 0 (XD's).

    `crops` takes numbers joined by commas; all ten without it. How the frames were chosen is not documented, and nobody
    has reproduced the numbers (cosine 0.9 at best), so these are imported features and no preset.
    """
    texts = crops.split(",") if crops else [str(k) for k in range(10)]
    if wrong := [t for t in texts if t.strip() not in {str(k) for k in range(10)}]:
        raise ValueError(f"option crops of format vadclip takes numbers from 0 to 9 joined by commas, got '{wrong[0]}'")
    numbers = [int(t) for t in texts]
    spec = FeatureSpec(
        "imported:vadclip",
        512,
        weights="published:vadclip",
        tail="given",
        resize="unknown",
        crops=tuple(CENTER_TEN[k] for k in numbers),  # Roc-Ng's order, inferred: 5 is the mirrored center
        decoder="unknown",
    )
    return Format(spec, per_crop("{id}__{k}.npy", numbers), dims=(512,))
