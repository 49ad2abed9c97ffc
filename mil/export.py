"""A run's model as an ONNX or a TorchScript file, for programs that have none of this code.

The whole model goes out: scaling and head. What comes before and behind it, features, smoothing, frames, stands in the
file's metadata. No file is put in place before its scores were the model's own for videos of several lengths.
"""

import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.files import aside
from mil import checkpoint
from mil.bag import Bag
from mil.export_about import describe, kept_shared
from mil.export_graph import GraphError, Scores, onnx_bytes, torchscript_bytes, trace
from mil.model import Model
from mil.rundir import RunDir

TOLERANCE = 1e-5
"""Largest difference from the model: of scores up to 1 absolute, of larger ones relative."""

_ROUNDED = 4  # times the model's own rounding: two programs that sum in another order are as far from each other

SHAPES = ((1, 1), (3, 1), (1, 2), (1, 7), (2, 50), (10, 5), (1, 300), (1, 1100))
"""(K, T) that every file is checked with; of those lengths at which the graph itself branches, more."""

_INPUTS = {"float32": torch.float32, "float16": torch.float16}
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_Run = Callable[[Sequence[Tensor]], Tensor]


class ExportError(ValueError):
    """A model cannot be exported, or its export gives other scores; nothing was written."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        format: "onnx" or "torchscript".
        path: the file.
        bytes: its size.
        shapes: (K, T) of the videos it was checked with.
        max_difference: the largest between its scores and the model's.
        notes: shapes of which it is above TOLERANCE, by no more than what float32 rounds there.
        metadata: what the file says of itself.
    """

    format: str
    path: Path
    bytes: int
    shapes: tuple[tuple[int, int], ...]
    max_difference: float
    notes: tuple[str, ...]
    metadata: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        found = {"format": self.format, "path": str(self.path), "bytes": self.bytes}
        return {
            **found,
            "max_difference": self.max_difference,
            "notes": list(self.notes),
            "checked": [list(s) for s in self.shapes],
        }


