"""`wsvad checkpoint`: published weights in, ours out."""

import json
from pathlib import Path

import click

from mil.options import PATH, json_option, load_plugins, plugins_option


@click.group()
def checkpoint() -> None:
    """The authors' checkpoints <-> runs of ours."""


@checkpoint.command("import")
@click.argument("file", type=PATH)
@click.option("--head", required=True, help="A name from `wsvad ls heads`.")
@click.option("--out", type=PATH, help="The run's folder.  [the file's name, here]")
@click.option("--recipe", help="Whose options it gets.  [the head's first that the shapes fit]")
@click.option("--dims", help="How the features are split, e.g. rgb=1024,audio=128.  [from the shapes]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. head.score=online.")
@click.option("--manifest", type=PATH, help="Videos to evaluate on; may come with `wsvad eval` instead.")
@click.option("--features", type=PATH, multiple=True, help="A feature store; one per modality.")
@json_option
@plugins_option
def import_(
    file: Path,
    head: str,
    out: Path | None,
    recipe: str | None,
    dims: str | None,
    overrides: tuple[str, ...],
    manifest: Path | None,
    features: tuple[Path, ...],
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """An authors' checkpoint -> a finished run, to evaluate, score with, or export again."""
    from mil.imported import import_checkpoint

    load_plugins(plugins)
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint {file}; pass the file that the authors' code saved")
    done = import_checkpoint(
        head,
        file,
        out or Path(file.stem),
        recipe=recipe,
        dims=_dims(dims) if dims else None,
        overrides=overrides,
        manifest_path=manifest,
        feature_roots=features,
    )
    if as_json:
        found = {"run": str(done.run.root), "recipe": done.recipe, "parameters": done.parameters}
        click.echo(json.dumps({**found, "unused": list(done.unused), "notes": list(done.notes)}))
        return
    click.echo(f"{head}: {done.parameters:,} parameters, recipe {done.recipe or 'none'}")
    if done.unused:
        shown = ", ".join(done.unused[:20]) + (f" and {len(done.unused) - 20} more" if len(done.unused) > 20 else "")
        click.echo(f"published but never used, kept for the way back: {shown}")
    for note in done.notes:
        click.echo(note, err=True)
    click.echo(f"wrote {done.run.root}; now: wsvad eval {done.run.root} --manifest FILE --features STORE")


@checkpoint.command("export")
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, help="The file to write, as the authors' code loads it.")
@json_option
@plugins_option
def export(run: Path, out: Path, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """A run's head -> the state dict that the authors' code loads."""
    from mil.imported import export_checkpoint
    from mil.rundir import RunDir

    load_plugins(plugins)
    state = export_checkpoint(RunDir(run), out)
    count = sum(v.numel() for v in state.values())
    if as_json:
        click.echo(json.dumps({"out": str(out), "tensors": len(state), "numbers": count}))
    else:
        click.echo(f"wrote {out}: {len(state)} tensors, {count:,} numbers")
        for path in sorted(out.parent.glob(f"{out.stem}.*.npy")):
            click.echo(f"wrote {path}, which the authors keep apart")


def _dims(text: str) -> dict[str, int]:
    """rgb=1024,audio=128 -> {"rgb": 1024, "audio": 128}. Raises ValueError."""
    try:
        return {name.strip(): int(size) for name, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"--dims is written like rgb=1024,audio=128, got '{text}'") from None
