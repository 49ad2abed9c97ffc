"""The whole chain on generated videos: what a newcomer runs first, and a check that everything works together."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import manifest
from data.datasets import datasets
from data.files import write_text
from data.store import FeatureStore
from extract.backbones import create
from extract.runner import extract_all
from mil.evaluate import evaluate_run
from mil.plots import timelines
from mil.report import report as write_report
from mil.run import start_run


def run_demo(out: Path, *, seed: int, backbone: str, recipe: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Generates videos, extracts, trains, evaluates and draws; what is there already is used again, runs are added.

    Returns the numbers, the paths and the seconds of each stage. Raises ValueError when a video failed.
    """
    from mil.train_cli import describe

    seconds: dict[str, float] = {}

    def stage(name: str, since: float) -> float:
        now = time.monotonic()
        seconds[name] = round(now - since, 1)
        return now

    out = out.resolve()
    clock = time.monotonic()
    found = datasets.get("toy")(out / "toy", seed=seed)
    manifest.write(out / "toy.csv", found.videos)
    frames = sum(v.num_frames or 0 for v in found.videos)
    clock = stage("videos", clock)
    say(f"1 videos    {len(found.videos)} generated videos, {frames} frames, in {seconds['videos']} s: {out / 'toy'}")

    root = out / "features" / create(backbone).spec.id
    report = extract_all(found.videos, root, backbone)
    if report.failures:
        raise ValueError("extraction failed: " + "; ".join(report.failures.values()))
    clock = stage("features", clock)
    info = FeatureStore(root).info()
    say(f"2 features  {info['videos']} videos, {info['bytes'] / 1e6:.1f} MB, in {seconds['features']} s: {root}")

    run, summary = start_run(recipe, [], out / "toy.csv", [root], _new_run(out / "runs", recipe, seed), seed=seed)
    clock = stage("training", clock)
    say(f"3 training  {summary['step']} steps in {seconds['training']} s: {run.root}")

    result = evaluate_run(run)
    picture = timelines(
        run.root / "eval" / "timelines.png",
        result.videos,
        {v.id: v.fps for v in found.videos},
        title=f"{recipe} on generated test videos, frame AUC {result.numbers['auc']:.3f}",
    )
    page = write_report(run.root, out=out / "report.html")
    stage("evaluation", clock)
    say(f"4 numbers   on the {result.numbers['videos']} test videos, {result.path}")
    say("\n".join("            " + line for line in describe(result.numbers).splitlines()))
    say(f"5 pictures  {picture}")
    say(f"            {page}: every test video beside its scores, in a browser")
    say(f"frame AUC {result.numbers['auc']:.4f} in {sum(seconds.values()):.0f} s; run folder {run.root}")
    numbers = {**result.numbers, "seconds": seconds, "run": str(run.root), "picture": str(picture), "store": str(root)}
    numbers["report"] = str(page)
    write_text(out / "demo.json", json.dumps(numbers, indent=2) + "\n")
    return numbers


def _new_run(folder: Path, recipe: str, seed: int) -> Path:
    """The first free name of a series: a demo repeated is another run, not an overwritten one."""
    name, number = f"{recipe}-s{seed}", 1
    while (folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder / (name if number == 1 else f"{name}-{number}")
