"""What a step is given: the videos that its number and the seed name, as one bag on the device."""

from collections.abc import Iterator

import numpy as np
import torch

from mil.ahead import Ahead
from mil.bag import Bag
from mil.bags import BagDataset
from mil.config import Config
from mil.samplers import balanced_batch, mixed_batch, passes_batch, per_epoch


class Loader:
    """Bags of training, each a function of the seed and the step alone, so that a resumed run draws the same ones.

    Where a bag has to be read from the stores or copied to a GPU, the next step's is prepared in a thread.

    Args:
        bags: the training videos.
        config: its sampler, seed and whether videos or their crops are drawn.
        device: where the bags are wanted.
        prefetch: prepare the next bag in a thread; None: where it is worth it.
    """

    def __init__(self, bags: BagDataset, config: Config, device: torch.device, *, prefetch: bool | None = None) -> None:
        self.bags, self.config, self.device = bags, config, device
        train = config.train
        # what is drawn: videos, or each of their crops
        self.crops = bags.crops if train.samples == "crops" else 1
        self.units = np.repeat(bags.labels, self.crops)
        self.per_epoch = per_epoch(self.units, train.sampler, train.batch if train.sampler == "mixed" else train.pairs)
        self.steps = train.total(self.per_epoch)
        quick = bags.place(device)
        self.ahead = Ahead(self._make, self.steps) if (not quick if prefetch is None else prefetch) else None

    def draw(self, step: int) -> Bag:
        """The bag of that step, from 1. Raises StoreError for a damaged file."""
        return self._moved(self._make(step) if self.ahead is None else self.ahead.get(step))

    def each(self, step: int) -> Iterator[Bag]:
        """Every training video by itself, all crops, in the order of `bags`; random segments are those of `step`."""
        for i in range(len(self.bags)):
            yield self._moved(self.bags.bag([i], seed=(self.config.seed, step)))

    def close(self) -> None:
        """Ends what is prepared for a step that will not come. Without it that ends by itself a bag later."""
        if self.ahead is not None:
            self.ahead.close()

    def _make(self, step: int) -> Bag:
        train, seed = self.config.train, self.config.seed
        if train.sampler == "mixed":
            units = mixed_batch(len(self.units), train.batch, seed, step, shuffle=train.shuffle)
        elif train.sampler == "passes":
            units = passes_batch(self.units, train.pairs, seed, step, shuffle=train.shuffle)
        else:
            units = balanced_batch(self.units, train.pairs, seed, step)
        crops = units % self.crops if train.samples == "crops" else None
        bag = self.bags.bag(units // self.crops, crops, seed=(seed, step))
        if self.device.type != "cuda":
            return bag
        here = {n: x if x.is_cuda or x.is_pinned() else x.pin_memory() for n, x in bag.features.items()}
        return bag.with_features(here)

    def _moved(self, bag: Bag) -> Bag:
        """On the device, in float32: half the bytes go over the bus where segments are stored as float16."""
        bag = bag.to(self.device)
        return bag.with_features({name: x.float() for name, x in bag.features.items()})
