"""BN-Inception (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, figure 5), TSN's first net, as Caffe ran it.

Caffe rounds the size of a pooled map up, and its convolutions keep a bias in front of a batch norm.
"""

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn

# Name; 1x1; 3x3 and double 3x3, each with the 1x1 before them; pool and the 1x1 behind it.
# A block without a 1x1 halves the map and passes its pool through.
_BLOCKS = (
    ("3a", 64, (64, 64), (64, 96), "mean", 32),
    ("3b", 64, (64, 96), (64, 96), "mean", 64),
    ("3c", 0, (128, 160), (64, 96), "max", 0),
    ("4a", 224, (64, 96), (96, 128), "mean", 128),
    ("4b", 192, (96, 128), (96, 128), "mean", 128),
    ("4c", 160, (128, 160), (128, 160), "mean", 128),
    ("4d", 96, (128, 192), (160, 192), "mean", 128),
    ("4e", 0, (128, 192), (192, 256), "max", 0),
    ("5a", 352, (192, 320), (160, 224), "mean", 128),
    ("5b", 352, (192, 320), (192, 224), "max", 128),
)


class BNInception(nn.Module):
    """(M, C, T, h, w) -> (M, 1024), the mean over stacks of `stack` frames, T a multiple of it.

    The channels of a stack are frame by frame: x1, y1, x2, y2, ... of flow. The mean of features has the mean of the
    stacks' logits: it is TSN's average consensus. Key names are those of the weights that TSN's authors published,
    `conv1_7x7_s2.weight`, `inception_3a_1x1_bn.weight`.
    """

    def __init__(self, *, channels: int = 3, stack: int = 1, classes: int = 1000) -> None:
        super().__init__()
        self.stack = stack
        self._add("conv1_7x7_s2", channels * stack, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        inputs = 192
        for block, one, (reduce, three), (double_reduce, double), _, projected in _BLOCKS:
            name, stride = f"inception_{block}", 1 if one else 2
            if one:
                self._add(f"{name}_1x1", inputs, one, 1)
            self._add(f"{name}_3x3_reduce", inputs, reduce, 1)
            self._add(f"{name}_3x3", reduce, three, 3, stride=stride)
            self._add(f"{name}_double_3x3_reduce", inputs, double_reduce, 1)
            self._add(f"{name}_double_3x3_1", double_reduce, double, 3)
            self._add(f"{name}_double_3x3_2", double, double, 3, stride=stride)
            if projected:
                self._add(f"{name}_pool_proj", inputs, projected, 1)
            inputs = one + three + double + (projected or inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features, before dropout and classifier."""
        clips, channels, frames, height, width = x.shape
        stacks = frames // self.stack
        x = x.movedim(2, 1).reshape(clips * stacks, self.stack * channels, height, width)
        x = F.max_pool2d(self._run("conv1_7x7_s2", x), 3, 2, ceil_mode=True)
        x = self._run("conv2_3x3", self._run("conv2_3x3_reduce", x))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for block, one, _, _, pool, projected in _BLOCKS:
            x = self._block(f"inception_{block}", x, halves=not one, pool=pool, projects=bool(projected))
        return x.mean(dim=(2, 3)).reshape(clips, stacks, -1).mean(dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """(M, 1024) -> logits (M, classes)."""
        logits: Tensor = self.fc(features)
        return logits

    def _block(self, name: str, x: Tensor, *, halves: bool, pool: str, projects: bool) -> Tensor:
        branches = [] if halves else [self._run(f"{name}_1x1", x)]
        branches.append(self._run(f"{name}_3x3", self._run(f"{name}_3x3_reduce", x)))
        double = self._run(f"{name}_double_3x3_1", self._run(f"{name}_double_3x3_reduce", x))
        branches.append(self._run(f"{name}_double_3x3_2", double))
        if halves:
            pooled = F.max_pool2d(x, 3, 2, ceil_mode=True)
        elif pool == "max":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1)  # zeros around the map count, as in Caffe
        branches.append(self._run(f"{name}_pool_proj", pooled) if projects else pooled)
        return torch.cat(branches, dim=1)

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)), inplace=True)


_CLASSIFIERS = ("new_fc.", "last_linear.")  # TSN's own, and that of Cadene's copy of the ImageNet weights


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Any of the published namings -> ours: TSN checkpoints (`base_model.`, `new_fc`), Cadene's copy (`last_linear`).

    The file of TSN's authors keeps the vectors of batch norms as (1, C). Unknown names stay as they are, for strict
    loading to refuse.
    """
    renamed = {}
    for name, value in state.items():
        key = name.removeprefix("base_model.")
        for classifier in _CLASSIFIERS:
            if key.startswith(classifier):
                key = key.replace(classifier, "fc.")
        vector = "_bn." in key and value.ndim == 2 and len(value) == 1
        renamed[key] = value[0] if vector else value
    return renamed


def inflate(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Weights for RGB -> a start for stacks of `channels` flow maps: the first filters' mean over colours, repeated.

    Cross modality initialisation (Wang et al., ECCV 2016, section 3.2).
    """
    first = state["conv1_7x7_s2.weight"]
    return {**state, "conv1_7x7_s2.weight": first.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)}
