"""Options of a net as they are typed, in the types that they mean."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from data.grid import TAILS
from data.types import FeatureSpec
from extract.backbones.base import BackboneError
from extract.decode import is_torch_side
from extract.pictures import DECODERS

Option = str | int | float | bool


def _whole(given: Any) -> int:
    if float(given) != int(given):
        raise ValueError(f"wanted a whole number, got {given}")
    return int(given)


RECIPE: dict[str, Callable[[Any], Any]] = {
    "dtype": str,
    "tail": str,
    "resize": str,
    "decoder": str,
    "clip_len": _whole,
    "stride": _whole,
    "step": _whole,
    "fps": lambda given: None if given == "none" else float(given),
}
"""Fields of a spec that an option may change."""
RUNNING: dict[str, Option] = {"batch": 8, "compile": False}
"""How a net runs, with the defaults."""
SETTINGS = (*RECIPE, *RUNNING, "weights", "crops", "precision", "device")
"""What every net takes."""


def recipe_changes(recipe: FeatureSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that change fields of a recipe. Raises BackboneError on what makes no sense."""
    name, changes = recipe.backbone, {}
    for key, convert in RECIPE.items():
        if key in given:
            try:
                changes[key] = convert(given[key])
            except ValueError:
                kind = "a number or none" if key == "fps" else "a whole number"
                raise BackboneError(f"{key} of {name} must be {kind}, got '{given[key]}'") from None
    if (fps := changes.get("fps")) is not None and not 0 < fps < 1000:
        raise BackboneError(f"fps of {name} must lie in (0, 1000) or be none, got {fps}")
    if changes.get("tail") in ("given", "equal"):
        raise BackboneError(f"tail of {name} must be {', '.join(TAILS[:-2])}, got '{changes['tail']}'")
    is_torch_side(changes.get("resize", recipe.resize))  # raises on what is no rule
    if (decoder := changes.get("decoder", recipe.decoder)) not in DECODERS:
        raise BackboneError(f"decoder must be one of {', '.join(DECODERS)}, got '{decoder}'")
    return changes


def as_default(preset: str, name: str, value: Option, default: Option) -> Option:
    """An option's value in the type of its default: "1e-5" for 0.001, "no" for True. Raises BackboneError."""
    words = {"yes": True, "true": True, "no": False, "false": False}
    try:
        if isinstance(default, bool):
            return value if isinstance(value, bool) else words[str(value)]
        found = type(default)(value)
        if isinstance(found, (int, float)) and (found != float(value) or not math.isfinite(found)):
            raise ValueError
        return found
    except (KeyError, ValueError):
        wanted = "yes or no" if isinstance(default, bool) else f"like {default!r}"
        raise BackboneError(f"option {name} of {preset} must be {wanted}, got '{value}'") from None
