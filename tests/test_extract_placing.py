"""How extraction is spread over cores, memory and devices, on machines that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract import placing
from extract.backbones import Backbone, backbones
from extract.placing import planned
from extract.runner import extract_all
from extract.streams import Reading
from extract.workers import Job

GIGABYTE = 1 << 30


class Plain(Backbone):
    """A net by name that has no options at all, as somebody's plugin, 1-d."""

    def __init__(self) -> None:
        self.spec = FeatureSpec(backbone="plain", dim=1, resize="8x8:area")

    def extract(self, clips, fps):
        return clips.mean((1, 2, 3, 4), dtype=np.float32)[:, None, None]


@pytest.fixture(autouse=True)
def plain():
    backbones.names()
    backbones.register("plain")(Plain)
    yield
    backbones._items.pop("plain")


@pytest.fixture
def machine(monkeypatch):
    def make(cores, gigabytes=1000, gpus=0):
        monkeypatch.setattr(placing, "cores", lambda: cores)
        monkeypatch.setattr(placing, "_available", lambda: gigabytes * GIGABYTE)
        found = [f"cuda:{i}" for i in range(gpus)] or ["cpu"]
        monkeypatch.setattr(placing, "_devices", lambda name: found if name in ("auto", "cuda") else [name])

    return make


def job_of(backbone, **options):
    return Job("store", backbone, options, reading=Reading("keep"))


def shape(jobs):
    """(workers, threads, decoders, devices) of a plan, the same for all workers but for the device."""
    assert len({(j.threads, j.decoders) for j in jobs}) == 1
    return len(jobs), jobs[0].threads, jobs[0].decoders, [j.options.get("device") for j in jobs]


@pytest.mark.parametrize(
    ("cores", "gigabytes", "workers", "videos", "wanted"),
    [
        (8, 1000, 0, 100, 8),  # one per core
        (8, 6, 0, 100, 4),  # as many as memory holds at 1.5 GB each
        (8, 0, 0, 100, 1),  # one, however little there is
        (8, 1000, 0, 3, 3),  # no more than videos
        (8, 1000, 0, 0, 1),
        (8, 1000, 2, 100, 2),  # as asked
        (2, 1000, 6, 100, 6),
        (2, 0, 6, 4, 4),
        (1, 1000, 0, 100, 1),
    ],
)
def test_a_net_on_a_cpu(machine, cores, gigabytes, workers, videos, wanted):
    """One thread each, whatever the number of workers: more round convolutions otherwise."""
    machine(cores, gigabytes)
    assert shape(planned(job_of("i3d_rocng"), workers, None, videos)) == (wanted, 1, 0, ["cpu"] * wanted)


def test_threads_that_were_asked_for_are_taken(machine):
    machine(8)
    job = replace(job_of("i3d_rocng"), threads=4)
    assert shape(planned(job, 2, None, 100)) == (2, 4, 0, ["cpu", "cpu"])


@pytest.mark.parametrize(
    ("gpus", "workers", "decoders", "videos", "wanted"),
    [
        (1, 0, None, 100, (1, 15, ["cuda:0"])),  # all cores but one decode
        (2, 0, None, 100, (2, 7, ["cuda:0", "cuda:1"])),
        (2, 0, None, 1, (1, 15, ["cuda:0"])),
        (2, 3, None, 100, (3, 4, ["cuda:0", "cuda:1", "cuda:0"])),
        (1, 0, 0, 100, (1, 0, ["cuda:0"])),
        (1, 0, 3, 100, (1, 3, ["cuda:0"])),
        (1, 32, None, 100, (32, 1, ["cuda:0"] * 32)),
    ],
)
def test_a_net_on_gpus(machine, gpus, workers, decoders, videos, wanted):
    machine(16, 4, gpus)
    count, decoding, devices = wanted
    found = planned(job_of("i3d_rocng"), workers, decoders, videos)
    assert shape(found) == (count, 0, decoding, devices)
    assert [j.reading.device for j in found] == devices
    assert {j.reading.damaged for j in found} == {"keep"}  # what else was asked stays


def test_a_device_that_was_named_is_taken(machine):
    machine(16, 100, 4)
    assert shape(planned(job_of("i3d_rocng", device="cuda:2"), 0, None, 9))[3] == ["cuda:2"]
    assert shape(planned(job_of("i3d_rocng", device="cpu"), 2, None, 9)) == (2, 1, 0, ["cpu", "cpu"])


def test_a_descriptor_takes_every_core_and_no_device(machine):
    machine(8, 0, 4)
    assert shape(planned(job_of("motion"), 0, None, 100)) == (8, 0, 0, [None] * 8)


def test_a_net_that_takes_no_device_is_not_given_one(machine):
    machine(4)
    assert shape(planned(job_of("plain"), 0, None, 100)) == (4, 1, 0, [None] * 4)


def test_such_a_net_runs(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(2)]
    for path in paths:
        write_video(path, [np.full((16, 16, 3), 90, np.uint8)] * 20)
    videos = [Video(p.stem, str(p), "train", 0) for p in paths]
    report = extract_all(videos, tmp_path / "store", "plain", workers=1)
    assert (report.failures, len(report.written)) == ({}, 2)
    assert abs(FeatureStore(tmp_path / "store").read("0").x - 90).max() < 3


def test_memory_that_caches_files_counts_as_free():
    """A machine that has read videos has little memory that nothing is in, and may have most of it."""
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc here")
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    stated = int(lines["MemAvailable"].split()[0]) * 1024
    assert abs(placing._available() - stated) < 0.2 * stated + GIGABYTE


def test_where_nothing_tells_how_much_memory_there_is(machine, monkeypatch):
    machine(8)

    def unknown():
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(placing, "_available", unknown)
    assert shape(planned(job_of("i3d_rocng"), 0, None, 100))[:2] == (1, 1)
