"""Multiple instance self-training (Feng, Hong, Zheng, "MIST: Multiple Instance Self-Training Framework for Video
Anomaly Detection", CVPR 2021, https://arxiv.org/abs/2104.01633)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, Progress, Scan, heads
from mil.layers.crops import crop_mean
from mil.layers.kept import Staged
from mil.layers.per_video import PerVideo
from mil.losses import both_classes, hinge, topk_mean
from mil.published import Published

_EPS = 1e-8  # inside the logarithms


@heads.register("mist")
class MISTHead(Staged, Head):
    """A generator ranked by video labels writes pseudo labels; an encoder with guided attention learns them and scores.

    Stage one, the first share of the steps: the pseudo label generator, D -> 512 -> 32 -> 1, ReLU after the first
    layer, a sigmoid after the last. Of every video `sub_bags` sub-bags of `clips` consecutive clips are drawn, evenly
    spaced and moved together by a random shift (sparse continuous sampling); a sub-bag's score is the mean of its
    clips', a video stands for its best sub-bag, and each anomalous video must beat each normal one.

    At the border the generator labels the training videos: smoothed twice, each anomalous video stretched to [0, 1];
    0 for normal videos.

    Stage two: the encoder, class-weighted cross entropy towards these labels, on all clips of a bag. The scores are the
    encoder's from here on, and the generator's before.

    What frozen features leave out: the authors fine-tune C3D or I3D from end to end, and their attention is a map over
    the places of a frame. Here a layer on the clip's vector stands for the net, and attention has one place per clip, a
    gate: m + A m. The guided classification on the attention branch, with several detectors for each class, and its own
    cross entropy are theirs. Labels are kept for each segment: `data.resample` may be anything but "random".

    Args:
        dim: feature size D (4096 for C3D, 1024 for I3D).
        hidden: widths of the generator's two hidden layers.
        width: of the encoder's layers.
        detectors: for each of the two classes, in the attention branch.
        dropout: of the generator and of the encoder.
        sub_bags, clips: how many of a video, and how many clips in each (32 of 7: the code, for ShanghaiTech).
        sparse: weight of the mean score of anomalous videos.
        smooth: clips in a window of the smoothing, odd.
        weights: of the anomalous and of the normal class in the cross entropy.
        first_stage: share of the steps that stage one has; 1 leaves out the second.
        topk: as_published: how many clips a video stands for.
        as_published: a video stands for its `topk` highest clips of all that were drawn, in whichever sub-bags.
    """

    paper = "Feng et al., CVPR 2021"
    lookback = 1  # each segment by itself
    remembers = True

    def __init__(
        self,
        dim: int,
        *,
        hidden: Sequence[int] = (512, 32),
        width: int = 1024,
        detectors: int = 8,
        dropout: tuple[float, float] = (0.6, 0.8),
        sub_bags: int = 32,
        clips: int = 7,
        sparse: float = 0.01,
        smooth: int = 5,
        weights: tuple[float, float] = (1.0, 1.0),
        first_stage: float = 0.5,
        topk: int = 7,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(hidden) != 2 or min(*hidden, width, detectors, sub_bags, clips, topk) < 1:
            raise ValueError(
                "mist needs two hidden widths, and width, detectors, sub_bags, clips and topk of at least 1, got "
                f"{hidden=}, {width=}, {detectors=}, {sub_bags=}, {clips=}, {topk=}"
            )
        if smooth < 1 or smooth % 2 == 0 or not 0 < first_stage <= 1:
            raise ValueError(f"mist needs an odd smooth and first_stage in (0, 1], got {smooth=}, {first_stage=}")
        self.sub_bags, self.clips, self.sparse, self.smooth = sub_bags, clips, sparse, smooth
        self.weights, self.first_stage, self.topk, self.as_published = weights, first_stage, topk, as_published
        self.generator = nn.Sequential(
            nn.Linear(dim, hidden[0]),
            nn.ReLU(),
            nn.Dropout(dropout[0]),
            nn.Linear(hidden[0], hidden[1]),
            nn.Dropout(dropout[0]),
            nn.Linear(hidden[1], 1),
            nn.Sigmoid(),
        )
        for layer in self.generator:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.encoder = Encoder(dim, width, detectors, dropout[1])
        self.pseudo = PerVideo()

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1] of the stage's part: the mean over the crops, 0 where padded."""
        if not self.stage:  # 0 the generator's, 1 the encoder's
            return HeadOutput(crop_mean(self.generator(bag.x).squeeze(-1), bag.mask))
        classes, guided = self.encoder(bag.x)  # (B, K, T, 2) each
        return HeadOutput(crop_mean(classes[..., 1], bag.mask), {"classes": classes, "guided": guided})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Of the part whose stage it is. Raises ValueError on a batch of one class, in stage two without `index`."""
        high, low = both_classes(bag, "mist")
        if self.stage:
            wanted = self.pseudo.read(bag.index, bag.mask.shape[1]) * (bag.labels == 1)[:, None]
            return {name: self._cross_entropy(out.aux[name], wanted, bag.mask).mean() for name in ("classes", "guided")}
        drawn = out.scores.gather(1, self._drawn(bag.mask).flatten(1))  # (B, sub-bags * clips)
        if self.as_published:
            best = topk_mean(drawn, torch.ones_like(drawn, dtype=torch.bool), self.topk)
        else:
            best = drawn.reshape(len(drawn), self.sub_bags, self.clips).mean(2).amax(1)
        return {"rank": hinge(best[high], best[low]).mean(), "sparse": self.sparse * drawn[high].mean()}

    def _drawn(self, mask: Tensor) -> Tensor:
        """Sparse continuous sampling, (B, T) -> (B, sub-bags, clips) places; a short video's last clip is repeated.

        Only in training are the sub-bags moved. A clip that lies in several is scored once for all of them.
        """
        lengths = mask.sum(1)
        free = (lengths - self.clips).clamp(min=0)
        step = torch.arange(self.sub_bags, device=mask.device)
        starts = free[:, None] * step // self.sub_bags
        if self.training:
            room = torch.div(free, self.sub_bags + 1, rounding_mode="floor").clamp(min=1)
            starts = starts + (torch.rand(len(room), device=mask.device) * room).long()[:, None]
        places = starts[..., None] + torch.arange(self.clips, device=mask.device)
        return torch.minimum(places, (lengths - 1).clamp(min=0)[:, None, None])

    def _cross_entropy(self, classes: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        """Class-weighted, of probabilities (B, K, T, 2) towards (B, T) -> (B,), a mean over each video's clips."""
        normal, anomalous = (classes + _EPS).log().unbind(-1)
        wanted = wanted[:, None]
        each = -self.weights[0] * wanted * anomalous - self.weights[1] * (1 - wanted) * normal
        return (each.mean(1) * mask).sum(1) / mask.sum(1).clamp(min=1)

    # -- stages --------------------------------------------------------------------------------------------------------

    def refresh_due(self, progress: Progress) -> bool:
        """Once, between the stages."""
        return not self.stage and progress.step >= max(int(self.first_stage * progress.steps), 1)

    def refresh(self, progress: Progress, scan: Scan) -> None:
        """Keeps the generator's labels of every training video."""
        for bag in scan():
            labels = crop_mean(self.generator(bag.x).squeeze(-1), bag.mask)
            for _ in range(2):
                labels = moving_mean(labels, self.smooth)
            low, high = labels.min(), labels.max()
            if high > low:  # a video of one clip keeps its score
                labels = (labels - low) / (high - low)
            self.pseudo.write(bag.index, labels * (bag.labels == 1)[:, None])
        self.stage.fill_(1)

    def exceptions(self) -> Mapping[str, str]:
        """One part trains at a time."""
        return {
            "test_losses_are_named_finite_scalars_and_reach_every_parameter": "the encoder's labels are made by the "
            "generator when its stage is over; a new head is in the generator's stage"
        }

    # -- the authors' files --------------------------------------------------------------------------------------------

    def published(self) -> Published:
        """The pseudo label generator's. The encoder's hold a whole C3D or I3D and do not fit frozen features."""
        own = self.state_dict()
        ours = [name for name in own if name.startswith("generator.")]
        return Published(
            {name.replace("generator.", "regressor.", 1): name for name in ours},
            extra=frozenset(own) - frozenset(ours),
            source="fjchange/MIST_VAD, stage1training/MIL_Generator.py",
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size and widths, from the generator's kernels."""
        (first, dim), second = shapes["regressor.0.weight"], shapes["regressor.3.weight"][0]
        return {"rgb": dim}, {"hidden": (first, second)}


class Encoder(nn.Module):
    """The self-guided attention encoder on vectors: features m, gated by an attention branch that classifies too.

    Args:
        dim: feature size D.
        width: of m, and of the attention branch.
        detectors: for each class.
        dropout: before the last layer.
    """

    def __init__(self, dim: int, width: int, detectors: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, width), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, 2 * detectors), nn.ReLU()
        )  # the authors' take the net one block earlier than m
        self.guide = nn.Linear(2 * detectors, 2 * detectors)
        self.gate = nn.Linear(2 * detectors, 1)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> probabilities of normal and anomalous (..., 2), of the features and of the attention branch."""
        m, f = self.body(x), self.branch(x)
        guided = self.guide(f).unflatten(-1, (2, -1)).mean(-1)  # the mean over each class's detectors
        m = m + self.gate(f).sigmoid() * m
        return self.out(self.drop(m)).softmax(-1), guided.softmax(-1)


def moving_mean(x: Tensor, window: int) -> Tensor:
    """Mean over a window around each clip, the first and last values repeated beyond the ends; (B, T) -> (B, T)."""
    sides = (window // 2, window // 2)
    return nn.functional.avg_pool1d(nn.functional.pad(x[:, None], sides, mode="replicate"), window, stride=1)[:, 0]
