"""Import speed beside plain file reading: `python benchmarks/importing.py [--folder DIR]`.

Files are (T, 10, 2048) float32 as RTFM publishes them, read warm and from the disk. All sides are measured in turn,
in one run; medians are printed. Reading, checking and making crop-major is one figure, the whole import with its store
(checksum, read back, fsync) another. Prints a Markdown table.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from data.importers import Format, format_of, import_features
from data.importers.reading import read_array, read_video
from data.importers.sources import SourceFolder
from data.types import Video

_CLIPS = (60, 120, 125, 200, 90, 300)  # UCF-Crime's median is 112


def write_files(folder: Path, count: int) -> list[Video]:
    """Random features in RTFM's layout, and their manifest rows."""
    rng = np.random.default_rng(0)
    videos: list[Video] = []
    for i in range(count):
        clips = _CLIPS[i % len(_CLIPS)]
        np.save(folder / f"video{i:03}_i3d.npy", rng.standard_normal((clips, 10, 2048), dtype=np.float32))
        videos.append(Video(f"video{i:03}", "", "train", i % 2, num_frames=16 * clips))
    return videos


def each(work: Callable[[Path], object], paths: Sequence[Path]) -> None:
    """One file after the other; what is read is let go, as an import does."""
    for path in paths:
        work(path)


def forget(paths: Sequence[Path]) -> None:
    """Has the system drop the files from its cache, so that the next reading comes from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def naive(path: Path) -> None:
    """What most code does: load, check, transpose."""
    x = np.load(path)
    assert np.isfinite(x).all()
    np.ascontiguousarray(x.transpose(1, 0, 2))


def resave(path: Path) -> None:
    """The least that a lasting copy costs."""
    with Path(f"{path.parent}.npy").open("wb") as file:
        np.save(file, np.load(path))
        os.fsync(file.fileno())


def measure(
    sides: dict[str, Callable[[], None]], runs: int, before: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each side, in turn, each after one run that is not counted: memory that the side before it gave back
    to the system costs page faults."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, work in sides.items():
            (before or work)()
            began = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - began)
    return found


def table(found: dict[str, list[float]], size: int) -> Sequence[str]:
    """Rows of Markdown, each side beside the first one."""
    plain = next(iter(found.values()))
    rows = ["| what | MB/s, median (min to max) | of plain reading |", "|---|---|---|"]
    for name, seconds in found.items():
        low, mid, high = (size / 1e6 / s for s in (max(seconds), statistics.median(seconds), min(seconds)))
        share = statistics.median(p / s for p, s in zip(plain, seconds, strict=True))
        rows.append(f"| {name} | {mid:,.0f} ({low:,.0f} to {high:,.0f}) | {share:.0%} |")
    return rows


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where the files are written; a temporary folder if none."
)
@click.option("--videos", "count", default=12, show_default=True, help="Number of files.")
@click.option("--runs", default=9, show_default=True, help="Counted runs of each side.")
def main(folder: Path | None, count: int, runs: int) -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        src = Path(made) / "src"
        src.mkdir()
        videos = write_files(src, count)
        paths = sorted(src.iterdir())
        size = sum(p.stat().st_size for p in paths)
        fmt = format_of("rtfm")
        files = SourceFolder(src, fmt)
        half = replace(fmt, spec=replace(fmt.spec, dtype="float16"))
        stores = (Path(made) / f"store{i}" for i in range(3 * runs))

        def read(reader: Callable[[Video, list[Path], Format], object], as_format: Format = fmt) -> None:
            for v in videos:
                reader(v, files.find(v, fmt), as_format)

        def whole() -> None:
            assert not import_features("rtfm", src, videos, next(stores)).failures

        sides: dict[str, Callable[[], None]] = {
            "plain: np.load": lambda: each(np.load, paths),
            "np.load, isfinite, transpose copy": lambda: each(naive, paths),
            "import: read, check, crop-major": lambda: read(read_array),
            "the same, and VideoFeatures with its own check": lambda: read(read_video),
            "the same, as float16": lambda: read(read_video, half),
            "plain: np.save and fsync": lambda: each(resave, paths),
            "import, whole, into a store": whole,
        }
        found = measure(sides, runs)
        cold = {
            name: sides[name]
            for name in ("plain: np.load", "import: read, check, crop-major", "import, whole, into a store")
        }
        from_disk = measure(cold, runs, lambda: forget(paths))
    click.echo(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {count} files, {size / 1e6:.0f} MB\n")
    click.echo("\n".join(["Warm, from the system's cache:", "", *table(found, size), ""]))
    click.echo("\n".join(["Cold, from the disk:", "", *table(from_disk, size)]))


if __name__ == "__main__":
    main()
