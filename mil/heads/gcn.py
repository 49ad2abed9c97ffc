"""Graph convolutional label noise cleaner (Zhong, Li, Kong, Liu, Li, Li, "Graph Convolutional Label Noise Cleaner:
Train a Plug-and-play Action Classifier for Anomaly Detection", CVPR 2019, https://arxiv.org/abs/1903.07256)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, Progress, Scan, heads
from mil.layers.causal import gaps
from mil.layers.crops import crop_mean
from mil.layers.kept import Staged
from mil.layers.per_video import PerVideo

_NEAR = 4  # as_published: segments on each side of a certain one that are in the graph with it


@heads.register("gcn")
class GCNHead(Staged, Head):
    """A classifier and a graph network that cleans its labels are trained in turns; the classifier scores.

    Training has 1 + 2 * `rounds` stages, equal shares of the steps, and in each of them one part alone:

    - stage 0: the action classifier; every segment has its video's label;
    - odd stages: the cleaner, on what the classifier predicted when the stage began. Towards the predictions of the
      most certain segments (direct supervision, of a normal video all, towards 0), and of anomalous videos towards a
      running mean of the cleaner's own outputs (indirect supervision, by temporal ensembling);
    - even stages: the classifier, on the cleaner's outputs when the stage began, each anomalous video's stretched to
      [0, 1]; 0 for normal videos.

    Certain are the segments whose logits vary least over the crops (each stage begins with a look at all crops). A
    single crop has no variance: there the most certain are those whose prediction is farthest from 1/2.

    The authors' classifiers are C3D and TSN nets, trained on as a whole (in Caffe, solvers unpublished). On cached
    features a small MLP stands for them. Their cleaner is `cleaner`, tensor for tensor; its files alone score nothing,
    so that there is no format to import. It sees the mean of the crops that a bag holds: with `train.samples: crops`
    one crop at a time, as theirs. Theirs begins anew in each round, this one goes on. Labels are kept for each segment:
    `data.resample` may be anything but "random".

    Args:
        dim: feature size D (4096 for C3D fc6, 1024 for TSN).
        hidden: the cleaner's widths: of two layers, then of its graph convolutions.
        classifier: width of the classifier's hidden layer.
        dropout: in both parts.
        rounds: how often labels are cleaned and the classifier trained on them.
        certain: share of an anomalous video's segments that are supervised directly.
        alpha: share of the old mean in the temporal ensemble.
        as_published: the graph holds certain segments and four neighbours on each side, not the whole video; where
            fewer than four are certain, the two of the lowest predictions are taken instead; the cleaner learns each
            normal video's own first predictions instead of 0; a video's cleaned labels are logits inside the graph
            among old probabilities outside of it; the cleaner's loss is summed over the batch.
    """

    paper = "Zhong et al., CVPR 2019"
    lookback = 1  # each segment by itself
    remembers = True
    compares = False

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 128, 32),
        classifier: int = 512,
        dropout: float = 0.6,
        rounds: int = 2,
        certain: float = 0.3,
        alpha: float = 0.5,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 3 or min(*hidden, classifier, rounds) < 1 or not (0 <= certain <= 1 and 0 <= alpha <= 1):
            raise ValueError(
                "gcn needs three hidden widths, classifier >= 1, rounds >= 1, certain and alpha in [0, 1], got "
                f"{hidden=}, {classifier=}, {rounds=}, {certain=}, {alpha=}"
            )
        self.rounds, self.certain, self.alpha, self.as_published = rounds, certain, alpha, as_published
        self.classifier = nn.Sequential(
            nn.Linear(dim, classifier), nn.ReLU(), nn.Dropout(dropout), nn.Linear(classifier, 1)
        )
        self.cleaner = Cleaner(dim, hidden, dropout)
        self.predicted, self.sure = PerVideo(), PerVideo()  # the classifier's, and 1 where it is certain
        self.ensemble, self.cleaned = PerVideo(), PerVideo()
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None  # of this step, for `after_step`

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the classifier's, the mean over the crops, 0 where padded."""
        logits = self.classifier(bag.x).squeeze(-1)  # (B, K, T)
        return HeadOutput(crop_mean(logits.sigmoid(), bag.mask), {"logits": logits})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Of the part whose turn it is. Raises ValueError for a bag without `index` after stage 0."""
        stage, anomalous = int(self.stage), (bag.labels == 1)[:, None]
        if stage % 2 == 0:
            kept = self.cleaned.read(bag.index, bag.mask.shape[1]) if stage else torch.ones_like(out.scores)
            wanted = (kept * anomalous)[:, None].expand_as(out.aux["logits"])
            each = _cross_entropy(out.aux["logits"], wanted).mean(1)
            return {"classifier": _mean(each, bag.mask).mean()}
        length = bag.mask.shape[1]
        predicted, ensemble = self.predicted.read(bag.index, length), self.ensemble.read(bag.index, length)
        sure = (self.sure.read(bag.index, length) > 0) & bag.mask
        nodes = self._nodes(sure, bag.mask)
        logits = self.cleaner(bag.x.mean(1), nodes)
        if self.training and bag.index is not None:
            self._seen = bag.index, logits.detach().sigmoid(), nodes
        normal = torch.zeros_like(predicted)
        if self.as_published:  # the first n predictions, though the graph's n segments may lie elsewhere
            normal = predicted.gather(1, (nodes.cumsum(1) - 1).clamp(min=0))
        towards = torch.where(anomalous, predicted, normal)
        direct = _mean(_cross_entropy(logits, towards), torch.where(anomalous, sure, nodes))
        indirect = _mean((logits.sigmoid() - ensemble).abs(), nodes) * anomalous[:, 0]
        scale = len(bag.labels) if self.as_published else 1
        return {"direct": scale * direct.mean(), "indirect": scale * indirect.mean()}

    # -- stages --------------------------------------------------------------------------------------------------------

    def _stage_at(self, progress: Progress) -> int:
        stages = 1 + 2 * self.rounds
        return min(progress.step * stages // progress.steps, stages - 1)

    def refresh_due(self, progress: Progress) -> bool:
        """At the beginning of every stage but the first."""
        return self._stage_at(progress) > int(self.stage)

    def refresh(self, progress: Progress, scan: Scan) -> None:
        """Keeps what the part whose turn is over says of every training video: predictions, or cleaned labels."""
        for stage in range(int(self.stage) + 1, self._stage_at(progress) + 1):
            for bag in scan():
                if stage % 2:
                    self._predict(bag)
                else:
                    self._clean(bag)
            self.stage.fill_(stage)

    def after_step(self, progress: Progress) -> None:
        """Temporal ensembling: what the cleaner said in this step joins the running mean of each video it saw."""
        if self._seen is None:
            return
        index, said, nodes = self._seen
        self._seen = None
        # crops of one video in a batch count as if they came in turn: the weight of each falls with those after it
        same, joins = index[:, None] == index, nodes.to(said.dtype)
        times, later = same.to(said.dtype) @ joins, same.triu(1).to(said.dtype) @ joins  # (B, T)
        weights = (1 - self.alpha) * self.alpha**later * joins
        new = self.alpha**times * self.ensemble.read(index, said.shape[1]) + same.to(said.dtype) @ (weights * said)
        # the same row for all of them, to the bit: which is written last is left to the device
        place = torch.arange(len(index), device=index.device)
        first = torch.where(same, place, len(index)).amin(1)
        self.ensemble.put(index, new[first])

    def _predict(self, bag: Bag) -> None:
        logits = self.classifier(bag.x).squeeze(-1)[0]  # (K, T)
        predicted = logits.mean(0).sigmoid()
        doubt = logits.var(0, correction=0) if len(logits) > 1 else -(predicted - 0.5).abs()
        count = len(doubt)
        sure = doubt <= doubt.sort().values[min(int(self.certain * count), count - 1)]
        if self.as_published and int(sure.sum()) < 4:
            sure = torch.zeros_like(sure)
            sure[predicted.argsort()[:2]] = True
        self.predicted.write(bag.index, predicted[None])
        self.ensemble.write(bag.index, predicted[None])
        self.sure.write(bag.index, sure[None])

    def _clean(self, bag: Bag) -> None:
        sure = self.sure.read(bag.index, bag.mask.shape[1]) > 0
        nodes = self._nodes(sure, bag.mask)
        logits = self.cleaner(bag.x.mean(1), nodes)
        labels = logits.sigmoid()
        if self.as_published:
            labels = torch.where(nodes, logits, self.predicted.read(bag.index, bag.mask.shape[1]))
        low, high = labels.min(), labels.max()
        # nothing to stretch in a video of one segment: it keeps its probability
        labels = (labels - low) / (high - low) if high > low else logits.sigmoid()
        self.cleaned.write(bag.index, labels * (bag.labels == 1)[:, None])

    def _nodes(self, sure: Tensor, mask: Tensor) -> Tensor:
        """Which segments are in the graph, (B, T)."""
        if not self.as_published:
            return mask
        wide = nn.functional.max_pool1d(sure[:, None].float(), 2 * _NEAR + 1, stride=1, padding=_NEAR)[:, 0] > 0
        return wide & mask

    def exceptions(self) -> Mapping[str, str]:
        """One part trains at a time."""
        return {
            "test_losses_are_named_finite_scalars_and_reach_every_parameter": "classifier and cleaner are trained in "
            "turns (the paper's alternate optimisation); a new head is in the classifier's first turn"
        }


class Cleaner(nn.Module):
    """The label noise cleaner: two layers, then graph convolutions on two graphs; the mean of both is the logit.

    Names and shapes are those of the authors' state dict.
    """

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        first, second, third = hidden
        self.fc1, self.fc2 = nn.Linear(dim, first), nn.Linear(first, second)
        self.gc1, self.gc2 = GraphLayer(second, third), GraphLayer(third, 1)  # temporal consistency
        self.gc3, self.gc4 = GraphLayer(second, third), GraphLayer(third, 1)  # feature similarity
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, nodes: Tensor) -> Tensor:
        """x (B, T, D), which segments are in the graph (B, T) bool -> logits (B, T), 0 outside of it."""
        h = self.drop(self.fc1(x).relu())
        h = self.drop(self.fc2(h).relu())
        near, alike = consistency(nodes, h), similarity(h, nodes)
        by_time = self.gc2(self.gc1(h, near).relu(), near)
        by_looks = self.gc4(self.gc3(h, alike).relu(), alike)
        return (by_time + by_looks).squeeze(-1) / 2 * nodes  # type: ignore[no-any-return]


class GraphLayer(nn.Module):
    """A x W, without a bias."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, out).uniform_(-(out**-0.5), out**-0.5))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(B, T, dim), (B, T, T) -> (B, T, out)."""
        return adjacency @ (x @ self.weight)


def consistency(nodes: Tensor, like: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 of A_ij = exp(-|i - j|), i and j places in the video; (B, T) bool, (B, T, H) -> (B, T, T)."""
    near = (-gaps(like.shape[1], like)).exp().to(like.dtype)
    return _normalized(near.expand(len(nodes), -1, -1), nodes)


def similarity(h: Tensor, nodes: Tensor) -> Tensor:
    """The same of A_ij = exp(h_i h_j - max_k h_i h_k), not symmetric; (B, T, H), (B, T) bool -> (B, T, T)."""
    alike = (h @ h.transpose(1, 2)).masked_fill(~nodes[:, None, :], -torch.inf)
    return _normalized((alike - alike.max(dim=2, keepdim=True).values).exp(), nodes)


def _normalized(a: Tensor, nodes: Tensor) -> Tensor:
    a = a * nodes[:, :, None] * nodes[:, None, :]
    root = a.sum(2).masked_fill(~nodes, 1).rsqrt()  # sums of rows, at least 1 each
    return a * root[:, :, None] * root[:, None, :]


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of each video over some of its segments; (B, T), (B, T) bool -> (B,)."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)
