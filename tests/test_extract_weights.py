"""Which weights are meant, strictly loaded, or seeded."""

import hashlib
import math
import shutil
import subprocess

import pytest
import torch
from torch import nn

from extract.backbones import BackboneError
from extract.catalogue import CATALOGUE, WeightFile, folder
from extract.file_checks import git_blob_of, mismatch, sha256_of
from extract.weights import Chosen, WeightsError, load_strict, randomise, resolve


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()


def put(name, content):
    """A file in the place of published weights."""
    path = CATALOGUE[name].path
    path.write_bytes(content)
    return path


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_the_catalogue_is_complete_and_without_clashes():
    entries = list(CATALOGUE.values())
    assert len(entries) == 41
    assert len({e.file for e in entries}) == len({e.url for e in entries}) == 41
    for entry in entries:
        assert entry.url.startswith(("https://", "http://"))
        assert entry.url.rpartition("/")[2], entry.name
        assert not set("/\\ ") & set(entry.file)
        assert entry.about
        assert entry.licence
        assert len(entry.git_blob) in (0, 40)
        assert set(entry.git_blob + entry.sha256) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("vggish", "10086976"),
        ("resnet50_v1", "0676ba61"),
        ("raft_large", "ff5fadd5"),
        ("tsn_bninception_imagenet", "9f5701afb96c8044"),  # old torch hub: sixteen digits
        ("tsn_r50_kinetics400", "cd10898e"),
        ("c3d_sports1m_mmaction2", "dcc47ddc"),
        ("c3d_sports1m", ""),
        ("i3d_r50_caffe2", ""),
        ("x3d_m_hub", ""),
        ("clip_vit_b16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    ],
)
def test_the_digits_in_a_files_name_are_its_checksum(name, sha256):
    assert CATALOGUE[name].sha256 == sha256


def test_a_url_of_openai_holds_the_checksum_it_must_have():
    for name in ("clip_vit_b16", "clip_vit_b32", "clip_vit_l14"):
        assert f"/{CATALOGUE[name].sha256}/" in CATALOGUE[name].url


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WSVAD_WEIGHTS", "~/own")
    assert folder() == tmp_path / "own"
    monkeypatch.delenv("WSVAD_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "wsvad" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder() == tmp_path / ".cache" / "wsvad" / "weights"


# -- hashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_hashes_are_those_of_hashlib_and_of_git(tmp_path, size):
    content = bytes(i * 7 % 251 for i in range(size % 4096)) + bytes(size - size % 4096)
    path = tmp_path / "f"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    assert git_blob_of(path) == hashlib.sha1(f"blob {size}\0".encode() + content, usedforsecurity=False).hexdigest()
    if git := shutil.which("git"):
        command = [git, "hash-object", "--no-filters", str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert git_blob_of(path) == found.stdout.strip()


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"one")
    first = sha256_of(path)
    path.write_bytes(b"three")
    assert sha256_of(path) == hashlib.sha256(b"three").hexdigest() != first


def test_a_file_must_be_what_its_publisher_tells(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"content")
    sha = hashlib.sha256(b"content").hexdigest()
    blob = hashlib.sha1(b"blob 7\0content", usedforsecurity=False).hexdigest()

    def wrong(**changes):
        return mismatch(WeightFile("n", "http://x/f", "a net", "MIT", **changes), path)

    assert wrong() == wrong(sha256=sha) == wrong(sha256=sha[:8]) == wrong(git_blob=blob) == wrong(size=7) == ""
    assert wrong(sha256=sha, git_blob=blob) == ""
    assert wrong(sha256="0" * 64) == f"wanted sha256 {'0' * 64}, found {sha}"
    assert wrong(sha256="00000000") == f"wanted sha256 00000000..., found {sha}"
    assert wrong(git_blob="0" * 40) == f"wanted git blob {'0' * 40}, found {blob}"
    assert wrong(sha256=sha, git_blob="0" * 40).startswith("wanted git blob")
    assert wrong(size=8) == "wanted about 8 bytes, found 7"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"\n  <!DOCTYPE html><html>", "a web page"),
        (b"<HTML>", "a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a pointer of git-lfs"),
    ],
)
def test_an_error_page_is_not_taken_for_weights_even_without_a_checksum(tmp_path, content, what):
    path = tmp_path / "f"
    path.write_bytes(content)
    assert f"wanted a net, found {what}" in mismatch(WeightFile("n", "http://x/f", "a net", "MIT"), path)


