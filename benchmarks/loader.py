"""A training batch from a packed store beside the field's habit: `python benchmarks/loader.py [--folder DIR]`.

64 bags x 10 crops x 32 segments x 2048 features. The plain side reads and pools the videos' .npy files at every step
(benchmarks/plain/loader.py); the others draw the bags of a training run. All take turns in one process, warm. Both
sides' numbers are compared first. `cpu` is time of the processor, less disturbed by others than the clock; `--steps`
takes as many RTFM steps on such a batch, to say what share of one a batch costs. Prints a Markdown table.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from plain.loader import Videos, batches

from data.store import FeatureStore
from data.types import FeatureSpec, Video, VideoFeatures
from mil import config as configs
from mil.bags import BagDataset
from mil.heads import Progress
from mil.loader import Loader
from mil.model import Model
from mil.step import Step

CROPS, DIM, COUNT, PAIRS = 10, 2048, 32, 32
Times = tuple[float, float]


def write(folder: Path, count: int) -> tuple[list[Video], FeatureStore, list[Path]]:
    """Simulated videos of 100 to 300 clips, every other one anomalous: in a store, and as (T, 10, 2048) files."""
    rng = np.random.default_rng(0)
    crops = tuple(f"crop{k}" for k in range(CROPS))
    store = FeatureStore(folder / "store", FeatureSpec("simulated", DIM, crops=crops))
    videos, paths = [], []
    for i in range(count):
        clips = int(rng.integers(100, 301))
        x = np.maximum(rng.standard_normal((CROPS, clips, DIM), dtype=np.float32), 0)
        videos.append(Video(f"video{i:03}", "", "train", i % 2, num_frames=16 * clips))
        store.write(VideoFeatures(videos[-1].id, x, store.spec.grid(16 * clips), 25.0, crops))
        paths.append(folder / f"{videos[-1].id}.npy")
        np.save(paths[-1], np.ascontiguousarray(x.transpose(1, 0, 2)))
    return videos, store, paths


def loader(videos: list[Video], store: FeatureStore, dtype: str, resample: str, samples: str = "videos") -> Loader:
    overrides = [f"train.pairs={PAIRS}", f"data.resample={resample}", f"data.count={COUNT}", f"train.samples={samples}"]
    config = configs.load("rtfm_ucf", overrides, seed=0)
    bags = BagDataset(videos, [store], resample, COUNT, dtype=dtype)
    return Loader(bags, config, torch.device("cpu"), prefetch=False)  # each side pays for its own batch


def agree(ours: Loader, paths: list[Path]) -> float:
    """The largest difference of a batch from the plain one, in units of the value's size; at most 2^-11 in float16."""
    bag = ours.draw(1)
    assert bag.index is not None
    plain = Videos(paths, COUNT)
    worst = 0.0
    for row, i in zip(bag.x, bag.index.tolist(), strict=True):
        wanted = plain[i]
        worst = max(worst, float(((row - wanted).abs() / (wanted.abs() + 1e-3)).max()))
    return worst


def in_turns(sides: dict[str, Callable[[int], object]], runs: int) -> dict[str, list[Times]]:
    """(seconds, seconds of the processor) of each side, in turn, after one round that does not count."""
    found: dict[str, list[Times]] = {name: [] for name in sides}
    for turn in range(1, runs + 2):
        for name, work in sides.items():
            began, worked = time.perf_counter(), time.process_time()
            work(turn)
            took = (time.perf_counter() - began, time.process_time() - worked)
            if turn > 1:
                found[name].append(took)
    return found


def rtfm_step(ours: Loader, count: int) -> float:
    """Median seconds of an RTFM step on such a batch."""
    take = Step(ours.config.train, Model(ours.config, {"rgb": DIM}))
    bag, seconds = ours.draw(1), []
    for step in range(1, count + 2):
        began = time.perf_counter()
        float(take(bag, Progress(step, 1000, 100))["total"])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are written for the while.")
@click.option("--videos", "count", default=96, show_default=True, help="Number of videos, 33 MB each, at least 64.")
@click.option("--runs", default=9, show_default=True, help="Counted batches of each side.")
@click.option("--steps", default=0, show_default=True, help="RTFM steps to measure, about 16 s each on two cores.")
def main(folder: Path | None, count: int, runs: int, steps: int) -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        videos, store, paths = write(Path(made), count)
        began = time.perf_counter()
        packed = loader(videos, store, "float16", "segments")
        packing = time.perf_counter() - began
        wide = loader(videos, store, "float32", "segments")
        crops = loader(videos, store, "float16", "segments", "crops")
        drawn = loader(videos, store, "float16", "random")
        plain = batches(paths[0::2], paths[1::2], PAIRS, COUNT)
        worst = agree(packed, paths)
        assert worst < 2**-10, worst
        sides: dict[str, Callable[[int], object]] = {
            "plain: per-video .npy, read and pooled at every step": lambda _: plain(),
            "packed, float16": packed.draw,
            "packed, float32": wide.draw,
            "packed, float16, one crop of each video": crops.draw,
            "random segments, from the store": drawn.draw,
        }
        found = in_turns(sides, runs)
        step = rtfm_step(packed, steps) if steps else None
    base = next(iter(found.values()))
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, {count} videos")
    print(f"packing them took {packing:.1f} s; largest relative difference from the plain batch {worst:.1e}\n")
    last = f" of an RTFM step ({step:.1f} s) |" if step else ""
    print(f"| 64 x 10 x 32 x 2048 | ms, median (min to max) | cpu ms | faster: clock | cpu |{last}")
    print(f"|---|---|---|---|---|{'---|' if step else ''}")
    for name, times in found.items():
        clock, cpu = ([t[k] for t in times] for k in (0, 1))
        ratios = [statistics.median(b[k] / t[k] for b, t in zip(base, times, strict=True)) for k in (0, 1)]
        share = f" {statistics.median(clock) / step:.2%} |" if step else ""
        span = f"{1e3 * statistics.median(clock):.1f} ({1e3 * min(clock):.1f} to {1e3 * max(clock):.1f})"
        print(f"| {name} | {span} | {1e3 * statistics.median(cpu):.1f} | {ratios[0]:.1f}x | {ratios[1]:.1f}x |{share}")


if __name__ == "__main__":
    main()
