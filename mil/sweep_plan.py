"""Which runs a sweep is made of: recipes x values x seeds."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mil import config as configs
from mil.config import ConfigError


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: what `wsvad train` and `wsvad eval` would be given.

    Args:
        name: of the run, and of its folder.
        recipe: a name or a YAML file.
        overrides: `key=value`, those of the grid last.
        seed: of weights, dropout and batches.
        out: its folder.
        manifest: the videos.
        features: stores, of which it takes what it wants.
        allow_missing: go on without the videos that have no features.
        plugins: files that register heads; whatever process does the run loads them first.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    out: Path
    manifest: Path
    features: tuple[Path, ...]
    allow_missing: bool = False
    plugins: tuple[Path, ...] = ()

    @property
    def log(self) -> Path:
        """What it said, beside its folder."""
        return self.out.with_name(f"{self.out.name}.log")

    def absolute(self) -> "Planned":
        """The same with paths that mean the same in every working folder."""
        recipe = str(Path(self.recipe).resolve()) if self.recipe.endswith((".yaml", ".yml")) else self.recipe
        return replace(
            self,
            recipe=recipe,
            out=self.out.resolve(),
            manifest=self.manifest.resolve(),
            features=tuple(f.resolve() for f in self.features),
            plugins=tuple(p.resolve() for p in self.plugins),
        )


def plan(
    recipes: Sequence[str],
    out: Path,
    manifest: Path,
    features: Sequence[Path],
    *,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    grid: Sequence[str] = (),
    allow_missing: bool = False,
    plugins: Sequence[Path] = (),
) -> list[Planned]:
    """All runs, seed by seed, so that every recipe has a first number early.

    Args:
        recipes: names or YAML files.
        out: each run gets a folder below it.
        manifest: the videos.
        features: stores, of which each recipe takes what it wants.
        seeds: of every run.
        overrides: `key=value` of every run.
        grid: `key=value,value,...`; every combination is run.
        allow_missing: go on without the videos that have no features.
        plugins: files that register heads; they must be loaded here already.

    Raises:
        ConfigError: a recipe or a value that cannot be used.
        ValueError: a store that is not there, or features that a recipe wants and nobody gave.
    """
    axes = []
    for text in grid:
        key, equals, choices = text.partition("=")
        if not equals or not choices:
            raise ConfigError(f"--grid takes key=value,value,..., e.g. train.optimizer.lr=1e-3,1e-4, got '{text}'")
        # commas between brackets belong to a value
        axes.append([f"{key}={value}" for value in re.split(r",(?![^\[{]*[\]}])", choices)])
    from mil.run import chosen
    from mil.train import open_stores

    stores = open_stores(features)
    wanted = [(recipe, point) for recipe in recipes for point in itertools.product(*axes)]
    for recipe, point in wanted:
        chosen(configs.load(recipe, [*overrides, *point]), stores)
    planned = []
    for seed in seeds:
        for recipe, point in wanted:
            stem = recipe.removesuffix(".yaml").removesuffix(".yml").rsplit("/", 1)[-1]
            name = "-".join([stem, *(p.replace("/", "_") for p in point), f"s{seed}"])
            run = Planned(name, recipe, (*overrides, *point), seed, out / name, manifest, tuple(features))
            planned.append(replace(run, allow_missing=allow_missing, plugins=tuple(plugins)))
    names = [p.name for p in planned]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ConfigError(
            f"two runs of this sweep would be called '{min(twice)}'; rename a recipe file, or change a grid value"
        )
    return planned