# -- which weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seed"),
    [("random", 0), ("random:0", 0), ("random:7", 7), ("random:123456789012345678", 123456789012345678)],
)
def test_random(given, seed):
    assert resolve(given, (), preset="p") == Chosen(None, f"random:{seed}", seed)


@pytest.mark.parametrize(
    "given", ["random:", "random:-1", "random:x", "random:1.5", "random: 1", "random:٣", "random:" + "9" * 19]
)
def test_a_seed_must_be_a_number(given):
    with pytest.raises(WeightsError, match="write random, or random:SEED"):
        resolve(given, (), preset="p")


def test_a_file_anywhere_is_hashed(tmp_path, monkeypatch):
    path = tmp_path / "own.pth"
    path.write_bytes(b"abc")
    # sha256("abc"), FIPS 180-2, appendix B.1
    wanted = Chosen(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert resolve(str(path), ("s3d",), preset="p") == wanted
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/own.pth", (), preset="p") == wanted
    monkeypatch.chdir(tmp_path)
    assert resolve("own.pth", (), preset="p").identity == wanted.identity


def test_a_name_of_the_catalogue_and_the_default():
    put("c3d_sports1m_mmaction2", b"x")
    with pytest.raises(WeightsError, match=r"wanted sha256 dcc47ddc.*wsvad weights fetch c3d_sports1m_mmaction2"):
        resolve("c3d_sports1m_mmaction2", (), preset="p")
    path = put("x3d_m_hub", b"abc")  # nobody publishes its checksum
    for given in ("x3d_m_hub", None):
        assert resolve(given, ("x3d_m_hub", "s3d"), preset="p") == Chosen(path, hashlib.sha256(b"abc").hexdigest())


def test_what_is_not_there_says_what_to_type(tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"^p wants the weights 's3d'.*s3d-d76dad2f\.pth is not there: run `wsvad weights fetch s3d`.*FILE",
    ):
        resolve(None, ("s3d", "vggish"), preset="p")
    with pytest.raises(WeightsError, match=r"^p wants .*fetch vggish"):
        resolve("vggish", ("s3d", "vggish"), preset="p")
    with pytest.raises(WeightsError, match=r"^p has no published weights.*--weights FILE, or --weights random"):
        resolve(None, (), preset="p")
    with pytest.raises(WeightsError, match=r"--weights sd3: no such file.*Did you mean 's3d'"):
        resolve("sd3", (), preset="p")
    with pytest.raises(WeightsError, match=r"no weights file .*nowhere\.pth; pass a file's path"):
        resolve(str(tmp_path / "nowhere.pth"), (), preset="p")
    with pytest.raises(WeightsError, match="is a folder; --weights takes one file"):
        resolve(str(tmp_path), (), preset="p")
    assert issubclass(WeightsError, BackboneError)  # the command line knows that one


def test_a_file_wins_over_a_name_but_never_over_random(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x3d_m_hub").write_bytes(b"mine")
    (tmp_path / "random").write_bytes(b"mine")
    (tmp_path / "s3d").mkdir()
    put("x3d_m_hub", b"published")
    mine = hashlib.sha256(b"mine").hexdigest()
    assert resolve("x3d_m_hub", (), preset="p").identity == mine
    assert resolve(None, ("x3d_m_hub",), preset="p").identity != mine
    assert resolve("random", (), preset="p").identity == "random:0"
    assert resolve("./random", (), preset="p").identity == mine
    with pytest.raises(WeightsError, match="fetch s3d"):  # a folder of that name is no file
        resolve("s3d", (), preset="p")


# -- strictly loaded --------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv3d(channels, 4, 3)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, 2)


def state_of(seed=1, channels=3):
    net = Small(channels)
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator) if v.is_floating_point() else torch.tensor(5)
        for k, v in net.state_dict().items()
    }


