"""HL-Net (Wu et al., ECCV 2020) as the published code computes it, without any care for speed.

A crop is a video; videos of a batch are padded to the longest, videos of both kinds mixed. Names of parameters are the
authors', so that `wsvad weights export` writes a file that this loads.
"""

import math

import torch
from torch import Tensor, nn


class GraphConvolution(nn.Module):
    """A x W + residual."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, out))
        nn.init.xavier_uniform_(self.weight)
        self.residual = nn.Conv1d(dim, out, 5, padding=2) if dim != out else None

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """(N, T, dim), (N, T, T) -> (N, T, out)."""
        support = x.matmul(self.weight)
        rest = x if self.residual is None else self.residual(x.permute(0, 2, 1)).permute(0, 2, 1)
        return graph.matmul(support) + rest


class Unused(nn.Module):
    """What the authors' module has and never uses."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Model(nn.Module):
    """The network, its loss and its scores.

    Args:
        dim: D, 1152 for I3D RGB and VGGish.
    """

    def __init__(self, dim: int, hidden: tuple[int, int] = (512, 128), graph: int = 32) -> None:
        super().__init__()
        self.conv1d1, self.conv1d2 = nn.Conv1d(dim, hidden[0], 1), nn.Conv1d(hidden[0], hidden[1], 1)
        self.conv1d3, self.conv1d4 = nn.Conv1d(hidden[1], graph, 5), nn.Conv1d(graph, graph, 5)
        for i in (1, 3, 5):
            self.add_module(f"gc{i}", GraphConvolution(hidden[1], graph))
            self.add_module(f"gc{i + 1}", GraphConvolution(graph, graph))
        self.simAdj, self.disAdj = Unused(weight0=(dim, graph), weight1=(dim, graph)), Unused(sigma=(1,))
        self.classifier = nn.Linear(3 * graph, 1)
        self.approximator = nn.Sequential(nn.Conv1d(hidden[1], 64, 1), nn.ReLU(), nn.Conv1d(64, 32, 1), nn.ReLU())
        self.conv1d_approximator = nn.Conv1d(32, 1, 5)
        self.drop = nn.Dropout(0.6)

    def forward(self, x: Tensor, lengths: list[int] | None) -> tuple[Tensor, Tensor]:
        """(N, T, D) -> offline and online logits (N, T)."""
        h = x.permute(0, 2, 1)
        h = self.drop(torch.relu(self.conv1d1(h)))
        h = self.drop(torch.relu(self.conv1d2(h)))
        online = self.conv1d_approximator(nn.functional.pad(self.approximator(h), (4, 0))).permute(0, 2, 1)
        h = h.permute(0, 2, 1)
        alike, near, scored = self.alike(x, lengths), self.near(x), self.scored(online.detach(), lengths)
        parts = []
        for i, graph in ((1, alike), (3, near), (5, scored)):
            part = self.drop(torch.relu(getattr(self, f"gc{i}")(h, graph)))
            parts.append(self.drop(torch.relu(getattr(self, f"gc{i + 1}")(part, graph))))
        offline = self.classifier(torch.cat(parts, 2))
        return offline.squeeze(2), online.squeeze(2)

    def alike(self, x: Tensor, lengths: list[int] | None) -> Tensor:
        """Row softmax of the cosines above 0.7, (N, T, D) -> (N, T, T)."""
        products = x.matmul(x.permute(0, 2, 1))
        norm = torch.norm(x, p=2, dim=2, keepdim=True)
        cosine = products / (norm.matmul(norm.permute(0, 2, 1)) + 1e-20)
        out = torch.zeros_like(cosine)
        for i in range(len(x)):
            n = x.shape[1] if lengths is None else lengths[i]
            own = cosine[i, :n, :n]
            own = nn.functional.threshold(own, 0.7, 0)
            out[i, :n, :n] = nn.functional.softmax(own, dim=1)
        return out

    def near(self, x: Tensor) -> Tensor:
        """exp(-|i - j| / e), (N, T, D) -> (N, T, T)."""
        place = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        distance = torch.exp(-torch.abs(place[:, None] - place[None, :]) / math.e)
        return distance.unsqueeze(0).repeat(len(x), 1, 1)

    def scored(self, logits: Tensor, lengths: list[int] | None) -> Tensor:
        """Row softmax of a steep sigmoid of 1 - |p_i - p_j|, (N, T, 1) -> (N, T, T)."""
        p = torch.sigmoid(logits)
        close = 1 - torch.abs(p - p.permute(0, 2, 1))
        close = 1 / (1 + torch.exp(-(close - 0.5) / 0.1))
        out = torch.zeros_like(close)
        for i in range(len(p)):
            n = p.shape[1] if lengths is None else lengths[i]
            out[i, :n, :n] = nn.functional.softmax(close[i, :n, :n], dim=1)
        return out

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """(B, K, T, D), (B,) -> (), all terms together; a segment of zeros is padding."""
        x, labels = x.flatten(0, 1), labels.repeat_interleave(x.shape[1])
        lengths = torch.sum(torch.max(torch.abs(x), dim=2)[0] > 0, 1).tolist()
        x = x[:, : max(lengths)]
        offline, online = self(x, lengths)
        distill = torch.mean(-torch.sigmoid(offline).detach() * torch.log(torch.sigmoid(online)), 1).mean()
        return self.clas(offline, lengths, labels) + self.clas(online, lengths, labels) + 5 * distill

    def clas(self, logits: Tensor, lengths: list[int], labels: Tensor) -> Tensor:
        """Cross entropy of the mean of each video's highest logits."""
        found = [torch.topk(z[:n], n // 16 + 1)[0].mean().view(1) for z, n in zip(logits, lengths, strict=True)]
        return nn.functional.binary_cross_entropy(torch.sigmoid(torch.cat(found)), labels)

    def scores(self, x: Tensor) -> Tensor:
        """A whole video (K, T, D) -> (T,), the mean over crops."""
        offline, _ = self(x, None)
        return torch.sigmoid(offline).mean(0)


def optimizer(model: Model) -> torch.optim.Optimizer:
    half = [p for n, p in model.named_parameters() if "approximator" in n]
    rest = [p for n, p in model.named_parameters() if "approximator" not in n]
    return torch.optim.Adam([{"params": rest}, {"params": half, "lr": 5e-5}], lr=1e-4)
