"""`wsvad store`: what lies in a feature store, and whether it is whole."""

import json
import sys
from pathlib import Path

import click

from mil.options import PATH, json_option


@click.group()
def store() -> None:
    """Look into a feature store, and check every file of it."""


@store.command("info")
@click.argument("root", type=PATH)
@json_option
def store_info(root: Path, as_json: bool) -> None:
    """What made the features, how many there are, and how much disk they take."""
    from data.store import FeatureStore

    info = FeatureStore(root).info()
    if as_json:
        click.echo(json.dumps(info))
        return
    click.echo(
        f"{info['id']}  {info['videos']} videos, {info['bytes'] / 1e6:.1f} MB, {info['failures']} failures on record"
    )
    for name, value in info["spec"].items():
        click.echo(f"  {name:<10} {json.dumps(value)}")


@store.command("verify")
@click.argument("root", type=PATH)
@json_option
def store_verify(root: Path, as_json: bool) -> None:
    """Open and check every file: complete, of this spec, crc32 right, finite. Exit code 1 when one is not."""
    from data.store import FeatureStore

    report = FeatureStore(root).verify()
    for line in report.bad:
        click.echo(f"bad: {line}", err=True)
    if as_json:
        click.echo(
            json.dumps(
                {"good": len(report.good), "bad": list(report.bad), "clips": report.clips, "bytes": report.bytes}
            )
        )
    else:
        click.echo(
            f"{len(report.good)} videos good, {len(report.bad)} bad, {report.clips} clips, {report.bytes / 1e6:.1f} MB"
        )
    sys.exit(int(bool(report.bad)))
