"""RTFM (Tian, Pang, Chen, Singh, Verjans, Carneiro, "Weakly-supervised Video Anomaly Detection with Robust Temporal
Feature Magnitude Learning", ICCV 2021, https://arxiv.org/abs/2101.10030)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.dropout import Dropout
from mil.layers.magnitude import MagnitudeLoss
from mil.layers.mtn import MTN, published_names, scorer, xavier
from mil.published import Published


@heads.register("rtfm")
class RTFMHead(Head):
    """Multi-scale temporal features whose magnitude is drawn apart; the top 3 segments stand for their video.

    Kept as the authors' code has it, though the paper says otherwise: sparsity is one L2 norm over all scores of the
    batch's anomalous videos; magnitudes are of features after dropout; the selection passes over segments at random
    while training, and takes any of those where fewer than `topk` are left.

    Padded segments take no part: neither in batch statistics nor in the selection.

    Args:
        dim: feature size D (2048 for I3D ResNet-50: 24,718,849 parameters).
        width: channels of each of the four branches; none: D // 4, published: 512.
        hidden: widths of the scorer's two hidden layers.
        dropout: of features, in the scorer, and of segments in the selection.
        topk: segments that a video stands for.
        margin: magnitude that anomalous videos are drawn to.
        alpha: weight of the magnitudes.
        smooth, sparse: weights of the two regularisers.
        as_published: two things depend on the order of the batch then, as in the authors' code. Magnitudes are compared
            in pairs, the i-th anomalous with the i-th normal video, where the default takes all pairs; and smoothness
            counts the step from the end of one video to the beginning of the next.
    """

    paper = "Tian et al., ICCV 2021"

    def __init__(
        self,
        dim: int,
        *,
        width: int | None = None,
        hidden: Sequence[int] = (512, 128),
        dropout: float = 0.7,
        topk: int = 3,
        margin: float = 100.0,
        alpha: float = 1e-4,
        smooth: float = 8e-4,
        sparse: float = 8e-3,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1:
            raise ValueError(f"rtfm needs two hidden widths, got hidden={list(hidden)}")
        self.objective = MagnitudeLoss(topk, margin, alpha, smooth, sparse, dropout, as_published)
        self.mtn = MTN(dim, max(dim // 4, 1) if width is None else width)
        self.drop = Dropout(dropout)
        self.score = scorer(dim, hidden, dropout)
        self.apply(xavier)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1], the mean over the crops; aux: features (B, K, T, D)."""
        crops = bag.crops
        features = self.drop(self.mtn(fold(bag.x), spread(bag.mask, crops)))
        scores = self.score(features).squeeze(-1).sigmoid()
        return HeadOutput(crop_mean(unfold(scores, crops), bag.mask), {"features": unfold(features, crops)})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of the selected segments, their magnitudes, smoothness, sparsity.

        Raises ValueError on a batch of one class.
        """
        return self.objective.terms(out.scores, out.aux["features"], bag, "rtfm", training=self.training)

    def exceptions(self) -> Mapping[str, str]:
        """The block that starts as the identity; with `as_published`, the order of the batch."""
        return exceptions(self.objective.as_published)

    def published(self) -> Published:
        """The 47 tensors of the authors' model."""
        names = published_names("Aggregate", "mtn") | scorer_names("score")
        counters = frozenset(n for n in names if n.endswith("num_batches_tracked"))
        return Published(names, optional=counters, source="https://github.com/tianyu0207/RTFM")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths."""
        width, dim, _ = shapes["Aggregate.conv_1.0.weight"]
        return {"rgb": dim}, {"width": width, "hidden": [shapes["fc1.weight"][0], shapes["fc2.weight"][0]]}


def scorer_names(ours: str) -> dict[str, str]:
    """{name in the authors' model: name in our scorer}, of RTFM and TEVAD."""
    return {f"fc{i}.{p}": f"{ours}.{3 * (i - 1)}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")}


def exceptions(as_published: bool) -> dict[str, str]:
    """What RTFM and the heads built on it break, by contract test."""
    found = {
        "test_losses_are_named_finite_scalars_and_reach_every_parameter": "the non-local block starts as the identity: "
        "its last scale is 0, and what lies before it learns from the second step on"
    }
    if as_published:
        found["test_the_order_of_the_batch_changes_no_loss"] = (
            "the code pairs the i-th anomalous with the i-th normal video and smooths across the borders of videos"
        )
    return found
