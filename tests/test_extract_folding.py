"""Batch norms folded into convolutions: the same function, and never where something else reads the convolution."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extract.folding import fold_batch_norms

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def shaken(net, seed=0):
    """With statistics, scales and shifts as training leaves them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, tuple(NORM.values())) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.2, 3, generator=generator)
            if module.affine:
                module.weight.data.uniform_(-2, 2, generator=generator)
                module.bias.data.normal_(generator=generator)
        elif isinstance(module, tuple(CONV.values())):
            for parameter in module.parameters():
                parameter.data.normal_(std=0.3, generator=generator)
    return net.eval().requires_grad_(False)


def norms_in(net):
    return [name for name, m in net.named_modules() if isinstance(m, tuple(NORM.values()))]


def check(net, shape, count, *, double=True):
    """Folds a copy; its outputs are those of the net, in float32 to rounding and in float64 to next to nothing."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12))[: 1 + double]:
        plain = copy.deepcopy(net).to(dtype)
        folded = copy.deepcopy(plain)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        before = len(norms_in(folded))
        assert fold_batch_norms(folded, shape) == count
        assert len(norms_in(folded)) == before - count
        wanted, found = plain(x), folded(x)
        assert wanted.std() > 0
        assert (wanted - found).abs().max() <= tolerance * wanted.abs().max()
    return folded


@settings(max_examples=15, deadline=None)
@given(
    dims=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 4]),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.1]),
    stride=st.sampled_from([1, 2]),
    depth=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_chains_of_any_kind(dims, bias, groups, affine, eps, stride, depth, seed):
    blocks = [
        nn.Sequential(
            CONV[dims](4, 4, 3, stride=stride, padding=1, groups=groups, bias=bias),
            NORM[dims](4, eps=eps, affine=affine),
            nn.LeakyReLU(0.5),
        )
        for _ in range(depth)
    ]
    check(shaken(nn.Sequential(*blocks), seed), (2, 4, *[8] * dims), depth)


def test_the_folded_numbers_are_those_of_the_formula():
    """By hand, one weight: y = (w x + b - mean) / sqrt(var + eps) * scale + shift."""
    net = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, eps=0.25)).eval().double()
    for tensor, value in (
        (net[0].weight, 3.0),
        (net[0].bias, 5.0),
        (net[1].running_mean, 7.0),
        (net[1].running_var, 2.0),
        (net[1].weight, 6.0),
        (net[1].bias, 11.0),
    ):
        tensor.data.fill_(value)
    assert fold_batch_norms(net, (1, 1, 1)) == 1
    assert net[0].weight.item() == pytest.approx(3 / 1.5 * 6, rel=1e-15)
    assert net[0].bias.item() == pytest.approx((5 - 7) / 1.5 * 6 + 11, rel=1e-15)


class Graph(nn.Module):
    """Two convolutions and two norms, put together by `forward`'s argument."""

    def __init__(self, wiring, dims=2):
        super().__init__()
        self.wiring = wiring
        self.conv, self.other = CONV[dims](4, 4, 3, padding=1), CONV[dims](4, 4, 1)
        self.norm, self.second = NORM[dims](4), NORM[dims](4)
        self.relu, self.same = nn.ReLU(), nn.Identity()

    def forward(self, x):
        return self.wiring(self, x)


def two_norms_read_it(net, x):
    y = net.conv(x)
    return net.norm(y) + net.second(y)


def a_module_reads_it(net, x):
    y = net.conv(x)
    return net.norm(y) + net.relu(y)


def a_shortcut_around_the_norm(net, x):
    y = net.conv(x)
    return net.norm(y) + y


def a_function_reads_it(net, x):
    y = net.conv(x)
    return torch.cat([net.norm(y), torch.tanh(y)], 1)


def a_list_holds_it(net, x):
    y = net.conv(x)
    return torch.cat([y, net.norm(y)], 1)


def changed_in_place(net, x):
    y = net.conv(x)
    y.relu_()
    return net.norm(y)


def returned_beside(net, x):
    y = net.conv(x)
    z = net.norm(y)
    return z if isinstance(y, torch.Tensor) and y.device.type != "meta" else {"features": z, "maps": [y]}


def the_norm_is_used_twice(net, x):
    return net.norm(net.other(net.norm(net.conv(x))))


def the_convolution_is_used_twice(net, x):
    return net.norm(net.conv(net.conv(x)))


def the_norm_comes_first(net, x):
    return net.conv(net.norm(x))


def something_between(net, x):
    return net.norm(net.relu(net.conv(x)))


def a_view_between(net, x):
    y = net.conv(x)
    return net.norm(y.flip(-1))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "wiring",
    [
        two_norms_read_it,
        a_module_reads_it,
        a_shortcut_around_the_norm,
        a_function_reads_it,
        a_list_holds_it,
        changed_in_place,
        returned_beside,
        the_norm_is_used_twice,
        the_convolution_is_used_twice,
        the_norm_comes_first,
        something_between,
        a_view_between,
    ],
)
def test_what_must_not_be_folded(wiring, dims):
    check(shaken(Graph(wiring, dims)), (2, 4, *[6] * dims), 0)


def test_reading_a_shape_is_no_use():
    def wiring(net, x):
        y = net.conv(x)
        assert y.shape[1] == 4
        assert y.dim() == 4
        assert y.dtype.is_floating_point
        return net.norm(y)

    check(shaken(Graph(wiring)), (2, 4, 6, 6), 1)


def test_nested_modules_and_a_residual_net():
    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, bias=False),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
                nn.ModuleDict({"conv": nn.Conv3d(outputs, outputs, 3, padding=1, groups=2)})["conv"],
                nn.BatchNorm3d(outputs, affine=False),
            )
            self.shortcut = nn.Sequential(nn.Conv3d(inputs, outputs, 1), nn.BatchNorm3d(outputs))
            self.before = nn.BatchNorm3d(inputs)

        def forward(self, x):
            x = self.before(x)
            return torch.relu(self.branch(x) + self.shortcut(x))

    net = shaken(nn.Sequential(Block(2, 4), nn.MaxPool3d(2), Block(4, 6)))
    folded = check(net, (2, 2, 6, 6, 6), 6)
    assert norms_in(folded) == ["0.before", "2.before"]


def test_one_norm_under_two_names_stays():
    net = Graph(lambda net, x: net.second(net.conv(x)))
    net.second = net.norm
    check(shaken(net), (2, 4, 6, 6), 0)


def test_a_norm_without_statistics_stays():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    check(shaken(net), (2, 4, 6, 6), 0)


def test_tied_weights_are_not_folded_into_each_other():
    """Two convolutions of one weight, one of them in front of a norm."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    check(shaken(Tied()), (2, 4, 5, 5), 1)


def test_nothing_of_the_net_but_the_fold_changes():
    net = shaken(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    last = net[2].weight.clone()
    fold_batch_norms(net, (1, 2, 8, 8))
    assert torch.equal(net[2].weight, last)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert not net[0].weight.requires_grad
    assert not net[0].bias.requires_grad
    assert net[0].weight.dtype == net[0].bias.dtype == torch.float32
    assert fold_batch_norms(net, (1, 2, 8, 8)) == 0
