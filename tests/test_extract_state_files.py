"""Weights in every format that they are published in, and files that are none of them."""

import os
import pickle
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from extract.state_files import read
from extract.weights import WeightsError


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 2, 2, generator=generator),
            "conv.bias": torch.randn(4, generator=generator).half(),
            "norm.num_batches_tracked": torch.tensor(7),
            "turned": torch.arange(6.0).reshape(2, 3).T,
        }
    )


def same(found, wanted):
    assert list(found) == list(wanted)
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype, key
        assert torch.equal(found[key], wanted[key]), key
        assert not found[key].requires_grad


def save(path, value, **options):
    torch.save(value, path, **options)
    return path


# -- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["c3d.pickle", "w.pth", "w"])  # the name says nothing
def test_torch_archives_old_and_new(tmp_path, legacy, name):
    same(read(save(tmp_path / name, tensors(), _use_new_zipfile_serialization=not legacy)), tensors())


def test_parameters_become_plain_tensors(tmp_path):
    state = {"w": nn.Parameter(torch.ones(2))}
    same(read(save(tmp_path / "f", state)), {"w": torch.ones(2)})


wrappers = st.lists(st.sampled_from(["model_state", "state_dict", "model", "net"]), max_size=3)


@given(wrappers, st.booleans(), st.booleans())
def test_wrappers_and_the_prefix_of_parallel_training_come_off(wrapped, prefixed, legacy):
    plain = {"a.module.weight": torch.ones(2), "module_b": torch.zeros(1)}
    value = {f"module.{k}": v for k, v in plain.items()} if prefixed else plain
    for name in wrapped:
        value = {"epoch": 3, "cfg": "text", "note": None, name: value, "best": 0.5}
    with tempfile.TemporaryDirectory() as folder:  # tmp_path would be one for all examples
        path = save(Path(folder) / "f", value, _use_new_zipfile_serialization=not legacy)
        same(read(path), plain)


