"""Batches: taken from packs or stores they are what the videos hold, and looking ahead changes nothing."""

import gc
import json
import os
import resource
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from data import mapped as mapping
from data.store import StoreError
from data.types import VideoFeatures
from mil import bags as bagging
from mil import segments as taking
from mil.ahead import Ahead
from mil.bags import VARIABLE, BagDataset, read_features
from mil.loader import Loader
from mil.resample import RESAMPLE
from mil.segments import Buffers, DeviceSegments, HostSegments
from mil.store_cli import PACKABLE
from mil.train import fit
from tests.mil_helpers import call_wsvad, make_world, small_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """5 anomalous and 5 normal training videos of 3 crops, with sound of one, which is a clip shorter in places."""
    made = make_world(tmp_path_factory.mktemp("loader"), train=5, test=1, crops=3, modalities=("rgb", "audio"))
    sound = made.stores[1]
    for video in made.train[::3]:
        found = sound.read(video.id)
        shorter = replace(found.grid, num_frames=16 * (len(found.grid) - 1))
        sound.write(VideoFeatures(video.id, found.x[:, :-1], shorter, 25.0, found.crops))
    return made


@cache
def stored(world, video):
    return read_features(world.stores, world.train[video].id)[0]


def by_hand(world, resample, count, dtype, videos, crops=None):
    """[{modality: (K, T_i, D)}] of those videos, read one by one."""
    out = []
    for place, i in enumerate(videos):
        item = {n: RESAMPLE[resample](x, count).astype(dtype).astype(np.float32) for n, x in stored(world, i).items()}
        if crops is not None:
            item = {n: x[[crops[place]]] if len(x) > 1 else x for n, x in item.items()}
        out.append(item)
    return out


def same(bag, items):
    longest = max(item["rgb"].shape[1] for item in items)
    assert bag.mask.shape == (len(items), longest)
    for row, item in enumerate(items):
        for name, x in item.items():
            found = bag.features[name][row]
            assert found.dtype == torch.float32
            assert found.shape == (len(x), longest, x.shape[2])
            assert np.array_equal(found[:, : x.shape[1]].numpy(), x)
            assert not found[:, x.shape[1] :].any()
        assert bag.mask[row].tolist() == [t < x.shape[1] for t in range(longest)]


# -- what a bag holds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resample", "dtype"), [*((name, "float16") for name in PACKABLE), ("pick", "float32")])
def test_a_bag_from_packs_holds_the_segments_of_its_videos(world, resample, dtype):
    """pick and shrink leave short videos short: padded in the pack, the bag is as long as its longest."""
    bags = BagDataset(world.train, world.stores, resample, 9, dtype=dtype)
    assert {p.x.dtype for p in bags.packs.values()} == {np.dtype(dtype)}
    short = [i for i, v in enumerate(world.train) if v.num_frames <= 16 * 8]
    for videos, crops in (([4, 0, 9, 4], None), ([4, 0, 9, 4], [2, 0, 1, 0]), (short[:2], None)):
        expected = by_hand(world, resample, 9, dtype, videos, crops)
        for source in (HostSegments, DeviceSegments):
            bags.segments = source(bags.packs) if source is HostSegments else source(bags.packs, CPU)
            same(bags.bag(videos, crops), expected)
    for found, expected in zip(bags.clips(), by_hand(world, resample, 9, dtype, range(10)), strict=True):
        assert list(found) == ["rgb", "audio"]
        assert all(np.array_equal(found[n], expected[n]) and found[n].dtype == np.float32 for n in found)


def test_every_resampling_is_packed_but_two():
    assert sorted(PACKABLE) == sorted(set(RESAMPLE) - set(VARIABLE))


def test_parts_of_the_training_videos_share_a_pack(tmp_path):
    world = make_world(tmp_path, train=4)
    first = BagDataset(world.train[2:], world.stores, "segments", 4, among=world.train)
    second = BagDataset(world.train[:3], world.stores, "segments", 4, among=world.train)
    assert first.packs["rgb"].path == second.packs["rgb"].path
    assert len(list((world.stores[0].root / "packed").glob("*.npy"))) == 1
    assert len(second) == len(list(second.clips())) == 3
    same(first.bag([0, 5]), by_hand(world, "segments", 4, "float32", [2, 7]))


