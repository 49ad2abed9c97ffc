"""Official lists and annotations -> videos: on small trees with the traps of the real ones, and on the real ones."""

from dataclasses import replace

import numpy as np
import pytest

from data import manifest
from data.datasets import DatasetIndex, datasets
from data.datasets.folder import _fraction
from data.datasets.sources import base_name, lines_of, parse_annotation, read_annotations, video_of_feature
from data.datasets.xd_violence import classes_of
from data.types import Event, Video
from mil.listing import index_dataset
from tests.helpers import shared


def tree(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def load(name, root, **options):
    return datasets.get(name)(root, **options)


def one(lines, *parts):
    """The line that holds all the parts; fails unless there is exactly one."""
    found = [line for line in lines if all(part in line for part in parts)]
    assert len(found) == 1, (parts, lines)
    return found[0]


# -- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "entry", "events", "num_frames"),
    [
        ("Abuse028_x264.mp4  Abuse  165  240  -1  -1  ", "Abuse028_x264.mp4", [(165, 240, "Abuse")], None),
        ("A.mp4\tArson\t5 9  20 30", "A.mp4", [(5, 9, "Arson"), (20, 30, "Arson")], None),
        (
            "Arson/Arson022_x264.mp4 8640 Arson 3500 4000 -1 -1",
            "Arson/Arson022_x264.mp4",
            [(3500, 4000, "Arson")],
            8640,
        ),
        ("N_872_x264.mp4 530 Normal -1 -1 -1 -1", "N_872_x264.mp4", [], 530),
        ("v=x__#1_label_B4-0-0 0 1517 1970 3038", "v=x__#1_label_B4-0-0", [(0, 1517, ""), (1970, 3038, "")], None),
        ("v=x_label_G-B2-0 G 7 9 B2 1 5", "v=x_label_G-B2-0", [(1, 5, "B2"), (7, 9, "G")], None),
        ("name", "name", [], None),
    ],
)
def test_annotation_lines(line, entry, events, num_frames):
    found = parse_annotation(line)
    assert (found.entry, found.num_frames) == (entry, num_frames)
    assert found.events == tuple(Event(*e) for e in events)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x 5", "5 has no stop"),
        ("x 1 2 3", "3 has no stop"),
        ("x 5 Arson 7", "no stop|stands between"),
        ("x Arson 5 Arson 7", "'Arson' stands between a start and its stop"),
        ("x 9 5", "0 <= start < stop"),
        ("x -1 5", "0 <= start < stop"),
    ],
)
def test_annotation_lines_that_make_no_sense(line, message):
    with pytest.raises(ValueError, match=message):
        parse_annotation(line)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("Abuse/Abuse001_x264.mp4", "Abuse001_x264"),
        ("C:\\data\\UCF\\Abuse\\Abuse001_x264.MP4", "Abuse001_x264"),
        ("/home/x/Bad.Boys.1995__#01-11-55_label_G-B2-B6", "Bad.Boys.1995__#01-11-55_label_G-B2-B6"),
        ("Bad.Boys.1995__#1_label_A.mp4", "Bad.Boys.1995__#1_label_A"),
        ("v=S-7rRLrxnVQ__#1_label_B4-0-0", "v=S-7rRLrxnVQ__#1_label_B4-0-0"),
    ],
)
def test_base_names(entry, name):
    assert base_name(entry) == name


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("x__3_label_A__0.npy", "x__3_label_A"),
        ("x__3__4.npy", "x__3"),
        (r"C:\Users\My Name\RGB\v=S-7__#1_label_B4-0-0__4.npy", "v=S-7__#1_label_B4-0-0"),
        ("/d/Bad.Boys.1995__#00-26_label_B2-0-0__vggish.npy", "Bad.Boys.1995__#00-26_label_B2-0-0"),
        ("/d/Bad.Boys.1995__#00-26_label_B2-0-0_i3d.npy 1", "Bad.Boys.1995__#00-26_label_B2-0-0"),
        ('"d/x_label_A__0.npy",A', "x_label_A"),
        ("/d/x_label_A__12.npy,A", "x_label_A"),
        ("x_label_A.npy", "x_label_A"),
        ("x__vggish__1.npy", "x__vggish"),
        ("d/x__1_label_A.mp4", "x__1_label_A"),
        ("Bad.Boys.1995__#1_label_A", "Bad.Boys.1995__#1_label_A"),
    ],
)
def test_only_the_last_crop_number_is_no_part_of_the_name(entry, name):
    assert video_of_feature(entry) == name


def test_faulty_annotations_are_named_by_line_and_the_rest_is_read(tmp_path):
    path = tmp_path / "annotations.txt"
    path.write_bytes(b"\xef\xbb\xbfa.mp4  1  5\r\n\r\nb 9\r\nd/a 3 4\r\nc 1 2\r\n")
    found, problems = read_annotations(path)
    assert {n: a.events for n, a in found.items()} == {"a": (Event(1, 5),), "c": (Event(1, 2),)}
    assert len(problems) == 2
    assert one(problems, f"{path}:3: ", "9 has no stop", "wanted 'name start stop")
    assert one(problems, f"{path}:4: ", "'a' is annotated twice; keep one line")


def test_ids_are_unique():
    with pytest.raises(ValueError, match="2 videos have the id 'a'; rename one"):
        DatasetIndex((Video("a", "", "train", 0), Video("a", "", "test", 0)))


