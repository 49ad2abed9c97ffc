"""RAFT optical flow (Teed and Deng, ECCV 2020, https://arxiv.org/abs/2003.12039), torchvision's nets and weights."""

import importlib
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from extract import weights as weight_store
from extract.backbones.base import BackboneError
from extract.decode import Frame
from extract.device import torch_device
from extract.flow import Flow, FlowAlgorithm
from extract.shim import import_torchvision

_STRIDE = 8  # features are computed at 1/8
_LEAST = 128  # four levels of halving above them leave 2 x 2


class RaftFlow(FlowAlgorithm[Tensor]):
    """RAFT on RGB frames; they are padded with their border to multiples of 8, at least 128.

    Args:
        size: "large" (5.26 M parameters) or "small" (0.99 M).
        weights: a file; a name from `wsvad weights ls`; "random" or "random:SEED" for an untrained net. By default
            torchvision's of that size.
        device: "auto", "cpu", "cuda". On a CPU a pair of 341x256 takes 1.4 s (small) to 16 s (large).
        iterations: updates of the flow; 12 as torchvision evaluates, 20 as video_features does.
        batch: pairs at once on a GPU. A CPU takes one at a time.

    Raises WeightsError on weights that are not there or do not fit, BackboneError without a usable torchvision.
    """

    def __init__(
        self,
        size: str,
        *,
        weights: str | None = None,
        device: str = "auto",
        iterations: int = 12,
        batch: int = 8,
    ) -> None:
        if iterations < 1:
            raise BackboneError(f"RAFT needs at least one iteration, got {iterations}")
        name = f"raft_{size}"
        chosen = weight_store.resolve(weights, (name,), preset="raft" if size == "large" else name)
        self.identity = chosen.identity
        self.iterations = iterations
        self.device = torch_device(device)
        self.batch = 1 if self.device.type == "cpu" else batch
        import_torchvision()
        models = importlib.import_module("torchvision.models.optical_flow")
        self.net: torch.nn.Module = getattr(models, name)(weights=None)
        if chosen.path is None:
            weight_store.randomise(self.net, chosen.seed)
        else:
            weight_store.load_strict(self.net, weight_store.read(chosen.path), where=str(chosen.path))
        self.net.eval().requires_grad_(False).to(self.device)

    def prepare(self, frame: Frame) -> Tensor:
        """RGB (H, W, 3) uint8 -> (3, H, W) uint8 on the device."""
        if frame.ndim != 3:
            raise ValueError(f"RAFT compares RGB frames (H, W, 3), got {frame.shape}; read them with color='rgb'")
        return torch.from_numpy(frame).to(self.device).permute(2, 0, 1)

    def flows(self, pictures: Sequence[Tensor]) -> list[Flow]:
        """2 to `batch` + 1 frames (3, H, W) -> the flows (H, W, 2) between neighbours."""
        height, width = pictures[0].shape[1:]
        top, left, bottom, right = _margins(height, width)
        pairs = list(pairwise(pictures))
        # always a whole batch: kernels, and so the bits, do not depend on how many pairs are left
        filled = pairs + pairs[-1:] * (self.batch - len(pairs))
        with torch.inference_mode():
            stacks = (torch.stack(side).float().div_(127.5).sub_(1) for side in zip(*filled, strict=True))
            before, after = (pad(stack, (left, right, top, bottom), mode="replicate") for stack in stacks)
            flow: Tensor = self.net(before, after, num_flow_updates=self.iterations)[-1]
        inner = flow[: len(pairs), :, top : top + height, left : left + width]
        return list(inner.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _margins(height: int, width: int) -> tuple[int, int, int, int]:
    """Rows above, columns to the left, rows below, columns to the right: half of what is missing on either side."""
    rows, columns = (max(-(-size // _STRIDE) * _STRIDE, _LEAST) - size for size in (height, width))
    return rows // 2, columns // 2, rows - rows // 2, columns - columns // 2
