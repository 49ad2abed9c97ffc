"""Features of your own: .npy, .npz or .h5 files whose axes and clips are declared, since nothing in them tells."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.importers.arrays import Source, open_h5, open_npy, open_npz
from data.importers.base import AXES, Format, importers, per_crop
from data.registry import suggest
from data.types import FeatureSpec


@dataclass(frozen=True)
class _Declared:
    axes: str
    pattern: str
    crops: str
    name: str
    modality: str
    clip_len: int
    stride: int
    segments: int


@importers.register("npy")
def npy(
    *,
    axes: str = "td",
    pattern: str = "{id}.npy",
    crops: str = "",
    name: str = "npy",
    modality: str = "rgb",
    clip_len: int = 16,
    stride: int = 16,
    segments: int = 0,
) -> Format:
    """Your own .npy: options axes=td|tkd|ktd, pattern={id}.npy or {id}_{k}.npy, crops=10 or names, clip_len, stride.

    Args:
        axes: td (T, D), tkd (T, K, D) or ktd (K, T, D).
        pattern: the files' names; with {k} there is one (T, D) file per crop, numbered from 0.
        crops: K, or the K names in order, joined by commas.
        name: what the features are called in reports: `imported:NAME`.
        modality: rgb, flow, audio or text.
        clip_len: frames that a row shows.
        stride: frames from row to row.
        segments: T, where every video is cut into so many equal parts; clip_len and stride then mean nothing.
    """
    given = _Declared(axes, pattern, crops, name, modality, clip_len, stride, segments)
    return _format(given, open_npy)


@importers.register("npz")
def npz(
    *,
    axes: str = "td",
    pattern: str = "{id}.npz",
    key: str = "",
    crops: str = "",
    name: str = "npz",
    modality: str = "rgb",
    clip_len: int = 16,
    stride: int = 16,
    segments: int = 0,
) -> Format:
    """Your own .npz: the options of npy, and key=NAME of the array where a file holds several."""
    given = _Declared(axes, pattern, crops, name, modality, clip_len, stride, segments)
    return _format(given, open_npz, key)


@importers.register("h5")
def h5(
    *,
    axes: str = "td",
    pattern: str = "{id}.h5",
    key: str = "features",
    crops: str = "",
    name: str = "h5",
    modality: str = "rgb",
    clip_len: int = 16,
    stride: int = 16,
    segments: int = 0,
) -> Format:
    """Your own HDF5: the options of npy, and key=features; one file for all videos: pattern=all.h5 with key={id}."""
    if "{id}" not in pattern + key:
        raise ValueError(f"one file '{pattern}' for all videos needs the id in the key; declare --option key={{id}}")
    given = _Declared(axes, pattern, crops, name, modality, clip_len, stride, segments)
    return _format(given, open_h5, key)


def _format(given: _Declared, opener: Callable[[Path, str], Source], key: str = "") -> Format:
    if given.axes not in AXES:
        raise ValueError(f"option axes takes {', '.join(AXES)}, got '{given.axes}'.{suggest(given.axes, list(AXES))}")
    crops = _crops(given.crops)
    if given.axes != "td" and not given.crops:
        raise ValueError(f"axes {given.axes} need the crops: --option crops=10, or their names joined by commas")
    spec = FeatureSpec(
        f"imported:{given.name}",
        1,
        weights="unknown",
        modality=given.modality,
        clip_len=given.clip_len,
        stride=given.stride,
        tail="equal" if given.segments else "given",
        resize="unknown",
        crops=crops,
        decoder="unknown",
        options={"segments": given.segments} if given.segments else {},
    )
    files = per_crop(given.pattern, range(len(crops))) if "{k}" in given.pattern else ((given.pattern,),)
    return Format(spec, files, given.axes, True, open=opener, key=key, segments=given.segments)


def _crops(text: str) -> tuple[str, ...]:
    if text.isdecimal() and int(text) > 1:
        return tuple(f"crop{k}" for k in range(int(text)))
    return tuple(name.strip() for name in text.split(",")) if text and text != "1" else ("full",)
