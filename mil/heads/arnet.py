"""AR-Net (Wan, Fang, Xia, Mei, "Weakly Supervised Video Anomaly Detection via Center-Guided Discriminative Learning",
ICME 2020, https://arxiv.org/abs/2104.07268)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean
from mil.published import Published


@heads.register("arnet")
class ARNetHead(Head):
    """Scores each segment alone; the highest quarter of a video has its label, normal scores stay together.

    One fully connected layer as wide as the features, ReLU, dropout, and a sigmoid. The authors put RGB and flow side
    by side; any modalities are taken so.

    Every one of a video's k = ceil(T / 4) highest scores is held to the video's label by itself, so that longer videos
    weigh more (dynamic multiple-instance learning loss). The scores of a normal video are drawn to their mean (center
    loss): their variance, unbiased, the mean over the normal videos; 0 for a video of one segment.

    Args:
        dim: feature size D (2048: RGB and flow of I3D).
        hidden: width of the layer; None: D, as published.
        dropout: after the layer.
        share: a video's k is T / share, rounded up.
        center: weight of the center loss.
        as_published: the center loss takes a normal video's padding along, up to the longest video of the batch, as the
            authors' code does: scores of zeros, under dropout as all others. By default it sees the video alone.
    """

    paper = "Wan et al., ICME 2020"
    lookback = 1  # each segment by itself
    compares = False

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.7,
        share: float = 4.0,
        center: float = 20.0,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        width = dim if hidden is None else hidden
        if width < 1 or share < 1:
            raise ValueError(f"arnet needs hidden >= 1 and share >= 1, got {hidden=}, {share=}")
        self.share, self.center, self.as_published = share, center, as_published
        self.fc = nn.Linear(dim, width)
        self.classifier = nn.Linear(width, 1)
        self.drop = nn.Dropout(dropout)
        for layer in (self.fc, self.classifier):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded.

        aux: padded (B, T), the scores of padding too.
        """
        scores = self.classifier(self.drop(self.fc(bag.x).relu())).squeeze(-1).sigmoid()  # (B, K, T)
        return HeadOutput(crop_mean(scores, bag.mask), {"padded": scores.mean(1)})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of the highest scores, and the center loss; that is 0 without a normal video."""
        counts, low = bag.mask.sum(1), bag.low
        top = out.scores.masked_fill(~bag.mask, -torch.inf).sort(dim=1, descending=True).values
        taken = torch.arange(top.shape[1], device=top.device) < (counts / self.share).ceil()[:, None]
        # the others are held to nothing: 1/2 is a probability
        each = nn.functional.binary_cross_entropy(
            top.masked_fill(~taken, 0.5), bag.labels[:, None].expand_as(top), reduction="none"
        )
        scores, mask = out.scores, bag.mask
        if self.as_published:
            scores = out.aux["padded"]
            mask = (torch.arange(top.shape[1], device=top.device) < counts.max()).expand_as(top)
        spread = _variance(scores[low], mask[low])
        return {
            "bce": (each * taken).sum() / taken.sum(),
            "center": self.center * spread.sum() / max(len(spread), 1),
        }

    def exceptions(self) -> Mapping[str, str]:
        """Padding that is scored before any bias has moved."""
        if not self.as_published:
            return {}
        corner = "biases start at 0, so that padding, which is scored along, lies on the corner of the ReLU"
        return {"test_gradients_agree_with_finite_differences": corner}

    def published(self) -> Published:
        """The authors' state dict of the net of their paper, four tensors."""
        names = {f"{n}.{p}": f"{n}.{p}" for n in ("fc", "classifier") for p in ("weight", "bias")}
        return Published(names, source="https://github.com/wanboyang/Anomaly_AR_Net_ICME_2020, model.py, Model_single")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size, RGB and flow together, and width."""
        (width, dim), _ = shapes["fc.weight"], shapes["classifier.weight"]
        return {"rgb": dim}, {"hidden": width}


def _variance(scores: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of each video's scores, 0 for a single one; (N, T), (N, T) -> (N,)."""
    count = mask.sum(1)
    mean = (scores * mask).sum(1) / count.clamp(min=1)
    return ((scores - mean[:, None]).square() * mask).sum(1) / (count - 1).clamp(min=1)
