"""`wsvad export`: a run for programs without this code, a feature store for other people's code."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from mil.options import PATH, json_option, load_plugins, plugins_option
from mil.rules import RULES


@click.command()
@click.argument("path", metavar="RUN|STORE", type=PATH)
@click.option("--onnx", type=PATH, metavar="FILE.onnx", help="RUN: write its model as ONNX.")
@click.option("--torchscript", type=PATH, metavar="FILE.pt", help="RUN: write its model as TorchScript.")
@click.option("--rule", type=click.Choice(RULES), help="RUN: the weights of this rule.  [the run's select.rule]")
@click.option("--online", is_flag=True, help="RUN: no score tells of later clips (hlnet, tcn_ibl, cma_la).")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="RUN: of the features.  [float32]")
@click.option("--like", help="STORE: the layout to write: rtfm, rocng, urdmu or xd.")
@click.option("--out", type=PATH, help="STORE: a folder for the files and their lists.")
@click.option("--manifest", type=PATH, help="STORE: the videos, for lists in the order that the other code wants.")
@json_option
@plugins_option
def export(
    path: Path,
    onnx: Path | None,
    torchscript: Path | None,
    rule: str | None,
    online: bool,
    dtype: str | None,
    like: str | None,
    out: Path | None,
    manifest: Path | None,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """A run -> its model as ONNX or TorchScript; a feature store -> the files that other people's code reads.

    A model takes features as they were extracted, one input for each modality, (1, K crops, T clips, D), any K and T,
    and gives the scores of the clips, (1, T). What comes before and after stands in the file's metadata. Its scores are
    compared with the run's before the file is written.
    """
    of_run = {"--onnx": onnx, "--torchscript": torchscript, "--rule": rule, "--online": online, "--dtype": dtype}
    of_store = {"--like": like, "--out": out, "--manifest": manifest}
    if (path / "config.yaml").is_file():
        _refuse(of_store, f"{path} is a run: --onnx FILE or --torchscript FILE; --like is for feature stores")
        if not (onnx or torchscript):
            raise click.UsageError(f"{path} is a run; say what to write: --onnx FILE.onnx or --torchscript FILE.pt")
        if onnx and onnx == torchscript:
            raise click.UsageError(f"--onnx and --torchscript both name {onnx}; give each a file of its own")
        load_plugins(plugins)
        _run(path, onnx, torchscript, rule, online, dtype or "float32", as_json)
        return
    if not (path / "spec.json").is_file():
        raise click.UsageError(f"{path} is neither a run (it would hold config.yaml) nor a feature store (spec.json)")
    _refuse(of_run, f"{path} is a feature store: --like LAYOUT --out FOLDER; --onnx and the like are for runs")
    if like is None or out is None:
        raise click.UsageError(f"{path} is a feature store; it needs --like LAYOUT and --out FOLDER")
    _store(path, like, out, manifest, as_json)


def _refuse(options: Mapping[str, object], why: str) -> None:
    if given := [name for name, value in options.items() if value]:
        raise click.UsageError(f"{given[0]} does not fit: {why}")


def _run(
    path: Path, onnx: Path | None, torchscript: Path | None, rule: str | None, online: bool, dtype: str, as_json: bool
) -> None:
    from mil.export import export_run
    from mil.rundir import RunDir

    files = export_run(RunDir(path), onnx=onnx, torchscript=torchscript, rule=rule, online=online, dtype=dtype)
    about = files[0].metadata
    for warning in (*about["warnings"], *(f"{f.path}, {note}" for f in files for note in f.notes)):
        click.echo(f"WARNING: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({"run": str(path), "files": [f.as_dict() for f in files], "metadata": about}))
        return
    inputs = ", ".join(f"{i['name']} ({', '.join(map(str, i['shape']))}) {i['dtype']}" for i in about["inputs"])
    click.echo(f"{about['head']}: {inputs} -> scores (1, T); selected by: {about['selected_by']}")
    for file in files:
        lengths = ", ".join(str(t) for t in sorted({t for _, t in file.shapes}))
        click.echo(
            f"wrote {file.path}, {file.bytes / 1e6:.2f} MB; scores differ from the run's by {file.max_difference:.1e} "
            f"at most (videos of {lengths} clips)"
        )


def _store(root: Path, like: str, out: Path, manifest: Path | None, as_json: bool) -> None:
    from data import manifest as manifests
    from data.exporters import export_features
    from data.store import FeatureStore

    videos = manifests.read(manifest) if manifest else None
    report = export_features(FeatureStore(root), out, like, videos)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({**report.as_dict(), "out": str(out)}) if as_json else report.describe(out))
    sys.exit(int(bool(report.failures)))
