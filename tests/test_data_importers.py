"""Published feature formats: what is written as published is read back exactly, what is wrong is refused by name."""

import ast
import csv
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.importers import ImportReport, format_of, import_features, importers
from data.importers.arrays import is_finite, open_npy, open_npz
from data.importers.base import CAFFE_TEN, CENTER_FIVE, CENTER_TEN, OVERSAMPLE_TEN, TORCHVISION_TEN
from data.importers.sources import read_list
from data.registry import UnknownNameError
from data.store import FeatureStore, StoreError
from data.types import SpecMismatchError, Video
from tests.helpers import shared

XD_NAMES = ["Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0", "v=S-7rRLrxnVQ__#1_label_B4-0-0", "x__3_label_A"]


def video(name: str, num_frames: int | None = None, split: str = "train") -> Video:
    return Video(name, "", split, int("Normal" not in name and not name.endswith("_A")), num_frames=num_frames)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return array


def stored(root: Path, name: str) -> np.ndarray:
    return FeatureStore(root).read(name).x


def refusal(report, name: str) -> str:
    assert list(report.failures) == [name]
    return report.failures[name]


def rtfm_set(src: Path, names=("Abuse001_x264", "Normal_Videos001_x264"), T=7, D=2048) -> list[np.ndarray]:
    return [save(src / "UCF" / f"{n}_i3d.npy", numbers(T, 10, D, seed=i)) for i, n in enumerate(names)]


RTFM = [video("Abuse001_x264", 16 * 7 + 3), video("Normal_Videos001_x264")]


# -- each published layout, exactly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [2048, 2049])
def test_rtfm(tmp_path, D):
    wanted = rtfm_set(tmp_path / "src", D=D)
    lines = [rf"C:\Users\yu\SSD\UCF_Train_ten_crop_i3d\{v.id}_i3d.npy" for v in RTFM]
    (tmp_path / "ucf-i3d.list").write_text("\n".join(lines) + "\n")
    options = {"list": tmp_path / "ucf-i3d.list"}
    report = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out", options=options)
    assert report.written == [v.id for v in RTFM]
    assert not report.failures
    store = FeatureStore(tmp_path / "out")
    assert store.spec.backbone == "i3d_rtfm"
    assert store.spec.mean == (114.75,) * 3
    assert store.spec.crops == TORCHVISION_TEN
    for v, x in zip(RTFM, wanted, strict=True):
        found = store.read(v.id)
        np.testing.assert_array_equal(found.x, x.transpose(1, 0, 2))
        assert found.x.dtype == np.float32
    known, unknown = (store.read(v.id) for v in RTFM)
    assert (known.grid.num_frames, known.length_from) == (115, "manifest")
    assert (unknown.grid.num_frames, unknown.length_from) == (112, "features")
    assert "1 of 2 videos have no num_frames" in " ".join(report.notes)
    assert not store.verify().bad


@pytest.mark.parametrize("suffix", ["__0", ""])
def test_rocng(tmp_path, suffix):
    v = video("Normal_Videos_944_x264", 80)
    crops = [numbers(5, 1024, seed=k) for k in range(10)]
    for k, x in enumerate(crops):  # the other spelling of the same video
        save(tmp_path / "src" / "Normal" / f"Normal_Videos944_x264{suffix if k == 0 else f'__{k}'}.npy", x)
    assert not import_features("rocng", tmp_path / "src", [v], tmp_path / "out").failures
    np.testing.assert_array_equal(stored(tmp_path / "out", v.id), np.stack(crops))
    assert FeatureStore(tmp_path / "out").spec.crops == CENTER_TEN


@pytest.mark.parametrize("kind", ["C order", "Fortran order", "npz"])
def test_threads_parse_one_header_at_a_time(tmp_path, monkeypatch, kind):
    """Python 3.11 may raise SystemError when two threads of a process parse at once; it did, once in some 10,000."""
    x = np.zeros((3, 4), np.float32)
    file = tmp_path / ("x.npz" if kind == "npz" else "x.npy")
    np.savez(file, x) if kind == "npz" else np.save(file, np.asfortranarray(x) if kind.startswith("F") else x)
    inside, most = [], []
    real = ast.literal_eval

    def slow(text):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return real(text)

    monkeypatch.setattr(ast, "literal_eval", slow)
    opened = open_npz if kind == "npz" else open_npy
    with ThreadPoolExecutor(4) as pool:
        shapes = [s.shape for s in pool.map(lambda _: opened(file, ""), range(4))]
    assert shapes == [(3, 4)] * 4
    assert most
    assert max(most) == 1


