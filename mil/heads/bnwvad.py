"""BN-WVAD (Zhou et al., "BatchNorm-based Weakly Supervised Video Anomaly Detection", 2023,
https://arxiv.org/abs/2311.15367)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.conv import conv
from mil.layers.crops import crop_mean, fold, of_crops, spread, unfold
from mil.layers.distance_attention import DistanceEncoder, encoder_names, encoder_options
from mil.layers.norm import batch_norm
from mil.losses import both_classes, hinge
from mil.published import Published


@heads.register("bnwvad")
class BNWVADHead(Head):
    """Anomalous is what lies far from the mean that BatchNorm keeps; the score is not bounded.

    Segments go through UR-DMU's encoder and three convolutions of kernel 1 with BatchNorm between them. A segment's
    divergence is its Mahalanobis distance from the running mean, by the running variance, before each of the two
    BatchNorms. Its score is their sum times the sigmoid of the last convolution: 0 or more, without a limit, so a fixed
    threshold means nothing. Every crop is a sample of its own in the loss; padded segments take no part in any
    statistic.

    No term sees the sigmoid of an anomalous video: what it is there depends on the initial weights, and large or many
    steps can turn it against the distance. Hence the published 1000 steps of 1e-4 with clipped gradients.

    Args:
        dim: feature size D (1024 for I3D).
        hidden: feature size after the encoder.
        layers: of its transformer.
        heads: of its attention.
        attention: size of its queries, all heads together.
        ffn: inner size of its feed-forward.
        narrow: feature sizes before the first and the second BatchNorm.
        dropout: in the transformer.
        video_ratio: share of the segments of each anomalous video that count as anomalous.
        batch_ratio: share of the segments of all anomalous videos of a batch that count as anomalous as well.
        triplet: weights of the two triplet losses, margin 1.
        eps: added to the running variance. The authors add none, so a feature that never varies leads to no number.
        as_published: triplets of pairs by their place in the batch, and the last normal segments chosen by it too, as
            the authors' code has it. The default takes every chosen normal with every chosen anomalous segment, the
            mean over all ways to pair them, and leaves out the least divergent of the last normal segments.
    """

    paper = "Zhou et al., 2023"

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 512,
        layers: int = 2,
        heads: int = 4,
        attention: int = 512,
        ffn: int = 512,
        narrow: Sequence[int] = (32, 16),
        dropout: float = 0.0,
        video_ratio: float = 0.2,
        batch_ratio: float = 0.4,
        triplet: Sequence[float] = (5.0, 20.0),
        eps: float = 0.0,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(narrow) != 2 or len(triplet) != 2:
            raise ValueError(f"bnwvad has two BatchNorms, got narrow={list(narrow)}, triplet={list(triplet)}")
        self.video_ratio, self.batch_ratio = video_ratio, batch_ratio
        self.triplet, self.eps, self.as_published = tuple(triplet), eps, as_published
        self.encoder = DistanceEncoder(
            dim, hidden=hidden, layers=layers, heads=heads, attention=attention, ffn=ffn, dropout=dropout
        )
        self.conv1, self.bn1 = nn.Conv1d(hidden, narrow[0], 1), nn.BatchNorm1d(narrow[0])
        self.conv2, self.bn2 = nn.Conv1d(narrow[0], narrow[1], 1), nn.BatchNorm1d(narrow[1])
        self.conv3 = nn.Conv1d(narrow[1], 1, 1)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) >= 0: the mean over the crops, 0 where padded."""
        crops = bag.crops
        mask = spread(bag.mask, crops)
        first = conv(self.conv1, self.encoder(fold(bag.x), mask), mask)
        second = conv(self.conv2, batch_norm(self.bn1, first, mask).relu(), mask)
        chance = conv(self.conv3, batch_norm(self.bn2, second, mask).relu(), mask).squeeze(-1).sigmoid() * mask
        # by the statistics as this pass left them
        far1, far2 = self._divergence(self.bn1, first, mask), self._divergence(self.bn2, second, mask)
        scores = (far1 + far2) * chance
        return HeadOutput(
            crop_mean(unfold(scores, crops), bag.mask), {"chance": chance, "divergence1": far1, "divergence2": far2}
        )

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """The length of each normal video's sigmoids, and a triplet for each BatchNorm.

        Raises ValueError on a batch of one class.
        """
        crops = len(out.aux["chance"]) // len(bag.labels)
        mask = spread(bag.mask, crops)
        high, low = (of_crops(videos, crops) for videos in both_classes(bag, "bnwvad"))
        terms = {"normal": out.aux["chance"][low].norm(dim=1).mean()}
        for name, weight in zip(("1", "2"), self.triplet, strict=True):
            far = out.aux[f"divergence{name}"]
            negative = far[high]
            chosen = self._outliers(negative.detach(), mask[high])
            positive, there = self._farthest(far[low], mask[low])
            there = there & (there.cumsum(0) <= chosen.sum())
            terms[f"triplet{name}"] = weight * self._triplet(positive, there, negative.flatten(), chosen.flatten())
        return terms

    def _divergence(self, bn: nn.BatchNorm1d, x: Tensor, mask: Tensor) -> Tensor:
        """Distance from the running mean in running deviations; (N, T, C), (N, T) -> (N, T), 0 where padded."""
        # cloned: the next pass changes them in place
        mean, variance = (cast(Tensor, s).clone() for s in (bn.running_mean, bn.running_var))
        squares = ((x - mean).square() / (variance + self.eps)).sum(-1)
        # the root of a padded 0 would have no gradient
        return squares.masked_fill(~mask, 1).sqrt() * mask

    def _outliers(self, far: Tensor, mask: Tensor) -> Tensor:
        """The most divergent segments of each video, and of all; (A, T), (A, T) bool -> (A, T) bool, at least one."""
        counts, far = mask.sum(1), far.masked_fill(~mask, -torch.inf)
        each = (counts.double() * self.video_ratio).floor()
        rank = far.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        total = (counts.sum().double() * self.batch_ratio).floor().clamp(min=1)
        of_all = far.flatten().argsort(descending=True, stable=True).argsort().view_as(rank)
        return ((rank < each[:, None]) | (of_all < total)) & mask

    def _farthest(self, far: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The most divergent segment of every video, then every second, ...; (N, T), (N, T) bool -> (T * N,) and bool.

        A shorter video has no segment of the last ranks: False, and 0.
        """
        ranked = far.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).values.T  # (T, N)
        if not self.as_published:
            ranked = ranked.sort(dim=1, descending=True).values
        ranked = ranked.flatten()
        there = ranked > -torch.inf
        return ranked.masked_fill(~there, 0), there

    def _triplet(self, positive: Tensor, there: Tensor, negative: Tensor, chosen: Tensor) -> Tensor:
        """relu(1 + positive - negative), the mean over all or, as published, over pairs; (P,), (P,), (Q,), (Q,) -> ().

        Only of those `positive` that are `there`, and of those `negative` that are `chosen`.
        """
        if not self.as_published:
            return mean_hinge(negative, positive, chosen, there)
        (positive, there), (negative, chosen) = _to_front(positive, there), _to_front(negative, chosen)
        pairs = hinge(negative, positive, paired=True)
        both = there[: len(pairs)] & chosen[: len(pairs)]
        return (pairs * both).sum() / both.sum()

    def exceptions(self) -> Mapping[str, str]:
        """What the paper does otherwise than every other."""
        found = {"test_scores_lie_between_0_and_1": "the paper multiplies the sigmoid by a distance without a limit"}
        if self.as_published:
            found["test_the_order_of_the_batch_changes_no_loss"] = (
                "the authors pair chosen normal and anomalous segments by their place in the batch"
            )
        return found

    def published(self) -> Published:
        """The authors' state dict, 40 tensors; all are used."""
        names = encoder_names("encoder", len(self.encoder.layers))
        own = [f"{name}.{p}" for name in ("conv1", "bn1", "conv2", "bn2", "conv3") for p in ("weight", "bias")]
        counters = [f"{name}.num_batches_tracked" for name in ("bn1", "bn2")]
        own += [f"{name}.{s}" for name in ("bn1", "bn2") for s in ("running_mean", "running_var")] + counters
        names |= {f"normal_head.{name}": name for name in own}
        return Published(
            names,
            optional=frozenset(f"normal_head.{name}" for name in counters),
            source="https://github.com/cool-xuan/BN-WVAD",
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths; the number of heads leaves no trace and stays the published 4."""
        narrow = (shapes["normal_head.conv1.weight"][0], shapes["normal_head.conv2.weight"][0])
        dim, options = encoder_options(shapes)
        return {"rgb": dim}, {**options, "narrow": narrow}


def _to_front(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Those that are there first, in their order; (P,), (P,) bool -> both anew."""
    order = mask.int().argsort(descending=True, stable=True)
    return x[order], mask[order]


def mean_hinge(high: Tensor, low: Tensor, of_high: Tensor, of_low: Tensor, margin: float = 1.0) -> Tensor:
    """Mean of relu(margin - high + low) over all pairs, without a matrix of them; (Q,), (P,), (Q,), (P,) -> ().

    Only those are paired for which `of_high` and `of_low`, bool, are True: at least one of each. A `low` is beaten by
    too little by those `high` that lie below low + margin: how many, and their sum, are read off the sorted `high`.
    """
    goal = low + margin
    ordered = high.masked_fill(~of_high, torch.inf).sort().values  # the others last, below no goal
    below = torch.searchsorted(ordered.detach(), goal.detach())
    finite = ordered.masked_fill(ordered == torch.inf, 0)
    sums = torch.cat([ordered.new_zeros(1), finite.cumsum(0)]).index_select(0, below)
    return ((below * goal - sums) * of_low).sum() / (of_high.sum() * of_low.sum())
