"""`wsvad extract`: the features of a manifest's videos -> a feature store."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from mil.options import PATH, json_option, key_values, load_plugins, plugins_option


@click.command()
@click.argument("manifest", type=PATH)
@click.option("--backbone", required=True, help="A name from `wsvad ls backbones`.")
@click.option("--out", type=PATH, required=True, help="The feature store; extracting again does what is missing.")
@click.option("--weights", help="A file, a name from `wsvad weights ls`, or `random` for an untrained net.")
@click.option("--crops", help="1, 5 or 10 of the backbone's order, or names joined by commas.")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the backbone, e.g. stride=8, bn_eps=1e-5."
)
@click.option("--device", help="auto, cpu, cuda (every GPU), cuda:1, mps; for nets.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="Arithmetic of a net.")
@click.option("--compile", "compile_net", is_flag=True, default=None, help="Let torch.compile build a net's kernels.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="How features are stored.")
@click.option("--decoder", type=click.Choice(["pyav", "torchcodec", "nvdec"]), help="What decodes; for nets.")
@click.option("--damaged", type=click.Choice(["refuse", "keep"]), default="refuse", show_default=True,
              help="Videos of which frames are lost: leave them out, or keep what can be decoded.")  # fmt: skip
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes; 0: one per core, or one per GPU.")
@click.option("--decoders", type=click.IntRange(0), help="Processes that decode for each worker; 0: a thread.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of torch in each worker; 0: one on a CPU.")
@click.option("--batch", type=click.IntRange(0), default=0, help="Clips per forward pass; 0: the backbone's own.")
@click.option("--shard", default="1/1", metavar="I/N", help="Every N-th video from the I-th on, I from 1 to N.")
@click.option("--split", type=click.Choice(["train", "test"]), help="Only videos of this split.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", help="Of a Ray cluster; a local one is started where none is given.")
@json_option
@plugins_option
def extract(
    manifest: Path,
    backbone: str,
    out: Path,
    compile_net: bool | None,
    options: tuple[str, ...],
    damaged: str,
    workers: int,
    decoders: int | None,
    threads: int,
    batch: int,
    shard: str,
    split: str | None,
    engine: str,
    address: str | None,
    as_json: bool,
    plugins: tuple[Path, ...],
    **given: Any,
) -> None:
    """Features of all videos of a manifest -> a feature store. May be stopped and repeated at any moment."""
    from data import manifest as manifests
    from extract.runner import extract_all

    load_plugins(plugins)
    videos = [v for v in manifests.read(manifest) if split in (None, v.split)]
    report = extract_all(
        videos,
        out,
        backbone,
        {**key_values(options), **{k: v for k, v in {**given, "compile": compile_net}.items() if v is not None}},
        workers=workers,
        decoders=decoders,
        threads=threads,
        batch=batch,
        damaged=damaged,
        shard=_shard(shard),
        plugins=plugins,
        engine=engine,
        address=address,
    )
    if as_json:
        click.echo(json.dumps({**report.as_dict(), "store": str(out)}))
    else:
        click.echo(report.describe(out))
    sys.exit(int(bool(report.failures)))


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"a shard is written I/N, e.g. 1/4, got '{text}'", param_hint="--shard")
    return int(index), int(count)
