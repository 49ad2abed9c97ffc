"""What is trained and kept: the scaling of the features and the head, as one module."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.config import Config
from mil.heads import HeadOutput, heads
from mil.resample import Array


class FeatureScaler(nn.Module):
    """Scales the features of one modality, the same way in training and everywhere after.

    Args:
        dim: D_m.
        scale: "none"; "l2", each vector to norm 1; "standardize", each dimension to mean 0 and deviation 1, as fitted
            on the training videos.
        sqrt: signed square root first.
        clamp: limit of standardized values, in deviations: a test video unlike any training video stays finite.
    """

    def __init__(self, dim: int, scale: str, *, sqrt: bool = False, clamp: float | None = None) -> None:
        super().__init__()
        self.scale, self.sqrt, self.clamp = scale, sqrt, clamp
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, videos: Callable[[], Iterable[Array]]) -> None:
        """Mean and deviation over all crops and clips of the training videos, (K, N, D_m) each, in float64.

        `videos` begins anew at every call: none is kept.
        """
        if self.scale != "standardize":
            return

        def rows() -> Iterator[Tensor]:
            return (self._root(torch.from_numpy(x)).flatten(0, 1).double() for x in videos())

        counted = [(len(x), x.sum(0)) for x in rows()]
        count = sum(n for n, _ in counted)
        mean = torch.stack([total for _, total in counted]).sum(0) / count
        # two passes: the difference of squares cancels for features far from 0
        deviation = (torch.stack([(x - mean).square().sum(0) for x in rows()]).sum(0) / count).sqrt()
        self.mean.copy_(mean)
        # a dimension that never moves in training says nothing: it stays near 0 instead of exploding later
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D_m) -> (..., D_m)."""
        x = self._root(x)
        if self.scale == "l2":
            return nn.functional.normalize(x, dim=-1)
        if self.scale == "standardize":
            x = (x - self.mean) / self.deviation
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        return x

    def _root(self, x: Tensor) -> Tensor:
        return x.sign() * x.abs().sqrt() if self.sqrt else x


class Model(nn.Module):
    """A scaler per modality and a head: features as stored -> scores.

    Args:
        config: the experiment.
        dims: {modality: D_m}, in the order in which the head sees them.
        filled: weights and buffers are loaded right after; files that the head's options name are not read.
    """

    def __init__(self, config: Config, dims: Mapping[str, int], *, filled: bool = False) -> None:
        super().__init__()
        data = config.data
        self.dims = dict(dims)
        self.scalers = nn.ModuleDict(
            {name: FeatureScaler(dim, data.scale, sqrt=data.sqrt, clamp=data.clamp) for name, dim in dims.items()}
        )
        kind = heads.get(config.head.name)
        options = {n: v for n, v in config.head.options.items() if not (filled and n in kind.reads)}
        self.head = kind(*kind.sizes(dims), **options)
        self.noise = config.train.noise

    def forward(self, bag: Bag) -> HeadOutput:
        """Scores (B, T); padded rows stay 0 through the scaling."""
        return self.head(self.scaled(bag))  # type: ignore[no-any-return]

    def scaled(self, bag: Bag) -> Bag:
        """The bag as the head sees it; in training with `train.noise` added."""
        features = {}
        for name, x in bag.features.items():
            if name not in self.dims or x.shape[-1] != self.dims[name]:
                raise ValueError(
                    f"the head was made for {self.dims}, got {name} features of size {x.shape[-1]}; an "
                    "imported head learns the names of its modalities from --dims, e.g. --dims flow=1024"
                )
            x = self.scalers[name](x)
            if self.noise and self.training:
                x = x + self.noise * torch.randn_like(x)
            features[name] = x * bag.mask[:, None, :, None]
        return bag.with_features({n: features[n] for n in self.dims})
