"""Recipes: YAML files of every choice of an experiment, checked before any work is done.

A misspelt key is an error with a suggestion; so is an option that the head does not take.
"""

import fnmatch
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from data.registry import UnknownNameError, suggest
from mil.schema import (
    Config,
    DataConfig,
    EvalConfig,
    GroupConfig,
    HeadConfig,
    OptimizerConfig,
    SelectConfig,
    TrainConfig,
)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, and there are 100 recipes
DATASETS = {"ucf": "ucf_crime", "xd": "xd_violence", "sh": "shanghaitech", "ped2": "ucsd_ped", "folder": "folder"}

__all__ = [
    "Config", "ConfigError", "DataConfig", "EvalConfig", "GroupConfig", "HeadConfig", "OptimizerConfig", "SelectConfig",
    "TrainConfig", "load", "validate",
]  # fmt: skip


class ConfigError(ValueError):
    """A recipe or an override cannot be used; the message names the key, what was found and what is known."""


def recipe_names() -> list[str]:
    """The recipes that come with the package, sorted."""
    folder = resources.files("mil") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def matching(recipe: str) -> list[str]:
    """The recipes of a name or of a pattern such as motion_*; a path stays one. Raises UnknownNameError for none."""
    if not any(sign in recipe for sign in "*?[") or recipe.endswith((".yaml", ".yml")):
        return [recipe]
    found = fnmatch.filter(recipe_names(), recipe)
    if not found:
        raise UnknownNameError(f"no recipe matches '{recipe}'.{_suggest(recipe)}")
    return found


def _suggest(recipe: str) -> str:
    """The nearest names, and where to see them all: there are too many for a message."""
    nearest = suggest(recipe, recipe_names()).partition(" Known: ")[0]
    return f"{nearest} `wsvad recipes ls` lists all {len(recipe_names())}"


@cache
def head_of(recipe: str) -> str:
    """The head of a recipe that comes with the package, without the checks of `load`."""
    return str(read(recipe)[0]["head"]["name"])


def dataset_of(recipe: str) -> str:
    """The dataset that a recipe's name ends with, as `wsvad ls datasets` calls it; "any" where it names none.

    `ranking` and `deepmil` are short for ranking_ucf and deepmil_ucf.
    """
    if recipe.startswith("motion_"):
        return "any"
    return DATASETS["ucf"] if recipe == head_of(recipe) else DATASETS.get(recipe.rpartition("_")[2], "any")


def published(head: str) -> list[str]:
    """The recipes of a head that hold published values of the dataset they are named after, sorted.

    What nobody published says so in its `about`; of a recipe with a short and a long name the short one is there.
    """
    own = [name for name in recipe_names() if head_of(name) == head]
    found = [
        name
        for name in own
        if not (name.startswith("motion_") or name.endswith("_folder"))
        and "not published" not in str(read(name)[0].get("about", ""))
    ]
    return [name for name in found if not (head in found and name == f"{head}_ucf")]


def load(recipe: str, overrides: Sequence[str] = (), *, seed: int | None = None) -> Config:
    """Reads a recipe by name, or a YAML file by path, with `key.sub=value` overrides.

    A recipe may build on another: `base: NAME`, or a file relative to its own, whose values it replaces key by key (a
    head or an optimizer of another name as a whole). Raises UnknownNameError for a recipe, ConfigError for keys and
    values.
    """
    values, name = read(recipe)
    for text in overrides:
        override(values, text)
    if any(text.partition("=")[0].strip() == "train.steps" for text in overrides):
        _check_steps_count(values, name)
    if seed is not None:
        values["seed"] = seed
    values["recipe"] = values.get("recipe") or name
    return validate(values, name)


def sources(recipe: str) -> list[tuple[str, str]]:
    """(name, text) of a recipe and of those that it builds on, as they are written, itself first.

    Raises UnknownNameError for a name, ConfigError for a file that is not there, is not YAML, or builds on itself.
    """
    found: list[tuple[str, str]] = []
    spelled: list[str] = []
    base: str | None = recipe
    while base is not None:
        folder = Path()
        if base.endswith((".yaml", ".yml")):
            base = os.path.abspath(base)  # one spelling, so that a circle of bases is noticed
            folder = Path(base).parent
        if base in spelled:
            raise ConfigError(f"{found[-1][0]} builds on itself: {' -> '.join((*spelled, base))}")
        name, text = _open(base)
        spelled.append(base)
        found.append((name, text))
        below = parse(text, name).get("base")
        base = None if below is None else str(below)
        if base is not None and base.endswith((".yaml", ".yml")):
            base = str(folder / base)
    return found


