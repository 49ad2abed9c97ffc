"""No host ever waits for the device inside a training step, held to without one.

The steps run on the "meta" device, whose tensors have shapes but no values: one step stands for bags of any padding.
What asks for a value cannot go on there; what would make a host wait for a GPU in other ways, or only on a GPU, is
refused by name. Heads of several stages are held to it in each of them.
"""

import copy
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mil.config import TrainConfig, validate
from mil.heads import Progress
from mil.model import Model
from mil.step import Step
from tests.mil_helpers import take
from tests.test_head_contract import bag_for, dims_of, each_head, options_of

META = torch.device("meta")
STEPS = 10

# Their results are as large as values say, or their kernels look at values before they return.
ASK = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "histc", "isin", "multinomial"),
    *("unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2", "embedding_renorm_"),
    *("_linalg_check_errors", "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_lstsq"),
}


FORMS = {}  # of results by those of the arguments: finding a form anew takes ten times as long as looking it up


class HostWaitsError(AssertionError):
    """An operation inside a step would make the host wait for the device."""


@contextmanager
def no_host_waits():
    """Refuses everything that would make the host wait for a GPU; tensors on the CPU may be asked anything."""
    with _NewTensors(), _Operations():
        yield


class _NewTensors(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor) and out.device == META:
            raise HostWaitsError(f"{function.__name__}: the host copies values to the device")
        return out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if why := _reason(function, args, kwargs):
            raise HostWaitsError(f"{function}: {why}")
        if not _makes_new(function):
            return function(*args, **kwargs)
        key = (function, _form(args), _form(tuple(kwargs.items())))
        if key in FORMS:
            shape, stride, dtype, device = FORMS[key]
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)
        out = function(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.device == META:
            FORMS[key] = _form(out)
        return out


def _reason(function, args, kwargs):
    """Why the host would wait, or None."""
    name = function.overloadpacket.__name__
    tensors = [x for x in _flat((*args, *kwargs.values())) if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if x.device == META]
    if kwargs.get("device") == META and len(away) < len(tensors):
        return "the host copies values to the device"
    if not away:
        return None
    if name in ASK or (name == "normal" and function._overloadname != "float_float"):
        return "values of the device decide what the host does"
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "the sum of the repeats is a size"
    if name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:]) and isinstance(args[1], list):
        return "how many places of a mask are True is a size; use torch.where, masked_fill or masked sums"
    if kwargs.get("device", META) != META:
        return "values are copied to the host"
    if any(x.device != META and (x.ndim or name.startswith("copy")) for x in tensors):
        return "tensors of the host and of the device meet"
    return None


def _flat(values):
    return [x for value in values for x in (value if isinstance(value, list | tuple) else (value,))]


def _form(x):
    if isinstance(x, torch.Tensor):
        return tuple(x.shape), x.stride(), x.dtype, x.device
    return tuple(map(_form, x)) if isinstance(x, list | tuple) else (type(x), x)


@cache
def _makes_new(function):
    """Whether its result shares no memory with an argument, and no argument changes."""
    schema = function._schema
    return not any(part.alias_info for part in (*schema.arguments, *schema.returns))


