"""How near extraction comes to the limits of this machine: `python benchmarks/nets.py [--runs 5]`.

Four measurements, each of whose sides take turns in one run:

1. the forward pass of I3D Inception against a matrix product in the same precision, and what bfloat16 does to features;
2. the whole extraction, decoding and store included, against the forward pass alone, one crop and ten;
3. decoding against the best that PyAV gives: one kept reformatter, nothing else done;
4. peak memory of extracting a video of one minute and of six hours.

Prints Markdown tables.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import click
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract.backbones import Backbone, backbones, create
from extract.backbones.net import PRECISIONS
from extract.bench import forward_rate, matmul_rate
from extract.decode import VideoReader
from extract.engine import Outcome
from extract.runner import extract_all
from extract.workers import Job, run_here

_FLOP = 2 * 27.83  # 10^9 of I3D Inception, 16 frames, one crop


def pictures(count: int, height: int = 240, width: int = 320) -> Iterator[NDArray[np.uint8]]:
    """A textured scene under a moving camera."""
    coarse = np.random.default_rng(0).random((16, 40, 3))
    scene = np.kron(coarse, np.ones((height // 16 + 1, 2 * width // 40 + 1, 1)))[:height, : 2 * width]
    scene = (255 * scene).astype(np.uint8)
    for i in range(count):
        yield np.ascontiguousarray(np.roll(scene, -i, axis=1)[:, :width])


def in_turns(sides: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Each side `runs` times, in turn, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(runs + 1):
        for name, work in sides.items():
            value = work()
            if turn:
                found[name].append(value)
    return found


def show(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def forward(runs: int) -> None:
    columns = ("clips/s", "GFLOP/s", "matmul 3072^3, GFLOP/s", "share of it", "cosine to float32")
    print(f"| I3D Inception, 16x224x224, a process per core | {' | '.join(columns)} |\n|---|---|---|---|---|---|")
    plain = np.zeros(0)
    for precision in ("float32", "bfloat16"):
        options = {"weights": "random", "crops": "1", "precision": precision, "device": "cpu"}
        clips = [np.random.default_rng(0).integers(0, 256, (16, 256, 341, 3), dtype=np.uint8)]
        x = create("i3d_rocng", **options).submit(clips, [25.0])().ravel().astype(np.float64)
        plain = x if not plain.size else plain
        cosine = x @ plain / np.linalg.norm(x) / np.linalg.norm(plain)
        both = beside(options, runs)
        rate, peak = sum(one["forward"] for one in both), sum(one["matmul"] for one in both)
        share = f"{100 * rate * _FLOP / peak:.0f} %"
        print(f"| {precision} | {rate:.2f} | {rate * _FLOP:.0f} | {peak:.0f} | {share} | {cosine:.6f} |")


def beside(options: dict[str, str], runs: int, path: Path | None = None) -> list[dict[str, float]]:
    """Forward pass and matrix product, or the whole extraction of a video, in turns, in as many processes with one
    thread as extraction runs; medians."""
    given = json.dumps([options, str(path or "")])
    command = [sys.executable, __file__, "--runs", str(runs), "--alone", given]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(torch.get_num_threads())]
    return [json.loads(process.communicate()[0]) for process in running]


def one_process(options: dict[str, str], path: str, runs: int) -> dict[str, float]:
    torch.set_num_threads(1)
    net = create("i3d_rocng", **options)
    clips = [np.random.default_rng(0).integers(0, 256, (16, 240, 320, 3), dtype=np.uint8)]
    sides = {"forward": lambda: forward_rate(net, clips)}
    if path:
        sides["whole"] = lambda: extracted(net, Path(path))
    else:
        sides["matmul"] = lambda: matmul_rate(torch.device("cpu"), PRECISIONS[options["precision"]])
    return {name: statistics.median(values) for name, values in in_turns(sides, runs).items()}


def whole(runs: int) -> None:
    print("\n| whole extraction, a process per core | clips/s | forward pass alone | share |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.mp4"
        for crops, precision, frames in (("1", "float32", 480), ("1", "bfloat16", 640), ("10", "bfloat16", 96)):
            write_video(path, pictures(frames), fps=25)
            options = {"weights": "random", "crops": crops, "precision": precision, "device": "cpu"}
            both = beside(options, runs, path)
            rate, limit = sum(one["whole"] for one in both), sum(one["forward"] for one in both)
            what = f"I3D Inception, {precision}, {crops} crop{'s' * (crops != '1')}"
            print(f"| {what} | {rate:.2f} | {limit:.2f} | {100 * rate / limit:.0f} % |")


def extracted(net: Backbone, path: Path) -> float:
    """Clips per second of a video's way into a store; the net is there, as it is for all videos but the first."""
    with tempfile.TemporaryDirectory() as folder:
        FeatureStore(Path(folder) / "s", net.spec)
        job = Job(str(Path(folder) / "s"), "i3d_rocng", {})
        began = time.perf_counter()
        *_, done = run_here(iter([Video("v", str(path), "train", 0)]), job, net)  # before it, notes on the way
        took = time.perf_counter() - began
    assert isinstance(done, Outcome)
    assert not done.error, done.error
    return done.clips / took


