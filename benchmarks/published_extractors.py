"""Our extraction against the field's usual way, on the same clips: `python benchmarks/published_extractors.py`.

The usual way is that of video_features and of RTFM's extractor: frames converted and resized one by one with Pillow,
one stack at a time, the net as its port has it (batch norms apart, default memory layout, float32), ten crops cut from
float64 frames. It is written anew for this comparison, with the same net and the same random weights. Sides take turns
in one run; each is a process of its own, so that its peak memory is its own. Prints a Markdown table.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import av
import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from numpy.typing import NDArray
from PIL import Image

from data.datasets.toy_video import write_video
from data.types import Video
from extract.backbones import create
from extract.backbones.net import Net
from extract.video import extract_video

CASES = {  # name: preset, options of it, frames of the video
    "I3D Inception, stacks of 64, one crop": ("i3d_vf", {"weights": "random"}, 355),
    "I3D Inception, 16 frames, one crop": ("i3d_rocng", {"weights": "random", "crops": "1"}, 355),
    "I3D-R50, 16 frames, ten crops": ("i3d_rtfm", {"weights": "random"}, 96),
}
SIDES = ("usual", "float32", "bfloat16")


def usual_way(path: Path, net: Net) -> NDArray[np.float32]:
    """Features as most extractors of the field make them."""
    module, spec = net.net.eval(), net.spec
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
            scale = 256 / min(picture.size)
            size = (int(picture.size[0] * scale), int(picture.size[1] * scale))
            frames.append(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)))
    found = []
    for start in range(0, len(frames) - spec.clip_len + 1, spec.stride):
        stack = np.stack(frames[start : start + spec.clip_len])
        if len(spec.crops) == 1:
            top, left = (stack.shape[1] - 224) // 2, (stack.shape[2] - 224) // 2
            crops = stack[None, :, top : top + 224, left : left + 224].astype(np.float32)
        else:
            crops = ten_crops(stack.astype(np.float64))
        crops = (crops - np.array(spec.mean)) / np.array(spec.std)
        x = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 4, 1, 2, 3))).float()
        with torch.no_grad():
            found.append(module(x).numpy())
    return np.stack(found)


def ten_crops(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = stack.shape[1:3]
    corners = [(0, 0), (0, width - 224), (height - 224, 0), (height - 224, width - 224)]
    places = [*corners, ((height - 224) // 2, (width - 224) // 2)]
    both = (stack, stack[:, :, ::-1])
    return np.stack([one[:, top : top + 224, left : left + 224] for one in both for top, left in places])


def plain_convolution(x, weight, bias, stride=(1, 1, 1), padding=(0, 0, 0)):  # type: ignore[no-untyped-def]
    return F.conv3d(x, weight, bias, stride, padding)


def one_side(side: str, path: Path, case: str) -> dict[str, float]:
    """Seconds of one extraction, the weights made before, and the peak memory of this process in MB."""
    preset, options, frames = CASES[case]
    if side == "usual":
        with (
            mock.patch("extract.nets.conv3d.convolve", plain_convolution),
            mock.patch("extract.nets.i3d.max_pool_3x3x3", lambda x: F.max_pool3d(x, 3, 1, 1)),
        ):
            with mock.patch("extract.backbones.net.Net._prepare_net"):
                net = create(preset, device="cpu", **options)
            began = time.perf_counter()
            usual_way(path, net)
            took = time.perf_counter() - began
    else:
        net = create(preset, device="cpu", precision=side, **options)
        began = time.perf_counter()
        extract_video(Video("v", str(path), "train", 0), net, batch=1)
        took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames_per_s": frames / took, "peak_mb": peak}


def pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    """A textured scene under a moving camera, 320x240."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 80, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((640, 240), Image.Resampling.BICUBIC))
    for i in range(count):
        yield np.ascontiguousarray(np.roll(scene, -i, axis=1)[:, :320])


@click.command()
@click.option("--runs", default=3, show_default=True, help="Counted runs of each side, after one that is not.")
@click.option("--case", "only", help="Only the case of this name.")
@click.option("--side", type=click.Choice(SIDES), hidden=True)
@click.option("--path", type=click.Path(path_type=Path), hidden=True)
def main(runs: int, only: str | None, side: str | None, path: Path | None) -> None:
    """Measures, and prints a table."""
    if side and path and only:
        print(json.dumps(one_side(side, path, only)))
        return
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    print("| case | side | frames/s, median (min to max) | times the usual way | peak memory |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case, (_, _, frames) in CASES.items():
            if only and case != only:
                continue
            video = Path(folder) / f"{frames}.mp4"
            write_video(video, pictures(frames), fps=25)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
            for turn in range(runs + 1):
                for name in SIDES:
                    command = [sys.executable, __file__, "--case", case, "--side", name, "--path", str(video)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    if turn:
                        found[name].append(json.loads(done.stdout))
            usual = statistics.median(one["frames_per_s"] for one in found["usual"])
            for name in SIDES:
                rates = [one["frames_per_s"] for one in found[name]]
                middle = statistics.median(rates)
                peak = max(one["peak_mb"] for one in found[name])
                print(
                    f"| {case} | {name} | {middle:.1f} ({min(rates):.1f} to {max(rates):.1f}) "
                    f"| {middle / usual:.2f} | {peak:,.0f} MB |"
                )


if __name__ == "__main__":
    main()
