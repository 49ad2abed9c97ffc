"""S3R (Wu, Hsieh, Chen, Fuh, Liu, "Self-Supervised Sparse Representation for Video Anomaly Detection", ECCV 2022,
https://github.com/louisYen/S3R)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, Progress, Scan, heads
from mil.heads.rtfm import exceptions
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.dictionary import sparse_codes
from mil.layers.kept import Kept
from mil.layers.magnitude import MagnitudeLoss
from mil.layers.mtn import MTN, published_names, scorer, xavier
from mil.published import Published

log = logging.getLogger(__name__)

_SET = "head.dictionary=FILE.npy"
_BEFORE = 32  # rows of the dictionary that stands there until one is learnt


@heads.register("s3r")
class S3RHead(Head):
    """RTFM against its own reconstruction from normal videos: what a dictionary of them explains is filtered out.

    Before the first step a dictionary of normal videos is learnt from the training features and kept from then on. Each
    segment attends over its rows, which gives a normal-looking double of the video (en-Normal); a gate per channel,
    from the difference of the two means over time, lets through what the double lacks (de-Normal).

    Kept as the authors' code has it: attention is not scaled by the key's size, its shrinkage threshold is 0, the
    double of an anomalous video too has the target "normal", and two projections of their model are never used. What
    RTFM's code has otherwise than its paper is kept too, see `rtfm`.

    The authors keep the dictionary in a .npy file beside their weights; `dictionary` takes it. Imported weights without
    it score nothing that means anything, and a warning is logged.

    Args:
        dim: feature size D (2048).
        atoms: rows of the dictionary, as a share of the normal training videos (UCF-Crime 0.5, ShanghaiTech 0.9).
        dictionary: a .npy file (rows, D); none: it is learnt.
        width: channels of each of the four branches; none: D // 4.
        hidden: widths of both scorers' two hidden layers.
        key: size of queries and keys of the attention over the dictionary.
        gate: width of the hidden layer of the gate.
        dropout: of features, in the scorers, and of segments in the selection.
        topk: segments that a video stands for.
        margin: magnitude that anomalous videos are drawn to.
        alpha: weight of the magnitudes.
        smooth, sparse: weights of the two regularisers.
        as_published: pairs of videos and borders between videos as in `rtfm`: both depend on the batch's order.
    """

    paper = "Wu et al., ECCV 2022"
    reads = ("dictionary",)

    def __init__(
        self,
        dim: int,
        *,
        atoms: float = 0.5,
        dictionary: str | None = None,
        width: int | None = None,
        hidden: Sequence[int] = (512, 128),
        key: int = 512,
        gate: int = 128,
        dropout: float = 0.7,
        topk: int = 3,
        margin: float = 100.0,
        alpha: float = 1e-4,
        smooth: float = 8e-4,
        sparse: float = 8e-3,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1 or not 0 < atoms <= 1:
            raise ValueError(f"s3r needs two hidden widths and atoms in (0, 1], got hidden={list(hidden)}, {atoms=}")
        self.atoms, self.warned = atoms, False
        self.objective = MagnitudeLoss(topk, margin, alpha, smooth, sparse, dropout, as_published)
        width = max(dim // 4, 1) if width is None else width
        self.video, self.macro = (MTN(dim, width, groups=8) for _ in range(2))
        self.query, self.key, self.value = nn.Linear(dim, key), nn.Linear(dim, key), nn.Linear(dim, dim)
        self.gate = nn.Sequential(nn.Linear(dim, gate), nn.ReLU(), nn.Linear(gate, dim))
        self.drop = nn.Dropout(dropout)
        self.video_score, self.macro_score = (scorer(dim, hidden, dropout) for _ in range(2))
        self.apply(xavier)
        if dictionary is not None:
            rows = _read(dictionary, dim)
        else:
            # of three dimensions while unknown: of no dictionary's shape, so that an average of weights never mixes two
            rows = torch.randn((1, _BEFORE, dim), generator=torch.Generator().manual_seed(0), device="cpu")
        self.dictionary = Kept(rows)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]; aux: features (B, K, T, D) and the doubles' scores (B,)."""
        crops, mask = bag.crops, spread(bag.mask, bag.crops)
        if not (self.training or self.known or self.warned):
            self.warned = True
            log.warning("s3r scores without a dictionary: train it, or import weights with --set %s", _SET)
        x = fold(bag.x)
        a, b = self.drop(self.video(x, mask)), self.drop(self.macro(self.normal(x, mask), mask))
        gate = self.gate(_mean(a, mask) - _mean(b, mask)).sigmoid()[:, None]
        features, b = a * gate, b * (1 - gate)
        scores = self.video_score(features).squeeze(-1).sigmoid()
        macro = self.macro_score(_mean(b, mask)).squeeze(-1).sigmoid()  # (B K,)
        aux = {"features": unfold(features, crops), "macro": unfold(macro, crops).mean(1)}
        return HeadOutput(crop_mean(unfold(scores, crops), bag.mask), aux)

    def normal(self, x: Tensor, mask: Tensor) -> Tensor:
        """The double of each video, made of the dictionary's rows; (N, T, D), (N, T) bool -> (N, T, D)."""
        rows = self.dictionary.value.flatten(0, -2)
        weights = (self.query(x) @ self.key(rows).T).softmax(-1)
        double: Tensor = weights @ self.value(rows)
        return double * mask[..., None]

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """The four terms of RTFM, and cross entropy of every double with "normal".

        Raises ValueError on a batch of one class.
        """
        terms = self.objective.terms(out.scores, out.aux["features"], bag, "s3r", training=self.training)
        macro = out.aux["macro"]
        return {**terms, "macro": nn.functional.binary_cross_entropy(macro, torch.zeros_like(macro))}

    @property
    def known(self) -> bool:
        """Whether the dictionary has been learnt or imported."""
        return self.dictionary.value.ndim == 2

    def refresh_due(self, progress: Progress) -> bool:
        """Before the first step."""
        return progress.step == 0 and not self.known

    def refresh(self, progress: Progress, scan: Scan) -> None:
        """Learns the dictionary from the mean feature of each normal training video."""
        means = [bag.x[0].mean(0)[bag.mask[0]].mean(0).double() for bag in scan() if float(bag.labels[0]) == 0]
        videos = torch.stack(means).cpu().numpy()
        self.dictionary.keep(torch.from_numpy(sparse_codes(videos, self.atoms)))

    def exceptions(self) -> Mapping[str, str]:
        """As in RTFM."""
        return exceptions(self.objective.as_published)

    def published(self) -> Published:
        """The authors' model; the dictionary lies in a file of its own."""
        names: dict[str, str] = {}
        for part in ("video", "macro"):
            names |= published_names(f"{part}_embedding.0", part, groups=True)
        pairs = [(f"en_normal.en_normal_module.{a}_embedding", b) for a, b in _ATTENTION.items()]
        pairs += [(f"de_normal.channel_attention.channel_gate.mlp.{i + 1}", f"gate.{i}") for i in (0, 2)]
        pairs += [(f"video_classifier.{i}", f"video_score.{i}") for i in (0, 3, 6)]
        pairs += [(f"macro_classifier.mlp.{i}", f"macro_score.{i}") for i in (0, 3, 6)]
        names |= {f"{a}.{p}": f"{b}.{p}" for a, b in pairs for p in ("weight", "bias")}
        dim = self.value.out_features
        unused: dict[str, tuple[int, ...]] = {}
        for part in ("video", "macro"):
            unused |= {f"{part}_projection.0.weight": (dim, dim, 3)}
            unused |= {f"{part}_projection.{n}": (dim,) for n in ("0.bias", "1.weight", "1.bias")}
        return Published(
            names,
            unused,
            optional=frozenset(n for n in names if n.endswith("num_batches_tracked")),
            extra=frozenset({"dictionary.value"}),
            beside={"dictionary.value": "dictionary"} if self.known else {},
            notes=() if self.known else (f"it needs its dictionary, a file of its own: --set {_SET}",),
            source="https://github.com/louisYen/S3R",
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths."""
        width, dim, _ = shapes["video_embedding.0.conv_1.0.weight"]
        return {"rgb": dim}, {
            "width": width,
            "hidden": [shapes["video_classifier.0.weight"][0], shapes["video_classifier.3.weight"][0]],
            "key": shapes["en_normal.en_normal_module.query_embedding.weight"][0],
            "gate": shapes["de_normal.channel_attention.channel_gate.mlp.1.weight"][0],
        }


_ATTENTION = {"query": "query", "cache": "key", "value": "value"}


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the segments that are there; (N, T, D), (N, T) bool -> (N, D)."""
    return (x * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]


def _read(path: str, dim: int) -> Tensor:
    """The rows of a dictionary, (rows, D) float32. Raises ValueError."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a dictionary: {error}; --set {_SET}, an array (rows, {dim})"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != dim or not np.isfinite(rows).all():
        raise ValueError(f"{path} holds {rows.shape}, finite numbers (rows, {dim}) were wanted")
    return torch.from_numpy(rows.astype(np.float32))
