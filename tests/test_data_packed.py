"""Packs: the numbers of the store, made anew when it changes, by one of many processes, whole after a kill."""

import json
import logging
import multiprocessing
import os
import signal
import time
from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import packed as packing
from data.mapped import mapped
from data.packed import damaged, listing, packed
from data.store import FeatureStore, StoreError
from data.types import VideoFeatures
from tests.helpers import spec_of


def means(x, count):
    """(K, N, D) -> (K, count, D) where longer, else as it is: lengths of a pack may differ."""
    if x.shape[1] <= count:
        return x
    bounds = np.linspace(0, x.shape[1], count + 1).astype(int)
    return np.stack([x[:, a:b].mean(1) for a, b in pairwise(bounds)], 1)


def write(store, name, clips, seed=0, scale=1.0):
    shape = (len(store.spec.crops), clips, store.spec.dim)
    x = scale * np.random.default_rng([seed, clips]).standard_normal(shape)
    grid = store.spec.grid(16 * clips)
    store.write(VideoFeatures(name, x.astype(store.spec.dtype), grid, 25.0, store.spec.crops))


def make(root, lengths=(3, 9, 5, 7), *, crops=("a", "b"), **spec):
    store = FeatureStore(root, spec_of(crops=crops, **spec))
    for i, clips in enumerate(lengths):
        write(store, f"v{i}", clips, i)
    return store


IDS = ["v2", "v0", "v3", "v1"]


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "store")


def files(store):
    return sorted(p.name for p in (store.root / "packed").iterdir())


def check(store, pack, ids, count=5, dtype="float16", fn=means):
    """Every number by hand."""
    assert pack.x.dtype == dtype
    assert pack.x.shape[1:] == (len(store.spec.crops), count, store.spec.dim)
    assert not pack.x.flags.writeable
    for video, row, length in zip(ids, pack.rows, pack.lengths, strict=True):
        x = fn(store.read(video).x.astype(np.float32), count)
        assert length == x.shape[1]
        np.testing.assert_array_equal(pack.x[row, :, :length], x.astype(dtype))
        assert not pack.x[row, :, length:].any()


# -- numbers -----------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from(["float16", "float32"]),
    st.sampled_from(["float16", "float32"]),
    st.integers(1, 3),
)
def test_a_pack_holds_the_segments_of_every_video(tmp_path_factory, lengths, count, dtype, stored, crops):
    names = tuple("abc"[:crops])
    store = make(tmp_path_factory.mktemp("p") / "s", lengths, crops=names, dtype=stored)
    ids = [f"v{i}" for i in reversed(range(len(lengths)))]
    pack = packed(store, ids, "means", means, count, dtype)
    assert pack.built
    assert isinstance(pack.x, np.memmap)
    check(store, pack, ids, count, dtype)
    again = packed(FeatureStore(store.root), ids, "means", means, count, dtype)
    assert not again.built
    check(store, again, ids, count, dtype)


def test_the_store_minds_no_pack(store):
    before = store.files(), store.ids(), store.info(), store.verify()
    packed(store, IDS, "means", means, 5)
    assert len(files(store)) == 2
    assert (store.files(), store.ids(), store.info(), store.verify()) == before
    assert store.sweep() == 0
    with h5py.File(store.link()) as master:
        assert sorted(master["videos"]) == sorted(IDS)
    FeatureStore(store.root, store.spec)


def test_one_video_at_a_time_is_in_memory(store, monkeypatch):
    """What is read before is let go: the fourth video finds none of the others alive."""
    import weakref

    alive, most = [], []

    def read(video):
        x = store.read(video).x.copy()
        alive.append(weakref.ref(x))
        most.append(sum(ref() is not None for ref in alive))
        return x

    packed(store, IDS, "means", lambda x, n: means(x, n) + 0, 5, read=read)
    assert max(most) <= 2


# -- when a pack is found, and when not --------------------------------------------------------------------------------


def test_what_decides_the_numbers_decides_the_pack(store):
    first = packed(store, IDS, "means", means, 5)
    for change in (
        {"ids": [*IDS[::-1], "v9"]},
        {"count": 6},
        {"dtype": "float32"},
        {"name": "other"},
        {"resample": lambda x, n: means(x, n)[:, ::-1]},  # the same name, another code
    ):
        if "v9" in change.get("ids", ()):
            write(store, "v9", 4)
        given_ = {"ids": IDS, "name": "means", "resample": means, "count": 5, "dtype": "float16", **change}
        pack = packed(store, given_["ids"], given_["name"], given_["resample"], given_["count"], given_["dtype"])
        assert pack.built, change
        assert pack.path != first.path
        check(store, pack, given_["ids"], given_["count"], given_["dtype"], given_["resample"])


