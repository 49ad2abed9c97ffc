"""Optical flow as a stream: n frames in, n flow frames out, each pair computed once, by an algorithm with a name.

Conventions: flow (H, W, 2) in pixels per frame of the *resized* picture, [..., 0] to the right, [..., 1] downwards,
from a frame to the next one. n frames have n - 1 flows; the last one is repeated, so that frame numbers stay those of
the video; a video of one frame has zero flow. A net trained on the flow of one algorithm sees another's as noise of its
own kind (kinetics-i3d, issues 36 and 107): algorithm and quantisation belong in `FeatureSpec.options`.

Names: algorithms "tvl1", "dis", "raft", "raft_small"; quantisations "none", "denseflow", "round128".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.registry import suggest
from extract.decode import Frame, Reader
from extract.wrapped import WrappedReader

Flow = NDArray[np.float32]  # (H, W, 2)
Picture = TypeVar("Picture")

BOUND = 20.0
"""Pixels per frame: faster motion counts as that fast, in every quantisation."""
QUANTISATIONS = ("none", "denseflow", "round128")
ZERO_MOTION = {"none": 0, "denseflow": 127, "round128": 128}
"""What no motion becomes."""
_UNITS = 255 / (2 * BOUND)  # 6.375 steps of eight bits per pixel, exact in binary


def quantise(flow: Flow, name: str) -> NDArray[Any]:
    """Flow in pixels, clipped to +-20, as it goes into a net.

    none: float32. denseflow: floor((f + 20) * 255 / 40), uint8, as denseflow and mmaction2 write JPEGs (zero is 127).
    round128: round(128 + 255/40 f) clipped to 0..255, uint8, as the flow nets of I3D are fed (zero is 128).
    Raises ValueError on another name.
    """
    clipped: Flow = np.clip(flow, -BOUND, BOUND).astype(np.float32, copy=False)
    if name == "none":
        return clipped
    if name == "denseflow":
        shifted: Flow = (clipped + np.float32(BOUND)) * np.float32(_UNITS)
        return shifted.astype(np.uint8)  # a cast cuts off
    if name == "round128":
        centred: Flow = np.rint(128 + clipped * np.float32(_UNITS))
        return np.minimum(centred, 255).astype(np.uint8)  # +20 is 255.5
    raise ValueError(f"quantise must be one of {', '.join(QUANTISATIONS)}, got '{name}'")


def dequantise(values: NDArray[Any], name: str) -> Flow:
    """Quantised flow back in pixels: the least flow that denseflow gives a value, the middle one of round128's."""
    x = values.astype(np.float32)
    if name == "none":
        return x
    if name == "denseflow":
        return x / np.float32(_UNITS) - np.float32(BOUND)
    if name == "round128":
        return (x - 128) / np.float32(_UNITS)
    raise ValueError(f"quantise must be one of {', '.join(QUANTISATIONS)}, got '{name}'")


class FlowAlgorithm(ABC, Generic[Picture]):
    """Flow between consecutive frames. One object serves many videos."""

    batch = 1
    """Pairs that one call of `flows` takes; more is faster where a GPU computes them."""
    identity = "none"
    """What its weights are, as in FeatureSpec.weights."""

    @abstractmethod
    def prepare(self, frame: Frame) -> Picture:
        """RGB (H, W, 3) uint8 or gray (H, W) uint8 -> what `flows` compares; done once per frame."""

    @abstractmethod
    def flows(self, pictures: Sequence[Picture]) -> list[Flow]:
        """2 to `batch` + 1 prepared frames in order -> the flows between neighbours, one fewer."""


class GreyFlow(FlowAlgorithm[Frame]):
    """A classical method on grey levels (OpenCV)."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def prepare(self, frame: Frame) -> Frame:
        """Luma, by OpenCV's integer weights as in the tools that made the published flow."""
        import cv2

        return frame if frame.ndim == 2 else np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)

    def flows(self, pictures: Sequence[Frame]) -> list[Flow]:
        """Pair by pair, each from scratch: a flow depends on its two frames alone."""
        return [np.asarray(self.method.calc(a, b, None), np.float32) for a, b in pairwise(pictures)]


