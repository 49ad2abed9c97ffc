"""Convolutions and norms that end where a video ends, crops as further videos: against plain loops in float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mil.layers.conv import conv
from mil.layers.crops import crop_mean, fold, spread, unfold
from mil.layers.kept import Staged
from mil.layers.mgfn_blocks import ChannelNorm
from mil.layers.norm import batch_norm, batch_norm_by_sums, group_norm


def slow_conv(layer, x, lengths):
    """Each video alone, zeros around it; (N, T, D_in) -> (N, T, D_out)."""
    weight = layer.weight.detach().numpy()  # (out, in / groups, kernel)
    bias = layer.bias.detach().numpy() if layer.bias is not None else np.zeros(len(weight))
    pad, dilation, per_group = layer.padding[0], layer.dilation[0], weight.shape[1]
    out = np.zeros((*x.shape[:2], len(weight)))
    for n, length in enumerate(lengths):
        for t in range(length):
            for o in range(len(weight)):
                group = o // (len(weight) // layer.groups)
                total = bias[o]
                for j in range(weight.shape[2]):
                    s = t + j * dilation - pad
                    if 0 <= s < length:
                        own = x[n, s, group * per_group : (group + 1) * per_group]
                        total += float(weight[o, :, j] @ own)
                out[n, t, o] = total
    return out


LAYERS = {
    "kernel 1": {"kernel_size": 1},
    "kernel 1, no bias": {"kernel_size": 1, "bias": False},
    "kernel 3": {"kernel_size": 3, "padding": 1},
    "kernel 5, no bias": {"kernel_size": 5, "padding": 2, "bias": False},
    "dilation 4": {"kernel_size": 3, "padding": 4, "dilation": 4},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rubbish", [0.0, 1e3])
def test_a_convolution_sees_each_video_alone(kind, rubbish):
    """Whatever stands in the padding: a bias of the layer before, or anything else."""
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 6, **LAYERS[kind]).double()
    lengths = [6, 1, 3]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    x[~mask] = rubbish
    found = conv(layer, x, mask).detach().numpy()
    assert np.abs(found - slow_conv(layer, x.numpy(), lengths)).max() < 1e-12
    for n, length in enumerate(lengths):
        alone = conv(layer, x[n : n + 1, :length], mask[n : n + 1, :length]).detach().numpy()
        assert np.abs(alone[0] - found[n, :length]).max() < 1e-12
        assert (found[n, length:] == 0).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_padding_gets_no_gradient_and_gives_none_to_the_bias(kernel):
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 3, kernel, padding=kernel // 2).double()
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([5, 2])[:, None]
    conv(layer, x, mask).sum().backward()
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).all()
    assert layer.bias.grad.tolist() == [7.0] * 3  # the segments there are


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_crops_of_a_video_stay_side_by_side(videos, crops, length, dim):
    x = torch.arange(videos * crops * length * dim).reshape(videos, crops, length, dim)
    folded = fold(x)
    assert folded.shape == (videos * crops, length, dim)
    mask = torch.arange(videos * length).reshape(videos, length)
    shared = spread(mask, crops)
    for b in range(videos):
        for k in range(crops):
            assert torch.equal(folded[b * crops + k], x[b, k])
            assert torch.equal(shared[b * crops + k], mask[b])
    assert torch.equal(unfold(folded, crops), x)
    assert torch.equal(unfold(folded[:, 0, 0], crops), x[:, :, 0, 0])  # a number of each crop


def test_the_mean_over_crops_is_0_where_padded():
    scores = torch.tensor([[[0.2, 0.5, 0.7], [0.4, 0.9, 0.1]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    assert crop_mean(scores, mask)[0].tolist() == pytest.approx([0.3, 0.7, 0.0], abs=1e-12)


@pytest.mark.parametrize("lengths", [[6, 1, 3], [6, 6, 6], [0, 2, 0]])
@pytest.mark.parametrize("rubbish", [0.0, 1e3])
def test_both_batch_norms_are_those_of_the_rows_that_are_there(lengths, rubbish):
    """What a CPU does and what spares a GPU's host: scores, gradients and what is kept, after two steps."""
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    found = []
    for norm in (batch_norm, batch_norm_by_sums, None):
        torch.manual_seed(0)
        layer = nn.BatchNorm1d(4, momentum=0.3).double()
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        for _ in range(2):
            x = (3 * torch.randn(3, 6, 4, dtype=torch.float64) + 5).masked_fill(~mask[..., None], rubbish)
            x.requires_grad_()
            if norm:
                y = norm(layer, x, mask)
            else:
                rows = layer(torch.stack([x[n, t] for n, length in enumerate(lengths) for t in range(length)]))
                places = [n * 6 + t for n, length in enumerate(lengths) for t in range(length)]
                y = torch.zeros(18, 4, dtype=torch.float64).index_put((torch.tensor(places),), rows).view(3, 6, 4)
            (y * torch.linspace(-1, 1, 72, dtype=torch.float64).view(3, 6, 4)).square().sum().backward()
        found.append([y.detach(), x.grad, layer.weight.grad, layer.bias.grad, *layer.buffers()])
    for ours in found[:2]:
        for a, b in zip(ours, found[2], strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() < 1e-9 * (1 + b.abs().max())


def test_both_batch_norms_agree_in_float32_and_sums_are_not_taken_in_bfloat16():
    torch.manual_seed(0)
    x, mask = torch.randn(8, 20, 5) + 1, torch.rand(8, 20) > 0.3
    there, summed, short = (nn.BatchNorm1d(5) for _ in range(3))
    assert (batch_norm(there, x, mask) - batch_norm_by_sums(summed, x, mask)).abs().max() < 1e-6
    for a, b in zip(there.buffers(), summed.buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-6, atol=1e-6)
    rounded = x.bfloat16()
    found, expected = batch_norm_by_sums(short, rounded, mask), batch_norm(nn.BatchNorm1d(5), rounded.float(), mask)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_statistics_are_not_taken_in_bfloat16():
    """Far from 0, where bfloat16's steps are as large as what is measured."""
    torch.manual_seed(0)
    mask = torch.arange(40) < torch.tensor([40, 25])[:, None]
    x = ((torch.randn(2, 40, 16) + 20) * mask[..., None]).bfloat16()
    groups, channels = nn.GroupNorm(4, 16), ChannelNorm(16)
    for norm in (lambda x: group_norm(groups, x, mask), channels):
        found, expected = norm(x), norm(x.double())
        assert (found.dtype, expected.dtype) == (torch.bfloat16, torch.float64)
        assert ((found - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all()  # of the result's own rounding
        assert expected[mask].std() > 0.5


def test_a_stage_stays_on_the_host_and_in_the_state_dict():
    class Part(Staged):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

    part = Part()
    part.stage.fill_(4)
    moved = copy.deepcopy(part).to("meta")
    assert moved.layer.weight.device.type == "meta"
    assert (int(moved.stage), int(moved.double().state_dict()["stage"])) == (4, 4)
    fresh = Part()
    fresh.load_state_dict(part.state_dict(), strict=True)
    assert int(fresh.stage) == 4
