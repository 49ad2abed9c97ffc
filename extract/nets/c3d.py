"""C3D (Tran et al., ICCV 2015, https://arxiv.org/abs/1412.0767) as trained on Sports-1M in Caffe."""

import re

import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

from extract.nets.conv3d import Conv3d

POOL5 = ("ceil", "symmetric")
SPORTS1M_CLASSES = 487
_CONVS = {  # inputs and outputs
    "conv1": (3, 64),
    "conv2": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}
_POOLED = {"conv1": (1, 2, 2), "conv2": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2)}


class C3D(nn.Module):
    """C3D. `forward` (M, 3, 16, 112, 112), BGR minus the mean -> fc6 behind its ReLU (M, 4096).

    Args:
        pool5: windows of the last max-pool over the 7 x 7 map: "ceil" [0, 1] [2, 3] [4, 5] [6], as Caffe and so the
            weights of fc6 have it; "symmetric" [0] [1, 2] [3, 4] [5, 6], as torch ports have it (DavideA's, ekosman's,
            mmaction2's).
    """

    def __init__(self, *, pool5: str = "ceil") -> None:
        super().__init__()
        if pool5 not in POOL5:
            raise ValueError(f"pool5 must be one of {', '.join(POOL5)}, got '{pool5}'")
        self.pool5 = pool5
        for name, (inputs, outputs) in _CONVS.items():
            self.add_module(name, Conv3d(inputs, outputs, 3, padding=1))
        self.fc6 = nn.Linear(8192, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8: nn.Linear | None = nn.Linear(4096, SPORTS1M_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if x.shape[1:] != (3, 16, 112, 112):
            raise ValueError(f"C3D takes clips (M, 3, 16, 112, 112), got {tuple(x.shape)}: fc6 has one size")
        for name in _CONVS:
            x = F.relu(getattr(self, name)(x), inplace=True)
            if name in _POOLED:
                x = F.max_pool3d(x, _POOLED[name], _POOLED[name])
        return F.relu(self.fc6(last_pool(x, self.pool5).flatten(1)), inplace=True)

    def classify(self, features: Tensor) -> Tensor:
        """Features (M, 4096) -> logits (M, 487). Raises ValueError on weights that came without fc8."""
        if self.fc8 is None:
            raise ValueError("these weights hold no classifier (fc8): use c3d_sports1m")
        logits: Tensor = self.fc8(F.relu(self.fc7(features)))
        return logits

    def fit_classifier(self, classes: int) -> None:
        """Gives the classifier another number of classes, 0 for none, before weights are loaded."""
        self.fc8 = nn.Linear(4096, classes) if classes else None


def last_pool(x: Tensor, windows: str) -> Tensor:
    """Max over 2 x 2 x 2 at stride 2, (M, C, T, h, w) of a ReLU -> (M, C, T / 2, ceil(h / 2), ceil(w / 2)) for "ceil",
    (..., floor(h / 2) + 1, floor(w / 2) + 1) for "symmetric"."""
    if windows == "symmetric":
        return F.max_pool3d(x, 2, 2, (0, 1, 1))
    return F.max_pool3d(x, 2, 2, ceil_mode=True)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key names of DavideA's c3d.pickle, or of mmaction2 (with or without its `backbone.`) -> the module's."""
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    key = key.removeprefix("backbone.").replace("cls_head.fc_cls.", "fc8.")
    return re.sub(r"^(conv[1-5])([ab])\.conv\.", lambda found: _layer(found[1], found[2]), key)


def _layer(conv: str, letter: str) -> str:
    """mmaction2 calls the single layers of the first two stages conv1a and conv2a."""
    return f"{conv}{'' if conv in _CONVS else letter}."
