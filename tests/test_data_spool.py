"""A spool keeps what is appended, and a store's file is the same whether its numbers came from memory or not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.spool
from data.spool import FeatureSpool, SpooledFeatures
from data.store import FeatureStore
from data.types import VideoFeatures
from tests.helpers import spec_of

CROPS = ("a", "b", "c")


@pytest.fixture
def small(monkeypatch):
    """Spools that go to disk after a few clips and are read in several blocks."""
    monkeypatch.setattr(data.spool, "_IN_MEMORY", 200)
    monkeypatch.setattr(data.spool, "_BLOCK", 100)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), dtype=st.sampled_from(["float16", "float32"]))
def test_what_goes_in_comes_out(sizes, dtype):
    rng = np.random.default_rng(len(sizes))
    blocks = [rng.normal(size=(n, 3, 5)).astype(np.float32) for n in sizes]
    spool = FeatureSpool(CROPS, 5, dtype)
    for block in blocks:
        spool.append(block)
    wanted = np.concatenate(blocks).transpose(1, 0, 2).astype(dtype)
    assert spool.shape == wanted.shape
    np.testing.assert_array_equal(spool.array(), wanted)
    np.testing.assert_array_equal(spool.array(), wanted)  # and once more
    spool.close()


@pytest.mark.parametrize("rate", [1.0, 0.8])
def test_the_stored_bytes_do_not_depend_on_the_way_there(tmp_path, small, rate):
    spec = spec_of(crops=CROPS, fps=24.0)
    grid = spec.grid(200, fps=24 / rate)
    x = np.random.default_rng(0).normal(size=(len(grid), 3, 5)).astype(np.float32)
    spool = FeatureSpool(CROPS, 5, "float32", tmp_path)
    for part in np.array_split(x, 4):
        spool.append(part)
    with SpooledFeatures("v", spool, grid, 25.0, 77, lost=3) as spooled:
        one = FeatureStore(tmp_path / "a", spec).write(spooled).read_bytes()
        plain = VideoFeatures("v", x.transpose(1, 0, 2), grid, 25.0, CROPS, 77, lost=3)
        assert FeatureStore(tmp_path / "b", spec).write(plain).read_bytes() == one
        np.testing.assert_array_equal(spooled.load().x, plain.x)
    back = FeatureStore(tmp_path / "a").read("v")
    assert (back.grid, back.lost) == (grid, 3)
    np.testing.assert_array_equal(back.x, plain.x)
    assert FeatureStore(tmp_path / "a").verify().good == ("v",)


def test_a_spool_that_changed_behind_the_writer_is_noticed(tmp_path, small, monkeypatch):
    """The file is compared with the spool after writing: a disk that returns something else does not go unnoticed."""
    spec = spec_of(crops=CROPS)
    spool = FeatureSpool(CROPS, 5, "float32")
    spool.append(np.ones((7, 3, 5), np.float32))
    real, passes = FeatureSpool.blocks, [0]

    def lying(self):
        passes[0] += 1
        for start, block in real(self):
            yield start, block + (passes[0] == 2 and start > 0)

    monkeypatch.setattr(FeatureSpool, "blocks", lying)
    store = FeatureStore(tmp_path, spec)
    with SpooledFeatures("v", spool, spec.grid(112)) as made, pytest.raises(ValueError, match="reads back differently"):
        store.write(made)
    assert "v" not in store


def test_bad_blocks_are_refused_by_name():
    spool = FeatureSpool(CROPS, 2, "float16")
    spool.append(np.zeros((4, 3, 2), np.float32))
    bad = np.zeros((2, 3, 2), np.float32)
    bad[1, 2, 0] = 70000
    with pytest.raises(ValueError, match=r"feature 0 of clip 5, crop 'c', is inf.*float32"):
        spool.append(bad)
    with pytest.raises(ValueError, match=r"must be \(n, 3, 2\), got \(1, 2, 3\)"):
        spool.append(np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match="4 clips in its features, 2 in its grid"):
        SpooledFeatures("v", spool, spec_of().grid(32))
    spool.close()