def test_rocng_with_crop_0_twice(tmp_path):
    for name in ("a__0", "a", *(f"a__{k}" for k in range(1, 10)), *(f"b__{k}" for k in range(10))):
        save(tmp_path / "src" / f"{name}.npy", numbers(2, 1024))
    message = refusal(import_features("rocng", tmp_path / "src", [video("a"), video("b")], tmp_path / "out"), "a")
    assert "a.npy and" in message
    assert "are both 'a__0.npy'; keep one" in message


def test_urdmu(tmp_path):
    x = save(tmp_path / "src" / "Abuse001_x264_i3d.npy", numbers(10, 4, 1024))
    assert not import_features("urdmu", tmp_path / "src", [video("Abuse001_x264", 61)], tmp_path / "out").failures
    np.testing.assert_array_equal(stored(tmp_path / "out", "Abuse001_x264"), x)
    assert FeatureStore(tmp_path / "out").spec.crops == OVERSAMPLE_TEN


def test_xd_modalities_of_the_same_names(tmp_path):
    videos = [video(n, 16 * 6 + 1, s) for n, s in zip(XD_NAMES, ("train", "train", "test"), strict=True)]
    src = tmp_path / "i3d-features"
    wanted: dict[tuple[str, str], np.ndarray] = {}
    for i, v in enumerate(videos):
        for modality, folder, T in (("rgb", "RGB", 6), ("flow", "Flow", 5)):  # flow has one frame less
            parts = [numbers(T, 1024, seed=10 * i + k + 100 * T) for k in range(5)]
            for k, x in enumerate(parts):
                save(src / f"{folder}{'Test' if v.split == 'test' else ''}" / f"{v.id}__{k}.npy", x)
            wanted[modality, v.id] = np.stack(parts)
        x = save(tmp_path / "vggish-features" / v.split / f"{v.id}__vggish.npy", numbers(6, 128, seed=i))
        wanted["audio", v.id] = x[None]
    for modality in ("rgb", "flow", "audio"):
        out = tmp_path / modality
        report = import_features("xd", tmp_path, videos, out, options=[f"modality={modality}"])
        assert not report.failures
        assert not [n for n in report.notes if "belong to no video" in n]
        for v in videos:
            np.testing.assert_array_equal(stored(out, v.id), wanted[modality, v.id])
        spec = FeatureStore(out).spec
        assert (spec.modality, spec.crops) == (modality, ("full",) if modality == "audio" else CENTER_FIVE)
    with pytest.raises(FileNotFoundError, match="no video of format xd"):  # flow is no RGB, whatever its names
        import_features("xd", src / "Flow", videos, tmp_path / "wrong")