def test_memory_of_a_batch_is_used_again_but_never_under_one_who_holds_it(world):
    bags = BagDataset(world.train, world.stores, "segments", 6, dtype="float16")
    kept = [bags.bag([i, 9 - i]) for i in range(8)]
    part = bags.bag([3, 1]).features["rgb"][1:].flatten(1)  # what is left of a bag counts too
    for _ in range(5):
        bags.bag([2, 7])
    for i, bag in enumerate(kept):
        same(bag, by_hand(world, "segments", 6, "float16", [i, 9 - i]))
    expected = by_hand(world, "segments", 6, "float16", [1])[0]["rgb"]
    assert np.array_equal(part[0].numpy(), expected.reshape(-1))
    del kept, part, bag
    places = {bags.bag([i % 10, 5]).features["rgb"].data_ptr() for i in range(20)}
    assert len(places) <= 4
    buffers = Buffers(3)
    large = buffers.empty((4, 100)).data_ptr()
    assert buffers.empty((2, 30)).data_ptr() == large, "a smaller batch fits into the memory of a larger one"


@pytest.mark.parametrize("crops", [None, [2, 0, 1]])
@pytest.mark.parametrize("resample", VARIABLE)
def test_only_what_a_bag_holds_is_read_from_a_store(world, monkeypatch, resample, crops):
    touched = []

    class Spy:
        """An array of which every access is noted."""

        def __init__(self, x):
            self.x, self.shape = x, x.shape

        def __len__(self):
            return len(self.x)

        def __getitem__(self, key):
            found = self.x[key]
            if isinstance(key, tuple) and isinstance(key[1], slice):
                return Spy(found)  # cut to the shortest store: nothing is read yet
            touched.append(found.shape)
            return found

    real = bagging.mapped
    monkeypatch.setattr(bagging, "mapped", lambda path: Spy(real(path)))
    bags = BagDataset(world.train, world.stores[:1], resample, 4)
    bag = bags.bag([4, 0, 9], crops, seed=(1, 2))
    counts = [len(world.stores[0].read(world.train[i].id).grid) for i in (4, 0, 9)]
    kept = [min(n, 4) if resample == "random" else n for n in counts]
    if crops is None and resample == "full":
        return  # all is wanted
    assert touched[0][0] == (3 if crops is None else 1)
    assert all(shape[0] == (3 if crops is None else 1) for shape in touched)
    assert bag.mask.sum(1).tolist() == kept
    if crops is None:
        assert [shape[1] for shape in touched] == kept


def test_clips_are_read_as_they_are_asked_for(world, monkeypatch):
    bags = BagDataset(world.train, world.stores, "full", 4)
    read = []
    monkeypatch.setattr(bagging, "mapped", lambda path, real=bagging.mapped: read.append(path) or real(path))
    clips = bags.clips()
    next(clips)
    assert len(read) == 2  # one video, two stores
    found = [next(iter(by_hand(world, "full", 4, "float32", [i]))) for i in range(10)]
    for item, expected in zip(bags.clips(), found, strict=True):
        assert all(np.array_equal(item[n], expected[n]) for n in expected)


def test_a_damaged_file_is_named_by_the_step_that_needs_it(tmp_path):
    world = make_world(tmp_path, train=3)
    bags = BagDataset(world.train, world.stores, "full", 4)
    path = world.stores[0].path(world.train[1].id)
    raw = bytearray(path.read_bytes())
    at = raw.find(world.stores[0].read(world.train[1].id).x.tobytes())
    raw[at + 5] ^= 1
    path.write_bytes(raw)
    bags.bag([0, 2])
    with pytest.raises(StoreError, match="crc32 differs"):
        bags.bag([0, 1])


def test_more_videos_than_open_files_are_allowed(tmp_path, monkeypatch, caplog):
    """Fewer files are kept open, or the limit rises where that is allowed; the bags are the same."""
    world = make_world(tmp_path, train=12, test=1, modalities=("rgb", "audio"))
    gc.collect()  # maps of the tests before
    before, lower = resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit
    monkeypatch.setattr(mapping, "_SPARE", 8)

    def refuse(kind, limits):
        raise ValueError("not allowed to raise maximum limit")

    for rises in (False, True):
        monkeypatch.setattr(resource, "setrlimit", lower if rises else refuse)
        caplog.clear()
        try:
            lower(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 30, before[1]))
            bags = BagDataset(world.train, world.stores, "full", 4)
            for i in (*range(24), 3, 23):
                same(bags.bag([i]), [read_features(world.stores, world.train[i].id)[0]])
        finally:
            lower(resource.RLIMIT_NOFILE, before)
        kept = bags._stored.cache_info()
        assert (kept.currsize == 24, "of 24 videos' files stay open" in caplog.text) == (rises, not rises)
        assert kept.currsize >= 8
        del bags
        gc.collect()


# -- looking ahead -----------------------------------------------------------------------------------------------------


def loader_of(world, *overrides, prefetch=None, counted="steps", **more):
    config = small_config("train.pairs=2", "data.count=5", *overrides, seed=3)
    steps = {"steps": 9} if counted == "steps" else {"epochs": 3}
    config = config.model_copy(update={"train": config.train.model_copy(update=steps)})
    bags = BagDataset(world.train, world.stores, config.data.resample, config.data.count, **more)
    return Loader(bags, config, CPU, prefetch=prefetch)


