"""HL-Net (Wu et al., "Not only Look, but also Listen: Learning Multimodal Violence Detection under Weak Supervision",
ECCV 2020, https://arxiv.org/abs/2007.04687)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.conv import past_conv, rows
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.dropout import Dropout
from mil.layers.graph import GraphConvolution, proximity, row_softmax, similarity
from mil.losses import sixteenth, topk_bce
from mil.published import Published


@heads.register("hlnet")
class HLNetHead(Head):
    """Three graphs over the segments (alike, near, scored alike) and an online branch that sees the past alone.

    Two layers D -> 512 -> 128 feed both. The online branch (HLC, the approximator), 128 -> 64 -> 32 and a convolution
    over a segment and the four before it, gives a logit; scores close in it make the third graph. Two graph
    convolutions on each graph and one layer over the three results give the offline logit.

    All modalities go in side by side. Crops are samples of their own in the loss. What the published code does
    otherwise than one would expect is kept: cosines below the threshold stay in the softmax as zeros; and the
    distillation of the offline into the online scores has no term for 1 - p, so that it raises scores only. Its
    logarithm is taken of the logit, which is the same number and never infinite.

    Args:
        dim: feature size D (1152: I3D RGB 1024 and VGGish 128).
        hidden: widths of the two layers that all share.
        graph: width of the graph convolutions.
        approximator: widths of the online branch.
        dropout: after each shared layer and each graph convolution.
        distill: weight of the distillation.
        threshold: cosines up to this one count as 0.
        score: which logit becomes the score, "offline" or "online". Both are trained, and both are in `aux`,
            (B, K, T).
        as_published: in a batch of videos of several lengths, the graph of near segments and the convolutions beside
            the graphs also take from the padding of the shorter ones, which holds what the biases left there. Scores
            then depend on how far a video is padded. A video alone scores the same with both settings.
    """

    paper = "Wu et al., ECCV 2020"
    compares = False
    causal_options: ClassVar[Mapping[str, Any]] = {"score": "online"}

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 128),
        graph: int = 32,
        approximator: Sequence[int] = (64, 32),
        dropout: float = 0.6,
        distill: float = 5.0,
        threshold: float = 0.7,
        score: Literal["offline", "online"] = "offline",
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or len(approximator) != 2 or min(*hidden, *approximator, graph) < 1:
            raise ValueError(
                "hlnet needs two hidden widths, two of the approximator and one of the graphs, got "
                f"hidden={list(hidden)}, approximator={list(approximator)}, graph={graph}"
            )
        self.dim, self.distill, self.threshold, self.score = dim, distill, threshold, score
        self.as_published = as_published
        self.shared1 = nn.Conv1d(dim, hidden[0], 1)
        self.shared2 = nn.Conv1d(hidden[0], hidden[1], 1)
        self.approximator = Approximator(hidden[1], approximator)
        self.alike, self.near, self.scored = (
            nn.ModuleList([GraphConvolution(hidden[1], graph), GraphConvolution(graph, graph)]) for _ in range(3)
        )
        self.classifier = nn.Linear(3 * graph, 1)
        self.drop = Dropout(dropout)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Linear):  # biases stay as torch draws them
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded."""
        x, crops = fold(bag.x), bag.crops
        mask = spread(bag.mask, crops)
        seen = torch.ones_like(mask) if self.as_published else mask  # whether padding is what it holds, or nothing
        # nothing is taken from the padding before the graphs, which mask what they are given
        h = self.drop(rows(self.shared1, x).relu())
        h = self.drop(rows(self.shared2, h).relu())
        online = self.approximator(h)
        offline = self._offline(h, similarity(x, mask, self.threshold), agreement(online.detach(), mask), seen)
        logits = {"offline": unfold(offline, crops), "online": unfold(online, crops)}
        return HeadOutput(crop_mean(logits[self.score].sigmoid(), bag.mask), logits)

    @property
    def lookback(self) -> int | None:
        """Of the approximator alone."""
        return self.approximator.conv3.kernel_size[0] if self.score == "online" else None

    def _offline(self, h: Tensor, alike: Tensor, scored: Tensor, seen: Tensor) -> Tensor:
        """(N, T, hidden), two graphs (N, T, T) -> logits (N, T)."""
        parts = []
        for layers, graph in ((self.alike, alike), (self.near, proximity(h)), (self.scored, scored)):
            part = h
            for layer in layers:
                part = self.drop(layer(part, graph, seen).relu())
            parts.append(part)
        logits: Tensor = self.classifier(torch.cat(parts, dim=-1))
        return logits.squeeze(-1)

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of both branches' highest logits, and the distillation. A batch of one class will do."""
        offline, online = fold(out.aux["offline"]), fold(out.aux["online"])  # (B * K, T)
        crops = len(offline) // len(bag.labels)
        mask, labels = spread(bag.mask, crops), spread(bag.labels, crops)
        k = sixteenth(mask)
        apart = -offline.sigmoid().detach() * logsigmoid(online) * mask
        return {
            "offline": topk_bce(offline, mask, labels, k),
            "online": topk_bce(online, mask, labels, k),
            "distill": self.distill * (apart.sum(1) / mask.sum(1)).mean(),
        }

    def exceptions(self) -> Mapping[str, str]:
        """Detached targets; and with `as_published` the padding that is taken for content."""
        gradient = "the target of the distillation and the scores behind the third graph are detached"
        found = {"test_gradients_agree_with_finite_differences": gradient}
        if self.as_published:
            padding = "the authors' graph of near segments and convolutions take from the padding"
            found |= {"test_padding_changes_nothing": padding, "test_a_video_scores_the_same_alone": padding}
        return found

    def published(self) -> Published:
        """The authors' names; they also have two convolutions and two learned graphs that nothing uses."""
        names = {"conv1d1": "shared1", "conv1d2": "shared2", "classifier": "classifier"}
        names |= {"approximator.0": "approximator.conv1", "approximator.2": "approximator.conv2"}
        names |= {"conv1d_approximator": "approximator.conv3"}
        names |= {f"gc{2 * i + 1}.residual": f"{part}.0.residual" for i, part in enumerate(_PARTS)}
        tensors = {f"{a}.{p}": f"{b}.{p}" for a, b in names.items() for p in ("weight", "bias")}
        tensors |= {f"gc{2 * i + j + 1}.weight": f"{part}.{j}.weight" for i, part in enumerate(_PARTS) for j in (0, 1)}
        wide, graph = self.shared2.out_channels, self.classifier.in_features // 3
        unused = {
            "conv1d3.weight": (graph, wide, 5),
            "conv1d3.bias": (graph,),
            "conv1d4.weight": (graph, graph, 5),
            "conv1d4.bias": (graph,),
            "simAdj.weight0": (self.dim, graph),
            "simAdj.weight1": (self.dim, graph),
            "disAdj.sigma": (1,),
        }
        return Published(tensors, unused, source="https://github.com/Roc-Ng/XDVioDet, ckpt/wsanodet_mix2.pkl")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths; 1152 is taken for XD-Violence's RGB and sound, any other size for one modality."""
        (first, dim, _), second = shapes["conv1d1.weight"], shapes["conv1d2.weight"][0]
        options = {
            "hidden": (first, second),
            "graph": shapes["gc2.weight"][0],
            "approximator": (shapes["approximator.0.weight"][0], shapes["approximator.2.weight"][0]),
        }
        return ({"rgb": 1024, "audio": 128} if dim == 1152 else {"rgb": dim}), options


_PARTS = ("alike", "near", "scored")  # the order of the authors' gc1 to gc6, and of the classifier's inputs


class Approximator(nn.Module):
    """HLC: a logit from a segment and the four before it, so that a video can be scored while it runs."""

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, widths[0], 1)
        self.conv2 = nn.Conv1d(widths[0], widths[1], 1)
        self.conv3 = nn.Conv1d(widths[1], 1, 5)

    def forward(self, h: Tensor) -> Tensor:
        """(N, T, dim) -> logits (N, T). Padding comes after a video, where nothing looks."""
        h = rows(self.conv2, rows(self.conv1, h).relu()).relu()
        return past_conv(self.conv3, h).squeeze(-1)


def agreement(logits: Tensor, mask: Tensor) -> Tensor:
    """Segments that score alike: row softmax of a steep sigmoid of 1 - |p_i - p_j|; (N, T), (N, T) -> (N, T, T)."""
    p = logits.sigmoid()
    close = 1 - (p[:, :, None] - p[:, None, :]).abs()
    return row_softmax(((close - 0.5) / 0.1).sigmoid(), mask)