def test_vadclip_and_its_test_list(tmp_path):
    v = video("Arson011_x264", 50, "test")
    crops = [save(tmp_path / "src" / "Arson" / f"{v.id}__{k}.npy", numbers(3, 512, seed=k)) for k in range(10)]
    with (tmp_path / "ucf_CLIP_rgbtest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), (f"/home/x/UCFClipFeatures/Arson/{v.id}__5.npy", "Arson")])
    assert not import_features("vadclip", tmp_path / "src", [v], tmp_path / "ten").failures
    np.testing.assert_array_equal(stored(tmp_path / "ten", v.id), np.stack(crops))
    options = {"crops": "5", "list": tmp_path / "ucf_CLIP_rgbtest.csv"}
    assert not import_features("vadclip", tmp_path / "src", [v], tmp_path / "one", options=options).failures
    np.testing.assert_array_equal(stored(tmp_path / "one", v.id), crops[5][None])
    assert FeatureStore(tmp_path / "one").spec.crops == ("mirror_center",)
    report = import_features("vadclip", tmp_path / "src", [v], tmp_path / "x", options={"list": options["list"]})
    assert "1 of 10 crops are there, missing center, corner1" in refusal(report, v.id)
    assert f"no {v.id}__0.npy in {options['list']}" in report.failures[v.id]


def write_sultani(path: Path, x: np.ndarray) -> None:
    path.write_text("\n".join("".join(f"{value:f} " for value in row) for row in x) + "\n")


@pytest.mark.parametrize("ending", ["_C.txt", ".txt"])
def test_sultani(tmp_path, ending):
    x = np.abs(numbers(32, 4096))
    x = np.round(x / np.linalg.norm(x, axis=1, keepdims=True), 6).astype(np.float32)
    write_sultani(tmp_path / f"Abuse001_x264{ending}", x)
    report = import_features("sultani", tmp_path, [video("Abuse001_x264", 1000)], tmp_path / "out")
    assert not report.failures
    assert not report.notes
    found = FeatureStore(tmp_path / "out").read("Abuse001_x264")
    np.testing.assert_array_equal(found.x[0], x)
    assert (len(found.grid), found.grid.tail, found.grid.num_frames) == (32, "equal", 1000)
    assert tuple(found.grid.spans[1]) == (1000 // 32, 2000 // 32)


def test_sultani_rows_of_another_norm_are_noted(tmp_path):
    write_sultani(tmp_path / "a.txt", np.ones((32, 4096), np.float32))
    (note,) = import_features("sultani", tmp_path, [video("a", 1000)], tmp_path / "out").notes
    assert note == "1 videos, e.g. a: rows are not L2-normalised as the published ones are; they are kept as they are"


def test_sultani_real_files(tmp_path):
    src = shared("official", "ucf-crime", "c3d_fc6_32segments")
    frames = dict(
        line.split()[:2]
        for line in shared("official", "ucf-crime", "UCF_Annotation_with_frame_counts.txt").read_text().splitlines()
    )
    lengths = {Path(name).stem: int(count) for name, count in frames.items()}
    videos = [video(p.stem, lengths[p.stem], "test") for p in sorted(src.glob("*.txt"))]
    report = import_features("sultani", src, videos, tmp_path / "out")
    assert len(report.written) == 4
    assert not report.notes
    for v in videos:
        found = FeatureStore(tmp_path / "out").read(v.id)
        np.testing.assert_array_equal(found.x[0], np.loadtxt(src / f"{v.id}.txt", dtype=np.float32))
        assert found.grid.to_frames(np.arange(32.0)).shape == (lengths[v.id],)


@pytest.mark.parametrize(("stream", "stride", "D"), [("rgb", 5, 1024), ("flow", 10, 1024), ("c3d", 16, 4096)])
def test_gcn_npz(tmp_path, stream, stride, D):
    x = numbers(9, 10, D)
    np.savez(tmp_path / f"01_0014_{stream}.npz", scores=x, begin_idx=np.arange(9) * stride)
    frames = 9 * stride + 2
    report = import_features(
        "gcn_npz", tmp_path, [video("01_0014", frames)], tmp_path / "out", options={"stream": stream}
    )
    assert not report.failures
    found = FeatureStore(tmp_path / "out").read("01_0014")
    np.testing.assert_array_equal(found.x, x.transpose(1, 0, 2))
    assert found.grid.stride == stride
    assert found.crops == CAFFE_TEN
    again = import_features(
        "gcn_npz", tmp_path, [video("01_0014", frames)], tmp_path / "out", options={"stream": stream}
    )
    assert again.present == ["01_0014"]


def test_gcn_npz_refusals(tmp_path):
    x = numbers(9, 10, 1024)
    begins = {
        "good": np.arange(9) * 5,
        "uneven": np.arange(9) ** 2,
        "short": np.arange(8) * 5,
        "other": np.arange(9) * 7,
    }
    for name, begin_idx in begins.items():
        np.savez(tmp_path / f"{name}_rgb.npz", scores=x, begin_idx=begin_idx)
    np.savez(tmp_path / "bare_rgb.npz", scores=x)
    np.savez(tmp_path / "objects_rgb.npz", scores=np.array([x, None], dtype=object), begin_idx=begins["good"])
    whole = (tmp_path / "good_rgb.npz").read_bytes()
    (tmp_path / "cut_rgb.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped_rgb.npz").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    names = ["good", *list(begins)[1:], "bare", "objects", "cut", "flipped"]
    report = import_features("gcn_npz", tmp_path, [video(n) for n in names], tmp_path / "out")
    assert report.written == ["good"]
    assert "frame 0 or 1 and one constant step" in report.failures["uneven"]
    assert "8 entries in begin_idx for scores of (9, 10, 1024)" in report.failures["short"]
    assert "a clip every 7 frames, the others have one every 5" in report.failures["other"]
    assert "has no array 'begin_idx', it holds scores" in report.failures["bare"]
    assert "is an object array" in report.failures["objects"]
    for name in ("cut", "flipped"):
        assert f"{name}_rgb.npz: is damaged" in report.failures[name]


@pytest.mark.parametrize("name", ["Abuse001_x264emb.npy", "Abuse001_x264_emb.npy"])
def test_tevad(tmp_path, name):
    x = save(tmp_path / "src" / name, numbers(6, 768))
    assert not import_features("tevad", tmp_path / "src", [video("Abuse001_x264", 100)], tmp_path / "out").failures
    np.testing.assert_array_equal(stored(tmp_path / "out", "Abuse001_x264"), x[None])
    assert FeatureStore(tmp_path / "out").spec.modality == "text"


# -- declared formats -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["npy", "npz", "h5", "h5 of all"]),
    st.sampled_from(["td", "tkd", "ktd", "td per crop"]),
    st.integers(1, 40),
    st.integers(2, 5),
    st.sampled_from(["float16", "float32"]),
    st.integers(1, 4000),
)
def test_declared_axes(tmp_path_factory, kind, axes, T, K, dtype, D):
    folder = tmp_path_factory.mktemp("declared")
    x = numbers(1 if axes == "td" else K, T, D).astype(dtype)
    options = {"axes": axes[:3].strip(), "crops": "" if axes == "td" else str(K), "name": "mine"}
    ending = kind[:3].strip()
    arrays = {"clip": {"td": x[0], "tkd": x.transpose(1, 0, 2), "ktd": x}.get(axes)}
    if axes == "td per crop":
        if kind == "h5 of all":
            return  # one key per video: no place for a number
        arrays = {f"clip_{k}": crop for k, crop in enumerate(x)}
        options["pattern"] = f"{{id}}_{{k}}.{ending}"
    for name, array in arrays.items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", array)  # the transposed one goes to disk in Fortran order
        elif kind == "npz":
            np.savez(folder / f"{name}.npz", array)
        else:
            with h5py.File(folder / ("all.h5" if kind == "h5 of all" else f"{name}.h5"), "w") as file:
                file[name if kind == "h5 of all" else "features"] = array
    if kind == "h5 of all":
        options |= {"pattern": "all.h5", "key": "{id}"}
    report = import_features(ending, folder, [video("clip")], folder / "out", options=options, dtype=dtype)
    assert not report.failures
    found = FeatureStore(folder / "out")
    np.testing.assert_array_equal(found.read("clip").x, x)
    assert (found.spec.backbone, found.spec.dim) == ("imported:mine", D)


def test_segments_and_strides(tmp_path):
    save(tmp_path / "a.npy", numbers(32, 7))
    options = {"segments": 32}
    assert not import_features("npy", tmp_path, [video("a", 999)], tmp_path / "segments", options=options).failures
    assert FeatureStore(tmp_path / "segments").read("a").grid.tail == "equal"
    options = {"clip_len": 64, "stride": 8}
    assert not import_features("npy", tmp_path, [video("a", 31 * 8 + 64)], tmp_path / "dense", options=options).failures
    grid = FeatureStore(tmp_path / "dense").read("a").grid
    assert (grid.clip_len, grid.stride, len(grid)) == (64, 8, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rtmf", {}, "Did you mean 'rtfm'"),
        ("rtfm", {"axis": "tkd"}, r"takes no option 'axis'. Did you mean 'axes'"),
        ("rtfm", {"axes": "tdk"}, "axes must be tkd, ktd, td, got 'tdk'"),
        ("rtfm", {"axes": "td"}, "10 crops in one file have axes tkd or ktd"),
        ("rtfm", {"segments": "many"}, "option segments of format rtfm must be of type int, got 'many'"),
        ("rtfm", {"dim": "0"}, "option dim of format rtfm must be a positive number"),
        ("rtfm", ["axes"], "written KEY=VALUE, got 'axes'"),
        ("xd", {"modality": "sound"}, "no modality 'sound'"),
        ("gcn_npz", {"stream": "rbg"}, "no stream 'rbg'. Did you mean 'rgb'"),
        ("vadclip", {"crops": "1,ten"}, "numbers from 0 to 9 joined by commas, got 'ten'"),
        ("vadclip", {"crops": "5,5"}, "distinct crop names"),
        ("npy", {"axes": "tkd"}, "axes tkd need the crops: --option crops=10"),
        ("npy", {"axes": "dt"}, "option axes takes tkd, ktd, td, got 'dt'"),
        ("npy", {"crops": "5"}, "5 crops in one file have axes tkd or ktd; declare"),
        ("npy", {"crops": "5", "axes": "tkd", "pattern": "{id}_{k}.npy"}, "one file per crop has axes td"),
        ("npy", {"modality": "smell"}, "modality must be one of"),
        ("h5", {"pattern": "all.h5"}, "needs the id in the key"),
    ],
)
def test_options_that_do_not_exist(name, options, message):
    with pytest.raises((ValueError, UnknownNameError), match=message):
        format_of(name, options)


