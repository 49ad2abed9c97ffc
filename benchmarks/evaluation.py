"""Scoring a test set beside the papers' code written plainly: `python benchmarks/evaluation.py [--job rtfm]`.

30 videos of 30 to 600 clips, spread as UCF-Crime's test videos are, 10 crops (HL-Net: 5). From files to frame scores:
the plain side reads .npy files as each paper's code does, one video at a time; ours is `wsvad eval`'s way from a
feature store, with its check of every byte. HL-Net's code starts four worker processes for every evaluation; the side
`plain, no workers` is it without. Each side is a process of its own that scores all videos when told to, because the
settings of one side's allocator are not to be the other's. Sides take turns; medians are printed. `cpu` is time of the
processor, workers included, less disturbed by others than the clock. Both sides have the same weights; the largest
difference of their scores stands beside the times.
"""

import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from turns import in_turns

Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Job:
    """The recipe whose head is scored with, features (crops, clips, dim) and (1, clips, sound)."""

    recipe: str
    crops: int
    dim: int
    sound: int = 0
    workers: int = 0


JOBS = {
    "rtfm": Job("rtfm_ucf", 10, 2048),
    "urdmu": Job("urdmu_ucf", 10, 1024),
    "hlnet": Job("hlnet_xd", 5, 1024, 128, workers=4),
}
SIDES = ("plain", "plain, no workers", "fp32", "bf16")


def lengths(count: int) -> list[int]:
    """Clips of each video: the median is near UCF-Crime's 112, and a few are long."""
    drawn = np.random.default_rng(0).lognormal(np.log(112), 0.9, count)
    return [int(n) for n in np.clip(drawn, 30, 600)]


def write(job: Job, name: str, folder: Path, count: int) -> None:
    """The same features in each paper's files and in feature stores, as a network behind a ReLU gives them."""
    from data.store import FeatureStore
    from data.types import FeatureSpec, VideoFeatures

    crops = tuple(f"crop{k}" for k in range(job.crops))
    stores = {"rgb": FeatureStore(folder / "rgb", FeatureSpec("drawn", job.dim, crops=crops))}
    if job.sound:
        stores["audio"] = FeatureStore(folder / "audio", FeatureSpec("drawn", job.sound, modality="audio"))
    (folder / "files").mkdir()
    for i, n in enumerate(lengths(count)):
        rng = np.random.default_rng([1, i])
        x = {
            m: np.maximum(rng.standard_normal((len(s.spec.crops), n, s.spec.dim), dtype=np.float32), 0)
            for m, s in stores.items()
        }
        for m, store in stores.items():
            store.write(VideoFeatures(f"v{i:02}", x[m], store.spec.grid(16 * n), 25.0, store.spec.crops))
        if name == "rtfm":
            np.save(folder / "files" / f"v{i:02}.npy", x["rgb"].transpose(1, 0, 2))
            continue
        for k, crop in enumerate(x["rgb"]):
            np.save(folder / "files" / f"v{i:02}__{k}.npy", crop)
        if job.sound:
            np.save(folder / "files" / f"v{i:02}__sound.npy", x["audio"][0])


class Crops(Dataset[torch.Tensor]):
    """A file for every crop, the sound of its video beside it."""

    def __init__(self, job: Job, folder: Path, count: int) -> None:
        self.job, self.folder, self.count = job, folder / "files", count

    def __len__(self) -> int:
        return self.count * self.job.crops

    def __getitem__(self, i: int) -> torch.Tensor:
        video, crop = divmod(i, self.job.crops)
        x = np.array(np.load(self.folder / f"v{video:02}__{crop}.npy"), dtype=np.float32)
        if self.job.sound:
            sound = np.array(np.load(self.folder / f"v{video:02}__sound.npy"), dtype=np.float32)
            x = np.concatenate((x, sound[: len(x)]), axis=1)
        return torch.from_numpy(x)


class Videos(Dataset[torch.Tensor]):
    """A file for every video, (T, K, D)."""

    def __init__(self, job: Job, folder: Path, count: int) -> None:
        self.folder, self.count = folder / "files", count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(np.array(np.load(self.folder / f"v{i:02}.npy"), dtype=np.float32))


def model_of(job: Job) -> torch.nn.Module:
    """Our model with the recipe's head, the same weights in every process."""
    from mil import config as configs
    from mil.model import Model

    torch.manual_seed(0)
    dims = {"rgb": job.dim, **({"audio": job.sound} if job.sound else {})}
    return Model(configs.load(job.recipe), dims).eval()


def plain_side(job: Job, name: str, folder: Path, count: int, workers: int) -> Callable[[], Scores]:
    """The published habit: a loader for every evaluation, one video after the other, scores repeated for 16 frames."""
    from mil.published import give_back

    head = model_of(job).head
    model = import_module(f"plain.{name}").Model(job.dim + job.sound).eval()
    model.load_state_dict(give_back(head, head.published(), {}))

    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, as published

    def work() -> Scores:
        found: Scores = {}
        kind, size = (Videos, 1) if name == "rtfm" else (Crops, job.crops)
        context = "spawn" if workers else None
        loader = DataLoader(
            kind(job, folder, count), batch_size=size, num_workers=workers, multiprocessing_context=context
        )
        with torch.no_grad():
            for i, x in enumerate(loader):
                scores = model.scores(x[0].permute(1, 0, 2) if name == "rtfm" else x)
                found[f"v{i:02}"] = np.repeat(scores.numpy(), 16).astype(np.float64)
        return found

    return work


