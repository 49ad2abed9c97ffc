"""MGFN (Chen, Liu, Zhang, Fok, Qi, Wu, "MGFN: Magnitude-Contrastive Glance-and-Focus Network for Weakly-Supervised
Video Anomaly Detection", AAAI 2023, https://arxiv.org/abs/2211.15098)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.conv import conv
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.mgfn_blocks import Block, Focus, Glance, Stage, authors_names
from mil.losses import both_classes, smoothness
from mil.published import Published


@heads.register("mgfn")
class MGFNHead(Head):
    """Glances at the whole video, then focuses on near segments; feature magnitudes set the classes apart.

    The L2 norm of each segment's features joins them (feature amplification); it is computed here. The first stage has
    glance blocks (attention over the whole video), the others focus blocks (convolutions of shared kernels). Of each
    video the `topk` segments of largest magnitude, which dropout hides some of while training, give its score and its
    vector of magnitudes, of which the loss compares those of two videos; a video of fewer segments repeats its last.

    The magnitudes selected by are L2 norms, those compared L1 norms, both of normalised features; the sparsity is one
    L2 norm over the scores of all videos of a class, the smoothness a sum over all videos: as the authors' code.

    Args:
        dim: feature size D (2048 for I3D-ResNet50), without the norm.
        dims: width of each stage; multiples of head_dim.
        depths: blocks of each stage.
        head_dim: channels of an attention head.
        kernel: segments that a focus block's convolution spans, odd.
        amplify: weight of the norm's own layer.
        topk: segments that stand for a video.
        dropout: share of the segments that selection is kept from seeing while training.
        margin: distance of the magnitudes of an anomalous and a normal video beyond which they are left alone.
        apart: weight of the contrast between the classes (0.001 * 0.001).
        together: weight of the two contrasts within a class.
        smooth, sparse: weights of the two regularisers.
        as_published: the loss as the authors' code computes it. Contrast: the i-th anomalous with the i-th normal video
            of the batch, where the default takes every pair. Contrasts within a class: the second with the first half
            of a list of all videos' first crops, then all second crops, and so on, so that with an even number of
            crops only crops of the same video are compared, where the default compares every two videos of a class,
            crop with like crop. Sparsity: of the normal videos, where the default takes the anomalous ones.
    """

    paper = "Chen et al., AAAI 2023"

    def __init__(
        self,
        dim: int,
        *,
        dims: Sequence[int] = (64, 128, 1024),
        depths: Sequence[int] = (3, 3, 2),
        head_dim: int = 64,
        kernel: int = 5,
        amplify: float = 0.1,
        topk: int = 3,
        dropout: float = 0.7,
        margin: float = 200.0,
        apart: float = 1e-6,
        together: float = 1e-3,
        smooth: float = 8e-4,
        sparse: float = 8e-3,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if len(dims) != len(depths) or len(dims) < 2 or min(depths) < 1 or any(d % head_dim or d < 1 for d in dims):
            raise ValueError(
                "mgfn needs two or more stages, each of one or more blocks and a width that is a multiple of head_dim, "
                f"got dims={list(dims)}, depths={list(depths)}, {head_dim=}"
            )
        if topk < 1 or kernel % 2 == 0:
            raise ValueError(f"mgfn needs topk >= 1 and an odd kernel, got {topk=}, {kernel=}")
        self.amplify, self.topk, self.margin = amplify, topk, margin
        self.apart, self.together, self.smooth, self.sparse = apart, together, smooth, sparse
        self.as_published, self.depths = as_published, tuple(depths)
        self.tokens = nn.Conv1d(dim, dims[0], 3, padding=1)
        self.magnitude = nn.Conv1d(1, dims[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for s, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            n = width // head_dim
            blocks = [Block(width, Focus(width, n, kernel) if s else Glance(width, n)) for _ in range(depth)]
            self.stages.append(Stage(width, blocks, dims[s + 1] if s + 1 < len(dims) else None))
        self.norm = nn.LayerNorm(dims[-1])
        self.fc = nn.Linear(dims[-1], 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]: the mean over the crops, 0 where padded.

        aux: features (B, K, T, width) before and after the last normalisation.
        """
        x, mask = fold(bag.x), spread(bag.mask, bag.crops)
        h = conv(self.tokens, x, mask) + self.amplify * conv(self.magnitude, x.norm(dim=-1, keepdim=True), mask)
        for stage in self.stages:
            h = stage(h, mask)
        h = unfold(h, bag.crops)  # (B, K, T, width)
        features = self.norm(h)
        scores = self.fc(features).squeeze(-1).sigmoid()
        return HeadOutput(crop_mean(scores, bag.mask), {"before": h, "features": features})

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy, contrasts of magnitudes, two regularisers. Raises ValueError on a batch of one class."""
        high, low = both_classes(bag, "mgfn")
        videos, m = self._select(out, bag)
        apart, together = self._contrasts(m[high], m[low])
        return {
            "bce": nn.functional.binary_cross_entropy(videos, bag.labels),
            "apart": self.apart * apart,
            "together": self.together * together,
            "smooth": self.smooth * smoothness(out.scores, bag.mask).sum(),
            "sparse": self.sparse * out.scores[low if self.as_published else high].norm(),
        }

    def _select(self, out: HeadOutput, bag: Bag) -> tuple[Tensor, Tensor]:
        """Scores of videos (B,), and their magnitudes at the selected segments, largest first, (B, K, topk)."""
        keep, mask = torch.ones_like(out.scores), bag.mask
        for one in (bag.high, bag.low):  # in this order the authors' code draws
            keep[one] = self.drop(keep[one])
        found = (self._magnitude(out.aux["before"]) * keep).masked_fill(~mask, -torch.inf)
        top = found.topk(min(self.topk, mask.shape[1]), dim=1).indices
        counts = mask.sum(1, keepdim=True).clamp(max=self.topk)
        # beyond a short video's own segments, its last selected one again
        order = torch.arange(self.topk, device=mask.device).expand(len(mask), -1)
        at = top.gather(1, torch.minimum(order, counts - 1))
        videos = (out.scores.gather(1, at) * (order < counts)).sum(1) / counts.squeeze(1)
        sizes = out.aux["features"].norm(p=1, dim=-1)  # (B, K, T)
        return videos, sizes.gather(2, at[:, None].expand(-1, sizes.shape[1], -1))

    @torch.no_grad()
    def _magnitude(self, h: Tensor) -> Tensor:
        """L2 norms of the normalised features, the mean over the crops, (B, K, T, width) -> (B, T), in float64.

        At first the norm has every vector at nearly the same length, and the rounding of float32 would select.
        """
        norm = self.norm
        weight, bias = norm.weight.double(), norm.bias.double()
        features = nn.functional.layer_norm(h.double(), norm.normalized_shape, weight, bias, norm.eps)
        found: Tensor = torch.linalg.vector_norm(features, dim=-1).mean(1)
        return found

    def _contrasts(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Between classes and, summed, within both; magnitudes (A, K, topk) and (N, K, topk) -> (), ()."""
        distance = nn.functional.pairwise_distance
        if self.as_published:
            n = min(len(high), len(low))
            between = distance(high[:n], low[:n])
            together = sum((_halves(m.transpose(0, 1).flatten(0, 1)) for m in (high, low)), high.new_zeros(()))
        else:
            between = distance(high[:, None], low)  # (A, N, K)
            together = sum((_others(m) for m in (high, low)), high.new_zeros(()))
        return (self.margin - between).relu().square().mean(), together

    def exceptions(self) -> Mapping[str, str]:
        """Near ties in the selection, and with `as_published` comparisons by position."""
        found = {
            "test_gradients_agree_with_finite_differences": "the paper selects by the length of normalised vectors, "
            "which is nearly the same for all of an untrained net: the smallest step selects other segments"
        }
        if self.as_published:
            found["test_the_order_of_the_batch_changes_no_loss"] = "the authors' code compares magnitudes by position"
        return found

    def published(self) -> Published:
        """The authors' state dict, 145 tensors at the published depths."""
        names = {"to_tokens": "tokens", "to_mag": "magnitude", "to_logits.0": "norm", "fc": "fc"}
        names = {f"{a}.{p}": f"{b}.{p}" for a, b in names.items() for p in ("weight", "bias")}
        names |= authors_names(self.depths)
        counters = frozenset(name for name in names if name.endswith("num_batches_tracked"))
        return Published(names, optional=counters, source="https://github.com/carolchenyx/MGFN., models/mgfn.py")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size, widths, depths and the focus blocks' heads and kernel, from the names and shapes."""
        depths: list[int] = []
        while f"stages.{len(depths)}.0.layers.0.0.weight" in shapes:
            s = len(depths)
            depths.append(sum(f"stages.{s}.0.layers.{i}.0.weight" in shapes for i in range(len(shapes))))
        dims = tuple(shapes[f"stages.{s}.0.layers.0.0.weight"][0] for s in range(len(depths)))
        heads_of_second, _, kernel = shapes["stages.1.0.layers.0.1.rel_pos.weight"]
        options = {"dims": dims, "depths": tuple(depths), "head_dim": dims[1] // heads_of_second, "kernel": kernel}
        return {"rgb": shapes["to_tokens.weight"][1]}, options


def _halves(m: Tensor) -> Tensor:
    """Mean squared distance of the second half of the rows to the first; (R, topk) -> (), 0 for a single row."""
    half = len(m) // 2
    if not half:
        return m.new_zeros(())
    return nn.functional.pairwise_distance(m[half : 2 * half], m[:half]).square().mean()


def _others(m: Tensor) -> Tensor:
    """Mean squared distance of every two videos, crop by crop; (V, K, topk) -> (), 0 for a single video."""
    if len(m) < 2:
        return m.new_zeros(())
    squares = nn.functional.pairwise_distance(m[:, None], m).square().mean(-1)  # (V, V)
    alone = torch.eye(len(m), dtype=torch.bool, device=m.device)
    return squares.masked_fill(alone, 0).sum() / (len(m) * (len(m) - 1))
