"""Deep MIL ranking (Sultani, Chen, Shah, "Real-World Anomaly Detection in Surveillance Videos", CVPR 2018,
https://arxiv.org/abs/1801.04264)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean
from mil.losses import both_classes, hinge, smoothness, sparsity, topk_mean
from mil.published import Published


@heads.register("ranking")
class RankingHead(Head):
    """Scores each segment alone; an anomalous video's best must beat a normal video's best.

    Three fully connected layers, D -> 512 -> 32 -> 1, ReLU after the first, a sigmoid after the last (section 3.2).

    Args:
        dim: feature size D (4096 for C3D fc6).
        hidden: widths of the two hidden layers.
        dropout: after each hidden layer.
        smooth, sparse: weights of the two regularisers (equation 7: 8e-5 each).
        l2: weight of the squared kernels (equation 8; the paper says 0.01, the code 0.001).
        topk: a video, of either class, stands for the mean of its k highest scores; 1 is the paper's maximum
            (equation 4), which on few and short videos learns from single outliers.
        as_published: sums over anomalous videos where the default takes means, as the authors' code does. The loss
            grows by the number of anomalous videos in the batch, against an unchanged `l2`.
    """

    paper = "Sultani et al., CVPR 2018"
    lookback = 1  # each segment by itself

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 32),
        dropout: float = 0.6,
        smooth: float = 8e-5,
        sparse: float = 8e-5,
        l2: float = 0.0,
        topk: int = 1,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1 or topk < 1:
            raise ValueError(f"ranking needs two hidden widths and topk >= 1, got hidden={list(hidden)}, topk={topk}")
        self.smooth, self.sparse, self.l2, self.topk = smooth, sparse, l2, topk
        self.as_published = as_published
        self.fc1 = nn.Linear(dim, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], 1)
        self.drop = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded."""
        h = self.drop(self.fc1(bag.x).relu())
        h = self.drop(self.fc2(h))
        scores = self.fc3(h).squeeze(-1).sigmoid()  # (B, K, T)
        return HeadOutput(crop_mean(scores, bag.mask))

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Equations 6 to 8. Raises ValueError on a batch of one class."""
        high, low = both_classes(bag, "ranking")
        best = topk_mean(out.scores, bag.mask, self.topk)  # (B,)
        rank = hinge(best[high], best[low])
        scale = len(high) if self.as_published else 1
        terms = {
            "rank": scale * rank.mean(),
            "smooth": scale * self.smooth * smoothness(out.scores, bag.mask)[high].mean(),
            "sparse": scale * self.sparse * sparsity(out.scores, bag.mask)[high].mean(),
        }
        if self.l2:
            kernels = [layer.weight.square().sum() for layer in (self.fc1, self.fc2, self.fc3)]
            terms["l2"] = self.l2 * torch.stack(kernels).sum()
        return terms

    def published(self) -> Published:
        """The authors' Keras weights have no names in torch; these are those of the I3D port."""
        names = {f"{n}.{p}": f"{n}.{p}" for n in ("fc1", "fc2", "fc3") for p in ("weight", "bias")}
        return Published(names, notes=("Sultani's net has no ReLU behind fc2, the I3D port has: --head deepmil",))

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths, from the three kernels."""
        (first, dim), second = shapes["fc1.weight"], shapes["fc2.weight"][0]
        return {"rgb": dim}, {"hidden": (first, second)}
