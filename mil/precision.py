"""A head's forward pass in fp32 or bf16, compiled or not. Weights, buffers and losses stay fp32 whatever is chosen."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mil.bag import Bag
from mil.heads import Head, HeadOutput
from mil.layers.mgfn_blocks import ChannelNorm

log = logging.getLogger(__name__)

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    ChannelNorm,
)
_LAYERS = (nn.functional.linear, nn.functional.conv1d)


class CompileError(ValueError):
    """torch.compile cannot be used here, or failed; the message says why and what to type."""


class Forward:
    """`head(bag)` in a precision: `Forward(model.head, "bf16")(model.scaled(bag))`.

    In bf16 the features and a copy of the weights are bf16, all but weights of normalisations, of last layers (one or
    two numbers a segment) and single numbers. The copy is made anew at every call, and gradients come back through it
    in fp32: what the optimizer changes are the fp32 weights. Last layers compute in fp32, for scores of 8 bits would
    have ties, and their logarithms steps. Scores and `aux` come out in fp32. With "fp32" and "none" this is `head(bag)`
    itself.

    Args:
        head: its parameters and buffers stay fp32.
        precision: "fp32" or "bf16".
        compiled: "none"; "kernels", torch.compile; "graphs", with CUDA graphs too: a result lives until the next call.
        backend: of torch.compile.

    Raises:
        CompileError: "graphs" where the head is not on a CUDA device; at the first call, when compiling fails.
    """

    def __init__(
        self, head: Head, precision: str = "fp32", compiled: str = "none", *, backend: str = "inductor"
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is fp32 or bf16, got '{precision}'")
        device = next((p.device for p in head.parameters()), torch.device("cpu"))
        check_compiled(compiled, device.type)
        self.head, self.precision, self.compiled = head, precision, compiled
        self._cast = _names_to_cast(head) if precision == "bf16" else frozenset()
        self._frozen: dict[str, Tensor] | None = None
        self._run: Callable[[Bag], HeadOutput] = head if precision == "fp32" else self._in_bf16
        if precision == "bf16" and not bf16_is_fast(device.type):
            log.warning("this %s has no bf16 instructions: bf16 is many times slower than fp32 here", device.type)
        if compiled != "none":
            mode = "reduce-overhead" if compiled == "graphs" else None
            self._run = torch.compile(self._run, mode=mode, backend=backend)

    def __call__(self, bag: Bag) -> HeadOutput:
        """A bag of scaled features -> scores and aux."""
        if self.compiled == "none":
            return self._run(bag)
        if self.compiled == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return self._run(bag)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise CompileError(
                f"torch.compile failed ({reason}); leave out --compile, or set train.compile=none"
            ) from error

    def freeze(self) -> "Forward":
        """Casts the weights once, for scoring: until the next `freeze`, changes of the head's weights are not seen."""
        if self.precision == "bf16":
            with torch.no_grad():
                self._frozen = {name: p.clone() for name, p in self._weights().items()}
        return self

    def _weights(self) -> dict[str, Tensor]:
        own = dict(self.head.named_parameters())
        return {name: p.to(torch.bfloat16) if name in self._cast else p for name, p in own.items()}

    def _in_bf16(self, bag: Bag) -> HeadOutput:
        weights = self._weights() if self._frozen is None else self._frozen
        low = bag.with_features({name: x.to(torch.bfloat16) for name, x in bag.features.items()})
        # autocast has nothing to cast but what meets fp32 buffers and norms on its way
        with torch.autocast(bag.mask.device.type, torch.bfloat16, cache_enabled=False), _LastLayers():
            out: HeadOutput = torch.func.functional_call(self.head, weights, (low,))
        return replace(out, scores=out.scores.float(), aux={name: _up(x) for name, x in out.aux.items()})


class _LastLayers(TorchFunctionMode):
    """Layers whose weights are fp32 compute in fp32: autocast would round what they are given, and give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LAYERS and len(args) > 1 and args[1].dtype == torch.float32:
            x, *layer = args
            with torch.autocast(x.device.type, enabled=False):
                return func(x.float(), *layer, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def check_compiled(compiled: str, device: str) -> None:
    """Refuses what cannot be compiled on a device of that type: raises CompileError."""
    if compiled == "graphs" and not device.startswith("cuda"):
        raise CompileError(f"train.compile=graphs needs a CUDA device, this is {device}; use --compile kernels")


@cache
def bf16_is_fast(device: str) -> bool:
    """Whether a device of that type multiplies bf16 matrices itself; on others bf16 is emulated, slowly."""
    if device == "cpu":
        known = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else True


def _names_to_cast(head: Head) -> frozenset[str]:
    """All parameters but those of normalisations, whose kernels take fp32 ones, last layers, and single numbers."""
    kept = {
        id(p) for layer in head.modules() if isinstance(layer, _NORMS) or _is_last(layer) for p in layer.parameters()
    }
    return frozenset(n for n, p in head.named_parameters() if p.ndim and id(p) not in kept)


def _is_last(layer: nn.Module) -> bool:
    outputs = {nn.Linear: "out_features", nn.Conv1d: "out_channels"}.get(type(layer))
    return outputs is not None and getattr(layer, outputs) <= 2


def _up(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
