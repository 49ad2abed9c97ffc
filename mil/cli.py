"""The command line. Bodies import late, so that `wsvad --help` loads neither torch nor scikit-learn.

Results go to stdout (`--json` for programs), everything else to stderr. Exit codes: 0 done, 1 some videos failed (each
is named), 2 the command cannot be carried out as typed.
"""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from mil.bench_cli import bench
from mil.checkpoint_cli import checkpoint
from mil.extract_cli import extract
from mil.options import PATH as _PATH
from mil.options import json_option as _json_option
from mil.options import load_plugins as _load_plugins
from mil.options import plugins_option as _plugins
from mil.sweep_cli import compare, sweep
from mil.weights_cli import weights


class _Commands(click.Group):
    """Turns the errors that are messages into one line and exit code 2; a defect keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from data.registry import UnknownNameError

        try:
            return super().invoke(ctx)
        except (ValueError, UnknownNameError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {_say(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; what was finished is kept: repeat the command (train: with --resume)", err=True)
            ctx.exit(130)


def _say(error: Exception) -> str:
    """An error's own words; a bare one of the operating system as "what: which path; what to do"."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}; choose another path, or make room for this one"
    return str(error)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="WSVAD_DEBUG", help="Show tracebacks and debug messages.")
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
@click.version_option(package_name="wsvad", prog_name="wsvad")
def main(debug: bool, quiet: bool) -> None:
    """Weakly supervised video anomaly detection: videos -> cached features -> MIL heads -> frame-level numbers.

    wsvad demo runs the whole chain on generated videos.
    """
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname).1s %(message)s", stream=sys.stderr)
    for noisy in ("matplotlib", "h5py", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


for _command in (extract, weights, bench, checkpoint, sweep, compare):
    main.add_command(_command)


# -- look around ------------------------------------------------------------------------------------------------------


@main.command()
@_json_option
def doctor(as_json: bool) -> None:
    """What works on this machine, and what to type for what does not."""
    from mil.doctor import examine

    checks = examine()
    if as_json:
        click.echo(json.dumps([c.as_dict() for c in checks], indent=2))
    else:
        for check in checks:
            click.echo(f"{check.state:<5} {check.name:<14} {check.found}")
            if check.remedy:
                click.echo(f"{'':<20} {check.remedy}")
    sys.exit(int(any(c.state == "FAIL" for c in checks)))


@main.command()
@click.argument("kind", type=click.Choice(["heads", "backbones", "datasets", "formats", "recipes", "protocols"]))
@_json_option
@_plugins
def ls(kind: str, as_json: bool, plugins: tuple[Path, ...]) -> None:
    """One line for each head, backbone, dataset, feature format, recipe or protocol.

    Lines of backbones are cut to the width of a terminal; --json has all of a backbone's recipe.
    """
    from mil.listing import backbone_table, listing

    _load_plugins(plugins)
    rows = listing(kind)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if kind == "backbones":
        heading, *lines = backbone_table(rows)
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        click.echo(heading[:width], err=True)
        for line in lines:
            click.echo(line[:width])
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        paper = f"  [{row['paper']}]" if row.get("paper") else ""
        trained = ""
        if kind == "heads":
            trained = f"  {' + '.join(row['modalities'])}; {', '.join(row['recipes']) or 'no recipe'}"
        click.echo(f"{row['name']:<{width}}  {row['about']}{paper}{trained}")


# -- videos -> manifest -> features -----------------------------------------------------------------------------------


@main.command()
@click.argument("dataset")
@click.option("--root", type=_PATH, required=True, help="Folder of the videos (for `folder`: or a CSV).")
@click.option("-o", "--out", type=_PATH, required=True, help="The manifest to write (.csv).")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the dataset, e.g. lists=DIR, seed=1.")
@_json_option
@_plugins
def index(
    dataset: str, root: Path, out: Path, options: tuple[str, ...], as_json: bool, plugins: tuple[Path, ...]
) -> None:
    """Official lists and annotations, or two folders of videos -> a manifest.

    What the lists and the folder disagree on is named line by line, left out, and makes the exit code 1.
    """
    from data import manifest
    from mil.listing import index_dataset

    _load_plugins(plugins)
    found = index_dataset(dataset, root, options)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    for problem in found.problems:
        click.echo(f"problem: {problem}", err=True)
    if not found.videos:
        raise ValueError(
            f"no usable video of {dataset} below {root}; the problems above say why, or --root is another folder"
        )
    manifest.write(out, found.videos)
    summary = {**found.summary(), "problems": len(found.problems), "manifest": str(out)}
    if as_json:
        click.echo(json.dumps(summary))
    else:
        for split in ("train", "test"):
            n, high, events = summary[split], summary[f"{split}_anomalous"], summary[f"{split}_events"]
            click.echo(f"{split:<5} {n} videos, {high} anomalous, {n - high} normal, {events} annotated events")
        click.echo(f"wrote {out}" + (f"; {len(found.problems)} problems, see above" if found.problems else ""))
    sys.exit(int(bool(found.problems)))


@main.command("import")
@click.argument("format_name", metavar="FORMAT")
@click.argument("src", type=_PATH)
@click.option("--manifest", type=_PATH, required=True, help="The videos; index the dataset first.")
@click.option("--out", type=_PATH, required=True, help="The feature store; importing again does what is missing.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the format, e.g. modality=audio.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float32", show_default=True)
@click.option("--split", type=click.Choice(["train", "test"]), help="Only videos of this split.")
@_json_option
def import_(
    format_name: str,
    src: Path,
    manifest: Path,
    out: Path,
    options: tuple[str, ...],
    dtype: str,
    split: str | None,
    as_json: bool,
) -> None:
    """Published features below SRC -> a feature store. FORMAT is a name from `wsvad ls formats`.

    Each file is found by its video's name and checked; one that is refused is named with the reason, and makes the exit
    code 1.
    """
    from data import manifest as manifests
    from data.importers import import_features

    videos = [v for v in manifests.read(manifest) if split in (None, v.split)]
    report = import_features(format_name, src, videos, out, options=options, dtype=dtype)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({**report.as_dict(), "store": str(out)}) if as_json else report.describe(out))
    sys.exit(int(bool(report.failures)))


