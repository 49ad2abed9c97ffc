"""PEL4VAD (Pu, Wu, Yang, Wang, "Learning Prompt-Enhanced Context Features for Weakly-Supervised Video Anomaly
Detection", TIP 2024, https://arxiv.org/abs/2306.14451; code: https://github.com/yujiangpu20/PEL4VAD)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.causal import distance_term, left_conv, masked_softmax
from mil.layers.conv import conv
from mil.layers.crops import crop_mean, fold, of_crops, spread, unfold
from mil.layers.prompts import NORMAL, prompt_table
from mil.losses import sixteenth, topk_mean
from mil.published import Published

_SCALE = 10.0  # of scores before they become weights, and of the target before its softmax


@heads.register("pel4vad")
class PEL4VADHead(Head):
    """Global and windowed attention mixed, then a causal convolution; videos are drawn to the prompts of their class.

    Both attentions share one map, with exp(-|gamma d² - bias|) added for segments d apart; a learned share mixes what
    they give. The prompts take part in the loss alone: a video's foreground (its features weighted by exp(10 s) - 1) is
    drawn to its class, the background of an anomalous one (1 - s) to "normal".

    Each crop is a sample of its own. `norm` divides by a length over time, not over features, in the code and here.

    Args:
        dim: feature size D (1024).
        window: segments around each, itself included, that the windowed attention sees.
        gamma, bias: where the two learned numbers of the distance term begin.
        norm: signed square root of what the attention gives, and each feature divided by its length over time.
        kernel: how many segments, itself included, a score looks back on.
        temperature: of the similarities to prompts; learned from there.
        kl: weight of the prompts' term.
        attention: size of queries, keys and values.
        hidden: widths of the two layers behind the attention; prompts are as wide as the first.
        dropout: after each of the two layers.
        classes: names of the anomalous classes, as `bag.classes` orders them.
        prompts: a .safetensors or .npz file of one vector for each class and for "normal", e.g. CLIP text embeddings;
            None: made-up unit vectors that the names decide.
        several: for a video of several classes, the "mean" of their vectors (ShanghaiTech's code) or the "first" one's
            (XD-Violence's). Classes of videos are compared by the first one either way.
        as_published: padded segments are seen by the attention, the norm and the foreground like others, as in the
            authors' code, so that a batch depends on its longest video. A single video scores the same either way.
    """

    paper = "Pu et al., TIP 2024"
    compares = False
    takes_classes = True
    reads = ("prompts",)
    prompts: Tensor

    def __init__(
        self,
        dim: int,
        *,
        window: int = 9,
        gamma: float = 0.6,
        bias: float = 0.2,
        norm: bool = True,
        kernel: int = 9,
        temperature: float = 0.09,
        kl: float = 1.0,
        attention: int = 128,
        hidden: tuple[int, int] = (512, 300),
        dropout: float = 0.1,
        classes: tuple[str, ...] = (),
        prompts: str | None = None,
        several: Literal["mean", "first"] = "mean",
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if min(*hidden, window, kernel, attention) < 1 or temperature <= 0:
            raise ValueError(
                "pel4vad needs two hidden widths, window, kernel and attention of at least 1 and a temperature above "
                f"0, got hidden={list(hidden)}, window={window}, kernel={kernel}, attention={attention}, "
                f"temperature={temperature}"
            )
        if NORMAL in classes:
            raise ValueError(f"pel4vad takes the anomalous classes, '{NORMAL}' is its own: leave it out of `classes`")
        self.window, self.norm, self.kl, self.several = window, norm, kl, several
        self.classes, self.as_published = tuple(classes), as_published
        self.query, self.key, self.value = (nn.Linear(dim, attention) for _ in range(3))
        self.out = nn.Linear(attention, dim)
        self.mix = nn.Parameter(torch.zeros(()))
        self.gamma = nn.Parameter(torch.full((1,), float(gamma)))
        self.bias = nn.Parameter(torch.full((1,), float(bias)))
        self.layer_norm = nn.LayerNorm(dim)
        self.conv1 = nn.Conv1d(dim, hidden[0], 1)
        self.conv2 = nn.Conv1d(hidden[0], hidden[1], 1)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Conv1d(hidden[1], 1, kernel)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.register_buffer("prompts", prompt_table((NORMAL, *self.classes), prompts, hidden[0]))
        for layer in (self.query, self.key, self.value, self.out, self.conv1, self.conv2, self.classifier):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1].

        aux, of every crop (N = B * K): `scores` (N, T), and `features` (N, T, hidden[0]), which the prompts draw.
        """
        x, rows = fold(bag.x), self._rows(bag)
        x = self.layer_norm(x + self._context(x, rows))
        features = self.drop(nn.functional.gelu(conv(self.conv1, x, rows)))
        h = self.drop(nn.functional.gelu(conv(self.conv2, features, rows)))
        scores = left_conv(self.classifier, h, rows).squeeze(-1).sigmoid()
        video = crop_mean(unfold(scores, bag.crops), bag.mask)
        return HeadOutput(video, {"scores": scores, "features": features})

    def _rows(self, bag: Bag) -> Tensor:
        mask = spread(bag.mask, bag.crops)
        return torch.ones_like(mask) if self.as_published else mask

    def _context(self, x: Tensor, rows: Tensor) -> Tensor:
        """What all segments, and those in the window, say to each; (N, T, D), (N, T) bool -> (N, T, D)."""
        T = x.shape[1]
        products = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(self.key.out_features)
        products = products + distance_term(T, self.gamma, -self.bias)
        at = torch.arange(T, device=x.device)
        away, before = at - at[:, None], self.window // 2
        outside = (away < -before) | (away >= self.window - before)
        near = masked_softmax(products.masked_fill(outside, torch.finfo(products.dtype).min), rows)
        share, value = self.mix.sigmoid(), self.value(x)
        y = share * (masked_softmax(products, rows) @ value) + (1 - share) * (near @ value)
        if self.norm:
            y = (y.relu().sqrt() - (-y).relu().sqrt()) * rows[..., None]
            y = nn.functional.normalize(y, dim=1)  # over time
        return self.out(y)  # type: ignore[no-any-return]

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """`mil`, of which a normal video stands for its highest score, and `prompts`; batches of any mixture.

        Raises ValueError where the bag's classes are not those of the head, or an anomalous video shows none.
        """
        mask, labels = spread(bag.mask, bag.crops), spread(bag.labels, bag.crops)
        shown = spread(self._shown(bag), bag.crops)
        scores = out.aux["scores"]
        k = torch.where(labels == 1, sixteenth(mask), 1)
        video = topk_mean(scores, mask, k)
        drawn = self._drawn(scores, out.aux["features"], shown, of_crops(bag.high, bag.crops))
        return {"mil": nn.functional.binary_cross_entropy(video, labels), "prompts": self.kl * drawn}

    def _shown(self, bag: Bag) -> Tensor:
        if bag.classes is None or bag.classes.shape[1] != len(self.classes):
            found = "none" if bag.classes is None else f"{bag.classes.shape[1]}"
            raise ValueError(f"pel4vad was made for {len(self.classes)} classes, the bag has {found}; set head.classes")
        if bag.unnamed:
            raise ValueError(
                f"an anomalous video shows none of the classes {', '.join(self.classes)}; name all in head.classes, or "
                "leave it out: it is filled from the training videos"
            )
        return bag.classes.to(self.prompts.dtype)

    def _drawn(self, scores: Tensor, features: Tensor, shown: Tensor, high: Tensor) -> Tensor:
        """KL divergence between similarities to all the batch's prompts and who shares a class; shown (N, C) -> ().

        The background is that of the anomalous samples, `high` (A,).
        """

        def weighted(s: Tensor) -> Tensor:
            # padded features are 0, and cosines do not feel what the padded weights add to their sum
            weights = nn.functional.normalize((_SCALE * s).expm1(), p=1, dim=1)
            return (weights[:, None] @ features).squeeze(1)

        anomalous = shown.any(1)
        number = (
            torch.where(anomalous, shown.argmax(1) + 1, 0) if shown.shape[1] else torch.zeros_like(anomalous).long()
        )
        if self.several == "first":
            own = self.prompts[number]
        else:
            own = torch.where(
                anomalous[:, None], shown @ self.prompts[1:] / shown.sum(1, keepdim=True).clamp(min=1), self.prompts[0]
            )
        normal = self.prompts[:1].expand(len(high), -1)
        videos = torch.cat([weighted(scores), weighted(1 - scores)[high]])
        texts = torch.cat([own, normal])
        number = torch.cat([number, number.new_zeros(len(normal))])
        videos, texts = (nn.functional.normalize(x, dim=1) for x in (videos, texts))
        found = (self.log_scale.exp() * videos @ texts.T).log_softmax(dim=1)
        same = (number[:, None] == number).to(found.dtype)
        return nn.functional.kl_div(found, (_SCALE * same).softmax(dim=1), reduction="batchmean")

    def exceptions(self) -> Mapping[str, str]:
        """Of the code as it was published: attention and norm see padding."""
        if not self.as_published:
            return {}
        why = "the authors' attention and norm see padded segments"
        return {"test_padding_changes_nothing": why, "test_a_video_scores_the_same_alone": why}

    def published(self) -> Published:
        """All 20 tensors of the authors' files; prompts are no part of them."""
        layers = {f"self_attn.{n[0]}": n for n in ("query", "key", "value", "out")}
        layers |= {"linear1": "conv1", "linear2": "conv2", "norm": "layer_norm"}
        names = {
            f"self_attention.{theirs}.{p}": f"{ours}.{p}" for theirs, ours in layers.items() for p in ("weight", "bias")
        }
        names |= {f"classifier.{p}": f"classifier.{p}" for p in ("weight", "bias")}
        names |= {"self_attention.loc_adj.w": "gamma", "self_attention.loc_adj.b": "bias"}
        names |= {"self_attention.self_attn.alpha": "mix", "logit_scale": "log_scale"}
        return Published(
            names, extra=frozenset({"prompts"}), source="https://github.com/yujiangpu20/PEL4VAD, ckpt/*.pkl"
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Feature size, widths and kernel; window and norm show in no shape."""
        attention, dim = shapes["self_attention.self_attn.q.weight"]
        first = shapes["self_attention.linear1.weight"][0]
        _, second, kernel = shapes["classifier.weight"]
        return {"rgb": dim}, {"attention": attention, "hidden": (first, second), "kernel": kernel}
