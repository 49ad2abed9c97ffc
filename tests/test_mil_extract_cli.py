"""`wsvad extract` and `wsvad ls backbones`: what is typed arrives, errors are one line, and what is printed is true."""

import json
import textwrap

import numpy as np
import pytest
from click.testing import CliRunner

from data import manifest
from data.datasets.toy_video import write_video
from data.store import FeatureStore
from data.types import FeatureSpec, Video
from extract.backbones import backbones, option_names
from extract.backbones.net import Net
from mil.cli import main
from mil.listing import listing
from tests.helpers import run_cli, write_small

PLUGIN = '''
"""A backbone that writes down with what it was made, and in which batches it was asked."""

import json, os
import numpy as np
from data.types import FeatureSpec
from extract.backbones import Backbone, backbones

LOG = os.environ["RECORDER_LOG"]

@backbones.register("recorder")
class Recorder(Backbone):
    """Records what it is told, for tests, 1-d."""

    uses_torch = False
    licence = "none"

    def __init__(self, *, weights: str = "none", crops: str = "1", device: str = "cpu", precision: str = "float32",
                 compile: bool = False, dtype: str = "float32", decoder: str = "pyav", stride: str = "16",
                 eps: str = "0.1"):
        self.told = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.spec = FeatureSpec(backbone="recorder", dim=1, resize="8x8:area", dtype=dtype, stride=int(stride),
                                decoder=decoder, compute=precision, options={"eps": float(eps)})

    def extract(self, clips, fps):
        return clips.mean((1, 2, 3, 4), dtype=np.float32)[:, None, None]

    def submit(self, clips, fps):
        with open(LOG, "a") as file:
            file.write(json.dumps({"told": self.told, "clips": len(clips), "pid": os.getpid()}) + "\\n")
        return super().submit(clips, fps)
'''


@pytest.fixture(autouse=True)
def recorder(tmp_path, monkeypatch):
    monkeypatch.setenv("RECORDER_LOG", str(tmp_path / "log"))
    path = tmp_path / "recorder.py"
    path.write_text(textwrap.dedent(PLUGIN))
    yield path
    backbones._items.pop("recorder", None)


@pytest.fixture
def log(tmp_path):
    def read():
        return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    return read


@pytest.fixture
def rows(tmp_path):
    """A manifest of four videos: one of two clips, one of seven, a test video, and one that is damaged."""
    videos = []
    for name, count, split in (("short", 32, "train"), ("long", 112, "train"), ("exam", 48, "test")):
        path = write_small(tmp_path / f"{name}.mp4", count, seed=len(name))
        videos.append(Video(name, str(path), split, 0))
    file = tmp_path / "m.csv"
    manifest.write(file, videos)
    return file


@pytest.fixture
def call(rows, tmp_path, recorder):
    """call("--batch", 2) -> the result of `wsvad extract` with the recorder."""

    def extract(*options, backbone="recorder", file=rows, out=tmp_path / "store", plugin=True):
        arguments = ["extract", file, "--backbone", backbone, "--out", out, *options]
        if plugin:
            arguments += ["--plugin", recorder]
        result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="wsvad")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return extract