@pytest.mark.parametrize("name", list(importers))
def test_every_format_describes_itself(name):
    fmt = format_of(name)
    assert fmt.spec.tail in ("given", "equal")
    assert fmt.spec.weights.startswith(("published:", "unknown"))
    assert (importers.get(name).__doc__ or "").split("\n")[0].endswith(".")


# -- refusals ---------------------------------------------------------------------------------------------------------


def spoiled(path: Path, how: str) -> None:
    """Makes one published file bad in the way `how` says."""
    x = np.load(path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "only a header":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "html":
        path.write_text("<html>quota exceeded</html>")
    elif how == "two arrays":
        path.write_bytes(path.read_bytes() * 2)
    elif how == "huge header":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 10, 2048)}
            )
    elif how == "objects":
        np.save(path, np.array([x, None], dtype=object), allow_pickle=True)
    elif how in ("int64", "float64", ">f4"):
        np.save(path, x.astype(how))
    elif how in ("nan", "inf"):
        x[5, 3, 700] = float(how)
        np.save(path, x)
    else:
        np.save(path, {"dim": x[..., :1024], "crops": x[:, :5], "2d": x[:, 0], "no clips": x[:0]}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "truncated",
            r"is truncated: its header says \(7, 10, 2048\) float32, 573,440 bytes, but 573,340 follow; download",
        ),
        ("only a header", r"is no .npy file \(.*\); download it again"),
        ("empty", "is empty; download it again"),
        ("html", r"is no .npy file \(.*\); download it again"),
        ("two arrays", "more than its header says"),
        ("huge header", r"is truncated: .* 81,920,000,000,000,000,000 bytes, but 0 follow"),
        ("objects", "is an object array, .* convert it where you trust it: np.save"),
        ("int64", "holds int64, features are float32 or float16; convert it"),
        ("float64", "holds float64, features are float32"),
        (">f4", "holds float32 of the other byte order"),
        ("nan", r"entry \[5, 3, 700\] is nan; features must be finite: download or extract it again"),
        ("inf", r"entry \[5, 3, 700\] is inf; features must be finite"),
        ("dim", r"features of size 1024, wanted 2048 \(the format has 2048 or 2049\); .*--option dim=1024"),
        ("crops", r"\(7, 5, 2048\) does not hold the 10 crops of any axis; crops are missing"),
        ("2d", r"an array of shape \(7, 2048\), wanted \(T, 10, D\) or \(10, T, D\)"),
        ("no clips", r"an empty array of shape \(0, 10, 2048\)"),
    ],
)
def test_a_bad_file_is_refused_and_the_others_are_imported(tmp_path, how, message):
    names = ["a", "b", "c"]
    rtfm_set(tmp_path / "src", names)
    bad = tmp_path / "src" / "UCF" / "b_i3d.npy"
    spoiled(bad, how)
    report = import_features("rtfm", tmp_path / "src", [video(n) for n in names], tmp_path / "out")
    assert report.written == ["a", "c"]
    assert refusal(report, "b").startswith(str(bad))
    with pytest.raises(ValueError, match=message):
        raise ValueError(report.failures["b"])
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["video"] == "b"
    assert "1 videos were refused" in report.describe(tmp_path / "out")
    assert report.counts == {"train": (2, 3)}