# -- UCF-Crime --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ucf(tmp_path):
    tree(
        tmp_path / "v",
        "Abuse/Abuse001_x264.mp4",
        "Arson/Arson011_x264.mp4",
        "Training_Normal_Videos_Anomaly/Normal_Videos001_x264.mp4",
        "Testing_Normal_Videos_Anomaly/Normal_Videos944_x264.mp4",
    )
    (tmp_path / "Anomaly_Train.txt").write_text(
        "Abuse/Abuse001_x264.mp4\nTraining_Normal_Videos_Anomaly/Normal_Videos001_x264.mp4\n\n"
    )
    (tmp_path / "Anomaly_Test.txt").write_text(
        "C:\\UCF\\Arson\\Arson011_x264.mp4\r\nTesting_Normal_Videos_Anomaly/Normal_Videos_944_x264.mp4\r\n"
    )
    (tmp_path / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt").write_text(
        "Arson011_x264.mp4  Arson  150  420  680  1267  \nNormal_Videos_944_x264.mp4  Normal  -1  -1  -1  -1  \n"
    )
    return tmp_path


def append(root, pattern, text):
    (path,) = root.glob(pattern)
    path.write_text(path.read_text() + text)


def test_ucf_crime(ucf):
    found = load("ucf_crime", ucf)
    assert (found.problems, found.notes) == ((), ())
    assert [(v.id, v.split, v.label, v.classes) for v in found.videos] == [
        ("Abuse001_x264", "train", 1, ("Abuse",)),
        ("Normal_Videos001_x264", "train", 0, ()),
        ("Arson011_x264", "test", 1, ("Arson",)),
        ("Normal_Videos_944_x264", "test", 0, ()),
    ]
    assert found.videos[2].events == (Event(150, 420, "Arson"), Event(680, 1267, "Arson"))
    assert [v.events for i, v in enumerate(found.videos) if i != 2] == [()] * 3
    assert found.videos[3].path.endswith("Normal_Videos944_x264.mp4")  # listed with one more underscore
    assert found.summary() == {
        "train": 2, "train_anomalous": 1, "train_events": 0, "test": 2, "test_anomalous": 1, "test_events": 2
    }  # fmt: skip


def test_ucf_crime_with_the_lists_elsewhere(ucf):
    assert load("ucf_crime", ucf / "v", lists=ucf) == load("ucf_crime", ucf)
    with pytest.raises(FileNotFoundError, match=r"no Anomaly_Train\*.txt below .*lists=DIR"):
        load("ucf_crime", ucf / "v")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nope; --root is the folder"):
        load("ucf_crime", ucf / "nope", lists=ucf)


def test_ucf_crime_names_what_lists_and_folder_disagree_on(ucf):
    append(ucf, "Anomaly_Train.txt", "Abuse/Abuse002_x264.mp4\nAbuse/Abuse001_x264.mp4\n")
    append(ucf, "Anomaly_Test.txt", "Abuse/Abuse001_x264.mp4\nFight/Fight1_x264.mp4\nFight/Fight2_x264.mp4\n")
    append(ucf, "Anomaly_Test.txt", "N/Normal_Videos_945_x264.mp4\nFight/Fight3_x264.mp4\n")
    append(ucf, "Temporal*", "Fight2_x264.mp4  Fight  -1  -1  -1  -1\nNormal_Videos_945_x264.mp4 Normal 5 9 -1 -1\n")
    append(ucf, "Temporal*", "Ghost_x264.mp4  Fight  1  9\nFight3_x264.mp4  Fight  9  -1  -1  -1\n")
    tree(ucf / "v", "Fight/Fight1_x264.mp4", "Fight/Fight2_x264.mp4", "N/Normal_Videos_945_x264.mp4", "extra.mp4")
    tree(ucf / "v", "Fight/Fight3_x264.mp4")
    found = load("ucf_crime", ucf)
    assert len(found.videos) == 4
    assert one(found.problems, "Anomaly_Train.txt:4", "no video file for 'Abuse/Abuse002_x264.mp4'; download it")
    assert one(found.problems, "Anomaly_Train.txt:5", "'Abuse001_x264' is listed already, in train")
    assert one(found.problems, "Anomaly_Test.txt:3", "'Abuse001_x264' is listed already, in train")
    assert one(found.problems, "Anomaly_Test.txt:4", "'Fight1_x264' has no line in the temporal annotation; add one")
    assert one(
        found.problems, "Anomaly_Test.txt:5", "'Fight2_x264' is anomalous by its name, but annotated with 0 events"
    )
    assert one(found.problems, "Anomaly_Test.txt:6", "'Normal_Videos_945_x264' is normal by its name", "1 events")
    assert one(found.problems, "Annotation_for_Testing_Videos.txt:6", "wanted 'name start stop")
    assert one(found.problems, "Anomaly_Test.txt:7", "'Fight3_x264' has no line")
    assert len(found.problems) == 8
    assert one(found.notes, "'Ghost_x264' is in neither list")
    assert one(found.notes, "1 files below", "extra.mp4")