def test_a_changed_video_makes_the_pack_anew_and_the_old_one_goes(store):
    old = packed(store, IDS, "means", means, 5)
    other = packed(store, IDS, "means", means, 6)
    held = old.x[old.rows[0]].copy()
    write(store, "v0", 3, seed=99)  # as many clips: the file is of the same size
    assert [row["stale"] for row in listing(store.root)] == [True, True]
    new = packed(store, IDS, "means", means, 5)
    assert new.built
    check(store, new, IDS)
    assert not old.path.exists()
    assert not old.path.with_suffix(".json").exists()
    assert other.path.exists(), "of other parameters: not this one's to remove"
    np.testing.assert_array_equal(old.x[old.rows[0]], held)  # whoever has it open keeps it


def test_a_pack_of_more_videos_serves_and_one_of_fewer_does_not(store):
    whole = packed(store, IDS, "means", means, 5)
    part = packed(store, ["v1", "v2"], "means", means, 5)
    assert part.path == whole.path
    check(store, part, ["v1", "v2"])
    assert len(files(store)) == 2
    write(store, "v7", 6)
    more = packed(store, ["v7", *IDS], "means", means, 5)
    assert more.built
    assert whole.path.exists(), "not stale"
    check(store, more, ["v7", *IDS])


def test_what_is_beside_decides_too(store, tmp_path):
    """Another store cuts a video shorter: the pack is another one, and goes when that store's file changes."""
    beside = make(tmp_path / "other", (2, 9, 5, 7), modality="flow", crops=("a",))

    def cut(video):
        return store.read(video).x[:, : beside.read(video).x.shape[1]]

    alone = packed(store, IDS, "means", means, 5)
    both = packed(store, IDS, "means", means, 5, beside=[beside], read=cut)
    assert both.path != alone.path
    assert both.lengths.tolist() == [5, 2, 5, 5]
    assert alone.lengths.tolist() == [5, 3, 5, 5]
    assert not packed(store, IDS, "means", means, 5, beside=[beside], read=cut).built
    write(beside, "v0", 1)
    again = packed(store, IDS, "means", means, 5, beside=[beside], read=cut)
    assert again.lengths.tolist() == [5, 1, 5, 5]
    assert alone.path.exists()
    assert not both.path.exists()


@pytest.mark.parametrize("harm", ["cut", "gone", "json", "shape", "format"])
def test_a_pack_that_was_harmed_is_made_anew(store, harm):
    path = packed(store, IDS, "means", means, 5).path
    meta = path.with_suffix(".json")
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif harm == "gone":
        path.unlink()
    elif harm == "json":
        meta.write_text(meta.read_text()[:-3])
    elif harm == "shape":
        np.save(path, np.zeros((4, 2, 5, 4), np.float16))
    else:
        values = json.loads(meta.read_text())
        values["made"]["format"] = 2
        meta.write_text(json.dumps(values))
    pack = packed(store, IDS, "means", means, 5)
    assert pack.built
    check(store, pack, IDS)


def test_a_flipped_bit_is_found_by_its_checksum(store):
    path = packed(store, IDS, "means", means, 5).path
    assert damaged(store.root) == []
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 4
    path.write_bytes(raw)
    (line,) = damaged(store.root)
    assert str(path) in line


def test_a_video_without_features_or_with_damaged_ones_is_named(store):
    with pytest.raises(StoreError, match="no features of 'v9'"):
        packed(store, ["v0", "v9"], "means", means, 5)
    with h5py.File(store.path("v0"), "a") as file:
        file["features"][0, 0, 0] += 1
    with pytest.raises(StoreError, match="crc32 differs"):
        packed(store, IDS, "means", means, 5)
    assert files(store) == []


# -- float16 -----------------------------------------------------------------------------------------------------------


def test_a_value_beyond_float16_makes_the_pack_float32_and_says_so(store, caplog):
    write(store, "v1", 9, scale=1e5)
    pack = packed(store, IDS, "means", means, 5)
    check(store, pack, IDS, dtype="float32")
    assert "float16 ends at 65504" in caplog.text
    caplog.clear()
    again = packed(store, IDS, "means", means, 5)
    assert not again.built
    assert "is float32: not all values fit float16" in caplog.text
    # the others alone fit; what lies about must not decide which numbers they get
    part = packed(store, ["v0", "v2"], "means", means, 5)
    check(store, part, ["v0", "v2"], dtype="float16")


