"""A trained model as one graph that runs without this code: features as stored -> scores, for any K and T.

torch.export follows the forward pass once with symbols for K and T; ONNX and TorchScript are two spellings of what it
found. What Python decides on the way is decided once: whether the graph holds for other shapes is for mil/export.py to
check.
"""

import copy
import io
import json
import logging
import math
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from mil.bag import Bag
from mil.model import Model

_EXAMPLE = (3, 1031)  # K and T; long, for a head that cuts long videos into pieces may take short ones for one piece


class GraphError(ValueError):
    """The forward pass cannot be written as one graph; the message says where and why."""


class Scores(nn.Module):
    """One video, one tensor for each modality (1, K_m, T, D_m) in the model's order, no padding -> scores (1, T)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.names = model, list(model.dims)

    def forward(self, *features: Tensor) -> Tensor:
        """Computes in float32 whatever the features are."""
        first = features[0]
        own = {name: x.float() for name, x in zip(self.names, features, strict=True)}
        bag = Bag(own, first.new_ones((1, first.shape[2]), dtype=torch.bool), first.new_zeros(1, dtype=torch.float32))
        scores: Tensor = self.model(bag).scores
        return scores


def trace(model: Model, shared: Mapping[str, bool], dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """The graph of a model on the CPU.

    Args:
        model: in evaluation mode; it is left as it is.
        shared: {modality: whether it has one crop, which is given to the K crops of the others}.
        dtype: of the features.

    Raises GraphError with the line that no graph can hold.
    """
    net = Scores(_plain(model)).eval()
    crops, length = _EXAMPLE
    example = tuple(torch.zeros(1, 1 if shared[n] else crops, length, d, dtype=dtype) for n, d in model.dims.items())
    shapes = tuple({2: Dim.DYNAMIC} if shared[n] else {1: Dim.DYNAMIC, 2: Dim.DYNAMIC} for n in model.dims)
    logging.getLogger("torch.export._trace").setLevel(logging.CRITICAL)  # what it would say is in its errors
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            return torch.export.export(net, example, dynamic_shapes=(shapes,), strict=True)
    except Exception as error:  # torch.export has many kinds, and raises those of Python too
        raise GraphError(f"its forward pass is no graph of fixed operations ({_first_lines(error)})") from error


def onnx_bytes(program: ExportedProgram, model: Model, metadata: Mapping[str, Any]) -> bytes:
    """An ONNX file: inputs named as the modalities, (1, K, T, D_m), output `scores`; `metadata` in metadata_props.

    Raises GraphError.
    """
    for noisy in ("onnxscript", "onnx_ir"):  # every step of their optimiser
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(model.dims),
                output_names=["scores"],
                custom_translation_table={torch.ops.aten.repeat_interleave.self_int: _repeated},
                verbose=False,
            )
        except Exception as error:
            raise GraphError(f"ONNX has no words for it ({_first_lines(error)})") from error
    proto = found.model_proto
    del proto.graph.value_info[:]  # shapes in between, under names of their own for K and T
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        for at, name in ((1, "K"), (2, "T")) if len(sizes) == 4 else ((1, "T"),):
            if not sizes[at].HasField("dim_value"):
                sizes[at].dim_param = name
    entry = proto.metadata_props.add()
    entry.key, entry.value = "wsvad", json.dumps(metadata)
    content: bytes = proto.SerializeToString()
    return content


def torchscript_bytes(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """A TorchScript file, its tensors in the order of the modalities; `metadata` in the extra file wsvad.json.

    Raises GraphError.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out, and asked for
        try:
            scripted = torch.jit.script(_scriptable(program))
        except Exception as error:
            raise GraphError(f"TorchScript has no words for it ({_first_lines(error)})") from error
        torch.jit.save(scripted, buffer, _extra_files={"wsvad.json": json.dumps(metadata)})
    return buffer.getvalue()


