"""TEVAD's caption embeddings (Chen et al., CVPRW 2023, https://github.com/coranholmes/TEVAD)."""

from data.importers.base import Format, importers
from data.types import FeatureSpec


@importers.register("tevad")
def describe() -> Format:
    """TEVAD's captions: {id}emb.npy or {id}_emb.npy (T, 768), one sentence embedding per clip; modality text."""
    spec = FeatureSpec(
        "imported:tevad_captions", 768, weights="published:tevad", modality="text", tail="given", decoder="unknown"
    )
    return Format(spec, (("{id}emb.npy", "{id}_emb.npy"),), dims=(768,))
