"""TCN-IBL (Zhang, Qing, Miao, "Temporal Convolutional Network with Complementary Inner Bag Loss for Weakly Supervised
Anomaly Detection", ICIP 2019). No code was released: this is built from the paper's description."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, unfold
from mil.losses import both_classes, hinge, smoothness, sparsity, topk_mean


@heads.register("tcn_ibl")
class TCNIBLHead(Head):
    """Causal convolutions encode what came before; ranking, and a gap between the best and worst score of each bag.

    Built from the paper's description, for no code was released: a temporal convolutional network over the preceding
    segments, one fully connected layer, a sigmoid; Sultani's ranking loss and the complementary inner bag loss. What is
    not known is ours: the number of layers, their widths, kernels and dilations, the residual paths, the dropout, and
    the weight 1 of the inner bag loss. A score depends on its own segment and the `receptive_field` - 1 before it,
    never on later ones; before a video's beginning stand zeros.

    The losses do not say where in an anomalous video its best score stands: one that rises only after an event
    satisfies them too. The longer the receptive field, the likelier that is.

    Args:
        dim: feature size D (4096 for C3D fc6).
        channels: width of every convolution; the i-th has dilation 2^i.
        kernel: segments that each convolution joins.
        dropout: after each convolution.
        inner: weight of the inner bag loss.
        smooth, sparse: weights of the two regularisers of anomalous videos, as in Sultani et al. 2018.

    Attributes:
        receptive_field: of how many segments, the last one its own, a score tells.
    """

    paper = "Zhang et al., ICIP 2019"

    def __init__(
        self,
        dim: int,
        *,
        channels: Sequence[int] = (512, 128, 32),
        kernel: int = 2,
        dropout: float = 0.6,
        inner: float = 1.0,
        smooth: float = 8e-5,
        sparse: float = 8e-5,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1 or kernel < 1:
            raise ValueError(
                f"tcn_ibl needs channels and a kernel of at least 1, got channels={list(channels)}, kernel={kernel}"
            )
        self.inner, self.smooth, self.sparse = inner, smooth, sparse
        widths = [dim, *channels]
        self.blocks = nn.Sequential(
            *(_Block(before, after, kernel, 2**i, dropout) for i, (before, after) in enumerate(pairwise(widths)))
        )
        self.fc = nn.Linear(widths[-1], 1)
        self.receptive_field = 1 + (kernel - 1) * (2 ** len(channels) - 1)

    @property
    def lookback(self) -> int:
        """The receptive field."""
        return int(self.receptive_field)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded.

        The padding stands behind a video's last segment, and what is causal never looks there.
        """
        logits: Tensor = self.fc(self.blocks(fold(bag.x))).squeeze(-1)  # (B K, T)
        return HeadOutput(crop_mean(unfold(logits.sigmoid(), bag.crops), bag.mask))

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Every anomalous video's best against every normal one's, the gaps inside the bags, and the regularisers.

        Raises ValueError on a batch of one class.
        """
        high, low = both_classes(bag, "tcn_ibl")
        best = topk_mean(out.scores, bag.mask, 1)  # (B,)
        gap = best + topk_mean(-out.scores, bag.mask, 1)  # highest - lowest
        return {
            "rank": hinge(best[high], best[low]).mean(),
            "inner_anomalous": self.inner * (1 - gap[high]).relu().mean(),
            "inner_normal": self.inner * gap[low].mean(),
            "smooth": self.smooth * smoothness(out.scores, bag.mask)[high].mean(),
            "sparse": self.sparse * sparsity(out.scores, bag.mask)[high].mean(),
        }


class _Block(nn.Module):
    """relu(x + drop(relu(causal convolution(x)))); (N, T, before) -> (N, T, after).

    The convolution's last tap is the segment itself, zeros stand before the first. Where the widths differ, x goes
    through a linear layer.
    """

    def __init__(self, before: int, after: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.conv = nn.Conv1d(before, after, kernel, dilation=dilation)
        self.skip = nn.Linear(before, after) if before != after else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(nn.functional.pad(x.transpose(1, 2), (self.past, 0))).transpose(1, 2)
        joined: Tensor = self.skip(x) + self.drop(y.relu())
        return joined.relu()
