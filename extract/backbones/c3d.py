"""C3D on Sports-1M as its authors run it (Tran et al., ICCV 2015): the features of Sultani et al., CVPR 2018."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.types import FeatureSpec
from extract import weights as weight_store
from extract.backbones.base import BackboneError, backbones
from extract.backbones.net import Net
from extract.catalogue import WeightsError
from extract.nets.c3d import C3D, POOL5, rename
from extract.transforms import crop

_CUBE = (3, 16, 128, 171)  # channels, frames, height, width
_CHANNEL_MEANS = (90.25, 97.66, 101.41)  # blue, green, red: the cube's own


@backbones.register("c3d_sports1m")
class C3DSports1M(Net):
    """C3D (Sports-1M), fc6 behind its ReLU, as its authors run it, centre crop, 4096-d.

    171 x 128 whatever the aspect, as OpenCV resizes (no antialiasing); BGR minus the mean of the training set, a cube
    of its own per pixel and frame, cut where the crop is; 16 frames, T = floor(n / 16).

    mean: "cube"; "channels", the cube's three averages; or the file of a cube (.npy, or Caffe's .binaryproto). By
    default "cube" with trained weights and "channels" with random ones; the spec says which.
    pool5: "ceil" as trained, "symmetric" as the torch ports, which feed RGB besides. mmaction2's copy of the weights
    has no classifier and is read too.
    """

    weight_files = ("c3d_sports1m", "c3d_sports1m_mmaction2")
    switches = {"mean": "auto", "pool5": "ceil"}  # noqa: RUF012  # as the base declares it
    crop_order = "center_first"
    crop_size = 112
    min_frames = 16
    gmac = 38.55
    params_m = 79.99
    paper = "https://arxiv.org/abs/1412.0767"
    licence = "BSD-3-Clause (code); none is stated for the weights"
    recipe = FeatureSpec(
        backbone="c3d_sports1m",
        dim=4096,
        tail="drop",
        resize="171x128:cv2_linear",
        color="bgr",
        crops=("center",),
    )

    def build(self) -> nn.Module:
        """The 487-class net."""
        if self.options["mean"] == "cube":
            cube = torch.from_numpy(read_cube(self._cube_file)).permute(1, 2, 3, 0)
            names, size = self.spec.crops, self.crop_size
            self._cube = crop(cube, names, size, self.crop_order, flow=False).to(self.device)
        return C3D(pool5=str(self.options["pool5"]))

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """DavideA's or mmaction2's names, of a net with any number of classes or without classifier."""
        named = rename(state)
        if isinstance(self.net, C3D):
            self.net.fit_classifier(len(named.get("fc8.bias", ())))
        return named

    def check(self, spec: FeatureSpec) -> None:
        """16 frames, a pooling, a mean that is there and fits. Completes the spec: which mean it is."""
        super().check(spec)
        if spec.clip_len != 16:
            raise BackboneError(f"{spec.backbone} takes clips of 16 frames, got clip_len={spec.clip_len}")
        if spec.options["pool5"] not in POOL5:
            raise BackboneError(
                f"{spec.backbone}: pool5 must be one of {', '.join(POOL5)}, got '{spec.options['pool5']}'"
            )
        mean = str(spec.options["mean"])
        if mean == "auto":
            mean = "channels" if spec.is_random else "cube"
        if mean == "channels":
            self.options = {**self.options, "mean": mean}
            self.spec = replace(spec, options=self.options, mean=_CHANNEL_MEANS)
            return
        if not spec.resize.startswith("171x128:"):
            raise BackboneError(
                f"{spec.backbone}: the mean cube is of 171x128 pixels, got resize={spec.resize}; "
                "pass mean=channels for another size"
            )
        try:
            chosen = weight_store.resolve(None if mean == "cube" else mean, ("c3d_mean_cube",), preset=spec.backbone)
        except WeightsError as error:
            raise WeightsError(
                f"{spec.backbone} subtracts a mean cube, and there is none for mean={mean}: run `wsvad weights fetch "
                "c3d_mean_cube`, or pass mean=FILE with a .npy or .binaryproto, or mean=channels for its three averages"
            ) from error
        if chosen.path is None:
            raise BackboneError(f"{spec.backbone}: mean must be cube, channels or a file, got '{mean}'")
        self._cube_file = chosen.path
        self.options = {**self.options, "mean": "cube", "mean_cube": chosen.identity}
        self.spec = replace(spec, options=self.options)

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 crops (K, 16, 112, 112, 3) -> (K, 3, 16, 112, 112), minus the mean."""
        if self.options["mean"] == "channels":
            return super().normalise(crops)
        return (crops.float() - self._cube).to(self._dtype).permute(0, 4, 1, 2, 3)


def read_cube(path: Path) -> NDArray[np.float32]:
    """The mean cube (3, 16, 128, 171), BGR, from a .npy of that shape or (1, 3, 16, 128, 171), or Caffe's BlobProto.

    Raises WeightsError on a file that cannot be read and on any other shape.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\x93NUMPY"):
            cube = np.load(path, allow_pickle=False)
        else:
            cube = np.frombuffer(_blob(data), "<f4").reshape(1, *_CUBE)
    except (OSError, ValueError, IndexError) as error:
        raise WeightsError(f"{path}: no mean cube can be read from it ({error}); fetch it again") from error
    if cube.shape not in (_CUBE, (1, *_CUBE)) or cube.dtype.kind != "f" or not np.isfinite(cube).all():
        raise WeightsError(f"{path}: wanted a mean cube of {_CUBE}, found {cube.shape} {cube.dtype}")
    return np.array(cube.reshape(_CUBE), dtype=np.float32)


def _blob(data: bytes) -> bytes:
    """The values of a BlobProto: its first packed field of the cube's size, whatever number the schema gives it (C3D's
    Caffe has a field for the length that others lack)."""
    wanted = 4 * math.prod(_CUBE)
    for value in _packed_fields(data):
        if len(value) == wanted:
            return value
    raise ValueError(f"no field of {wanted} bytes in it")


def _packed_fields(data: bytes) -> Iterator[bytes]:
    """The length-delimited fields of a protocol buffer message, in order."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        kind = number() & 7
        if kind == 0:
            number()
        elif kind == 2:
            size = number()
            yield data[place : place + size]
            place += size
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError("neither a .npy nor a protocol buffer")
