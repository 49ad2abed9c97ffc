"""Pickles read without running anything in them: Caffe2's dictionaries of numpy arrays, TorchScript's tensors.

A pickle can name any function and have it called. These readers know a handful of names that only build arrays, and
refuse every other one.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from extract.catalogue import WeightsError


def refusal(where: object, found: str) -> WeightsError:
    """The error for a file that wants more than arrays built."""
    return WeightsError(
        f"{where} wants {found}: reading that could run code of whoever made the file, so it is refused. If you trust "
        "its source, load it once with the library that wrote it, save the plain state_dict by torch.save, and pass "
        "that file by --weights"
    )


def damaged(where: object, why: object) -> WeightsError:
    """The error for a file that ends too early or holds what its format does not allow."""
    return WeightsError(f"{where} is cut short or damaged ({why}); fetch it again")


class _Restricted(pickle.Unpickler):
    """Knows the given names and no others."""

    def __init__(self, file: IO[bytes], known: dict[tuple[str, str], Any], where: Path) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 kept the bytes of arrays as text
        self._known = known
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for. Raises WeightsError when it is none of the known ones."""
        if (module, name) in self._known:
            return self._known[module, name]
        raise refusal(self._where, f"{module}.{name}")

    def load(self) -> Any:
        try:
            return super().load()
        except WeightsError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise damaged(self._where, f"{type(error).__name__}: {error}") from error


# -- Caffe2 -----------------------------------------------------------------------------------------------------------


def _encode(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes so, where it writes protocol 2
    if encoding != "latin1":
        raise ValueError(f"codec {encoding}")
    return text.encode("latin1")


def _numpy_names() -> dict[tuple[str, str], Any]:
    some = np.zeros(1, dtype=np.float32)
    builders: dict[tuple[str, str], Any] = {
        ("multiarray", "_reconstruct"): some.__reduce__()[0],
        ("multiarray", "scalar"): some[0].__reduce__()[0],
        ("numeric", "_frombuffer"): some.__reduce_ex__(5)[0],
    }
    cores = ("numpy.core", "numpy._core")  # before and since numpy 2
    known = {(f"{core}.{module}", name): build for core in cores for (module, name), build in builders.items()}
    return known | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode}


def read_arrays(path: Path) -> Any:
    """What a pickle of numpy arrays, numbers, texts, lists and dictionaries holds; Python 2's texts as latin-1.

    Raises WeightsError on any name that is not one of numpy's builders of arrays, and on a damaged file.
    """
    with path.open("rb") as file:
        return _Restricted(file, _numpy_names(), path).load()


# -- TorchScript ------------------------------------------------------------------------------------------------------

_STORAGES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_LISTS = ("int", "double", "bool", "tensor")


class _Module:
    """Stands for any TorchScript module: it only keeps its attributes."""

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


class _Script(_Restricted):
    """TorchScript's data.pkl: modules become `_Module`, tensors are read from the archive."""

    def __init__(self, archive: ZipFile, root: str, where: Path) -> None:
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in _LISTS},
            **{("torch", f"{name}Storage"): dtype for name, dtype in _STORAGES.items()},
        }
        super().__init__(archive.open(f"{root}/data.pkl"), known, where)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}  # tensors may share one

    def find_class(self, module: str, name: str) -> Any:
        """As `_Restricted`; the classes of the archive's own modules are not looked up, still less run."""
        return _Module if module.split(".")[0] == "__torch__" else super().find_class(module, name)

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        """("storage", type, key, device, count) -> the numbers under that key, as a row (count,)."""
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_script(path: Path) -> dict[str, Tensor]:
    """Every tensor of a TorchScript archive under its dotted name: parameters, buffers, attributes.

    The archive's code stays unread, and torch.jit, which would compile it, is not needed.

    Raises WeightsError on anything but modules, tensors, numbers, texts and lists of them, and on a damaged file.
    """
    with ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
        if f"{root}/data.pkl" not in archive.namelist():
            raise damaged(path, f"no {root}/data.pkl in it")
        return _tensors_of(_Script(archive, root, path).load(), "")


def _tensors_of(value: Any, name: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    found: dict[str, Tensor] = {}
    if isinstance(value, _Module):
        for key, child in value.attributes.items():
            found |= _tensors_of(child, f"{name}.{key}" if name else key)
    return found
