"""The manifest survives spreadsheets, nasty names and moves, and names every fault by its line."""

import csv
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data import manifest
from data.manifest import ManifestError
from data.types import Event, Video

HEAD = "id,path,split,label,classes,num_frames,fps,events\n"

nasty = st.one_of(
    st.text(st.sampled_from("aZ9,\"'#=_.- ;:|%~\u00e9\u4e2d\U0001f3ac"), min_size=1),
    st.text(min_size=1, max_size=40),
)
ids = nasty.map(str.strip).filter(
    lambda t: t and not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in t)
)
kinds = st.text(st.sampled_from("ABC019_-#="), min_size=1, max_size=6)


@st.composite
def video_lists(draw):
    videos = []
    for video_id in draw(st.lists(ids, min_size=1, max_size=5, unique=True)):
        label = draw(st.integers(0, 1))
        spans = draw(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), max_size=3)) if label else []
        events = tuple(sorted(Event(s, s + n, draw(st.one_of(st.just(""), kinds))) for s, n in spans))
        videos.append(
            Video(
                id=video_id,
                path=draw(st.sampled_from(["", "/abs/a b.mp4", '/abs/ x /c,d#=".mp4'])),
                split=draw(st.sampled_from(["train", "test"])),
                label=label,
                classes=tuple(draw(st.lists(kinds, max_size=2))),
                num_frames=draw(st.one_of(st.none(), st.integers(1000, 10**7))),
                fps=draw(st.one_of(st.none(), st.floats(0.001, 999), st.sampled_from([25.0, 30000 / 1001]))),
                events=events,
            )
        )
    return tuple(videos)


@given(video_lists())
@example((Video('=1+1,"#__x.y', "", "train", 0), Video("n\u00e4me'; x|y:z", "", "test", 1, events=(Event(0, 1),))))
def test_round_trip(tmp_path_factory, videos):
    path = tmp_path_factory.mktemp("m") / "m.csv"
    manifest.write(path, videos)
    assert manifest.read(path) == videos