def test_header_of_python_2(tmp_path):
    """Files of 2018 say (7L, 10L, 2048L)."""
    (x, _) = rtfm_set(tmp_path / "src")
    path = tmp_path / "src" / "UCF" / "Abuse001_x264_i3d.npy"
    raw = path.read_bytes().replace(b"(7, 10, 2048), }   ", b"(7L, 10L, 2048L), }", 1)
    assert raw != path.read_bytes()
    path.write_bytes(raw)
    assert not import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out").failures
    np.testing.assert_array_equal(stored(tmp_path / "out", "Abuse001_x264"), x.transpose(1, 0, 2))


def test_both_axes_fit(tmp_path):
    x = rtfm_set(tmp_path / "src", T=10)[0]
    report = import_features("rtfm", tmp_path / "src", [video("Abuse001_x264")], tmp_path / "out")
    assert (
        "may be (T, K, D) or (K, T, D), since T is 10 too; declare --option axes=tkd or --option axes=ktd"
        in refusal(report, "Abuse001_x264")
    )
    for axes, wanted in (("tkd", x.transpose(1, 0, 2)), ("ktd", x)):
        out = tmp_path / axes
        import_features("rtfm", tmp_path / "src", [video("Abuse001_x264")], out, options={"axes": axes})
        np.testing.assert_array_equal(stored(out, "Abuse001_x264"), wanted)