@pytest.mark.parametrize(("offset", "blurred"), [(0.0, False), (20.0, False), (2000.0, True)])
def test_features_that_float16_blurs_are_counted_in_a_warning(store, caplog, offset, blurred):
    def moved(video):
        return store.read(video).x + np.array([0, 0, offset, 0, 0], np.float32)

    packed(store, IDS, "means", means, 5, read=moved)
    assert ("float16 blurs 1 of 5 features" in caplog.text) == blurred
    caplog.clear()
    packed(store, IDS, "means", means, 5, "float32", read=moved)
    assert "blurs" not in caplog.text


# -- places and processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_without_a_place_to_write_segments_stay_in_memory(store, caplog, scale):
    write(store, "v1", 9, scale=scale)
    (store.root / "packed").write_text("in the way")
    pack = packed(store, IDS, "means", means, 5)
    check(store, pack, IDS, dtype="float16" if scale == 1 else "float32")
    assert (pack.path, pack.built) == (None, True)
    assert "cannot be written" in caplog.text


def test_a_full_disk_costs_the_file_alone(store, monkeypatch):
    def full(folder, size):
        assert size == 4 * 2 * 5 * 5 * 2
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "reserve", full)
    check(store, packed(store, IDS, "means", means, 5), IDS)
    assert [n for n in files(store) if n.endswith((".npy", ".json"))] == []


def _make_slowly(root, queue):
    def slow(video):
        time.sleep(0.05)
        return FeatureStore(root).read(video).x

    pack = packed(FeatureStore(root), IDS, "means", means, 5, read=slow)
    queue.put((pack.built, pack.x[pack.rows].tobytes()))


def test_several_processes_make_a_pack_once(store):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_make_slowly, args=(store.root, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(built for built, _ in found) == [False, False, True]
    assert len({raw for _, raw in found}) == 1
    assert sorted(n.split(".")[-1] for n in files(store)) == ["json", "npy"]


def test_killed_anywhere_a_pack_is_made_anew_and_nothing_is_left(store):
    """SIGKILL before each fsync, replace and read, in turn: only whole packs are ever found."""
    wanted = [store.read(i).x for i in IDS]
    stages, survived = 0, False
    while not survived:
        stages += 1
        pid = os.fork()
        if not pid:
            status = 9
            try:
                _die_at(stages)
                packed(store, IDS, "means", means, 5)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        survived = status == 0
        assert survived or os.WTERMSIG(status) == signal.SIGKILL
        pack = packed(store, IDS, "means", means, 5)
        for row, x in zip(pack.rows, wanted, strict=True):
            np.testing.assert_array_equal(pack.x[row, :, : min(x.shape[1], 5)], means(x, 5).astype(np.float16))
        for name in files(store):
            (store.root / "packed" / name).unlink()
    assert stages > 8
    assert files(store) == []


def _die_at(stage):
    """Kills this process before its `stage`-th call of any of these."""
    left = [stage]

    def deadly(real):
        def call(*arguments, **more):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    for place, name in ((os, "fsync"), (os, "replace"), (FeatureStore, "read"), (json, "dumps")):
        setattr(place, name, deadly(getattr(place, name)))


# -- maps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_map_of_a_stored_video_is_its_numbers(tmp_path, dtype):
    store = make(tmp_path / "s", dtype=dtype)
    for video in IDS:
        x = mapped(store.path(video))
        np.testing.assert_array_equal(x, store.read(video).x)
        assert x.dtype == dtype
        assert not x.flags.writeable
    old = mapped(store.path("v1"))
    held = old.copy()
    write(store, "v1", 9, seed=5)
    np.testing.assert_array_equal(old, held)  # a file is replaced, never changed
    assert not np.array_equal(mapped(store.path("v1")), held)


def test_a_file_in_chunks_is_read_and_a_damaged_one_named(tmp_path):
    store = make(tmp_path / "s")
    path, x = store.path("v1"), store.read("v1").x
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", data=x, chunks=(1, 2, 5))
    np.testing.assert_array_equal(mapped(path), x)
    os.truncate(path, 100)
    with pytest.raises(StoreError, match="is damaged"):
        mapped(path)


def test_waiting_is_said(store, caplog):
    import fcntl

    caplog.set_level(logging.INFO)
    real, seen = fcntl.flock, []

    def flock(handle, how):
        seen.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        return real(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        check(store, packed(store, IDS, "means", means, 5), IDS)
    assert seen == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert "another process makes" in caplog.text


def test_a_damaged_pack_is_noticed_and_made_anew(store, caplog):
    """Bytes that a disk has lost are numbers too: nothing else would tell."""
    first = packed(store, IDS, "means", means, 5)
    wanted = np.array(first.x)
    with first.path.open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        file.write(b"\x11\x22")
    again = packed(store, IDS, "means", means, 5)
    assert "is damaged" in caplog.text
    assert again.built
    np.testing.assert_array_equal(again.x, wanted)
    assert not packed(store, IDS, "means", means, 5).built
