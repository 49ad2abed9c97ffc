"""A recipe in one piece: the values of all that it builds on, each with the comment that stands beside it there."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from mil import config as configs

log = logging.getLogger(__name__)

Path = tuple[str, ...]


@dataclass(frozen=True)
class _Written:
    """A value as a file has it: full-line comments above, its text (None for keys below it), the comment behind."""

    above: tuple[str, ...]
    text: str | None
    behind: tuple[str, ...]


def flat(recipe: str) -> str:
    """A recipe without `base`, as YAML that `mil.config.load` reads to the same values; the last line ends.

    Comments are those of the file that sets a value. Where a file is written in a way that they cannot be kept, there
    are none but those at the top, and a warning says so.
    Raises UnknownNameError or ConfigError, as `load` does.
    """
    values, name = configs.read(recipe)
    values.pop("recipe", None)  # a copy goes by the name of its own file
    texts = configs.sources(recipe)
    lines = [f"# A copy of {name} of wsvad {version('wsvad')}, whole: it builds on no other recipe."]
    for depth, (above, text) in enumerate(texts):
        lines += [f"# It took values of {above}:"] * bool(depth)
        lines += _header(text)
    body = list(_lines(values, (), [dict(_written(text)) for _, text in texts]))
    copy = "\n".join([*lines, *body]) + "\n"
    try:
        same = configs.parse(copy, name) == values
    except configs.ConfigError:
        same = False
    if same:
        return copy
    log.warning(
        "the way %s is written does not let the comments beside its values be copied; the values all are", recipe
    )
    return "\n".join([*lines, yaml.safe_dump(values, sort_keys=False)])


def _lines(values: Mapping[str, Any], path: Path, files: Sequence[Mapping[Path, _Written]]) -> Iterator[str]:
    """The keys below `path`, of several files the first that has one."""
    indent = "  " * len(path)
    for key, value in values.items():
        own = (*path, str(key))  # as a file spells it
        found = next((f[own] for f in files if own in f), _Written((), None, ()))
        yield from (indent + line for line in found.above)
        first, *more = found.behind or ("",)
        name = _plain(key)
        if found.text is not None and _means(found.text, value):
            yield f"{indent}{name}: {found.text}{first}"
        elif isinstance(value, dict) and value:
            yield f"{indent}{name}:{first}"
            yield from more
            more = []
            yield from _lines(value, own, files)
        else:
            yield f"{indent}{name}: {_plain(value)}{first}"
        yield from more


def _means(text: str, value: Any) -> bool:
    """Whether a value's text has that value by itself: an alias of something outside it has none."""
    try:
        return bool(configs.numbers(yaml.load(text, Loader=configs.LOADER)) == value)  # noqa: S506  # it is a safe one
    except yaml.YAMLError:
        return False


def _written(text: str) -> Iterator[tuple[Path, _Written]]:
    """Every key of a file with what is written around it."""
    lines = text.splitlines()
    above, below = _comments(lines)
    end_of_header = len(_header(text))

    def walk(node: yaml.Node | None, path: Path) -> Iterator[tuple[Path, _Written]]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            own = (*path, str(key.value))
            block = isinstance(value, yaml.MappingNode) and not value.flow_style
            stop = key.end_mark if block else value.end_mark
            whole = not (isinstance(value, yaml.CollectionNode) and not value.flow_style)
            source = text[value.start_mark.index : value.end_mark.index] if whole else None
            if node.flow_style:
                yield own, _Written((), source, ())
            else:
                rest = lines[stop.line][stop.column :].removeprefix(":") if stop.line < len(lines) else ""
                behind = (rest.rstrip(), *below.get(stop.line, ())) if rest.strip().startswith("#") else ()
                higher = tuple(line for i, line in above.get(key.start_mark.line, ()) if i >= end_of_header)
                yield own, _Written(higher, source, behind)
            yield from walk(value, own)

    yield from walk(yaml.compose(text, Loader=configs.LOADER), ())


def _comments(lines: Sequence[str]) -> tuple[dict[int, list[tuple[int, str]]], dict[int, list[str]]]:
    """Full-line comments by the line that they speak of: (number, text) of those above it; those behind and below it.

    One that stands further in than the line that follows goes on with what stands behind the line before.
    """
    above: dict[int, list[tuple[int, str]]] = {}
    below: dict[int, list[str]] = {}
    last = 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        if not line.lstrip().startswith("#"):
            last = i
            continue
        following = next((n for n in range(i, len(lines)) if lines[n].strip() and lines[n].lstrip()[0] != "#"), None)
        if following is not None and _column(line) <= _column(lines[following]):
            above.setdefault(following, []).append((i, line.strip()))
        else:
            below.setdefault(last, []).append(line.rstrip())
    return above, below


def _header(text: str) -> list[str]:
    """The comment that a file begins with."""
    lines = text.splitlines()
    stop = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:stop]


def _column(line: str) -> int:
    return len(line) - len(line.lstrip())


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