def test_axes_other_than_published_are_read_and_noted(tmp_path):
    x = save(tmp_path / "src" / "a_i3d.npy", numbers(10, 7, 2048))
    report = import_features("rtfm", tmp_path / "src", [video("a", 112)], tmp_path / "out")
    assert report.notes == ["1 videos, e.g. a: axes ktd, not the published tkd: read so"]
    np.testing.assert_array_equal(stored(tmp_path / "out", "a"), x)
    report = import_features("rtfm", tmp_path / "src", [video("a")], tmp_path / "no", options={"axes": "tkd"})
    assert "does not hold the 10 crops of axes tkd" in refusal(report, "a")


@pytest.mark.parametrize(("frames", "good"), [(80, False), (81, True), (96, True), (127, True), (128, False)])
def test_clips_must_fit_the_video(tmp_path, frames, good):
    """Six clips are ceil(F/16) of 81 frames, floor(F/16) of 96 and floor(F/16) - 1 of 127."""
    save(tmp_path / "src" / "a_i3d.npy", numbers(6, 10, 2048))
    report = import_features("rtfm", tmp_path / "src", [video("a", frames)], tmp_path / "out")
    if good:
        assert report.written == ["a"]
    else:
        assert f"T=6, but the manifest's {frames} frames make" in refusal(report, "a")
        assert "another video's, or num_frames is wrong" in report.failures["a"]


def test_crops_of_a_video(tmp_path):
    for name in ("whole", "lacks", "uneven", "nan"):
        for k in range(5):
            if (name, k) != ("lacks", 3):
                x = numbers(4 if (name, k) == ("uneven", 2) else 3, 1024)
                x[1, 7] = np.nan if (name, k) == ("nan", 4) else 0
                save(tmp_path / "src" / f"{name}__{k}.npy", x)
    names = ["whole", "lacks", "uneven", "nan", "absent"]
    report = import_features("xd", tmp_path / "src", [video(n) for n in names], tmp_path / "out")
    assert report.written == ["whole"]
    assert "4 of 5 crops are there, missing corner3: no lacks__3.npy; download it again" in report.failures["lacks"]
    assert "uneven__2.npy: 4 clips, but 3 in uneven__0.npy" in report.failures["uneven"]
    assert "nan__4.npy: entry [1, 7] is nan" in report.failures["nan"]
    assert "no absent__0.npy below" in report.failures["absent"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: "\n".join(t.splitlines()[:31]), "has 31 lines of numbers, wanted 32"),
        (lambda t: t[: len(t) * 9 // 10 - 3000], "lines of numbers, wanted 32"),
        (lambda t: t.rstrip()[:-9], "line 32 has 4095 numbers, wanted 4096"),
        (lambda t: t.replace("1.", "one", 1), "line 1 holds something else than numbers"),
        (lambda t: "nan" + t[t.index(" ") :], r"entry \[0, 0\] is nan"),
        (lambda t: "1e99" + t[t.index(" ") :], r"entry \[0, 0\] is inf"),
    ],
)
def test_sultani_refusals(tmp_path, change, message):
    write_sultani(tmp_path / "a.txt", np.ones((32, 4096), np.float32))
    (tmp_path / "a.txt").write_text(change((tmp_path / "a.txt").read_text()))
    report = import_features("sultani", tmp_path, [video("a", 1000)], tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        raise ValueError(refusal(report, "a"))
    assert not (tmp_path / "out").exists()  # a store begins with its first good video


def test_float16(tmp_path):
    x = rtfm_set(tmp_path / "src")
    x[1][3, 2, 1] = 7e4
    save(tmp_path / "src" / "UCF" / f"{RTFM[1].id}_i3d.npy", x[1])
    report = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out", dtype="float16")
    assert "holds 70000, but float16 ends at 65504; import with --dtype float32" in refusal(report, RTFM[1].id)
    found = stored(tmp_path / "out", RTFM[0].id)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x[0].transpose(1, 0, 2).astype(np.float16))


def test_finite_though_squares_overflow():
    assert is_finite(np.full(5, 3e38, np.float32))
    assert not is_finite(np.array([3e38, -np.inf], np.float32))
    assert not is_finite(np.array([0, np.nan], np.float32))
    assert is_finite(np.full((4, 6), 6e4, np.float16)[:, ::2])