def test_one_file_cannot_be_in_both_splits_under_two_spellings(ucf):
    append(ucf, "Anomaly_Train.txt", "Training_Normal_Videos_Anomaly/Normal_Videos944_x264.mp4\n")
    found = load("ucf_crime", ucf)
    assert one(found.problems, "Anomaly_Test.txt:2", "'Normal_Videos_944_x264' is listed already, in train")
    assert len({v.path for v in found.videos}) == len(found.videos)


def test_of_two_files_the_lists_folder_decides(ucf):
    tree(ucf / "v", "copy/Abuse001_x264.mp4")
    found = load("ucf_crime", ucf)
    assert found.videos[0].path == str(ucf / "v" / "Abuse" / "Abuse001_x264.mp4")
    tree(ucf / "v", "copy/Abuse/Abuse001_x264.mp4")
    found = load("ucf_crime", ucf)
    assert one(found.problems, "3 files for 'Abuse/Abuse001_x264.mp4'", "keep one")
    assert len(found.videos) == 3


def test_ucf_annotations_with_frame_counts_are_clamped(ucf):
    (path,) = ucf.glob("Temporal*")
    path.write_text(
        "Arson/Arson011_x264.mp4 1266 Arson 150 420 680 1267\nX/Normal_Videos_944_x264.mp4 30 Normal -1 -1 -1 -1\n"
    )
    found = load("ucf_crime", ucf)
    assert found.problems == ()
    assert found.videos[2].events[-1] == Event(680, 1266, "Arson")
    assert [v.num_frames for v in found.videos] == [None, None, 1266, 30]
    path.write_text("Arson011_x264.mp4 600 Arson 150 420 680 1267\nNormal_Videos_944_x264.mp4 30 Normal -1 -1 -1 -1\n")
    assert one(load("ucf_crime", ucf).problems, "Arson011_x264: an event starts at frame 680", "600 frames")


def test_ucf_crime_from_the_lists_alone(ucf):
    lengths = {"Arson011_x264": 1300, "Normal_Videos_944_x264": 500}
    found = load("ucf_crime", ucf, videos=False)
    wanted = load("ucf_crime", ucf).videos
    assert found.videos == tuple(replace(v, path="") for v in wanted)
    assert found.problems == ()
    assert found.notes == ("4 of 4 videos have no num_frames: their lengths will come from the features",)
    counted = ucf / "UCF_Annotation.txt"
    counted.write_text(
        "Arson/Arson011_x264.mp4 1300 Arson 150 420 680 1267\nX/Normal_Videos944_x264.mp4 500 Normal -1 -1 -1 -1\n"
    )
    found = load("ucf_crime", ucf, videos=False)
    assert found.videos == tuple(replace(v, path="", num_frames=lengths.get(v.id)) for v in wanted)
    assert found.notes == ("2 of 4 videos have no num_frames: their lengths will come from the features",)
    assert load("ucf_crime", ucf).notes == ()
    assert load("ucf_crime", ucf).videos == tuple(replace(v, num_frames=lengths.get(v.id)) for v in wanted)
    (spans,) = ucf.glob("Temporal*")
    spans.unlink()
    assert load("ucf_crime", ucf, videos=False) == found  # spans and lengths from one file
    counted.unlink()
    with pytest.raises(FileNotFoundError, match=r"no Temporal_Anomaly_Annotation\*\.txt below .*lists=DIR"):
        load("ucf_crime", ucf, videos=False)


def test_of_two_annotation_files_the_temporal_one_says_the_spans(ucf):
    (ucf / "UCF_Annotation.txt").write_text(
        "Arson/Arson011_x264.mp4 1000 Arson 1 2\nNormal_Videos_944_x264.mp4 50 Normal -1 -1\nodd 1\nx 1 2 3\n"
    )
    found = load("ucf_crime", ucf, videos=False)
    assert found.videos[2].events == (Event(150, 420, "Arson"), Event(680, 1000, "Arson"))
    assert one(found.notes, "1 videos have other spans in UCF_Annotation.txt, e.g. 'Arson011_x264'; not used")
    assert len(found.problems) == 2
    assert one(found.problems, "UCF_Annotation.txt:3", "1 has no stop")
    assert one(found.problems, "UCF_Annotation.txt:4", "3 has no stop")


# -- XD-Violence ------------------------------------------------------------------------------------------------------


def test_xd_violence(tmp_path):
    names = {
        "train/1-1004/Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0": ("train", ("B2",), ()),
        "train/2005-2804/v=x=y__#1_label_A": ("train", (), ()),
        "train/deep/Riot__#2_label_B4-0-G": ("train", ("B4", "G"), ()),
        "test_videos/Fight.Club.1999__#1_label_B1": ("test", ("B1",), (Event(5, 9, "B1"), Event(20, 30, "B1"))),
        "videos_test/v=S-7rRLrxnVQ__#1_label_G-B2-B6": ("test", ("G", "B2", "B6"), (Event(0, 1517),)),
        "test/A.Beautiful.Mind.2001__#00-25-20_label_A": ("test", (), ()),
    }
    tree(tmp_path, *(f"{name}.mp4" for name in names), "train/.hidden_label_A.mp4", "train/notes_label_A.txt")
    (tmp_path / "annotations.txt").write_text(
        "Fight.Club.1999__#1_label_B1.mp4 20 30  5 9\nv=S-7rRLrxnVQ__#1_label_G-B2-B6 0 1517\n"
    )
    found = load("xd_violence", tmp_path)
    assert found.problems == ()
    by_id = {v.id: (v.split, v.classes, v.events) for v in found.videos}
    assert by_id == {name.split("/")[-1]: wanted for name, wanted in names.items()}
    assert all(v.label == bool(v.classes) for v in found.videos)
    path = tmp_path / "m.csv"
    manifest.write(path, found.videos)
    assert manifest.read(path) == found.videos


