"""Heads trained in bf16 and in fp32 on one store, several seeds each: do they end with the same numbers?

    python benchmarks/precision.py xd.csv --features features/motion --recipe motion_rtfm --seeds 5

Each pair of runs differs in `train.precision` alone. Both are scored in fp32: the difference is one of training.
Where the processor has no bf16 instructions, matrix products of bf16 are computed in fp32 and rounded to bf16, which is
what the instructions give; torch's own emulation would take days.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mil.evaluate import evaluate_run
from mil.precision import bf16_is_fast
from mil.run import start_run

PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
}


class Rounded(TorchDispatchMode):
    """Products of bf16 matrices as the instructions compute them: summed in fp32, rounded at the end."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if func not in PRODUCTS or tensors[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        found = func(*(a.float() if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
        if isinstance(found, torch.Tensor):
            return found.to(torch.bfloat16)
        return tuple(f if f is None else f.to(torch.bfloat16) for f in found)


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True))
@click.option("--features", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--recipe", "recipes", multiple=True, default=("motion_ranking", "motion_rtfm", "motion_urdmu"))
@click.option("--seeds", default=5, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of every run.")
def main(
    manifest: Path, features: tuple[Path, ...], recipes: tuple[str, ...], seeds: int, overrides: tuple[str, ...]
) -> None:
    """Prints mean and deviation of AUC and AP over the seeds, and of the differences, seed by seed."""
    torch.set_num_threads(1)
    native = bf16_is_fast("cpu")
    print(f"{seeds} seeds; bf16 products {'by the processor' if native else 'in fp32, rounded'}")
    root = Path(tempfile.mkdtemp(prefix="precision"))
    try:
        for recipe in recipes:
            found: dict[str, list[tuple[float, float]]] = {"fp32": [], "bf16": []}
            for seed in range(seeds):
                for precision, numbers in found.items():
                    out = root / f"{recipe}-{precision}-{seed}"
                    own = [*overrides, f"train.precision={precision}"]
                    with contextlib.nullcontext() if native or precision == "fp32" else Rounded():
                        run, _ = start_run(recipe, own, manifest, features, out, seed=seed)
                    scored = evaluate_run(run).numbers
                    numbers.append((scored["auc"], scored["ap"]))
            values = {name: np.array(v) for name, v in found.items()}
            values["bf16 - fp32"] = values["bf16"] - values["fp32"]
            for name, v in values.items():
                (auc, ap), (d_auc, d_ap) = v.mean(0), v.std(0, ddof=1)
                print(f"{recipe:<18} {name:<12} AUC {auc:+.4f} ± {d_auc:.4f}   AP {ap:+.4f} ± {d_ap:.4f}", flush=True)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