def test_nan_far_into_a_long_file(tmp_path):
    """Files are checked piece by piece; the entry is named within the whole."""
    x = numbers(300, 10, 2048)
    x[287, 9, 2047] = np.nan
    save(tmp_path / "src" / "a_i3d.npy", x)
    report = import_features("rtfm", tmp_path / "src", [video("a")], tmp_path / "out")
    assert "entry [287, 9, 2047] is nan" in refusal(report, "a")


# -- folders, lists, stores -------------------------------------------------------------------------------------------


def test_two_files_of_one_name(tmp_path):
    rtfm_set(tmp_path / "src")
    shutil.copytree(tmp_path / "src" / "UCF", tmp_path / "src" / "copy")
    message = refusal(import_features("rtfm", tmp_path / "src", RTFM[:1], tmp_path / "out"), RTFM[0].id)
    first, second = (tmp_path / "src" / folder / f"{RTFM[0].id}_i3d.npy" for folder in ("UCF", "copy"))
    assert message.startswith(f"{first} and {second} are both '{RTFM[0].id}_i3d.npy'; keep one")


def test_one_file_for_two_videos(tmp_path):
    save(tmp_path / "src" / "Normal_Videos_1_i3d.npy", numbers(3, 10, 2048))
    videos = [video("Normal_Videos_1"), video("Normal_Videos1")]
    message = refusal(import_features("rtfm", tmp_path / "src", videos, tmp_path / "out"), "Normal_Videos1")
    assert "is also the file of 'Normal_Videos_1'; rename" in message


def test_names_with_backslashes_links_and_hidden_files(tmp_path):
    """An archive packed on Windows and unpacked by a careless tool holds backslashes in its names."""
    x = numbers(3, 10, 2048)
    save(tmp_path / "disk" / "UCF_Train_ten_crop_i3d\\a_i3d.npy", x)
    save(tmp_path / "disk" / "._a_i3d.npy", x[:1])
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "src")
    assert import_features("rtfm", tmp_path / "src", [video("a")], tmp_path / "out").written == ["a"]
    np.testing.assert_array_equal(stored(tmp_path / "out", "a"), x.transpose(1, 0, 2))


def test_files_of_no_video_and_names_that_are_listed_in_vain(tmp_path):
    rtfm_set(tmp_path / "src", ["a", "b", "c"])
    (tmp_path / "src" / "README.md").touch()
    report = import_features("rtfm", tmp_path / "src", [video("a", 112)], tmp_path / "out")
    (note,) = report.notes
    assert note.startswith(f"2 files below {tmp_path / 'src'} belong to no video of the manifest, e.g. ")
    assert note.endswith("b_i3d.npy")
    (tmp_path / "l.list").write_text("D:\\x\\a_i3d.npy\n/data/zz_i3d.npy\n")
    report = import_features(
        "rtfm", tmp_path / "src", [video("a", 112)], tmp_path / "2", options={"list": tmp_path / "l.list"}
    )
    assert report.notes == [
        f"1 files that {tmp_path / 'l.list'} names are not below {tmp_path / 'src'}, e.g. zz_i3d.npy"
    ]


def test_lists_as_people_write_them(tmp_path):
    lines = [
        "\ufeffpath,label",
        "C:\\a b\\v=x__#1_label_B1-0-0__0.npy,B1-0-0",
        "/x/Normal_Videos944__5.npy",
        "01_0014_3.npy 1.0",
        '"/x/quoted.npy",Abuse',
    ]
    (tmp_path / "l").write_text("\n".join(lines))
    wanted = {"v=x__#1_label_B1-0-0__0.npy", "Normal_Videos_944__5.npy", "01_0014_3.npy", "quoted.npy"}
    assert read_list(tmp_path / "l") == wanted
    (tmp_path / "l").write_text("Abuse001_x264.mp4\n")
    with pytest.raises(ValueError, match="names no feature file; wanted one path per line"):
        read_list(tmp_path / "l")
    with pytest.raises(FileNotFoundError, match="--option list=FILE"):
        read_list(tmp_path / "absent")


def test_nothing_to_import(tmp_path):
    (tmp_path / "src").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no video of format rtfm among 0 files below .*no Abuse001_x264_i3d"):
        import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="SRC is where the downloaded features lie"):
        import_features("rtfm", tmp_path / "absent", RTFM, tmp_path / "out")


