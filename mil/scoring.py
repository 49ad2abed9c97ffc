"""Scores of whole videos: nothing is resampled, every clip has one. Videos of similar length go through together."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bag import Bag, collate
from mil.heads import Head
from mil.layers.winograd import keeping
from mil.model import Model
from mil.precision import Forward
from mil.resample import Array

Key = TypeVar("Key", str, int)
Item = Mapping[str, Array]
"""One video: {modality: (K, N, D_m)}, a modality of one crop shared by the crops of the others."""

_AT_ONCE = 2048  # rows of a pass: videos x crops x clips. Of T clips each, attention takes at most 2048 x T weights
_PASSES = 16  # at a time
_WEIGHTS = 2**28  # of attention, T x T for a crop, in those passes of one video that go on at a time
_SIMILAR = 0.75  # the shortest video of a batch has at least this share of the longest one's clips


def score_videos(
    model: Model,
    lengths: Mapping[Key, int],
    read: Callable[[Key], Item],
    *,
    crops: int,
    device: torch.device,
    precision: str = "fp32",
) -> Iterator[tuple[Key, NDArray[np.float64]]]:
    """(video, scores (N,) float64) of every video, once each, the longest first.

    A pass takes at most 2048 rows, of several videos or of one, or one crop of a video that is longer. On a CPU as many
    passes as torch has threads (16 at most) go on at a time, each with a thread of its own: faster than one after the
    other with all threads, and the same bytes for any number of them. What is read and not yet scored is never more
    than the longest video, or the rows of one pass more than go on at a time. Of a very long video fewer passes go on
    at a time, for some heads take a number for each two clips: from 11,586 clips on it is one. A head that looks at
    padding is given videos of equal length only. The same videos give the same bytes in any order.

    The shortest videos go first, though their scores come last: a head that draws random numbers shows itself with
    them, and has one pass at a time, in one order.

    Args:
        model: on `device`; left in evaluation mode.
        lengths: {video: N}, the clips that `read` will give.
        read: called once for each video, in a thread of its own, while other videos are scored.
        crops: K, the most of any modality.
        device: where the model is.
        precision: "fp32" or "bf16", of the head's layers.

    Raises:
        ValueError: naming the video: it cannot be read, or has other clips than were said.
    """
    forward = Forward(model.head, precision).freeze()
    batches: list[list[Key]] = batched(lengths, crops, _SIMILAR if ignores_padding(model.head) else 1.0)
    on_cpu, threads = device.type == "cpu", torch.get_num_threads()
    passes = min(threads, _PASSES) if on_cpu else 1
    kernels: dict[torch.Tensor, torch.Tensor] = {}
    free: SimpleQueue[Forward] = SimpleQueue()  # in bf16 a head's weights are exchanged while it runs
    for _ in range(passes):
        free.put(forward if free.empty() or precision == "fp32" else copy.deepcopy(forward))

    setting = partial(torch.set_num_threads, 1) if on_cpu else None
    reader = ThreadPoolExecutor(1)
    one, several = (ThreadPoolExecutor(n, initializer=setting) for n in (1, passes))

    def read_all(batch: Sequence[Key]) -> list[Item]:
        return [_read(read, key, crops, lengths[key]) for key in batch]

    def parts_of(batch: Sequence[Key]) -> list[list[slice]]:
        """Crops of one pass each, as even as can be: a long video goes through in several.

        Those of one list go one after the other. How many lists there are depends on the length alone, so that sums are
        the same bytes for any number of threads.
        """
        passes = -(-crops // max(_AT_ONCE // lengths[batch[0]], 1)) if len(batch) == 1 else 1
        ends = [crops * i // passes for i in range(passes + 1)]
        slices = [slice(a, b) for a, b in pairwise(ends)]
        together = min(max(_WEIGHTS // lengths[batch[0]] ** 2, 1), passes)
        return [slices[i::together] for i in range(together)]

    def a_part(items: Future[list[Item]], slices: Sequence[slice]) -> NDArray[np.float64]:
        found = items.result()
        own = free.get()
        try:
            with keeping(kernels):
                return np.asarray(sum(_scores(model, own, found, some, device) for some in slices))
        finally:
            free.put(own)

    def begin(batch: list[Key], scorer: ThreadPoolExecutor) -> list[Future[NDArray[np.float64]]]:
        items = reader.submit(read_all, batch)
        return [scorer.submit(a_part, items, part) for part in parts_of(batch)]

    def scores_of(batch: list[Key], parts: list[Future[NDArray[np.float64]]]) -> list[tuple[Key, NDArray[np.float64]]]:
        scores = np.sum([part.result() for part in parts], axis=0) / crops
        return [(key, row[: lengths[key]].copy()) for key, row in zip(batch, scores, strict=True)]

    model.eval()
    limit = max([(passes + 1) * _AT_ONCE, *(crops * sum(lengths[key] for key in batch) for batch in batches)])
    last = batches.pop() if batches else []
    waiting, rows = deque(batches), 0
    begun: deque[tuple[list[Key], list[Future[NDArray[np.float64]]]]] = deque()
    with reader, one, several:
        try:
            state = torch.get_rng_state()
            shortest = scores_of(last, begin(last, one)) if last else []
            # what is drawn would fall to whichever pass comes first
            scorer = several if torch.equal(torch.get_rng_state(), state) else one
            while waiting or begun:
                while waiting and len(begun) <= passes:  # one more than there are passes: it is read meanwhile
                    more = crops * sum(lengths[key] for key in waiting[0])
                    if begun and rows + more > limit:
                        break
                    rows += more
                    batch = waiting.popleft()
                    begun.append((batch, begin(batch, scorer)))
                batch, parts = begun.popleft()
                yield from scores_of(batch, parts)
                rows -= crops * sum(lengths[key] for key in batch)
            yield from shortest
        finally:
            for pool in (several, one, reader):
                pool.shutdown(cancel_futures=True)
            if on_cpu:
                torch.set_num_threads(threads)  # those of the pool have set it for all that come later


def ignores_padding(head: Head) -> bool:
    """Whether a video scores the same beside a longer one: all but heads that declare otherwise in `exceptions`."""
    broken = {"test_padding_changes_nothing", "test_a_video_scores_the_same_alone"}
    return broken.isdisjoint(head.exceptions())


def batched(lengths: Mapping[Key, int], crops: int, similar: float) -> list[list[Key]]:
    """The videos in batches, longest first, videos of one length by name.

    Padded to its longest, a batch of more than one has at most as many rows as a pass, and no video of less than
    `similar` (0 to 1) of its longest's clips.
    """
    batches: list[list[Key]] = []
    longest = 0
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        joins = batches and (len(batches[-1]) + 1) * crops * longest <= _AT_ONCE
        if joins and lengths[key] >= similar * longest:
            batches[-1].append(key)
        else:
            batches.append([key])
            longest = lengths[key]
    return batches


@torch.no_grad()
def _scores(
    model: Model, forward: Forward, items: Sequence[Item], crops: slice, device: torch.device
) -> NDArray[np.float64]:
    """The sum over those crops, on the host, in float64, which not every device has; (videos, T of the longest)."""
    bag = collate(items, np.zeros(len(items), np.int64)) if len(items) > 1 else _bag(items[0], crops)
    return forward(model.scaled(bag.to(device))).scores.cpu().double().numpy() * bag.crops


def _bag(item: Item, crops: slice) -> Bag:
    """Those crops of one video, of the same memory where that can be."""
    chosen = {name: x if len(x) == 1 else x[crops] for name, x in item.items()}
    features = {name: torch.from_numpy(np.require(x, np.float32, ["W"]))[None] for name, x in chosen.items()}
    return Bag(features, torch.ones(1, _clips(item), dtype=torch.bool), torch.zeros(1))


def _read(read: Callable[[Key], Item], key: Key, crops: int, length: int) -> Item:
    try:
        item = read(key)
    except (OSError, ValueError) as error:
        if str(error).startswith(f"{key}:") or f"'{key}'" in str(error):
            raise
        raise ValueError(f"{key}: {error}") from error
    if (found := _clips(item)) != length:
        raise ValueError(f"{key}: {length} clips were to be scored, {found} were read; did its file change meanwhile?")
    if (have := max(len(x) for x in item.values())) != crops:
        raise ValueError(f"{key}: {crops} crops were to be scored, {have} were read")
    return item


def _clips(item: Item) -> int:
    return int(next(iter(item.values())).shape[1])