X, MASK = torch.empty(4, 3, device=META), torch.empty(4, 3, dtype=torch.bool, device=META)
COUNTS = torch.empty(4, dtype=torch.int64, device=META)
WAITS = {
    "item": lambda: X[0, 0].item(),
    "float": lambda: float(X.sum()),
    "bool": lambda: bool(MASK.all()),
    "int": lambda: int(COUNTS.max()),
    "range": lambda: range(COUNTS[0]),
    "arange to a tensor": lambda: torch.arange(COUNTS[0], device=META),
    "a slice to a tensor": lambda: X[: COUNTS[0]],
    "tolist": lambda: COUNTS.tolist(),
    "numpy": lambda: X.numpy(),
    "cpu": lambda: X.cpu(),
    "to": lambda: X.to("cpu", non_blocking=True),
    "copy_ to the host": lambda: torch.zeros(4, 3).copy_(X),
    "copy_ to the device": lambda: X.copy_(torch.zeros(4, 3)),
    "a number copied to the device": lambda: X.copy_(torch.tensor(1.0)),
    "torch.tensor": lambda: torch.tensor([1.0, 2.0], device=META),
    "new_tensor": lambda: X.new_tensor([1.0, 2.0]),
    "from the host": lambda: torch.zeros(4).to(META),
    "host beside device": lambda: X + torch.zeros(4, 3),
    "indices of the host": lambda: X[torch.tensor([0, 1])],
    "x[mask]": lambda: X[MASK],
    "x[mask] = y": lambda: X.clone().__setitem__(MASK, X[0, 0]),
    "x[rows of a mask, columns]": lambda: X[MASK[:, 0], :2],
    "index_put": lambda: X.index_put((MASK,), X[0, 0]),
    "nonzero": lambda: MASK.nonzero(),
    "where": lambda: torch.where(MASK),
    "masked_select": lambda: X.masked_select(MASK),
    "repeat_interleave": lambda: X.repeat_interleave(COUNTS, dim=0),
    "unique": lambda: COUNTS.unique(),
    "bincount": lambda: COUNTS.bincount(),
    "one_hot": lambda: nn.functional.one_hot(COUNTS),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "multinomial": lambda: X.softmax(1).multinomial(1),
    "normal": lambda: torch.normal(X, X.exp()),
    "inverse": lambda: torch.linalg.inv(X[:3]),
    "a row per length": lambda: [X[i, :n] for i, n in enumerate(COUNTS)],
}


@pytest.mark.parametrize("name", WAITS)
def test_the_trap_shuts_on(name):
    with pytest.raises((HostWaitsError, RuntimeError, TypeError, NotImplementedError)), no_host_waits():
        WAITS[name]()


def test_the_trap_lets_pass_what_stays_on_one_side():
    with no_host_waits():
        rows = X[COUNTS] + 1.0
        rows = torch.where(MASK, rows.masked_fill(~MASK, -torch.inf), 0).repeat_interleave(2, dim=0)
        rows[COUNTS] = rows.new_zeros(4, 3)
        rows = rows * torch.full((), 2.0, device=META) * torch.tensor(3.0)  # one number goes along with the call
        assert rows[:, :2].sort(dim=1).values.topk(2).values.device == META
        there = torch.tensor([True, False])
        assert torch.arange(2)[there].tolist() == [0]


def named_model(name, variant):
    values = {
        "head": {"name": name, **options_of(name, variant)},
        "data": {"scale": "standardize", "sqrt": True, "clamp": 5.0},
        "train": {"noise": 0.1},
    }
    torch.manual_seed(0)
    return Model(validate(values, "test"), dims_of(name)).train()


def in_each_stage(model, bag):
    """(what the head is told after a step, the model as that step finds it): the first three stages of the head."""

    def scan():
        for b in range(len(bag.labels)):
            yield model.scaled(take(bag, [b]))

    stages = 0
    for now in (Progress(step, STEPS, per_epoch=1) for step in range(STEPS)):
        if due := model.head.refresh_due(now):
            with torch.no_grad():
                model.eval().head.refresh(now, scan)
        if due or not stages:
            yield Progress(now.step + 1, STEPS, per_epoch=1), copy.deepcopy(model.train()).to(META)
            stages += 1
        if stages == 3:
            return


@each_head
def test_a_step_never_makes_the_host_wait(name, variant):
    bag = bag_for(name, crops=2)
    away = bag.to(META)
    for progress, model in in_each_stage(named_model(name, variant), bag):
        try:
            with no_host_waits():
                scaled = model.scaled(away)
                terms = model.head.loss(model.head(scaled), scaled)
                torch.stack(list(terms.values())).sum().backward()
                with torch.no_grad():
                    model.head.after_step(progress)
        except (HostWaitsError, RuntimeError, TypeError, NotImplementedError) as error:
            pytest.fail(f"{name}, step {progress.step}: {error}")
        assert all(term.device == META for term in terms.values())


def test_clipping_the_optimizers_update_and_the_average_of_the_weights_do_not_either():
    bag, model = bag_for("mgfn", crops=2).to(META), named_model("mgfn", {"dims": [16, 16], "depths": [1, 1]}).to(META)
    take_step = Step(TrainConfig(clip_norm=1.0, ema=0.9), model)
    with no_host_waits():
        assert take_step(bag, Progress(1, STEPS, 2))["total"].device == META
