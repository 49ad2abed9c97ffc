"""Convolutions over time that end where a video ends."""

from typing import Any

import torch
from torch import Tensor, nn

from mil.layers.winograd import conv_of_three


def conv(layer: nn.Conv1d, x: Tensor, mask: Tensor) -> Tensor:
    """A Conv1d over time: (N, T, D_in), (N, T) bool -> (N, T, D_out), 0 where padded.

    Padded rows go in as zeros, so that a video's last segments see what they would see alone: the layer's own zero
    padding. Earlier layers' biases would otherwise leak from there. Raises ValueError for a layer that pads with
    anything else: it would take that from the padding.
    """
    if layer.padding_mode != "zeros":
        raise ValueError(f"a convolution over padded videos wants padding_mode='zeros', got '{layer.padding_mode}'")
    there = mask[..., None]
    if layer.kernel_size == (1,) and _moves_one(layer) and layer.padding == (0,):
        return rows(layer, x) * there
    return same_conv(layer, x * there) * there


def rows(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A Conv1d of kernel 1, which sees every segment by itself: (N, T, D_in) -> (N, T, D_out)."""
    return nn.functional.linear(x, layer.weight.squeeze(-1), layer.bias)


def same_conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A Conv1d whose result is as long as its input, (N, T, D_in) -> (N, T, D_out).

    Three taps go the way of mil/layers/winograd.py on a CPU. Others are one matrix product for all taps, then a sum of
    their results, each moved in time: rows stay rows, and a product of that size comes nearer to a processor's peak
    than its convolutions do, above all in the gradient.
    """
    (taps,), (dilation,) = layer.kernel_size, layer.dilation
    around = layer.padding == (taps // 2 * dilation,) and layer.padding_mode == "zeros"
    if not (_moves_one(layer) and taps % 2 and around):
        y: Tensor = layer(x.transpose(1, 2)).transpose(1, 2)
        return y
    if taps == 3 and _bears_differences(layer, x):
        return _biased(conv_of_three(x, layer.weight, dilation), layer)
    return _by_taps(layer, x, [(tap - taps // 2) * dilation for tap in range(taps)])


def past_conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A Conv1d without padding of its own, over each segment and those before it; (N, T, D_in) -> (N, T, D_out).

    Before the first segment lie zeros. Raises ValueError for a layer that pads, or has a stride or groups.
    """
    (taps,), (dilation,) = layer.kernel_size, layer.dilation
    if not (_moves_one(layer) and layer.padding in ((0,), "valid")):
        raise ValueError(f"past_conv wants a Conv1d with padding 0, stride 1 and groups 1, got {layer}")
    return _by_taps(layer, x, [(tap + 1 - taps) * dilation for tap in range(taps)])


def _moves_one(layer: nn.Conv1d) -> bool:
    """Whether it gives a result for every segment, from all features of those it sees."""
    return layer.groups == 1 and layer.stride == (1,)


def _bears_differences(layer: nn.Conv1d, x: Tensor) -> bool:
    """Whether it computes on a CPU with digits enough; other devices, and torch.compile, have ways of their own."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.dtype == layer.weight.dtype and x.dtype in (torch.float32, torch.float64)


def _biased(y: Tensor, layer: nn.Conv1d) -> Tensor:
    return y if layer.bias is None else y + layer.bias


def _by_taps(layer: nn.Conv1d, x: Tensor, offsets: list[int]) -> Tensor:
    kernels = layer.weight.permute(2, 0, 1).flatten(0, 1)  # (taps * D_out, D_in)
    each = nn.functional.linear(x, kernels).view(*x.shape[:2], len(offsets), -1)
    moved: Tensor = _SumOfTaps.apply(each, offsets)  # type: ignore[no-untyped-call]
    return _biased(moved, layer)


class _SumOfTaps(torch.autograd.Function):
    """y[t] = sum over taps of z[t + offset of the tap, tap]; (N, T, taps, D) -> (N, T, D). One offset is 0.

    Slices of one tensor that are added would each have a gradient as large as all of it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, offsets: list[int]) -> Tensor:
        ctx.shape, ctx.offsets = z.shape, offsets
        y = z[:, :, offsets.index(0)].clone(memory_format=torch.contiguous_format)
        for tap, offset in enumerate(offsets):
            to, of = _moved(z.shape[1], offset)
            if offset:
                y[:, to] += z[:, of, tap]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        dz = grad.new_empty(ctx.shape)
        for tap, offset in enumerate(ctx.offsets):
            to, of = _moved(ctx.shape[1], offset)
            dz[:, : of.start, tap] = 0
            dz[:, of.stop :, tap] = 0
            dz[:, of, tap] = grad[:, to]
        return dz, None


def _moved(length: int, offset: int) -> tuple[slice, slice]:
    """The rows that a tap adds to, and as many that it takes, `offset` later."""
    by = max(-length, min(offset, length))
    return slice(max(-by, 0), length - max(by, 0)), slice(max(by, 0), length - max(-by, 0))
