"""Runs a backbone over many videos: decode | batch | forward | write, in several processes, resumable at any moment.

Every worker walks the same list and claims videos with flock, so workers may be killed, added and removed at will,
on one machine or on many. What is in the store is complete; a rerun does what is missing.
"""

import contextlib
import logging
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.registry import load_plugin
from data.store import FeatureStore
from data.types import Video
from extract.backbones import backbones, option_names, plan
from extract.engine import Outcome, Progress
from extract.placing import planned
from extract.streams import Reading
from extract.workers import Job, run_alone, run_workers

log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0


@dataclass
class ExtractReport:
    """What a run did: the spec's id, ids written and ids that were there already, `failures` as {id: message}, notes,
    frames, clips, worker processes, seconds."""

    spec_id: str = ""
    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list, repr=False)
    frames: int = 0
    clips: int = 0
    workers: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, failures and notes, for --json."""
        counts = {"written": len(self.written), "present": len(self.present), "elsewhere": len(self.elsewhere)}
        rate = self.frames / self.seconds if self.seconds else 0.0
        return {
            "features": self.spec_id,
            **counts,
            "failures": self.failures,
            "notes": self.notes,
            "frames": self.frames,
            "clips": self.clips,
            "workers": self.workers,
            "seconds": round(self.seconds, 3),
            "frames_per_s": round(rate, 1),
        }

    def describe(self, root: Path) -> str:
        """Lines for a person; the failures once more, since they scrolled by long ago."""
        rate = f", {self.frames / self.seconds:.0f} frames/s" if self.frames else ""
        counts = f"{len(self.written)} videos extracted, {len(self.present)} were there already{rate}"
        lines = [f"{counts}: {self.spec_id} in {root}"]
        if self.elsewhere:
            lines.append(f"{len(self.elsewhere)} videos are in the hands of other workers")
        if self.failures:
            lines.append(f"{len(self.failures)} videos failed (see failures.jsonl); the same command tries them again:")
            lines += [f"  {video_id}: {error}" for video_id, error in sorted(self.failures.items())]
        return "\n".join(lines)


def extract_all(
    videos: Sequence[Video],
    root: Path,
    backbone: str,
    options: dict[str, Any] | None = None,
    *,
    workers: int = 0,
    decoders: int | None = None,
    threads: int = 0,
    batch: int = 0,
    damaged: str = "refuse",
    shard: tuple[int, int] = (1, 1),
    plugins: Sequence[Path] = (),
    engine: str = "local",
    address: str | None = None,
) -> ExtractReport:
    """Extracts what is missing of `videos` into the store at `root`.

    Args:
        videos: the manifest's rows.
        root: the store; made when it is not there.
        backbone: registered name.
        options: for the backbone's constructor.
        workers: processes that run the backbone; 0 chooses one per core, or one per GPU.
        decoders: processes that decode for each worker; 0 decodes in a thread beside the forward pass. By default
            processes for a GPU, a thread otherwise.
        threads: of torch in each worker; 0 means one on a CPU. With more, the float32 features of many nets differ in
            the seventh digit.
        batch: clips of a forward pass; 0 leaves it to the backbone: one on a CPU, which is as fast as any there.
        damaged: "refuse" videos of which frames are lost, or "keep" what can be decoded.
        shard: (i, n), 1 <= i <= n: every n-th video from the i-th on, for job arrays.
        plugins: files that register further backbones.
        engine: "local", or "ray": the same list of work on a Ray cluster, `workers` actors of it.
        address: of the cluster; None starts one on this machine.

    Raises ValueError on an id that two videos have, SpecMismatchError when the store was made otherwise, OSError when
    its disk is full. A video that fails is reported, recorded in failures.jsonl, and does not stop the others.
    """
    began = time.monotonic()
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"--shard I/N counts from 1: 1/{count} to {count}/{count}, got {index}/{count}")
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be local or ray, got '{engine}'")
    if twice := [name for name, times in Counter(v.id for v in videos).items() if times > 1]:
        raise ValueError(f"two videos have the id '{twice[0]}', and the store keeps one: give each its own")
    for plugin in plugins:
        load_plugin(plugin)
    options = dict(options or {})
    if batch and "batch" in option_names(backbones.get(backbone)):  # what a net is made for, and what it is given
        options["batch"] = batch
    spec = plan(backbone, **options)
    if damaged == "keep" and spec.decoder != "pyav":
        raise ValueError(f"--damaged keep needs PyAV, which says what is lost; leave --decoder {spec.decoder} out")
    reading = Reading(damaged, flow_weights=options.get("flow_weights"))
    job = Job(str(root), backbone, options, threads, batch=batch, reading=reading, plugins=tuple(map(str, plugins)))
    if engine == "local":
        planned(job, workers, decoders, len(videos))  # a device that is not there is found before a store is made
    store = FeatureStore(root, spec)
    store.sweep()
    mine = list(videos)[index - 1 :: count]
    todo = [v for v in mine if v.id not in store]
    # several machines on one list meet less often when each walks it in an order of its own
    random.Random(f"{socket.gethostname()} {os.getpid()}").shuffle(todo)  # noqa: S311
    report = ExtractReport(spec.id, present=[v.id for v in mine if v.id in store])
    with tqdm(total=len(todo), unit="video", disable=None, desc=f"extract {spec.id}") as bar:
        if engine == "ray":
            from extract.cluster import run_ray

            outcomes = run_ray(todo, job, address=address, actors=workers, decoders=decoders)
        else:
            jobs = planned(job, workers, decoders, len(todo))
            report.workers = len(jobs)
            alone = len(jobs) == 1 and todo
            outcomes = run_alone(iter(todo), jobs[0]) if alone else run_workers(todo, jobs)
        with contextlib.closing(outcomes):
            _watch(outcomes, report, store, bar, len(todo))
    store.link()
    place = {v.id: i for i, v in enumerate(mine)}  # the manifest's order, whatever the order of work was
    report.written.sort(key=place.__getitem__)
    report.present.sort(key=place.__getitem__)
    report.notes = [f"{i}: {note}" for i, note in sorted(report.noted, key=lambda pair: place[pair[0]])]
    report.seconds = time.monotonic() - began
    return report


def _watch(
    messages: Iterable[Outcome | Progress], report: ExtractReport, store: FeatureStore, bar: "tqdm[Any]", total: int
) -> None:
    began = said = time.monotonic()
    done = 0
    for message in messages:
        if isinstance(message, Progress):
            bar.set_postfix_str(f"{message.video_id}: {message.clips} clips")
            if bar.disable:
                log.info("%s: %d clips so far (%d frames)", message.video_id, message.clips, message.frames)
            continue
        done += 1
        _note(report, store, message)
        bar.update(1)
        if bar.disable and time.monotonic() - said > _LOG_EVERY_S:
            said = time.monotonic()
            log.info("%d of %d videos, %.0f frames/s", done, total, report.frames / (said - began))


def _note(report: ExtractReport, store: FeatureStore, outcome: Outcome) -> None:
    report.frames += outcome.frames
    report.clips += outcome.clips
    report.noted += [(outcome.video_id, note) for note in outcome.notes]
    for note in outcome.notes:
        log.warning("%s: %s", outcome.video_id, note)
    if outcome.elsewhere:  # what a worker wrote that died before it could say so is there already
        (report.present if outcome.video_id in store else report.elsewhere).append(outcome.video_id)
    elif outcome.fatal:
        raise OSError(
            f"{outcome.error}: no room for the features of {outcome.video_id} in {store.root}; {len(report.written)} "
            "videos are done: make room and repeat the command, it goes on from there"
        )
    elif outcome.error:
        log.error("%s: %s", outcome.video_id, outcome.error)
        report.failures[outcome.video_id] = outcome.error
        store.record_failure(outcome.video_id, outcome.error, backbone=store.spec.id)
    else:
        report.written.append(outcome.video_id)
