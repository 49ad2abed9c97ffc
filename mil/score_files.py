"""Scores of videos as files, one set for each video, and one list of all events.

NAME.csv           frame,time_s,score: one line for each frame, the time at which it is shown
NAME.json          what was scored and by what, clips, events and warnings; nothing but "complete": false until the
                   other files are there
NAME.png, .svg     the timeline
NAME.scored.mp4    the video with its score and events burnt in
events.json        the events of all videos in the folder
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.files import sweep, write_text
from mil.events import EventRule, Span
from mil.score_inputs import ANNOTATED, EVENTS, apart, printable, whole

if TYPE_CHECKING:
    from mil.score import VideoScores

FORMAT = 1
_ENDINGS = (".csv", ".png", ".svg", ANNOTATED)
_LONGEST = 120  # bytes of a name; files get endings, and are written aside under longer ones


@dataclass(frozen=True)
class Written:
    """What was written of one video: its name in the folder, its files, NAME.json among them, and the events in it."""

    name: str
    path: Path
    files: tuple[Path, ...]
    events: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


def name_in(folder: Path, source: Path) -> str:
    """What the files of a video are called in that folder: after the video, unless something else has that name there.

    The same video gets the same name again. Files that something else wrote are never replaced.
    """
    name = printable(source)
    own = f"-{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]}"
    if len(name.encode()) > _LONGEST:
        return name.encode()[: _LONGEST - len(own)].decode(errors="ignore") + own
    if name.lower() == Path(EVENTS).stem:
        return name + own
    path = folder / f"{name}.json"
    if path.exists():
        return name if _kept(path).get("video") == whole(source) else name + own
    return name + own if any((folder / f"{name}{ending}").exists() for ending in _ENDINGS) else name


def _kept(path: Path) -> dict[str, Any]:
    """What NAME.json says; nothing where it is somebody else's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(
    scores: "VideoScores",
    folder: Path,
    *,
    rule: EventRule | None = None,
    about_threshold: str = "",
    pictures: Sequence[str] = ("png",),
    annotated: bool = False,
    damaged: str = "refuse",
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Writes the files of one video, each in one step; those of an earlier scoring of the same video are replaced.

    Args:
        scores: of the video.
        folder: made where it is not there.
        rule: of events; None: none are looked for.
        about_threshold: where its threshold comes from.
        pictures: "png", "svg", both or none.
        annotated: write NAME.scored.mp4 too.
        damaged: as the video was read.
        progress: told the number of frames that are annotated so far.

    Raises OSError where nothing can be written, ValueError where the folder is the video itself, as pictures.
    """
    from mil.annotate import annotate
    from mil.timeline import timeline

    apart(folder, [scores.path])
    folder.mkdir(parents=True, exist_ok=True)
    name = name_in(folder, scores.path)
    sweep(folder, f".{escape(name)}.*.tmp")  # of a killed scoring; an annotated video may be large
    spans = scores.events(rule) if rule is not None else []
    path = folder / f"{name}.json"
    endings = [".csv", *(f".{kind}" for kind in pictures), *([ANNOTATED] if annotated else [])]
    files = [folder / f"{name}{ending}" for ending in endings]
    begun = {"format": FORMAT, "video": whole(scores.path), "name": name, "complete": False}
    write_text(path, json.dumps(begun) + "\n")  # a kill never leaves numbers beside other scores
    for ending in _ENDINGS:  # an earlier scoring's, which would say otherwise
        if (old := folder / f"{name}{ending}") not in files:
            old.unlink(missing_ok=True)
    write_text(files[0], _table(scores))
    limits: dict[str, Any] = {"threshold": rule.high, "low": rule.low} if rule is not None else {}
    for drawn in files[1 : 1 + len(pictures)]:
        starts = scores.times[scores.grid.starts]
        timeline(drawn, scores.scores, scores.times, title=name, events=spans, clips=starts, **limits)
    notes: tuple[str, ...] = ()
    if annotated:
        limit = None if rule is None else rule.high
        notes = annotate(
            scores.path, files[-1], scores.scores, scores.times,
            threshold=limit, events=spans, title=name, damaged=damaged, progress=progress,
        )  # fmt: skip
    events = tuple(_event(span, scores, name) for span in spans)
    threshold = None if rule is None else {**asdict(rule), "about": about_threshold}
    described = json.dumps({**begun, **_described(scores, threshold, events, notes)}, indent=1)
    clips = ",\n".join(f"  {json.dumps(clip)}" for clip in _clips(scores))  # a line each: a long video has many
    write_text(path, f'{described[:-2]},\n "clips": [\n{clips}\n ]\n}}\n')
    return Written(name, path, (*files, path), events, notes)


def _table(scores: "VideoScores") -> str:
    rows = zip(scores.times[:-1].tolist(), scores.scores.tolist(), strict=True)
    return "frame,time_s,score\n" + "".join(f"{i},{t:.6f},{s!r}\n" for i, (t, s) in enumerate(rows))


def _event(span: Span, scores: "VideoScores", name: str) -> dict[str, Any]:
    start, stop = np.searchsorted(scores.times, [span.start_s, span.stop_s]).tolist()
    return {
        "name": name,
        "video": whole(scores.path),
        "start_s": round(span.start_s, 6),
        "stop_s": round(span.stop_s, 6),
        "start_frame": start,
        "stop_frame": stop,
        "peak": span.peak,
        "peak_s": round(span.peak_s, 6),
    }


def _described(
    scores: "VideoScores",
    threshold: Mapping[str, Any] | None,
    events: Sequence[dict[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "complete": True,
        "fps": scores.fps,
        "frames": len(scores.scores),
        "seconds": round(float(scores.times[-1]), 6),
        **{key: value for key, value in scores.about.items() if key != "warnings"},
        "threshold": threshold,
        "events": events,
        "notes": [*scores.notes, *notes],
        "warnings": list(scores.about.get("warnings", ())),
    }


def _clips(scores: "VideoScores") -> Iterator[dict[str, Any]]:
    spans = scores.grid.spans
    for (start, stop), (begin, end), score in zip(
        spans.tolist(), scores.times[spans].tolist(), scores.clip_scores.tolist(), strict=True
    ):
        yield {"start": start, "stop": stop, "start_s": round(begin, 6), "stop_s": round(end, 6), "score": score}