def error_of(result):
    """The one line of a command that cannot be carried out as typed."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


# -- what is typed arrives --------------------------------------------------------------------------------------------

TOLD = [
    (("--weights", "random:3"), {"weights": "random:3"}),
    (("--crops", "10"), {"crops": "10"}),
    (("--device", "cuda:1"), {"device": "cuda:1"}),
    (("--precision", "bfloat16"), {"precision": "bfloat16"}),
    (("--compile",), {"compile": True}),
    (("--dtype", "float16"), {"dtype": "float16"}),
    (("--option", "stride=8", "--option", "eps=1e-5"), {"stride": "8", "eps": "1e-5"}),
    (("--option", "weights=a=b"), {"weights": "a=b"}),  # a path may hold an =
    ((), {}),
]
DEFAULTS = {
    "weights": "none", "crops": "1", "device": "cpu", "precision": "float32", "compile": False, "dtype": "float32",
    "decoder": "pyav", "stride": "16", "eps": "0.1",
}  # fmt: skip


@pytest.mark.parametrize(("typed", "told"), TOLD, ids=str)
def test_options_of_the_backbone_reach_its_constructor(call, log, typed, told):
    assert call("--workers", 1, *typed).exit_code == 0
    assert {json.dumps(line["told"]) for line in log()} == {json.dumps(DEFAULTS | told)}


def test_the_decoder_reaches_backbone_and_spec(call, tmp_path):
    result = call("--decoder", "torchcodec", "--workers", 1)
    assert FeatureStore(tmp_path / "store").spec.decoder == "torchcodec"
    if result.exit_code:  # not installed: every video says so, and what to type
        assert all("torchcodec" in line for line in result.stdout.splitlines() if line.startswith("  "))


@pytest.mark.parametrize(("typed", "most"), [((), 1), (("--batch", 3), 3), (("--batch", 0), 1), (("--batch", 50), 12)])
def test_batches_are_as_large_as_asked(call, log, typed, most):
    assert call("--workers", 1, *typed).exit_code == 0
    sizes = [line["clips"] for line in log()]
    assert sum(sizes) == 2 + 7 + 3
    assert max(sizes) <= most
    if most == 1:
        assert set(sizes) == {1}


def test_workers_are_processes(call, log, tmp_path):
    result = call("--workers", 2, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["workers"] == 2
    import os

    assert os.getpid() not in {line["pid"] for line in log()}
    assert sorted(FeatureStore(tmp_path / "store").ids()) == ["exam", "long", "short"]


def test_decoding_processes_and_workers_change_no_byte(call, tmp_path):
    contents = {}
    for name, typed in {
        "thread": ("--workers", 1),
        "processes": ("--workers", 1, "--decoders", 2, "--batch", 3),
        "both": ("--workers", 2, "--decoders", 1),
    }.items():
        root = tmp_path / name
        result = call(*typed, backbone="tiny", out=root, plugin=False)
        assert result.exit_code == 0, result.output
        contents[name] = {p.name: p.read_bytes() for p in root.glob("videos/*/*.h5")}
    assert len(contents["thread"]) == 3
    assert contents["processes"] == contents["thread"] == contents["both"]


def test_split_and_shard(call, tmp_path):
    def done(name, *typed):
        result = call("--workers", 1, "--json", *typed, out=tmp_path / name)
        assert result.exit_code == 0
        return sorted(FeatureStore(tmp_path / name).ids())

    assert done("train", "--split", "train") == ["long", "short"]
    assert done("test", "--split", "test") == ["exam"]
    assert done("one", "--shard", "1/2") == ["exam", "short"]
    assert done("two", "--shard", "2/2") == ["long"]
    assert done("both", "--shard", "2/2", "--split", "train") == ["long"]


def test_the_engine_and_the_address_are_passed_on(call, monkeypatch):
    import extract.runner

    seen = {}
    real = extract.runner.extract_all

    def spy(*arguments, **options):
        seen.update(options)
        return real(*arguments, **options | {"engine": "local", "address": None})

    monkeypatch.setattr(extract.runner, "extract_all", spy)
    typed = ("--engine", "ray", "--address", "ray://head:10001", "--workers", 1, "--decoders", 0, "--damaged", "keep")
    assert call(*typed).exit_code == 0
    wanted = {"engine": "ray", "address": "ray://head:10001", "decoders": 0, "damaged": "keep", "workers": 1}
    assert {k: seen[k] for k in wanted} == wanted
    assert call().exit_code == 0
    wanted = {"engine": "local", "address": None, "decoders": None, "damaged": "refuse", "batch": 0, "workers": 0}
    assert {k: seen[k] for k in wanted} == wanted
    assert seen["shard"] == (1, 1)


def damaged_copy(source, target, video_id):
    """The same video with bytes of one packet in its middle overwritten."""
    import av

    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    at, size = packets[len(packets) // 2]
    raw = bytearray(source.read_bytes())
    raw[at + size // 4 : at + size] = bytes(size - size // 4)
    target.write_bytes(raw)
    return Video(video_id, str(target), "train", 0)


def test_damaged_videos_are_refused_or_kept(call, tmp_path):
    source = tmp_path / "whole.mp4"
    rng = np.random.default_rng(0)
    write_video(source, rng.integers(0, 256, (80, 48, 64, 3), dtype=np.uint8), gop=10)
    file = tmp_path / "d.csv"
    bad = damaged_copy(source, tmp_path / "bad.mp4", "bad")
    manifest.write(file, [Video("good", str(source), "train", 0), bad])

    refused = call("--workers", 1, "--json", file=file)
    assert refused.exit_code == 1
    said = json.loads(refused.stdout)
    assert (said["written"], list(said["failures"])) == (1, ["bad"])
    assert str(tmp_path / "bad.mp4") in said["failures"]["bad"]
    assert "--damaged keep" in said["failures"]["bad"]
    store = FeatureStore(tmp_path / "store")
    assert store.ids() == ["good"]

    kept = call("--workers", 1, "--json", "--damaged", "keep", file=file)
    assert kept.exit_code == 0
    said = json.loads(kept.stdout)
    assert (said["written"], said["present"], said["failures"]) == (1, 1, {})
    assert any(note.startswith("bad: ") and "of 80 frames" in note for note in said["notes"])
    whole, mended = store.read("good"), store.read("bad")
    assert (whole.lost, mended.lost > 0) == (0, True)
    assert mended.grid == whole.grid  # every frame has its place
    np.testing.assert_array_equal(mended.x[:, :2], whole.x[:, :2])  # frames before the damage are as they were


# -- what cannot be done as typed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (("--option", "strid=8"), "backbone recorder takes no option 'strid'. Did you mean 'stride'"),
        (("--option", "stride"), "an option is written KEY=VALUE, got 'stride'"),
        (("--option", "=8"), "an option is written KEY=VALUE, got '=8'"),
        (("--shard", "0/2"), "--shard I/N counts from 1: 1/2 to 2/2, got 0/2"),
        (("--shard", "half"), "a shard is written I/N, e.g. 1/4, got 'half'"),
        (("--workers", -1), "-1 is not in the range"),
        (("--precision", "int8"), "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (("--damaged", "mend"), "'mend' is not one of 'refuse', 'keep'"),
        (("--decoder", "opencv"), "'opencv' is not one of 'pyav', 'torchcodec', 'nvdec'"),
        (("--dtype", "float64"), "'float64' is not one of 'float16', 'float32'"),
        (("--split", "all"), "'all' is not one of 'train', 'test'"),
        (("--engine", "slurm"), "'slurm' is not one of 'local', 'ray'"),
        (("--plugin", "nowhere.py"), "no plugin file"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_line(call, tmp_path, typed, part):
    assert part in error_of(call(*typed))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("backbone", "typed", "parts"),
    [
        ("i3d_rokng", (), ("no backbone called 'i3d_rokng'. Did you mean 'i3d_rocng'",)),
        ("i3d_rocng", (), ("wsvad weights fetch i3d_rgb_imagenet", "--weights FILE", "--weights random")),
        ("i3d_rocng", ("--weights", "random", "--crops", "7"), ("crops are 1, 5, 10", "got '7'")),
        ("i3d_rocng", ("--weights", "nowhere/i3d.pt"), ("nowhere/i3d.pt",)),
        ("i3d_rocng", ("--weights", "random", "--option", "bn_eps=0"), ("bn_eps must be",)),
        ("i3d_rocng", ("--weights", "random", "--option", "clip_len=4"), ("9 frames or more, got clip_len=4",)),
        ("i3d_rocng", ("--weights", "random", "--option", "stride=0"), ("stride", "0")),
        ("motion", ("--weights", "x.pt"), ("motion has no weights, got 'x.pt'; leave --weights out",)),
        ("motion", ("--device", "cuda"), ("motion runs on the CPU only",)),
        ("motion", ("--precision", "bfloat16"), ("backbone motion takes no option 'precision'",)),
        ("tiny", ("--crops", "10"), ("backbone tiny takes no option 'crops'",)),
    ],
    ids=str,
)
def test_backbones_say_what_is_wrong_with_their_options(call, tmp_path, monkeypatch, backbone, typed, parts):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path / "none"))
    line = error_of(call(*typed, backbone=backbone, plugin=False))
    assert all(part in line for part in parts), line
    assert not (tmp_path / "store").exists()


def test_a_device_that_is_not_there(call):
    assert "wanted cuda:7, found" in error_of(call("--device", "cuda:7", backbone="tiny", plugin=False))


def test_a_manifest_that_is_not_there(call, tmp_path):
    assert str(tmp_path / "none.csv") in error_of(call(file=tmp_path / "none.csv"))


def test_another_recipe_than_the_stores(call):
    assert call("--workers", 1).exit_code == 0
    line = error_of(call("--workers", 1, "--option", "eps=0.5"))
    assert "options={'eps': 0.1}, asked for {'eps': 0.5}" in line
    assert "--out" in line


def test_text_and_json_say_the_same(call, tmp_path):
    text = call("--workers", 1)
    assert text.stdout.splitlines()[0].startswith("3 videos extracted, 0 were there already")
    assert str(tmp_path / "store") in text.stdout
    said = json.loads(call("--workers", 1, "--json").stdout)
    assert (said["written"], said["present"], said["frames"], said["store"]) == (0, 3, 0, str(tmp_path / "store"))


def test_in_a_process_of_its_own(rows, recorder, tmp_path):
    """As a shell runs it: an unknown file in the manifest is named, the rest is done, exit code 1."""
    videos = [*manifest.read(rows), Video("gone", str(tmp_path / "gone.mp4"), "train", 0)]
    manifest.write(rows, videos)
    done = run_cli("extract", rows, "--backbone", "recorder", "--plugin", recorder, "--out", tmp_path / "s", "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["written"] == 3
    assert "gone.mp4: no such file; correct its path in the manifest" in said["failures"]["gone"]
    assert "Traceback" not in done.stderr


# -- wsvad doctor -----------------------------------------------------------------------------------------------------


def test_doctor_counts_the_weights_that_are_there(tmp_path, monkeypatch):
    from extract.catalogue import CATALOGUE, find
    from mil.doctor import examine

    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    checks = {check.name: check for check in examine()}
    assert (checks["weights"].state, checks["weights"].found) == (
        "WARN",
        f"0 of {len(CATALOGUE)} published files in {tmp_path}",
    )
    assert "wsvad weights fetch NAME" in checks["weights"].remedy
    find("vggish").path.touch()
    checks = {check.name: check for check in examine()}
    assert checks["weights"].state == "ok"
    assert checks["weights"].found.startswith("1 of ")
    for name in ("torchvision", "torchcodec", "ray"):  # what is optional never fails
        assert checks[name].state in ("ok", "WARN")
        assert (checks[name].remedy != "") == (checks[name].state == "WARN")


def test_doctor_says_what_is_missing(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from mil import doctor

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", absent)
    assert doctor._ray().as_dict() == {
        "name": "ray",
        "state": "WARN",
        "found": "not installed; only --engine ray needs it",
        "remedy": "pip install 'wsvad[ray]'",
    }
    assert "--decoder torchcodec" in doctor._torchcodec().found
    assert "RAFT" in doctor._torchvision().found


# -- wsvad ls backbones -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed():
    return {row["name"]: row for row in listing("backbones")}


def test_json_has_everything(listed):
    assert json.loads(json.dumps(list(listed.values()))) == json.loads(
        CliRunner().invoke(main, ["ls", "backbones", "--json"]).stdout
    )
    row = listed["i3d_rocng"]
    # Roc-Ng: 16 frames, T = floor(n / 16), ten crops; 27.83 GMAC for one crop of 16 x 224 x 224
    assert (row["dim"], row["modality"], row["clip_len"], row["step"], row["stride"]) == (1024, "rgb", 16, 1, 16)
    assert (row["crops"], row["fps"], row["gmac_per_crop"]) == (10, None, 27.83)
    assert row["gmac"] == pytest.approx(278.3)
    assert row["weight_files"][0] == "i3d_rgb_imagenet"
    assert row["switches"] == {"bn_eps": 1e-3, "padding": "same"}
    assert {"weights", "crops", "stride", "bn_eps", "padding"} <= set(row["options"])
    assert row["recipe"]["tail"] == "drop"
    assert row["recipe"]["crops"][:2] == ("center", "top_left")
    assert "weights" not in row["recipe"]
    assert listed["x3d_s"]["fps"] == 30.0
    assert (listed["motion"]["gmac"], listed["motion"]["weight_files"]) == (0, [])


def test_every_backbone_is_listed_with_its_own_recipe(listed):
    assert list(listed) == [name for name in backbones.names() if name != "recorder"]
    for name, row in listed.items():
        cls = backbones.get(name)
        assert FeatureSpec(**row["recipe"]) == FeatureSpec(**{**vars(cls.default_spec()), "weights": "none"})
        assert row["options"] == option_names(cls)
        assert row["gmac"] == pytest.approx(row["gmac_per_crop"] * len(row["recipe"]["crops"]))
        assert bool(row["gmac"]) == issubclass(cls, Net)


def test_lines_have_columns():
    result = CliRunner().invoke(main, ["ls", "backbones"])
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(lines) == sorted(lines)
    heading = result.stderr.splitlines()[-1]
    assert heading.split("  ")[0] == "name"
    at = heading.index("what it is")
    assert at < 95  # so that 160 columns hold the most of it
    for name, line in lines.items():
        assert line[at - 2 : at] == "  "
        assert not line[at].isspace()
        assert line.startswith(name)
    assert lines["i3d_xd"][:at].split() == ["i3d_xd", "1024", "rgb", "16/16", "@24", "5", "139.1", "12.7", "Apache-2.0"]
    wanted = ["csn_r101", "2048", "rgb", "32x2/64", "@30", "1", "73.8", "22.2", "Apache-2.0*"]
    assert lines["csn_r101"][:at].split() == wanted
    wanted = ["motion", "470", "flow", "16/16", "1", "-", "-", "Apache-2.0"]
    assert lines["motion"][:at].split() == wanted


def test_a_plugin_is_listed_too(recorder):
    result = CliRunner().invoke(main, ["ls", "backbones", "--plugin", str(recorder)])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("recorder ")]
    assert line.endswith("Records what it is told, for tests, 1-d.")