@main.command("export")
@click.argument("root", metavar="STORE", type=_PATH)
@click.option("--like", required=True, help="The layout to write: rtfm, rocng, urdmu or xd.")
@click.option("--out", type=_PATH, required=True, help="A folder for the files and their lists.")
@click.option("--manifest", type=_PATH, help="The videos, for lists in the order that the other code wants.")
@_json_option
def export(root: Path, like: str, out: Path, manifest: Path | None, as_json: bool) -> None:
    """A feature store -> the files that other people's code reads."""
    from data import manifest as manifests
    from data.exporters import export_features
    from data.store import FeatureStore

    videos = manifests.read(manifest) if manifest else None
    report = export_features(FeatureStore(root), out, like, videos)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({**report.as_dict(), "out": str(out)}) if as_json else report.describe(out))
    sys.exit(int(bool(report.failures)))


@main.group()
def store() -> None:
    """Look into a feature store, and check every file of it."""


@store.command("info")
@click.argument("root", type=_PATH)
@_json_option
def store_info(root: Path, as_json: bool) -> None:
    """What made the features, how many there are, and how much disk they take."""
    from data.store import FeatureStore

    info = FeatureStore(root).info()
    if as_json:
        click.echo(json.dumps(info))
        return
    click.echo(
        f"{info['id']}  {info['videos']} videos, {info['bytes'] / 1e6:.1f} MB, {info['failures']} failures on record"
    )
    for name, value in info["spec"].items():
        click.echo(f"  {name:<10} {json.dumps(value)}")


@store.command("verify")
@click.argument("root", type=_PATH)
@_json_option
def store_verify(root: Path, as_json: bool) -> None:
    """Open and check every file: complete, of this spec, crc32 right, finite. Exit code 1 when one is not."""
    from data.store import FeatureStore

    report = FeatureStore(root).verify()
    for line in report.bad:
        click.echo(f"bad: {line}", err=True)
    if as_json:
        click.echo(
            json.dumps(
                {"good": len(report.good), "bad": list(report.bad), "clips": report.clips, "bytes": report.bytes}
            )
        )
    else:
        click.echo(
            f"{len(report.good)} videos good, {len(report.bad)} bad, {report.clips} clips, {report.bytes / 1e6:.1f} MB"
        )
    sys.exit(int(bool(report.bad)))


# -- features -> head -> numbers --------------------------------------------------------------------------------------


