"""Scores of whole videos: nothing is resampled, every clip has one."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bag import collate
from mil.model import Model

_AT_ONCE = 8192  # crops times clips that are scored in one pass


@torch.no_grad()
def score_clips(model: Model, features: Mapping[str, NDArray[np.float32]], device: torch.device) -> NDArray[np.float64]:
    """Scores of every clip of one video; {modality: (K, N, D_m)} -> (N,) float64. Nothing is resampled.

    Of a long video the crops go one by one: attention over N clips needs N^2 numbers for each.
    """
    model.eval()
    bag = collate([features], np.zeros(1, np.int64)).to(device)
    crops = bag.crops
    if crops * bag.mask.shape[1] <= _AT_ONCE:
        return np.asarray(model(bag).scores[0].double().cpu().numpy(), dtype=np.float64)
    scores = torch.stack([model(bag.crop(k)).scores[0].double() for k in range(crops)]).mean(0)
    return np.asarray(scores.cpu().numpy(), dtype=np.float64)
