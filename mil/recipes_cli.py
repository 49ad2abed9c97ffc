"""`wsvad recipes`: which there are, what they hold, and one's own copy of one."""

import json
from pathlib import Path

import click

from mil.options import json_option, load_plugins, plugins_option


@click.group()
def recipes() -> None:
    """Recipes: one for every head and dataset, and what is in them."""


@recipes.command("ls")
@click.option("--head", help="Only those of a head, a name from `wsvad ls heads`.")
@click.option("--dataset", help="ucf, xd, sh, ped2, folder, or any: motion_*.")
@json_option
@plugins_option
def ls(head: str | None, dataset: str | None, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """A line for each recipe: its dataset, whether its values were published (*), how long it trains."""
    from mil.listing import recipe_rows

    load_plugins(plugins)
    rows = recipe_rows(head=head, dataset=dataset)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    names, places = ([len(str(row[key])) for row in rows] for key in ("name", "dataset"))
    for row in rows:
        length = f"{row['epochs']} epochs" if row["epochs"] else f"{row['steps']} steps"
        mark = "*" if row["published"] else " "
        click.echo(f"{row['name']:<{max(names)}} {mark} {row['dataset']:<{max(places)}}  {length:>11}  {row['about']}")


@recipes.command("show")
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Every value: of the recipes that it builds on, and defaults.")
@plugins_option
def show(name: str, resolved: bool, plugins: tuple[Path, ...]) -> None:
    """NAME's YAML as it is written, with its comments; a file of your own by its path."""
    from mil import config as configs

    load_plugins(plugins)
    if not resolved:
        click.echo(configs.sources(name)[0][1], nl=False)
        return
    click.echo(configs.with_defaults(configs.load(name)).to_yaml(), nl=False)


@recipes.command("cp")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@plugins_option
def cp(name: str, file: Path, plugins: tuple[Path, ...]) -> None:
    """NAME -> FILE.yaml, in one piece and with its comments, to change as you like."""
    from data.files import write_text
    from mil import config as configs
    from mil.recipe_copy import flat

    load_plugins(plugins)
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"a recipe's file ends in .yaml, got {file}; that is how `wsvad train` tells it from a name")
    if file.exists():
        raise FileExistsError(f"{file} exists and is never overwritten; choose another name, or delete it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"no folder {file.parent}; make it first, or choose another")
    configs.load(name)  # nothing is copied that could not be trained
    write_text(file, flat(name))
    click.echo(f"wrote {file}; now: wsvad train {file} --manifest FILE --features STORE --out RUN")
