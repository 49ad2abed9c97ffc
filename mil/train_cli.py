"""`wsvad train` and `wsvad eval`: features -> head -> numbers."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from mil.options import PATH, json_option, load_plugins, plugins_option


@click.command()
@click.argument("recipe")
@click.option("--manifest", type=PATH, help="The videos and their labels.")
@click.option("--features", type=PATH, multiple=True, help="A feature store; give one per modality.")
@click.option("--out", type=PATH, required=True, help="The run's folder; never overwritten.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. train.steps=500, head.topk=3.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, dropout and batches.  [recipe's, 0]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="train.precision.  [recipe's, fp32]")
@click.option("--compile", "compiled", type=click.Choice(["no", "yes", "graphs"]), help="train.compile.  [no]")
@click.option("--select", type=click.Choice(["last", "val", "test"]), help="select.rule.  [recipe's, last]")
@click.option("--resume", is_flag=True, help="Go on with the run at --out, with its own recipe and features.")
@click.option("--allow-missing", is_flag=True, help="Leave out training videos that have no features.")
@json_option
@plugins_option
def train(
    recipe: str,
    manifest: Path | None,
    features: tuple[Path, ...],
    out: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    device: str,
    precision: str | None,
    compiled: str | None,
    select: str | None,
    resume: bool,
    allow_missing: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Train a head by RECIPE (a name from `wsvad ls recipes`, or a YAML file) on the training videos of a manifest."""
    from extract.device import device_of
    from mil.run import resume_run, start_run

    load_plugins(plugins)
    device = device_of(device)
    named = {"train.precision": precision, "train.compile": compiled, "select.rule": select}
    overrides = (*overrides, *(f"{key}={value}" for key, value in named.items() if value is not None))
    if resume:
        if overrides or seed is not None or features or manifest:
            raise click.UsageError(
                "--resume takes everything from the run; leave out --manifest, --features, --set, --seed and the like"
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


@click.command("eval")
@click.argument("run", type=PATH)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@click.option("--protocol", help="A name from `wsvad ls protocols`.  [recipe's, frames]")
@click.option("--manifest", type=PATH, help="Other videos than the run's own.")
@click.option("--features", type=PATH, multiple=True, help="Where the features are now, when the stores have moved.")
@click.option("--allow-missing", is_flag=True, help="Leave out videos without features; they are listed in the result.")
@click.option("--rule", type=click.Choice(["last", "val", "test"]), help="Whose weights.  [the run's select.rule]")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--crop", help="Score one crop, by name.  [the mean over all]")
@click.option(
    "--bootstrap", type=click.IntRange(0), default=0, help="Draws of whole videos for 95 % intervals.  [none]"
)
@click.option("--device", default="cpu", show_default=True)
@json_option
@plugins_option
def evaluate(
    run: Path,
    split: str,
    protocol: str | None,
    manifest: Path | None,
    features: tuple[Path, ...],
    allow_missing: bool,
    rule: str | None,
    precision: str,
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

    load_plugins(plugins)
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
        rule=rule,
        precision=precision,
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