def tvl1() -> GreyFlow:
    """TV-L1 (Zach, Pock, Bischof, DAGM 2007) with OpenCV's defaults, which everybody's published TV-L1 flow has."""
    import cv2

    return GreyFlow(cv2.optflow.DualTVL1OpticalFlow.create())


def dis(*, preset: str = "medium") -> GreyFlow:
    """DIS (Kroeger et al., ECCV 2016); preset "ultrafast", "fast" or "medium"."""
    import cv2

    presets = {
        "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
        "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
        "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    }
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got '{preset}'")
    return GreyFlow(cv2.DISOpticalFlow.create(presets[preset]))


def _raft(size: str) -> Callable[..., FlowAlgorithm[Any]]:
    def make(**options: Any) -> FlowAlgorithm[Any]:
        from extract.nets.raft import RaftFlow

        return RaftFlow(size, **options)

    return make


ALGORITHMS: dict[str, Callable[..., FlowAlgorithm[Any]]] = {
    "tvl1": tvl1,
    "dis": dis,
    "raft": _raft("large"),
    "raft_small": _raft("small"),
}


def flow_algorithm(name: str, **options: Any) -> FlowAlgorithm[Any]:
    """Makes the algorithm `name`: "tvl1"; "dis" (preset); "raft", "raft_small" (weights, device, iterations, batch).

    Raises ValueError on an unknown name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"no flow algorithm called '{name}'.{suggest(name, list(ALGORITHMS))}")
    return ALGORITHMS[name](**options)


class FlowReader(WrappedReader):
    """A reader of frames as a reader of flow: the same protocol, one flow frame (H, W, 2) per frame.

    Args:
        reader: gives RGB (or gray, for all but RAFT); closed with this one.
        algorithm: what `flow_algorithm` makes; one object may serve many readers, one after the other.
        quantise: "denseflow" and "round128" give uint8, "none" float32, as `quantise` says.
        resize: a rule of `extract.transforms` whose filter the decoder does not have, "none" otherwise. Frames are
            resized before the flow is computed, which is what the published features do.

    Memory holds a batch of frames, however long the video.
    """

    def __init__(
        self,
        reader: Reader | WrappedReader,
        algorithm: FlowAlgorithm[Any],
        *,
        quantise: str = "denseflow",
        resize: str = "none",
    ) -> None:
        if quantise not in QUANTISATIONS:
            raise ValueError(f"quantise must be one of {', '.join(QUANTISATIONS)}, got '{quantise}'")
        super().__init__(reader)
        self._algorithm = algorithm
        self._quantise = quantise
        self._resize = resize

    def __iter__(self) -> Iterator[NDArray[Any]]:
        pictures: list[Any] = []
        shape: tuple[int, ...] = ()
        last: NDArray[Any] | None = None
        for frame in self.reader:
            small = self._resized(frame)
            shape = small.shape[:2]
            pictures.append(self._algorithm.prepare(small))
            if len(pictures) > self._algorithm.batch:
                for last in self._flows(pictures):
                    yield last
                pictures = pictures[-1:]
        if len(pictures) > 1:
            for last in self._flows(pictures):
                yield last
        if shape:
            yield quantise(np.zeros((*shape, 2), np.float32), self._quantise) if last is None else last

    def _flows(self, pictures: list[Any]) -> Iterator[NDArray[Any]]:
        return (quantise(flow, self._quantise) for flow in self._algorithm.flows(pictures))

    def _resized(self, frame: Frame) -> Frame:
        if self._resize == "none":
            return frame
        import torch

        from extract.transforms import resize

        return resize(torch.from_numpy(frame[None]), self._resize)[0].numpy()
