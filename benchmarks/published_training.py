"""The published training of a head at UCF-Crime's size, on simulated features.

A store of 1,610 videos (810 anomalous) of 32 to 64 clips and ten crops is made, packed, and trained on as `wsvad train`
does it: RTFM for 15,000 steps, UR-DMU for 3,000. Printed: the device, seconds for packing and for training, and the
share of the time in which the device had work, over some steps in the middle (CUDA only; a CPU is always busy).

    python benchmarks/published_training.py --device cuda --recipe rtfm_ucf --recipe urdmu_ucf
    python benchmarks/published_training.py --device cpu --videos 40 --steps 4 --dim 256      # whether it runs at all
"""

import datetime as dt
import platform
import shutil
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from data import manifest
from data.grid import ClipGrid
from data.store import FeatureStore
from data.types import FeatureSpec, Video, VideoFeatures
from mil.allocator import keep_memory
from mil.loop import Loop
from mil.run import start_run

CLIP = 16
PROFILED = 40


def make_store(root: Path, videos: int, dim: int) -> tuple[FeatureStore, Path]:
    """Half of the videos anomalous, as 810 of 1,610 are; features as a network behind a ReLU gives them."""
    crops = tuple(f"crop{k}" for k in range(10))
    store = FeatureStore(root / "store", FeatureSpec("simulated", dim, weights="none", crops=crops, dtype="float16"))
    rng = np.random.default_rng(0)
    noise = np.maximum(rng.standard_normal((10, 64, dim), dtype=np.float32), 0).astype(np.float16)
    listed = []
    for i in range(videos):
        clips = int(rng.integers(32, 65))
        grid = ClipGrid(clips * CLIP, clip_len=CLIP, stride=CLIP)
        x = np.ascontiguousarray(np.roll(noise, i, axis=2)[:, :clips])
        store.write(VideoFeatures(f"v{i:04}", x, grid, crops=crops))
        listed.append(Video(f"v{i:04}", f"v{i:04}.mp4", "train", int(i % 2), num_frames=clips * CLIP))
    path = root / "videos.csv"
    manifest.write(path, listed)
    return store, path


class Watch:
    """Profiles some steps in the middle of a training: the share of the time in which the device had work."""

    def __init__(self, device: str) -> None:
        self.device, self.share, self.real = device, float("nan"), Loop.update
        self.profiler: profile | None = None

    def __enter__(self) -> "Watch":
        watch = self

        def update(loop: Loop, step: int) -> dict[str, torch.Tensor]:
            first = max(loop.schedule.steps // 2, 1)
            if watch.device.startswith("cuda") and step == first:
                torch.cuda.synchronize()
                watch.profiler, watch.began = profile(activities=[ProfilerActivity.CUDA]), time.perf_counter()
                watch.profiler.__enter__()
            found = watch.real(loop, step)
            if watch.profiler is not None and step == first + PROFILED:
                torch.cuda.synchronize()
                wall = time.perf_counter() - watch.began
                watch.profiler.__exit__(None, None, None)
                busy = sum(e.self_device_time_total for e in watch.profiler.key_averages()) / 1e6
                watch.share, watch.profiler = busy / wall, None
            return found

        Loop.update = update  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Loop.update = self.real  # type: ignore[method-assign]


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("rtfm_ucf", "urdmu_ucf"), show_default=True)
@click.option("--videos", default=1610, show_default=True)
@click.option("--dim", type=int, help="Feature size.  [2048; urdmu: 1024]")
@click.option("--steps", type=int, help="Fewer than published, to see whether it runs.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option(
    "--compile", "compiled", type=click.Choice(["none", "kernels", "graphs"]), default="none", show_default=True
)
def main(
    device: str,
    recipes: tuple[str, ...],
    videos: int,
    dim: int | None,
    steps: int | None,
    precision: str,
    compiled: str,
) -> None:
    keep_memory()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    print(f"{name}, {dt.datetime.now(dt.timezone.utc).date()}, torch {torch.__version__}, {precision}")
    for recipe in recipes:
        root = Path(tempfile.mkdtemp(prefix="published"))
        try:
            store, listed = make_store(root, videos, dim or (1024 if recipe.startswith("urdmu") else 2048))
            own = [f"train.precision={precision}", f"train.compile={compiled}"]
            own += [f"train.steps={steps}", f"train.pairs={min(32, videos // 2)}"] if steps else []
            began = time.perf_counter()
            start_run(recipe, [*own, "train.steps=1"], listed, [store.root], root / "first", device=device)
            first = time.perf_counter() - began
            with Watch(device) as watch:
                _, summary = start_run(recipe, own, listed, [store.root], root / "run", device=device)
            each = 1000 * summary["seconds"] / summary["steps"]
            busy = f"device busy {100 * watch.share:.0f} %" if watch.share == watch.share else "busy share: CUDA only"
            print(
                f"{recipe:<12} {summary['steps']:>6} steps in {summary['seconds'] / 60:.1f} min, {each:.1f} ms each; "
                f"packing, start-up and a step {first:.0f} s; {busy}",
                flush=True,
            )
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
