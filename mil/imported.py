"""The authors' checkpoints as runs of ours, and runs of ours as the authors' checkpoints."""

import inspect
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import manifest
from data.files import aside
from data.store import FeatureStore
from data.types import Video
from mil import checkpoint
from mil import config as configs
from mil.config import Config, HeadConfig, validate
from mil.heads import Head, heads
from mil.model import Model
from mil.published import KEPT, PublishedError, give_back, take_in, unwrapped
from mil.rundir import RunDir


@dataclass(frozen=True)
class Imported:
    """A run made of the authors' weights: where it lies, the recipe it took, what their module holds and never uses."""

    run: RunDir
    recipe: str
    parameters: int
    unused: tuple[str, ...]


def import_checkpoint(
    head: str,
    file: Path,
    out: Path,
    *,
    recipe: str | None = None,
    dims: Mapping[str, int] | None = None,
    overrides: Sequence[str] = (),
    manifest_path: Path | None = None,
    feature_roots: Sequence[Path] = (),
) -> Imported:
    """Reads an authors' checkpoint (weights only, strictly) and writes a finished run at `out`.

    Args:
        head: name of the head.
        file: what the authors' code saved: a state dict, bare or in a wrapper, with or without "module.".
        out: the run's folder; must be free.
        recipe: whose options and evaluation it gets; None: the head's first that the shapes fit.
        dims: {modality: D_m} where the shapes alone do not say how features are split; None: as in `feature_roots`,
            else as the head's shapes suggest.
        overrides: further `key.sub=value`.
        manifest_path: videos to evaluate on later; may come with `wsvad eval` instead.
        feature_roots: their features, one store per modality.

    Raises:
        PublishedError: the file is not that head's; every tensor that is missing, unknown or misshapen is named.
        FileNotFoundError: there is no such file.
    """
    kind = heads.get(head)
    nothing = PublishedError(f"nothing was published for '{head}' that could be imported")
    if kind.published is Head.published:
        raise nothing
    state = _read(file)
    try:
        found, options = kind.infer({n: tuple(v.shape) for n, v in state.items()})
    except (KeyError, ValueError, IndexError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else f"a shape is another ({error})"
        held = ", ".join(sorted(state)[:6]) + (", ..." if len(state) > 6 else "")
        raise PublishedError(f"{file} is not a checkpoint of '{head}': {why}; it holds {held}") from error
    config = _config(head, recipe, options, overrides)
    stores = [FeatureStore(root) for root in feature_roots]
    stored = {s.spec.modality: s.spec.dim for s in stores}
    dims = dict(dims or stored or found)
    if sum(dims.values()) != sum(found.values()):
        raise PublishedError(f"{file} was trained on features of size {sum(found.values())}, these are {dims}")
    if stored and stored != dims:
        raise PublishedError(f"--dims says {dims}, --features holds {stored}; leave --dims out")
    model = Model(config, dims)
    form = model.head.published()
    if form is None:
        raise nothing
    unused = take_in(model.head, form, state)
    videos: tuple[Video, ...] = manifest.read(manifest_path) if manifest_path else ()
    run = RunDir.create(out, config, videos, stores, ["checkpoint import", head, str(file)])
    weights = {**model.state_dict(), **{KEPT + n: v for n, v in unused.items()}}
    said = f"the authors of {file.name}"
    specs = [s.spec for s in stores]
    checkpoint.save(run.checkpoint, weights, config, dims, specs, selected_by=said, step=0)
    run.set_status("done", step=0, selected_by=said)
    count = sum(p.numel() for p in model.head.parameters())
    return Imported(run, config.recipe, count, tuple(unused))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return unwrapped(torch.load(file, map_location="cpu", weights_only=True))
    except (PublishedError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # whatever damaged bytes make of an unpickler; torch's own words are for programmers
        refused = re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error))
        why = f"holds more than tensors ({refused[1]})" if refused else "is damaged, or no file of torch.save"
        raise PublishedError(f"{file} {why}; save its state_dict alone, and import that") from error


def export_checkpoint(run: RunDir, out: Path) -> dict[str, Tensor]:
    """Writes a run's head as the authors' code loads it (torch.save of a state dict); returns what it wrote.

    Tensors that their module has and never uses are those that came with the import, else zeros. Raises PublishedError
    for a head without a published format, for a run whose features are scaled (their code would not scale them), and
    where `out` exists.
    """
    if out.exists():
        raise PublishedError(f"{out} exists and is never overwritten; choose another --out")
    kept = checkpoint.load(run.checkpoint)
    head, data = kept.model.head, kept.config.data
    form = head.published()
    if form is None:
        raise PublishedError(f"nothing was published for '{kept.config.head.name}', so there is no format to write")
    if data.scale != "none" or data.sqrt:
        raise PublishedError(
            f"this run scales its features itself (data.scale={data.scale}, data.sqrt={data.sqrt}), the authors' code "
            "does not; train with data.scale=none to export"
        )
    state = give_back(head, form, kept.kept)
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as temporary:
        torch.save(OrderedDict(state), temporary)
    return state


def _config(head: str, recipe: str | None, options: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The recipe's, with what the shapes tell about the head.

    Raises PublishedError for a recipe of another head, or one that standardizes features by training videos.
    """
    own = [name for name in configs.recipe_names() if configs.head_of(name) == head and not name.startswith("motion_")]
    candidates = [recipe] if recipe else own
    if not candidates:
        values: dict[str, Any] = {"recipe": "", "head": {"name": head}}
        for text in overrides:
            configs.override(values, text)
        loaded = [validate(values, "the imported checkpoint")]
    else:
        loaded = [configs.load(name, overrides) for name in candidates]
    if wrong := [c for c in loaded if c.head.name != head]:
        raise PublishedError(f"recipe '{wrong[0].recipe}' is of the head '{wrong[0].head.name}', not '{head}'")
    default = {k: p.default for k, p in inspect.signature(heads.get(head)).parameters.items()}

    def agrees(config: Config) -> int:
        return sum(_plain(config.head.options.get(k, default.get(k))) == _plain(v) for k, v in options.items())

    best = max(loaded, key=agrees)  # the first of those that agree in most
    if best.data.scale == "standardize":
        raise PublishedError(
            f"recipe '{best.recipe}' standardizes features by the training videos, and a checkpoint of the authors "
            "does not hold their mean and deviation; pass another --recipe, or --set data.scale=none"
        )
    merged = HeadConfig(name=head, **{**best.head.options, **options})
    return validate(best.model_copy(update={"head": merged}).model_dump(), best.recipe)


def _plain(value: Any) -> Any:
    """Recipes hold lists where a signature, or `infer`, has tuples."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
