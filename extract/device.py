"""Where torch runs, by the name that a person types."""

import torch


def device_of(name: str) -> str:
    """Checks "cpu", "cuda", "cuda:1" or "mps" and returns it; "auto" becomes "cuda" where there is a GPU, else "cpu".

    Raises ValueError when this machine or torch has none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device called '{name}'; wanted auto, cpu, cuda, cuda:0, cuda:1, ... or mps") from None
    if kind.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (kind.index or 0) >= count:
            raise ValueError(
                f"wanted {name}, found {count} CUDA devices for torch {torch.__version__}; see wsvad doctor"
            )
    elif kind.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"wanted mps, torch {torch.__version__} finds none here; use --device cpu")
    return name


def torch_device(name: str) -> torch.device:
    """As `device_of`, for running nets: from here on a GPU's float32 convolutions are of float32.

    cuDNN cuts their factors to 10 bits otherwise (TF32), in silence: features would differ from a CPU's in the third
    digit, under the same spec.
    """
    device = torch.device(device_of(name))
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device
