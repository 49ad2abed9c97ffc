"""The command line. Bodies import late, so that `wsvad --help` loads neither torch nor scikit-learn.

Results go to stdout (`--json` for programs), everything else to stderr. Exit codes: 0 done, 1 some videos failed (each
is named), 2 the command cannot be carried out as typed.
"""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from mil.bench_cli import bench
from mil.checkpoint_cli import checkpoint
from mil.export_cli import export
from mil.extract_cli import extract
from mil.options import PATH as _PATH
from mil.options import json_option as _json_option
from mil.options import load_plugins as _load_plugins
from mil.options import plugins_option as _plugins
from mil.recipes_cli import recipes
from mil.report_cli import report
from mil.score_cli import score
from mil.store_cli import store
from mil.sweep_cli import compare, sweep
from mil.train_cli import evaluate, train
from mil.watch_cli import watch
from mil.weights_cli import weights


class _Commands(click.Group):
    """Turns the errors that are messages into one line and exit code 2; a defect keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from data.registry import UnknownNameError

        try:
            return super().invoke(ctx)
        except (ValueError, UnknownNameError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {_say(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; what was finished is kept: repeat the command (train: with --resume)", err=True)
            ctx.exit(130)


def _say(error: Exception) -> str:
    """An error's own words; a bare one of the operating system as "what: which path; what to do"."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}; choose another path, or make room for this one"
    return str(error)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="WSVAD_DEBUG", help="Show tracebacks and debug messages.")
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
@click.version_option(package_name="wsvad", prog_name="wsvad")
def main(debug: bool, quiet: bool) -> None:
    """Weakly supervised video anomaly detection: videos -> cached features -> MIL heads -> frame-level numbers.

    wsvad demo runs the whole chain on generated videos.
    """
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname).1s %(message)s", stream=sys.stderr)
    for noisy in ("matplotlib", "h5py", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


for _command in (
    extract,
    store,
    weights,
    bench,
    train,
    evaluate,
    checkpoint,
    sweep,
    compare,
    export,
    report,
    recipes,
    score,
    watch,
):
    main.add_command(_command)


# -- look around ------------------------------------------------------------------------------------------------------


@main.command()
@_json_option
def doctor(as_json: bool) -> None:
    """What works on this machine, and what to type for what does not."""
    from mil.doctor import examine

    checks = examine()
    if as_json:
        click.echo(json.dumps([c.as_dict() for c in checks], indent=2))
    else:
        for check in checks:
            click.echo(f"{check.state:<5} {check.name:<14} {check.found}")
            if check.remedy:
                click.echo(f"{'':<20} {check.remedy}")
    sys.exit(int(any(c.state == "FAIL" for c in checks)))


@main.command()
@click.argument("kind", type=click.Choice(["heads", "backbones", "datasets", "formats", "recipes", "protocols"]))
@_json_option
@_plugins
def ls(kind: str, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """One line for each head, backbone, dataset, feature format, recipe or protocol.

    A head's line ends with the recipes that were published; beside them, each has NAME_ucf, NAME_xd, NAME_sh,
    NAME_folder and motion_NAME (`wsvad recipes ls`). Lines of backbones are cut to the width of a terminal; --json has
    all of a backbone's recipe.
    """
    from mil.listing import backbone_table, listing

    _load_plugins(plugins)
    rows = listing(kind)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if kind == "backbones":
        heading, *lines = backbone_table(rows)
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(heading[:width], err=True)
        for line in lines:
            click.echo(line[:width])
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        paper = f"  [{row['paper']}]" if row.get("paper") else ""
        trained = ""
        if kind == "heads":
            trained = f"  {' + '.join(row['modalities'])}; published: {', '.join(row['published']) or 'none'}"
        click.echo(f"{row['name']:<{width}}  {row['about']}{paper}{trained}")


# -- videos -> manifest -> features -----------------------------------------------------------------------------------


@main.command()
@click.argument("dataset")
@click.option("--root", type=_PATH, required=True, help="Folder of the videos (for `folder`: or a CSV).")
@click.option("-o", "--out", type=_PATH, required=True, help="The manifest to write (.csv).")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the dataset, e.g. lists=DIR, seed=1.")
@_json_option
@_plugins
def index(
    dataset: str, root: Path, out: Path, options: tuple[str, ...], as_json: bool, plugins: tuple[Path, ...]
) -> None:
    """Official lists and annotations, or two folders of videos -> a manifest.

    What the lists and the folder disagree on is named line by line, left out, and makes the exit code 1.
    """
    from data import manifest
    from mil.listing import index_dataset

    _load_plugins(plugins)
    found = index_dataset(dataset, root, options)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    for problem in found.problems:
        click.echo(f"problem: {problem}", err=True)
    if not found.videos:
        raise ValueError(
            f"no usable video of {dataset} below {root}; the problems above say why, or --root is another folder"
        )
    manifest.write(out, found.videos)
    summary = {**found.summary(), "problems": len(found.problems), "manifest": str(out)}
    if as_json:
        click.echo(json.dumps(summary))
    else:
        for split in ("train", "test"):
            n, high, events = summary[split], summary[f"{split}_anomalous"], summary[f"{split}_events"]
            click.echo(f"{split:<5} {n} videos, {high} anomalous, {n - high} normal, {events} annotated events")
        click.echo(f"wrote {out}" + (f"; {len(found.problems)} problems, see above" if found.problems else ""))
    sys.exit(int(bool(found.problems)))


@main.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("src", type=_PATH)
@click.option("--manifest", type=_PATH, required=True, help="The videos; index the dataset first.")
@click.option("--out", type=_PATH, required=True, help="The feature store; importing again does what is missing.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the format, e.g. modality=audio.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float32", show_default=True)
@click.option("--split", type=click.Choice(["train", "test"]), help="Only videos of this split.")
@_json_option
def import_(
    format_name: str,
    src: Path,
    manifest: Path,
    out: Path,
    options: tuple[str, ...],
    dtype: str,
    split: str | None,
    as_json: bool,
) -> None:
    """Published features below SRC -> a feature store. FORMAT is a name from `wsvad ls formats`.

    Each file is found by its video's name and checked; one that is refused is named with the reason, and makes the exit
    code 1.
    """
    from data import manifest as manifests
    from data.importers import import_features

    videos = [v for v in manifests.read(manifest) if split in (None, v.split)]
    report = import_features(format_name, src, videos, out, options=options, dtype=dtype)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({**report.as_dict(), "store": str(out)}) if as_json else report.describe(out))
    sys.exit(int(bool(report.failures)))


@main.command()
@click.option(
    "--out", type=_PATH, default=Path("wsvad-demo"), show_default=True, help="Folder for everything it makes."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--backbone", default="motion", show_default=True)
@click.option("--recipe", default="motion_ranking", show_default=True)
@_json_option
def demo(out: Path, seed: int, backbone: str, recipe: str, as_json: bool) -> None:
    """Generated videos -> features -> training -> evaluation -> picture; offline, on a CPU, in about a minute."""
    from mil.demo import run_demo

    result = run_demo(out, seed=seed, backbone=backbone, recipe=recipe, say=lambda line: click.echo(line, err=as_json))
    if as_json:
        click.echo(json.dumps(result))
