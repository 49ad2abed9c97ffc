"""The feature store: what is read is what was written, damage is noticed, and no id or killed writer can do harm."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.grid import ClipGrid
from data.store import FeatureStore, StoreError, file_name
from data.types import SpecMismatchError, VideoFeatures
from tests.helpers import ROOT, features_of, spec_of

NASTY = [
    "../../x", "..", ".", "/etc/passwd", "a/../../b", "a\\b", "C:\\x", "nul\x00byte", "new\nline", "~", "a~b", "%2E%2E",
    "%", ".hidden", "Bad.Boys.1995__#00-26-51_label_B2-0-0", "v=S-7rRLrxnVQ__#1", "a b", " ", "\u4e2d\u6587", "\u00e9",
    "e\u0301", "x" * 159, "x" * 160, "x" * 161, "x" * 5000, "x" * 4999 + "y", "\U0001f3ac" * 100, "a.h5", "A", "a",
    "con", "-rf", "*", "?", "spec.json", "a/", "a", "%2e", "x.tmp", ".x.tmp",
]  # fmt: skip
names = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))

writable = names.filter(lambda name: "\0" not in name)  # HDF5 strings hold no NUL, and `Video` allows no control signs


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store", spec_of())


def assert_same(a: VideoFeatures, b: VideoFeatures) -> None:
    np.testing.assert_array_equal(a.x, b.x)
    assert a.x.dtype == b.x.dtype
    assert replace(a, x=b.x) == b


# -- round trips ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    writable,
    st.sampled_from(["float16", "float32"]),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 200),
    st.sampled_from(["repeat", "drop", "drop_one", "loop", "given", "equal"]),
    st.one_of(st.none(), st.floats(0.1, 500)),
    st.integers(0, 2**40),
    st.randoms(use_true_random=False),
)
def test_what_is_read_is_what_was_written(tmp_path_factory, name, dtype, k, d, frames, tail, fps, size, random):
    crops = tuple(f"crop {i}\u00e9" for i in range(k))
    spec = spec_of(dim=d, dtype=dtype, crops=crops, tail=tail, options={"a": 1, "\u00e9": "x"})
    grid = spec.grid(frames, random.randint(1, -(-frames // 16)) if tail in ("given", "equal") else None)
    x = np.random.default_rng(random.randint(0, 9)).normal(scale=100, size=(k, len(grid), d)).astype(dtype)
    features = VideoFeatures(name, x, grid, fps, crops, size)
    root = tmp_path_factory.mktemp("s")
    store = FeatureStore(root / "store", spec)
    assert name not in store
    store.write(features)
    for reader in (store, FeatureStore(root / "store")):
        assert name in reader
        assert_same(reader.read(name), features)
        assert reader.length(name) == (grid, fps)
        assert reader.ids() == [name]
        assert reader.verify().good == (name,)
    assert [p.name for p in root.iterdir()] == ["store"]


def test_equal_features_have_equal_bytes_and_others_differ(tmp_path):
    spec = spec_of()
    a = FeatureStore(tmp_path / "a", spec).write(features_of("v", spec))
    time.sleep(1.1)  # HDF5 keeps times in seconds, where it keeps them
    again = np.asfortranarray(features_of("v", spec).x)  # the layout in memory is not what is stored
    b = FeatureStore(tmp_path / "b", spec).write(features_of("v", spec, x=again))
    c = FeatureStore(tmp_path / "c", spec).write(features_of("v", spec, seed=1))
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_writing_again_replaces(store):
    store.write(features_of("v", store.spec))
    store.write(features_of("v", store.spec, frames=90, seed=3))
    assert_same(store.read("v"), features_of("v", store.spec, frames=90, seed=3))
    assert store.verify().good == ("v",)


def test_counts_and_info(store):
    for i in range(3):
        store.write(features_of(f"v{i}", store.spec, frames=50))
    store.record_failure("w", "no \u00e9 such\nfile", backbone="test")
    assert store.missing(["v1", "x", "v0", "y"]) == ["x", "y"]
    report, info = store.verify(), store.info()
    assert (report.good, report.bad, report.clips) == (("v0", "v1", "v2"), (), 12)
    assert report.bytes == info["bytes"] == sum(p.stat().st_size for p in (store.root / "videos").rglob("*.h5"))
    assert (info["videos"], info["failures"], info["id"]) == (3, 1, store.spec.id)
    line = json.loads((store.root / "failures.jsonl").read_text())
    assert (line["video"], line["error"], line["backbone"]) == ("w", "no \u00e9 such\nfile", "test")


def test_length_reads_no_features(store):
    path = store.write(features_of("v", store.spec, frames=77))
    with h5py.File(path, "a") as file:
        del file["features"]
    assert store.length("v") == (ClipGrid(77), 25.0)


# -- names ------------------------------------------------------------------------------------------------------------


@given(names)
@example("../../x")
def test_no_id_leaves_the_store(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "inside"
    store = FeatureStore(folder, spec_of())
    path = store.path(name)
    assert path.resolve().parent.parent == (folder / "videos").resolve()
    assert path.suffix == ".h5"
    assert not path.name.startswith(".")
    assert len(os.fsencode(path.name)) <= 200  # leaves room for the temporary's host and pid below 255
    assert "/" not in file_name(name)


@given(names, names)
def test_names_are_one_to_one(a, b):
    assert (file_name(a) == file_name(b)) == (a == b)
    assert (file_name(a).lower() == file_name(b).lower()) <= (a.lower() == b.lower())


@pytest.mark.parametrize("name", ["x" * 5000, "../x", "a~", "\u4e2d" * 99])
def test_no_id_is_another_ids_file_name(name):
    assert file_name(file_name(name)) != file_name(name)


def test_all_nasty_ids_live_side_by_side(store):
    ids = sorted(name for name in set(NASTY) if "\0" not in name)
    for seed, name in enumerate(ids):
        store.write(features_of(name, store.spec, seed=seed))
        with store.claim(name) as mine:
            assert mine
    assert store.ids() == ids
    for seed, name in enumerate(ids):
        assert_same(store.read(name), features_of(name, store.spec, seed=seed))
    assert {p.parent for p in (store.root / "locks").rglob("*")} == {store.root / "locks"}
    with h5py.File(store.link()) as file:
        assert len(file["videos"]) == len(ids)
        assert sorted(file["videos"][name].attrs["video"] for name in file["videos"]) == ids


def test_readable_names_stay_readable():
    assert file_name("Bad.Boys.1995__#00-26_label_A") == "Bad.Boys.1995__#00-26_label_A"
    assert file_name("v=x__#1 (a)") == "v=x__#1 (a)"
    assert file_name("../x") == "%2E.%2Fx"


# -- damage -----------------------------------------------------------------------------------------------------------


def assert_refused(store: FeatureStore, video_id: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.read(video_id)
    (line,) = store.verify().bad
    assert str(store.path(video_id)) in line


def test_a_truncated_file_is_refused_at_every_length(store):
    path = store.write(features_of("v", store.spec, frames=400))
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 95, 96, 97, *range(100, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert_refused(store, "v", "delete it and extract again")
    path.write_bytes(whole)
    assert store.verify().bad == ()


@pytest.mark.parametrize("damage", ["flip", "zero"])
def test_changed_numbers_are_noticed_by_the_checksum_alone(store, damage):
    """HDF5 reads such a file without a complaint, as `read(check=False)` shows."""
    path = store.write(features_of("v", store.spec, frames=400))
    raw = bytearray(path.read_bytes())
    data = store.read("v").x.tobytes()
    at = raw.find(data)
    assert at > 0
    if damage == "flip":
        raw[at + len(data) // 2] ^= 1
    else:
        raw[at + 64 : at + 128] = bytes(64)
    path.write_bytes(raw)
    assert store.read("v", check=False).x.tobytes() != data
    assert_refused(store, "v", "crc32 differs")


@pytest.mark.parametrize(
    ("name", "value"), [("num_frames", 399), ("fps", 24.0), ("source_bytes", 1), ("crops", '["x"]')]
)
def test_changed_attributes_are_noticed_too(store, name, value):
    """399 frames have as many clips as 400, so no shape gives it away."""
    path = store.write(features_of("v", store.spec, frames=400))
    with h5py.File(path, "a") as file:
        file.attrs[name] = value
    assert_refused(store, "v", "crc32 differs")


def test_no_flipped_bit_anywhere_changes_what_is_read(store):
    """Either the features come back as they were, or StoreError: never others, never another exception."""
    path = store.write(features_of("v", store.spec, frames=100))
    whole, wanted, rng = path.read_bytes(), store.read("v"), np.random.default_rng(0)
    refused = 0
    for offset in rng.choice(len(whole), 300, replace=False):
        raw = bytearray(whole)
        raw[offset] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        with contextlib.suppress(StoreError):
            store.length("v")
            store.ids()
        report = store.verify()
        refused += len(report.bad)
        if report.bad:
            with pytest.raises(StoreError, match=re.escape(str(path))):
                store.read("v")
        else:
            assert_same(store.read("v"), wanted)
    assert refused > 60


def test_an_unfinished_file_is_refused(store):
    path = store.write(features_of("v", store.spec))
    with h5py.File(path, "a") as file:
        del file.attrs["complete"]
    assert_refused(store, "v", "was never completed; delete it and extract again")


def test_a_file_renamed_to_another_id_is_refused(store):
    path = store.write(features_of("a", store.spec))
    store.path("b").parent.mkdir(exist_ok=True)
    path.rename(store.path("b"))
    assert_refused(store, "b", "holds 'a', not 'b'")


def test_a_file_of_another_spec_is_refused(store, tmp_path):
    other = FeatureStore(tmp_path / "other", spec_of(weights="sha"))
    path = other.write(features_of("v", other.spec))
    store.path("v").parent.mkdir(parents=True)
    shutil.copy(path, store.path("v"))
    assert_refused(store, "v", "was made with another spec")


def test_a_newer_format_is_refused(store):
    path = store.write(features_of("v", store.spec))
    with h5py.File(path, "a") as file:
        file.attrs["format"] = 2
    assert_refused(store, "v", "is of format 2, this wsvad reads 1; upgrade")
    with pytest.raises(StoreError, match="is of format 2"):
        store.length("v")
    with pytest.raises(StoreError, match="is of format 2"):
        store.ids()


def test_a_text_file_in_the_place_of_features_is_refused(store):
    path = store.write(features_of("v", store.spec))
    path.write_text("not found")
    assert_refused(store, "v", "delete it and extract again")


def test_missing_features_say_so(store):
    for call in (store.read, store.length):
        with pytest.raises(StoreError, match=r"no features of 'v' in .*; extract again"):
            call("v")


# -- opening and creating ---------------------------------------------------------------------------------------------


def test_no_store_no_reading(tmp_path):
    with pytest.raises(StoreError, match=r"no feature store at .*; make one: wsvad extract"):
        FeatureStore(tmp_path / "nope")
    assert not (tmp_path / "nope").exists()


def test_a_folder_of_other_things_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="is not empty and no feature store; choose another folder"):
        FeatureStore(tmp_path, spec_of())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("{}", "is damaged"),
        ("[1]", "is damaged"),
        ('{"format": 2}', "is of format 2, this wsvad reads 1; upgrade wsvad"),
        ('{"format": 1, "spec": {"backbone": "x", "zoom": 1}}', "unknown field zoom"),
    ],
)
def test_a_damaged_spec_is_refused(store, text, message):
    (store.root / "spec.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        FeatureStore(store.root)


def test_another_spec_is_refused_by_field(store):
    with pytest.raises(SpecMismatchError, match=r"the store .* has clip_len=16, asked for 8"):
        FeatureStore(store.root, spec_of(clip_len=8))


def test_what_does_not_fit_the_spec_is_not_written(store):
    good = features_of("v", store.spec)
    for bad, message in [
        (features_of("v", spec_of(stride=8)), r"v: clips of .* \(16, 8, 'repeat', 1\) in a store of test-"),
        (features_of("v", spec_of(tail="loop")), "v: clips of"),
        (features_of("v", spec_of(dim=6)), r"v: \(1, 4, 6\) float32"),
        (features_of("v", spec_of(dtype="float16")), "v: .* float16"),
        (replace(good, crops=("left",)), r"v: .* of crops \('left',\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.write(bad)
    assert store.files() == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_on_the_way_in_and_found_on_the_disk(store, value):
    features = features_of("v", store.spec)
    x = features.x.copy()
    x[0, 1, 2] = value
    with pytest.raises(ValueError, match=f"feature 2 of clip 1, crop 'full', is {value}"):
        store.write(replace(features, x=x))
    features.x[0, 1, 2] = value  # behind the back of the frozen value: the check after writing must see it
    with pytest.raises(StoreError, match=f"feature 2 of clip 1, crop 'full', is {value}"):
        store.write(features)
    assert "v" not in store
    assert list((store.root / "videos").rglob("*.*")) == []


def test_a_failed_write_leaves_nothing_and_keeps_the_old(store, monkeypatch):
    store.write(features_of("v", store.spec))
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            store.write(features_of("v", store.spec, seed=1))
    assert_same(store.read("v"), features_of("v", store.spec))
    assert [p.name for p in store.root.rglob("*") if p.is_file()] == ["spec.json", "v.h5"]


_CREATE = """
import sys
from data.store import FeatureStore
from data.types import FeatureSpec
print("ready", flush=True)
sys.stdin.readline()
try:
    store = FeatureStore(sys.argv[1], FeatureSpec(backbone="test", dim=int(sys.argv[2]), weights="none"))
    print("made", store.spec.dim)
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_of_two_specs_at_once_one_wins_and_the_others_are_told(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _CREATE, str(tmp_path / "s"), dim], stdin=-1, stdout=-1, text=True, cwd=ROOT
        )
        for dim in ("5", "6", "5", "6")
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4  # all have imported and wait
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=300)[0].strip() for worker in workers]
    winner = FeatureStore(tmp_path / "s").spec.dim
    for dim, line in zip((5, 6, 5, 6), said, strict=True):
        if dim == winner:
            assert line == f"made {dim}"
        else:
            assert line.startswith("SpecMismatchError")
            assert f"has dim={winner}, asked for {dim}" in line
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["spec.json"]


