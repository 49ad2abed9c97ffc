"""Weights for a net: which file is meant, into the module strictly, or none at all, seeded.

`extract.catalogue` knows the published files, `extract.downloads` fetches them, `extract.state_files` reads any of the
formats they come in.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.registry import suggest
from extract.catalogue import CATALOGUE, WeightsError, find
from extract.file_checks import mismatch, sha256_of
from extract.state_files import read

__all__ = ["Chosen", "WeightsError", "load_strict", "randomise", "read", "resolve"]

_SHOWN = 5  # keys of a kind that a message lists
_GAIN = 1.5
_STREAMS = {2: ": weights of a flow net", 3: ": weights of an RGB net", 10: ": weights of a net for stacks of flow"}
_FAMILIES = (  # names that tell where a file comes from
    (r"Conv3d_1a_7x7\.", "piergiaj's I3D"),
    (r"conv3d_1a_7x7\.", "hassony2's I3D (also video_features', UR-DMU's)"),
    (r"res_conv1_bn_|res\d_\d+_branch", "Caffe2's video-nonlocal-net"),
    (r"blocks\.\d+\.(conv|multipathway|res_blocks|attn)", "pytorchvideo's hub"),
    (r"(backbone|cls_head)\.", "mmaction2"),
    (r"visual\.(conv1|proj|class_embedding)", "CLIP"),
    (r"conv1_7x7_s2", "TSN's BN-Inception"),
    (r"layer1\.0\.conv1\.", "a ResNet of torchvision's kind"),
    (r"conv3a?\.|fc8\.", "C3D"),
)
_COUNTER = "num_batches_tracked"  # batch norm's count of training steps; files saved before torch 0.4.1 lack it


@dataclass(frozen=True)
class Chosen:
    """What `--weights` means: a file, or with `path` None an untrained net of that seed.

    `identity` goes into the spec: the file's sha256, or "random:SEED".
    """

    path: Path | None
    identity: str
    seed: int = 0


def resolve(given: str | None, names: tuple[str, ...], *, preset: str) -> Chosen:
    """Which weights `--weights GIVEN` means for a preset whose published files are `names`, the default first.

    None: the first of `names`, which must have been fetched. "random", "random:7": an untrained net. Anything with a
    path separator, and any existing file, is a file; everything else is a name of the catalogue. So a file in the
    working folder wins over published weights of its name, and a file called "random" must be written "./random".

    Raises WeightsError saying what to type.
    """
    if given is None:
        if not names:
            raise WeightsError(
                f"{preset} has no published weights that wsvad knows: pass --weights FILE, or --weights random for an "
                "untrained net"
            )
        return _fetched(names[0], preset)
    if given.partition(":")[0] == "random":
        return _random(given)
    path = Path(given).expanduser()
    if path.is_file() or given.startswith("~") or {os.sep, os.altsep or os.sep} & set(given):
        return Chosen(path, sha256_of(path))
    if given in CATALOGUE:
        return _fetched(given, preset)
    known = suggest(given, [*names, *sorted(set(CATALOGUE) - set(names))])
    raise WeightsError(f"--weights {given}: no such file, and no published weights of that name.{known}, random:SEED")


def _fetched(name: str, preset: str) -> Chosen:
    entry = find(name)
    if not entry.path.is_file():
        raise WeightsError(
            f"{preset} wants the weights '{name}', and {entry.path} is not there: run `wsvad weights fetch {name}`, "
            "or pass --weights FILE, or --weights random for an untrained net"
        )
    if wrong := mismatch(entry, entry.path):
        raise WeightsError(
            f"{entry.path} is not '{name}': {wrong}. Run `wsvad weights fetch {name}` to replace it; "
            "weights of your own go by --weights FILE"
        )
    return Chosen(entry.path, sha256_of(entry.path))


def _random(given: str) -> Chosen:
    found = re.fullmatch(r"random(?::([0-9]{1,18}))?", given)
    if not found:
        raise WeightsError(f"--weights {given}: write random, or random:SEED with a whole number of up to 18 digits")
    seed = int(found[1] or 0)
    return Chosen(None, f"random:{seed}", seed)


def load_strict(net: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Copies every tensor of `state` into the module, which must have exactly these; `where` names the file.

    Only batch norm's `num_batches_tracked` may be absent or superfluous: no forward pass reads it.

    Raises WeightsError naming keys that are missing, unexpected or of another shape, and values that are no numbers.
    The module is then as it was.
    """
    own = net.state_dict()
    given = {k: v for k, v in state.items() if k in own or not _counts(k)}
    missing = [k for k in own if k not in given and not _counts(k)]
    unexpected = [k for k in given if k not in own]
    both = [k for k in own if k in given]
    shapes = [
        f"{k} is {tuple(given[k].shape)}, wanted {tuple(own[k].shape)}" for k in both if given[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        found = "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds if keys)
        raise WeightsError(
            f"{where} does not fit this net, {len(both)} of {len(own)} tensors are found by name. {found}"
            f".{_hint(own, given)}"
        )
    for key, value in given.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{where}: {key} holds infinities or no numbers at all; fetch the file again")
    net.load_state_dict(given, strict=False)


def _counts(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def _hint(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """A guess at what went wrong, as the end of a message."""
    for key, wanted in own.items():
        found = given.get(key)
        if found is None or found.shape == wanted.shape or wanted.ndim < 4:
            continue
        if found.ndim == wanted.ndim and found.shape[0] == wanted.shape[0] and found.shape[2:] == wanted.shape[2:]:
            return f" {key} takes {found.shape[1]} channels, not {wanted.shape[1]}{_STREAMS.get(found.shape[1], '')}."
        break
    for pattern, family in _FAMILIES:
        if any(re.match(pattern, key) for key in given) and not any(re.match(pattern, key) for key in own):
            return f" Its names are those of {family}."
    return " `wsvad weights ls` tells which preset takes which file."


@torch.no_grad()
def randomise(net: nn.Module, seed: int) -> None:
    """Fills an untrained net, the same for equal seeds, whatever order its parts were made in.

    Convolutions and linear maps: normal with variance 1.5 / fan_in. He's 2 / fan_in (He et al., ICCV 2015) lets the
    activations of 100 residual layers grow beyond float16, since untrained batch norms hold nothing back; with 1.5
    they stay below 4000, and 40 layers without shortcuts keep 1 % of their scale. Biases 0, norms' weights 1, running
    statistics 0 and 1. Embeddings, positions and tokens: normal with deviation 0.02.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Embedding)}
    for name, parameter in sorted(net.named_parameters()):
        last = name.rpartition(".")[2]
        if last.endswith("bias"):
            parameter.zero_()
        elif last.endswith("weight") and parameter.ndim < 2:
            parameter.fill_(1)
        elif last.endswith("weight") and name not in embeddings:
            parameter.normal_(std=(_GAIN / parameter[0].numel()) ** 0.5, generator=generator)
        else:
            parameter.normal_(std=0.02, generator=generator)
    for name, buffer in net.named_buffers():
        last = name.rpartition(".")[2]
        if last in ("running_mean", _COUNTER):
            buffer.zero_()
        elif last == "running_var":
            buffer.fill_(1)
