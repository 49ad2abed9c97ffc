"""Vectors that stand for classes: text embeddings of prompts, from a file or made up."""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from data.registry import suggest

NORMAL = "normal"  # the class of a video that shows none of the anomalous ones; class 0 wherever classes are numbered


def prompt_table(classes: Sequence[str], path: str | None, width: int) -> Tensor:
    """One vector for each class, in that order, (C, width) float32, as the file has them (not normalised).

    Args:
        classes: all names, "normal" included; by convention it is the first one.
        path: a .safetensors or .npz file of one vector (width,) for each class, under the class's name; names are
            compared exactly, others in the file are left alone. None: unit vectors in directions that the names alone
            decide, so that the classes are told apart without any text encoder.
        width: size of each vector.

    Raises:
        ValueError: no such file, another format, a class without a vector, a vector of another size, one that is not
            finite or is zero.
    """
    if path is None:
        return torch.from_numpy(np.stack([_made_up(name, width) for name in classes]))
    found = _read(path)
    if missing := [name for name in classes if name not in found]:
        raise ValueError(
            f"{path} has no vector for the class '{missing[0]}'.{suggest(missing[0], sorted(found))}. Add it as "
            f"'{missing[0]}', shape ({width},), or take prompts=null for made-up vectors"
        )
    table = np.zeros((len(classes), width), np.float32)
    for row, name in zip(table, classes, strict=True):
        vector = found[name]
        if vector.shape != (width,):
            raise ValueError(
                f"{path}: the vector of '{name}' is {vector.shape}, ({width},) was wanted; encode the prompts with a "
                f"model of width {width}, or set the head's width to that of the file"
            )
        row[:] = vector
        if not np.isfinite(row).all() or not row.any():
            raise ValueError(f"{path}: the vector of '{name}' is zero or not finite; encode its prompt again")
    return torch.from_numpy(table)


def _made_up(name: str, width: int) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _read(path: str) -> dict[str, NDArray[np.generic]]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"no file of prompts {path}; pass one with --set head.prompts=FILE.npz (or .safetensors), {{class: vector}}"
        )
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as found:
                return dict(found)
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as prompts: {error}") from error
    raise ValueError(f"prompts are read from .safetensors or .npz, got {path}")
