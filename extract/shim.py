"""torchvision next to a torch of another build, as package indexes hand them out: CUDA's torchvision, CPU's torch.

torchvision's compiled library then does not load, and its Python side fails at import because it registers fake kernels
for operators that nobody defined. The nets in it are plain Python and run all the same once those operators have a
schema. Compiled operators (nms, roi_align, deform_conv, JPEG decoding) stay unusable; no net here calls one.
"""

import importlib
import re
import sys
from types import ModuleType

import torch

from extract.backbones.base import BackboneError

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_ATTEMPTS = 8  # torchvision 0.28 asks for two operators, nms and qnms
_FRAGMENTS: list[torch.library.Library] = []  # a schema lives as long as the library object that defines it


def import_torchvision() -> ModuleType:
    """The package torchvision, with its missing operators declared if, and only if, its import fails for their lack.

    Raises BackboneError when it is not installed or fails for the operators even so; other errors pass as they are.
    """
    declared: set[str] = set()
    while True:
        try:
            return importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
            raise BackboneError(
                "this net is torchvision's or imports it, and torchvision is not installed: "
                "pip install -c constraints.txt -e '.[hub]'"
            ) from error
        except RuntimeError as error:
            found = _MISSING.search(str(error))
            if found is None:
                raise
            if found[1] in declared or len(declared) == _ATTEMPTS:
                raise BackboneError(
                    f"torchvision does not fit torch {torch.__version__} ({error}): install the two from one index, "
                    "pip install --force-reinstall torch torchvision; `wsvad doctor` shows what is there"
                ) from error
            _declare(found[1])
            declared.add(found[1])
            _forget()


def import_pytorchvideo_hub() -> ModuleType:
    """The module pytorchvideo.models.hub, which imports torchvision. Raises as `import_torchvision`."""
    import_torchvision()
    return importlib.import_module("pytorchvideo.models.hub")


def _declare(operator: str) -> None:
    # Never ahead of a failure: a schema defined here would clash with the compiled library's where that loads.
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # that of nms
    fragment.define(schema)  # type: ignore[no-untyped-call]
    _FRAGMENTS.append(fragment)


def _forget() -> None:
    """Drops the half imported package, so that the next import runs it from its start."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