def test_xd_violence_names_what_is_wrong(tmp_path):
    tree(
        tmp_path,
        "train/x_label_B1-0-0.mp4",
        "test/x_label_B1-0-0.mp4",
        "test/unannotated_label_B1-0-0.mp4",
        "test/normal_label_A.mp4",
        "train/nolabel.mp4",
        "train/odd_label_B3-0-0.mp4",
        "train/zeros_label_0-0-0.mp4",
        "train/both_label_A-B1-0.mp4",
        "train/trained_label_G-0-0.mp4",
    )
    (tmp_path / "annotations.txt").write_text(
        "normal_label_A 5 9\ngone_label_B1-0-0 1 2\ntrained_label_G-0-0 1 2\nodd line 3\n"
    )
    found = load("xd_violence", tmp_path)
    assert [v.id for v in found.videos] == ["trained_label_G-0-0"]
    assert one(found.problems, "test/x_label_B1-0-0.mp4", "train/x_label_B1-0-0.mp4", "have the same name; keep one")
    assert one(found.problems, "unannotated", "a violent test video without a line in annotations.txt")
    assert one(found.problems, "normal_label_A.mp4", "a normal video (label 0) has no events")
    assert one(found.problems, "nolabel.mp4", "does not end in _label_A or _label_B1-0-0")
    assert one(found.problems, "odd_label", "unknown code B3")
    assert one(found.problems, "zeros_label", "label '0-0-0'")
    assert one(found.problems, "both_label", "unknown code A")
    assert one(found.problems, "names 'gone_label_B1-0-0', which is no test video")
    assert one(found.problems, "names 'trained_label_G-0-0', which is no test video")
    assert one(found.problems, "annotations.txt:4", "3 has no stop")


def test_xd_violence_without_annotations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotations\.txt below .*lists=DIR"):
        load("xd_violence", tmp_path)


XD = {
    "train": ["Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0", "v=x__3_label_A"],
    "test": ["Fight.Club.1999__#1_label_B1-0-0", "x__0_label_A"],
}


@pytest.fixture
def xd(tmp_path):
    (tmp_path / "annotations.txt").write_text("Fight.Club.1999__#1_label_B1-0-0.mp4 5 9\n")
    return tmp_path


def names_of(found):
    return {split: [v.id for v in found.videos if v.split == split] for split in ("train", "test")}


def xd_line(style, name, split, k):
    label = name.rpartition("_label_")[2]
    return {
        "names": name,
        "hlnet": f"/home/wu/i3d-features/{'RGB' if split == 'train' else 'RGBTest'}/{name}__{k}.npy",
        "urdmu": f"C:\\Users\\a b\\XD\\{name}__{k}.npy",
        "vadclip": f"/d/XDTrainClipFeatures/{name}__{k}.npy,{label}",
    }[style]


@pytest.mark.parametrize(
    ("style", "train", "test"),
    [
        ("names", "train_names.txt", "test_names.txt"),
        ("hlnet", "rgb.list", "rgb_test.list"),
        ("urdmu", "XD_Train.list", "XD_Test.list"),
        ("vadclip", "xd_CLIP_rgb.csv", "xd_CLIP_rgbtest.csv"),
    ],
)
def test_xd_violence_from_lists_alone(xd, style, train, test):
    (xd / "list").mkdir()
    tree(xd, "RGB/not_listed_label_A__0.npy", "list/UCF_Train.list", "list/UCF_Test.list")
    for split, file in (("train", train), ("test", test)):
        lines = [xd_line(style, name, split, k) for name in XD[split] for k in range(1 if style == "names" else 5)]
        header = ["path,label"] * (style == "vadclip")
        (xd / "list" / file).write_text("\r\n".join(header + lines) + "\r\n")
    found = load("xd_violence", xd, videos=False)
    assert found.problems == ()
    assert names_of(found) == XD
    assert found.notes == ("4 of 4 videos have no num_frames: their lengths will come from the features",)
    assert [(v.label, v.path, v.num_frames) for v in found.videos] == [(1, "", None), (0, "", None)] * 2
    assert found.videos[2].events == (Event(5, 9, "B1"),)
    assert load("xd_violence", xd / "RGB", lists=xd, videos=False) == found


def test_xd_violence_from_feature_files_alone(xd):
    tree(xd, *(f"i3d/RGB/{n}__{k}.npy" for n in XD["train"] for k in range(5)))
    tree(xd, *(f"i3d/RGBTest/{n}__{k}.npy" for n in XD["test"] for k in range(5)))
    tree(xd, *(f"i3d/FlowTest/{n}__{k}.npy" for n in XD["test"] for k in range(5)))
    tree(xd, *(f"vggish/{s}/{n}__vggish.npy" for s in XD for n in XD[s]))
    tree(xd, "gt.npy", "i3d/RGB/._hidden_label_A__0.npy")
    found = load("xd_violence", xd, videos=False)
    assert found.problems == ()
    assert names_of(found) == XD
    (xd / "test_names.txt").write_text("Fight.Club.1999__#1_label_B1-0-0\n")  # a list counts more, for its split
    assert names_of(load("xd_violence", xd, videos=False)) == {"train": XD["train"], "test": XD["test"][:1]}


