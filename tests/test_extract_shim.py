"""torchvision with a library that does not load: in fresh processes, since an import happens once in each."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.helpers import ROOT


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", dedent(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_torchvision_imports_and_its_nets_with_it():
    pytest.importorskip("pytorchvideo")
    found = run(
        """
        from extract import shim
        torchvision = shim.import_torchvision()
        assert shim.import_torchvision() is torchvision
        import torch, torchvision.ops, torchvision.models.optical_flow, torchvision.transforms.v2
        from torchvision.models import video
        assert callable(video.swin3d_t)
        assert callable(shim.import_pytorchvideo_hub().i3d_r50)

        # operators are declared where the compiled library is not there, and only there
        compiled = torchvision.extension._has_ops()
        assert bool(shim._FRAGMENTS) == (not compiled)
        try:
            kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.5, 0.9]), 0.5)
            assert compiled and kept.tolist() == [1]
        except (NotImplementedError, RuntimeError):  # a declared operator computes nothing
            assert not compiled
        print("done")
        """
    )
    assert found == "done\n"


FAKES = {
    "healthy": "torch.library.Library('torchvision', 'FRAGMENT').define('nms(Tensor boxes) -> Tensor')",
    "two_missing": "fake('first'); fake('second')",
    "not_curable": "raise RuntimeError('operator torchvision::stubborn does not exist')",
    "endless": "raise RuntimeError(f'operator torchvision::op{runs} does not exist')",
    "other_error": "raise RuntimeError('CUDA error: out of memory')",
    "other_package": "import a_package_that_is_not_there",
    "not_installed": None,
}
SCRIPT = """
import importlib, json, pathlib, sys, types
import torch
from extract import shim

folder, fakes = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
neighbour = sys.modules["torchvision_extras"] = types.ModuleType("torchvision_extras")
found = {}
for case, body in fakes.items():
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    if body is None:
        sys.modules["torchvision"] = None  # what an import then says is what it says of a package that is not there
    else:
        package = folder / case / "torchvision"
        package.mkdir(parents=True)
        (package / "state.py").write_text("seen = []")
        (package / "__init__.py").write_text(
            "import torch, torchvision.state, torchvision_extras\\n"
            "torchvision.state.seen.append(1)\\n"
            "torchvision_extras.runs += 1\\n"
            "runs = torchvision_extras.runs\\n"
            "def fake(name): torch.library.register_fake('torchvision::' + name)(lambda *given: given[0])\\n"
            f"{body}\\n"
        )
        sys.path.insert(0, str(folder / case))
        importlib.invalidate_caches()
    before, neighbour.runs = len(shim._FRAGMENTS), 0
    try:
        module = shim.import_torchvision()
        result = f"imported, state {module.state.seen}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    found[case] = [result, len(shim._FRAGMENTS) - before, neighbour.runs]
assert sys.modules["torchvision_extras"] is neighbour
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return json.loads(run(SCRIPT, str(tmp_path_factory.mktemp("fakes")), json.dumps(FAKES)))


def test_a_healthy_torchvision_is_imported_as_it_is(outcomes):
    assert outcomes["healthy"] == ["imported, state [1]", 0, 1]


def test_missing_operators_are_declared_one_by_one_and_the_import_starts_afresh(outcomes):
    # the state of the half imported package is gone: [1], not [1, 1, 1]
    assert outcomes["two_missing"] == ["imported, state [1]", 2, 3]


def test_what_declaring_does_not_cure_is_said_with_a_remedy(outcomes):
    message, declared, runs = outcomes["not_curable"]
    assert message.startswith("BackboneError: torchvision does not fit torch ")
    assert "torchvision::stubborn does not exist" in message
    assert "pip install --force-reinstall torch torchvision" in message
    assert (declared, runs) == (1, 2)


def test_it_gives_up_after_eight_operators(outcomes):
    message, declared, runs = outcomes["endless"]
    assert message.startswith("BackboneError: torchvision does not fit torch ")
    assert (declared, runs) == (8, 9)


def test_other_errors_pass_as_they_are(outcomes):
    assert outcomes["other_error"] == ["RuntimeError: CUDA error: out of memory", 0, 1]
    message, declared, runs = outcomes["other_package"]
    assert message == "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert (declared, runs) == (0, 1)


def test_a_torchvision_that_is_not_there_is_said_with_the_command(outcomes):
    message, declared, _ = outcomes["not_installed"]
    assert message.startswith("BackboneError: ")
    assert "torchvision is not installed: pip install -c constraints.txt -e '.[hub]'" in message
    assert declared == 0


def test_listing_the_presets_imports_neither_torchvision_nor_pytorchvideo():
    found = run(
        """
        import sys
        from extract.backbones import hub, tv  # noqa: F401
        from extract.backbones.base import backbones
        for name in ("i3d_r50", "slowfast_r50", "swin3d_t", "s3d"):
            assert backbones.get(name).default_spec().backbone == name
        print(sorted({"torchvision", "pytorchvideo", "fvcore"} & set(sys.modules)))
        """
    )
    assert found == "[]\n"