def our_side(job: Job, folder: Path, count: int, precision: str) -> Callable[[], Scores]:
    """What `wsvad eval` does before its metrics."""
    from data.store import FeatureStore
    from data.types import Event, Video
    from mil import config as configs
    from mil.allocator import keep_memory
    from mil.evaluate import scored

    keep_memory()
    model, rules = model_of(job), configs.load(job.recipe).evaluate
    stores = [FeatureStore(folder / m) for m in ("rgb", "audio") if (folder / m).is_dir()]
    videos = [
        Video(f"v{i:02}", "", "test", i % 2, num_frames=16 * n, events=(Event(0, 16),) * (i % 2))
        for i, n in enumerate(lengths(count))
    ]

    def work() -> Scores:
        found = scored(model, rules, videos, stores, protocol_name="frames", precision=precision)
        return {v.video_id: v.scores for v in found.videos}

    return work


def serve(name: str, side: str, folder: Path, count: int, threads: int) -> None:
    """Scores all videos for every line that comes in and answers with what it took."""
    torch.set_num_threads(threads)
    job = JOBS[name]
    if side.startswith("plain"):
        work = plain_side(job, name, folder, count, job.workers if side == "plain" else 0)
    else:
        work = our_side(job, folder, count, side)
    for _ in sys.stdin:
        began, worked = time.perf_counter(), sum(os.times()[:4])
        found = work()
        answer = {
            "s": time.perf_counter() - began,
            "cpu": sum(os.times()[:4]) - worked,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        np.savez(folder / f"{side}.npz", **found)
        print(json.dumps(answer), flush=True)


def measured(name: str, sides: list[str], folder: Path, count: int, rounds: int, threads: int) -> dict[str, list[dict]]:
    """Every side's answers."""
    options = {"job": name, "folder": folder, "videos": count, "threads": threads}
    asked = [sys.executable, __file__, *(str(o) for k, v in options.items() for o in (f"--{k}", v)), "--serve"]
    return in_turns({side: [*asked, side] for side in sides}, {}, rounds)


def table(name: str, found: dict[str, list[dict]], folder: Path) -> Iterator[str]:
    """Rows of Markdown."""
    plain = dict(np.load(folder / "plain.npz")) if "plain" in found else {}
    for side, answers in found.items():
        s, cpu = (statistics.median(a[key] for a in answers) for key in ("s", "cpu"))
        of, apart = ["-", "-"], "-"
        if plain and side != "plain":
            pairs = list(zip(answers, found["plain"], strict=True))
            of = [f"{statistics.median(a[key] / p[key] for a, p in pairs):.3f}" for key in ("s", "cpu")]
            own = np.load(folder / f"{side}.npz")
            apart = f"{max(np.abs(own[v] - plain[v]).max() for v in plain):.1e}"
        peak = max(a["peak"] for a in answers)
        yield f"| {name} | {side} | {s:.2f} | {cpu:.2f} | {of[0]} | {of[1]} | {peak:.1f} | {apart} |"


@click.command()
@click.option("--job", "jobs", type=click.Choice(list(JOBS)), multiple=True, help="One or several.  [all]")
@click.option("--side", "sides", type=click.Choice(SIDES), multiple=True, help="One or several.  [all that run here]")
@click.option("--videos", "count", default=30, show_default=True, help="How many.")
@click.option("--rounds", default=5, show_default=True, help="Counted evaluations of each side.")
@click.option("--threads", default=2, show_default=True, help="Of torch.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where files are written; a temporary folder if none.")
@click.option("--serve", "served", hidden=True)
def main(
    jobs: tuple[str, ...],
    sides: tuple[str, ...],
    count: int,
    rounds: int,
    threads: int,
    folder: Path | None,
    served: str | None,
) -> None:
    """Measures, and prints a table."""
    if served and folder:
        serve(jobs[0], served, folder, count, threads)
        return
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    click.echo(
        f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{threads} threads, {count} videos, {sum(lengths(count))} clips"
        + ("" if fast else "; no bf16 instructions here, bf16 is left out")
    )
    click.echo("\n| head | side | s | cpu s | of plain, s | of plain, cpu | memory GB | largest difference |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for name in jobs or JOBS:
        chosen = [
            side
            for side in sides or SIDES
            if (fast or side != "bf16") and (JOBS[name].workers or side != "plain, no workers")
        ]
        with tempfile.TemporaryDirectory(dir=folder) as made:
            write(JOBS[name], name, Path(made), count)
            click.echo("\n".join(table(name, measured(name, chosen, Path(made), count, rounds, threads), Path(made))))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
