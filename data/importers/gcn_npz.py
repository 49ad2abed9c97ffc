"""TSN and C3D features of the label-noise cleaner (Zhong et al., CVPR 2019, jx-zhong)."""

from pathlib import Path

import numpy as np

from data.importers.arrays import ArrayError, ArrayInMemory, Source, check_dtype, read_npz
from data.importers.base import CAFFE_TEN, Format, importers
from data.registry import suggest
from data.types import FeatureSpec

_STREAMS = ("rgb", "flow", "c3d")


@importers.register("gcn_npz")
def describe(*, stream: str = "rgb", axes: str = "") -> Format:
    """GCN label-noise cleaner: {id}_rgb.npz, _flow.npz or _c3d.npz (option stream) with scores (T, 10, D), begin_idx.

    The stride is the constant step of begin_idx.
    """
    if stream not in _STREAMS:
        raise ValueError(f"format gcn_npz has no stream '{stream}'.{suggest(stream, list(_STREAMS))}")
    c3d = stream == "c3d"
    spec = FeatureSpec(
        "imported:gcn_c3d" if c3d else "tsn_bninception",  # its C3D was fine-tuned on UCF-Crime itself
        4096 if c3d else 1024,
        weights="published:gcn",
        modality="flow" if stream == "flow" else "rgb",
        clip_len={"rgb": 1, "flow": 5, "c3d": 16}[stream],
        stride=16 if c3d else 5,
        tail="given",
        resize="171x128:bilinear" if c3d else "340x256:bilinear",
        color="bgr",
        crops=CAFFE_TEN,
        mean={"rgb": (104.0, 117.0, 128.0), "flow": (128.0,), "c3d": (104.0, 117.0, 123.0)}[stream],
        decoder="unknown",
    )
    return Format(
        spec,
        ((f"{{id}}_{stream}.npz",),),
        axes or "tkd",
        bool(axes),
        () if c3d else (1024,),
        open_scores,
        own_stride=True,
    )


def open_scores(path: Path, key: str = "") -> Source:
    """`scores` and the step of `begin_idx`. Raises ArrayError when the two disagree or the step changes."""
    scores, begins = read_npz(path, ("scores", "begin_idx"))
    check_dtype(scores.dtype)
    begins = begins.reshape(-1)
    if begins.dtype.kind not in "iuf" or len(begins) not in scores.shape[:2]:
        raise ArrayError(f"has {len(begins)} entries in begin_idx for scores of {scores.shape}; download it again")
    steps = np.unique(np.diff(begins.astype(np.int64)))
    if len(steps) > 1 or (len(steps) == 1 and steps[0] < 1) or (len(begins) and int(begins[0]) not in (0, 1)):
        raise ArrayError(
            f"has clips from frame {begins[0]} on, {' or '.join(map(str, steps[:3]))} frames apart; wanted frame 0 or "
            "1 and one constant step: download it again, or extract with a constant step"
        )
    return ArrayInMemory(path, scores, int(steps[0]) if len(steps) else None)
