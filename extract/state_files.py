"""Files of weights -> a flat dictionary of tensors, whatever format their authors chose.

The format is told by the content, since names mislead (c3d.pickle is torch's, .pth may be anything). Nothing in a file
is ever run.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extract.catalogue import WeightsError
from extract.file_checks import foreign, require_file
from extract.unpickle import damaged, read_arrays, read_script, refusal

_WRAPPERS = ("model_state", "state_dict", "model", "net", "blobs")
_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save's magic number before 1.6
_PICKLE = (b"\x80", b"(dp", b"}q")  # protocol 2 and later, 0, 1


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, in the type that they are stored in.

    Known: torch.save's archives and its older pickles, safetensors, TorchScript archives, Caffe2 pickles, whose
    momenta are left out. Wrappers ("state_dict", "model_state", "model", "net", "blobs") and the prefix "module." are
    taken off; what lies beside the tensors (an epoch, a configuration) is ignored inside a wrapper only.

    Raises WeightsError on what is no file of weights, is cut short, or could only be read by running code from it.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(512)
    if what := foreign(head):
        raise WeightsError(f"{path} is no file of weights but {what}")
    state = _flat(_load(path, head), path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _load(path: Path, head: bytes) -> Any:
    if head.startswith(_ZIP):
        try:
            with ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return read_script(path)
        except BadZipFile as error:
            raise damaged(path, error) from error
        return _torch(path, mmap=True)
    if head.startswith(_TORCH_LEGACY):
        return _torch(path, mmap=False)
    if head.startswith(_PICKLE):
        return read_arrays(path)
    if head[8:9] == b"{":  # the length of a header in JSON, then the header
        try:
            return load_file(path)
        except SafetensorError as error:
            raise damaged(path, error) from error
    if head[257:262] == b"ustar":
        raise refusal(path, "the tar format of torch before 0.1.10")
    raise WeightsError(
        f"{path} is no file of weights that wsvad knows (torch, safetensors, TorchScript, Caffe2 pickle): it begins "
        f"with {head[:8]!r}"
    )


def _torch(path: Path, *, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file can raise anything
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise refusal(path, name[1]) from error
        raise damaged(path, str(error).partition("\n")[0] or type(error).__name__) from error


def _flat(found: Any, path: Path) -> dict[str, Tensor]:
    wrapped = False
    while isinstance(found, Mapping) and (inner := [k for k in _WRAPPERS if isinstance(found.get(k), Mapping)]):
        found, wrapped = found[inner[0]], True
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, wanted a dictionary of tensors by name")
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str):
            raise WeightsError(f"{path}: a tensor is called {name!r}, wanted a text")
        if isinstance(value, np.ndarray):
            if "momentum" not in name:
                state[name] = _from_numpy(value, name, path)
        elif isinstance(value, Tensor):
            state[name] = value.detach()
        elif not wrapped:
            raise WeightsError(f"{path}: '{name}' is a {type(value).__name__}, wanted a tensor")
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    return state


def _from_numpy(value: Any, name: str, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    except TypeError as error:
        raise WeightsError(f"{path}: '{name}' is an array of {value.dtype}, wanted numbers") from error
