"""UCF-Crime and XD-Violence at full size, with random features of small D in the published layouts: from the official
lists to the reference's number of frames, through the commands a user types."""

import csv
import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from data import manifest
from data.datasets.sources import lines_of
from data.datasets.ucf_crime import canonical
from data.importers import format_of
from data.importers.sources import SourceFolder
from data.store import FeatureStore
from mil.cli import main
from mil.evaluate import read_scores
from tests.helpers import shared

DIM = 8
QUICK = ("head.hidden=[8, 4]", "head.topk=1", "data.count=4", "train.steps=3", "train.pairs=8")


def wsvad(*words) -> dict:
    """The command's JSON; fails unless it says that everything went well."""
    result = CliRunner().invoke(main, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def snippets(folder: Path) -> dict[str, int]:
    with (folder / "test_snippets.csv").open(newline="") as file:  # lines end as on Windows
        return {row["video"]: int(row["snippets"]) for row in csv.DictReader(file)}


def published_spans(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Read apart from the package's own reader: the numbers of each line, in pairs, without the -1."""
    found = {}
    for _, line in lines_of(path):
        name, *rest = line.split()
        numbers = [int(t) for t in rest if t.lstrip("-").isdecimal()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        found[canonical(name.removesuffix(".mp4"))] = [(a, b) for a, b in pairs if a >= 0]
    return found


def write_features(src: Path, names: dict[str, int], suffixes: list[str], seed: int) -> None:
    """(T, 8) random numbers per file, for each video and suffix."""
    rng = np.random.default_rng(seed)
    src.mkdir(parents=True, exist_ok=True)
    for name, clips in names.items():
        parts = rng.standard_normal((len(suffixes), clips, DIM), dtype=np.float32)
        header = header_of(clips)
        for suffix, x in zip(suffixes, parts, strict=True):
            (src / f"{name}{suffix}.npy").write_bytes(header + x.tobytes())


@functools.cache
def header_of(clips: int) -> bytes:
    """What np.save writes in front of the numbers; made once for each T, since np.save takes 0.1 ms per file."""
    file = io.BytesIO()
    np.save(file, np.zeros((clips, DIM), np.float32))
    return file.getvalue()[: -4 * clips * DIM]


def train(tmp: Path, videos: Path, store: Path) -> Path:
    changes = [word for change in QUICK for word in ("--set", change)]
    out = tmp / "run"
    wsvad("train", "motion_ranking", "--manifest", videos, "--features", store, "--out", out, *changes)
    return out


def evaluate(run: Path, *options: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The printed numbers, and each video's labels from the scores beside them."""
    numbers = wsvad("eval", run, *options)
    scores = read_scores(run / "eval" / f"test-{numbers['protocol']}_scores.npz")
    return numbers, {v.video_id: v.labels for v in scores}


def assert_labels(labels, lengths, spans):
    """Every video frame by frame: [s, e), cut at the length that counts."""
    assert set(labels) == set(lengths)
    for name, length in lengths.items():
        wanted = np.zeros(length, np.uint8)
        for start, stop in spans.get(canonical(name), []):
            wanted[start:stop] = 1
        np.testing.assert_array_equal(labels[name], wanted, err_msg=name)


def short(names: list[str]) -> dict[str, int]:
    return dict(zip(names, np.random.default_rng(5).integers(3, 7, len(names)).tolist(), strict=True))


def test_ucf_crime_at_full_size(tmp_path):
    """1,610 + 290 videos, one crop per file; the reference ground truth to the frame, and the true lengths."""
    official = shared("official", "ucf-crime")
    videos, store = tmp_path / "ucf.csv", tmp_path / "store"
    counts = wsvad("index", "ucf_crime", "--root", official, "-o", videos, "--option", "videos=no")
    assert {k: counts[k] for k in ("train", "train_anomalous", "test", "test_anomalous", "problems")} == {
        "train": 1610, "train_anomalous": 810, "test": 290, "test_anomalous": 140, "problems": 0
    }  # fmt: skip
    rows = manifest.read(videos)
    T = snippets(official)
    write_features(tmp_path / "src" / "train", short([v.id for v in rows if v.split == "train"]), ["__0"], 0)
    write_features(tmp_path / "src" / "test", {canonical(n): t for n, t in T.items()}, ["__0"], 1)
    done = wsvad("import", "npy", tmp_path / "src", "--manifest", videos, "--out", store,
                 "--option", "pattern={id}__0.npy", "--option", "name=rocng_center")  # fmt: skip
    assert (done["written"], done["failures"]) == (1900, {})
    assert done["counts"] == {"train": {"found": 1610, "wanted": 1610}, "test": {"found": 290, "wanted": 290}}
    run = train(tmp_path, videos, store)

    numbers, labels = evaluate(run, "--protocol", "snippets")
    assert (numbers["videos"], numbers["frames"], numbers["positives"]) == (290, 1_109_680, 84_128)
    spans = published_spans(official / "Temporal_Anomaly_Annotation.txt")
    assert sum(map(len, spans.values())) == 156
    ids = {canonical(v.id): v.id for v in rows}
    assert_labels(labels, {ids[canonical(n)]: 16 * t for n, t in T.items()}, spans)

    numbers, labels = evaluate(run)  # every length is known
    assert numbers["protocol"] == "frames"
    assert (numbers["videos"], numbers["frames"], numbers["positives"]) == (290, 1_111_808, 84_182)
    true = {v.id: v.num_frames for v in rows if v.split == "test"}
    assert_labels(labels, true, spans)


def test_xd_violence_at_full_size(tmp_path):
    """3,954 + 800 videos, RGB in five crops; no lengths but those of the features. Every video finds its files and has
    a file of its own in a store; of those to train on, one in forty is filled, since UCF-Crime's are all."""
    official = shared("official", "xd-violence")
    videos, store, src = tmp_path / "xd.csv", tmp_path / "store", tmp_path / "i3d-features"
    T = snippets(official)
    train_names = [name for _, name in lines_of(official / "train_names.txt")]
    crops = [f"__{k}" for k in range(5)]
    write_features(src / "RGBTest", T, crops, 1)
    (src / "RGB").mkdir()
    for name in train_names:
        for crop in crops:
            (src / "RGB" / f"{name}{crop}.npy").touch()
    counts = wsvad("index", "xd_violence", "--root", official, "-o", videos, "--option", "videos=no")
    assert {k: counts[k] for k in ("train", "train_anomalous", "test", "test_anomalous", "problems")} == {
        "train": 3954, "train_anomalous": 1905, "test": 800, "test_anomalous": 500, "problems": 0
    }  # fmt: skip
    shutil.copy(official / "annotations.txt", tmp_path)  # without the lists, names come from the features' files
    alone = tmp_path / "alone.csv"
    wsvad("index", "xd_violence", "--root", tmp_path, "-o", alone, "--option", "videos=no")
    rows = manifest.read(videos)
    assert manifest.read(alone) == rows

    xd = format_of("xd")
    folder = SourceFolder(src, xd)
    for row in rows:
        parent = "RGB" if row.split == "train" else "RGBTest"
        assert folder.find(row, xd) == [src / parent / f"{row.id}{crop}.npy" for crop in crops]
    few = [row for row in rows if row.split == "test" or train_names.index(row.id) % 40 == 0]
    assert {row.label for row in few if row.split == "train"} == {0, 1}
    write_features(src / "RGB", short([row.id for row in few if row.split == "train"]), crops, 0)
    manifest.write(tmp_path / "few.csv", few)
    done = wsvad("import", "xd", src, "--manifest", tmp_path / "few.csv", "--out", store, "--option", f"dim={DIM}")
    assert (done["written"], done["failures"]) == (len(few), {})
    files = {FeatureStore(store).path(row.id) for row in rows}
    assert len(files) == 4754
    for file in files:  # the disk takes every name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".name").touch()
    run = train(tmp_path, tmp_path / "few.csv", store)
    numbers, labels = evaluate(run, "--protocol", "snippets")
    assert (numbers["videos"], numbers["frames"], numbers["positives"]) == (800, 2_330_384, 537_805)
    spans = published_spans(official / "annotations.txt")
    assert len(spans) == 500
    assert_labels(labels, {name: 16 * t for name, t in T.items()}, spans)
    result = CliRunner().invoke(main, ["eval", str(run), "--protocol", "frames"])
    assert result.exit_code == 2
    assert "the true lengths of these videos are unknown" in result.stderr
