"""What a step is given: the videos that its number and the seed name, as one bag on the device."""

from collections.abc import Iterator

import numpy as np
import torch

from mil.bag import Bag
from mil.bags import BagDataset
from mil.config import Config
from mil.samplers import balanced_batch, mixed_batch, passes_batch, per_epoch


class Loader:
    """Bags of training, each a function of the seed and the step alone, so that a resumed run draws the same ones.

    Args:
        bags: the training videos.
        config: its sampler, seed and whether videos or their crops are drawn.
        device: where the bags are wanted.
    """

    def __init__(self, bags: BagDataset, config: Config, device: torch.device) -> None:
        self.bags, self.config, self.device = bags, config, device
        train = config.train
        # what is drawn: videos, or each of their crops
        self.crops = bags.crops if train.samples == "crops" else 1
        self.units = np.repeat(bags.labels, self.crops)
        self.per_epoch = per_epoch(self.units, train.sampler, train.batch if train.sampler == "mixed" else train.pairs)

    def draw(self, step: int) -> Bag:
        """The bag of that step, from 1."""
        train, seed = self.config.train, self.config.seed
        if train.sampler == "mixed":
            units = mixed_batch(len(self.units), train.batch, seed, step, shuffle=train.shuffle)
        elif train.sampler == "passes":
            units = passes_batch(self.units, train.pairs, seed, step, shuffle=train.shuffle)
        else:
            units = balanced_batch(self.units, train.pairs, seed, step)
        crops = units % self.crops if train.samples == "crops" else None
        return self.bags.bag(units // self.crops, crops, seed=(seed, step)).to(self.device)

    def each(self, step: int) -> Iterator[Bag]:
        """Every training video by itself, all crops, in the order of `bags`; random segments are those of `step`."""
        for i in range(len(self.bags)):
            yield self.bags.bag([i], seed=(self.config.seed, step)).to(self.device)
