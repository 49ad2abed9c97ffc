"""The I3D port of deep MIL ranking (https://github.com/Roc-Ng/DeepMIL), which most comparisons on I3D features use."""

from collections.abc import Sequence

from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import HeadOutput, heads
from mil.heads.ranking import RankingHead
from mil.layers.crops import crop_mean
from mil.losses import both_classes, hinge, smoothness, sparsity, topk_mean
from mil.published import Published


@heads.register("deepmil")
class DeepMILHead(RankingHead):
    """Deep MIL ranking as ported to I3D features: ReLU twice, the i-th normal video against the i-th anomalous one.

    It differs from `ranking` in five places: ReLU after the second layer too, Xavier-uniform kernels, hinges of pairs
    (i-th with i-th), every term a mean over pairs or anomalous videos, and dropout after the sigmoid as well: a score
    survives with probability 0.4 and is then 2.5 times what it was.

    Args:
        dim: feature size D (1024 for I3D).
        hidden: widths of the two hidden layers.
        dropout: after each hidden layer.
        smooth, sparse: weights of the two regularisers, 8e-5 each.
        as_published: dropout after the sigmoid too; without it scores stay in [0, 1] while training.
    """

    paper = "port of Sultani et al., CVPR 2018 to I3D"
    lookback = 1  # each segment by itself

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 32),
        dropout: float = 0.6,
        smooth: float = 8e-5,
        sparse: float = 8e-5,
        as_published: bool = False,
    ) -> None:
        super().__init__(dim, hidden=hidden, dropout=dropout, smooth=smooth, sparse=sparse, as_published=as_published)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T): the mean over the crops, 0 where padded."""
        h = self.drop(self.fc1(bag.x).relu())
        h = self.drop(self.fc2(h).relu())
        scores = self.fc3(h).squeeze(-1).sigmoid()  # (B, K, T)
        return HeadOutput(crop_mean(self.drop(scores) if self.as_published else scores, bag.mask))

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Hinges of pairs, smoothness and sparsity. Raises ValueError on a batch of one class."""
        high, low = both_classes(bag, "deepmil")
        best = topk_mean(out.scores, bag.mask, 1)  # (B,)
        return {
            "rank": hinge(best[high], best[low], paired=True).mean(),
            "smooth": self.smooth * smoothness(out.scores, bag.mask)[high].mean(),
            "sparse": self.sparse * sparsity(out.scores, bag.mask)[high].mean(),
        }

    def published(self) -> Published:
        """The port's state dict."""
        return Published(super().published().names, source="https://github.com/Roc-Ng/DeepMIL")
