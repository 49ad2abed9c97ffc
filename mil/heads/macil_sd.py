"""MACIL-SD (Yu, Liu, Cheng, Feng, Zhang, "Modality-Aware Contrastive Instance Learning with Self-Distillation for
Weakly-Supervised Audio-Visual Violence Detection", ACM MM 2022, https://arxiv.org/abs/2207.05500; code:
https://github.com/JustinYuu/MACIL_SD)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, Progress, heads
from mil.layers.causal import masked_softmax
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.losses import sixteenth, topk_bce, topk_mean
from mil.published import Published

_TAU = 0.1  # temperature of the contrast


class CrossLayer(nn.Module):
    """One pre-norm transformer layer whose queries look at another sequence.

    Queries are normalised, keys and values are not. The four projections begin as copies of one, as in the authors'
    code.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.key, self.value, self.out):
            layer.load_state_dict(self.query.state_dict())
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """x (N, T, H) looks at `seen` (N, T, H) where the mask (N, T) is True -> (N, T, H)."""
        q, k, v = (self._split(y) for y in (self.query(self.norm1(x)), self.key(seen), self.value(seen)))
        weights = self.drop(masked_softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), mask))
        x = x + self.drop(self.out((weights @ v).transpose(1, 2).flatten(2)))
        y: Tensor = x + self.drop(self.narrow(self.drop(self.widen(self.norm2(x)).relu())))
        return y

    def _split(self, x: Tensor) -> Tensor:
        y: Tensor = x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (N, heads, T, H / heads)
        return y


class VisualTeacher(nn.Module):
    """The visual network beside: the same layer, looking at itself."""

    def __init__(self, visual: int, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.visual = nn.Linear(visual, width)
        self.layer = CrossLayer(width, heads, feedforward, dropout)
        self.fc = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D), (N, T) bool -> logits (N, T)."""
        h = self.visual(x)
        return self.fc(self.layer(h, h, mask)).squeeze(-1)  # type: ignore[no-any-return]


@heads.register("macil_sd")
class MACILSDHead(Head):
    """Sight and sound look at each other through one shared layer; segments are contrasted across the two.

    z = z_v + z_a, one linear layer on either side; the score is sigmoid(z). A second, visual network (`teacher`) is
    trained beside on its own loss; after each epoch the parameters that both have move towards it. Its parameters'
    names begin with "teacher", so that a recipe can give them a rate of their own.

    Each crop is a sample of its own. What counts as anomalous in the contrast is what is predicted so, not what is
    labelled; where nothing, or everything, is, the contrast is 0.

    Args:
        visual: feature size of what is seen (1024).
        audio: feature size of what is heard (128).
        hidden: width of the layer.
        attention_heads: heads of the attention; must divide `hidden`.
        feedforward: width of the layer's second half.
        dropout: of attention weights, and of all that is added.
        contrast: the most that each of the four contrasts weighs.
        ramp: how much their weight grows with every epoch, from 0.
        momentum: share of themselves that shared parameters keep after the first epoch; goes up to 1 by a cosine.
        as_published: as in the authors' code, the logits of sound choose among the features of sight, and the other way
            round, and padded segments are looked at like others: scores of a batch then depend on its longest video.
            A single video scores the same either way.
    """

    paper = "Yu et al., MM 2022"
    modalities = ("visual", "audio")
    compares = False
    epoch: Tensor

    def __init__(
        self,
        visual: int,
        audio: int,
        *,
        hidden: int = 128,
        attention_heads: int = 4,
        feedforward: int = 128,
        dropout: float = 0.1,
        contrast: float = 1.5,
        ramp: float = 0.1,
        momentum: float = 0.91,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden, attention_heads, feedforward) < 1 or hidden % attention_heads:
            raise ValueError(
                "macil_sd needs widths of at least 1 and a hidden width that attention_heads divides, got "
                f"hidden={hidden}, attention_heads={attention_heads}, feedforward={feedforward}"
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"macil_sd needs a momentum from 0 to 1, got {momentum}")
        self.contrast, self.ramp, self.momentum, self.as_published = contrast, ramp, momentum, as_published
        self.visual = nn.Linear(visual, hidden)
        self.audio = nn.Linear(audio, hidden)
        self.layer = CrossLayer(hidden, attention_heads, feedforward, dropout)
        self.fc = nn.Linear(hidden, 1)
        self.teacher = VisualTeacher(visual, hidden, attention_heads, feedforward, dropout)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))  # whole epochs that are done

    def forward(self, bag: Bag) -> HeadOutput:
        """visual and audio (B, K, T, D) -> scores (B, T) in [0, 1].

        aux, of every crop (N = B * K): features `visual`, `audio` (N, T, H), logits `visual_logits`, `audio_logits`
        (N, T).
        """
        visual, audio = (fold(x) for x in self.parts(bag))
        rows = self._rows(bag)
        v, a = self.visual(visual), self.audio(audio)
        v, a = self.layer(v, a, rows), self.layer(a, v, rows)
        z_v, z_a = self.fc(v).squeeze(-1), self.fc(a).squeeze(-1)
        scores = crop_mean(unfold((z_v + z_a).sigmoid(), bag.crops), bag.mask)
        return HeadOutput(scores, {"visual": v, "audio": a, "visual_logits": z_v, "audio_logits": z_a})

    def _rows(self, bag: Bag) -> Tensor:
        mask = spread(bag.mask, bag.crops)
        return torch.ones_like(mask) if self.as_published else mask

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """`mil`, four contrasts, and the teacher's own `teacher`; takes batches of any mixture."""
        mask, labels = spread(bag.mask, bag.crops), spread(bag.labels, bag.crops)
        k, aux = sixteenth(mask), out.aux
        logits = aux["visual_logits"] + aux["audio_logits"]
        seen = fold(self.parts(bag)[0])
        weight = (self.ramp * self.epoch.to(logits.dtype)).clamp(max=self.contrast)
        return {
            "mil": topk_bce(logits, mask, labels, k),
            **{name: weight * term for name, term in self._contrasts(aux, mask, topk_mean(logits, mask, k)).items()},
            "teacher": topk_bce(self.teacher(seen, self._rows(bag)), mask, labels, k),
        }

    def _contrasts(self, aux: Mapping[str, Tensor], mask: Tensor, video: Tensor) -> dict[str, Tensor]:
        """The anomalous segments of a video in one modality against those in the other; `video` (N,) are its logits."""
        anomalous = video > 0  # a probability above 0.5
        heard, seen = aux["audio"], aux["visual"]
        if self.as_published:  # their loss takes one for the other, but not the logits
            heard, seen = seen, heard
        a, a_high, a_low, there = _extremes(heard, aux["audio_logits"], mask)
        v, v_high, v_low, _ = _extremes(seen, aux["visual_logits"], mask)
        normal = there & ~anomalous[:, None]
        weights = there.sum(1) * (anomalous & ~anomalous.all())
        return {
            "a2v_background": _info_nce(a, v, v_low, there, weights),
            "a2v_normal": _info_nce(a, v, v_high, normal, weights),
            "v2a_background": _info_nce(v, a, a_low, there, weights),
            "v2a_normal": _info_nce(v, a, a_high, normal, weights),
        }

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """After each epoch: what both networks have, all but the layer for sound, moves towards the teacher."""
        if progress.step % progress.per_epoch:
            return
        epochs = -(-progress.steps // progress.per_epoch)
        keep = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * (progress.epoch - 1) / epochs)) / 2
        own = dict(self.named_parameters())
        for name, theirs in self.teacher.named_parameters():
            own[name].mul_(keep).add_(theirs, alpha=1 - keep)
        self.epoch.fill_(progress.epoch)

    def exceptions(self) -> Mapping[str, str]:
        """Of the code as it was published: the attention looks at padding."""
        if not self.as_published:
            return {}
        why = "the authors' attention looks at padded segments"
        return {"test_padding_changes_nothing": why, "test_a_video_scores_the_same_alone": why}

    def published(self) -> Published:
        """The authors' 38 tensors, of which 20 are used; the teacher is in none of their files."""
        (width, _), wide = self.visual.weight.shape, self.layer.widen.out_features
        inner = {f"self_attn.linears.{i}": n for i, n in enumerate(("query", "key", "value", "out"))}
        inner |= {"feed_forward.w_1": "widen", "feed_forward.w_2": "narrow"}
        inner |= {"sublayer.0.norm": "norm1", "sublayer.1.norm": "norm2"}
        layers = {"fc_v": "visual", "fc_a": "audio", "att_mmil.fc": "fc"}
        layers |= {f"cma.layer.{theirs}": f"layer.{ours}" for theirs, ours in inner.items()}
        unused: dict[str, tuple[int, ...]] = {}
        square = {f"multiheadattn.linears.{i}": (width, width) for i in range(4)}
        for name, shape in (square | {"feedforward.w_1": (wide, width), "feedforward.w_2": (width, wide)}).items():
            unused |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in ("multiheadattn.layer_norm", "cma.layer.self_attn.layer_norm"):
            unused |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        return Published(
            {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in layers.items() for p in ("weight", "bias")},
            unused,
            extra=frozenset({"epoch", *(f"teacher.{name}" for name in self.teacher.state_dict())}),
            source="https://github.com/JustinYuu/MACIL_SD, ckpt/macil_sd.pkl",
        )

    @classmethod
    def infer(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, Any]]:
        """Both feature sizes and both widths; the number of attention heads shows in no shape."""
        (hidden, visual), audio = shapes["fc_v.weight"], shapes["fc_a.weight"][1]
        feedforward = shapes["cma.layer.feed_forward.w_1.weight"][0]
        return {"rgb": visual, "audio": audio}, {"hidden": hidden, "feedforward": feedforward}