def raw(bag):
    return [bag.index.tolist(), bag.mask.numpy().tobytes(), *(x.numpy().tobytes() for x in bag.features.values())]


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.resample=random",),
        ("data.resample=full", "train.sampler=mixed", "train.batch=3", "train.samples=crops"),
        ("data.resample=segments", "train.sampler=passes"),
    ],
)
def test_a_bag_is_of_seed_and_step_whoever_makes_it(world, overrides):
    plain, ahead = (loader_of(world, *overrides, prefetch=how) for how in (False, True))
    expected = {step: raw(plain.draw(step)) for step in range(1, 10)}
    assert len({str(e) for e in expected.values()}) > 3
    assert all(raw(ahead.draw(step)) == expected[step] for step in expected)
    # a resumed run begins anywhere; scans come between the steps
    other = loader_of(world, *overrides, prefetch=True)
    whole = [raw(bag) for bag in plain.each(4)]
    for step in (5, 6, 2, 2, 9, 1):
        assert raw(other.draw(step)) == expected[step]
    assert [raw(bag) for bag in other.each(4)] == whole
    assert raw(other.draw(2)) == expected[2]
    other.close()


def test_only_what_is_read_from_stores_is_made_ahead_on_a_processor(world):
    assert loader_of(world, "data.resample=segments").ahead is None
    assert loader_of(world, "data.resample=full").ahead is not None


@pytest.mark.parametrize("counted", ["steps", "epochs"])
def test_nothing_is_made_beyond_the_last_step(world, counted):
    loader = loader_of(world, "data.resample=full", counted=counted)
    made, real = [], loader.ahead.make
    loader.ahead.make = lambda step: made.append(step) or real(step)
    last = 3 * loader.per_epoch if counted == "epochs" else 9
    for step in range(1, last + 1):
        loader.draw(step)
    loader.close()
    assert made == list(range(1, last + 1))


def names():
    return [t.name for t in threading.enumerate() if t.name.startswith("wsvad")]


def test_an_error_ahead_reaches_the_step_it_belongs_to():
    def make(step):
        if step == 3:
            raise StoreError("the third")
        return step

    ahead = Ahead(make, 9)
    assert [ahead.get(1), ahead.get(2)] == [1, 2]
    with pytest.raises(StoreError, match="the third"):
        ahead.get(3)
    assert ahead.get(4) == 4, "and no other"
    ahead.close()
    ahead.get(2)
    assert ahead.get(7) == 7, "an error that nobody asked for is nobody's"
    ahead.close()
    ahead.close()


def test_the_next_one_is_made_while_this_one_is_in_use():
    begun, go = threading.Event(), threading.Event()

    def make(step):
        if step == 2:
            begun.set()
            assert go.wait(300)
        return step

    ahead = Ahead(make, 2)
    assert ahead.get(1) == 1
    assert begun.wait(300), "asked for by nobody yet"
    go.set()
    assert ahead.get(2) == 2


def test_the_thread_ends_with_the_run_however_that_ends(world):
    """Ctrl-C in the middle, and nobody closes anything."""
    loader = loader_of(world, "data.resample=full")

    def run():
        for step in (1, 2, 3):
            loader.draw(step)
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    until = time.monotonic() + 300
    while names() and time.monotonic() < until:
        time.sleep(0.01)
    assert names() == []
    loader.draw(4)
    loader.close()
    assert names() == []


# -- a GPU's memory ----------------------------------------------------------------------------------------------------


def test_packs_go_to_a_gpu_where_they_fit_into_a_share_of_its_memory(world, monkeypatch):
    bags = BagDataset(world.train, world.stores, "segments", 6, dtype="float16")
    size = 10 * 6 * 2 * (3 * 8 + 1 * 3)  # videos, segments, bytes, crops times features of both
    assert DeviceSegments.size(bags.packs) == size
    put = []
    monkeypatch.setattr(bagging, "DeviceSegments", type("Put", (), {"size": DeviceSegments.size, "__init__": spy(put)}))
    for free, fits in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * size))
        assert bags.place(torch.device("cuda")) is fits
        assert len(put) == 1
    assert isinstance(bags.segments, HostSegments)
    assert bags.segments.pinned
    assert bags.place(CPU)
    assert not bags.segments.pinned
    assert not BagDataset(world.train, world.stores, "full", 6).place(torch.device("cuda"))


def spy(seen):
    return lambda self, packs, device: seen.append(device)