def test_xd_violence_without_videos_names_what_is_wrong(xd):
    with pytest.raises(FileNotFoundError, match=r"no train_names\.txt, .* and no feature files .*lists=DIR"):
        load("xd_violence", xd, videos=False)
    (xd / "rgb.list").write_text("".join(f"{n}__{k}.npy\n" for n in [*XD["train"], "odd_label_Z"] for k in range(5)))
    found = load("xd_violence", xd, videos=False)
    assert one(found.notes, "no test videos: none of test_names.txt, rgb_test.list")
    assert one(found.problems, "rgb.list:11 (odd_label_Z): label 'Z' has the unknown code Z")
    assert one(found.problems, "names 'Fight.Club.1999__#1_label_B1-0-0', which is no test video")
    assert len(found.problems) == 2
    (xd / "rgb_test.list").write_text(f"{XD['train'][1]}__0.npy\ny_label_B1-0-0__0.npy\n{XD['test'][0]}__0.npy\n")
    found = load("xd_violence", xd, videos=False)
    assert one(found.problems, "rgb_test.list:1", "'v=x__3_label_A' is in train already; keep one")
    assert one(found.problems, "rgb_test.list:2 (y_label_B1-0-0): a violent test video without a line")
    assert len(found.problems) == 3


# -- ShanghaiTech -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shanghai(tmp_path):
    (tmp_path / "SH_Train.txt").write_bytes(b"01_0014\r\n01_002,0\r\n")
    (tmp_path / "SH_Test.txt").write_text("01_0015,1\n02_001\n")
    masks = tmp_path / "testing" / "test_frame_mask"
    masks.mkdir(parents=True)
    mask = np.zeros(60, np.int64)
    mask[[0, 1, 30, 31, 59]] = 1
    np.save(masks / "01_0015.npy", mask)
    np.save(masks / "99_0001.npy", mask)  # in neither list
    pixels = tmp_path / "testing" / "test_pixel_mask"
    pixels.mkdir()
    np.save(pixels / "01_0015.npy", np.zeros((60, 4, 4)))
    tree(tmp_path, "testing/frames/01_0014/000.jpg", "testing/frames/01_0015/000.jpg", "testing/frames/01_0015/._0.jpg")
    tree(tmp_path, "training/videos/01_002.avi", "training/videos/02_001.avi")
    return tmp_path


def test_shanghaitech(shanghai):
    found = load("shanghaitech", shanghai)
    assert (found.problems, found.notes) == ((), ())
    assert [(v.id, v.split, v.label, v.classes, v.num_frames, v.fps) for v in found.videos] == [
        ("01_0014", "train", 1, ("anomaly",), None, 24.0),
        ("01_002", "train", 0, (), None, 24.0),
        ("01_0015", "test", 1, ("anomaly",), 60, 24.0),
        ("02_001", "test", 0, (), None, 24.0),
    ]
    assert [(e.start, e.stop) for e in found.videos[2].events] == [(0, 2), (30, 32), (59, 60)]
    assert [v.path.removeprefix(f"{shanghai}/") for v in found.videos] == [
        "testing/frames/01_0014", "training/videos/01_002.avi", "testing/frames/01_0015", "training/videos/02_001.avi"
    ]  # fmt: skip


def test_shanghaitech_from_the_lists_alone(shanghai, tmp_path_factory):
    found = load("shanghaitech", shanghai, videos=False)
    assert found.videos == tuple(replace(v, path="") for v in load("shanghaitech", shanghai).videos)
    assert found.notes == ("3 of 4 videos have no num_frames: their lengths will come from the features",)
    assert load("shanghaitech", tmp_path_factory.mktemp("features"), lists=shanghai, videos=False) == found
    (shanghai / "SH_Test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no SH_Test\.txt below .*lists=DIR"):
        load("shanghaitech", shanghai, videos=False)


def test_shanghaitech_names_what_is_wrong(shanghai):
    masks = shanghai / "testing" / "test_frame_mask"
    with (shanghai / "SH_Test.txt").open("a") as file:
        file.write("03_0001\n03_0002\n03_0003\n03_0004\n03_0005\n03_0006\n1_2\n01_002\n")
    np.save(masks / "03_0002.npy", np.zeros(9))
    np.save(masks / "03_0003.npy", np.full(9, 2))
    np.save(masks / "03_0004.npy", np.ones((9, 2)))
    np.save(masks / "03_0005.npy", np.array([{}]), allow_pickle=True)
    (masks / "03_0006.npy").write_bytes(b"")
    found = load("shanghaitech", shanghai, videos=False)
    assert len(found.videos) == 4
    assert one(found.problems, "SH_Test.txt:3", "no test_frame_mask/03_0001.npy")
    for line, name in ((4, "03_0002"), (5, "03_0003"), (6, "03_0004")):
        assert one(found.problems, f"SH_Test.txt:{line}", f"{name}.npy must hold a 0 or 1 per frame, some of them 1")
    assert one(found.problems, "SH_Test.txt:7", "03_0005.npy is no .npy file that can be read")
    assert one(found.problems, "SH_Test.txt:8", "03_0006.npy is no .npy file that can be read")
    assert one(found.problems, "SH_Test.txt:9", "'1_2' is no name of ShanghaiTech")
    assert one(found.problems, "SH_Test.txt:10", "'01_002' is listed already, in train")
    assert len(found.problems) == 8
    tree(shanghai, "copy/frames/01_0014/000.jpg")
    found = load("shanghaitech", shanghai)
    assert one(found.problems, "SH_Train.txt:1", "2 files for '01_0014'", "keep one")
    assert one(found.problems, "SH_Test.txt:3", "no video file for '03_0001'; download it")


