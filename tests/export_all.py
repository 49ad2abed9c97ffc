"""Exports every registered head, small, in both formats, and prints how far its scores are from the head's own.

python -m tests.export_all [HEAD...] [--variants]     minutes; exit code 1 when a head cannot be exported
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch

from mil.bag import Bag
from mil.config import validate
from mil.export import ExportError, export_model
from mil.heads import heads
from mil.model import Model

SHAPES = [(1, 1), (2, 4), (1, 7), (3, 13), (1, 50), (7, 9), (2, 260)]


def cases(name: str) -> list[Mapping[str, Any]]:
    """The default of a head, then its variants."""
    return [{}, *getattr(_case(name), "VARIANTS", [])]


def small_model(name: str, variant: Mapping[str, Any]) -> Model:
    """A head small enough for tests, with a scaling, in evaluation mode."""
    torch.manual_seed(0)
    kind = heads.get(name)
    named = {"visual": ("rgb", 6), "audio": ("audio", 3), "text": ("text", 5)}
    dims = dict(named[part.split("|")[0]] for part in kind.modalities) or {"rgb": 6}
    options = {
        **({"classes": ("Fighting", "Robbery")} if kind.takes_classes else {}),
        **getattr(_case(name), "SMALL", {}),
    }
    model = Model(
        validate({"head": {"name": name, **options, **variant}, "data": {"scale": "standardize"}}, "test"), dims
    )
    for modality, dim in dims.items():
        scaler: Any = model.scalers[modality]
        scaler.mean.copy_(torch.linspace(-1, 1, dim))
        scaler.deviation.copy_(torch.linspace(0.5, 2, dim))
    return model.eval()


def differences(
    model: Model, folder: Path, formats: Sequence[str], shapes: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """{format: the largest difference of scores over videos of (K, T)}, of a model and its file loaded anew."""
    shared = {n: n == "audio" for n in model.dims}
    targets = {kind: folder / f"model.{kind}" for kind in formats}
    export_model(model, targets, {}, shared)
    worst = dict.fromkeys(formats, 0.0)
    for seed, (crops, length) in enumerate(shapes):
        torch.manual_seed(seed)
        video = {n: 2 * torch.randn(1, 1 if shared[n] else crops, length, d) for n, d in model.dims.items()}
        with torch.no_grad():
            expected = model(Bag(video, torch.ones(1, length, dtype=torch.bool), torch.zeros(1))).scores
        for kind, path in targets.items():
            if kind == "onnx":
                session = onnxruntime.InferenceSession(path.read_bytes())
                found = torch.from_numpy(session.run(None, {n: x.numpy() for n, x in video.items()})[0])
            else:
                loaded: Any = torch.jit.load(path)  # type: ignore[no-untyped-call]
                found = loaded(*video.values())
            apart = (found - expected).abs() / expected.abs().clamp(min=1)
            worst[kind] = max(worst[kind], float(apart.max()))
    return worst


def _case(name: str) -> Any:
    try:
        return importlib.import_module(f"tests.cases.{name}")
    except ModuleNotFoundError:
        return None


def main() -> int:
    """Prints a line for each head; 1 when one failed."""
    wanted = [a for a in sys.argv[1:] if a != "--variants"] or list(heads)
    failed = 0
    for name in wanted:
        for variant in cases(name) if "--variants" in sys.argv else [{}]:
            label = " ".join([name, *(f"{k}={v}" for k, v in variant.items())])
            with TemporaryDirectory() as folder:
                try:
                    found = differences(small_model(name, variant), Path(folder), ["onnx", "torchscript"], SHAPES)
                    print(f"{label:<40} " + "  ".join(f"{kind} {d:.1e}" for kind, d in found.items()), flush=True)
                except ExportError as error:
                    failed += 1
                    print(f"{label:<40} {error}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