def test_the_prefix_stays_where_only_some_have_it(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    same(read(save(tmp_path / "f", state)), state)


def test_a_tensor_called_like_a_wrapper_is_a_tensor(tmp_path):
    state = {"model": torch.ones(1), "net": torch.zeros(2)}
    same(read(save(tmp_path / "f", state)), state)


def test_what_is_no_tensor_is_refused_outside_a_wrapper(tmp_path):
    with pytest.raises(WeightsError, match="'epoch' is a int, wanted a tensor"):
        read(save(tmp_path / "f", {"epoch": 3, "w": torch.ones(1)}))
    with pytest.raises(WeightsError, match="holds a Tensor, wanted a dictionary"):
        read(save(tmp_path / "f", torch.ones(1)))
    with pytest.raises(WeightsError, match="holds no tensors"):
        read(save(tmp_path / "f", {"model": {"epoch": 1}}))
    with pytest.raises(WeightsError, match="a tensor is called 3, wanted a text"):
        read(save(tmp_path / "f", {3: torch.ones(1)}))


# -- safetensors, TorchScript -----------------------------------------------------------------------------------------


def test_safetensors(tmp_path):
    state = {k: v.contiguous() for k, v in sorted(tensors().items())}
    save_file(state, tmp_path / "w.pth")
    found = read(tmp_path / "w.pth")
    same({k: found[k] for k in sorted(found)}, state)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Parameter(torch.randn(5, 3).half())
        self.register_buffer("resolution", torch.tensor(224))
        base = torch.arange(12.0)
        self.register_buffer("middle", base[3:9].view(2, 3).T)  # views of one storage, with offset and strides
        self.register_buffer("end", base[-2:])

    def forward(self, x):
        return x.half() @ self.proj


class Outer(nn.Module):
    sizes: list[int]

    def __init__(self):
        super().__init__()
        self.visual = Inner()
        self.blocks = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.tied = self.blocks[0].weight
        self.sizes = [1, 2]
        self.names = {"a": 1.5}

    def forward(self, x):
        return self.blocks(self.visual(x).float()) + float(self.sizes[0])


def test_torchscript_archives_give_what_torch_gives_but_nothing_is_compiled(tmp_path, monkeypatch):
    path = tmp_path / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published files stay
        torch.jit.save(torch.jit.script(Outer()), path)
        wanted = torch.jit.load(path).state_dict()

    def never(*_, **__):
        raise AssertionError("the archive's code was compiled")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setattr(torch._C, "import_ir_module", never)
    found = read(path)
    same({k: found[k] for k in sorted(found)}, {k: wanted[k].detach() for k in sorted(wanted)})
    assert found["tied"].data_ptr() == found["blocks.0.weight"].data_ptr()


def rewritten(path, member, content):
    """The archive with another content of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in members.items():
            archive.writestr(name, content if name.endswith(member) else old)
    return path


def test_torchscript_with_a_pickle_of_its_own_is_refused(tmp_path):
    path = tmp_path / "s.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    trap = tmp_path / "trap"
    rewritten(path, "/data.pkl", evil(trap))
    with pytest.raises(WeightsError, match=r"s\.pt wants (posix|nt)\.mkdir: .*could run code"):
        read(path)
    assert not trap.exists()


# -- Caffe2 -----------------------------------------------------------------------------------------------------------


def python2_pickle(blobs):
    """What Python 2 and numpy 1 wrote with protocol 2: byte strings (opcodes U, T), which Python 3 does not write."""

    def text(value):
        raw = value if isinstance(value, bytes) else value.encode()
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw

    def number(value):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    def array(value):
        out = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"tR"
        out += b"(" + number(1) + b"(" + b"".join(map(number, value.shape)) + b"t"
        out += b"cnumpy\ndtype\n(" + text(value.dtype.str[1:]) + number(0) + number(1) + b"tR("
        out += number(3) + text("<") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        return out + b"\x89" + text(value.tobytes()) + b"tb"

    items = b"".join(text(name) + array(value) for name, value in blobs.items())
    return b"\x80\x02}(" + text("blobs") + b"}(" + items + b"u" + text("cfg") + text("MODEL: x") + b"u."


def test_caffe2_pickles_of_python_2(tmp_path):
    rng = np.random.default_rng(0)
    blobs = {
        "conv1_w": rng.normal(size=(3, 2, 5)).astype(np.float32),  # 120 bytes, with all sorts of values above 127
        "pred_b": rng.normal(size=400).astype(np.float32),
        "conv1_w_momentum": np.ones(3, np.float32),
        "res_conv1_bn_s": rng.normal(size=3).astype(np.float32),
    }
    path = tmp_path / "i3d.pkl"
    path.write_bytes(python2_pickle(blobs))
    same(read(path), {k: torch.from_numpy(v) for k, v in blobs.items() if "momentum" not in k})


@pytest.mark.parametrize("protocol", range(6))
def test_caffe2_pickles_of_python_3(tmp_path, protocol):
    blobs = {
        "a_w": np.arange(6, dtype=">f4").reshape(2, 3),
        "n": np.array(3),
        "turned": np.ones((2, 3)).T,
        "lr": np.float64(2),
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, protocol=protocol))
    wanted = {
        "a_w": torch.arange(6.0).reshape(2, 3),
        "n": torch.tensor(3),
        "turned": torch.ones(3, 2, dtype=torch.float64),
    }
    same(read(path), wanted)


class _Evil:
    """A pickle of it calls what it is told to."""

    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


def evil(path):
    return pickle.dumps({"blobs": {"x": _Evil(os.mkdir, str(path)), "w": np.ones(2)}}, protocol=2)


def test_a_pickle_that_runs_something_is_refused_and_not_run(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "w.pkl"
    path.write_bytes(evil(trap))
    with pytest.raises(WeightsError, match=r"w\.pkl wants (posix|nt)\.mkdir: .*refused.*save the plain state_dict"):
        read(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert trap.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_that_runs_something_is_refused_and_not_run(tmp_path, legacy):
    trap = tmp_path / "trap"
    value = {"state_dict": {"w": torch.ones(1)}, "x": _Evil(os.mkdir, str(trap))}
    path = save(tmp_path / "w.pth", value, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"w\.pth wants (posix|nt)\.mkdir: .*refused.*--weights"):
        read(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "name",
    [b"builtins\neval", b"os\nsystem", b"numpy\nload", b"numpy.core.multiarray\nfromfile", b"numpy\nndarray.tofile"],
)
def test_only_builders_of_arrays_are_known(tmp_path, name):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04c" + name + b"\n.")
    with pytest.raises(WeightsError, match=name.decode().replace("\n", r"\.")):
        read(path)


def test_the_codec_of_numpy_is_latin1_only(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.")
    with pytest.raises(WeightsError, match="cut short or damaged"):
        read(path)


def test_an_array_of_objects_is_refused(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([{}, None], dtype=object)}, protocol=2))
    with pytest.raises(WeightsError, match="'w' is an array of object, wanted numbers"):
        read(path)


# -- no weights at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x93NUMPY\x01\x00", "it begins with"),
        (b"\x80\x02not a pickle", "cut short or damaged"),
        (b"\x80", "cut short or damaged"),
        (b"PK\x03\x04 but no archive", "cut short or damaged"),
        (b"\x10" + bytes(7) + b"{ not json", "cut short or damaged"),
        (bytes(600), "it begins with"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read(path)
    assert "w.pth" in str(caught.value)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(WeightsError, match="no weights file"):
        read(tmp_path / "absent.pth")


def test_the_oldest_format_of_torch_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "w.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    with pytest.raises(WeightsError, match=r"the tar format of torch.*torch\.save"):
        read(path)


def written(path, kind):
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(20, 20)), path)
    elif kind == "safetensors":
        save_file({"w": torch.randn(400), "v": torch.ones(3)}, path)
    elif kind == "caffe2":
        path.write_bytes(python2_pickle({"w": np.arange(400, dtype=np.float32)}))
    else:
        save(path, {"w": torch.randn(400)}, _use_new_zipfile_serialization=kind == "torch")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["torch", "legacy", "script", "safetensors", "caffe2"])
def test_a_file_cut_short_is_never_read(tmp_path, kind):
    path = tmp_path / "w"
    whole = written(path, kind)
    assert read(path)
    for keep in [*range(1, len(whole), max(len(whole) // 40, 1)), len(whole) - 1]:
        path.write_bytes(whole[:keep])
        # refused: cut within the name of a class, it is another class
        with pytest.raises(WeightsError, match=r"cut short or damaged|no file of weights|so it is refused"):
            read(path)
