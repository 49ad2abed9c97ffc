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
