"""Learning by feature magnitude (Tian et al., ICCV 2021, section 3.1): the loss of RTFM, TEVAD and S3R.

A segment's feature is large where the video is abnormal; a video stands for its k segments of largest magnitude.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.losses import both_classes, smoothness


@dataclass(frozen=True)
class MagnitudeLoss:
    """Weights and options of the terms.

    Args:
        topk: segments that a video stands for, or all where it has fewer.
        margin: magnitude that anomalous videos are drawn to.
        alpha: weight of the magnitudes.
        smooth, sparse: weights of the two regularisers.
        dropout: share of the segments that are passed over in the selection while training.
        as_published: pairs the i-th anomalous with the i-th normal video, and takes steps from the end of one video to
            the beginning of the next for steps inside a video.
    """

    topk: int = 3
    margin: float = 100.0
    alpha: float = 1e-4
    smooth: float = 8e-4
    sparse: float = 8e-3
    dropout: float = 0.7
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk must be at least 1, got {self.topk}")

    def terms(self, scores: Tensor, features: Tensor, bag: Bag, head: str, *, training: bool) -> dict[str, Tensor]:
        """Scores (B, T) and features (B, K, T, D) -> bce, magnitude, smooth and sparse.

        Raises ValueError on a batch of one class.
        """
        high, low = both_classes(bag, head)
        # anomalous first: in that order the authors' code draws the two selections
        score_high, size_high = self._best(scores[high], features[high], bag.mask[high], training)
        score_low, size_low = self._best(scores[low], features[low], bag.mask[low], training)
        best = torch.cat([score_low, score_high])
        labels = torch.cat([torch.zeros_like(score_low), torch.ones_like(score_high)])
        return {
            "bce": nn.functional.binary_cross_entropy(best, labels),
            "magnitude": self.alpha * self._magnitude(size_high, size_low),
            "smooth": self.smooth * self._smooth(scores[high], bag.mask[high]),
            # one norm over the anomalous videos together, where the paper writes a sum of scores
            "sparse": self.sparse * torch.linalg.vector_norm(scores[high] * bag.mask[high]),
        }

    def _best(self, scores: Tensor, features: Tensor, mask: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Mean score (n,), and norm of the mean feature of each crop (n, K), of the segments of largest magnitude.

        All crops share the choice, by the mean of their magnitudes.
        """
        magnitude = features.detach().norm(dim=-1).mean(1)  # (n, T)
        magnitude = magnitude * nn.functional.dropout(torch.ones_like(magnitude), self.dropout, training)
        chosen = magnitude.masked_fill(~mask, -torch.inf).topk(min(self.topk, mask.shape[1]), dim=1).indices
        there = mask.gather(1, chosen)  # (n, k)
        count = there.sum(1).clamp(min=1)
        score = (scores.gather(1, chosen) * there).sum(1) / count
        where = chosen[:, None, :, None].expand(-1, features.shape[1], -1, features.shape[3])
        mean = (features.gather(2, where) * there[:, None, :, None]).sum(2) / count[:, None, None]
        return score, mean.norm(dim=-1)

    def _magnitude(self, high: Tensor, low: Tensor) -> Tensor:
        """(|margin - high| + low)^2, the mean over pairs and crops; (A, K), (N, K) -> ()."""
        gap = (self.margin - high).abs()
        if self.as_published:
            n = min(len(high), len(low))
            return (gap[:n] + low[:n]).square().mean()
        # what pairs drawn at random come to on average, whatever the order of the batch
        return (gap[:, None] + low).square().mean()

    def _smooth(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Sum of squared steps of the anomalous videos; (A, T) -> ()."""
        inside = smoothness(scores, mask).sum()
        if not self.as_published:
            return inside
        last = scores.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
        return inside + (scores[1:, 0] - last[:-1]).square().sum()
