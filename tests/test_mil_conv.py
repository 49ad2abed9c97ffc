"""Convolutions as matrix products against torch's own; dropout against what it says about its factors."""

import pytest
import torch
from torch import nn

from mil.layers.causal import left_conv
from mil.layers.conv import conv, past_conv, same_conv
from mil.layers.dropout import Dropout
from mil.layers.winograd import conv_of_three, keeping


def with_gradients(layer, call, x, weight):
    y = call(x)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("taps", "dilation"), [(3, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_sum_of_moved_products_is_torchs_convolution(taps, dilation, length, bias):
    """4 segments and a reach of 4: taps that never meet a segment."""
    torch.manual_seed(0)
    same = nn.Conv1d(4, 6, taps, padding=taps // 2 * dilation, dilation=dilation, bias=bias).double()
    past = nn.Conv1d(4, 6, taps, dilation=dilation, bias=bias).double()
    x, weight = torch.randn(3, length, 4).double().requires_grad_(), torch.randn(3, length, 6).double()
    for layer, ours, padded in (
        (same, same_conv, x.transpose(1, 2)),
        (past, past_conv, nn.functional.pad(x.transpose(1, 2), ((taps - 1) * dilation, 0))),
    ):
        found = with_gradients(layer, lambda v, f=ours, m=layer: f(m, v), x, weight)
        expected = with_gradients(layer, lambda _, m=layer, p=padded: m(p).transpose(1, 2), x, weight)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() < 1e-12
    with torch.no_grad():
        there = torch.ones(3, length, dtype=torch.bool)
        assert (past_conv(past, x) - left_conv(past, x, there)).abs().max() < 1e-12


@pytest.mark.parametrize("dilation", [1, 4])
def test_three_taps_lose_no_more_than_half_a_digit_in_float32(dilation):
    """Beside one matrix product for each tap, which is as near as float32 comes."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 40, 512).relu(), torch.randn(64, 512, 3)
    padded = nn.functional.pad(x, (0, 0, dilation, dilation))
    taps = [(padded[:, i * dilation :][:, :40], weight[..., i].T) for i in range(3)]
    exact = sum(part.double() @ w.double() for part, w in taps)
    rms = [
        float((y - exact).square().mean().sqrt())
        for y in (sum(a @ w for a, w in taps), conv_of_three(x, weight, dilation))
    ]
    assert 0 < rms[0] < rms[1] < 3 * rms[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_no_differences_are_taken(autocast):
    """Whole numbers whose sums bfloat16 holds come out exact; half the sum of the taps would have a digit too many."""
    x = torch.tensor([-3, 2, 84, 81, 79, 78])[None, :, None].float()
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    expected = layer(x.mT).mT
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = same_conv(layer, x) if autocast else same_conv(layer.bfloat16(), x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_a_penalty_of_gradients_has_a_gradient(needed):
    """As with torch's own, whichever of the two it is asked for."""
    torch.manual_seed(0)
    given = [
        torch.randn(shape).double().requires_grad_(on) for shape, on in zip(((2, 5, 3), (4, 3, 3)), needed, strict=True)
    ]
    asked = [t for t in given if t.requires_grad]
    found = []
    for call in (conv_of_three, lambda x, w: nn.functional.conv1d(x.mT, w, padding=1).mT):
        first = torch.autograd.grad(call(*given).sin().sum(), asked, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), asked)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_compiled_it_is_one_graph():
    """Kernels that are looked up, and sums in place, would break it into pieces."""
    layer, x = nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 7, 4)
    compiled = torch.compile(same_conv, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(layer, x), layer(x.mT).mT, atol=1e-5)


def test_kernels_are_kept_for_as_long_as_one_asks_and_of_parameters_alone():
    layer, x = nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 8, 4)
    kernels = {}
    with torch.no_grad():
        with keeping(kernels):
            first = same_conv(layer, x)
            layer.weight.mul_(2)
            assert torch.equal(same_conv(layer, x), first)
            conv_of_three(x, layer.weight * 1)  # weights made anew for every call would pile up
        assert list(kernels) == [layer.weight]
        assert torch.allclose(same_conv(layer, x), layer(x.mT).mT, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, padding=1, groups=2),
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        nn.Conv1d(4, 6, 4, padding=2),
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(4, 6, 1, stride=2),
    ],
)
def test_other_convolutions_are_left_to_torch(layer):
    x = torch.randn(2, 8, 4)
    assert torch.equal(same_conv(layer, x), layer(x.transpose(1, 2)).transpose(1, 2))


def test_a_kernel_of_1_with_groups_or_padding_is_no_matrix_product():
    x, mask = torch.randn(2, 8, 4), torch.ones(2, 8, dtype=torch.bool)
    layer = nn.Conv1d(4, 6, 1, groups=2)
    assert torch.equal(conv(layer, x, mask), layer(x.transpose(1, 2)).transpose(1, 2))
    with pytest.raises(RuntimeError):  # 10 segments of 8
        conv(nn.Conv1d(4, 6, 1, padding=1), x, mask)


def test_convolutions_that_would_be_silently_another_are_refused():
    x, mask = torch.randn(2, 8, 4), torch.ones(2, 8, dtype=torch.bool)
    for wrong in ({"padding": 2}, {"stride": 2}, {"groups": 2}):
        with pytest.raises(ValueError, match="wants a Conv1d with padding 0, stride 1 and groups 1, got Conv1d"):
            past_conv(nn.Conv1d(4, 6, 3, **wrong), x)
    with pytest.raises(ValueError, match="wants padding_mode='zeros', got 'circular'"):
        conv(nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), x, mask)


@pytest.mark.parametrize("taps", [1, 3])
def test_nothing_is_taken_from_padding_or_left_there(taps):
    layer, x = nn.Conv1d(4, 6, taps, padding=taps // 2), torch.randn(1, 9, 4)
    mask = torch.arange(9)[None] < 5
    assert torch.allclose(conv(layer, x, mask)[:, :5], layer(x[:, :5].transpose(1, 2)).transpose(1, 2), atol=1e-6)
    assert (conv(layer, x, mask)[:, 5:] == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_dropout_keeps_its_share_and_the_mean_and_its_gradient_is_its_factor(p):
    torch.manual_seed(0)
    drop, x = Dropout(p), torch.ones(999, 101, requires_grad=True)  # not a multiple of 4
    y = drop(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())
    kept = y.detach() > 0
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation
    assert y[kept].detach().unique().tolist() == pytest.approx([1 / (1 - p)], rel=2**-14)
    # neighbours that share a number, rows below one another, and what lies a quarter further are independent
    for d in (1, 2, 4, 101, x.numel() // 4 + 1):
        a, b = kept.flatten()[:-d].double(), kept.flatten()[d:].double()
        assert abs(float(((a - a.mean()) * (b - b.mean())).mean())) < 5 * p * (1 - p) / x.numel() ** 0.5
    torch.manual_seed(5)
    again = drop(x)
    assert not torch.equal(again, y)
    torch.manual_seed(5)
    assert torch.equal(drop(x), again)


def test_dropout_is_still_outside_training_and_at_its_ends():
    x = torch.randn(5, 3)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert (Dropout(1.0)(x) == 0).all()
