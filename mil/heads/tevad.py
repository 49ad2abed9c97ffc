"""TEVAD (Chen, Ma, Yew, Hur, Khoo, "TEVAD: Improved Video Anomaly Detection with Captions", CVPR Workshops 2023,
https://github.com/coranholmes/TEVAD)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.heads.rtfm import exceptions, scorer_names
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.magnitude import MagnitudeLoss
from mil.layers.mtn import MTN, published_names, scorer, xavier
from mil.published import Published


@heads.register("tevad")
class TEVADHead(Head):
    """RTFM twice, on what is seen and on captions of it; magnitude and score are of both together.

    Captions are sentence embeddings, one for each clip; a store of a single crop is shared by all crops. What RTFM's
    code has otherwise than its paper is kept here too, see `rtfm`. The code lengthens or cuts the captions of a video
    to its clips after the temporal network; here all stores of a video are cut to the shortest before.

    Args:
        visual: feature size of what is seen (2048; XD-Violence: 1024).
        text: feature size of the captions (768); of the sound, where there are stores of sound and none of captions.
        fusion: "concat": side by side, as published for UCF-Crime. "add", "product": what is seen goes through a layer
            of the captions' size, ReLU and dropout, and is added to the captions or multiplied with them. Published
            for the other datasets: "add".
        width: channels of each of the four branches, of both networks; none: a quarter of either's size.
        hidden: widths of the scorer's two hidden layers.
        dropout: of features, in the scorer, and of segments in the selection.
        topk: segments that a video stands for.
        margin: magnitude that anomalous videos are drawn to.
        alpha: weight of the magnitudes.
        smooth, sparse: weights of the two regularisers.
        as_published: pairs of videos and borders between videos as in `rtfm`: both depend on the batch's order.
    """

    paper = "Chen et al., CVPRW 2023"
    modalities = ("visual", "text|audio")

    def __init__(
        self,
        visual: int,
        text: int,
        *,
        fusion: Literal["concat", "add", "product"] = "concat",
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
            raise ValueError(f"tevad needs two hidden widths, got hidden={list(hidden)}")
        if fusion not in ("concat", "add", "product"):
            raise ValueError(f"tevad fuses by concat, add or product, got fusion='{fusion}'")
        self.fusion = fusion
        self.objective = MagnitudeLoss(topk, margin, alpha, smooth, sparse, dropout, as_published)
        self.visual, self.text = (MTN(d, max(d // 4, 1) if width is None else width) for d in (visual, text))
        self.bridge = None if fusion == "concat" else nn.Linear(visual, text)
        self.drop = nn.Dropout(dropout)
        self.score = scorer(visual + text if fusion == "concat" else text, hidden, dropout)
        self.apply(xavier)

    def forward(self, bag: Bag) -> HeadOutput:
        """(B, K, T, D_visual), (B, K, T, D_text) -> scores (B, T) in [0, 1]; aux: features (B, K, T, D)."""
        crops, mask = bag.crops, spread(bag.mask, bag.crops)
        seen, said = self.parts(bag)
        a, b = self.drop(self.visual(fold(seen), mask)), self.drop(self.text(fold(said), mask))
        if self.bridge is None:
            features = torch.cat([a, b], dim=-1)
        else:
            a = self.drop(self.bridge(a).relu()) * mask[..., None]
            features = a + b if self.fusion == "add" else a * b
        scores = self.score(features).squeeze(-1).sigmoid()
        return HeadOutput(crop_mean(unfold(scores, crops), bag.mask), {"features": unfold(features, crops)})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """The four terms of RTFM. Raises ValueError on a batch of one class."""
        return self.objective.terms(out.scores, out.aux["features"], bag, "tevad", training=self.training)

    def exceptions(self) -> Mapping[str, str]:
        """As in RTFM."""
        return exceptions(self.objective.as_published)

    def published(self) -> Published:
        """The authors' two networks, `fc0` where they are added or multiplied, and the scorer."""
        names = published_names("Aggregate", "visual") | published_names("Aggregate_text", "text")
        if self.bridge is not None:
            names |= {f"fc0.{p}": f"bridge.{p}" for p in ("weight", "bias")}
        names |= scorer_names("score")
        counters = frozenset(n for n in names if n.endswith("num_batches_tracked"))
        return Published(names, optional=counters, source="https://github.com/coranholmes/TEVAD")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature sizes, the width where it is no quarter, and the fusion: with `fc0`, "add" rather than "product"."""
        first, visual, _ = shapes["Aggregate.conv_1.0.weight"]
        second, text, _ = shapes["Aggregate_text.conv_1.0.weight"]
        options: dict[str, Any] = {"hidden": [shapes["fc1.weight"][0], shapes["fc2.weight"][0]]}
        options["fusion"] = "add" if "fc0.weight" in shapes else "concat"
        if (first, second) != (visual // 4, text // 4):
            options["width"] = first
        return {"rgb": visual, "text": text}, options