# -- UCSD pedestrians -------------------------------------------------------------------------------------------------

# of the form of the file that comes with Ped2; its numbers are made up
MATLAB = "TestVideoFile = {};\n% TestVideoFile{end+1}.gt_frame = [1:9];\n" + "".join(
    f"TestVideoFile{{end+1}}.gt_frame = [{10 + i}:{20 + i}, {50 + i}:{60 + i}];\n" for i in range(12)
)


@pytest.fixture
def ucsd(tmp_path):
    home = tmp_path / "UCSDped2"
    tree(
        home,
        *(f"Train/Train{i:03d}/001.tif" for i in range(1, 17)),
        *(f"Test/Test{i:03d}/001.tif" for i in range(1, 13)),
    )
    tree(home, *(f"Test/Test{i:03d}_gt/001.bmp" for i in range(1, 13)), "Test/Test001/._001.tif")
    (home / "Test" / "UCSDped2.m").write_text(MATLAB)
    return tmp_path


def test_ucsd_ped2(ucsd):
    found = load("ucsd_ped", ucsd)
    assert (found.problems, found.notes) == ((), ())
    assert found.summary() == {
        "train": 10, "train_anomalous": 6, "train_events": 0, "test": 18, "test_anomalous": 6, "test_events": 12
    }  # fmt: skip
    for v in found.videos:
        assert v.path == str(ucsd / "UCSDped2" / v.id[:-3] / v.id)
        assert (v.label, v.fps, v.num_frames) == (int(v.id.startswith("Test")), 10.0, None)
        i = int(v.id[-3:]) - 1  # 1-based with both ends -> 0-based, half-open
        spans = [(9 + i, 20 + i), (49 + i, 60 + i)] if v.label and v.split == "test" else []
        assert [(e.start, e.stop) for e in v.events] == spans
    assert load("ucsd_ped", ucsd) == found


def test_ucsd_ped2_splits(ucsd):
    def training(**options):
        found = load("ucsd_ped", ucsd, videos=False, **options)
        assert one(found.notes, "28 of 28 videos have no num_frames")
        assert {v.path for v in found.videos} == {""}
        return sorted(v.id for v in found.videos if v.split == "train")

    splits = [training(seed=seed) for seed in range(10)]
    assert all(sum(n.startswith("Test") for n in names) == 6 and len(names) == 10 for names in splits)
    assert len(set(map(tuple, splits))) == 10
    assert training(seed=3) == splits[3]
    assert training(split="tevad") == [
        *("Test002", "Test006", "Test009", "Test010", "Test011", "Test012"),
        *("Train007", "Train008", "Train014", "Train015"),
    ]


def test_ucsd_names_what_is_wrong(ucsd):
    with pytest.raises(ValueError, match="ped is 1 or 2"):
        load("ucsd_ped", ucsd, ped=3)
    with pytest.raises(FileNotFoundError, match=r"no UCSDped1\.m below"):
        load("ucsd_ped", ucsd, ped=1)
    file = ucsd / "UCSDped2" / "Test" / "UCSDped2.m"
    file.write_text(MATLAB[: MATLAB.rindex("Test")])
    with pytest.raises(ValueError, match=r"UCSDped2\.m gives frames for 11 of 11 test clips, wanted 12"):
        load("ucsd_ped", ucsd)
    file.write_text(MATLAB)
    (ucsd / "UCSDped2" / "Test" / "Test003" / "001.tif").unlink()
    assert one(load("ucsd_ped", ucsd).problems, "no video file for 'Test003'")


# -- options as the command line gives them ---------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "videos"), [("yes", 1), ("True", 1), ("1", 1), ("no", 0), ("false", 0), ("0", 0)])
def test_a_switch_takes_yes_and_no(ucf, text, videos):
    found = index_dataset("ucf_crime", ucf, [f"videos={text}", f"lists={ucf}"])
    assert found == load("ucf_crime", ucf, videos=bool(videos))


@pytest.mark.parametrize("text", ["", "maybe", "2", "yes "])
def test_a_switch_takes_nothing_else(ucf, text):
    with pytest.raises(ValueError, match=f"option videos of dataset ucf_crime must be yes or no, got '{text}'"):
        index_dataset("ucf_crime", ucf, [f"videos={text}"])


def test_options_of_other_types(ucsd):
    assert index_dataset("ucsd_ped", ucsd, ["seed=3", "videos=no"]) == load("ucsd_ped", ucsd, seed=3, videos=False)
    with pytest.raises(ValueError, match="option seed of dataset ucsd_ped must be of type int, got 'x'"):
        index_dataset("ucsd_ped", ucsd, ["seed=x"])
    with pytest.raises(ValueError, match="dataset ucsd_ped takes no option 'sed'"):
        index_dataset("ucsd_ped", ucsd, ["sed=3"])


