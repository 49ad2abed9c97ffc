"""What a published feature format is, and the registry of formats."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from data.crops import CAFFE_TEN as CAFFE_TEN
from data.crops import CENTER_FIVE as CENTER_FIVE
from data.crops import CENTER_TEN as CENTER_TEN
from data.crops import OVERSAMPLE_TEN as OVERSAMPLE_TEN
from data.crops import TORCHVISION_TEN as TORCHVISION_TEN
from data.importers.arrays import Source, open_npy
from data.registry import Registry, suggest
from data.types import FeatureSpec, Video

importers: Registry[Callable[..., "Format"]] = Registry("importer", "data.importers")
"""Functions `describe(**options) -> Format`; the first line of the docstring is shown by `wsvad ls`."""

AXES = ("tkd", "ktd", "td")


class RefusedError(ValueError):
    """A file cannot be imported; the message names it, the reason and the remedy."""


class AbsentError(RefusedError):
    """There is no file of a video at all."""


@dataclass(frozen=True)
class Format:
    """How one feature set lies on disk.

    Args:
        spec: what made the numbers, as far as it is known; `dim` is replaced by the D found.
        files: for each file of a video the names it may have, `{id}` standing for the video's id: one file for all
            crops, or one per crop in the order of `spec.crops`.
        axes: order of a file's axes as published: "tkd", "ktd", or "td" (one crop per file).
        declared: the user has said that `axes` holds; otherwise the axis of K entries is the crops', and a file where
            two axes have K entries is refused.
        dims: the D this format has; () any.
        open: opens a file, given its path and the key inside it; checks what can be checked before reading.
        key: name of the array inside the file, with `{id}` for the video's id; "" where there is only one.
        segments: exact T where the format cuts every video into equal parts.
        own_stride: the files say themselves how many frames lie between clips.
        inside, outside: names of folders, in lower case: the nearest such folder above a file must not be in `outside`.
            Tells apart files of one name, such as XD-Violence's RGB and Flow.
        check: further checks on the finished (K, T, D); returns a note ("" for none), or raises RefusedError.
    """

    spec: FeatureSpec
    files: tuple[tuple[str, ...], ...]
    axes: str = "td"
    declared: bool = False
    dims: tuple[int, ...] = ()
    open: Callable[[Path, str], Source] = open_npy
    key: str = ""
    segments: int = 0
    own_stride: bool = False
    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    check: Callable[[NDArray[Any]], str] | None = None

    def __post_init__(self) -> None:
        K = len(self.spec.crops)
        if self.axes not in AXES:
            raise ValueError(f"axes must be {', '.join(AXES)}, got '{self.axes}'")
        if len(self.files) not in (1, K):
            raise ValueError(f"{len(self.files)} files for the {K} crops {', '.join(self.spec.crops)}")
        if self.per_crop and K > 1 and self.axes != "td":
            raise ValueError(f"one file per crop has axes td, got {self.axes}; leave out axes, or {{k}} in the pattern")
        if not self.per_crop and self.axes == "td":
            raise ValueError(f"{K} crops in one file have axes tkd or ktd; declare --option axes=tkd or axes=ktd")

    @property
    def per_crop(self) -> bool:
        """Whether every crop has its own file, also when there is only one."""
        return len(self.files) == len(self.spec.crops)

    def names(self, video: Video) -> list[tuple[str, ...]]:
        """For each file of a video the names it may have."""
        return [tuple(name.replace("{id}", video.id) for name in names) for names in self.files]


def format_of(name: str, options: Mapping[str, object] | Sequence[str] = ()) -> Format:
    """The format of that name, with its options (a mapping, or texts "KEY=VALUE") in the types of its parameters.

    Every format also takes `dim=D`, for files of another D than the published ones.

    Raises UnknownNameError for the format, ValueError for an option it does not take or a value of the wrong type.
    """
    describe = importers.get(name)
    parameters = inspect.signature(describe).parameters
    given: dict[str, object] = {}
    said = parse_options(options)
    dim = said.pop("dim", None)
    for key, value in said.items():
        if key not in parameters:
            raise ValueError(f"format {name} takes no option '{key}'.{suggest(key, [*parameters, 'dim', 'list'])}")
        kind = parameters[key].annotation
        try:
            given[key] = kind(value)
        except ValueError:
            raise ValueError(f"option {key} of format {name} must be of type {kind.__name__}, got '{value}'") from None
    fmt = describe(**given)
    if dim is None:
        return fmt
    if not str(dim).isdecimal() or not int(str(dim)):
        raise ValueError(f"option dim of format {name} must be a positive number, got '{dim}'")
    return replace(fmt, spec=replace(fmt.spec, dim=int(str(dim))), dims=(int(str(dim)),))


def parse_options(options: Mapping[str, object] | Sequence[str]) -> dict[str, object]:
    """("axes=tkd", ...) -> {"axes": "tkd", ...}; a mapping stays as it is."""
    if isinstance(options, Mapping):
        return dict(options)
    if wrong := [text for text in options if "=" not in text]:
        raise ValueError(f"an option is written KEY=VALUE, got '{wrong[0]}'")
    return {text.partition("=")[0]: text.partition("=")[2] for text in options}


def per_crop(pattern: str, numbers: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """("{id}__{k}.npy", [0, 5]) -> (("{id}__0.npy",), ("{id}__5.npy",))."""
    return tuple((pattern.replace("{k}", str(k)),) for k in numbers)