def test_every_tensor_arrives():
    net, state = Small(), state_of()
    load_strict(net, state, where="f")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}  # as CLIP is stored
    load_strict(net, half, where="f")
    assert torch.equal(net.conv.weight, half["conv.weight"].float())
    assert net.conv.weight.dtype == torch.float32


def test_the_counter_of_batches_may_be_absent_or_superfluous():
    state = state_of()
    del state["norm.num_batches_tracked"]
    load_strict(Small(), state | {"elsewhere.num_batches_tracked": torch.tensor(3)}, where="f")
    with pytest.raises(WeightsError, match=r"1 missing: norm\.running_var"):
        load_strict(Small(), {k: v for k, v in state.items() if k != "norm.running_var"}, where="f")
    with pytest.raises(WeightsError, match="1 unexpected: old_num_batches_tracked"):
        load_strict(Small(), state | {"old_num_batches_tracked": torch.tensor(3)}, where="f")


def test_the_message_names_what_is_missing_unexpected_or_of_another_shape():
    state = state_of()
    state["conv.weigth"] = state.pop("conv.weight")
    state["head.bias"] = torch.zeros(7)
    net = Small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strict(net, state, where="my.pth")
    text = str(caught.value)
    assert text.startswith("my.pth does not fit this net, 8 of 9 tensors are found by name. ")
    assert (
        "1 missing: conv.weight; 1 unexpected: conv.weigth; 1 of another shape: head.bias is (7,), wanted (2,)." in text
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_long_lists_are_cut_and_counted():
    extra = {f"extra{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(WeightsError, match=r"9 unexpected: extra0, extra1, extra2, extra3, extra4, \.\.\.\."):
        load_strict(Small(), state_of() | extra, where="f")


def test_a_transposed_tensor_of_equal_size_is_refused():
    state = state_of()
    state["head.weight"] = state["head.weight"].T
    with pytest.raises(WeightsError, match=r"head.weight is \(4, 2\), wanted \(2, 4\)"):
        load_strict(Small(), state, where="f")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused_and_nothing_is_loaded(value):
    net, state = Small(), state_of()
    before = net.head.bias.clone()
    state["conv.weight"][1, 2, 0, 1, 2] = value
    with pytest.raises(WeightsError, match=r"f: conv\.weight holds infinities or no numbers"):
        load_strict(net, state, where="f")
    assert torch.equal(net.head.bias, before)


def test_hints_at_the_wrong_stream_or_family():
    with pytest.raises(WeightsError, match=r"conv\.weight takes 2 channels, not 3: weights of a flow net"):
        load_strict(Small(3), state_of(channels=2), where="f")
    with pytest.raises(WeightsError, match=r"conv\.weight takes 3 channels, not 2: weights of an RGB net"):
        load_strict(Small(2), state_of(channels=3), where="f")
    for key, family in (
        ("conv3d_1a_7x7.conv3d.weight", "hassony2's I3D"),
        ("Conv3d_1a_7x7.conv3d.weight", "piergiaj's I3D"),
        ("blocks.0.multipathway_blocks.0.conv.weight", "pytorchvideo's hub"),
        ("res2_0_branch2a_w", "Caffe2's video-nonlocal-net"),
        ("backbone.conv1.conv.weight", "mmaction2"),
    ):
        with pytest.raises(WeightsError, match=f"Its names are those of {family}"):
            load_strict(Small(), {key: torch.zeros(1)}, where="f")


# -- seeded -----------------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """One of everything, made in either order."""

    def __init__(self, backwards=False):
        super().__init__()
        parts = {
            "conv": nn.Conv3d(64, 128, 3, groups=2),
            "linear": nn.Linear(1000, 300),
            "batch": nn.BatchNorm3d(7),
            "layer": nn.LayerNorm(9),
            "embedding": nn.Embedding(500, 64),
            "attention": nn.MultiheadAttention(96, 4),
        }
        for name in sorted(parts, reverse=backwards):
            setattr(self, name, parts[name])
        self.position = nn.Parameter(torch.ones(197, 768))
        self.relative_position_bias_table = nn.Parameter(torch.ones(200, 50))
        self.register_buffer("table", torch.arange(4))


def seeded(seed, **options):
    net = Parts(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(99)
        net.batch.running_mean.fill_(99)
        net.batch.running_var.fill_(99)
        net.batch.num_batches_tracked.fill_(99)
    randomise(net, seed)
    return net.state_dict()


def test_deviations_by_fan_in():
    state = seeded(0)
    for name, fan_in in (
        ("conv.weight", 32 * 27),  # two groups: each output sees half of the 64 channels
        ("linear.weight", 1000),
        ("attention.in_proj_weight", 96),
        ("attention.out_proj.weight", 96),
    ):
        x = state[name].double()
        # the deviation of n normal numbers is itself off by 1 / sqrt(2 n); five of those
        assert abs(x.std().item() / math.sqrt(1.5 / fan_in) - 1) < 5 / math.sqrt(2 * x.numel()), name
        assert abs(x.mean()) < 5 * math.sqrt(1.5 / fan_in / x.numel()), name
    for name in ("embedding.weight", "position", "relative_position_bias_table"):
        assert abs(state[name].std().item() / 0.02 - 1) < 5 / math.sqrt(2 * state[name].numel()), name
    for name in (
        "conv.bias",
        "linear.bias",
        "batch.bias",
        "layer.bias",
        "attention.in_proj_bias",
        "batch.running_mean",
    ):
        assert not state[name].any(), name
    for name in ("batch.weight", "layer.weight", "batch.running_var"):
        assert (state[name] == 1).all(), name
    assert state["batch.num_batches_tracked"] == 0
    assert state["table"].tolist() == [0, 1, 2, 3]


def test_the_seed_decides_and_nothing_else():
    threads = torch.get_num_threads()
    first = seeded(3)
    torch.manual_seed(99)
    try:
        torch.set_num_threads(2)
        second = seeded(3, backwards=True)
    finally:
        torch.set_num_threads(threads)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = seeded(4)
    drawn = [k for k in first if k != "table" and len(first[k].unique()) > 1]
    assert len(drawn) == 7
    assert not any(torch.equal(first[k], other[k]) for k in drawn)


def test_equal_shapes_get_different_numbers():
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    randomise(net, 0)
    assert not torch.equal(net[0].weight, net[1].weight)
    assert not torch.equal(net[1].weight, net[2].weight)


def test_the_global_generator_is_left_alone():
    net = Small()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    randomise(net, 1)
    assert torch.equal(torch.rand(3), wanted)


class Residual(nn.Module):
    """A block of a ResNet, after its ReLU."""

    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(2)),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return torch.relu(x + self.branch(x))


@torch.inference_mode()
def test_deep_nets_neither_overflow_float16_nor_vanish():
    x = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    deep = nn.Sequential(*(Residual(64) for _ in range(33))).eval()  # as many blocks as a ResNet-101
    plain = nn.Sequential(*(nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU()) for _ in range(30))).eval()
    for net in (deep, plain):
        randomise(net, 0)
        y = net(x)
        assert y.abs().max() < 65504 / 4  # float16's largest number
        assert y.std() > 1e-3  # far above float16's smallest normal one, 6e-5
        assert (y[0] - y[1]).abs().max() > 1e-3  # two inputs stay two