def export_run(
    run: RunDir,
    *,
    onnx: Path | None = None,
    torchscript: Path | None = None,
    rule: str | None = None,
    online: bool = False,
    dtype: str = "float32",
) -> list[Exported]:
    """Writes the model of a run, in one format or both.

    Args:
        run: a run with weights.
        onnx: a file; one that is there is replaced.
        torchscript: the same.
        rule: whose weights, of those that the run followed; None: the one that it is judged by.
        online: with the head's options under which no score tells of later clips.
        dtype: of the features that it takes, "float32" or "float16"; it computes in float32.

    Raises:
        ExportError: packages are missing, the model is no graph, or a file gives other scores.
        ValueError: no such rule, or a head that cannot score online.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if onnx and missing:
        raise ExportError(f"--onnx needs {', '.join(missing)}; pip install 'wsvad[onnx]'")
    chosen = run.followed(rule)
    kept = (checkpoint.load_online if online else checkpoint.load)(run.checkpoint_of(chosen))
    unfinished = run.status["state"] != "done"
    about = describe(kept, chosen, dtype, unfinished=unfinished)
    targets = {"onnx": onnx, "torchscript": torchscript}
    return export_model(kept.model, {n: p for n, p in targets.items() if p}, about, kept_shared(kept), dtype)


def export_model(
    model: Model,
    targets: Mapping[str, Path],
    about: Mapping[str, Any],
    shared: Mapping[str, bool],
    dtype: str = "float32",
) -> list[Exported]:
    """Writes a model in each format; all are checked before the first is written.

    Args:
        model: on the CPU, in evaluation mode.
        targets: {"onnx" or "torchscript": file}.
        about: their metadata; what was checked is added.
        shared: {modality: whether its one crop is given to all K}.
        dtype: of the features, "float32" or "float16".

    Raises ExportError, and writes nothing then.
    """
    name = type(model.head).__name__
    found = []
    try:
        program = trace(model, shared, _INPUTS[dtype])
        shapes = SHAPES + _where_it_branches(program.range_constraints.values())
        for kind, path in targets.items():
            metadata = {**about, "checked": {"shapes": [list(s) for s in shapes], "tolerance": TOLERANCE}}
            content = onnx_bytes(program, model, metadata) if kind == "onnx" else torchscript_bytes(program, metadata)
            run = _onnx(content, model) if kind == "onnx" else _torchscript(content)
            worst, notes = _compare(kind, name, run, model, shared, shapes, _INPUTS[dtype])
            found.append((Exported(kind, path, len(content), shapes, worst, notes, metadata), content))
    except GraphError as error:
        raise ExportError(f"{name} cannot be exported: {error}; score with `wsvad score` instead") from error
    for one, content in found:
        one.path.parent.mkdir(parents=True, exist_ok=True)
        with aside(one.path) as temporary:
            temporary.write_bytes(content)
    return [one for one, _ in found]


def _where_it_branches(ranges: Any) -> tuple[tuple[int, int], ...]:
    """Shapes on both sides of the bounds within which torch.export knows the graph to be right."""
    bounds = {int(b) for r in ranges for b in (r.lower, r.upper) if b.is_number and 2 < b < 10**5}
    return tuple((1, bound + side) for bound in sorted(bounds) for side in (-1, 0, 1))


def _onnx(content: bytes, model: Model) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda own: torch.from_numpy(
        session.run(["scores"], {n: x.numpy() for n, x in zip(model.dims, own, strict=True)})[0]
    )


def _torchscript(content: bytes) -> _Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
        loaded: Any = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return lambda own: loaded(*own)


@torch.no_grad()
def _compare(
    kind: str,
    head: str,
    run: _Run,
    model: Model,
    shared: Mapping[str, bool],
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> tuple[float, tuple[str, ...]]:
    """The largest difference over all shapes, and notes on rounding. Raises ExportError naming shapes that fail."""
    own, worst, bad, notes = Scores(model).eval(), 0.0, [], []
    rng = np.random.default_rng(0)
    for crops, length in shapes:
        video = []
        for name, dim in model.dims.items():
            scaler: Any = model.scalers[name]
            x = torch.from_numpy(rng.standard_normal((1, 1 if shared[name] else crops, length, dim), np.float32))
            video.append((x * scaler.deviation + scaler.mean).to(dtype))  # such as it was trained on
        expected = own(*video)
        where = f"K={crops}, T={length}"
        try:
            found = run(video)
        except Exception as error:  # each runtime has its own
            bad.append(f"{where}: {str(error).strip().splitlines()[-1][:200]}")
            continue
        if found.shape != expected.shape:
            bad.append(f"{where}: scores of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
            continue
        apart = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
        if not apart <= TOLERANCE:  # NaN too
            rounded = _rounding(model, video, expected)
            says = f"{where}: scores differ by {apart:.1e}"
            if apart <= _ROUNDED * rounded:
                notes.append(f"{says}; the model itself, in float32, is {rounded:.1e} from its float64")
            else:
                bad.append(says)
        worst = max(worst, apart)
    if bad:
        raise ExportError(
            f"the {kind} file of {head} gives other scores than the model, and is not written ({'; '.join(bad[:4])}"
            f"{f'; and {len(bad) - 4} more' if len(bad) > 4 else ''}); score with `wsvad score` instead"
        )
    return worst, tuple(notes)


def _rounding(model: Model, video: Sequence[Tensor], found: Tensor) -> float:
    """How far the model's own scores, in float32, are from those in float64, as `_compare` measures it."""
    exact = copy.deepcopy(model).double()
    features = {n: x.double() for n, x in zip(model.dims, video, strict=True)}
    bag = Bag(features, torch.ones(1, video[0].shape[2], dtype=torch.bool), torch.zeros(1, dtype=torch.float64))
    return float(((exact(bag).scores - found).abs() / found.abs().clamp(min=1)).max())
