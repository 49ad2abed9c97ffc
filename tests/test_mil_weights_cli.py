"""`wsvad weights`: what it prints, and its exit codes."""

import hashlib
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from extract import catalogue
from extract.backbones import backbones
from extract.catalogue import CATALOGUE, WeightFile
from mil.weights_cli import weights
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WSVAD_WEIGHTS", str(tmp_path))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(weights, arguments, catch_exceptions=False)


def known(monkeypatch, tmp_path, content=b"weights", **changes):
    """A catalogue of one file, "net"."""
    sha = hashlib.sha256(content).hexdigest()
    entry = WeightFile(
        "net", **({"url": "http://x.invalid/net.pth", "about": "a net", "licence": "MIT", "sha256": sha} | changes)
    )
    monkeypatch.setattr(
        catalogue, "CATALOGUE", {"net": entry, "other": WeightFile("other", "http://x.invalid/o", "o", "MIT")}
    )
    return entry


def test_ls_names_every_file_with_its_address_licence_and_size(weights_folder):
    (weights_folder / "s3d-d76dad2f.pth").write_bytes(bytes(2_500_000))
    shown = run("ls")
    assert shown.exit_code == 0
    for entry in CATALOGUE.values():
        assert entry.url in shown.stdout
        assert f"licence: {entry.licence}" in shown.stdout
    line = {row.split()[0]: row for row in shown.stdout.splitlines() if not row.startswith(" ")}
    assert set(line) == set(CATALOGUE)
    assert " here      2.5 MB  S3D, Kinetics-400" in line["s3d"]
    assert " -       320.0 MB  C3D" in line["c3d_sports1m"]
    assert " -           ? MB  I3D ResNet-50" in line["i3d_r50_caffe2"]
    assert f"1 of {len(CATALOGUE)} are in {weights_folder}" in shown.stderr


def test_ls_as_json_knows_who_takes_a_file():
    rows = {row["name"]: row for row in json.loads(run("ls", "--json").stdout)}
    assert list(rows) == list(CATALOGUE)
    assert rows["vggish"]["sha256"] == "10086976"
    assert rows["i3d_rgb_imagenet"]["git_blob"] == "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"
    assert not rows["vggish"]["present"]
    wanted = {(name, preset) for preset in backbones for name in getattr(backbones.get(preset), "weight_files", ())}
    assert {(row["name"], preset) for row in rows.values() for preset in row["presets"]} == wanted


def test_check_tells_good_from_wrong_and_absent(weights_folder, monkeypatch, tmp_path):
    entry = known(monkeypatch, tmp_path)
    assert run("check").exit_code == 0
    assert run("check").stdout == "not fetched: net, other\n"
    entry.path.write_bytes(b"weights")
    shown = run("check")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"good        net  {entry.path}  sha256 {entry.sha256}\n")
    entry.path.write_bytes(b"weightz")
    shown = run("check")
    assert shown.exit_code == 1
    assert f"WRONG       net  {entry.path}  wanted sha256 {entry.sha256}, found" in shown.stdout
    assert run("check", "other").exit_code == 0
    rows = json.loads(run("check", "--json").stdout)
    assert [row["state"] for row in rows] == ["WRONG", "absent"]


def test_check_without_anything_to_compare_with_says_so(monkeypatch, tmp_path):
    entry = known(monkeypatch, tmp_path, sha256="")
    entry.path.write_bytes(b"mine")
    assert run("check", "net").stdout.startswith("unknown     net")


def test_fetch_takes_what_is_there_and_reports_what_fails(monkeypatch, tmp_path):
    entry = known(monkeypatch, tmp_path)
    entry.path.write_bytes(b"weights")
    shown = run("fetch", "net")
    assert shown.exit_code == 0
    assert f"net: already there, sha256 {entry.sha256}; licence: MIT\n{entry.path}\n" == shown.stdout
    monkeypatch.setattr("extract.downloads.fetch", refuse)
    for arguments in (("fetch", "net", "other"), ("fetch", "net", "other", "--json")):
        shown = run(*arguments)
        assert shown.exit_code == 1
        assert "error: no net for net\nerror: no net for other\n" in shown.stderr  # the second is tried all the same
    assert [row["state"] for row in json.loads(shown.stdout)] == ["failed", "failed"]


def refuse(entry):
    raise catalogue.WeightsError(f"no net for {entry.name}")


@pytest.mark.parametrize("verb", ["fetch", "check"])
def test_an_unknown_name_is_told_before_anything_happens(verb, monkeypatch):
    monkeypatch.setattr("extract.downloads.fetch", refuse)
    with pytest.raises(catalogue.WeightsError, match=r"no published weights called 'vgish'\. Did you mean 'vggish'"):
        run(verb, "s3d", "vgish")


def test_fetch_wants_a_name():
    assert run("fetch").exit_code == 2


def test_importing_the_commands_loads_neither_torch_nor_numpy():
    code = "import mil.weights_cli, sys; print(sorted({'torch', 'numpy', 'extract'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_fetching_and_checking_need_no_torch(tmp_path):
    code = "import extract.downloads, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_it_is_a_group_of_three():
    assert isinstance(weights, click.Group)
    assert sorted(weights.commands) == ["check", "fetch", "ls"]
    assert all(command.help for command in weights.commands.values())
