"""UR-DMU (Zhou, Yu, Yang, "Dual Memory Units with Uncertainty Regulation for Weakly Supervised Video Anomaly
Detection", AAAI 2023, https://arxiv.org/abs/2302.05160)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, linear, normalize, pairwise_distance

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, of_crops, spread, unfold
from mil.layers.distance_attention import DistanceEncoder, encoder_names, encoder_options
from mil.losses import both_classes, hinge, sixteenth, topk_mean
from mil.published import Published

_EPS = 1e-6  # torch's triplet margin loss adds it to each difference


class Memory(nn.Module):
    """Learnt slots that a segment is compared with and rebuilt from.

    Args:
        slots: how many.
        dim: feature size H.
    """

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.empty(slots, dim))
        nn.init.uniform_(self.slots, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, H) -> how well it is known here (N, T) in [0, 1], and what each slot answers (N, T, slots).

        A slot answers with a sigmoid of its own; a segment is known as well as by the best sixteenth of the slots.
        """
        count, dim = self.slots.shape
        answers = linear(x, self.slots / math.sqrt(dim)).sigmoid()
        return answers.topk(count // 16 + 1, dim=-1).values.mean(-1), answers

    def read(self, answers: Tensor, layer: nn.Linear) -> Tensor:
        """layer(what is read); (N, T, slots) -> (N, T, out). What is read is the sum of the slots by their answers.

        The layer is applied to the slots, which are few, and not to every segment: the same sum in another order.
        """
        return linear(answers, layer.weight @ self.slots.T, layer.bias)


@heads.register("urdmu")
class URDMUHead(Head):
    """A memory of the normal and one of the anomalous; normal segments are told of with uncertainty.

    Segments go through a convolution and a transformer, are compared with both memories, and are scored with what these
    return. While training, what the normal memory returns for normal videos is drawn from a Gaussian; elsewhere, and
    for every video in evaluation, it is that Gaussian's mean. So scores depend on labels in training mode only. Every
    crop is a sample of its own in the loss.

    The authors' sum of the KL divergence over time is kept: it grows with the number of segments.

    Args:
        dim: feature size D (1024 for I3D).
        hidden: feature size after the convolution, and of the memories.
        layers: of the transformer.
        heads: of its attention.
        attention: size of its queries, all heads together.
        ffn: inner size of its feed-forward.
        slots: of the anomalous and of the normal memory.
        classifier: inner size of the classifier.
        dropout: in the transformer.
        memory: weight of the four terms about the memories.
        triplet: weight of the triplet loss, margin 1.
        kl: weight of the Gaussian's divergence from the standard one.
        distance: weight of the loss that keeps lengths of the anomalous and the normal `margin` apart.
        margin: of that loss.
        as_published: triplets, and the lengths, of the i-th normal with the i-th anomalous sample only, as the authors'
            code has it, so that the loss depends on the order of the batch. The default takes every normal with
            every anomalous sample: the mean over all ways to pair them.
    """

    paper = "Zhou et al., AAAI 2023"

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 512,
        layers: int = 2,
        heads: int = 4,
        attention: int = 512,
        ffn: int = 512,
        slots: Sequence[int] = (60, 60),
        classifier: int = 128,
        dropout: float = 0.5,
        memory: float = 0.1,
        triplet: float = 0.1,
        kl: float = 1e-3,
        distance: float = 1e-4,
        margin: float = 100.0,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(slots) != 2 or min(slots) < 1:
            raise ValueError(f"urdmu needs two numbers of slots, anomalous and normal, got {list(slots)}")
        self.memory, self.triplet, self.kl, self.distance, self.margin = memory, triplet, kl, distance, margin
        self.as_published = as_published
        self.encoder = DistanceEncoder(
            dim, hidden=hidden, layers=layers, heads=heads, attention=attention, ffn=ffn, dropout=dropout
        )
        self.anomalous, self.normal = Memory(slots[0], hidden), Memory(slots[1], hidden)
        self.mean, self.log_variance = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.classify1, self.classify2 = nn.Linear(2 * hidden, classifier), nn.Linear(classifier, 1)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded."""
        crops = bag.crops
        x = self.encoder(fold(bag.x), spread(bag.mask, crops))  # (B * K, T, H), as all below
        of_anomalous, answers_anomalous = self.anomalous(x)
        of_normal, answers_normal = self.normal(x)
        anomalous, normal, log_variance = (
            self.anomalous.read(answers_anomalous, self.mean),
            self.normal.read(answers_normal, self.mean),
            self.normal.read(answers_normal, self.log_variance),
        )
        drawn = normal
        if self.training:
            noise = torch.randn_like(normal) * (0.5 * log_variance).exp()
            drawn = torch.where(spread(bag.labels == 0, crops)[:, None, None], normal + noise, normal)
        # classify1 of [x; drawn + anomalous], without laying them side by side
        of_x, of_read = self.classify1.weight.chunk(2, dim=1)
        h = linear(x, of_x, self.classify1.bias) + linear(drawn + anomalous, of_read)
        scores = self.classify2(h.relu()).squeeze(-1).sigmoid()
        aux = {
            "scores": scores,
            "x": x,
            "of_anomalous": of_anomalous,
            "of_normal": of_normal,
            "anomalous": anomalous,
            "normal": normal,
            "log_variance": log_variance,
            "drawn": drawn,
        }
        return HeadOutput(crop_mean(unfold(scores, crops), bag.mask), aux)

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Eight terms; each top k is the best L // 16 + 1 of L segments. Raises ValueError on a batch of one class."""
        aux, crops = out.aux, len(out.aux["scores"]) // len(bag.labels)
        mask, labels = spread(bag.mask, crops), spread(bag.labels, crops)
        high, low = (of_crops(videos, crops) for videos in both_classes(bag, "urdmu"))
        a, n = mask[high], mask[low]
        k = sixteenth(mask)
        of_anomalous, of_normal, x = aux["of_anomalous"], aux["of_normal"], aux["x"]

        # top rows of an anomalous video: those the anomalous memory knows best, those the normal one knows best
        worst = _best_rows(of_anomalous[high], a, k[high])
        plain = _best_rows(of_normal[high], a, k[high])
        calm = _best_rows(of_normal[low], n, k[low])
        anchor, positive, negative = (
            normalize(_mean_of(x[rows], best), dim=-1) for rows, best in ((low, calm), (high, plain), (high, worst))
        )
        away, near = (self._distances(anchor, other) for other in (negative, positive))
        long, short = (
            _mean_of(aux["anomalous"][high], worst).norm(dim=-1),
            _mean_of(aux["drawn"][low], calm).norm(dim=-1),
        )
        mean, log_variance = aux["normal"][low], aux["log_variance"][low]
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)

        return {
            "video": binary_cross_entropy(topk_mean(aux["scores"], mask, k), labels),
            "anomalous_as_anomalous": self.memory * _bce(topk_mean(of_anomalous[high], a, k[high]), 1),
            "anomalous_as_normal": self.memory * _bce(topk_mean(1 - of_normal[high], a, k[high]), 1),
            "normal_as_normal": self.memory * _bce(of_normal[low], 1, n),
            "normal_as_anomalous": self.memory * _bce(of_anomalous[low], 0, n),
            "triplet": self.triplet * (1 + near - away).relu().mean(),
            "kl": self.kl * (divergence * n[..., None]).sum(1).mean(),
            "distance": self.distance * hinge(long, short, self.margin, paired=self.as_published).mean(),
        }

    def _distances(self, anchor: Tensor, other: Tensor) -> Tensor:
        """(N, H), (A, H) -> (N, A), or as published of pairs (min(N, A),)."""
        if self.as_published:
            pairs = min(len(anchor), len(other))
            return pairwise_distance(anchor[:pairs], other[:pairs], eps=_EPS)
        return torch.cdist(anchor + _EPS, other, compute_mode="donot_use_mm_for_euclid_dist")

    def exceptions(self) -> Mapping[str, str]:
        """Pairs in the order of the batch, where they are wanted."""
        if not self.as_published:
            return {}
        reason = "the authors' triplets compare the i-th normal with the i-th anomalous sample of the batch"
        return {"test_the_order_of_the_batch_changes_no_loss": reason}

    def published(self) -> Published:
        """The authors' state dict, 34 tensors; all are used."""
        names = encoder_names("encoder", len(self.encoder.layers))
        names |= {"Amemory.memory_block": "anomalous.slots", "Nmemory.memory_block": "normal.slots"}
        modules = {
            "cls_head.mlp.0": "classify1",
            "cls_head.mlp.2": "classify2",
            "encoder_mu.0": "mean",
            "encoder_var.0": "log_variance",
        }
        names |= {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in modules.items() for p in ("weight", "bias")}
        return Published(names, source="https://github.com/henrryzh1/UR-DMU")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths; the number of heads leaves no trace and stays the published 4."""
        slots = (shapes["Amemory.memory_block"][0], shapes["Nmemory.memory_block"][0])
        dim, options = encoder_options(shapes)
        return {"rgb": dim}, {**options, "slots": slots, "classifier": shapes["cls_head.mlp.0.weight"][0]}


def _best_rows(values: Tensor, mask: Tensor, k: Tensor) -> Tensor:
    """Which segments have the k highest values; (N, T), (N, T) bool, (N,) -> (N, T) bool. No gradient."""
    order = values.detach().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(mask.shape[1], device=mask.device) < k[:, None]
    return torch.zeros_like(mask).scatter(1, order, taken)


def _mean_of(x: Tensor, rows: Tensor) -> Tensor:
    """Mean over the chosen segments; (N, T, H), (N, T) bool -> (N, H)."""
    return (x * rows[..., None]).sum(1) / rows.sum(1)[:, None]


def _bce(values: Tensor, target: float, mask: Tensor | None = None) -> Tensor:
    """Mean cross entropy of probabilities that should all be `target`, of those where the mask is True."""
    each = binary_cross_entropy(values, torch.full_like(values, target), reduction="none")
    return each.mean() if mask is None else (each * mask).sum() / mask.sum()
