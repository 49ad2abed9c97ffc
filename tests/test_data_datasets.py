"""Official lists and annotations -> videos: on small trees with the traps of the real ones, and on the real ones."""

import pytest

from data import manifest
from data.datasets import DatasetIndex, datasets
from data.datasets.folder import _fraction
from data.datasets.sources import base_name, lines_of, parse_annotation, read_annotations
from data.datasets.xd_violence import classes_of
from data.types import Event, Video
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
    good = [Video("a", str(tmp_path / "a.mp4"), "train", 0), Video("feat", "", "test", 1, events=(Event(1, 2),))]
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
