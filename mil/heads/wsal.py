"""Weakly supervised anomaly localization (Lv, Zhou, Cui, Xu, Li, Yang, "Localizing Anomalies from Weakly-Labeled
Videos", TIP 2021, https://arxiv.org/abs/2008.08944)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, spread
from mil.losses import both_classes, hinge, smoothness, sparsity, topk_mean
from mil.published import Published

_NAMES = {
    "fc0": "embed",
    "conv": "context",
    "fc1_1": "semantic1",
    "fc1_2": "semantic2",
    "fc2_1": "dynamic1",
    "fc2_2": "dynamic2",
}


@heads.register("wsal")
class WSALHead(Head):
    """Scores what a segment shows and how much its surroundings change, in equal parts.

    Each segment is embedded and sees its neighbours through one convolution, which repeats a video's first and last
    segment beyond its ends. Of this context come the semantic score, a sigmoid in [0, 1], and an embedding; the
    dynamic score of a segment is the mean cosine distance of its embedding to its one or two neighbours', in [0, 2].
    The score is the mean of the two, so it may exceed 1, up to 1.5, where the embedding turns against its neighbours.
    A video of one segment has no neighbours: its dynamic score is 0.

    The losses compare the i-th anomalous with the i-th normal video, in the order of the batch. That the semantic
    scores of an anomalous video must span more says nothing about which of them are to be the high ones: only `sparse`
    does. At its published weight a small training set may end upside down; a larger one (`motion_wsal`) helps.

    Args:
        dim: feature size D (1024 for the authors' TSN).
        hidden: widths of the embedding and its context, and of the layers below each score.
        kernel: segments that the context spans, odd.
        dropout: after the embedding and inside both branches.
        margin: of both rankings.
        smooth, sparse: weights of the two regularisers, 8e-5 each.
    """

    paper = "Lv et al., TIP 2021"

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 128),
        kernel: int = 5,
        dropout: float = 0.8,
        margin: float = 1.0,
        smooth: float = 8e-5,
        sparse: float = 8e-5,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"wsal needs two hidden widths and an odd kernel, got hidden={list(hidden)}, {kernel=}")
        self.margin, self.smooth, self.sparse = margin, smooth, sparse
        wide, narrow = hidden
        self.embed = nn.Linear(dim, wide)
        self.context = nn.Conv1d(wide, wide, kernel)
        self.semantic1 = nn.Linear(wide, narrow)
        self.semantic2 = nn.Linear(narrow, 1)
        self.dynamic1 = nn.Linear(wide, narrow)
        self.dynamic2 = nn.Linear(narrow, narrow)
        self.drop = nn.Dropout(dropout)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1.5], means over the crops, 0 where padded.

        aux: semantic (B, T), and distances (B, T - 1) between neighbours, 0 where either is padded.
        """
        mask = spread(bag.mask, bag.crops)
        h = self.drop(self.embed(fold(bag.x)).relu())
        h = self._in_context(h, mask)
        semantic = self.semantic2(self.drop(self.semantic1(h).relu())).squeeze(-1).sigmoid()  # (B * K, T)
        f = self.dynamic2(self.drop(self.dynamic1(h).relu()))
        pairs = _pairs(mask)
        distances = (1 - nn.functional.cosine_similarity(f[:, 1:], f[:, :-1], dim=-1)) * pairs  # (B * K, T - 1)
        scores = (semantic + _beside(distances) / _beside(pairs.int()).clamp(min=1)) / 2
        semantic, distances, scores = (v.unflatten(0, bag.x.shape[:2]) for v in (semantic, distances, scores))
        aux = {"semantic": crop_mean(semantic, bag.mask), "distances": distances.mean(1)}
        return HeadOutput(crop_mean(scores, bag.mask), aux)

    def _in_context(self, h: Tensor, mask: Tensor) -> Tensor:
        """The convolution; behind its end every video, padded or not, repeats its own last segment."""
        last = h[torch.arange(len(h), device=h.device), mask.sum(1) - 1]
        h = torch.where(mask[..., None], h, last[:, None])
        half = self.context.kernel_size[0] // 2
        wide = nn.functional.pad(h.transpose(1, 2), (half, half), mode="replicate")
        found: Tensor = self.context(wide).transpose(1, 2)
        return found

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Two rankings and two regularisers. Raises ValueError on a batch of one class.

        An anomalous video must surpass a normal one in its largest distance between neighbours (dynamic), and in the
        span from its lowest to its highest semantic score (semantic). Sparsity holds for both classes, smoothness for
        anomalous videos; both take distances and semantic scores.
        """
        high, low = both_classes(bag, "wsal")
        semantic, distances = out.aux["semantic"], out.aux["distances"]
        pairs = _pairs(bag.mask)
        change = topk_mean(distances, pairs, 1)  # (B,), 0 for a video of one segment
        span = topk_mean(semantic, bag.mask, 1) + topk_mean(-semantic, bag.mask, 1)
        sums = sparsity(distances, pairs) + sparsity(semantic, bag.mask)
        steps = smoothness(distances, pairs) + smoothness(semantic, bag.mask)
        return {
            "dynamic": hinge(change[high], change[low], self.margin, paired=True).mean(),
            "semantic": hinge(span[high], span[low], self.margin, paired=True).mean(),
            "sparse": self.sparse * (sums[high].mean() + sums[low].mean()),
            "smooth": self.smooth * steps[high].mean(),
        }

    def published(self) -> Published:
        """The authors' state dict, 12 tensors."""
        names = {f"{a}.{p}": f"{b}.{p}" for a, b in _NAMES.items() for p in ("weight", "bias")}
        return Published(names, source="https://github.com/ktr-hubrt/WSAL, models.py")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size, widths and kernel, from three kernels."""
        (wide, dim), kernel, narrow = shapes["fc0.weight"], shapes["conv.weight"][2], shapes["fc1_1.weight"][0]
        return {"rgb": dim}, {"hidden": (wide, narrow), "kernel": kernel}


def _pairs(mask: Tensor) -> Tensor:
    """Where a segment and the next one are both there; (N, T) -> (N, T - 1) bool."""
    return mask[:, 1:] & mask[:, :-1]


def _beside(values: Tensor) -> Tensor:
    """Values between neighbours, summed at each segment: (N, T - 1) -> (N, T)."""
    return nn.functional.pad(values, (1, 0)) + nn.functional.pad(values, (0, 1))
