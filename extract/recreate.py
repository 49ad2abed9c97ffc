"""The backbone that made some features, made again from their spec: for videos that are to be scored like them."""

from pathlib import Path
from typing import Any

from data.registry import UnknownNameError
from data.types import FeatureSpec, SpecMismatchError
from extract.backbones import Backbone, BackboneError, backbones, create, option_names, plan
from extract.catalogue import CATALOGUE
from extract.file_checks import sha256_of

_FIELDS = ("dtype", "tail", "resize", "decoder", "clip_len", "stride", "step")


def recreate(spec: FeatureSpec, *, weights: Path | str | None = None, device: str = "auto") -> Backbone:
    """A backbone of exactly that spec.

    Args:
        spec: of the features that a head was trained on.
        weights: the file, where it is no fetched one of the catalogue; its sha256 must be that of the spec.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; of a net.

    Raises:
        BackboneError: no such backbone here (features that somebody else made), its weights are not here, or it makes
            other features in this version; the message names the field that differs.
    """
    try:
        kind = backbones.get(spec.backbone)
    except UnknownNameError as error:
        raise BackboneError(
            f"these features were not made by a backbone of wsvad but imported ('{spec.backbone}'), so that no video "
            "can be made into the like; extract with a backbone from `wsvad ls backbones` and train on that"
        ) from error
    options = _options(spec, kind, weights, device)
    try:
        plan(spec.backbone, **options).check_equal(spec, f"backbone {spec.backbone} of this version")
    except SpecMismatchError as error:
        raise BackboneError(str(error).split("; ")[0] + "; train on features that this version extracts") from error
    return create(spec.backbone, **options)


def _options(spec: FeatureSpec, kind: type[Backbone], weights: Path | str | None, device: str) -> dict[str, Any]:
    known = option_names(kind)
    found: dict[str, Any] = {name: getattr(spec, name) for name in _FIELDS}
    found |= {"fps": "none" if spec.fps is None else spec.fps, "precision": spec.compute, "device": device}
    found |= {"crops": ",".join(spec.crops), "compile": bool(spec.options.get("compile", False))}
    found |= {name: value for name, value in spec.options.items() if name in kind.switches}
    found["weights"] = _weights(spec, weights)
    return {name: value for name, value in found.items() if name in known and value is not None}


def _weights(spec: FeatureSpec, given: Path | str | None) -> str | None:
    """What `--weights` would have to be."""
    if spec.weights == "none":
        return None
    if spec.is_random:
        return spec.weights
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise BackboneError(f"--weights {path}: no such file")
        if (found := sha256_of(path)) != spec.weights:
            raise BackboneError(
                f"--weights {path} has sha256 {found[:12]}..., the features were made with {spec.weights[:12]}...; "
                "pass the file that made them"
            )
        return str(path)
    for entry in CATALOGUE.values():
        if entry.path.is_file() and sha256_of(entry.path) == spec.weights:
            return str(entry.path)
    raise BackboneError(
        f"the weights of {spec.backbone} with sha256 {spec.weights[:12]}... are not among the fetched ones "
        "(`wsvad weights ls`); pass the file that made the features with --weights"
    )