def decoding(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.mp4"
        write_video(path, pictures(2000), fps=25)
        found = in_turns({"best": lambda: decode_best(path), "ours": lambda: decode_ours(path)}, runs)
    share = statistics.median(found["ours"]) / statistics.median(found["best"])
    print("\n| decode to RGB, 320x240 | frames/s |\n|---|---|")
    print(f"| PyAV, one kept reformatter, damage unnoticed | {statistics.median(found['best']):,.0f} |")
    print(f"| our reader | {statistics.median(found['ours']):,.0f} = {100 * share:.0f} % |")


def decode_best(path: Path) -> float:
    began, count, reformatter = time.perf_counter(), 0, VideoReformatter()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            count += 1
    return count / (time.perf_counter() - began)


def decode_ours(path: Path) -> float:
    began = time.perf_counter()
    with VideoReader(path) as reader:
        count = sum(1 for _ in reader)
    return count / (time.perf_counter() - began)


def memory(hours: float) -> None:
    """Small pictures and a descriptor that costs nothing but has as many features as the largest nets: what would grow
    with the video is what waits for its end."""
    print("\n| peak memory of one process, 64x48 pixels | MB |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.mp4", Path(folder) / "long.mp4"
        frames = int(hours * 3600 * 25)
        write_video(short, pictures(1500, 48, 64), fps=25, preset="ultrafast")
        write_video(long, pictures(frames, 48, 64), fps=25, preset="ultrafast")
        for name, path in (("1 minute", short), (f"{hours:g} hours", long)):
            command = [sys.executable, __file__, "--one", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"| {name} at 25 frames/s, 2048 features per clip | {float(done.stdout):,.0f} |")


def peak_of(path: str) -> float:
    """MB that extracting one video into a store takes at most, libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        report = extract_all([Video("v", path, "train", 0)], Path(folder) / "s", "wide", workers=1)
    assert not report.failures, report.failures
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@backbones.register("wide")
class Wide(Backbone):
    """As many features as the largest nets have, at no cost."""

    uses_torch = False

    def __init__(self) -> None:
        self.spec = FeatureSpec("wide", dim=2048, resize="8x8:area", color="gray")

    def extract(self, clips: NDArray[np.uint8], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """clips (B, 16, 8, 8) -> (B, 1, 2048)."""
        return np.repeat(clips.reshape(len(clips), 1, -1), 2, axis=2).astype(np.float32)


@click.command()
@click.option("--runs", default=5, show_default=True, help="Counted runs of each side, after one that is not.")
@click.option("--hours", default=6.0, show_default=True, help="Length of the long video.")
@click.option("--only", type=click.Choice(["forward", "whole", "decoding", "memory"]))
@click.option("--alone", "alone_options", hidden=True)
@click.option("--one", "one_video", hidden=True)
def main(runs: int, hours: float, only: str | None, alone_options: str | None, one_video: str | None) -> None:
    """Measures, and prints tables."""
    if alone_options:
        print(json.dumps(one_process(*json.loads(alone_options), runs)))
        return
    if one_video:
        print(peak_of(one_video))
        return
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}\n")
    for name, part in (("forward", forward), ("whole", whole), ("decoding", decoding)):
        if only in (None, name):
            part(runs)
    if only in (None, "memory"):
        memory(hours)


if __name__ == "__main__":
    main()
