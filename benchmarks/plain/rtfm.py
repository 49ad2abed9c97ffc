"""RTFM (Tian et al., ICCV 2021) as the published code computes it, without any care for speed.

Every video has as many segments, the normal half of a batch comes first. Names of parameters are the authors', so that
`wsvad weights export` writes a file that this loads.
"""

import torch
from torch import Tensor, nn

MARGIN, ALPHA, SMOOTH, SPARSE, TOP, DROP = 100.0, 1e-4, 8e-4, 8e-3, 3, 0.7


class NonLocal(nn.Module):
    """Attention without a softmax, (N, C, T) -> (N, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.g, self.theta, self.phi = (nn.Conv1d(channels, half, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv1d(half, channels, 1), nn.BatchNorm1d(channels))
        nn.init.zeros_(self.W[1].weight)
        nn.init.zeros_(self.W[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T) -> (N, C, T)."""
        g = self.g(x).permute(0, 2, 1)
        theta = self.theta(x).permute(0, 2, 1)
        weights = torch.matmul(theta, self.phi(x)) / x.shape[-1]
        y = torch.matmul(weights, g).permute(0, 2, 1).contiguous()
        return self.W(y) + x


class Aggregate(nn.Module):
    """Three dilated convolutions, the non-local block, and a convolution over all, (N, T, D) -> (N, T, D)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()

        def unit(inner: int, outer: int, dilation: int, bias: bool) -> nn.Sequential:
            conv = nn.Conv1d(inner, outer, 3, padding=dilation, dilation=dilation, bias=bias)
            return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm1d(outer))

        self.conv_1, self.conv_2, self.conv_3 = (unit(dim, width, d, True) for d in (1, 2, 4))
        self.conv_4 = nn.Sequential(nn.Conv1d(dim, width, 1, bias=False), nn.ReLU())
        self.conv_5 = unit(4 * width, dim, 1, False)
        self.non_local = NonLocal(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        x = x.permute(0, 2, 1)
        near = torch.cat([self.conv_1(x), self.conv_2(x), self.conv_3(x)], dim=1)
        far = self.non_local(self.conv_4(x))
        fused = self.conv_5(torch.cat([near, far], dim=1)) + x
        return fused.permute(0, 2, 1)


class Model(nn.Module):
    """The network, its loss and its scores.

    Args:
        dim: D, 2048 for I3D ResNet-50.
        width: channels of a branch; published: D // 4.
    """

    def __init__(self, dim: int, width: int | None = None, hidden: tuple[int, int] = (512, 128)) -> None:
        super().__init__()
        self.Aggregate = Aggregate(dim, width or dim // 4)
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, hidden[0]), nn.Linear(*hidden), nn.Linear(hidden[1], 1)
        self.drop_out = nn.Dropout(DROP)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, T, D) -> scores (B, T), the mean over crops, and features (B, K, T, D)."""
        B, K, T, D = x.shape
        features = self.drop_out(self.Aggregate(x.reshape(B * K, T, D)))
        h = self.drop_out(torch.relu(self.fc1(features)))
        h = self.drop_out(torch.relu(self.fc2(h)))
        scores = torch.sigmoid(self.fc3(h))
        return scores.view(B, K, T).mean(1), features.view(B, K, T, D)

    def select(self, features: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Half a batch -> features (K * b, top, D) and mean scores (b,) of the segments of largest magnitude."""
        magnitudes = features.norm(p=2, dim=3).mean(1)
        magnitudes = magnitudes * self.drop_out(torch.ones_like(magnitudes))
        best = torch.topk(magnitudes, min(TOP, magnitudes.shape[1]), dim=1)[1]
        index = best.unsqueeze(2).expand(-1, -1, features.shape[3])
        of_crops = [torch.gather(crop, 1, index) for crop in features.permute(1, 0, 2, 3)]
        return torch.cat(of_crops, 0), torch.gather(scores, 1, best).mean(1)

    def loss(self, normal: Tensor, anomalous: Tensor) -> Tensor:
        """Both (b, K, T, D) -> (), all terms together."""
        b = len(normal)
        scores, features = self(torch.cat([normal, anomalous], 0))
        chosen_high, high = self.select(features[b:], scores[b:])
        chosen_low, low = self.select(features[:b], scores[:b])
        labels = torch.cat([torch.zeros(b), torch.ones(b)]).to(scores)
        bce = nn.functional.binary_cross_entropy(torch.cat([low, high], 0), labels)
        away = torch.abs(MARGIN - torch.norm(torch.mean(chosen_high, dim=1), p=2, dim=1))
        near = torch.norm(torch.mean(chosen_low, dim=1), p=2, dim=1)
        flat = scores[b:].reshape(-1)
        smooth = torch.sum((flat[1:] - flat[:-1]) ** 2)
        sparse = torch.norm(flat, dim=0)
        return bce + ALPHA * torch.mean((away + near) ** 2) + SMOOTH * smooth + SPARSE * sparse

    def scores(self, x: Tensor) -> Tensor:
        """A whole video (K, T, D) -> (T,); the segments to select are looked for in evaluation too."""
        scores, features = self(x[None])
        self.select(features, scores)
        return scores[0]


def optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-3)