@main.command()
@click.argument("recipe")
@click.option("--manifest", type=_PATH, help="The videos and their labels.")
@click.option("--features", type=_PATH, multiple=True, help="A feature store; give one per modality.")
@click.option("--out", type=_PATH, required=True, help="The run's folder; never overwritten.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. train.steps=500, head.topk=3.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, dropout and batches.  [recipe's, 0]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--resume", is_flag=True, help="Go on with the run at --out, with its own recipe and features.")
@click.option("--allow-missing", is_flag=True, help="Leave out training videos that have no features.")
@_json_option
@_plugins
def train(
    recipe: str,
    manifest: Path | None,
    features: tuple[Path, ...],
    out: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str,
    resume: bool,
    allow_missing: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Train a head by RECIPE (a name from `wsvad ls recipes`, or a YAML file) on the training videos of a manifest."""
    from extract.device import device_of
    from mil.run import resume_run, start_run

    _load_plugins(plugins)
    device = device_of(device)
    if resume:
        if overrides or seed is not None or features or manifest:
            raise click.UsageError(
                "--resume takes everything from the run; leave out --manifest, --features, --set, --seed"
            )
        run, summary = resume_run(recipe, out, device=device)
    else:
        if manifest is None or not features:
            raise click.UsageError("training needs --manifest FILE and --features STORE")
        run, summary = start_run(
            recipe,
            overrides,
            manifest,
            features,
            out,
            seed=seed,
            device=device,
            allow_missing=allow_missing,
            command=sys.argv,
        )
    if as_json:
        click.echo(json.dumps({"run": str(run.root), **summary}))
    else:
        click.echo(f"trained {summary['step']} steps in {summary['seconds']:.1f} s; kept: {summary['selected_by']}")
        click.echo(f"wrote {run.root}; now: wsvad eval {run.root}" + "".join(f" --plugin {p}" for p in plugins))


@main.command("eval")
@click.argument("run", type=_PATH)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@click.option("--protocol", help="A name from `wsvad ls protocols`.  [recipe's, frames]")
@click.option("--manifest", type=_PATH, help="Other videos than the run's own.")
@click.option("--features", type=_PATH, multiple=True, help="Where the features are now, when the stores have moved.")
@click.option("--allow-missing", is_flag=True, help="Leave out videos without features; they are listed in the result.")
@click.option("--crop", help="Score one crop, by name.  [the mean over all]")
@click.option(
    "--bootstrap", type=click.IntRange(0), default=0, help="Draws of whole videos for 95 % intervals.  [none]"
)
@click.option("--device", default="cpu", show_default=True)
@_json_option
@_plugins
def evaluate(
    run: Path,
    split: str,
    protocol: str | None,
    manifest: Path | None,
    features: tuple[Path, ...],
    allow_missing: bool,
    crop: str | None,
    bootstrap: int,
    device: str,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Frame-level numbers of a run, with the protocol and what selected the checkpoint beside them."""
    from extract.device import device_of
    from mil.evaluate import evaluate_run
    from mil.rundir import RunDir

    _load_plugins(plugins)
    device = device_of(device)
    result = evaluate_run(
        RunDir(run),
        split=split,
        protocol_name=protocol,
        manifest_path=manifest,
        feature_roots=features,
        allow_missing=allow_missing,
        crop=crop,
        resamples=bootstrap,
        device=device,
    )
    click.echo(json.dumps(result.numbers) if as_json else describe(result.numbers))
    click.echo(f"wrote {result.path}", err=True)


def describe(numbers: dict[str, Any]) -> str:
    """An evaluation as lines of text."""

    def show(name: str) -> str:
        value = numbers[name]
        if value is None:
            return "-"
        interval = numbers.get("ci95", {}).get(name)
        return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")

    threshold = f"{numbers['far_threshold']:g}"
    lines = [
        f"frame AUC {show('auc')}   AP (stepwise) {show('ap')}   PR-AUC (trapezoid) {show('pr_auc')}",
        f"anomalous videos alone: AUC {show('ano_auc')}   AP {show('ano_ap')}   "
        f"false alarms on normal videos, score >= {threshold}: {show('far')}",
        f"EER {show('eer')}   score gap {show('score_gap')}   video-level AUC {show('video_auc')}   "
        f"events found at {threshold}: {show('events_detected')}   mAP of spans, IoU 0.1 to 0.5: {show('map_iou')}",
        f"{numbers['videos']} videos, {numbers['frames']} frames, {numbers['positives']} anomalous; "
        f"protocol '{numbers['protocol']}', crops: {numbers['crops']}, smoothing over {numbers['smooth_clips']} clips",
        f"selected by: {numbers['selected_by']}",
        f"recipe {numbers['recipe']}, head {numbers['head']}, seed {numbers['seed']}, "
        f"features {', '.join(numbers['features']) or 'of an unknown recipe'}",
    ]
    for kind, values in numbers["classes"].items() if len(numbers["classes"]) > 1 else ():
        shown = {k: "-" if v is None else f"{v:.4f}" for k, v in values.items()}
        lines.append(
            f"  {kind:<14} {values['videos']:>3} videos   AUC in its videos {shown['auc_own']}, against the rest "
            f"{shown['auc_rest']}   AP {shown['ap_own']}, {shown['ap_rest']}"
        )
    if "ci95" in numbers:
        lines.append(f"in brackets: 95 % intervals, {numbers['ci95_about']}")
    if "features" in numbers["lengths_from"]:
        lines.append("true lengths are unknown: a video counts for the frames of its features")
    if numbers["random_weights"]:
        lines.append("WARNING: these features come from a net with random weights; the numbers say nothing about it")
    if numbers["missing"]:
        lines.append(f"WARNING: {len(numbers['missing'])} videos had no features and are left out; not comparable")
    if numbers["clamped_events"]:
        lines.append(
            f"{len(numbers['clamped_events'])} videos have an event that ends behind the last frame; cut there"
        )
    return "\n".join(lines)


@main.command()
@click.option(
    "--out", type=_PATH, default=Path("wsvad-demo"), show_default=True, help="Folder for everything it makes."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--backbone", default="motion", show_default=True)
@click.option("--recipe", default="motion_ranking", show_default=True)
@_json_option
def demo(out: Path, seed: int, backbone: str, recipe: str, as_json: bool) -> None:
    """Generated videos -> features -> training -> evaluation -> picture; offline, on a CPU, in about a minute."""
    from mil.demo import run_demo

    result = run_demo(out, seed=seed, backbone=backbone, recipe=recipe, say=lambda line: click.echo(line, err=as_json))
    if as_json:
        click.echo(json.dumps(result))
