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
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data.registry import UnknownNameError, suggest
from mil.rules import Rule

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, and there are 100 recipes
DATASETS = {"ucf": "ucf_crime", "xd": "xd_violence", "sh": "shanghaitech", "ped2": "ucsd_ped", "folder": "folder"}


class ConfigError(ValueError):
    """A recipe or an override cannot be used; the message names the key, what was found and what is known."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadConfig(BaseModel):
    """`name` of a registered head, and its options as further keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The head's keyword arguments."""
        return dict(self.model_extra or {})


class DataConfig(_Part):
    """How a video becomes a training bag; evaluation always scores every clip."""

    modalities: tuple[str, ...] = Field(
        (), description='of the stores given, those that are used, e.g. ["visual", "audio"]; none: all of them'
    )
    resample: Literal["segments", "pick", "interpolate", "resize", "shrink", "repeat", "random", "full"] = "segments"
    count: int = Field(32, ge=1, description="segments per training bag")
    scale: Literal["none", "l2", "standardize"] = Field("none", description="of each clip's features, before the head")
    sqrt: bool = Field(False, description="signed square root before scaling (Hellinger), for histograms")
    clamp: float | None = Field(None, gt=0, description="limit of the standardized features, in deviations")
    dtype: Literal["float16", "float32"] = Field("float16", description="in which training segments are kept")


class GroupConfig(_Part):
    """What parameters of their own have; None: as the others."""

    lr: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class OptimizerConfig(_Part):
    """torch.optim's optimizer of that name."""

    name: Literal["adagrad", "adam", "adamw", "radam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    eps: float | None = Field(None, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    groups: dict[str, GroupConfig] = Field({}, description="by the beginning of the parameters' names in the head")


class TrainConfig(_Part):
    """The loop."""

    steps: int = Field(1000, ge=1)
    epochs: int | None = Field(None, ge=1, description="instead of steps; milestones and t_max then count epochs too")
    sampler: Literal["balanced", "passes", "mixed"] = Field(
        "balanced",
        description="pairs drawn anew for every step; pairs in passes over each class; or videos of both kinds mixed",
    )
    pairs: int = Field(30, ge=1, description="balanced, passes: anomalous and as many normal videos per step")
    batch: int = Field(128, ge=1, description="mixed: videos per step")
    samples: Literal["videos", "crops"] = Field("videos", description="crops: each crop of a video is drawn by itself")
    shuffle: bool = Field(True, description="passes, mixed: else always in the order of the manifest")
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_schedule: Literal["constant", "cosine", "milestones"] = "constant"
    milestones: tuple[int, ...] = Field((), description="milestones: steps after which lr is multiplied by gamma")
    t_max: int | None = Field(None, ge=1, description="cosine: steps down to 0; none: all")
    gamma: float = Field(0.1, gt=0, description="milestones: the factor")
    clip_norm: float | None = Field(None, gt=0, description="of the whole gradient")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights that are kept; none: the last"
    )
    noise: float = Field(0.0, ge=0, description="Gaussian noise on the scaled features, in their units")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the head's layers; weights and losses stay fp32")
    compile: Literal["none", "kernels", "graphs"] = Field("none", description="torch.compile; graphs: CUDA graphs too")
    log_every: int = Field(50, ge=1)
    save_every: int = Field(500, ge=1, description="steps between states to resume from")

    def total(self, per_epoch: int) -> int:
        """Steps of the whole training, where an epoch has `per_epoch`."""
        return self.steps if self.epochs is None else self.epochs * per_epoch


class SelectConfig(_Part):
    """Which step's weights are kept: of the last step, of the best look at held-out training videos, or at test ones.

    "test" is the habit of the field. Its number is optimistic, and is called so wherever it is shown.
    """

    rule: Rule = Field("last", description="whose weights a run is judged by")
    also: tuple[Rule, ...] = Field((), description="rules that are followed beside it, with weights of their own")
    fraction: float = Field(0.2, gt=0, lt=1, description="val: share of the training videos held out, per class")
    every: int = Field(50, ge=1, description="val, test: steps between looks")
    metric: Literal["auc", "ap"] = Field("auc", description="test: frame-level number that is to be best")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All that are followed, each once, `rule` first."""
        return tuple(dict.fromkeys((self.rule, *self.also)))


class EvalConfig(_Part):
    """What happens between the head and the metrics."""

    protocol: str = "auto"  # frames where true lengths are known, else snippets
    smooth: int = Field(1, ge=1, description="number of neighbouring clips whose scores are averaged")
    smoothing: Literal["centred", "ahead", "blocks"] = Field(
        "centred", description="around each clip (odd numbers); from it on; or in fixed blocks: zeros behind the end"
    )


class Config(_Part):
    """One experiment. `config.yaml` of a run holds every value, defaults included."""

    recipe: str = ""
    about: str = Field("", description="one line, shown by `wsvad ls recipes`")
    head: HeadConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    select: SelectConfig = SelectConfig()
    evaluate: EvalConfig = EvalConfig()
    seed: int = Field(0, ge=0)

    def to_yaml(self) -> str:
        """Every value, ready to be read back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


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
