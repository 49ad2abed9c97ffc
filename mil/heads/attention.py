"""Attention-based deep MIL (Ilse, Tomczak, Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018,
https://arxiv.org/abs/1802.04712), on segments of videos."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mil.bag import Bag
from mil.heads.base import Head, HeadOutput, heads
from mil.layers.crops import crop_mean


@heads.register("attention")
class AttentionHead(Head):
    """A bag's probability is the mean of its segments' own, weighted by attention, gated or plain; a control.

    The paper is of images, pools embeddings, and calls an instance important where its attention weight is high. Those
    weights are shares of one bag: some segment of a normal video always has the highest. Here a linear classifier of
    the embeddings gives every segment a probability of its own, which is its score whatever the bag holds; the
    attention decides which of them the video's label is about.

    Args:
        dim: feature size D.
        hidden: width of the embedding, ReLU(Linear(x)).
        attention: width of the attention net (128 in the paper's code).
        gated: equation 9, tanh(V h) * sigmoid(U h); else equation 8, tanh(V h) alone.
        pool: what attention averages: the segments' "probabilities", or, as the paper, their "features". Of features
            the bag's logit is the weighted mean of the segments' logits, for the classifier is linear.
        dropout: of the embedding.
    """

    paper = "Ilse et al., ICML 2018"
    lookback = 1  # each segment by itself
    compares = False

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 512,
        attention: int = 128,
        gated: bool = True,
        pool: Literal["probabilities", "features"] = "probabilities",
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if min(hidden, attention) < 1:
            raise ValueError(f"attention needs widths of at least 1, got hidden={hidden}, attention={attention}")
        self.pool = pool
        self.embed = nn.Linear(dim, hidden)
        self.content = nn.Linear(hidden, attention)  # V
        self.gate = nn.Linear(hidden, attention) if gated else None  # U
        self.weigh = nn.Linear(attention, 1, bias=False)  # w; a softmax takes no notice of a bias
        self.classify = nn.Linear(hidden, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, bag: Bag) -> HeadOutput:
        """x (B, K, T, D) -> scores (B, T) in [0, 1]; aux: every crop's attention (B, K, T), and the logarithms of its
        bag's probabilities to be anomalous, `anomalous` (B, K), and not to be, `normal` (B, K)."""
        h = self.drop(self.embed(bag.x).relu())  # (B, K, T, M)
        logits = self.classify(h).squeeze(-1)  # (B, K, T)
        shares = self.log_attention(h, bag.mask[:, None])
        if self.pool == "features":
            pooled = (shares.exp() * logits).sum(-1)
            anomalous, normal = logsigmoid(pooled), logsigmoid(-pooled)
        else:  # by their logarithms: neither p nor 1 - p is ever rounded to 0
            anomalous = (shares + logsigmoid(logits)).logsumexp(-1)
            normal = (shares + logsigmoid(-logits)).logsumexp(-1)
        aux = {"attention": shares.exp(), "anomalous": anomalous, "normal": normal}
        return HeadOutput(crop_mean(logits.sigmoid(), bag.mask), aux)

    def log_attention(self, h: Tensor, mask: Tensor) -> Tensor:
        """Logarithms of equation 8 or 9: embeddings (B, K, T, M), mask (B, 1, T) -> (B, K, T), shares of each bag."""
        content = self.content(h).tanh()
        if self.gate is not None:
            content = content * self.gate(h).sigmoid()
        weights: Tensor = self.weigh(content).squeeze(-1)
        return weights.masked_fill(~mask, torch.finfo(h.dtype).min).log_softmax(-1)

    def loss(self, out: HeadOutput, bag: Bag) -> dict[str, Tensor]:
        """Negative logarithm of the Bernoulli likelihood of every crop's label, the mean."""
        labels = bag.labels[:, None]
        return {"bce": -(labels * out.aux["anomalous"] + (1 - labels) * out.aux["normal"]).mean()}