def _open(recipe: str) -> tuple[str, str]:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"no recipe file {path}")
        return path.stem, path.read_text()
    if recipe not in recipe_names():
        hint = _suggest(recipe)
        raise UnknownNameError(
            f"no recipe called '{recipe}'.{hint}. A file of your own: pass a path that ends in .yaml"
        )
    return recipe, (resources.files("mil") / "recipes" / f"{recipe}.yaml").read_text()


def read(recipe: str) -> tuple[dict[str, Any], str]:
    """The values of a recipe on top of those that it builds on, unchecked, and its name. Raises as `sources` does."""
    merged: dict[str, Any] = {}
    for depth, (name, text) in enumerate(reversed(sources(recipe))):
        values = parse(text, name)
        values.pop("base", None)
        merged.pop("recipe", None)  # the config.yaml of a run has one; this is another
        merged = _over(merged, values)
        if depth and isinstance(own := values.get("train"), dict) and "steps" in own:
            _check_steps_count(merged, name)
    return merged, name


def _over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` on top of `below`; of a head or an optimizer with another name nothing is kept."""
    merged = dict(below)
    for key, value in values.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            value = _over(old, value)
        merged[key] = value
    return merged


def _check_steps_count(values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where steps were asked for on top of a recipe that counts epochs: nothing would change."""
    train = values.get("train")
    if isinstance(train, dict) and train.get("epochs") is not None:
        raise ConfigError(
            f"{where}: train.steps is not used, the recipe counts epochs (train.epochs={train['epochs']}); set "
            "train.epochs, or train.epochs=null, with milestones and t_max in steps"
        )


def validate(values: dict[str, Any], where: str) -> Config:
    """Checks values against the schema and the head's own signature. Raises ConfigError with every fault."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        lines = [_describe(e["loc"], e["msg"], e["type"]) for e in error.errors()]
        raise ConfigError(f"{where} has {len(lines)} faults:\n  " + "\n  ".join(lines)) from None
    if config.evaluate.smooth % 2 == 0 and config.evaluate.smoothing == "centred":
        raise ConfigError(
            f"{where}: evaluate.smooth must be odd, so that no score moves in time; got {config.evaluate.smooth}"
        )
    from mil.heads import heads  # late: it imports torch

    parameters = inspect.signature(heads.get(config.head.name), eval_str=True).parameters
    known = [p for p, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for option, value in config.head.options.items():
        if option not in known:
            raise ConfigError(f"{where}: head '{config.head.name}' has no option '{option}'.{suggest(option, known)}")
        kind = parameters[option].annotation
        try:
            options[option] = value if kind is inspect.Parameter.empty else TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            lines = [_describe(("head", option, *e["loc"]), e["msg"], e["type"]) for e in error.errors()]
            raise ConfigError(f"{where}: " + "\n  ".join(lines)) from None
    return config.model_copy(update={"head": HeadConfig(name=config.head.name, **options)})


def with_defaults(config: Config) -> Config:
    """The config with every option of the head in it, defaults included."""
    from mil.heads import heads  # late: it imports torch

    parameters = inspect.signature(heads.get(config.head.name)).parameters
    options = {k: p.default for k, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    head = HeadConfig(name=config.head.name, **{**options, **config.head.options})
    return config.model_copy(update={"head": head})


def parse(text: str, where: str) -> dict[str, Any]:
    """The keys and values of a recipe's YAML, of the file `where`. Raises ConfigError when it is no such thing."""
    try:
        values = yaml.load(text, Loader=LOADER)  # noqa: S506  # it is a safe one
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold keys and values, like 'head: {{name: ranking}}'")
    return {str(key): numbers(value) for key, value in values.items()}


def numbers(value: Any) -> Any:
    """A value of YAML with the numbers that it was meant to hold: YAML 1.1 reads 8e-5 as a string."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def override(values: dict[str, Any], text: str) -> None:
    """Writes `key.sub=value` into `values`. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise ConfigError(f"--set takes key=value, e.g. train.steps=500, got '{text}'")
    *path, last = key.strip().split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: '{part}' is a value and has no keys below it")
        values = inner
    try:
        values[last] = numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: not a YAML value: {error}") from error


def _describe(location: Iterable[int | str], message: str, kind: str) -> str:
    path = [str(p) for p in location]
    if kind != "extra_forbidden":
        return f"{'.'.join(path)}: {message}"
    part: Any = Config
    for name in path[:-1]:
        # of a dict[str, GroupConfig], `name` is one of its keys
        part = part.model_fields[name].annotation if hasattr(part, "model_fields") else get_args(part)[1]
    return f"{'.'.join(path)}: no such key.{suggest(path[-1], list(part.model_fields))}"
