"""`wsvad weights`: list, fetch and check the published weights of the frozen nets."""

import json
import sys
from typing import Any

import click

from mil.options import json_option


@click.group()
def weights() -> None:
    """Published weights of the frozen nets: what there is, fetch it, check it.

    They lie in $WSVAD_WEIGHTS, else $XDG_CACHE_HOME/wsvad/weights, else ~/.cache/wsvad/weights. A file of your own
    needs none of this: wsvad extract --weights FILE.
    """


@weights.command("ls")
@json_option
def weights_ls(as_json: bool) -> None:
    """One line for each file: name, whether it is there, size, licence, what it is, the presets that take it."""
    rows = listing()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        size = "      ? MB" if row["size"] is None else f"{row['size'] / 1e6:>7.1f} MB"
        presets = f"  [{', '.join(row['presets'])}]" if row["presets"] else ""
        click.echo(f"{row['name']:<{width}}  {'here' if row['present'] else '-':<4}  {size}  {row['about']}{presets}")
        click.echo(f"{'':<{width}}  {row['url']}")
        click.echo(f"{'':<{width}}  licence: {row['licence']}")
    from extract.catalogue import folder

    click.echo(f"{sum(row['present'] for row in rows)} of {len(rows)} are in {folder()}", err=True)


def listing() -> list[dict[str, Any]]:
    """What `wsvad weights ls` prints."""
    from extract.backbones import backbones
    from extract.catalogue import CATALOGUE

    takers: dict[str, list[str]] = {}
    for preset in backbones:
        for name in getattr(backbones.get(preset), "weight_files", ()):
            takers.setdefault(name, []).append(preset)
    return [
        {
            "name": entry.name,
            "about": entry.about,
            "present": entry.path.is_file(),
            "path": str(entry.path),
            "size": entry.path.stat().st_size if entry.path.is_file() else entry.size,
            "sha256": entry.sha256,
            "git_blob": entry.git_blob,
            "licence": entry.licence,
            "url": entry.url,
            "presets": takers.get(entry.name, []),
        }
        for entry in CATALOGUE.values()
    ]


@weights.command("fetch")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
def weights_fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download files by NAME (`wsvad weights ls`), verify them, and put them where the presets look."""
    from extract.catalogue import WeightsError, find
    from extract.downloads import fetch

    entries = [find(name) for name in names]  # a wrong name is told before the first download
    rows: list[dict[str, str]] = []
    for entry in entries:
        try:
            found = fetch(entry)
        except WeightsError as error:
            click.echo(f"error: {error}", err=True)
            rows.append({"name": entry.name, "state": "failed", "error": str(error)})
            continue
        rows.append({"name": entry.name, "state": found.state, "path": str(found.path), "sha256": found.sha256})
        if not as_json:
            click.echo(f"{entry.name}: {_SAID[found.state]}, sha256 {found.sha256}; licence: {entry.licence}")
            click.echo(f"wrote {found.path}" if found.state != "present" else f"{found.path}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    sys.exit(int(any(row["state"] == "failed" for row in rows)))


_SAID = {
    "present": "already there",
    "verified": "fetched, as published",
    "unpublished": "fetched; nobody publishes its checksum, so this one is kept, and `wsvad weights check` compares",
}


@weights.command("check")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@json_option
def weights_check(names: tuple[str, ...], as_json: bool) -> None:
    """Hash every file that is there, or those of NAME. Exit code 1 when one is not what it should be."""
    from extract.catalogue import CATALOGUE, find
    from extract.file_checks import state_of

    entries = [find(name) for name in names] or list(CATALOGUE.values())
    rows = [
        {"name": entry.name, "path": str(entry.path), **dict(zip(("state", "found"), state_of(entry), strict=True))}
        for entry in entries
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            if row["state"] != "absent":
                click.echo(f"{row['state']:<10}  {row['name']}  {row['path']}  {row['found']}")
        absent = [row["name"] for row in rows if row["state"] == "absent"]
        if absent:
            click.echo(f"not fetched: {', '.join(absent)}")
    sys.exit(int(any(row["state"] == "WRONG" for row in rows)))
