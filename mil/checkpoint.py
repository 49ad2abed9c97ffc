"""Checkpoints: weights in safetensors, everything else in a JSON beside them. Nothing is unpickled.

last.safetensors    the weights, and of which step they are
last.json           format, step, config, modalities and sizes, feature specs, what selected these weights
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.files import aside, write_text
from data.types import FeatureSpec
from mil.config import Config, validate
from mil.model import Model
from mil.published import KEPT

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is to be said beside its numbers.

    `kept`: of an imported one, the published tensors that no forward pass uses, by the authors' names.
    """

    model: Model
    config: Config
    specs: tuple[FeatureSpec, ...]
    selected_by: str
    step: int
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)


def save(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: Config,
    dims: Mapping[str, int],
    specs: Sequence[FeatureSpec],
    *,
    selected_by: str,
    step: int,
) -> None:
    """Writes `path`.safetensors and `path`.json, each in one step, the JSON last."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with aside(path.with_suffix(".safetensors")) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it: safetensors lets nobody else read
        save_file(own, temporary, metadata={"step": str(step)})
        temporary.chmod(mode)
    found = {
        "format": FORMAT,
        "step": step,
        "selected_by": selected_by,
        "dims": dict(dims),
        "specs": [json.loads(spec.to_json()) for spec in specs],
        "config": config.model_dump(mode="json"),
    }
    write_text(path.with_suffix(".json"), json.dumps(found, indent=2) + "\n")


def load_online(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """As `load`; a head that looks ahead with the options it was trained with has its `causal_options`, if any.

    Raises CheckpointError on a head that looks ahead all the same.
    """
    kept = load(path, device)
    if kept.model.head.lookback is None and (options := kept.model.head.causal_options):
        kept = load(path, device, options)
    if kept.model.head.lookback is None:
        raise CheckpointError(
            f"head '{kept.config.head.name}' scores a clip by later ones too; leave --online out, or train another, "
            "e.g. hlnet"
        )
    return kept


def load(path: Path, device: torch.device | str = "cpu", options: Mapping[str, Any] | None = None) -> Checkpoint:
    """Reads what `save` wrote, strictly, in evaluation mode. Raises CheckpointError.

    `options` of the head, instead of those it was trained with; such that the same weights fit.
    """
    text, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not (text.is_file() and weights.is_file()):
        raise CheckpointError(f"no checkpoint {text}; the run never got there: wsvad train ... --resume")
    try:
        found: dict[str, Any] = json.loads(text.read_text())
        if found["format"] != FORMAT:
            raise CheckpointError(f"{text} is of format {found['format']}, this wsvad reads {FORMAT}; upgrade wsvad")
        found["config"]["head"] |= options or {}
        config = validate(found["config"], str(text))
        model = Model(config, found["dims"], filled=True)
        with safe_open(weights, "pt") as file:
            of_step = (file.metadata() or {}).get("step", str(found["step"]))  # files of older versions do not say
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if of_step != str(found["step"]):
            raise CheckpointError(
                f"{text} is of step {found['step']}, the weights beside it of step {of_step}: saving was cut between "
                "the two, or is going on; wsvad train ... --resume"
            )
        kept = {name.removeprefix(KEPT): state.pop(name) for name in list(state) if name.startswith(KEPT)}
        model.load_state_dict(state, strict=True)
        specs = tuple(FeatureSpec.from_json(json.dumps(s)) for s in found["specs"])
        return Checkpoint(model.to(device).eval(), config, specs, found["selected_by"], int(found["step"]), kept)
    except (KeyError, TypeError, json.JSONDecodeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{text} and its weights do not belong together or are damaged: {error}") from error
