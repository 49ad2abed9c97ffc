"""BatchNorm folded into the convolutions before it: the same function with fewer passes over memory."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(net: nn.Module, example: tuple[int, ...]) -> int:
    """Folds every BatchNorm whose input is a convolution's output that nothing else reads; in place, returns how many.

    Args:
        net: in eval mode.
        example: the shape of an input. The net runs once on it on the meta device, without memory or arithmetic, and
            each BatchNorm is matched by the tensor it is given.

    The products are taken in float64, so that the folded net differs by float32 rounding only.
    """
    if not any(isinstance(module, _NORM) for module in net.modules()):
        return 0
    pairs = _pairs(net, example)
    modules = dict(net.named_modules())
    for norm_name, conv_name in pairs.items():
        _fold(modules[conv_name], modules[norm_name])
        parent, _, child = norm_name.rpartition(".")
        setattr(modules[parent], child, nn.Identity())
    return len(pairs)


class _Uses(TorchFunctionMode):
    """Counts the calls, by modules and beside them, that make a tensor of a tensor; by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(True for _ in _tensors(out)):  # reading a shape is no use
            self.count.update(id(x) for x in _tensors((args, kwargs)))
        return out


def _pairs(net: nn.Module, example: tuple[int, ...]) -> dict[str, str]:
    """Names of BatchNorms -> names of their convolutions."""
    ghost = copy.deepcopy(net).to("meta", torch.float32)  # whatever the net is in: the example is float32
    made: dict[int, str] = {}  # id of an output -> the convolution
    readers: dict[int, list[str]] = {}  # id of an output -> the modules that were given it
    alive: list[Tensor] = []  # an id is a tensor's as long as the tensor lives
    calls: Counter[str] = Counter()
    uses = _Uses()

    def note(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, given: tuple[object, ...]) -> None:
            calls[name] += 1
            for x in given:
                if isinstance(x, Tensor) and id(x) in made:
                    readers[id(x)].append(name)

        def after(_: nn.Module, given: tuple[object, ...], out: object) -> None:
            if isinstance(module, _CONV) and isinstance(out, Tensor):
                made[id(out)] = name
                readers[id(out)] = []
                uses.count[id(out)] = 0  # not those of a tensor that lived there before
                alive.append(out)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    kinds = dict(ghost.named_modules())
    names = Counter(id(module) for _, module in ghost.named_modules(remove_duplicate=False))
    for name, module in kinds.items():
        if not list(module.children()):
            note(name, module)
    with torch.inference_mode(), uses:
        uses.count.update(id(x) for x in _tensors(ghost(torch.empty(example, device="meta"))))
    pairs = {}
    for key, found in readers.items():
        conv = made[key]
        if len(found) == uses.count[key] == 1 and calls[conv] == calls[found[0]] == 1:
            norm = kinds[found[0]]
            # one with other names would go on under them; one without statistics takes those of its input
            if isinstance(norm, _NORM) and names[id(norm)] == 1 and norm.running_mean is not None:
                pairs[found[0]] = conv
    return pairs


def _tensors(found: object) -> Iterator[Tensor]:
    """The tensors in arguments or results, however they are nested."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from _tensors(part)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))


def _fold(conv: Any, norm: Any) -> None:
    scale: Tensor = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift: Tensor = -norm.running_mean.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = norm.bias.double() + shift * norm.weight.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    shaped = scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * shaped).to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
