"""What `wsvad ls` and `wsvad index` look up."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.datasets import DatasetIndex, datasets
from data.registry import suggest


def listing(kind: str) -> list[dict[str, Any]]:
    """One object with name and about for each thing of that kind, sorted by name."""
    if kind == "recipes":
        from mil import config

        found = [(name, config.load(name)) for name in config.recipe_names()]
        return [{"name": n, "about": c.about, "head": c.head.name, "steps": c.train.steps} for n, c in found]
    if kind == "protocols":
        from mil.protocol import PROTOCOLS

        return [{"name": p.name, "about": p.about} for p in PROTOCOLS.values()]
    if kind == "datasets":
        return [{"name": name, "about": _first_line(datasets.get(name))} for name in datasets]
    if kind == "heads":
        from mil.heads import heads

        return [{"name": n, "about": _first_line(heads.get(n)), "paper": heads.get(n).paper} for n in heads]
    if kind == "formats":
        from data.importers import importers

        return [{"name": name, "about": _first_line(importers.get(name))} for name in importers]
    from extract.backbones import backbones

    return [
        {"name": n, "about": _first_line(b), "paper": b.paper, "licence": b.licence}
        for n, b in ((n, backbones.get(n)) for n in backbones)
    ]


def index_dataset(name: str, root: Path, options: Sequence[str]) -> DatasetIndex:
    """Reads a dataset, with KEY=VALUE options converted to the types of its reader's parameters.

    Raises ValueError for an option that the dataset does not take.
    """
    reader = datasets.get(name)
    parameters = {k: p for k, p in inspect.signature(reader).parameters.items() if k != "root"}
    given: dict[str, Any] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or key not in parameters:
            raise ValueError(
                f"dataset {name} takes no option '{key}' (written key=value).{suggest(key, list(parameters))}"
            )
        kind = parameters[key].annotation
        try:
            given[key] = _converted(value, kind)
        except (KeyError, ValueError):
            wanted = "yes or no" if kind is bool else f"of type {kind.__name__}"
            raise ValueError(f"option {key} of dataset {name} must be {wanted}, got '{value}'") from None
    if name != "toy" and not root.exists():
        raise FileNotFoundError(f"no folder {root}; --root is the folder of the dataset")
    return reader(root.resolve(), **given)


_BOOLS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _converted(value: str, kind: Any) -> Any:
    if kind is bool:
        return _BOOLS[value.lower()]
    return kind(value) if kind in (int, float, str) else Path(value)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]
