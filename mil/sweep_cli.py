"""`wsvad sweep` and `wsvad compare`: many runs, and what their differences are worth."""

import json
import sys
from functools import partial
from pathlib import Path

import click

from mil.options import PATH, json_option, load_plugins, plugins_option
from mil.rules import RULES


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@click.option("--manifest", type=PATH, required=True, help="The videos and their labels.")
@click.option("--features", type=PATH, multiple=True, required=True, help="A feature store; give one per modality.")
@click.option("--out", type=PATH, required=True, help="Folder of the runs; what is done there is not done again.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of seed 0, 1, ... of each.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of every run.")
@click.option("--grid", multiple=True, metavar="KEY=A,B,...", help="Every combination is run.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Runs at a time.  [one per core or GPU]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda (all GPUs in turn), cuda:1, mps.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", help="Of a Ray cluster; a local one is started where none is given.")
@click.option("--allow-missing", is_flag=True, help="Leave out videos that have no features.")
@json_option
@plugins_option
def sweep(
    recipes: tuple[str, ...],
    manifest: Path,
    features: tuple[Path, ...],
    out: Path,
    seeds: int,
    overrides: tuple[str, ...],
    grid: tuple[str, ...],
    workers: int,
    device: str,
    engine: str,
    address: str | None,
    allow_missing: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Train and evaluate every one of RECIPES with every seed; repeat the command to go on.

    A name may be a pattern: 'motion_*' (in quotes). Each recipe takes the modalities it wants of the stores given. With
    --engine ray every node must see all of these paths.
    """
    from extract.device import device_of
    from mil.config import matching
    from mil.sweep import plan, run_sweep

    if engine == "local":
        device_of(device)  # refused before anything runs
    load_plugins(plugins)
    planned = plan(
        [name for recipe in recipes for name in matching(recipe)],
        out,
        manifest,
        features,
        seeds=range(seeds),
        overrides=overrides,
        grid=grid,
        allow_missing=allow_missing,
        plugins=plugins,
    )

    def say(line: str) -> None:
        click.echo(line, err=True)

    ended = run_sweep(planned, workers=workers, device=device, engine=engine, address=address, say=say)
    failed = [e for e in ended if e.numbers is None]
    if as_json:
        rows = [{"run": str(e.run.out), "reason": e.reason, "fresh": e.fresh, "numbers": e.numbers} for e in ended]
        click.echo(json.dumps({"done": len(ended) - len(failed), "failed": len(failed), "runs": rows}))
    else:
        for e in failed:
            click.echo(f"failed: {e.run.name}: {e.reason}", err=True)
        given = "".join(f" --plugin {p}" for p in plugins)
        now = f"; now: wsvad compare {out}{given}" if len(failed) < len(ended) else ""
        click.echo(f"{len(ended) - len(failed)} of {len(ended)} runs are done{now}")
    sys.exit(int(bool(failed)))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--metric", type=click.Choice(["auc", "ap", "pr_auc"]), default="auc", show_default=True)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@click.option("--bootstrap", type=click.IntRange(2), default=1000, show_default=True, help="Draws of videos and seeds.")
@click.option(
    "--rule",
    type=click.Choice([*RULES, "all"]),
    help="Whose weights; all: the rules of each recipe side by side.  [each run's own]",
)
@click.option("--protocol", help="Under which the runs were evaluated.  [each recipe's own]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Likewise.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "latex", "json"]), default="text")
@plugins_option
def compare(
    runs: tuple[Path, ...],
    metric: str,
    split: str,
    bootstrap: int,
    rule: str | None,
    protocol: str | None,
    precision: str,
    form: str,
    plugins: tuple[Path, ...],
) -> None:
    """Evaluated RUNS, or folders of them, as one table: seeds, intervals, and which differences are noise."""
    from mil.compare import compare as compare_runs
    from mil.compare_rules import compare_rules
    from mil.compare_table import render

    load_plugins(plugins)
    found = partial(
        compare_rules if rule == "all" else partial(compare_runs, rule=rule),
        metric=metric,
        split=split,
        resamples=bootstrap,
        protocol=protocol,
        precision=precision,
    )
    click.echo(render(found(runs), form))
