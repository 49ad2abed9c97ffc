"""UR-DMU (Zhou et al., AAAI 2023) as the published code computes it, without any care for speed.

Every video has as many segments, the normal half of a batch comes first, a crop is a video. Names of parameters are the
authors', so that `wsvad weights export` writes a file that this loads.
"""

import math

import torch
from torch import Tensor, nn


def rows(best: Tensor, x: Tensor) -> Tensor:
    """Mean of the rows of x (N, T, H) that best (N, k) names, (N, H)."""
    return torch.gather(x, 1, best.unsqueeze(2).expand(-1, -1, x.shape[2])).mean(1)


class Attention(nn.Module):
    """Four heads, each with a branch that sees the whole video and one that sees what is near."""

    def __init__(self, dim: int, heads: int, size: int, drop: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, size**-0.5
        self.to_qkv = nn.Linear(dim, 4 * heads * size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(2 * heads * size, dim), nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        N, T, _ = x.shape
        q, k, v, t = (
            part.reshape(N, T, self.heads, -1).permute(0, 2, 1, 3) for part in self.to_qkv(x).chunk(4, dim=-1)
        )
        weights = (torch.matmul(q, k.transpose(-1, -2)) * self.scale).softmax(dim=-1)
        far = torch.matmul(weights, v)
        place = torch.arange(T, dtype=x.dtype, device=x.device)
        distance = torch.exp(-torch.abs(place[:, None] - place[None, :]) / math.e)
        distance = (distance / distance.sum(-1)).unsqueeze(0).unsqueeze(0).repeat(N, self.heads, 1, 1)
        near = torch.matmul(distance, t)
        both = torch.cat([far, near], dim=-1)
        return self.to_out(both.permute(0, 2, 1, 3).reshape(N, T, -1))


class FeedForward(nn.Module):
    """Two layers and GELU."""

    def __init__(self, dim: int, inner: int, drop: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(), nn.Dropout(drop), nn.Linear(inner, dim), nn.Dropout(drop)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.net(x)


class PreNorm(nn.Module):
    """f(LayerNorm(x))."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        return self.fn(self.norm(x))


class Transformer(nn.Module):
    """Two layers of attention and feed-forward."""

    def __init__(self, dim: int, depth: int, heads: int, size: int, inner: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PreNorm(dim, Attention(dim, heads, size, drop)), PreNorm(dim, FeedForward(dim, inner, drop))]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        for attention, feed in self.layers:
            x = attention(x) + x
            x = feed(x) + x
        return x


class Embedding(nn.Module):
    """Convolution over three segments."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Sequential(nn.Conv1d(dim, out, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, out)."""
        return self.conv_1(x.permute(0, 2, 1)).permute(0, 2, 1)


class Memory(nn.Module):
    """Slots: how well each row is known, and what is read for it."""

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.memory_block = nn.Parameter(torch.empty(slots, dim))
        nn.init.uniform_(self.memory_block, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, D) -> (N, T), (N, T, D)."""
        answers = torch.sigmoid(torch.einsum("btd,kd->btk", x, self.memory_block) / x.shape[-1] ** 0.5)
        known = torch.topk(answers, self.memory_block.shape[0] // 16 + 1, dim=-1)[0].mean(-1)
        return known, torch.einsum("btk,kd->btd", answers, self.memory_block)


class Classifier(nn.Module):
    """Two layers and a sigmoid."""

    def __init__(self, dim: int, inner: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, 1)."""
        return self.mlp(x)


class Model(nn.Module):
    """The network, its loss and its scores.

    Args:
        dim: D, 1024 for I3D.
        hidden: H.
    """

    def __init__(self, dim: int, hidden: int = 512, slots: int = 60, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = Embedding(dim, hidden)
        self.selfatt = Transformer(hidden, depth, heads, hidden // heads, hidden, 0.5)
        self.Amemory, self.Nmemory = Memory(slots, hidden), Memory(slots, hidden)
        self.encoder_mu = nn.Sequential(nn.Linear(hidden, hidden))
        self.encoder_var = nn.Sequential(nn.Linear(hidden, hidden))
        self.cls_head = Classifier(2 * hidden)

    def loss(self, normal: Tensor, anomalous: Tensor) -> Tensor:
        """Both (b, K, T, D) -> (), all terms together."""
        b = len(normal) * normal.shape[1]
        x = torch.cat([normal, anomalous], 0).flatten(0, 1)
        x = self.selfatt(self.embedding(x))
        calm, wild = x[:b], x[b:]
        k = x.shape[1] // 16 + 1

        a_known, a_read = self.Amemory(wild)
        na_known, na_read = self.Nmemory(wild)
        an_known, an_read = self.Amemory(calm)
        n_known, n_read = self.Nmemory(calm)
        worst = torch.topk(a_known, k, dim=-1)[1]
        plain = torch.topk(na_known, k, dim=-1)[1]
        best = torch.topk(n_known, k, dim=-1)[1]
        negative, anchor, positive = rows(worst, wild), rows(best, calm), rows(plain, wild)
        triplet = nn.TripletMarginLoss(margin=1)(
            *(nn.functional.normalize(t, dim=-1) for t in (anchor, positive, negative))
        )
        mean, log_variance = self.encoder_mu(n_read), self.encoder_var(n_read)
        deviation = torch.exp(log_variance).sqrt()
        drawn = mean + torch.randn_like(deviation) * deviation
        a_new, an_new, na_new = self.encoder_mu(a_read), self.encoder_mu(an_read), self.encoder_mu(na_read)
        kl = -0.5 * torch.mean(torch.sum(1 + log_variance - mean**2 - log_variance.exp(), dim=1))
        distance = torch.relu(
            100 - torch.norm(rows(worst, a_new), p=2, dim=-1) + torch.norm(rows(best, drawn), p=2, dim=-1)
        )
        h = torch.cat([x, torch.cat([drawn + an_new, a_new + na_new], dim=0)], dim=-1)
        scores = self.cls_head(h).squeeze(-1)

        bce = nn.functional.binary_cross_entropy
        labels = torch.cat([torch.zeros(b), torch.ones(b)]).to(scores)
        video = bce(torch.topk(scores, k, dim=-1)[0].mean(-1), labels)
        memory = (
            bce(torch.topk(a_known, k, dim=-1)[0].mean(-1), torch.ones_like(a_known[:, 0]))
            + bce(torch.topk(1 - na_known, k, dim=-1)[0].mean(-1), torch.ones_like(a_known[:, 0]))
            + bce(n_known, torch.ones_like(n_known))
            + bce(an_known, torch.zeros_like(an_known))
        )
        return video + 0.1 * memory + 0.1 * triplet + 1e-3 * kl + 1e-4 * distance.mean()

    def scores(self, x: Tensor) -> Tensor:
        """A whole video (K, T, D) -> (T,), the mean over crops."""
        x = self.selfatt(self.embedding(x))
        _, a_read = self.Amemory(x)
        _, n_read = self.Nmemory(x)
        h = torch.cat([x, self.encoder_mu(n_read) + self.encoder_mu(a_read)], dim=-1)
        return self.cls_head(h).squeeze(-1).mean(0)


def optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=5e-5)
