"""Frozen nets as backbones: one class from a preset's description to features, on any device.

A preset subclasses `Net` and says what it is (`recipe`, `weight_files`, ...), how its module is built (`build`) and how
published key names become that module's (`rename`). Resizing, cropping, normalising, precision, memory layout and
batches are the same for all and live here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.crops import crops_of
from data.registry import suggest
from data.types import FeatureSpec
from extract import weights as weight_store
from extract.backbones.base import Backbone, BackboneError
from extract.backbones.settings import RUNNING, SETTINGS, Option, as_default, recipe_changes
from extract.decode import is_torch_side
from extract.device import torch_device
from extract.folding import fold_batch_norms
from extract.nets.conv3d import quicken
from extract.transforms import crop, resize

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Net(Backbone):
    """A frozen net.

    Args:
        weights: a file; a name from `wsvad weights ls`; "random" or "random:SEED" for an untrained net. By default
            the first of `weight_files`, which must have been fetched.
        crops: "1", "5", "10" of the preset's order, or names joined by commas.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: what is stored, "float16" or "float32".
        precision: arithmetic of the forward pass, "float32", "bfloat16" or "float16".
        compile: let torch.compile build the net's kernels (and CUDA graphs on a GPU) first; takes up to a minute.
        batch: clips per forward pass on a GPU. A CPU takes one clip at a time, which is as fast there.
        clip_len, stride, step, tail, fps, resize, decoder: instead of the preset's; fps "none" takes the video's own
            frames.
        switches: those that the preset declares.

    Raises BackboneError on an option that makes no sense, WeightsError on weights that are not there or do not fit.
    """

    recipe: ClassVar[FeatureSpec]
    """The preset with its default options; `weights` in it says nothing."""
    weight_files: ClassVar[tuple[str, ...]] = ()
    """Names in the catalogue of weights, the default first."""
    crop_order: ClassVar[str] = ""
    """Name of the order of crops (data.crops.ORDERS) that "5" and "10" mean; "" where only the whole frame goes in."""
    crop_size: ClassVar[int] = 224
    min_frames: ClassVar[int] = 1
    """The shortest clip that the net takes."""

    def __init__(
        self,
        *,
        weights: str | None = None,
        crops: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        precision: str = "float32",
        compile: bool = False,  # noqa: A002  # the name users know
        batch: int = 8,
        clip_len: int | None = None,
        stride: int | None = None,
        step: int | None = None,
        tail: str | None = None,
        fps: float | None = None,
        resize: str | None = None,
        decoder: str | None = None,
        **switches: Option,
    ) -> None:
        options: dict[str, Any] = {
            "weights": weights, "crops": crops, "dtype": dtype, "precision": precision, "clip_len": clip_len,
            "stride": stride, "step": step, "tail": tail, "fps": fps, "resize": resize, "decoder": decoder,
            "batch": batch, "compile": compile, **switches,
        }  # fmt: skip
        chosen = self._settle(options)
        self.device = torch_device(device)
        self.batch = 1 if self.device.type == "cpu" else int(self._running["batch"])
        self._notes: list[str] = []
        self._rows = 0  # rows of a forward pass on a GPU; halved when its memory does not suffice
        self._dtype = PRECISIONS[precision]
        self.state = None if chosen.path is None else weight_store.read(chosen.path)
        self.net = self.build()
        if self.state is None:
            weight_store.randomise(self.net, chosen.seed)
        else:
            weight_store.load_strict(self.net, self.rename(self.state), where=str(chosen.path))
        self.state = None
        self._prepare_net(compile_net=bool(self._running["compile"]))

    @classmethod
    def plan(cls, **options: Any) -> FeatureSpec:
        """See Backbone. Reads the weights file once, for its hash, and builds nothing."""
        ghost = cls.__new__(cls)
        ghost._settle(options)
        return ghost.spec

    def _settle(self, given: dict[str, Any]) -> weight_store.Chosen:
        """Sets `spec` and `options` from what was given; what is None was not. Raises BackboneError."""
        try:
            return self._settled(given)
        except BackboneError:
            raise
        except ValueError as error:
            raise BackboneError(f"{self.recipe.backbone}: {error}") from error

    def _settled(self, given: dict[str, Any]) -> weight_store.Chosen:
        recipe, name = self.recipe, self.recipe.backbone
        given = {k: v for k, v in given.items() if v is not None}
        precision = str(given.get("precision", recipe.compute))
        if precision not in PRECISIONS:
            raise BackboneError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
        if unknown := [k for k in given if k not in SETTINGS and k not in self.switches]:
            raise BackboneError(
                f"backbone {name} takes no option '{unknown[0]}'.{suggest(unknown[0], list(self.switches))}"
            )
        self.options = {k: as_default(name, k, given.get(k, v), v) for k, v in self.switches.items()}
        self._running = {k: as_default(name, k, given.get(k, v), v) for k, v in RUNNING.items()}
        if int(self._running["batch"]) < 1:
            raise BackboneError(f"batch must be at least 1, got {self._running['batch']}")
        changes = recipe_changes(recipe, given)
        crops = given.get("crops")
        if self.crop_order:
            self.options = {**self.options, "crop_size": self.crop_size, "crop_order": self.crop_order}
            if crops is not None:
                changes["crops"] = crops_of(str(crops), self.crop_order)
        elif crops not in (None, "1", "full"):
            raise BackboneError(f"{name} has no crops, got --crops {crops}; leave it out")
        chosen = weight_store.resolve(given.get("weights"), self.weight_files, preset=name)
        if str(self.options.get("flow", "")).startswith("raft"):
            net = "raft_small" if self.options["flow"] == "raft_small" else "raft_large"
            flow = weight_store.resolve(str(given.get("flow_weights", "")) or None, (net,), preset=name)
            self.options["flow_weights"] = flow.identity
        else:
            self.options.pop("flow_weights", None)
        options = {**recipe.options, **self.options}
        if self._running["compile"]:  # other kernels, other roundings
            options["compile"] = True
        self.spec = replace(recipe, weights=chosen.identity, compute=precision, options=options, **changes)
        self.check(self.spec)
        return chosen

    # -- what a preset says ----------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """The module, with `self.options` and `self.spec` known. It maps (M, C, T, h, w), as `normalise` gives it,
        to (M, D)."""
        raise NotImplementedError

    state: dict[str, Tensor] | None
    """The weights file while `build` runs, for modules that depend on it (the number of classes); else None."""

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict -> one with the module's key names, every parameter in it, nothing else."""
        return state

    def check(self, spec: FeatureSpec) -> None:
        """Raises BackboneError when a changed option cannot work."""
        if spec.clip_len < self.min_frames:
            raise BackboneError(
                f"{spec.backbone} needs clips of {self.min_frames} frames or more, got clip_len={spec.clip_len}"
            )

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 crops (K, T, h, w, C) -> (K, C, T, h, w) in the net's precision, (x - mean) / std in float32."""
        x = crops.to(torch.float32)
        if self.spec.mean:
            x = x.sub_(torch.tensor(self.spec.mean, device=x.device))
        if self.spec.std:
            x = x.div_(torch.tensor(self.spec.std, device=x.device))
        return x.to(self._dtype).permute(0, 4, 1, 2, 3)

    def prepare(self, clip: Tensor) -> Tensor:
        """One clip (T, H, W, C) uint8, on the device -> the net's input (K, C, T, h, w)."""
        if is_torch_side(self.spec.resize):
            clip = resize(clip, self.spec.resize)
        if self.crop_order:
            crops = crop(clip, self.spec.crops, self.crop_size, self.crop_order, flow=self.spec.modality == "flow")
        else:
            crops = clip[None]
        return self.normalise(crops)

    # -- features --------------------------------------------------------------------------------------------------

    def extract(self, clips: NDArray[np.uint8], fps: NDArray[np.float64]) -> NDArray[np.float32]:
        """clips (B, T, H, W, C) -> (B, K, D)."""
        return self.submit(list(clips), list(fps))()

    def submit(self, clips: Sequence[NDArray[Any]], fps: Sequence[float]) -> Callable[[], NDArray[np.float32]]:
        """Starts the forward pass of up to `batch` clips, of one size or of several; the result waits for it."""
        with torch.inference_mode():
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):  # an event is recorded on the current device's stream
                    return self._submit_to_device(clips)
            # one crop at a time: for another batch size a convolution may take another path, with other roundings, and
            # on a CPU I3D and X3D-S take 1.3 and 2.2 times as long for ten
            done = torch.stack([self._one_by_one(torch.from_numpy(clip)) for clip in clips]).cpu().numpy()
            return lambda: done

    def _one_by_one(self, clip: Tensor) -> Tensor:
        return torch.cat([self.forward(x[None]) for x in self.prepare(clip.to(self.device))])

    def forward(self, x: Tensor) -> Tensor:
        """The net's input (M, C, T, h, w) -> features (M, D), float32."""
        found: Tensor = self.net(x)
        return found.float()

    @classmethod
    def default_spec(cls) -> FeatureSpec:
        """The preset with default options; `weights` in it says nothing."""
        return cls.recipe

    def take_notes(self) -> list[str]:
        """Batches that had to be halved since the last call."""
        notes, self._notes = self._notes, []
        return notes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, C, T, h, w) of a clip as the module takes it."""
        channels = 2 if self.spec.modality == "flow" else 3
        return (1, channels, self.spec.clip_len, self.crop_size, self.crop_size)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _prepare_net(self, *, compile_net: bool) -> None:
        self.net.eval().requires_grad_(False)
        fold_batch_norms(self.net, self.input_shape)
        quicken(self.net)
        self.net.to(device=self.device, dtype=self._dtype)
        for parameter in self.net.parameters():  # the layout in which convolutions run fastest, 1.6x on a CPU
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
            elif parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if compile_net:
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"  # CUDA graphs
            self.net = torch.compile(self.net, mode=mode)  # type: ignore[assignment]

    def _submit_to_device(self, clips: Sequence[NDArray[Any]]) -> Callable[[], NDArray[np.float32]]:
        sent = [torch.from_numpy(clip).pin_memory().to(self.device, non_blocking=True) for clip in clips]
        count, crops = len(clips), len(self.spec.crops)
        features: Tensor | None = None
        while features is None:
            rows = self._rows or self.batch * crops
            try:
                features = self._in_passes(sent, rows)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            if features is None:  # not in the handler: until its end, the error holds all that was computed
                self._rows = max(rows // 2, 1)
                self._notes.append(
                    f"the GPU's memory does not suffice for {rows} crops at once: {self._rows} from here on"
                )
                torch.cuda.empty_cache()
        host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        host.copy_(features, non_blocking=True)
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()

        def result() -> NDArray[np.float32]:
            ready.synchronize()
            return np.array(host.numpy().reshape(count, crops, -1))

        return result

    def _in_passes(self, clips: Sequence[Tensor], rows: int) -> Tensor:
        x = torch.cat([self.prepare(clip) for clip in clips])
        return torch.cat([self._padded(part, rows) for part in torch.split(x, rows)])

    def _padded(self, x: Tensor, rows: int) -> Tensor:
        """Every forward pass has the same shape: the kernels, and so the bits, do not depend on how clips meet."""
        count = len(x)
        if count < rows:
            x = torch.cat([x, x.new_zeros(rows - count, *x.shape[1:])])
        return self.forward(x)[:count].clone()  # CUDA graphs write every result to one place