def test_a_store_made_between_two_looks_is_no_stranger(tmp_path, monkeypatch):
    """Another worker makes the store after this one found none and before it looks whether the folder is empty."""
    root, spec = tmp_path / "s", spec_of()
    real, looked = Path.is_file, []

    def is_file(path, *args, **kwargs):
        if path == root / "spec.json" and not looked:
            looked.append(path)
            FeatureStore(root, spec)
            return False
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert FeatureStore(root, spec).spec == spec
    assert looked


def test_reading_needs_no_right_to_write(tmp_path_factory):
    """As another user (or with the rights taken away), in a child process."""
    base = Path(os.path.realpath(tmp_path_factory.mktemp("ro")))
    store = FeatureStore(base / "store", spec_of())
    store.write(features_of("v", store.spec))
    store.link()
    parents = [p for p in base.parents if not p.stat().st_mode & 0o001]
    if os.geteuid() == 0 and parents:
        for parent in parents:
            parent.chmod(parent.stat().st_mode | 0o011)
    for path in [base, *base.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            reader = FeatureStore(base / "store")
            same = (reader.read("v").x == features_of("v", store.spec).x).all() and reader.verify().good == ("v",)
            with h5py.File(base / "store" / "features.h5", "r", locking=False) as file:
                same = same and file["videos/v/features"].shape == (1, 4, 5)
            try:
                reader.write(features_of("w", store.spec))
            except PermissionError:
                code = 0 if same else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for path in [base, *base.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


# -- claims and sweeping ----------------------------------------------------------------------------------------------

_CLAIM = """
import sys, time
from data.store import FeatureStore
with FeatureStore(sys.argv[1]).claim(sys.argv[2]) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_a_claim_excludes_others_and_dies_with_its_process(store):
    other = subprocess.Popen([sys.executable, "-c", _CLAIM, str(store.root), "v"], stdout=-1, text=True, cwd=ROOT)
    try:
        assert other.stdout.readline().strip() == "True"
        with store.claim("v") as mine:
            assert not mine
        with store.claim("w") as mine:
            assert mine
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with store.claim("v") as mine:
        assert mine
        with store.claim("v") as twice:
            assert not twice
    with store.claim("v") as mine:
        assert mine


def test_a_disk_without_flock_costs_no_work(store, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    with store.claim("v") as mine:
        assert mine


def test_sweep_removes_what_dead_writers_left_and_nothing_else(store):
    store.write(features_of("v", store.spec))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, folder = socket.gethostname().replace(".", "-"), store.path("v").parent

    def left(name: str, age_s: float = 0.0) -> Path:
        path = folder / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    dead = left(f".a.b.h5.{host}.{child.pid}.tmp")
    alive = left(f".c.h5.{host}.{os.getpid()}.tmp")
    elsewhere = left(f".c.h5.other-{host}.{child.pid}.tmp")
    ancient = left(f".d.h5.other-{host}.{child.pid}.tmp", age_s=25 * 3600)
    odd, foreign = left(".x.tmp"), left("notes.tmp")
    assert store.sweep() == 2
    assert [p.exists() for p in (dead, alive, elsewhere, ancient, odd, foreign)] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert store.verify().good == ("v",)


_KILLED = """
import os, signal, sys
from data.store import FeatureStore
from data.types import FeatureSpec
os.link = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
FeatureStore(sys.argv[1], FeatureSpec(backbone="test", dim=5, weights="none"))
"""


def test_a_writer_killed_while_it_made_the_store_leaves_nothing_after_a_sweep(tmp_path):
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "s")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "s").iterdir())
    store = FeatureStore(tmp_path / "s", spec_of())
    assert store.sweep() == 1
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["spec.json"]


def test_failure_lines_of_many_threads_stay_whole(store):
    def record(n: int) -> None:
        for i in range(50):
            store.record_failure(f"{n}/{i}", "x" * 500)

    threads = [threading.Thread(target=record, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (store.root / "failures.jsonl").read_text().splitlines()]
    assert {line["video"] for line in lines} == {f"{n}/{i}" for n in range(8) for i in range(50)}


# -- features.h5 ------------------------------------------------------------------------------------------------------


def test_links_read_survive_a_move_and_raise_where_a_file_is_gone(store, tmp_path):
    for i, name in enumerate(["v.1__#a=b", "../w", "x" * 500]):
        store.write(features_of(name, store.spec, seed=i))
    store.link()
    moved = tmp_path / "moved"
    store.root.rename(moved)
    with h5py.File(moved / "features.h5", "r") as file:
        assert json.loads(file.attrs["spec"]) == json.loads(store.spec.to_json())
        for i, name in enumerate(["v.1__#a=b", "../w", "x" * 500]):
            linked = file["videos"][file_name(name)]
            assert linked.attrs["video"] == name
            np.testing.assert_array_equal(linked["features"][()], features_of(name, store.spec, seed=i).x)
    FeatureStore(moved).path("../w").unlink()
    with h5py.File(moved / "features.h5", "r") as file, pytest.raises(KeyError, match="can't open file"):
        file["videos"][file_name("../w")]
    FeatureStore(moved).link()
    with h5py.File(moved / "features.h5", "r") as file:
        assert len(file["videos"]) == 2