@pytest.mark.parametrize("crops", [None, [2, 1, 0]])
def test_batches_for_a_gpu_travel_as_stored_and_become_float32_there(world, monkeypatch, crops):
    """Pinned memory needs a GPU; everything around it is looked at without."""
    real = torch.empty
    monkeypatch.setattr(taking.torch, "empty", lambda *a, pin_memory=False, **k: real(*a, **k))
    loader = loader_of(world, "data.resample=pick", dtype="float16")
    loader.bags.segments = HostSegments(loader.bags.packs, pinned=True)
    bag = loader.bags.bag([4, 0, 9], crops)
    assert {x.dtype for x in bag.features.values()} == {torch.float16}
    same(loader._moved(bag), by_hand(world, "pick", 5, "float16", [4, 0, 9], crops))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_with_a_pack_or_none(tmp_path):
    world = make_world(tmp_path, train=3)
    config = small_config("train.steps=4", "train.pairs=2")
    store, found = world.stores[0], []
    for name in ("packed", "none"):
        if name == "none":
            for path in (store.root / "packed").iterdir():
                path.unlink()
            (store.root / "packed").rmdir()
            (store.root / "packed").write_text("in the way")
        run = world.run(name, config)
        fit(config, world.train, world.stores, run)
        found.append(run.checkpoint.with_suffix(".safetensors").read_bytes())
        if name == "packed":
            assert len(list((store.root / "packed").glob("*.npy"))) == 1
    assert found[0] == found[1]


def test_features_that_were_extracted_again_reach_the_next_run(tmp_path):
    world = make_world(tmp_path, train=2)
    before = BagDataset(world.train, world.stores, "segments", 4).bag([0, 1])
    store, video = world.stores[0], world.train[1].id
    old = store.read(video)
    store.write(replace(old, x=old.x + 1))
    after = BagDataset(world.train, world.stores, "segments", 4).bag([0, 1])
    assert torch.equal(before.x[0], after.x[0])
    assert torch.allclose(before.x[1] + 1, after.x[1], atol=1e-5)


# -- the command -------------------------------------------------------------------------------------------------------


def test_store_pack_writes_what_training_takes(tmp_path):
    world = make_world(tmp_path, train=3, crops=2, modalities=("rgb", "audio"))
    roots = [s.root for s in world.stores]
    options = ("--manifest", world.manifest, "--count", 5, "--resample", "pick")
    first = call_wsvad("store", "pack", *roots, *options, "--json")
    rows = json.loads(first.stdout)["packs"]
    assert [(r["modality"], r["shape"], r["dtype"], r["built"]) for r in rows] == [
        ("rgb", [6, 2, 5, 8], "float16", True),
        ("audio", [6, 1, 5, 3], "float16", True),
    ]
    again = call_wsvad("store", "pack", *roots, *options)
    assert again.stdout.count("was there") == 2
    bags = BagDataset(world.train, world.stores, "pick", 5, dtype="float16")
    assert [str(p.path) for p in bags.packs.values()] == [r["file"] for r in rows]
    shown = call_wsvad("store", "info", roots[0]).stdout
    assert "pick 5, 6x2x5x8 float16, 0.0 MB, cut to planted-" in shown
    assert "STALE" not in shown
    world.stores[0].write(world.stores[0].read(world.train[0].id))
    assert "STALE" in call_wsvad("store", "info", roots[0]).stdout
    assert json.loads(call_wsvad("store", "info", roots[0], "--json").stdout)["packs"][0]["stale"]
    (one,) = json.loads(call_wsvad("store", "pack", roots[1], *options, "--json").stdout)["packs"]
    assert one["built"], "alone it is another pack"
    data = bytearray(Path(one["file"]).read_bytes())
    data[-1] ^= 1
    Path(one["file"]).write_bytes(data)
    checked = call_wsvad("store", "verify", roots[1])
    assert checked.exit_code == 1
    assert one["file"] in checked.stderr


def test_store_pack_says_what_it_cannot_do(tmp_path):
    world = make_world(tmp_path, train=2)
    root = world.stores[0].root
    world.stores[0].path(world.train[0].id).unlink()
    found = call_wsvad("store", "pack", root, "--manifest", world.manifest)
    assert found.exit_code == 2
    assert "1 of 4 videos have no features" in found.stderr
    found = call_wsvad("store", "pack", root, "--manifest", world.manifest, "--allow-missing", "--dtype", "float32")
    assert "3x1x32x8 float32" in found.stdout
    tests = tmp_path / "tests.csv"
    lines = world.manifest.read_text().splitlines()
    tests.write_text("\n".join([lines[0], *(line for line in lines[1:] if ",test," in line)]) + "\n")
    found = call_wsvad("store", "pack", root, "--manifest", tests)
    assert found.exit_code == 2
    assert "names no training videos" in found.stderr
