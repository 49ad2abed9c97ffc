"""The authors' state dicts: which of their names is which of ours, and what a file of theirs holds beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# wrappers that training scripts put around a state dict
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
KEPT = "published."  # prefix of unused published tensors in a checkpoint of ours: they go back as they came


class PublishedError(ValueError):
    """A file is not what the authors' code writes; the message names the tensors."""


@dataclass(frozen=True)
class Published:
    """The format of the authors' files.

    Args:
        names: {their name: our name} of every tensor that is used. Both have one shape: where the authors' layer is a
            convolution of kernel 1, so is ours.
        unused: {their name: shape} of tensors that their module has and never uses.
        optional: their names that may be wanting, as BatchNorm's counter in old files.
        extra: names of ours that no file of theirs holds (class codes, counters); they keep their own values.
        beside: {name of ours: option of the head} of what the authors keep in a .npy file that this option names.
        notes: what is to be said when a file is imported: what scores mean nothing without, whose names these are too.
        source: where the format was seen.
    """

    names: Mapping[str, str]
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()
    beside: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""


def unwrapped(found: object) -> dict[str, Tensor]:
    """The tensors of what torch.load returned: out of wrappers, without DataParallel's "module." and the like.

    Raises PublishedError where there is no state dict in it.
    """
    while isinstance(found, Mapping) and not _is_state(found):
        inner = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            raise PublishedError(f"no state dict among {', '.join(map(str, list(found)[:8]))}; pass the weights' file")
        found = inner
    if not isinstance(found, Mapping):
        raise PublishedError(f"a state dict was wanted, the file holds a {type(found).__name__}")
    state = {str(name): value for name, value in found.items()}
    prefixes = ("module.", "_orig_mod.")  # of DataParallel and torch.compile, in either order
    while state and (prefix := next((p for p in prefixes if all(n.startswith(p) for n in state)), None)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state(found: Mapping[object, object]) -> bool:
    return bool(found) and all(isinstance(v, Tensor) for v in found.values())


def take_in(module: nn.Module, form: Published, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fills `module` with the authors' numbers; returns the unused published tensors by their names.

    Raises PublishedError naming every tensor that is missing, unknown, of another shape, or (where used) not finite.
    """
    own = module.state_dict()
    faults = [f"missing: {n}" for n in form.names if n not in state and n not in form.optional]
    faults += [
        f"unknown: {n} {tuple(v.shape)}" for n, v in state.items() if n not in form.names and n not in form.unused
    ]
    faults += [
        f"{n} is {tuple(state[n].shape)}, {shape} was wanted"
        for n, shape in form.unused.items()
        if n in state and tuple(state[n].shape) != tuple(shape)
    ]
    new = {n: v for n, v in own.items() if n in form.extra}
    for theirs, ours in form.names.items():
        if theirs not in state:
            new.setdefault(ours, own[ours])
            continue
        value = state[theirs]
        if value.shape != own[ours].shape:
            faults.append(f"{theirs} is {tuple(value.shape)}, {tuple(own[ours].shape)} was wanted")
        elif not bool(torch.isfinite(value).all()):
            faults.append(f"{theirs} holds values that are not finite")
        else:
            new[ours] = value.to(own[ours].dtype)
    if faults:
        more = f" and {len(faults) - 12} more" if len(faults) > 12 else ""
        raise PublishedError("the file does not fit: " + "; ".join(faults[:12]) + more)
    module.load_state_dict(new, strict=True)
    return {n: state[n].detach().clone() for n in form.unused if n in state}  # theirs may share memory


def give_back(module: nn.Module, form: Published, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of `module`; unused tensors as they came with the file, else zeros."""
    own = module.state_dict()
    out = {theirs: own[ours].detach().cpu().clone() for theirs, ours in form.names.items()}
    return out | {n: kept[n] if n in kept else torch.zeros(shape) for n, shape in form.unused.items()}
