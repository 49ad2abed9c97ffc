"""`wsvad store`: what lies in a feature store, whether it is whole, and its segments packed for training."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from mil.options import PATH, json_option

PACKABLE = ("segments", "pick", "interpolate", "resize", "shrink", "repeat")  # numpy is not imported for --help


@click.group()
def store() -> None:
    """Look into a feature store, check every file of it, and pack it for training."""


@store.command("info")
@click.argument("root", type=PATH)
@json_option
def store_info(root: Path, as_json: bool) -> None:
    """What made the features, how many there are, and how much disk they take."""
    from data.packed import listing
    from data.store import FeatureStore

    info = {**FeatureStore(root).info(), "packs": listing(root)}
    if as_json:
        click.echo(json.dumps(info))
        return
    click.echo(
        f"{info['id']}  {info['videos']} videos, {info['bytes'] / 1e6:.1f} MB, {info['failures']} failures on record"
    )
    for name, value in info["spec"].items():
        click.echo(f"  {name:<10} {json.dumps(value)}")
    for pack in info["packs"]:
        click.echo(f"  packed     {_described(pack)}")


def _described(pack: dict[str, Any]) -> str:
    beside = f", cut to {' and '.join(pack['beside'])}" if pack["beside"] else ""
    stale = ", STALE: the next pack of its kind replaces it" if pack["stale"] else ""
    return (
        f"{pack['resample']} {pack['count']}, {'x'.join(map(str, pack['shape']))} {pack['dtype']}, "
        f"{pack['bytes'] / 1e6:.1f} MB{beside}{stale}"
    )


@store.command("verify")
@click.argument("root", type=PATH)
@json_option
def store_verify(root: Path, as_json: bool) -> None:
    """Open and check every file: complete, of this spec, crc32 right, finite. Exit code 1 when one is not.

    Packs are checked too.
    """
    from data.packed import damaged
    from data.store import FeatureStore

    report = FeatureStore(root).verify()
    bad = [*report.bad, *damaged(root)]
    for line in bad:
        click.echo(f"bad: {line}", err=True)
    if as_json:
        click.echo(json.dumps({"good": len(report.good), "bad": bad, "clips": report.clips, "bytes": report.bytes}))
    else:
        click.echo(f"{len(report.good)} videos good, {len(bad)} bad, {report.clips} clips, {report.bytes / 1e6:.1f} MB")
    sys.exit(int(bool(bad)))


@store.command("pack")
@click.argument("roots", metavar="STORE...", type=PATH, nargs=-1, required=True)
@click.option("--manifest", type=PATH, required=True, help="The videos; those for training are packed.")
@click.option("--resample", type=click.Choice(PACKABLE), default="segments", show_default=True)
@click.option("--count", type=click.IntRange(1), default=32, show_default=True, help="Segments per video.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--allow-missing", is_flag=True, help="Leave out videos without features.")
@json_option
def store_pack(
    roots: tuple[Path, ...],
    manifest: Path,
    resample: str,
    count: int,
    dtype: str,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Write the segments of all training videos into one file beside STORE, as `wsvad train` does on first use.

    Stores that are trained on together are named together: each is cut to the shortest of them. Packs that features
    have left behind are removed. Deleting STORE/packed loses nothing.
    """
    from data import manifest as manifests
    from mil.bags import pack_segments
    from mil.train import load_videos, open_stores

    stores = open_stores(roots)
    for one in stores:
        if not os.access(one.root, os.W_OK):
            raise click.UsageError(f"{one.root} cannot be written; pack a copy of it, or train without a pack")
    wanted = [v for v in manifests.read(manifest) if v.split == "train"]
    if not wanted:
        raise click.UsageError(f"{manifest} names no training videos; only those are packed")
    videos = load_videos(wanted, stores, allow_missing=allow_missing)
    began = time.monotonic()
    found = pack_segments([v.id for v in videos], stores, resample, count, dtype)
    took = round(time.monotonic() - began, 3)
    rows: list[dict[str, Any]] = []
    for name, pack in found.items():
        if pack.path is None:
            raise click.ClickException(f"no pack of {name} was written; the line above says why")
        row: dict[str, Any] = {
            "modality": name,
            "file": str(pack.path),
            "shape": list(pack.x.shape),
            "dtype": str(pack.x.dtype),
        }
        rows.append({**row, "bytes": pack.path.stat().st_size, "built": pack.built})
    if as_json:
        click.echo(json.dumps({"seconds": took, "packs": rows}))
        return
    for row in rows:
        click.echo(
            f"{row['file']}: {'x'.join(map(str, row['shape']))} {row['dtype']}, {row['bytes'] / 1e6:.1f} MB, "
            f"{'written' if row['built'] else 'was there'}"
        )
    click.echo(f"{took:.1f} s")
