"""The backbone that made some features, made again from their spec: for videos that are to be scored like them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.registry import UnknownNameError
from data.types import FeatureSpec, SpecMismatchError
from extract.backbones import Backbone, BackboneError, backbones, create, option_names, plan
from extract.backbones.net import Net
from extract.catalogue import CATALOGUE, WeightFile
from extract.device import device_of
from extract.file_checks import sha256_of
from extract.streams import Reading

Files = Sequence[Path | str]

_FIELDS = ("dtype", "tail", "resize", "decoder", "clip_len", "stride", "step")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLES = {"mean_cube": "mean"}
"""Options of a spec that are the identity of a file, and what the option is called that names the file."""


def recreate(spec: FeatureSpec, weights: Files | Path | str | None = None, device: str = "auto") -> Backbone:
    """A backbone of exactly that spec.

    Args:
        spec: of the features that a head was trained on.
        weights: files that made them, where they are no fetched ones of the catalogue, in any order: of the net, of the
            net that computes its optical flow, of C3D's mean cube. Each is recognised by its sha256.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; of a net.

    Raises:
        BackboneError: no such backbone here (features that somebody else made), its weights are not here, a file that
            made nothing of these features, or it makes other features in this version; the message names what differs.
    """
    files = _as_files(weights)
    unrelated(files, [spec])
    try:
        kind = backbones.get(spec.backbone)
    except UnknownNameError as error:
        raise BackboneError(
            f"no backbone of wsvad made these features ('{spec.backbone}'): they were imported, and no video can be "
            "made into the like; extract with a backbone from `wsvad ls backbones` and train on that. If it is a "
            "backbone of your own, name its file: --plugin FILE.py"
        ) from error
    options = _options(spec, kind, files, device)
    try:
        plan(spec.backbone, **options).check_equal(spec, f"backbone {spec.backbone} of this version")
    except SpecMismatchError as error:
        raise BackboneError(str(error).split("; ")[0] + "; train on features that this version extracts") from error
    return create(spec.backbone, **options)


def reading_of(
    spec: FeatureSpec, weights: Files | Path | str | None = None, device: str = "cpu", damaged: str = "refuse"
) -> Reading:
    """How a video is read for a backbone of that spec: with the weights that computed its optical flow.

    Arguments as for `recreate`; `device` is where such a net runs and nvdec decodes. Raises BackboneError.
    """
    where = device_of(device)
    if "flow_weights" not in spec.options:
        return Reading(damaged, where)
    return Reading(damaged, where, _file(spec, str(spec.options["flow_weights"]), _as_files(weights), "optical flow"))


def files_of(spec: FeatureSpec, weights: Files) -> list[Path]:
    """Of files of several specs, those that made features of this one."""
    made = _identities(spec).values()
    return [path for path in _as_files(weights) if sha256_of(path) in made]


def unrelated(weights: Files, specs: Sequence[FeatureSpec]) -> None:
    """Raises BackboneError naming the first of the files that made features of none of these specs, or is not there."""
    wanted = {digest: f"{name} of {spec.backbone}" for spec in specs for name, digest in _identities(spec).items()}
    for path in _as_files(weights):
        if not path.is_file():
            raise BackboneError(f"--weights {path}: no such file; pass the path of a file that made the features")
        if (found := sha256_of(path)) not in wanted:
            made = ", ".join(f"{what}: {digest[:12]}..." for digest, what in wanted.items()) or "no files at all"
            raise BackboneError(
                f"--weights {path} has sha256 {found[:12]}..., the features were made with {made}; pass the file that "
                "made them, or leave it out"
            )


def _as_files(weights: Files | Path | str | None) -> list[Path]:
    given = [] if weights is None else [weights] if isinstance(weights, (str, Path)) else weights
    return [Path(path).expanduser().absolute() for path in given]


def _identities(spec: FeatureSpec) -> dict[str, str]:
    """The files that made features, {what it is: sha256}."""
    found = {"weights": spec.weights, **{k: str(spec.options.get(k, "")) for k in ("flow_weights", *_TABLES)}}
    return {name: digest for name, digest in found.items() if _SHA256.fullmatch(digest)}


def _options(spec: FeatureSpec, kind: type[Backbone], files: Sequence[Path], device: str) -> dict[str, Any]:
    """What `create` would have to be given. Only what is not the preset's default: nobody else knows what a backbone
    makes of a value that says nothing new."""
    known, default = option_names(kind), kind.default_spec()
    found: dict[str, Any] = {name: getattr(spec, name) for name in _FIELDS}
    found |= {"fps": "none" if spec.fps is None and issubclass(kind, Net) else spec.fps}
    found |= {"precision": spec.compute, "crops": ",".join(spec.crops)}
    usual = {name: getattr(default, name) for name in (*_FIELDS, "fps")}
    usual |= {"fps": "none" if default.fps is None and issubclass(kind, Net) else default.fps}
    usual |= {"precision": default.compute, "crops": ",".join(default.crops)}
    found = {name: value for name, value in found.items() if value != usual[name]}
    found |= {name: spec.options[name] for name in known if name in spec.options}
    if "flow_weights" in spec.options:
        found["flow_weights"] = _file(spec, str(spec.options["flow_weights"]), files, "optical flow")
    for identity, option in _TABLES.items():
        if identity in spec.options:
            found[option] = _file(spec, str(spec.options[identity]), files, f"option '{option}'")
    if spec.weights != "none":
        found["weights"] = _file(spec, spec.weights, files, "weights")
    if kind.uses_torch:
        found["device"] = device
    return {name: value for name, value in found.items() if name in known}


def _file(spec: FeatureSpec, identity: str, files: Sequence[Path], what: str) -> str:
    """What an option has to be so that it means that identity. Raises BackboneError where no such file is here."""
    if not _SHA256.fullmatch(identity):
        return identity  # random:SEED
    here = [entry for entry in _likely_first(identity) if entry.path.is_file()]
    for path in (*files, *(entry.path for entry in here)):
        if sha256_of(path) == identity:
            return str(path)
    published = [e.name for e in _likely_first(identity) if e.sha256 and identity.startswith(e.sha256)]
    fetch = f"run `wsvad weights fetch {published[0]}`" if published else "fetch it (`wsvad weights ls`)"
    raise BackboneError(
        f"the file that made the {what} of {spec.backbone} (sha256 {identity[:12]}...) is not among the fetched ones; "
        f"{fetch}, or name it with --weights FILE"
    )


def _likely_first(identity: str) -> list[WeightFile]:
    """The catalogue, but for files that are known to be others: hashing takes a second for each."""
    fit = [e for e in CATALOGUE.values() if not e.sha256 or identity.startswith(e.sha256)]
    return sorted(fit, key=lambda entry: not entry.sha256)
