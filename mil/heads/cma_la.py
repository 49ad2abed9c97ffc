"""CMA-LA (Pu, Wu, "Audio-Guided Attention Network for Weakly Supervised Violence Detection", ICCECE 2022; code:
https://github.com/yujiangpu20/cma_xdVioDet)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.causal import distance_term, left_conv, masked_softmax, recent
from mil.layers.conv import conv
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.losses import sixteenth, topk_bce
from mil.published import Published


@heads.register("cma_la")
class CMALAHead(Head):
    """Sound asks where to look: attention from audio to the visual features, then a convolution that looks back only.

    The map adds exp(-|w d² + b|) to the scaled products, so that near segments weigh more; w and b are learned. Its
    answer goes onto the visual features, LayerNorm, two layers, and a causal convolution gives the score.

    A video's mean of its L // 16 + 1 highest scores, already probabilities, goes through a sigmoid once more before the
    cross entropy, in the code and here: the paper means the sigmoid to come once, but the published numbers were
    trained so. A video's probability then lies between 0.5 and 0.73, and the loss never comes near 0.

    Args:
        visual: feature size of what is seen (1024).
        audio: feature size of what is heard (128).
        attention: size of queries, keys and values.
        hidden: widths of the two layers behind the attention.
        kernel: how many segments, itself included, a score looks back on.
        dropout: after each of the two layers.
        past: 0: attention to the whole video, as published. Otherwise to a segment and the `past` - 1 before it alone,
            so that a video can be scored while it runs; weights of either setting can be used with the other.
        as_published: padded segments are looked at like others, as in the authors' code, so that scores of a batch of
            videos of several lengths depend on the longest. A single video scores the same either way.
    """

    paper = "Pu & Wu, ICCECE 2022"
    modalities = ("visual", "audio")
    compares = False
    causal_options: ClassVar[Mapping[str, Any]] = {"past": 200}  # as long as the videos that it is trained on

    def __init__(
        self,
        visual: int,
        audio: int,
        *,
        attention: int = 128,
        hidden: tuple[int, int] = (512, 128),
        kernel: int = 7,
        dropout: float = 0.1,
        past: int = 0,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if min(*hidden, attention, kernel) < 1 or past < 0:
            raise ValueError(
                "cma_la needs two hidden widths, attention and kernel of at least 1, and a past of at least 0, got "
                f"hidden={list(hidden)}, attention={attention}, kernel={kernel}, past={past}"
            )
        self.past, self.as_published = past, as_published
        self.query = nn.Linear(audio, attention)
        self.key = nn.Linear(visual, attention)
        self.value = nn.Linear(visual, attention)
        self.out = nn.Linear(attention, visual)
        # uninitialised memory in the authors' code. At 0 neither would ever move: |x| has no slope there
        self.slope = nn.Parameter(torch.full((1,), 0.01))
        self.offset = nn.Parameter(torch.full((1,), 0.01))
        self.norm = nn.LayerNorm(visual)
        self.conv1 = nn.Conv1d(visual, hidden[0], 1)
        self.conv2 = nn.Conv1d(hidden[0], hidden[1], 1)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Conv1d(hidden[1], 1, kernel)
        for layer in (self.query, self.key, self.value, self.out, self.conv1, self.conv2, self.classifier):
            nn.init.xavier_uniform_(layer.weight)

    @property
    def lookback(self) -> int | None:
        """What the first of the segments under the convolution looks back on, where the attention has an end."""
        return self.past + self.classifier.kernel_size[0] - 1 if self.past else None

    def forward(self, bag: Bag) -> HeadOutput:
        """visual and audio (B, K, T, D) -> scores (B, T) in [0, 1]; aux: `scores` of every crop, (B * K, T)."""
        visual, audio = (fold(x) for x in self.parts(bag))
        mask = spread(bag.mask, bag.crops)
        rows = torch.ones_like(mask) if self.as_published else mask
        products = self.query(audio) @ self.key(visual).transpose(1, 2) / math.sqrt(self.key.out_features)
        products = products + distance_term(mask.shape[1], self.slope, self.offset)
        if self.past:
            products = products.masked_fill(~recent(mask.shape[1], self.past, mask.device), -math.inf)
        weights = masked_softmax(products, rows)
        h = self.norm(visual + self.out(weights @ self.value(visual)))
        h = self.drop(nn.functional.gelu(conv(self.conv1, h, rows)))
        h = self.drop(conv(self.conv2, h, rows))
        scores = left_conv(self.classifier, h, rows).squeeze(-1).sigmoid()
        return HeadOutput(crop_mean(unfold(scores, bag.crops), bag.mask), {"scores": scores})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of each crop of each video; takes batches of any mixture."""
        mask, labels = spread(bag.mask, bag.crops), spread(bag.labels, bag.crops)
        return {"mil": topk_bce(out.aux["scores"], mask, labels, sixteenth(mask))}

    def exceptions(self) -> Mapping[str, str]:
        """Of the code as it was published: the attention looks at padding."""
        if not self.as_published:
            return {}
        why = "the authors' attention looks at padded segments"
        return {"test_padding_changes_nothing": why, "test_a_video_scores_the_same_alone": why}

    def published(self) -> Published:
        """All 18 tensors of the authors' `xd_a2v.pkl`."""
        layers = {
            "cross_attention.cross_attention.q": "query",
            "cross_attention.cross_attention.k": "key",
            "cross_attention.cross_attention.v": "value",
            "cross_attention.cross_attention.o": "out",
            "cross_attention.ffn.0": "conv1",
            "cross_attention.ffn.3": "conv2",
            "cross_attention.norm": "norm",
            "classifier": "classifier",
        }
        names = {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in layers.items() for p in ("weight", "bias")}
        return Published(
            {"dis_adj.w": "slope", "dis_adj.bias": "offset", **names},
            source="https://github.com/yujiangpu20/cma_xdVioDet, ckpt/xd_a2v.pkl",
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Both feature sizes, and the widths."""
        attention, audio = shapes["cross_attention.cross_attention.q.weight"]
        first, visual, _ = shapes["cross_attention.ffn.0.weight"]
        _, second, kernel = shapes["classifier.weight"]
        options = {"attention": attention, "hidden": (first, second), "kernel": kernel}
        return {"rgb": visual, "audio": audio}, options
