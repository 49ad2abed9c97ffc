"""Options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def plugins_option(command: F) -> F:
    """--plugin FILE.py, several times."""
    return click.option(
        "--plugin", "plugins", type=PATH, multiple=True, help="A .py file that registers heads, backbones or datasets."
    )(command)


def load_plugins(plugins: Sequence[Path]) -> None:
    """Imports what --plugin named."""
    from data.registry import load_plugin

    for path in plugins:
        load_plugin(path)


def json_option(command: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def key_values(texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, several times. Raises click.BadParameter on one without =."""
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (key, equals, _) in zip(texts, pairs, strict=True) if not (key and equals)]:
        raise click.BadParameter(f"an option is written KEY=VALUE, got '{bad[0]}'", param_hint="--option")
    return {key: value for key, _, value in pairs}
