"""The stream of clips is the grid's, and memory does not grow with the video."""

import weakref

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from extract.clips import clips_of
from tests.helpers import spec_of

specs = st.builds(
    spec_of,
    clip_len=st.integers(1, 12),
    stride=st.integers(1, 30),
    step=st.integers(1, 3),
    tail=st.sampled_from(["repeat", "loop", "drop", "drop_one"]),
)


@given(specs, st.integers(1, 150))
def test_clips_are_the_grids(spec, length):
    frames = (np.full((2, 3), i, np.uint8) for i in range(length))
    grid = spec.grid(length)
    found = list(clips_of(frames, spec))
    assert [clip[:, 0, 0].tolist() for clip in found] == [grid.frame_indices(i).tolist() for i in range(len(grid))]
    assert all(clip.shape == (spec.clip_len, 2, 3) and clip.dtype == np.uint8 for clip in found)


def test_no_frames_no_clips():
    assert list(clips_of(iter(()), spec_of())) == []


@given(specs)
def test_memory_holds_one_clip_however_long_the_video(spec):
    alive: set[int] = set()
    most = 0

    def frames():
        nonlocal most
        for i in range(400):
            frame = np.full((2, 2), i % 256, np.uint8)
            alive.add(i)
            weakref.finalize(frame, alive.discard, i)
            most = max(most, len(alive))
            yield frame
            del frame

    for _ in clips_of(frames(), spec):
        pass
    extent = spec.clip_len * spec.step
    assert most <= max(extent, spec.stride) + 3  # the frame in hand, and the one that drop_one waits for


@given(specs)
def test_a_clip_comes_as_soon_as_its_frames_are_there(spec):
    """Decoding runs beside the net: a clip that waited for the end of the video would stop that."""
    seen = 0

    def frames():
        nonlocal seen
        for _ in range(200):
            seen += 1
            yield np.zeros((1, 1), np.uint8)

    wait = spec.tail == "drop_one"
    for i, _ in enumerate(clips_of(frames(), spec)):
        assert seen == min(i * spec.stride + spec.clip_len * spec.step + wait, 200)
