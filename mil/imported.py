"""The authors' checkpoints as runs of ours, and runs of ours as the authors' checkpoints."""

import inspect
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import manifest
from data.files import aside
from data.store import FeatureStore
from data.types import Video
from mil import checkpoint
from mil import config as configs
from mil.bag import Bag
from mil.config import Config, HeadConfig, validate
from mil.heads import Head, heads
from mil.model import Model
from mil.published import KEPT, PublishedError, give_back, take_in, unwrapped
from mil.rundir import RunDir

_KINDS = ("f4", "f8", "i4", "i8")


@dataclass(frozen=True)
class Imported:
    """A run made of the authors' weights: where it lies, the recipe it took, what their module holds and never uses.

    `notes`: what else there is to know, a line each.
    """

    run: RunDir
    recipe: str
    parameters: int
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    stores = [FeatureStore(root) for root in feature_roots]
    dims = _dims(file, found, dims, {s.spec.modality: s.spec.dim for s in stores})
    fitting = [_filled(config, dims, state) for config in _configs(head, recipe, options, overrides)]
    _check_alike([model for model, _ in fitting], [config for _, config in fitting], file)
    model, config = fitting[0]
    form = model.head.published()
    if form is None:
        raise nothing
    unused = {n: state[n].detach().clone() for n in form.unused if n in state}  # theirs may share memory
    notes = [f"also fits: {', '.join(c.recipe for _, c in fitting[1:])}; --recipe chooses"] if fitting[1:] else []
    notes += form.notes
    videos: tuple[Video, ...] = manifest.read(manifest_path) if manifest_path else ()
    run = RunDir.create(out, config, videos, stores, ["checkpoint import", head, str(file)])
    weights = {**model.state_dict(), **{KEPT + n: v for n, v in unused.items()}}
    said = f"the authors of {file.name}"
    specs = [s.spec for s in stores]
    checkpoint.save(run.checkpoint, weights, config, dims, specs, selected_by=said, step=0)
    run.set_status("done", step=0, selected_by=said)
    count = sum(p.numel() for n, p in model.head.named_parameters() if n not in form.extra)
    return Imported(run, config.recipe, count, tuple(unused), tuple(notes))


def _dims(
    file: Path, found: Mapping[str, int], given: Mapping[str, int] | None, stored: Mapping[str, int]
) -> dict[str, int]:
    """Sizes by modality in the order of the authors' columns; `given` or `stored`, where shapes do not tell that order.

    Raises PublishedError where these are another size, or several modalities whose order nobody says.
    """
    if given and stored and dict(given) != dict(stored):
        raise PublishedError(f"--dims says {dict(given)}, --features holds {dict(stored)}; leave --dims out")
    wanted = given or stored or found
    if dict(wanted) == dict(found):
        return dict(found)
    if sum(wanted.values()) != sum(found.values()):
        raise PublishedError(f"{file} was trained on features of size {sum(found.values())}, these are {dict(wanted)}")
    if len(wanted) > 1 and not given:
        raise PublishedError(
            f"{file} does not say in which order its {sum(found.values())} columns hold {', '.join(wanted)}; "
            "say it with --dims, e.g. " + ",".join(f"{n}={d}" for n, d in wanted.items())
        )
    return dict(wanted)


def _filled(config: Config, dims: Mapping[str, int], state: Mapping[str, Tensor]) -> tuple[Model, Config]:
    model = Model(config, dims).eval()
    form = model.head.published()
    if form is not None:
        take_in(model.head, form, state)
    return model, config


@torch.no_grad()
def _check_alike(models: Sequence[Model], fitting: Sequence[Config], file: Path) -> None:
    """Raises PublishedError where recipes that fit the shapes equally well score, or smooth scores, differently."""
    if len(models) < 2:
        return
    generator = torch.Generator().manual_seed(0)
    features = {n: torch.randn(1, 1, 40, dim, generator=generator) for n, dim in models[0].dims.items()}
    bag = Bag(features, torch.ones(1, 40, dtype=torch.bool), torch.zeros(1))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # nobody asked for these scores
    try:
        scores = [model(bag).scores for model in models]
    finally:
        logging.disable(level)
    if any(not torch.equal(s, scores[0]) for s in scores) or any(c.evaluate != fitting[0].evaluate for c in fitting):
        raise PublishedError(
            f"the tensors of {file} fit several recipes, which do not score alike: "
            f"{', '.join(c.recipe for c in fitting)}; say which with --recipe"
        )


def _read(file: Path) -> dict[str, Tensor]:
    scalar = np.float64(0).__reduce__()[0]  # what unpickles a numpy number; older files name it by its older place
    numbers: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(k)) for k in _KINDS),
    ]
    try:
        # training scripts keep their best number beside the weights, as numpy has it; it is as harmless as a tensor
        with torch.serialization.safe_globals(numbers):
            return unwrapped(torch.load(file, map_location="cpu", weights_only=True))
    except (PublishedError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # whatever damaged bytes make of an unpickler; torch's own words are for programmers
        refused = re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", str(error))
        why = f"holds more than tensors ({refused[1]})" if refused else "is damaged, or no file of torch.save"
        raise PublishedError(f"{file} {why}; save its state_dict alone, and import that") from error


def export_checkpoint(run: RunDir, out: Path) -> dict[str, Tensor]:
    """Writes a run's head as the authors' code loads it (torch.save of a state dict); returns what it wrote.

    Tensors that their module has and never uses are those that came with the import, else zeros. What the authors keep
    in a file of its own is written beside, as `out`'s stem and the head's option for it, .npy. Raises PublishedError
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
    for ours, option in form.beside.items():
        with aside(out.with_name(f"{out.stem}.{option}.npy")) as temporary, temporary.open("wb") as file:
            np.save(file, head.state_dict()[ours].cpu().numpy())
    with aside(out) as temporary:
        torch.save(OrderedDict(state), temporary)
    return state


def _configs(head: str, recipe: str | None, options: Mapping[str, Any], overrides: Sequence[str]) -> list[Config]:
    """Those of the head's recipes that agree best with what the shapes tell, completed by it; `overrides` come last.

    Raises PublishedError for a recipe of another head, or one that standardizes features by training videos.
    """
    candidates = [recipe] if recipe else configs.published(head)
    loaded = [configs.load(name, overrides) for name in candidates]
    if wrong := [c for c in loaded if c.head.name != head]:
        raise PublishedError(f"recipe '{wrong[0].recipe}' is of the head '{wrong[0].head.name}', not '{head}'")
    if not loaded:
        loaded = [validate({"head": {"name": head}}, "the imported checkpoint")]
    default = {k: p.default for k, p in inspect.signature(heads.get(head)).parameters.items()}

    def agrees(config: Config) -> int:
        return sum(_plain(config.head.options.get(k, default.get(k))) == _plain(v) for k, v in options.items())

    best = [c for c in loaded if agrees(c) == max(map(agrees, loaded))]
    if scaled := [c for c in best if c.data.scale == "standardize"]:
        raise PublishedError(
            f"recipe '{scaled[0].recipe}' standardizes features by the training videos, and a checkpoint of the "
            "authors does not hold their mean and deviation; pass another --recipe, or --set data.scale=none"
        )
    found = []
    for config in best:
        values = config.model_copy(update={"head": HeadConfig(name=head, **{**config.head.options, **options})})
        completed = values.model_dump()
        for text in overrides:
            configs.override(completed, text)
        found.append(validate(completed, config.recipe))
    return found


def _plain(value: Any) -> Any:
    """Recipes hold lists where a signature, or `infer`, has tuples."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
