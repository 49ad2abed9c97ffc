"""The authors' checkpoints as runs of ours, and runs of ours as the authors' checkpoints."""

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
from mil.heads import heads
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
        dims: {modality: D_m} where the shapes alone do not say how features are split, e.g. {"rgb": 1152}.
        overrides: further `key.sub=value`.
        manifest_path: videos to evaluate on later; may come with `wsvad eval` instead.
        feature_roots: their features, one store per modality.

    Raises:
        PublishedError: the file is not that head's; every tensor that is missing, unknown or misshapen is named.
    """
    kind = heads.get(head)
    try:
        state = unwrapped(torch.load(file, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, AttributeError, ImportError, KeyError) as error:
        raise PublishedError(f"{file} cannot be read as weights alone: {error}") from error
    except Exception as error:  # pickle.UnpicklingError, which weights_only raises, has no narrower public parent
        raise PublishedError(f"{file} holds more than tensors, or is damaged: {error}") from error
    try:
        found, options = kind.infer({n: tuple(v.shape) for n, v in state.items()})
    except (KeyError, ValueError, IndexError) as error:
        raise PublishedError(
            f"{file} is not a checkpoint of '{head}': {error} is wanting or of another shape; "
            f"it holds {', '.join(sorted(state)[:6])}, ..."
        ) from error
    config = _config(head, recipe, options, overrides)
    dims = dict(dims or found)
    if sum(dims.values()) != sum(found.values()):
        raise PublishedError(f"{file} was trained on {sum(found.values())} features, --dims says {dims}")
    model = Model(config, dims)
    form = model.head.published()
    if form is None:
        raise PublishedError(f"nothing was published for '{head}' that could be imported")
    unused = take_in(model.head, form, state)
    stores = [FeatureStore(root) for root in feature_roots]
    videos: tuple[Video, ...] = manifest.read(manifest_path) if manifest_path else ()
    run = RunDir.create(out, config, videos, stores, ["checkpoint import", head, str(file)])
    weights = {**model.state_dict(), **{KEPT + n: v for n, v in unused.items()}}
    said = f"the authors of {file.name}"
    specs = [s.spec for s in stores]
    checkpoint.save(run.checkpoint, weights, config, dims, specs, selected_by=said, step=0)
    run.set_status("done", step=0, selected_by=said)
    count = sum(p.numel() for p in model.head.parameters())
    return Imported(run, config.recipe, count, tuple(unused))


def export_checkpoint(run: RunDir, out: Path) -> dict[str, Tensor]:
    """Writes a run's head as the authors' code loads it (torch.save of a state dict); returns what it wrote.

    Tensors that their module has and never uses are those that came with the import, else zeros. Raises PublishedError
    for a head without a published format, and for a run whose features are scaled: their code would not scale them.
    """
    kept = checkpoint.load(run.checkpoint)
    head, data = kept.model.head, kept.config.data
    form = head.published()
    if form is None:
        raise PublishedError(f"nothing was published for '{kept.config.head.name}', so there is no format to write")
    if data.scale == "standardize" or data.sqrt:
        raise PublishedError(
            f"this run scales its features itself (data.scale={data.scale}, data.sqrt={data.sqrt}), the authors' code "
            "does not; train with data.scale=none to export"
        )
    state = give_back(head, form, kept.kept)
    with aside(out) as temporary:
        torch.save(OrderedDict(state), temporary)
    return state


def _config(head: str, recipe: str | None, options: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The recipe's, with what the shapes tell about the head; their code's features are taken as they are."""
    own = [name for name in configs.recipe_names() if configs.head_of(name) == head and not name.startswith("motion_")]
    candidates = [recipe] if recipe else own
    if not candidates:
        return validate({"recipe": "", "head": {"name": head, **options}}, "the imported checkpoint")
    loaded = [configs.load(name, overrides) for name in candidates]
    if wrong := [c for c in loaded if c.head.name != head]:
        raise PublishedError(f"recipe '{wrong[0].recipe}' is of the head '{wrong[0].head.name}', not '{head}'")
    default = validate({"head": {"name": head}}, head).head.options

    def agrees(config: Config) -> int:
        return sum(config.head.options.get(k, default.get(k)) == v for k, v in options.items())

    best = max(loaded, key=agrees)  # the first of those that agree in most
    merged = HeadConfig(name=head, **{**best.head.options, **options})
    return validate(best.model_copy(update={"head": merged}).model_dump(), best.recipe)
