"""Layouts of other people's code: what we write is what they and our importers read."""

import numpy as np
import pytest

from data.exporters import crop_order, export_features, exporters
from data.importers import format_of, import_features
from data.importers.base import CAFFE_TEN, CENTER_FIVE, CENTER_TEN, OVERSAMPLE_TEN, TORCHVISION_TEN
from data.registry import UnknownNameError
from data.store import FeatureStore, StoreError
from data.types import Video
from tests.helpers import features_of, spec_of

NAMES = {
    "Normal_Videos001_x264": "train",
    "Abuse001_x264": "train",
    "Normal_Videos_944_x264": "test",
    "Arson011_x264": "test",
}
VIDEOS = [
    Video(n, "", s, int("Normal" not in n), () if "Normal" in n else (n.rstrip("_x264")[:-3],), 16 * 5 + 3)
    for n, s in NAMES.items()
]


def made_store(root, crops, dim, modality="rgb", dtype="float32", names=tuple(NAMES)) -> FeatureStore:
    store = FeatureStore(root, spec_of(crops=crops, dim=dim, modality=modality, tail="drop", dtype=dtype))
    for seed, name in enumerate(names):
        store.write(features_of(name, store.spec, 16 * 5 + 3, seed=seed))
    return store


@pytest.mark.parametrize(
    ("like", "crops", "dim", "options"),
    [
        ("rtfm", TORCHVISION_TEN, 2048, {}),
        ("rocng", CENTER_TEN, 1024, {}),
        ("urdmu", OVERSAMPLE_TEN, 1024, {}),
        ("xd", CENTER_FIVE, 1024, {}),
        ("xd", CENTER_FIVE, 1024, {"modality": "flow"}),
        ("xd", ("full",), 128, {"modality": "audio"}),
    ],
)
def test_export_and_import_again(tmp_path, like, crops, dim, options):
    store = made_store(tmp_path / "store", crops, dim, **options)
    report = export_features(store, tmp_path / "out", like, VIDEOS)
    assert not report.failures
    assert not report.notes
    assert len(report.written) == 4
    back = import_features(like, tmp_path / "out", VIDEOS, tmp_path / "back", options=options)
    assert not back.failures
    assert not back.notes
    for v in VIDEOS:
        found, wanted = FeatureStore(tmp_path / "back").read(v.id), store.read(v.id)
        np.testing.assert_array_equal(found.x, wanted.x)
        assert found.crops == crops
        assert found.grid.num_frames == wanted.grid.num_frames
    for path in report.lists:  # the published list restricts an import to its split
        some = [v for v in VIDEOS if v.split == ("test" if "test" in path.name else "train")]
        listed = import_features(like, tmp_path / "out", some, tmp_path / path.stem, options={**options, "list": path})
        assert listed.written == [v.id for v in some]
        assert listed.notes == []


def test_rtfm_as_its_loader_reads_it(tmp_path):
    store = made_store(tmp_path / "store", TORCHVISION_TEN, 2048, dtype="float16")
    export_features(store, tmp_path / "out", "rtfm", VIDEOS)
    lines = (tmp_path / "out" / "train.list").read_text().splitlines()
    assert [line.rsplit("/", 1)[1] for line in lines] == ["Abuse001_x264_i3d.npy", "Normal_Videos001_x264_i3d.npy"]
    features = np.load(lines[0].strip("\n"), allow_pickle=True)  # RTFM, dataset.py
    assert features.shape == (5, 10, 2048)
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    np.testing.assert_array_equal(features.transpose(1, 0, 2), store.read("Abuse001_x264").x.astype(np.float32))


def test_rocng_and_xd_as_their_loaders_read_them(tmp_path):
    """One line per crop, anomalous videos first: 8,100 lines of UCF-Crime, 9,525 of XD-Violence."""
    for like, crops, lists in (("rocng", CENTER_TEN, "test.list"), ("xd", CENTER_FIVE, "rgb_test.list")):
        store = made_store(tmp_path / f"{like}-store", crops, 1024)
        export_features(store, tmp_path / like, like, VIDEOS)
        lines = (tmp_path / like / lists).read_text().splitlines()
        K = len(crops)
        assert [line.rsplit("/", 1)[1] for line in lines] == [
            f"{name}__{k}.npy" for name in ("Arson011_x264", "Normal_Videos_944_x264") for k in range(K)
        ]
        np.testing.assert_array_equal(np.load(lines[K + 3]), store.read("Normal_Videos_944_x264").x[3])
    assert (tmp_path / "rocng" / "Arson" / "Arson011_x264__9.npy").is_file()
    assert (tmp_path / "rocng" / "Testing_Normal_Videos_Anomaly" / "Normal_Videos_944_x264__0.npy").is_file()
    assert (tmp_path / "xd" / "i3d-features" / "RGBTest" / "Arson011_x264__4.npy").is_file()