# -- folders ----------------------------------------------------------------------------------------------------------


def test_folder_with_splits(tmp_path):
    tree(
        tmp_path,
        "train/normal/a #=__.x.mp4",
        "train/anomalous/Car crash; bad/b.avi",
        "train/anomaly/c.mkv",
        "test/Abnormal/d.mp4",
        "test/normal/e.mp4",
        "anomalous/train/f.mp4",
    )
    (tmp_path / "annotations.txt").write_text("d.mp4 5 9 20 30\n")
    found = load("folder", tmp_path)
    assert (found.problems, found.notes) == ((), ())
    assert [(v.id, v.split, v.label, v.classes, v.events) for v in found.videos] == [
        ("a #=__.x", "train", 0, (), ()),
        ("b", "train", 1, ("Car_crash_bad",), ()),
        ("c", "train", 1, (), ()),
        ("f", "train", 1, (), ()),
        ("d", "test", 1, (), (Event(5, 9), Event(20, 30))),
        ("e", "test", 0, (), ()),
    ]


def test_folder_without_splits_moves_no_video_when_others_come(tmp_path):
    names = [f"n{i}" for i in range(200)]
    tree(tmp_path, "anomalous/x.mp4", "anomalous/y.mp4", *(f"normal/{n}.mp4" for n in names[:100]))
    (tmp_path / "annotations.txt").write_text("x 5 9\n")
    first = {v.id: v.split for v in load("folder", tmp_path).videos}
    tree(tmp_path, *(f"normal/{n}.mp4" for n in names[100:]))
    second = {v.id: v.split for v in load("folder", tmp_path).videos}
    assert (first["x"], first["y"]) == ("test", "train")
    assert {k: second[k] for k in first} == first
    assert 20 <= sum(second[n] == "test" for n in names) <= 60  # a fifth of 200, give or take
    assert all((second[n] == "test") == (_fraction(n) < 0.2) for n in names)
    assert all(v.split == "train" for v in load("folder", tmp_path, test_fraction=0.0).videos if not v.label)


def test_folder_without_annotations_trains_on_everything(tmp_path):
    tree(tmp_path, "anomalous/x.mp4", *(f"normal/{i}.mp4" for i in range(30)))
    found = load("folder", tmp_path)
    assert {v.split for v in found.videos} == {"train"}
    assert one(found.notes, "no annotations.txt below", "nothing to evaluate")


def test_folder_names_what_is_wrong(tmp_path):
    tree(
        tmp_path,
        "x.mp4",
        "normal/anomalous/y.mp4",
        "normal/same.mp4",
        "anomalous/same.avi",
        "test/anomalous/nospan.mp4",
        "test/normal/e.mp4",
        "normal/ spaced .mp4",
        "normal/ok.mp4",
    )
    (tmp_path / "annotations.txt").write_text("e 5 9\nunknown 1 2\nok 7\n")
    found = load("folder", tmp_path, test_fraction=0.0)
    assert [v.id for v in found.videos] == ["ok"]
    assert one(found.problems, "/x.mp4", "no folder called normal or anomalous")
    assert one(found.problems, "y.mp4", "no folder called normal or anomalous")
    assert one(found.problems, "same.avi", "same.mp4", "have the same name; rename one")
    assert one(found.problems, "nospan.mp4", "an anomalous test video without spans; add 'name start stop'")
    assert one(found.problems, "e.mp4", "a normal video (label 0) has no events")
    assert one(found.problems, "' spaced '", "spaces around it")
    assert one(found.problems, "names 'unknown', which is no video")
    assert one(found.problems, "annotations.txt:3", "7 has no stop")


def test_a_file_name_that_is_no_utf8_is_a_problem_and_no_crash(tmp_path):
    tree(tmp_path, "normal/ok.mp4")
    try:
        (tmp_path / "normal" / "caf\udce9.mp4").write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = load("folder", tmp_path)
    assert [v.id for v in found.videos] == ["ok"]
    assert one(found.problems, "non-empty UTF-8", "rename it")
    manifest.write(tmp_path / "m.csv", found.videos)


def test_a_csv_is_checked(tmp_path):
    tree(tmp_path, "a.mp4", "b.mp4")
    tree(tmp_path, "frames/000.jpg")
    good = [Video("a", str(tmp_path / "a.mp4"), "train", 0), Video("f", str(tmp_path / "frames"), "train", 0)]
    good += [Video("feat", "", "test", 1, events=(Event(1, 2),))]
    bad = [Video("b", str(tmp_path / "b.mp4"), "test", 1), Video("c", str(tmp_path / "c.mp4"), "train", 1)]
    manifest.write(tmp_path / "m.csv", good + bad)
    found = load("folder", tmp_path / "m.csv")
    assert list(found.videos) == good
    assert one(found.problems, "b: an anomalous test video without events; add spans")
    assert one(found.problems, "c: no file", "correct its path")


