"""Convolutions over time that end where a video ends."""

from torch import Tensor, nn


def conv(layer: nn.Conv1d, x: Tensor, mask: Tensor) -> Tensor:
    """A Conv1d over time: (N, T, D_in), (N, T) bool -> (N, T, D_out), 0 where padded.

    Padded rows go in as zeros, so that a video's last segments see what they would see alone: the layer's own zero
    padding. Earlier layers' biases would otherwise leak from there.
    """
    if layer.kernel_size == (1,):
        weight = layer.weight.squeeze(-1)
        return nn.functional.linear(x, weight, layer.bias) * mask[..., None]
    y: Tensor = layer((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
    return y * mask[..., None]
