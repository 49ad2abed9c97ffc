"""Time and memory of the metrics beside scikit-learn's: `python benchmarks/metrics.py`.

Simulated scores of the sizes of XD-Violence (800 videos, 145,649 snippets) and UCF-Crime (290, 69,355), each snippet's
score standing for 16 frames, as everybody evaluates. The field's habit is to join the videos in Python lists and to
give those to scikit-learn. All sides run one after the other on one thread; medians are printed.
Memory is the process's peak before scikit-learn is touched. Prints a Markdown table.
"""

import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import click
import numpy as np

from data.types import Event, FrameScores
from mil import bootstrap, metrics
from mil.curves import Tally, roc_area, trapezoid_precision

_SIZES = {"XD-Violence": (800, 500, 145_649, 6), "UCF-Crime": (290, 140, 69_355, 13)}  # the last: classes


def simulate(name: str) -> tuple[list[FrameScores], dict[str, tuple[Event, ...]]]:
    """A test set of that size: snippet scores all different, an event in the middle half of each anomalous video."""
    count, anomalous, snippets, classes = _SIZES[name]
    rng = np.random.default_rng(0)
    lengths = 1 + rng.multinomial(snippets - count, rng.dirichlet(np.ones(count)))
    videos, events = [], {}
    for i, clips in enumerate(lengths.tolist()):
        labels = np.zeros(16 * clips, np.uint8)
        if i < anomalous:
            events[f"v{i}"] = (Event(4 * clips, 12 * clips, f"class{i % classes}"),)
            labels[4 * clips : 12 * clips] = 1
        scores = 1 / (1 + np.exp(-rng.normal(size=clips) - labels[8::16]))
        videos.append(FrameScores(f"v{i}", np.repeat(scores, 16), labels))
    return videos, events


def sklearn_areas(scores: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """The two curves that every repository computes."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    alarms, hits, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    return auc(alarms, hits), auc(recall, precision)


def areas(videos: Sequence[FrameScores]) -> tuple[float, float]:
    """The same two from counted runs."""
    counts = Tally.of(videos).counts()
    return float(roc_area(*counts)), float(trapezoid_precision(*counts))


def lists(videos: Sequence[FrameScores]) -> tuple[list[float], list[int]]:
    """Frames joined in Python lists, snippet scores repeated, as the published test scripts do."""
    scores: list[float] = []
    labels: list[int] = []
    for video in videos:
        scores.extend(np.repeat(video.scores[::16], 16).tolist())
        labels.extend(video.labels.tolist())
    return scores, labels


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median over the runs."""
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def measure(name: str, runs: int, many: bool = True) -> list[str]:
    """Rows of Markdown for a test set of that size."""
    videos, events = simulate(name)
    unit = 1e6 if platform.system() == "Darwin" else 1e3  # bytes there, kilobytes elsewhere
    frames = sum(len(v.labels) for v in videos)
    found = {
        "metrics.evaluate: all metrics, classes included": seconds(
            lambda: metrics.evaluate(videos, events=events), runs
        ),
        "AUC and PR-AUC alone": seconds(lambda: areas(videos), runs),
        "1,000 resamples of AUC, AP, PR-AUC": seconds(lambda: bootstrap.resample(videos, resamples=1000), runs),
    }
    if many:
        found["10,000 resamples"] = seconds(lambda: bootstrap.resample(videos, resamples=10_000), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    scores, labels = np.concatenate([v.scores for v in videos]), np.concatenate([v.labels for v in videos])
    found["scikit-learn: ROC + PR over arrays of frames"] = seconds(lambda: sklearn_areas(scores, labels), runs)
    listed = lists(videos)
    found["scikit-learn: ROC + PR over lists of frames"] = habit = seconds(lambda: sklearn_areas(*listed), runs)
    assert np.allclose(areas(videos), sklearn_areas(scores, labels), rtol=0, atol=1e-12)
    rows = [f"| {name}, {frames:,} frames | {what} | {s:.3g} | {s / habit:.3f} |" for what, s in found.items()]
    return [*rows, f"| {name} | peak memory of all but scikit-learn, MB | {peak:,.0f} | |"]


@click.command()
@click.option("--runs", default=5, show_default=True, help="Runs of each side; the 10,000 resamples run once.")
@click.option("--size", "names", type=click.Choice(list(_SIZES)), multiple=True, help="One or several.  [all]")
@click.option("--many/--not-many", default=True, help="Whether the 10,000 resamples run.")
def main(runs: int, names: tuple[str, ...], many: bool) -> None:
    """Measures, and prints a table."""
    click.echo(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread\n")
    click.echo("| size | what | s, median | of scikit-learn over lists |\n|---|---|---|---|")
    for name in names or _SIZES:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:  # a peak of memory never falls within a process
            click.echo("\n".join(fresh.apply(measure, (name, runs, many))))


if __name__ == "__main__":
    main()
