"""What a report shows, as one dictionary that JSON can hold: evaluated runs on the same videos, and those videos.

Runs are found, checked and put into groups as `wsvad compare` does. Numbers are those that `wsvad eval` wrote; curves
and what is said of single videos come from the frame scores behind them. No test video is scored anew; training videos
are, once for each run, for the threshold that they give.
"""

import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data.types import Event, FrameScores, Video, label_frames
from mil import protocol as protocols
from mil.compare import rank_key
from mil.compare_read import (
    CompareError,
    Evaluated,
    Group,
    Which,
    find_evaluations,
    find_runs,
    grouped,
    names_of,
)
from mil.evaluate import read_scores
from mil.protocol import Protocol
from mil.report_pieces import Levels, packed, pieces
from mil.report_run import run_data
from mil.report_videos import Files, clips, sources, video_rows
from mil.report_warnings import left_out, of_runs
from mil.rundir import RunDir

METRICS = ("auc", "ap", "pr_auc")  # of groups


def report_data(
    roots: Sequence[Path],
    *,
    split: str = "test",
    rule: str | None = None,
    protocol: str | None = None,
    precision: str = "fp32",
    videos: Path | None = None,
    no_videos: bool = False,
    out: Path = Path("report.html"),
    title: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Reads evaluated runs, one or many.

    Args:
        roots: runs, or folders of them.
        split: "test" or "train".
        rule: "last", "val" or "test", whose weights; None: those that each run is judged by.
        protocol: None: each recipe's own.
        precision: "fp32" or "bf16", in which the weights were evaluated.
        videos: folder of the video files, looked through by name before the manifest's paths are.
        no_videos: leave the files out.
        out: the page's file; addresses of videos are relative to its folder.
        title: None: what the runs are.
        device: where training videos are scored, by which a threshold is chosen.

    Returns:
        title, made, version; split, protocol, protocol_about; num_videos, num_frames, num_positive; warnings; runs,
        groups, videos and stops. A piece of a video is a span of frames in which no run's score changes: `stops` is
        base64 of uint32, the frame behind each piece of each video, and `values` of a run base64 of uint16, its score
        there: low + value / 65535 * (high - low), at or above its threshold where value >= `reach`. A video has the
        pieces [first, first + count).

    Raises:
        CompareError: nothing is evaluated like that; runs with other videos, labels or protocols; two runs of a group
            with one seed; a manifest that was changed since.
        ValueError: no such folder of videos.
    """
    files = Files(videos)
    found, undone = find_runs([Path(os.path.abspath(root)) for root in roots])
    which = Which(split, rule, protocol, precision)
    evaluated = find_evaluations(found, which)
    names = names_of(evaluated)
    groups = sorted(grouped(evaluated, names, resamples=0, seed=0, metrics=()), key=lambda g: rank_key(g, "auc"))
    place = {(group.name, group.rule): i for i, group in enumerate(groups)}
    evaluated.sort(key=lambda one: (place[names[one.root], one.rule], one.found.numbers["seed"]))

    first, numbers = evaluated[0].root, evaluated[0].found.numbers
    manifests = {one.root: {v.id: v for v in RunDir(one.root).videos} for one in evaluated}
    called = _called([one.root for one in evaluated])
    runs, levels, scored = [], [], []
    for one in evaluated:  # ids and labels are the same in all: `grouped` has refused others
        scored = _in_order(read_scores(one.found.scores), manifests[first], first)
        runs.append(run_data(one, scored, name=called[one.root], group=names[one.root], device=device))
        levels.append(Levels.of(scored, runs[-1]["threshold"]))
    parts = pieces([len(v.labels) for v in scored], [one.levels for one in levels])
    for run, one_level in zip(runs, levels, strict=True):
        run |= {"low": one_level.low, "high": one_level.high, "reach": one_level.reach}
        run["values"] = packed(one_level.levels[parts.last])
    ids = [v.video_id for v in scored]
    frames = protocols.get(numbers["protocol"])
    data = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": version("wsvad"),
        "title": title or _title(groups, evaluated, split),
        "split": split,
        "protocol": frames.name,
        "protocol_about": numbers.get("protocol_about", frames.about),
        "num_videos": len(scored),
        "num_frames": sum(len(v.labels) for v in scored),
        "num_positive": sum(int(v.labels.sum()) for v in scored),
        "warnings": [*of_runs(runs), *left_out(undone, found, {one.root for one in evaluated}, which)],
        "runs": runs,
        "groups": [_group(group, names, evaluated) for group in groups],
        "videos": video_rows(
            [(about := manifests[first][v.video_id], _events(frames, about, v, first)) for v in scored],
            [len(v.labels) for v in scored],
            parts,
            clips([RunDir(one.root) for one in evaluated], ids),
            {} if no_videos else sources(manifests.values(), ids, files, out),
        ),
        "stops": packed(parts.stops),
    }
    return {key: _plain(value) for key, value in data.items()}


def _in_order(scored: Sequence[FrameScores], manifest: Mapping[str, Video], root: Path) -> list[FrameScores]:
    """Frame scores in the order of a manifest, so that they lie alike in every run."""
    by_id = {v.video_id: v for v in scored}
    if gone := sorted(by_id.keys() - manifest.keys()):
        raise _changed(root, gone[0])
    return [by_id[video_id] for video_id in manifest if video_id in by_id]


def _events(frames: Protocol, about: Video, video: FrameScores, root: Path) -> tuple[Event, ...]:
    """The manifest's events, which must be those that the video was evaluated with."""
    events = frames.events(about, len(video.labels))
    if not np.array_equal(label_frames(events, len(video.labels)), video.labels):
        raise _changed(root, video.video_id)
    return events


def _changed(root: Path, video_id: str) -> CompareError:
    return CompareError(
        f"{root / 'manifest.csv'} no longer says of '{video_id}' what it was evaluated with; type: wsvad eval "
        f"{shlex.quote(str(root))}"
    )


def _group(group: Group, names: Mapping[Path, str], evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    own = [i for i, one in enumerate(evaluated) if (names[one.root], one.rule) == (group.name, group.rule)]
    table: dict[str, Any] = {"name": group.name, "head": group.head, "runs": own}
    for metric in METRICS:
        table |= {f"{metric}_mean": group.mean(metric), f"{metric}_sd": group.deviation(metric)}
    return table


def _called(roots: Sequence[Path]) -> dict[Path, str]:
    """The folder's name of each; of those that share one, with as many folders above as tell them apart."""
    names = {root: root.name for root in roots}
    for depth in range(2, max((len(root.parts) for root in roots), default=0) + 1):
        times = Counter(names.values())
        names = {r: "/".join(r.parts[-depth:]) if times[name] > 1 else name for r, name in names.items()}
    return names


def _title(groups: Sequence[Group], evaluated: Sequence[Evaluated], split: str) -> str:
    if len(evaluated) == 1:
        what = f"{groups[0].name}, seed {groups[0].seeds[0]}"
    elif len(groups) == 1:
        what = f"{groups[0].name}, {len(evaluated)} seeds"
    elif len(groups) <= 3:
        what = ", ".join(group.name for group in groups)
    else:
        what = f"{len(evaluated)} runs in {len(groups)} groups"
    return f"{what}: {split} split"


def _plain(value: Any) -> Any:
    """As JSON holds it: tuples as lists, None for what is no number."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
