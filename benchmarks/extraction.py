"""Decoding and extraction speed on this machine: `make bench`, or `python benchmarks/extraction.py [--videos DIR]`.

Both sides of every ratio are measured in turn, in one run; medians are printed. Without --videos, generated ones are
used (H.264, 320x240, 25 fps). Prints a Markdown table.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import click
import cv2

from data.datasets import datasets
from data.datasets.sources import find_videos
from data.types import Video
from extract.backbones import create
from extract.decode import VideoReader
from extract.runner import extract_all
from extract.video import extract_video


def decode_default(paths: list[Path]) -> int:
    """PyAV as most code uses it: a new scaler for every frame."""
    count = 0
    for path in paths:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")
                count += 1
    return count


def decode_ours(paths: list[Path], resize: str = "none", color: str = "rgb") -> int:
    """Our reader."""
    count = 0
    for path in paths:
        with VideoReader(path, resize=resize, color=color) as reader:
            count += sum(1 for _ in reader)
    return count


def rate(work: Callable[[], int]) -> float:
    """Frames per second of one run."""
    began = time.perf_counter()
    frames = work()
    return frames / (time.perf_counter() - began)


@click.command()
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of videos; generated ones when not given.")
@click.option("--most", default=40, show_default=True, help="Use at most so many videos.")
@click.option("--runs", default=5, show_default=True, help="Counted runs of each side, after one that is not.")
@click.option("--backbone", default="motion", show_default=True)
def main(videos: Path | None, most: int, runs: int, backbone: str) -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        if videos is None:
            datasets.get("toy")(Path(folder) / "toy")
            videos = Path(folder) / "toy"
        paths = [files[0] for files in find_videos(videos).values()][:most]
        rows = [Video(p.stem, str(p), "train", 0) for p in paths]
        net = create(backbone)
        spec = net.spec
        cv2.setNumThreads(1)

        def one_process() -> int:
            return sum(extract_video(row, net)[0].grid.num_frames for row in rows[: max(len(rows) // 4, 1)])

        def workers(count: int) -> Callable[[], int]:
            def run() -> int:
                with tempfile.TemporaryDirectory() as store:
                    report = extract_all(rows, Path(store) / "s", backbone, workers=count)
                assert not report.failures, report.failures
                return report.frames

            return run

        sides: dict[str, Callable[[], int]] = {
            "decode to RGB, PyAV per-frame default": lambda: decode_default(paths),
            "decode to RGB, our reader": lambda: decode_ours(paths),
            f"decode as {backbone} wants it ({spec.color}, {spec.resize})": lambda: decode_ours(
                paths, spec.resize, spec.color
            ),
            f"{backbone}, decode and descriptor, one process": one_process,
            f"{backbone}, whole command, 2 workers (start-up and store included)": workers(2),
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(runs + 1):
            for name, work in sides.items():
                value = rate(work)
                if turn:
                    found[name].append(value)
    click.echo(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {len(paths)} videos\n")
    click.echo("| what | frames/s, median (min to max) |\n|---|---|")
    for name, values in found.items():
        click.echo(f"| {name} | {statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f}) |")


if __name__ == "__main__":
    main()
