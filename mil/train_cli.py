"""`wsvad train` and `wsvad eval`: features -> head -> numbers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mil.options import PATH, json_option, load_plugins, plugins_option
from mil.rules import RULES


@click.command()
@click.argument("recipe")
@click.option("--manifest", type=PATH, help="The videos and their labels.")
@click.option("--features", type=PATH, multiple=True, help="A feature store; give one per modality.")
@click.option("--out", type=PATH, required=True, help="The run's folder; never overwritten.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="e.g. train.steps=500, head.topk=3.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, dropout and batches.  [recipe's, 0]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="train.precision.  [recipe's, fp32]")
@click.option("--compile", "compiled", type=click.Choice(["none", "kernels", "graphs"]), help="train.compile.  [none]")
@click.option(
    "--select", type=click.Choice(RULES), help="select.rule: which weights the run is judged by.  [recipe's, last]"
)
@click.option(
    "--also",
    type=click.Choice(RULES),
    multiple=True,
    help="select.also: a further rule, with weights of its own; all three: --also val --also test.",
)
@click.option("--track", multiple=True, help="tensorboard (RUN/tensorboard) or wandb, beside metrics.jsonl.")
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
    also: tuple[str, ...],
    track: tuple[str, ...],
    resume: bool,
    allow_missing: bool,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Train a head by RECIPE (a name from `wsvad ls recipes`, or a YAML file) on the training videos of a manifest.

    Weights are kept by rules: `last` keeps those of the last step; `val` the best on training videos that are held out
    from all of the run; `test` the best on the test videos, which is OPTIMISTIC and is called so beside every number.
    """
    from extract.device import device_of
    from mil.allocator import keep_memory
    from mil.run import resume_run, start_run

    keep_memory()
    load_plugins(plugins)
    device = device_of(device)
    named = {"train.precision": precision, "train.compile": compiled, "select.rule": select}
    named["select.also"] = f"[{', '.join(also)}]" if also else None
    overrides = (*overrides, *(f"{key}={value}" for key, value in named.items() if value is not None))
    if resume:
        if overrides or seed is not None or features or manifest:
            raise click.UsageError(
                "--resume takes everything from the run; leave out --manifest, --features, --set, --seed and the like"
            )
        run, summary = resume_run(recipe, out, device=device, track=track)
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
            track=track,
        )
    if as_json:
        click.echo(json.dumps({"run": str(run.root), **summary}))
    else:
        click.echo(f"trained {summary['steps']} steps in {summary['seconds']:.1f} s; kept: {summary['selected_by']}")
        for rule, said in summary["rules"].items():
            if said != summary["selected_by"]:
                click.echo(f"kept beside it, by {rule}: {said}")
        click.echo(f"wrote {run.root}; now: wsvad eval {run.root}" + "".join(f" --plugin {p}" for p in plugins))


@click.command("eval")
@click.argument("run", type=PATH)
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@click.option("--protocol", help="A name from `wsvad ls protocols`.  [recipe's, frames]")
@click.option("--manifest", type=PATH, help="Other videos than the run's own.")
@click.option("--features", type=PATH, multiple=True, help="Where the features are now, when the stores have moved.")
@click.option("--allow-missing", is_flag=True, help="Leave out videos without features; they are listed in the result.")
@click.option(
    "--rule", type=click.Choice(RULES), help="The weights of this rule alone.  [all, first the run's select.rule]"
)
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
    """Frame-level numbers of a run, with the protocol and what selected the checkpoint beside them.

    A run that followed several rules is evaluated by each: all of the one that it is judged by, then a table.
    """
    from extract.device import device_of
    from mil.allocator import keep_memory
    from mil.evaluate import evaluate_run
    from mil.rundir import RunDir

    keep_memory()
    load_plugins(plugins)
    device = device_of(device)
    of_run = RunDir(run)
    followed = of_run.config.select.rules
    of_run.followed(rule)
    results = {}
    for one in [rule] if rule else followed:
        if one != followed[0] and one != rule and not of_run.checkpoint_of(one).with_suffix(".json").is_file():
            click.echo(f"WARNING: no weights by {one} yet", err=True)  # of a run that is not done
            continue
        results[one] = evaluate_run(
            of_run,
            split=split,
            protocol_name=protocol,
            manifest_path=manifest,
            feature_roots=features,
            allow_missing=allow_missing,
            crop=crop,
            resamples=bootstrap,
            device=device,
            rule=one,
            precision=precision,
        )
    judged = next(iter(results.values())).numbers
    finished = of_run.status["state"] == "done"
    if as_json:
        shown = ("auc", "ap", "step", "selected_by", "optimistic")
        rules = {one: {name: result.numbers[name] for name in shown} for one, result in results.items()}
        click.echo(json.dumps({**judged, "finished": finished, "rules": rules}))
    else:
        click.echo(describe(judged))
        if not finished:
            click.echo(
                f"WARNING: training is not done, these weights are of step {judged['step']}; go on with --resume"
            )
        if len(results) > 1:
            click.echo(side_by_side([result.numbers for result in results.values()]))
    for result in results.values():
        click.echo(f"wrote {result.path}", err=True)


def side_by_side(every: Sequence[dict[str, Any]]) -> str:
    """One line for each rule of a run, first the one that it is judged by."""
    lines = [f"{'rule':<6} {'step':>7} {'AUC':>8} {'AP':>8}"]
    for numbers in every:
        auc, ap = ("-" if numbers[n] is None else f"{numbers[n]:.4f}" for n in ("auc", "ap"))
        mark = "  OPTIMISTIC: chosen on the test videos" if numbers["optimistic"] else ""
        lines.append(f"{numbers['rule']:<6} {numbers['step']:>7} {auc:>8} {ap:>8}{mark}")
    return "\n".join(lines)


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
        f"features {', '.join(numbers['features'])}",
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
    if numbers["optimistic"]:
        lines.append("WARNING: OPTIMISTIC: these weights were chosen on the test videos; compare with the like alone")
    if numbers["random_weights"]:
        lines.append("WARNING: these features come from a net with random weights; the numbers say nothing about it")
    if numbers["missing"]:
        lines.append(f"WARNING: {len(numbers['missing'])} videos had no features and are left out; not comparable")
    if numbers["trained_without"]:
        lines.append(f"WARNING: trained without {len(numbers['trained_without'])} videos that had no features")
    if numbers["score_gap"] == 0:
        lines.append("WARNING: anomalous and normal frames score alike; has training diverged? See metrics.jsonl")
    if numbers["clamped_events"]:
        lines.append(
            f"{len(numbers['clamped_events'])} videos have an event that ends behind the last frame; cut there"
        )
    return "\n".join(lines)
