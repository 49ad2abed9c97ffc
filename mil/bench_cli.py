"""`wsvad bench`: honest speeds of this machine."""

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from mil.options import PATH, json_option, key_values, load_plugins, plugins_option


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command("extract")
@click.option("--backbone", default="motion", show_default=True, help="A name from `wsvad ls backbones`.")
@click.option("--videos", type=PATH, help="Folder of videos; generated ones (H.264, 320x240) where none is given.")
@click.option("--most", type=click.IntRange(1), default=8, show_default=True, help="Use at most so many videos.")
@click.option("--weights", help="A file, a name from `wsvad weights ls`, or `random`: as fast as trained ones.")
@click.option("--crops", help="1, 5 or 10 of the backbone's order, or names joined by commas.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the backbone.")
@click.option("--device", help="auto, cpu, cuda, cuda:1.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--compile", "compile_net", is_flag=True, default=None, help="Let torch.compile build the kernels.")
@click.option("--batch", type=click.IntRange(1), help="Clips per forward pass on a GPU.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Of the end-to-end run; 0: as extract chooses.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Counted turns.")
@json_option
@plugins_option
def bench_extract(
    backbone: str,
    videos: Path | None,
    most: int,
    options: tuple[str, ...],
    compile_net: bool | None,
    workers: int,
    runs: int,
    as_json: bool,
    plugins: tuple[Path, ...],
    **given: Any,
) -> None:
    """Decoding, forward pass, the matmul peak beside it, and the whole extraction.

    The share of the peak is 2 x GMAC x crops x clips/s over what a 3072^3 matrix product reaches in the same precision.
    """
    from data.datasets import datasets
    from data.datasets.sources import find_videos
    from data.types import Video
    from extract.bench import bench as measure

    load_plugins(plugins)
    chosen = {**key_values(options), **{k: v for k, v in {**given, "compile": compile_net}.items() if v is not None}}
    with tempfile.TemporaryDirectory() as folder:
        if videos is None:
            datasets.get("toy")(Path(folder) / "toy")
            videos = Path(folder) / "toy"
        paths = [files[0] for files in find_videos(videos).values()][:most]
        if not paths:
            raise ValueError(f"no videos below {videos}")
        rows = [Video(f"{i}", str(p), "train", 0) for i, p in enumerate(paths)]
        figures = measure(backbone, rows, chosen, workers=workers, runs=runs)
    click.echo(json.dumps(figures.as_dict()) if as_json else figures.table())
