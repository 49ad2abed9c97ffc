"""A step of training beside the papers' code written plainly: `python benchmarks/training.py [--job rtfm8]`.

Each side is a process of its own that takes a step when told to, so that the settings of one side's allocator are not
the other's. Steps of all sides, and a matrix product in each precision, take turns; medians are printed. Features lie
in memory: reading them is another benchmark's. `cpu` is time of the processor, less disturbed by others than the clock.

On a processor without bf16 instructions that side is left out: a matrix product is some 80 times slower there.
"""

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from turns import in_turns


@dataclass(frozen=True)
class Job:
    """A batch of `bags` videos, half of them anomalous, (bags, crops, segments, dim), and the recipe that trains it."""

    recipe: str
    plain: str
    bags: int
    crops: int
    segments: int
    dim: int
    tflop: float


JOBS = {
    "rtfm8": Job("rtfm_ucf", "rtfm", 16, 10, 32, 2048, 0.652),
    "rtfm32": Job("rtfm_ucf", "rtfm", 64, 10, 32, 2048, 2.61),
    "urdmu": Job("urdmu_ucf", "urdmu", 128, 1, 200, 1024, 1.03),
    "hlnet": Job("hlnet_xd", "hlnet", 128, 1, 200, 1152, 0.10),
    "sultani": Job("ranking", "sultani", 60, 1, 32, 4096, 0.0245),
}
SIDES = ("plain", "tuned", "fp32", "bf16", "peak fp32", "peak bf16")
_PEAK = 2048


def batch(job: Job) -> tuple[Tensor, Tensor]:
    """Features as a network behind a ReLU gives them, and labels; the normal half first."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((job.bags, job.crops, job.segments, job.dim), dtype=np.float32)
    labels = np.repeat(np.array([0, 1]), job.bags // 2)
    return torch.from_numpy(np.maximum(x, 0)), torch.from_numpy(labels.astype(np.float32))


def plain_step(job: Job) -> Callable[[], float]:
    """The published code's habit: zero_grad, loss, backward, step, and the loss printed."""
    module = import_module(f"plain.{job.plain}")
    model = module.Model(job.dim).train()
    optimizer = module.optimizer(model)
    x, labels = batch(job)
    half = job.bags // 2
    given = (x, labels) if job.plain == "hlnet" else (x[:half].clone(), x[half:].clone())

    def step() -> float:
        loss = model.loss(*given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(job: Job, precision: str) -> Callable[[], float]:
    """What `wsvad train` does at every step."""
    from mil import config as configs
    from mil.allocator import keep_memory
    from mil.bag import Bag
    from mil.heads import Progress
    from mil.model import Model
    from mil.step import Step

    keep_memory()
    config = configs.load(job.recipe, [f"train.precision={precision}"])
    take_step = Step(config.train, Model(config, {"rgb": job.dim}))
    x, labels = batch(job)
    bag = Bag({"rgb": x}, torch.ones(job.bags, job.segments, dtype=torch.bool), labels)
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        return float(take_step(bag, Progress(count, 1000, 100))["total"])

    return step


def product(precision: str) -> Callable[[], float]:
    """A matrix product whose operands do not fit the cache."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(_PEAK, _PEAK).to(dtype), torch.randn(_PEAK, _PEAK).to(dtype)

    def step() -> float:
        for _ in range(8):
            out = a @ b
        return float(out[0, 0])

    return step


def serve(job: Job, side: str, threads: int) -> None:
    """Takes one step for every line that comes in and answers with what it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if side in ("plain", "tuned"):
        step = plain_step(job)
    elif side.startswith("peak"):
        step = product(side.split()[1])
    else:
        step = our_step(job, side)
    for _ in sys.stdin:
        began, worked, faults = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
        loss = step()
        found = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "s": time.perf_counter() - began,
            "cpu": time.process_time() - worked,
            "faults": found.ru_minflt - faults.ru_minflt,
            "peak": found.ru_maxrss / 2**20,
            "loss": loss,
        }
        print(json.dumps(answer), flush=True)


def measured(name: str, sides: list[str], rounds: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """Every side's answers."""
    # the plain code with the allocator's settings alone: what they bring without any change
    tuned = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
    asked = [sys.executable, __file__, "--job", name, "--threads", str(threads), "--serve"]
    return in_turns({side: [*asked, side] for side in sides}, {"tuned": {**os.environ, **tuned}}, rounds)


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> Iterator[str]:
    """Rows of Markdown."""

    def median(answers: list[dict[str, float]], of: str) -> float:
        return statistics.median(a[of] for a in answers)

    yield "| job | side | s | cpu s | of plain, s | of plain, cpu | page faults | memory GB | share of peak |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, sides in found.items():
        for side, answers in sides.items():
            if side.startswith("peak"):
                rate = 8 * 2 * _PEAK**3 / median(answers, "s") / 1e9
                yield f"| {name} | {side} | {rate:.0f} GFLOP/s | | | | | | |"
                continue
            s, cpu = median(answers, "s"), median(answers, "cpu")
            of = ["-", "-"]
            if plain := sides.get("plain"):
                of = [
                    f"{statistics.median(a[key] / p[key] for a, p in zip(answers, plain, strict=True)):.3f}"
                    for key in ("s", "cpu")
                ]
            share = "-"
            if peak := sides.get("peak bf16" if side == "bf16" else "peak fp32"):
                best = 8 * 2 * _PEAK**3 / median(peak, "s")
                share = f"{JOBS[name].tflop * 1e12 / s / best:.0%}"
            yield (
                f"| {name} | {side} | {s:.3f} | {cpu:.3f} | {of[0]} | {of[1]} | {median(answers, 'faults'):,.0f} | "
                f"{max(a['peak'] for a in answers):.1f} | {share} |"
            )


@click.command()
@click.option("--job", "jobs", type=click.Choice(list(JOBS)), multiple=True, help="One or several.  [all]")
@click.option("--side", "sides", type=click.Choice(SIDES), multiple=True, help="One or several.  [all that run here]")
@click.option("--rounds", default=5, show_default=True, help="Counted steps of each side.")
@click.option("--threads", default=2, show_default=True, help="Of torch.")
@click.option("--serve", "served", hidden=True)
def main(jobs: tuple[str, ...], sides: tuple[str, ...], rounds: int, threads: int, served: str | None) -> None:
    """Measures, and prints a table."""
    if served:
        serve(JOBS[jobs[0]], served, threads)
        return
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    chosen = [side for side in sides or SIDES if fast or "bf16" not in side]
    click.echo(
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{threads} threads" + ("" if fast else "; no bf16 instructions here, bf16 is left out") + "\n"
    )
    found = {name: measured(name, chosen, rounds, threads) for name in jobs or JOBS}
    click.echo("\n".join(table(found)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
