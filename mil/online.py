"""Scores while a video runs: the clips that matter are kept, each new one costs one forward pass. Memory is bounded.

Letters: K crops, D_m feature size of one modality, N clips of a video.
"""

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bag import Bag
from mil.config import EvalConfig
from mil.model import Model
from mil.protocol import smooth

WINDOW = 64  # clips: 41 s of 16 frames at 25 a second


class OnlineScorer:
    """Clips of one video in, their final scores out, in order.

    With a causal head (`head.lookback` is a number) a clip is scored when it comes, from the last `lookback` clips: the
    score is that of the whole video, but for rounding (products of matrices of other shapes). Any other head scores
    clip t when clip t + `delay` has come, in the window of at most `window` clips that ends there; the last `delay`
    clips of a video are scored in its last window. What such a head scores depends on the window; window and delay
    as long as the video give the scores of the whole video.

    The recipe's smoothing comes on top, with a delay of its own: the scores are `mil.protocol.smooth` of the series.

    Args:
        model: in evaluation mode from here on.
        rules: the recipe's smoothing; `evaluate.smooth` = 1 is none.
        window: clips that a head that is not causal sees, at least 1; None: 64.
        delay: clips that it sees behind the one it scores, below `window`; None: a quarter of the window.

    Attributes:
        lookback: clips that a score tells of, of a causal head; None otherwise.
        window: clips that are kept.
        delay: a clip's score is final when so many further clips have come: the head's and the smoothing's delay.

    Raises:
        ValueError: a window or a delay that cannot be, or that is given for a causal head, which has neither.
    """

    def __init__(self, model: Model, rules: EvalConfig, *, window: int | None = None, delay: int | None = None) -> None:
        self.model = model.eval()
        self.lookback = model.head.lookback
        self.window, self._ahead = _window_of(self.lookback, window, delay)
        self._smoother = Smoother(rules.smooth, rules.smoothing)
        self.delay = self._ahead + self._smoother.delay
        buffers = [*model.parameters(), *model.buffers()]
        self._device = buffers[0].device if buffers else torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        """Forgets the video: the next clip is clip 0 of another one."""
        self._kept: deque[dict[str, NDArray[np.float32]]] = deque(maxlen=self.window)
        self._smoother.reset()
        self._came = self._scored = self._given = 0

    def push(self, features: Mapping[str, NDArray[np.float32]]) -> list[tuple[int, float]]:
        """The next clip's features {modality: (K, D_m)}, one crop shared by those of the others -> (clip, score) of
        all clips whose score is now final.

        Raises ValueError on other sizes than the model's, and on features that are not finite.
        """
        for name, x in features.items():
            if x.ndim != 2 or not np.isfinite(x).all():
                what = f"shape {x.shape}" if x.ndim != 2 else "a value that is NaN or infinite"
                raise ValueError(f"clip {self._came}: {name} features must be (K, D) and finite, got {what}")
        self._kept.append({name: np.array(x, np.float32) for name, x in features.items()})
        self._came += 1
        return self._number(self._smoother.push(s) for s in self._score(self._came - self._ahead))

    def close(self) -> list[tuple[int, float]]:
        """The video has ended: (clip, score) of all clips that still waited. The next clip is clip 0 of another one."""
        found = self._number(self._smoother.push(s) for s in self._score(self._came))
        found += self._number([self._smoother.close()])
        self.reset()
        return found

    def _score(self, stop: int) -> list[float]:
        """Scores of the clips up to `stop` that have none, from what is kept."""
        count = stop - self._scored
        if count <= 0:
            return []
        end = len(self._kept) - (self._came - stop)
        self._scored = stop
        return self._forward()[end - count : end].tolist()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _forward(self) -> NDArray[np.float64]:
        """The scores of all clips that are kept, as of a video of their own, (T,)."""
        names = self._kept[0].keys()
        stacked = {name: np.stack([clip[name] for clip in self._kept], axis=1) for name in names}
        features = {name: torch.from_numpy(x)[None].to(self._device) for name, x in stacked.items()}
        mask = torch.ones(1, len(self._kept), dtype=torch.bool, device=self._device)
        scores = self.model(Bag(features, mask, torch.zeros(1, device=self._device))).scores[0]
        return scores.cpu().double().numpy()  # type: ignore[no-any-return]

    def _number(self, batches: Iterable[list[float]]) -> list[tuple[int, float]]:
        found = [score for batch in batches for score in batch]
        self._given += len(found)
        return list(zip(range(self._given - len(found), self._given), found, strict=True))


class Smoother:
    """`mil.protocol.smooth` of a series that is still coming, to the bit.

    Args:
        clips, how: as `smooth` takes them.

    Attributes:
        delay: a score is final when so many further ones have come, at most.
    """

    def __init__(self, clips: int, how: str = "centred") -> None:
        self._clips, self._how = clips, how
        self._behind = clips // 2 if how == "centred" else 0
        self.delay = clips // 2 if how == "centred" else clips - 1
        self.reset()

    def reset(self) -> None:
        """Forgets the series."""
        self._kept: deque[float] = deque()
        self._before = 0  # of the kept ones, those whose smoothed score is out

    def push(self, score: float) -> list[float]:
        """The next score -> the smoothed ones that are now final."""
        self._kept.append(score)
        if len(self._kept) <= self._before + self.delay:
            return []
        if self._how == "blocks":
            return self.close()
        found = self._smoothed()[self._before]
        self._before += 1
        if self._before > self._behind:
            self._kept.popleft()
            self._before -= 1
        return [found]

    def close(self) -> list[float]:
        """The series, or a block, ends here: the smoothed scores that still waited."""
        found = self._smoothed()[self._before :] if self._kept else []
        self.reset()
        return found

    def _smoothed(self) -> list[float]:
        return smooth(np.array(self._kept), self._clips, self._how).tolist()  # type: ignore[no-any-return]


def _window_of(lookback: int | None, window: int | None, delay: int | None) -> tuple[int, int]:
    """Clips that are kept, and those that have to come before one is scored."""
    if lookback is not None:
        if window is not None or delay is not None:
            raise ValueError(
                f"this head is causal: it looks back on {lookback} clips and waits for none; leave out --window and "
                "--delay"
            )
        return lookback, 0
    window = WINDOW if window is None else window
    if window < 1:
        raise ValueError(f"a window has at least 1 clip, got {window}")
    delay = window // 4 if delay is None else delay
    if not 0 <= delay < window:
        raise ValueError(f"a delay of {delay} clips is not within a window of {window}; --delay is 0 to {window - 1}")
    return window, delay
