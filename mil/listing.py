"""What `wsvad ls` and `wsvad index` look up."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.datasets import DatasetIndex, datasets
from data.registry import suggest


def listing(kind: str) -> list[dict[str, Any]]:
    """One object with name and about for each thing of that kind, sorted by name."""
    if kind == "recipes":
        return recipe_rows()
    if kind == "protocols":
        from mil.protocol import PROTOCOLS

        return [{"name": p.name, "about": p.about} for p in PROTOCOLS.values()]
    if kind == "datasets":
        return [{"name": name, "about": _first_line(datasets.get(name))} for name in datasets]
    if kind == "heads":
        from mil.heads import heads

        return [_head(name) for name in heads]
    if kind == "formats":
        from data.importers import importers

        return [{"name": name, "about": _first_line(importers.get(name))} for name in importers]
    from extract.backbones import backbones

    return [_backbone(name) for name in backbones]


def recipe_rows(*, head: str | None = None, dataset: str | None = None) -> list[dict[str, Any]]:
    """The recipes, of one head or for one dataset ("any": those for whatever dataset), sorted by name.

    `epochs` counts where it is set, else `steps`; `published`: values of the paper or its code for that dataset. Raises
    UnknownNameError for a head or a dataset that there is not.
    """
    from mil import config
    from mil.heads import heads

    if head is not None:
        heads.get(head)
    dataset = config.DATASETS.get(str(dataset), dataset)  # xd is short for xd_violence
    if dataset not in (None, "any"):
        datasets.get(str(dataset))
    published = {name for own in heads if head in (None, own) for name in config.published(own)}
    rows = []
    for name in config.recipe_names():
        own, place = config.head_of(name), config.dataset_of(name)
        if head in (None, own) and dataset in (None, place):
            found = config.load(name)
            rows.append(
                {
                    "name": name,
                    "about": found.about,
                    "head": own,
                    "dataset": place,
                    "published": name in published,
                    "steps": found.train.steps,
                    "epochs": found.train.epochs,
                }
            )
    return rows


def _head(name: str) -> dict[str, Any]:
    """A head with its paper, the features it keeps apart ("any": all side by side) and the recipes that train it.

    `published` are those of them with values of the paper or its code.
    """
    from mil import config
    from mil.heads import heads

    head = heads.get(name)
    recipes = [r for r in config.recipe_names() if config.head_of(r) == name]
    return {
        "name": name,
        "about": _first_line(head),
        "paper": head.paper,
        "modalities": [part.replace("|", " or ") for part in head.modalities] or ["any"],
        "recipes": recipes,
        "published": config.published(name),
    }


def _backbone(name: str) -> dict[str, Any]:
    """A backbone with its default options; gmac and gmac_per_crop count multiply-accumulates of one clip, in 10^9."""
    from extract.backbones import backbones, option_names

    backbone = backbones.get(name)
    recipe = backbone.default_spec()
    return {
        "name": name,
        "about": _first_line(backbone),
        "paper": backbone.paper,
        "licence": backbone.licence,
        "dim": recipe.dim,
        "modality": recipe.modality,
        "clip_len": recipe.clip_len,
        "step": recipe.step,
        "stride": recipe.stride,
        "fps": recipe.fps,
        "crops": len(recipe.crops),
        "gmac": backbone.gmac * len(recipe.crops),
        "gmac_per_crop": backbone.gmac,
        "params_m": backbone.params_m,
        "weight_files": list(getattr(backbone, "weight_files", ())),
        "options": option_names(backbone),
        "switches": dict(backbone.switches),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "weights"},  # weights are chosen, not part of it
    }


def backbone_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What `wsvad ls backbones` prints: a heading, then a line for each row.

    A clip is written FRAMESxSTEP/STRIDE @FPS: 32x2/64 @30 shows every second of 64 frames at 30 frames/s. Of a licence
    its first word stands there, with a * where it has conditions beside.
    """
    heads = ("name", "dim", "from", "clip/stride", "crops", "GMAC/clip", "M params", "licence", "what it is")
    cells = [heads, *(_backbone_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads) - 1)]
    numbers = (1, 4, 5, 6)
    return [
        "  ".join(
            [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=False))]
            + [line[-1]]
        )
        for line in cells
    ]


def _backbone_cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = f"x{row['step']}" if row["step"] > 1 else ""
    fps = f" @{row['fps']:g}" if row["fps"] else ""
    licence, _, conditions = row["licence"].partition(" ")
    return (
        row["name"],
        str(row["dim"]),
        row["modality"],
        f"{row['clip_len']}{step}/{row['stride']}{fps}",
        str(row["crops"]),
        f"{row['gmac']:.1f}" if row["gmac"] else "-",
        f"{row['params_m']:.1f}" if row["params_m"] else "-",
        licence.rstrip(",") + "*" * bool(conditions),
        row["about"],
    )


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