def _extremes(x: Tensor, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a video's features x (N, T, H) those of the k = L // 16 + 1 highest and of the k lowest logits (N, T).

    Returns the mean of the highest (N, H), the highest and the lowest (N, most k, H), and which of them there are.
    """
    most = mask.shape[1] // 16 + 1
    there = torch.arange(most, device=mask.device) < sixteenth(mask)[:, None]
    high = logits.masked_fill(~mask, -torch.inf).topk(most, dim=1).indices
    low = logits.masked_fill(~mask, torch.inf).topk(most, dim=1, largest=False).indices
    highest, lowest = (x.gather(1, i[..., None].expand(-1, -1, x.shape[2])) for i in (high, low))
    mean = (highest * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    return mean, highest, lowest, there


def _info_nce(query: Tensor, positive: Tensor, negatives: Tensor, there: Tensor, weights: Tensor) -> Tensor:
    """InfoNCE of (N, H) against (N, H) of the same videos, with the same negatives (N, k, H) for all; mean by weights.

    The authors repeat a query once for each of its video's k segments: those are its weights (N,); no weight gives 0.
    """
    q, p, n = (nn.functional.normalize(x, dim=-1) for x in (query, positive, negatives.flatten(0, 1)))
    right = (q * p).sum(1, keepdim=True)
    wrong = (q @ n.T).masked_fill(~there.flatten(), -torch.inf)
    each = -torch.cat([right, wrong], dim=1).div(_TAU).log_softmax(dim=1)[:, 0]
    return (each * weights).sum() / weights.sum().clamp(min=1)
