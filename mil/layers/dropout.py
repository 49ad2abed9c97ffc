"""Dropout whose random numbers are cheap on a CPU."""

import torch
from torch import Tensor, nn

_STEPS = 2**16  # of the probability


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU four elements share one random number of 64 bits.

    torch draws a float for every element there, which costs as much as a small layer. The share that is kept is
    1 - p rounded to a multiple of 2^-16, and what is kept is divided by that, so that means stay exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape; x itself outside training."""
        kept = round((1 - self.p) * _STEPS)
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or plain or kept in (0, _STEPS):
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in [-2^15, 2^15)
        factor = torch.lt(drawn, kept - _STEPS // 2, out=torch.empty_like(x, requires_grad=False))
        return x * factor.mul_(_STEPS / kept)