def test_paths_are_relative_to_the_manifest_and_move_with_it(tmp_path, monkeypatch):
    inside, outside = tmp_path / "set" / "videos" / " a .mp4", tmp_path / "other" / "b.mp4"
    videos = [Video("a", str(inside), "train", 0), Video("b", str(outside), "train", 0)]
    manifest.write(tmp_path / "set" / "m.csv", videos)
    with (tmp_path / "set" / "m.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["videos/ a .mp4", str(outside)]
    monkeypatch.chdir("/")
    assert [v.path for v in manifest.read(tmp_path / "set" / "m.csv")] == [str(inside), str(outside)]
    (tmp_path / "set").rename(tmp_path / "moved")
    assert manifest.read(tmp_path / "moved" / "m.csv")[0].path == str(tmp_path / "moved" / "videos" / " a .mp4")


def test_a_relative_path_is_of_the_working_directory_when_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest.write(Path("sub/m.csv"), [Video("a", "videos/a.mp4", "train", 0)])
    assert manifest.read(Path("sub/m.csv"))[0].path == str(tmp_path / "videos" / "a.mp4")


def test_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "m.csv"
    text = HEAD + '"a,b",x.mp4,test,1,Arson|B1,100,25,3-9:Arson;20-30\n\nc,,train,0,,,,\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    first, second = manifest.read(path)
    assert first == Video(
        "a,b", str(tmp_path / "x.mp4"), "test", 1, ("Arson", "B1"), 100, 25.0, (Event(3, 9, "Arson"), Event(20, 30))
    )
    assert second == Video("c", "", "train", 0)


def test_only_three_columns_are_needed_and_in_any_order(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("label, split ,id\n1,test,a\n")
    assert manifest.read(path) == (Video("a", "", "test", 1),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,,train,zero,,,,", "line 2: label must be a number, got 'zero'"),
        ("a,,train,,,,,", "line 2: label must be a number, got ''"),
        ("a,,train,0,,1e3,,", "line 2: num_frames must be a number, got '1e3'"),
        ("a,,train,0,,,fast,", "line 2: fps must be a number, got 'fast'"),
        ("a,,train,0,,,nan,", "line 2: a: fps must lie"),
        ("a,,val,0,,,,", "line 2: a: split must be train or test, got 'val'"),
        (",,train,0,,,,", "line 2: a video id is non-empty"),
        ("a,,train,0,,,,,9", "line 2: more cells than columns; quote cells that hold commas"),
        ("a", "line 2: label must be a number, got ''"),
        ("a,,test,1,,,,5", "line 2: an event is written start-stop .* got '5'"),
        ("a,,test,1,,,,5-", "line 2: an event is written"),
        ("a,,test,1,,,,-5-9", "line 2: an event is written"),
        ("a,,test,1,,,,9-5", r"line 2: an event needs 0 <= start < stop, got \[9, 5\)"),
        ("a,,test,1,,,,1.5-3", "line 2: an event is written"),
        ("a,,test,0,,,,1-3", "line 2: a: a normal video"),
        ("a,,test,1,,20,,1-30", "line 2: a: an event ends at frame 30, behind the end at 20"),
    ],
)
def test_faults_name_the_line(tmp_path, row, message):
    path = tmp_path / "m.csv"
    path.write_text(HEAD + row + "\n")
    with pytest.raises(ManifestError, match=message):
        manifest.read(path)


def test_a_duplicate_names_both_lines(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(HEAD + "a,,train,0,,,,\nb,,train,0,,,,\n\na,,test,0,,,,\n")
    with pytest.raises(ManifestError, match="line 5: id 'a' stands on line 2 already"):
        manifest.read(path)


def test_all_faults_are_counted_and_ten_are_shown(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(HEAD + "".join(f"v{i},,val,0,,,,\n" for i in range(13)) + "ok,,train,0,,,,\n")
    with pytest.raises(ManifestError, match=r"(?s)13 faulty lines.*line 2.*line 11:.*\.\.\. and 3 more") as caught:
        manifest.read(path)
    assert "line 12" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'id'"),
        (b"id,split\na,train\n", "has no column 'label'"),
        (b"id;path;split;label\n", "has no column 'id'"),
        (HEAD.encode(), "holds no videos"),
        (HEAD.encode() + "caf\u00e9,,train,0,,,,\n".encode("latin-1"), "is not UTF-8 text .*save it as CSV UTF-8"),
        (HEAD.encode("utf-16"), "is not UTF-8 text"),
        (HEAD.encode() + b'a,"x,train,0\n' + b"b,,train,0,,,,\n" * 20_000, "line .*is a quote left open"),
        (HEAD.encode() + b'a,"x,train,0\nb,,train,0,,,,\n', "line 3: label must be a number, got ''"),
    ],
)
def test_useless_files(tmp_path, content, message):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        manifest.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest .*nope\.csv; make one: wsvad index DATASET"):
        manifest.read(tmp_path / "nope.csv")


def test_digest_depends_on_labels_and_spans_but_not_on_paths_or_order():
    a, b = Video("a", "x", "test", 1, ("B1",), 100, 25.0, (Event(1, 5),)), Video("b", "", "train", 0)
    base = manifest.digest([a, b])
    assert manifest.digest([b, a]) == base
    assert manifest.digest([Video("a", "y", "test", 1, ("B1",), 100, 30.0, (Event(1, 5, "k"),)), b]) == base
    changed = [
        Video("a", "x", "test", 1, ("B1",), 100, 25.0, (Event(1, 6),)),
        Video("a", "x", "test", 1, ("B2",), 100, 25.0, (Event(1, 5),)),
        Video("a", "x", "test", 1, ("B1",), 101, 25.0, (Event(1, 5),)),
        Video("a", "x", "train", 1, ("B1",), 100, 25.0, (Event(1, 5),)),
    ]
    assert len({manifest.digest([v, b]) for v in changed} | {base}) == 5


def test_a_failed_write_leaves_the_old_manifest(tmp_path, monkeypatch):
    path = tmp_path / "m.csv"
    manifest.write(path, [Video("a", "", "train", 0)])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        manifest.write(path, [Video("b", "", "train", 0)])
    assert [v.id for v in manifest.read(path)] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]
