"""`wsvad score`: videos that nobody has extracted -> frame scores, events and pictures."""

import errno
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mil.options import PATH, json_option, load_plugins, plugins_option
from mil.rules import RULES

if TYPE_CHECKING:
    from mil.score import VideoScores
    from mil.score_files import Written

log = logging.getLogger(__name__)

_SHOWN = 5  # events in a line
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PICTURES: dict[str, tuple[str, ...]] = {"png": ("png",), "svg": ("svg",), "both": ("png", "svg"), "none": ()}


@click.command()
@click.argument("run", type=PATH)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option("--out", type=PATH, required=True, help="Folder for the results; those of the same videos are replaced.")
@click.option("--rule", type=click.Choice(RULES), help="Whose weights.  [the run's select.rule]")
@click.option("--threshold", type=float, help="Score at which an event begins.  [chosen on the training videos]")
@click.option("--low", type=float, help="Score below which it ends.  [4/5 of the way from the usual score up]")
@click.option("--min-duration", type=click.FloatRange(0), help="Seconds; shorter events are dropped.  [1]")
@click.option("--merge", type=click.FloatRange(0), help="Seconds; events less than that apart are one.  [2]")
@click.option("--weights", type=PATH, multiple=True, help="A file that made the features, if it is no fetched one.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:1, mps; of head and nets.")
@click.option("--online", is_flag=True, help="Score each clip by what came before it, with a head that can.")
@click.option("--damaged", type=click.Choice(["refuse", "keep"]), default="refuse", show_default=True,
              help="Videos of which frames are lost: refuse them, or score what can be decoded.")  # fmt: skip
@click.option("--annotate", is_flag=True, help="Write NAME.scored.mp4 with the score and the events burnt in.")
@click.option("--picture", type=click.Choice(list(_PICTURES)), default="png", show_default=True, help="Timelines.")
@json_option
@plugins_option
def score(
    run: Path,
    videos: tuple[str, ...],
    out: Path,
    rule: str | None,
    threshold: float | None,
    low: float | None,
    min_duration: float | None,
    merge: float | None,
    weights: tuple[Path, ...],
    device: str,
    online: bool,
    damaged: str,
    annotate: bool,
    picture: str,
    as_json: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Score videos with a run: files, folders and quoted patterns -> frame scores, events and timelines in --out.

    Each video gets NAME.csv (frame, time, score), NAME.json and a timeline, and all of them events.json. The features
    are made as those were that the run was trained on. Without --threshold, events begin at the score that best
    separates the anomalous from the normal training videos; RUN/threshold-RULE.json keeps it.
    """
    from tqdm import tqdm

    from mil.score import load
    from mil.score_events import EventList
    from mil.score_files import write
    from mil.score_inputs import apart, find
    from mil.threshold import Threshold, training_threshold

    load_plugins(plugins)
    found = find(videos)
    apart(out, found)
    scorer = load(run, rule=rule, device=device, weights=weights, online=online, damaged=damaged)
    if threshold is None:
        chosen = training_threshold(scorer.run, scorer.rule, str(scorer.device), online=online)
    else:
        chosen = Threshold.given(threshold)
    events = chosen.rule(low=low, min_s=min_duration, merge_s=merge)
    out.mkdir(parents=True, exist_ok=True)
    listed = EventList(out)
    for warning in scorer.warnings:
        click.echo(f"WARNING: {warning}", err=True)
    click.echo(f"{events.high:.4g} begins an event, below {events.low:.4g} it ends; {chosen.about}", err=True)
    done: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    with tqdm(found, unit="video", disable=None, desc=f"score with {run.name}") as bar:
        for path in bar:
            try:
                scores = scorer.score(path)
                written = write(
                    scores, out, rule=events, about_threshold=chosen.about, pictures=_PICTURES[picture],
                    annotated=annotate, damaged=damaged,
                )  # fmt: skip
                listed.add(scores, written, events, chosen.about)
            except Exception as error:  # whatever one video does must not cost the others
                if isinstance(error, OSError) and error.errno in _DISK_FULL:  # it often names no file
                    raise OSError(error.errno, error.strerror, str(error.filename or out)) from error
                log.debug("%s", path, exc_info=error)
                failures[str(path)] = str(error) or type(error).__name__
                with bar.external_write_mode():
                    click.echo(f"failed: {_named(path, failures[str(path)])}", err=True)
                continue
            done.append(summary_of(scores, written))
            if not as_json:
                with bar.external_write_mode():
                    click.echo(line_of(done[-1]))
    if as_json:
        limits = {**vars(events), "about": chosen.about}
        summary = {"out": str(out), **scorer.about, "warnings": list(scorer.warnings), "threshold": limits}
        click.echo(json.dumps({**summary, "videos": done, "failures": failures}))
    elif done:
        click.echo(f"wrote {out}; the events of all videos: {listed.path}")
    if len(failures) > 1 or (failures and done):  # once more, since they scrolled by
        click.echo(f"{len(failures)} of {len(found)} videos failed:", err=True)
        for failed, message in failures.items():
            click.echo(f"  {_named(Path(failed), message)}", err=True)
    sys.exit(int(bool(failures)))


def summary_of(scores: "VideoScores", written: "Written") -> dict[str, Any]:
    """One video for --json."""
    top = int(scores.scores.argmax())
    return {
        "name": written.name,
        "video": str(scores.path),
        "frames": len(scores.scores),
        "fps": scores.fps,
        "seconds": float(scores.times[-1]),
        "peak": float(scores.scores[top]),
        "peak_s": float(scores.times[top]),
        "events": list(written.events),
        "notes": [*scores.notes, *written.notes],
        "files": [str(path) for path in written.files],
    }


def line_of(summary: dict[str, Any]) -> str:
    """One video for people."""
    spans = [f"{event['start_s']:.1f} to {event['stop_s']:.1f} s" for event in summary["events"]]
    shown = ", ".join(spans[:_SHOWN]) + (f" and {len(spans) - _SHOWN} more" if len(spans) > _SHOWN else "")
    events = f"{len(spans)} event{'s' * (len(spans) != 1)}{': ' if spans else ''}{shown}"
    notes = "".join(f"\n  note: {note}" for note in summary["notes"])
    peak = f"highest score {summary['peak']:.3g} at {summary['peak_s']:.1f} s"
    return f"{summary['name']}: {summary['seconds']:.1f} s, {peak}, {events}{notes}"


def _named(path: Path, message: str) -> str:
    """A message that names the video, once."""
    return message if message.startswith(str(path)) else f"{path}: {message}"
