"""`wsvad report`: evaluated runs as one HTML page."""

import json
from pathlib import Path

import click

from mil.options import PATH, json_option, load_plugins, plugins_option
from mil.rules import RULES


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, default=Path("report.html"), show_default=True, help="The page; replaced.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--rule", type=click.Choice(RULES), help="Whose weights.  [what each run is judged by]")
@click.option("--protocol", help="Which frames count; see wsvad ls protocols.  [each recipe's own]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="In which the runs were evaluated.",
)
@click.option("--videos", type=PATH, help="Folder of the video files, found by name.  [the manifest's paths]")
@click.option("--no-videos", is_flag=True, help="Leave the player out: the page links to no file.")
@click.option("--title", help="Heading of the page.  [what the runs are]")
@click.option("--device", default="cpu", show_default=True, help="Where training videos are scored for the threshold.")
@json_option
@plugins_option
def report(
    runs: tuple[Path, ...],
    out: Path,
    split: str,
    rule: str | None,
    protocol: str | None,
    precision: str,
    videos: Path | None,
    no_videos: bool,
    title: str | None,
    device: str,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Evaluated RUNS, or folders of them, as one page: curves, losses, and every video's scores beside the video.

    The page needs no network and opens from the disk; videos are linked, not copied. Runs are put together as by
    `wsvad compare`: the same videos, labels and protocol. Those that are not evaluated are left out, and named.
    """
    from extract.device import device_of
    from mil.report import check_out, write
    from mil.report_data import report_data

    if videos is not None and no_videos:
        raise click.UsageError("--videos names files to play, --no-videos leaves them out; pass one of them")
    load_plugins(plugins)
    check_out(out)
    data = report_data(
        runs,
        split=split,
        rule=rule,
        protocol=protocol,
        precision=precision,
        videos=videos,
        no_videos=no_videos,
        out=out,
        title=title,
        device=device_of(device),
    )
    write(data, out)
    for warning in data["warnings"]:
        click.echo(f"WARNING: {warning}", err=True)
    played, size = sum(video["src"] is not None for video in data["videos"]), out.stat().st_size
    if as_json:
        found = {"report": str(out), "bytes": size, "runs": len(data["runs"]), "groups": len(data["groups"])}
        found |= {"videos": data["num_videos"], "playable": played, "protocol": data["protocol"], "split": split}
        click.echo(json.dumps({**found, "warnings": data["warnings"]}))
        return
    counts = [
        f"{n} {name}{'' if n == 1 else 's'}" for n, name in ((len(data["runs"]), "run"), (data["num_videos"], "video"))
    ]
    files = "no files linked" if no_videos else f"{played} with their file"
    click.echo(f"wrote {out} ({size / 1e6:.2f} MB): {', '.join(counts)}, {files}; open it in a browser")
    if not played and not no_videos:
        click.echo("no video file was found, so nothing can be played; pass their folder with --videos", err=True)
