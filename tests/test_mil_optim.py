"""Parameter groups against one torch optimizer for each parameter; learning rates against torch's own schedulers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mil.config import ConfigError, GroupConfig, OptimizerConfig, TrainConfig
from mil.optim import Schedule, make_optimizer


class Net(nn.Module):
    """Names that begin alike; `frozen` takes no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 3)
        self.fc2 = nn.Linear(3, 3)
        self.score = nn.Linear(3, 1, bias=False)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.score(self.fc2(self.fc(x) * self.frozen).tanh()).square().mean()


def stepped(net, optimizers, steps=5):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        net.zero_grad()
        net(x).backward()
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


# {parameter: (lr, weight decay)} that the groups of the test below ask for; the longest prefix wins
WANTED = {
    "fc.weight": (0.02, 0.3),  # "fc"
    "fc.bias": (0.02, 0.3),
    "fc2.weight": (0.01, 0.0),  # "fc2": the recipe's own rate
    "fc2.bias": (0.0, 0.1),  # "fc2.b": does not move at all
    "score.weight": (0.01, 0.1),  # of no group
}
GROUPS = {
    "fc2.b": GroupConfig(lr=0.0),
    "fc": GroupConfig(lr=0.02, weight_decay=0.3),
    "fc2": GroupConfig(weight_decay=0.0),
}
KINDS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


@pytest.mark.parametrize("name", KINDS)
def test_groups_are_optimizers_of_their_own(name):
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1, momentum=0.9, eps=1e-4, groups=GROUPS)
    optimizer = make_optimizer(config, net := Net())
    assert type(optimizer) is KINDS[name]
    found = stepped(net, [optimizer])
    own = {"momentum": 0.9} if name == "sgd" else {"eps": 1e-4}
    other = Net()
    each = [
        KINDS[name]([dict(other.named_parameters())[n]], lr=lr, weight_decay=decay, **own)
        for n, (lr, decay) in WANTED.items()
    ]
    expected = stepped(other, each)
    start = dict(Net().named_parameters())
    for n, value in expected.items():
        assert torch.allclose(found[n], value, rtol=0, atol=1e-7), n
        assert torch.equal(value, start[n]) == (n in ("frozen", "fc2.bias")), n


def test_every_parameter_is_in_one_group_and_frozen_ones_in_none():
    optimizer = make_optimizer(OptimizerConfig(groups=GROUPS), net := Net())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_without_groups_there_is_one():
    (group,) = make_optimizer(OptimizerConfig(lr=0.5, weight_decay=0.25), Net()).param_groups
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.5, 0.25, 5)
    assert group["eps"] == 1e-8  # torch's own where the recipe says nothing


def test_a_prefix_that_no_parameter_has_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no parameter of the head begins with 'fc3'; it has frozen, fc\.weight"):
        make_optimizer(OptimizerConfig(groups={"fc": GroupConfig(lr=1), "fc3": GroupConfig(lr=1)}), Net())
    # one whose parameters all belong to longer prefixes is none of those
    make_optimizer(
        OptimizerConfig(groups={"fc2": GroupConfig(lr=1), "fc2.w": GroupConfig(), "fc2.b": GroupConfig()}), Net()
    )


# -- learning rates ---------------------------------------------------------------------------------------------------


def torch_rates(scheduler_of, epochs, lr=0.04):
    """The rate of every epoch by torch's scheduler, stepped at the end of each."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


SCHEDULES = {
    "constant": ({}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": ({}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=11)),
    "cosine to a longer end": ({"t_max": 15}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=15)),
    "cosine and up again": ({"t_max": 4}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=4)),
    "milestones": (
        {"milestones": (2, 7), "gamma": 0.3},
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 7], 0.3),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("per_epoch", [1, 3])
def test_in_epochs_rates_are_torchs_stepped_after_each(name, per_epoch):
    own, scheduler_of = SCHEDULES[name]
    config = TrainConfig(steps=5, epochs=11, lr_schedule=name.split()[0], **own)
    schedule = Schedule(config, per_epoch)
    assert schedule.steps == 11 * per_epoch
    expected = [rate for rate in torch_rates(scheduler_of, 11) for _ in range(per_epoch)]
    assert [0.04 * schedule.factor(step) for step in range(1, schedule.steps + 1)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_in_steps_rates_are_torchs_stepped_after_each(name):
    own, scheduler_of = SCHEDULES[name]
    schedule = Schedule(TrainConfig(steps=11, lr_schedule=name.split()[0], **own), per_epoch=3)
    assert schedule.steps == 11
    found = [0.04 * schedule.factor(step) for step in range(1, 12)]
    assert found == pytest.approx(torch_rates(scheduler_of, 11), abs=1e-12)


def test_rates_by_hand():
    """Two epochs of two steps: cosine gives 1, 1, 1/2, 1/2. A milestone is the first epoch (from 0) of the new rate."""
    cosine = Schedule(TrainConfig(epochs=2, lr_schedule="cosine"), per_epoch=2)
    assert [cosine.factor(s) for s in (1, 2, 3, 4)] == pytest.approx([1, 1, 0.5, 0.5])
    falling = Schedule(TrainConfig(epochs=3, lr_schedule="milestones", milestones=(1,), gamma=0.1), per_epoch=2)
    assert [falling.factor(s) for s in range(1, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_cosine_falls_from_the_whole_rate_and_never_below_0(epochs, per_epoch, t_max):
    schedule = Schedule(TrainConfig(epochs=epochs, lr_schedule="cosine", t_max=t_max), per_epoch)
    factors = [schedule.factor(step) for step in range(1, schedule.steps + 1)]
    assert factors[0] == 1
    assert all(0 <= f <= 1 for f in factors)
    falling = factors[: t_max * per_epoch]
    assert all(b <= a for a, b in itertools.pairwise(falling))
    assert all(math.isclose(factors[i], factors[i - i % per_epoch]) for i in range(len(factors)))


def test_groups_keep_their_share_of_the_rate_and_a_resumed_optimizer_too():
    config = TrainConfig(
        epochs=2, lr_schedule="cosine", optimizer={"lr": 0.01, "groups": {"fc.": {"lr": 0.02}, "score": {"lr": 0.0}}}
    )
    schedule, net = Schedule(config, per_epoch=5), Net()
    optimizer = make_optimizer(config.optimizer, net)
    again = make_optimizer(config.optimizer, net)

    def rates(of):
        by_parameter = {id(p): group["lr"] for group in of.param_groups for p in group["params"]}
        return [by_parameter[id(p)] for p in (net.fc.weight, net.fc2.bias, net.score.weight)]

    assert schedule.apply(optimizer, 1) == rates(optimizer)[0] == 0.02
    schedule.apply(optimizer, 8)
    assert rates(optimizer) == pytest.approx([0.01, 0.005, 0])
    schedule.apply(optimizer, 9)  # a share of the base rate, not of the last one
    assert rates(optimizer) == pytest.approx([0.01, 0.005, 0])
    again.load_state_dict(optimizer.state_dict())
    schedule.apply(again, 3)
    assert rates(again) == pytest.approx([0.02, 0.01, 0])