def test_crops_are_put_in_the_layouts_order(tmp_path):
    store = made_store(tmp_path / "store", OVERSAMPLE_TEN, 2048)
    assert not export_features(store, tmp_path / "out", "rtfm", VIDEOS).notes
    found = np.load(tmp_path / "out" / "Train_ten_crop_i3d" / "Abuse001_x264_i3d.npy")
    wanted = store.read("Abuse001_x264").x
    for k, name in enumerate(TORCHVISION_TEN):
        np.testing.assert_array_equal(found[:, k], wanted[OVERSAMPLE_TEN.index(name)])


def test_crop_orders():
    for wanted in (TORCHVISION_TEN, OVERSAMPLE_TEN):
        order, note = crop_order(CAFFE_TEN, wanted, "x")
        assert [CAFFE_TEN[k] for k in order] == list(wanted)
        assert not note
    order, note = crop_order(TORCHVISION_TEN, CENTER_TEN, "rocng")
    assert [TORCHVISION_TEN[k] for k in order[:6]] == [
        *("center", "top_left", "top_right", "bottom_left", "bottom_right", "mirror_center")
    ]
    assert "which corner is which" in note
    back, _ = crop_order(CENTER_TEN, TORCHVISION_TEN, "rtfm")
    assert [CENTER_TEN[k] for k in back][:5] == ["corner1", "corner2", "corner3", "corner4", "center"]
    order, note = crop_order([f"crop{k}" for k in range(10)], TORCHVISION_TEN, "rtfm")
    assert order == list(range(10))
    assert "exported in their own order" in note


@pytest.mark.parametrize(("like", "K"), [("rtfm", 10), ("rocng", 10), ("urdmu", 10), ("xd", 5)])
def test_too_few_crops(tmp_path, like, K):
    store = made_store(tmp_path / "store", ("full",), 8)
    message = rf"layout {like} needs {K} crops \(.*\), the store has 1 \(full\); extract or import"
    with pytest.raises(ValueError, match=message):
        export_features(store, tmp_path / "out", like)
    assert not (tmp_path / "out").exists()


def test_without_a_manifest(tmp_path):
    store = made_store(tmp_path / "store", TORCHVISION_TEN, 8)
    report = export_features(store, tmp_path / "out", "rtfm")
    assert [path.name for path in report.lists] == ["all_train.list"]
    assert len(report.written) == 4
    assert any("labels by position; give --manifest" in note for note in report.notes)
    assert any("D is 8; rtfm's code expects 2048" in note for note in report.notes)
    assert "4 videos exported" in report.describe(tmp_path / "out")


def test_videos_that_cannot_be_exported(tmp_path):
    names = (*NAMES, "a/b", "damaged")
    store = made_store(tmp_path / "store", CENTER_FIVE, 8, names=names)
    path = store.path("damaged")
    path.write_bytes(path.read_bytes()[:-2000])
    videos = [*VIDEOS, *(Video(n, "", "test", 0) for n in ("a/b", "damaged", "absent"))]
    report = export_features(store, tmp_path / "out", "xd", videos)
    assert sorted(report.failures) == ["a/b", "absent", "damaged"]
    assert "a file name cannot hold the / or" in report.failures["a/b"]
    assert len((tmp_path / "out" / "rgb_test.list").read_text().splitlines()) == 2 * 5
    assert "3 videos were not exported" in report.describe(tmp_path / "out")
    assert report.as_dict()["written"] == 4


def test_unknown_layouts(tmp_path):
    store = made_store(tmp_path / "store", ("full",), 8, "text")
    with pytest.raises(UnknownNameError, match=r"no exporter called 'rtmf'. Did you mean 'rtfm'"):
        export_features(store, tmp_path / "out", "rtmf")
    with pytest.raises(ValueError, match="layout xd holds rgb, flow or audio features, the store has text"):
        export_features(store, tmp_path / "out", "xd")
    empty = FeatureStore(tmp_path / "empty", spec_of(crops=CENTER_FIVE))
    with pytest.raises(StoreError, match="holds no video to export"):
        export_features(empty, tmp_path / "out", "xd")


@pytest.mark.parametrize("like", list(exporters))
def test_layouts_agree_with_the_formats(like):
    assert exporters[like].crops == format_of(like).spec.crops
    assert exporters[like].dim == format_of(like).spec.dim
