"""How fast extraction is on this machine, beside the limits it is measured against.

Decoding, the forward pass and a large matrix product take turns, so that a busy machine slows all of them; medians are
reported. End to end is a run of the real extraction into a store that is thrown away.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.types import FeatureSpec, Video
from extract.backbones import Backbone, create
from extract.backbones.net import PRECISIONS, Net
from extract.runner import extract_all
from extract.streams import Reading, clips_from

_SIZE = 3072  # of the matrix product: beyond every cache, done in well under a second on a laptop


@dataclass(frozen=True)
class Figures:
    """Medians. Rates are per second; `share_*` are ratios; None where there is nothing to compare with.

    gflop_per_clip is 0 where nobody has counted: for descriptors, and clips of another length than the preset's.
    """

    backbone: str
    device: str
    precision: str
    threads: int
    crops: int
    decode_frames: float
    decode_clips: float
    forward_clips: float
    gflop_per_clip: float
    forward_gflops: float
    matmul_gflops: float
    share_of_peak: float | None
    end_to_end_clips: float
    end_to_end_frames: float
    workers: int
    share_of_slower: float
    videos: int
    frames: int
    clips: int

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def table(self) -> str:
        """A Markdown table."""
        arithmetic = "unknown"
        if self.share_of_peak is not None:
            share = f"{100 * self.share_of_peak:.0f} % of the matmul peak"
            arithmetic = f"{self.forward_gflops:,.0f} GFLOP/s = {share}"
        rows = [
            ("decode, one process", f"{self.decode_frames:,.0f} frames/s ({self.decode_clips:,.1f} clips/s)"),
            ("forward", f"{self.forward_clips:,.2f} clips/s of {self.crops} crops"),
            ("arithmetic of the forward pass", arithmetic),
            (f"matmul {_SIZE}^3, {self.precision}", f"{self.matmul_gflops:,.0f} GFLOP/s"),
            (
                f"end to end, {self.workers} workers",
                f"{self.end_to_end_clips:,.2f} clips/s ({self.end_to_end_frames:,.0f} frames/s) = "
                f"{100 * self.share_of_slower:.0f} % of the slower of decode and forward",
            ),
        ]
        head = f"{self.backbone}, {self.device}, {self.threads} threads, {self.precision}, {self.videos} videos"
        return "\n".join([f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def bench(
    backbone: str, videos: Sequence[Video], options: dict[str, Any], *, workers: int = 0, runs: int = 5
) -> Figures:
    """Measures a backbone on videos; see the module's text.

    Args:
        backbone: registered name.
        videos: real files, some hundred clips in all.
        options: for the constructor, as `extract_all` takes them.
        workers: of the end-to-end run, as `extract_all` takes them.
        runs: counted turns of decode, forward and matmul, after one that is not.
    """
    net = create(backbone, **options)
    spec = net.spec
    device = net.device if isinstance(net, Net) else torch.device("cpu")
    reading = Reading(device=str(device), flow_weights=options.get("flow_weights"))
    clips = _some_clips(videos, spec, reading, 8)
    precision = spec.compute
    found: dict[str, list[float]] = {"decode": [], "forward": [], "matmul": []}
    frames = sum(_decode(v, spec, reading) for v in videos)
    for turn in range(runs + 1):
        one = {
            "decode": frames / _seconds(lambda: [_decode(v, spec, reading) for v in videos]),
            "forward": forward_rate(net, clips),
            "matmul": matmul_rate(device, PRECISIONS[precision]),
        }
        if turn:
            for name, value in one.items():
                found[name].append(value)
    decode, forward, matmul = (statistics.median(found[name]) for name in ("decode", "forward", "matmul"))
    with tempfile.TemporaryDirectory() as folder:
        report = extract_all(videos, Path(folder) / "store", backbone, options, workers=workers)
    if report.failures:
        raise ValueError(f"cannot be measured, a video failed: {next(iter(report.failures.values()))}")
    done = report.clips
    gflop = 2 * net.gmac * len(spec.crops) if spec.clip_len == net.default_spec().clip_len else 0.0
    rate = done / report.seconds
    # decoding happens in as many processes as there are workers; descriptors use one core in each, nets share all cores
    slower = min(decode * done / frames * report.workers, forward * (1 if net.uses_torch else report.workers))
    return Figures(
        backbone=backbone,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        precision=precision,
        threads=torch.get_num_threads(),
        crops=len(spec.crops),
        decode_frames=decode,
        decode_clips=decode * done / frames,
        forward_clips=forward,
        gflop_per_clip=gflop,
        forward_gflops=forward * gflop,
        matmul_gflops=matmul,
        share_of_peak=forward * gflop / matmul if gflop else None,
        end_to_end_clips=rate,
        end_to_end_frames=report.frames / report.seconds,
        workers=report.workers,
        share_of_slower=rate / slower,
        videos=len(videos),
        frames=frames,
        clips=done,
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = _SIZE) -> float:
    """GFLOP/s of one product of two square matrices, with whatever threads torch has."""
    a = torch.randn(size, size, dtype=torch.float32).to(device, dtype)
    count = 20 if device.type == "cuda" else 1
    _wait(device)
    took = _seconds(lambda: _products(a, count, device))
    return 2 * size**3 * count / took / 1e9


def _products(a: torch.Tensor, count: int, device: torch.device) -> None:
    with torch.inference_mode():
        for _ in range(count):
            torch.mm(a, a)
    _wait(device)


def forward_rate(net: Backbone, clips: Sequence[NDArray[Any]]) -> float:
    """Clips per second of the forward pass alone, as the engine calls it: uploads and crops included, no decoding."""
    many = list(clips) * max(1, 4 * net.batch // len(clips))
    parts = [many[i : i + net.batch] for i in range(0, len(many), net.batch)]

    def work() -> None:
        flying: list[Callable[[], NDArray[np.float32]]] = []
        for part in parts:
            flying.append(net.submit(part, [25.0] * len(part)))
            if len(flying) > 1:
                flying.pop(0)()
        for result in flying:
            result()

    return len(many) / _seconds(work)


def _decode(video: Video, spec: FeatureSpec, reading: Reading) -> int:
    """Frames of a video, decoded and cut into clips as a backbone wants them."""
    clips = clips_from(video, spec, reading)
    while True:
        try:
            next(clips)
        except StopIteration as done:
            return int(done.value.num_frames)


def _some_clips(videos: Sequence[Video], spec: FeatureSpec, reading: Reading, count: int) -> list[NDArray[Any]]:
    found: list[NDArray[Any]] = []
    for video in videos:
        for clip, _ in clips_from(video, spec, reading):
            found.append(np.array(clip))
            if len(found) == count:
                return found
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