# -- the real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "train", "test"),
    [("ucf_crime", "scf-ucf", (60, 30), (28, 14)), ("xd_violence", "scf-xd", (100, 50), (40, 20))],
)
def test_real_small_datasets(name, folder, train, test):
    """Counts from the README of the reference data."""
    found = load(name, shared("datasets", folder))
    summary = found.summary()
    assert (found.problems, found.notes) == ((), ())
    assert (summary["train"], summary["train_anomalous"]) == train
    assert (summary["test"], summary["test_anomalous"]) == test
    assert all(bool(v.events) == bool(v.label) for v in found.videos if v.split == "test")
    assert not any(v.events for v in found.videos if v.split == "train")


def test_golden_ucf_crime_positives():
    """84,182 positive frames on the true lengths; five published events end behind the last frame."""
    folder = shared("official", "ucf-crime")
    published, problems = read_annotations(folder / "Temporal_Anomaly_Annotation.txt")
    counted, more = read_annotations(folder / "UCF_Annotation_with_frame_counts.txt")
    assert (problems, more) == ([], [])
    assert len(published) == len(counted) == 290
    lengths = {name.replace("Videos_", "Videos"): a.num_frames for name, a in counted.items()}
    positives = clamped = 0
    for name, annotation in published.items():
        video = Video(name, "", "test", int(bool(annotation.events)), events=annotation.events)
        video, changed = video.with_length(lengths[name.replace("Videos_", "Videos")])
        positives += int(video.frame_labels().sum())
        clamped += changed
    assert (positives, clamped) == (84_182, 5)


def test_golden_ucf_crime_lists(tmp_path):
    """All 1,900 entries of the official lists, with an empty file for each."""
    folder = shared("official", "ucf-crime")
    entries = [e for f in ("Anomaly_Train.txt", "Anomaly_Test.txt") for _, e in lines_of(folder / f)]
    tree(tmp_path, *entries)
    found = load("ucf_crime", tmp_path, lists=folder)
    assert found.problems == ()
    summary = found.summary()
    assert (summary["train"], summary["train_anomalous"], summary["test"], summary["test_anomalous"]) == (
        1610, 810, 290, 140
    )  # fmt: skip
    assert len({c for v in found.videos for c in v.classes}) == 13


def test_golden_xd_violence_names_and_spans():
    """Every official name parses; 2,049 normal and 1,905 violent in training; 538,324 annotated frames."""
    folder = shared("official", "xd-violence")
    names = {s: [n for _, n in lines_of(folder / f"{s}_names.txt")] for s in ("train", "test")}
    assert (len(names["train"]), len(names["test"])) == (3954, 800)
    classes = {s: [classes_of(base_name(n)) for n in names[s]] for s in names}
    assert (sum(not c for c in classes["train"]), sum(bool(c) for c in classes["train"])) == (2049, 1905)
    assert sum(bool(c) for c in classes["test"]) == 500
    positives = {}
    for file in ("annotations.txt", "annotations_multiclasses.txt"):
        found, problems = read_annotations(folder / file)
        assert problems == []
        assert set(found) == {base_name(n) for n, c in zip(names["test"], classes["test"], strict=True) if c}
        positives[file] = sum(len({f for e in a.events for f in range(e.start, e.stop)}) for a in found.values())
    assert positives["annotations.txt"] == 538_324


def test_golden_ucf_crime_lengths():
    """The lists alone, and the file with frame counts: 1,111,808 frames and 84,182 positives."""
    found = load("ucf_crime", shared("official", "ucf-crime"), videos=False)
    assert found.problems == ()
    assert one(found.notes, "1610 of 1900 videos have no num_frames")
    test = [v for v in found.videos if v.split == "test"]
    assert sum(v.num_frames for v in test) == 1_111_808
    assert sum(int(v.frame_labels().sum()) for v in test) == 84_182


def test_golden_xd_violence_lists(tmp_path):
    """The official names, and the five lines for each in lists such as UR-DMU's, give the same 3,954 + 800 videos."""
    folder = shared("official", "xd-violence")
    found = load("xd_violence", folder, videos=False)
    assert found.problems == ()
    summary = found.summary()
    assert {k: summary[k] for k in ("train", "train_anomalous", "test", "test_anomalous")} == {
        "train": 3954, "train_anomalous": 1905, "test": 800, "test_anomalous": 500
    }  # fmt: skip
    for split, file in (("train", "XD_Train.list"), ("test", "XD_Test.list")):
        names = [n for _, n in lines_of(folder / f"{split}_names.txt")]
        (tmp_path / file).write_text("".join(f"D:\\XD\\{n}__{k}.npy\n" for n in names for k in range(5)))
    (tmp_path / "annotations.txt").write_bytes((folder / "annotations.txt").read_bytes())
    assert load("xd_violence", tmp_path, videos=False) == found


def test_golden_shanghaitech_lists(tmp_path):
    """63 + 175 videos to train, 44 + 155 to test; the masks, which are not ours to copy, are made up."""
    folder = shared("official", "shanghaitech")
    for _, name in lines_of(folder / "SH_Test.txt"):
        if len(name) == 7:
            (tmp_path / "test_frame_mask").mkdir(exist_ok=True)
            np.save(tmp_path / "test_frame_mask" / name, np.arange(50) > 30)
    found = load("shanghaitech", tmp_path, lists=folder, videos=False)
    assert found.problems == ()
    assert found.summary() == {
        "train": 238, "train_anomalous": 63, "train_events": 0, "test": 199, "test_anomalous": 44, "test_events": 44
    }  # fmt: skip
