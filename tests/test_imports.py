"""Three floors: data <- extract <- mil. The test names the line that breaks them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

FORBIDDEN = {
    "data": {"extract", "mil", "torch", "torchvision", "pytorchvideo", "sklearn", "click"},
    "extract": {"mil", "sklearn", "click"},
    "mil": {"tests"},
}
NEVER = {"pickle", "dill", "joblib"}
READER = "extract/unpickle.py"  # published weights are pickles; see test_the_reader_of_pickles_only_refuses


def imports_of(text: str) -> list[tuple[int, str]]:
    """(line, top-level module) of every import, at any depth of the code."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or "").split(".")[0]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found += [(node.lineno, a.value.split(".")[0]) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def breaches(name: str, text: str, floor: str) -> list[str]:
    return [
        f"{name}:{line} imports {module}"
        for line, module in imports_of(text)
        if (module in FORBIDDEN[floor] | NEVER or module.startswith(".")) and (name, module) != (READER, "pickle")
    ]


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_floors(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert len(files) > 5
    assert [b for f in files for b in breaches(str(f.relative_to(ROOT)), f.read_text(encoding="utf-8"), floor)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import mil",
        "import os, mil.cli as x",
        "from mil.heads import ranking",
        "def f():\n    from extract.runner import x",
        "import torch",
        "from . import types",
        "if TYPE_CHECKING:\n    from torch import Tensor",
        "importlib.import_module('mil.cli')",
    ],
)
def test_the_test_sees_a_breach(line):
    assert breaches("data/x.py", line, "data") == [f"data/x.py:{len(line.splitlines())} imports {_top(line)}"]


def test_the_reader_of_pickles_only_refuses():
    """The one file that may import pickle takes one thing from it: the reader whose `find_class` it replaces."""
    tree = ast.parse((ROOT / READER).read_text(encoding="utf-8"))
    assert [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "pickle"] == []
    taken = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "pickle"]
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    heirs = [c for c in classes if [ast.unparse(base) for base in c.bases] == ["pickle.Unpickler"]]
    assert len(taken) == len(heirs) == 1
    (method,) = [n for n in heirs[0].body if isinstance(n, ast.FunctionDef) and n.name == "find_class"]
    assert "super()" not in ast.unparse(method)


def _top(line: str) -> str:
    return next(n for n in ("mil", "extract", "torch", ".types", ".") if n in line.replace("from . import types", "."))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("data", ("torch", "sklearn", "av", "cv2", "click", "matplotlib", "extract", "mil")),
        ("data.store", ("torch", "sklearn", "av", "cv2", "click", "matplotlib", "extract", "mil")),
        ("data.datasets", ("torch", "sklearn", "av", "cv2", "click", "extract", "mil")),
        ("extract.decode", ("torch", "sklearn", "cv2", "click", "mil")),
        ("extract.runner", ("torch", "sklearn", "cv2", "click", "mil")),
        ("extract.decoders", ("torch", "sklearn", "cv2", "click", "mil")),  # as many processes as cores
        ("mil.cli", ("torch", "sklearn", "av", "cv2", "h5py", "matplotlib", "numpy")),
    ],
)
def test_what_an_import_loads(module, absent):
    code = f"import {module}, sys; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {set(absent)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_writes_nothing_and_logs_nothing(tmp_path):
    code = "import data.store, extract.runner, mil.cli, logging; print(logging.getLogger().handlers)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert list(Path(tmp_path).iterdir()) == []
