"""Salient feature attention, SFA ("Real-world Video Anomaly Detection by Extracting Salient Features in Videos",
ICIP 2022, https://arxiv.org/abs/2209.06435, code https://github.com/sakurada-cnq/salient_feature_anomaly)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.published import Published


@heads.register("sfa")
class SFAHead(Head):
    """Judges many segments at once: attention maps over time gather the salient ones, one score for all of them.

    Not MIL: a training bag, 32 segments of one crop, is one sample with the video's label, and no segment is ranked
    against another. In evaluation a video is cut into chunks of `chunk` segments from its beginning on, the last one
    shorter; a chunk is judged like a training bag, and each of its segments gets the chunk's score. Events shorter than
    a chunk are blurred to it. The order of the segments inside a chunk means nothing.

    Args:
        dim: feature size D (2048 for I3D ResNet-50).
        attention: width d_a of the attention net, 64 or 128.
        hops: attention maps r, each a softmax over time; 3 with d_a = 64, 7 with d_a = 128.
        hidden: width between the two last layers, which have nothing but their biases between them.
        dropout: of the attention weights, after the softmax; what is left is not normalised again.
        chunk: segments that are judged together in evaluation: 28 gave the authors' numbers, 32 is their default.
    """

    paper = "SFA, ICIP 2022"
    compares = False

    def __init__(
        self,
        dim: int,
        *,
        attention: int = 64,
        hops: int = 3,
        hidden: int = 32,
        dropout: float = 0.3,
        chunk: int = 28,
    ) -> None:
        super().__init__()
        if min(attention, hops, hidden, chunk) < 1:
            raise ValueError(
                "sfa needs attention, hops, hidden and chunk of at least 1, "
                f"got attention={attention}, hops={hops}, hidden={hidden}, chunk={chunk}"
            )
        self.chunk = chunk
        self.attend1 = nn.Linear(dim, attention)
        self.attend2 = nn.Linear(attention, hops)
        self.fc1 = nn.Linear(dim * hops, hidden)
        self.fc2 = nn.Linear(hidden, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1], equal within a chunk; aux: the whole bag's logit (B, K).

        In training the bag is one chunk, whatever its length.
        """
        crops, length = bag.crops, bag.mask.shape[1]
        x, mask = fold(bag.x), spread(bag.mask, crops)  # (B K, T, D), (B K, T)
        whole = self.logit(x, mask)  # (B K,)
        logits = whole[:, None].expand(-1, length) if self.training else self.chunk_logits(x, mask)
        scores = unfold(logits.sigmoid(), crops)  # (B, K, T)
        return HeadOutput(crop_mean(scores, bag.mask), {"logit": unfold(whole, crops)})

    def logit(self, x: Tensor, mask: Tensor) -> Tensor:
        """What (N, T, D) segments, (N, T) bool, are judged as together -> (N,)."""
        weights = self.attend2(self.attend1(x).tanh())
        # not -inf: a chunk of nothing but padding stays finite, and is thrown away later
        weights = weights.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).softmax(dim=1)
        salient = x.transpose(1, 2) @ self.drop(weights)  # (N, D, r): flattened, the hops of a feature lie together
        judged: Tensor = self.fc2(self.fc1(salient.flatten(1))).squeeze(-1)
        return judged

    def chunk_logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """Every segment's chunk judged, (N, T, D), (N, T) -> (N, T)."""
        count, length, dim = x.shape
        size = min(self.chunk, length)
        rest = -length % size  # padded so that the last chunk is whole
        x = nn.functional.pad(x, (0, 0, 0, rest)).reshape(-1, size, dim)  # (N C, size, D)
        mask = nn.functional.pad(mask, (0, rest)).reshape(-1, size)
        logits = self.logit(x, mask).reshape(count, -1)  # (N, C)
        return logits.repeat_interleave(size, dim=1)[:, :length]

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Cross entropy of every crop of the whole bag with the video's label."""
        logits = out.aux["logit"]
        labels = bag.labels[:, None].expand_as(logits)
        return {"bce": nn.functional.binary_cross_entropy_with_logits(logits, labels)}

    def published(self) -> Published:
        """The authors' `save_weight/*.pth`; the misspelling is theirs."""
        layers = {"self_anttention.0": "attend1", "self_anttention.2": "attend2", "fc1": "fc1", "fc2": "fc2"}
        names = {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in layers.items() for p in ("weight", "bias")}
        return Published(names, source="sakurada-cnq/salient_feature_anomaly, save_weight")

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size, d_a, r and the hidden width; how long chunks are no file tells."""
        attention, dim = shapes["self_anttention.0.weight"]
        hops, hidden = shapes["self_anttention.2.weight"][0], shapes["fc1.weight"][0]
        return {"rgb": dim}, {"attention": attention, "hops": hops, "hidden": hidden}
