"""Runs a backbone over many videos: decode | batch | forward | write, in several processes, resumable at any moment.

Every worker walks the same list and claims videos with flock, so workers may be killed, added and removed at will,
on one machine or on many. What is in the store is complete; a rerun does what is missing.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.files import cores
from data.registry import load_plugin
from data.store import FeatureStore
from data.types import Video
from extract.backbones import create
from extract.workers import Job, Outcome, run_here, run_workers

log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0


@dataclass
class ExtractReport:
    """What a run did: ids written, ids that were there already, `failures` as {id: message}, notes, frames, seconds."""

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, failures and notes, for --json."""
        counts = {"written": len(self.written), "present": len(self.present), "elsewhere": len(self.elsewhere)}
        rate = self.frames / self.seconds if self.seconds else 0.0
        return {
            **counts,
            "failures": self.failures,
            "notes": self.notes,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "frames_per_s": round(rate, 1),
        }

    def describe(self, root: Path) -> str:
        """Lines for a person; the failures once more, since they scrolled by long ago."""
        rate = f", {self.frames / self.seconds:.0f} frames/s" if self.frames else ""
        lines = [f"{len(self.written)} videos extracted, {len(self.present)} were there already{rate}: {root}"]
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
    batch: int = 8,
    shard: tuple[int, int] = (1, 1),
    plugins: Sequence[Path] = (),
) -> ExtractReport:
    """Extracts what is missing of `videos` into the store at `root`.

    Args:
        videos: the manifest's rows.
        root: the store; made when it is not there.
        backbone: registered name.
        options: for the backbone's constructor.
        workers: processes; 0 chooses one per core for CPU descriptors and one for nets.
        batch: clips per forward pass.
        shard: (i, n), 1 <= i <= n: every n-th video from the i-th on, for job arrays.
        plugins: files that register further backbones.

    Raises SpecMismatchError when the store was made otherwise. A video that fails is reported, recorded in
    failures.jsonl, and does not stop the others.
    """
    began = time.monotonic()
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"--shard I/N counts from 1: 1/{count} to {count}/{count}, got {index}/{count}")
    for plugin in plugins:
        load_plugin(plugin)
    net = create(backbone, **(options or {}))
    store = FeatureStore(root, net.spec)
    store.sweep()
    mine = list(videos)[index - 1 :: count]
    todo = [v for v in mine if v.id not in store]
    report = ExtractReport(present=[v.id for v in mine if v.id in store])
    workers = max(min(workers or (1 if net.uses_torch else cores()), len(todo)), 1)
    job = Job(str(root), backbone, options or {}, batch, max(cores() // workers, 1), tuple(str(p) for p in plugins))
    with tqdm(total=len(todo), unit="video", disable=None, desc=f"extract {net.spec.id}") as bar:
        said = time.monotonic()
        outcomes = run_here(todo, job, net) if workers == 1 else run_workers(todo, job, workers)
        for done, outcome in enumerate(outcomes, 1):
            _note(report, store, outcome)
            bar.update(1)
            if bar.disable and time.monotonic() - said > _LOG_EVERY_S:
                said = time.monotonic()
                log.info("%d of %d videos, %.0f frames/s", done, len(todo), report.frames / (said - began))
    store.link()
    report.seconds = time.monotonic() - began
    return report


def _note(report: ExtractReport, store: FeatureStore, outcome: Outcome) -> None:
    report.frames += outcome.frames
    report.notes += [f"{outcome.video_id}: {note}" for note in outcome.notes]
    for note in outcome.notes:
        log.warning("%s: %s", outcome.video_id, note)
    if outcome.elsewhere:
        report.elsewhere.append(outcome.video_id)
    elif outcome.error:
        log.error("%s: %s", outcome.video_id, outcome.error)
        report.failures[outcome.video_id] = outcome.error
        store.record_failure(outcome.video_id, outcome.error, backbone=store.spec.id)
    else:
        report.written.append(outcome.video_id)
