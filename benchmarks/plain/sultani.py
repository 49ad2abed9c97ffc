"""Deep MIL ranking (Sultani, Chen, Shah, CVPR 2018) as ports of the published code compute it, without any care for
speed. The normal half of a batch comes first. Names of parameters are those of the `ranking` head."""

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """The network, its loss and its scores.

    Args:
        dim: D, 4096 for C3D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, 512), nn.Linear(512, 32), nn.Linear(32, 1)
        self.drop = nn.Dropout(0.6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> scores (...)."""
        h = self.drop(torch.relu(self.fc1(x)))
        h = self.drop(self.fc2(h))
        return torch.sigmoid(self.fc3(h)).squeeze(-1)

    def loss(self, normal: Tensor, anomalous: Tensor) -> Tensor:
        """Both (b, 1, T, D) -> (): the hinge over all pairs, video by video, smoothness and sparsity."""
        b = len(normal)
        scores = self(torch.cat([normal, anomalous], 0).flatten(0, 1))
        low, high = scores[:b], scores[b:]
        hinge = torch.zeros((), dtype=scores.dtype)
        for n in low:
            gaps = [torch.relu(1 - a.max() + n.max()) for a in high]
            hinge = hinge + torch.stack(gaps).sum() / b
        steps = sum((a[1:] - a[:-1]).pow(2).sum() for a in high)
        return hinge + 8e-5 * (high.sum() + steps)

    def scores(self, x: Tensor) -> Tensor:
        """A whole video (K, T, D) -> (T,), the mean over crops."""
        return self(x).mean(0)


def optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.01, eps=1e-8, weight_decay=1e-3)