def test_resume(tmp_path):
    rtfm_set(tmp_path / "src")
    second = tmp_path / "src" / "UCF" / f"{RTFM[1].id}_i3d.npy"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    first = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out")
    assert (first.written, list(first.failures)) == ([RTFM[0].id], [RTFM[1].id])
    before = FeatureStore(tmp_path / "out").path(RTFM[0].id).stat().st_mtime_ns
    second.write_bytes(whole)
    again = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out")
    assert (again.written, again.present, again.failures) == ([RTFM[1].id], [RTFM[0].id], {})
    assert FeatureStore(tmp_path / "out").path(RTFM[0].id).stat().st_mtime_ns == before
    shutil.rmtree(tmp_path / "src" / "UCF")  # what is in the store is not looked for
    (tmp_path / "src" / "b_i3d.npy").touch()
    assert again.describe(tmp_path / "out").startswith("1 videos imported, 1 were there already")


def test_a_store_of_something_else(tmp_path):
    rtfm_set(tmp_path / "src")
    import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out")
    with pytest.raises(SpecMismatchError, match="has dtype='float32', asked for 'float16'"):
        import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out", dtype="float16")
    options = {"axes": "tkd", "crops": "10", "pattern": "{id}_i3d.npy"}
    with pytest.raises(SpecMismatchError, match="has backbone='i3d_rtfm', asked for 'imported:npy'"):
        import_features("npy", tmp_path / "src", RTFM, tmp_path / "out", options=options)
    with pytest.raises(StoreError, match="is not empty and no feature store"):
        import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "src")


def test_many_missing_videos_are_counted_not_listed(tmp_path, caplog):
    rtfm_set(tmp_path / "src")
    videos = [*RTFM, *(video(f"absent{i}", split="test") for i in range(50))]
    report = import_features("rtfm", tmp_path / "src", videos, tmp_path / "out")
    assert len(report.failures) == 50
    assert len(caplog.records) == 20
    lines = report.describe(tmp_path / "out").splitlines()
    assert lines[1] == "videos of the manifest that are in the store: train 2 of 2, test 0 of 50"
    assert lines[-1] == f"  ... and 30 more, all in {tmp_path / 'out' / 'failures.jsonl'}"
    assert len((tmp_path / "out" / "failures.jsonl").read_text().splitlines()) == 50


def test_official_counts_are_named(tmp_path):
    report = ImportReport(counts={"train": (238, 238), "test": (198, 199)})
    wanted = "train 238 of 238, test 198 of 199 (the official counts of ShanghaiTech, weak split)"
    assert wanted in report.describe(tmp_path)
    assert report.as_dict()["counts"]["test"] == {"found": 198, "wanted": 199}
    assert "the official counts" not in ImportReport(counts={"train": (238, 238)}).describe(tmp_path)


def test_another_size_of_d_is_declared(tmp_path):
    """Simulated sets, for speed, have the published layout and a small D."""
    rtfm_set(tmp_path / "src", D=4)
    report = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "no")
    assert "--option dim=4 where that is meant" in report.failures[RTFM[0].id]
    report = import_features("rtfm", tmp_path / "src", RTFM, tmp_path / "out", options=["dim=4"])
    assert len(report.written) == 2
    json.dumps(report.as_dict())


def test_crop_orders_agree_with_their_geometry():
    """Each order, derived from where the crops lie in the frame and in the mirrored frame."""
    mirrored = {"top_left": "top_right", "top_right": "top_left", "bottom_left": "bottom_right",
                "bottom_right": "bottom_left", "center": "center"}  # fmt: skip
    for order in (TORCHVISION_TEN, OVERSAMPLE_TEN):  # the same positions, cut from the mirrored picture
        assert order[5:] == tuple(f"mirror_{mirrored[name]}" for name in order[:5])
    for order in (CAFFE_TEN, CENTER_TEN):  # each crop mirrored, in the same order
        assert order[5:] == tuple(f"mirror_{name}" for name in order[:5])
    assert [order.index("center") for order in (TORCHVISION_TEN, OVERSAMPLE_TEN, CAFFE_TEN, CENTER_TEN)] == [4, 2, 4, 0]


def test_formats_keep_their_sizes_of_d(tmp_path):
    """A folder of mixed files: the store holds one D, by the first files, and the others are named."""
    for name, D in (("a", 2049), ("b", 2049), ("c", 2048)):
        save(tmp_path / f"{name}_i3d.npy", numbers(3, 10, D))
    report = import_features("rtfm", tmp_path, [video(n) for n in "abc"], tmp_path / "out")
    assert "features of size 2048, wanted 2049" in refusal(report, "c")
    assert replace(FeatureStore(tmp_path / "out").spec, dim=2048) == format_of("rtfm").spec
