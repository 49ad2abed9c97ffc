"""A Ray cluster as extraction sees it: the connection, what its nodes offer, and what one actor takes of that."""

import contextlib
import importlib
import io
import logging
import os
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from extract.backbones import backbones
from extract.placing import NET_BYTES, on_devices
from extract.workers import Job

log = logging.getLogger(__name__)
_OBJECTS = 80 << 20  # bytes of Ray's object store; videos' names and outcomes go through it, no features


class ClusterError(ValueError):
    """The cluster cannot do the work; the message says what it offers, or what to install where."""


@dataclass(frozen=True)
class Share:
    """What one actor needs of a node."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def options(self) -> dict[str, Any]:
        """As Ray takes them. What dies is replaced by us, who know what it was doing."""
        memory = {"memory": self.memory} if self.memory else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory, "max_restarts": 0}

    def fitting(self, nodes: Sequence[dict[str, float]]) -> int:
        """How many actors the nodes hold together; at least 1, for clusters that grow."""
        wants = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory)}
        rooms = ([int(node.get(name, 0) // want) for name, want in wants.items() if want] for node in nodes)
        return max(sum(min(room) for room in rooms), 1)

    def describe(self) -> str:
        """For messages."""
        memory = f", {self.memory / 1e9:.1f} GB of memory" if self.memory else ""
        return f"{self.cpus:g} CPU, {self.gpus:g} GPU{memory}"


def shared(job: Job, nodes: Sequence[dict[str, float]], decoders: int | None) -> tuple[Job, Share]:
    """The job as an actor does it, and what it needs: a GPU and its part of the node's cores, or one core.

    Args:
        job: with "auto", "cpu" or a CUDA device in its options.
        nodes: the resources of each, as Ray names them.
        decoders: as for `run_ray`.

    Raises ClusterError where a GPU is asked for and there is none.
    """
    device = str(job.options.get("device") or "auto")
    uses_torch = backbones.get(job.backbone).uses_torch
    per_gpu = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    if uses_torch and device.startswith("cuda") and not per_gpu:
        raise ClusterError(f"--device {device}, but no node has a GPU: {offered(nodes)}; leave it out, or add a node")
    if uses_torch and per_gpu and (device == "auto" or device.startswith("cuda")):
        cores = min(per_gpu)
        decoders = max(int(cores) - 1, 1) if decoders is None else decoders
        job = replace(job, threads=0, decoders=decoders)
        return on_devices(job, ["cuda"])[0], Share(min(cores, 1.0 + decoders), gpus=1.0)  # Ray shows it no other GPU
    job = replace(job, threads=job.threads or 1, decoders=decoders or 0)
    share = Share(float(job.threads + job.decoders), memory=NET_BYTES if uses_torch else 0)
    return on_devices(job, ["cpu" if device == "auto" else device])[0] if uses_torch else job, share


def import_ray() -> Any:
    """Ray, which is an extra. Raises ClusterError with what to install."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ClusterError("the Ray engine needs ray: pip install 'wsvad[ray]'") from error


class WithoutRay(io.TextIOBase):
    """Standard output without what a thread of Ray's says there: others parse it (--json)."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def write(self, text: str) -> int:
        """Ray's words go to the log."""
        if not threading.current_thread().name.startswith("ray_"):
            return int(self._real.write(text))
        if text.strip():
            log.debug("%s", text.rstrip())
        return len(text)

    def flush(self) -> None:
        """Of the real one."""
        self._real.flush()


@contextlib.contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """Ray, connected while the block runs: to a cluster, or to one started here. Raises ClusterError."""
    if ray.is_initialized():  # by who called us, and theirs to shut down
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECTS, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start here"
        raise ClusterError(f"{where}: {short(str(error))}; see `ray status`") from error
    try:
        yield
    finally:
        rest = io.StringIO()  # what it has held back, as a repetition, it says now
        with contextlib.redirect_stdout(rest), contextlib.redirect_stderr(rest):
            ray.shutdown()
        log.debug("%s", rest.getvalue().rstrip())


def short(text: str) -> str:
    """One line of a message that may have many."""
    return textwrap.shorten(text, 160, placeholder=" ...")


def offered(nodes: Sequence[dict[str, float]]) -> str:
    """Resources for a message, node by node."""
    names = ("CPU", "GPU", "memory")
    return "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in names) for node in nodes) or "nothing"
