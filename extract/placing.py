"""How many processes run a backbone, on which devices and with how many threads each."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.files import cores
from extract.backbones import backbones, option_names
from extract.workers import Job

NET_BYTES = 3 << 29  # what a worker with a large net takes, roughly: processes must fit into memory together


def planned(job: Job, workers: int, decoders: int | None, videos: int) -> list[Job]:
    """One job for each worker process.

    A GPU gets one worker, and as many decoding processes as there are cores to spare. On a CPU every core gets a worker
    with one thread, as far as memory and videos go: faster than one worker with all threads, and the same bytes for any
    number of workers, since convolutions round otherwise for another number of threads.

    Args:
        job: what every worker does; its `threads` stay where they are set.
        workers: how many were asked for; 0 leaves the choice to this function.
        decoders: as for `extract_all`.
        videos: how many there are to do.
    """
    uses_torch = backbones.get(job.backbone).uses_torch
    devices = _devices(str(job.options.get("device") or "auto")) if uses_torch else ["cpu"]
    on_gpu = devices[0] != "cpu"
    if not workers:
        workers = len(devices) if on_gpu else min(cores(), _room() if uses_torch else cores())
    workers = max(min(workers, videos), 1)
    if decoders is None:
        decoders = max(cores() // workers - 1, 1) if on_gpu else 0
    threads = job.threads or int(uses_torch and not on_gpu)
    job = replace(job, threads=threads, decoders=decoders)
    if not uses_torch:
        return [job] * workers
    return on_devices(job, [devices[i % len(devices)] for i in range(workers)])


def on_devices(job: Job, devices: Sequence[str]) -> list[Job]:
    """The same job on each of several devices; a backbone that takes no device is not told of one."""
    told = "device" in option_names(backbones.get(job.backbone))
    return [
        replace(job, options=job.options | ({"device": d} if told else {}), reading=replace(job.reading, device=d))
        for d in devices
    ]


def _devices(name: str) -> list[str]:
    """Plain cuda is every GPU that is visible here, anything else one device."""
    import torch

    from extract.device import device_of

    found = device_of(name)
    if found != "cuda":
        return [found]
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def _room() -> int:
    """Workers with a net that memory holds."""
    try:
        return max(_available() // NET_BYTES, 1)
    except (ValueError, OSError):  # not every system says
        return 1


def _available() -> int:
    """Bytes that processes can have: what is free, and what holds copies of files, which is most after some videos."""
    with contextlib.suppress(OSError), Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