def _repeated(x: Any, repeats: Any, dim: int | None = None) -> Any:
    """repeat_interleave as ONNX; onnxscript 0.7 has it right for dim=0 alone."""
    import onnxscript

    op: Any = onnxscript.opset18
    if dim is None:
        x, dim = op.Reshape(x, op.Constant(value_ints=[-1])), 0
    rank = 1 if x.shape is None else len(x.shape)
    ones = [op.Constant(value_ints=[1])]
    times = (
        op.Constant(value_ints=[repeats])
        if isinstance(repeats, int)
        else op.Reshape(repeats, op.Constant(value_ints=[-1]))
    )
    wide = op.Expand(
        op.Unsqueeze(x, op.Constant(value_ints=[dim + 1])),
        op.Concat(*ones * (dim + 1), times, *ones * (rank - dim - 1), axis=0),
    )
    sizes = [op.Shape(x, start=i, end=i + 1) if i != dim else op.Constant(value_ints=[-1]) for i in range(rank)]
    return op.Reshape(wide, op.Concat(*sizes, axis=0))


def _plain(model: Model) -> Model:
    """A copy that computes the same in fewer words."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for module in model.modules():
        # a stage that decides which part scores is a constant of a trained model
        for name, value in list(module.named_buffers(recurse=False)):
            if value.ndim == 0 and not value.is_floating_point() and name != "num_batches_tracked":
                delattr(module, name)
                setattr(module, name, int(value))
        # a list, which is no tuple: mil/layers/conv.py leaves it to torch, one operation instead of slices for each tap
        if isinstance(module, nn.Conv1d) and isinstance(module.padding, tuple) and any(module.padding):
            module.padding = list(module.padding)  # type: ignore[assignment]
    return model


def _scriptable(program: ExportedProgram) -> fx.GraphModule:
    """The graph in operations that TorchScript has, with its constants."""
    signature = program.graph_signature
    root = nn.Module()
    graph = fx.Graph()
    kept: dict[fx.Node, Any] = {}
    own = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    own |= signature.inputs_to_lifted_tensor_constants
    first: fx.Node | None = None
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in own:
            value = program.state_dict.get(own[node.name], program.constants.get(own[node.name]))
            root.register_buffer(node.name, value)
            kept[node] = graph.get_attr(node.name)
        elif node.op == "placeholder":
            kept[node] = graph.placeholder(node.name)
            first = first or kept[node]
        elif node.op == "output":
            graph.output(kept[node.args[0][0]])
        elif not _only_asserts(node):
            kept[node] = _written(graph, node, kept, first)
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)


def _written(graph: fx.Graph, node: fx.Node, kept: Mapping[fx.Node, Any], first: fx.Node | None) -> fx.Node:
    """One operation, anew; what is made from nothing is made where the features are."""
    target: Any = node.target

    def written(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return graph.call_function(float, (str(value),))  # it has no name for them
        return kept[value] if isinstance(value, fx.Node) else value

    args: Any = fx.node.map_aggregate(node.args, written)
    named = {n: v for n, v in node.kwargs.items() if n not in ("device", "pin_memory", "layout")}
    options: Any = dict(fx.node.map_aggregate(named, written))
    if target is torch.ops.aten.sym_size.int:
        return graph.call_method("size", args)
    if isinstance(target, torch._ops.OpOverload):
        if "device" in node.kwargs:
            options["device"] = graph.call_function(getattr, (first, "device"))
        return graph.call_function(target.overloadpacket, args, options)
    if target in _NUMBERS:
        return graph.call_function(_NUMBERS[target], args)
    return graph.call_function(target, args, options)


_NUMBERS: Mapping[Any, Any] = {torch.sym_max: max, torch.sym_min: min, torch.sym_float: float, torch.sym_int: int}


def _only_asserts(node: fx.Node) -> bool:
    """What guards the graph in torch.export, or feeds such guards alone."""
    if node.op == "call_function" and "assert" in str(node.target):
        return True
    pure = node.target in (torch.ops.aten.sym_size.int, *vars(operator).values())
    return pure and all(_only_asserts(user) for user in node.users)


def _first_lines(error: BaseException) -> str:
    """What an error of torch says, without its advice for developers."""
    text = str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    where = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    return "; ".join(lines[:2] + where[-1:])
