"""A report's data without runs, of random scores, with names that no page should trust."""

import base64
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from data.types import FrameScores
from mil.report_curves import per_video
from mil.report_pieces import Levels

CLIP = 16
FPS = 25.0
ODD_NAMES = (
    "<script>alert(1)</script>",
    'a&b "c"',
    "Überfall_日本_🎬",
    "</script><img src=x onerror=alert(2)>",
    "it's 100% #1?.mp4",
    "v=Long.Name__#00-01-20_00-02-45_label_B1-0-0_and_still_a_good_deal_longer_than_any_column_of_a_table_is",
)
_HEADS = ("rtfm", "ranking", "bnwvad", "hlnet", "urdmu", "mgfn")


def example(runs: int = 2, videos: int = 6, seed: int = 0, groups: int | None = None) -> dict[str, Any]:
    """Valid data: `runs` runs in `groups` groups (half as many), on `videos` videos, half of them anomalous.

    Odd cases are among it: names with markup, a video without a file, without fps or without a grid; a run without a
    threshold, with a loss that was NaN; a metric that is None.
    """
    rng = np.random.default_rng(seed)
    groups = groups or max(runs // 2, 1)
    lengths = [CLIP * int(rng.integers(4, 40)) - int(rng.integers(0, CLIP)) for _ in range(videos)]
    rows, first = [], 0
    stops = [np.minimum(CLIP * np.arange(1, -(-frames // CLIP) + 1), frames) for frames in lengths]
    for v, frames in enumerate(lengths):
        name = ODD_NAMES[v] if v < len(ODD_NAMES) else f"video_{v:04d}"
        rows.append(_video(v, name, frames, first, len(stops[v]), rng))
        first += len(stops[v])
    labels = [_labels(row) for row in rows]
    found = [_run(i, i % groups, labels, stops, seed) for i in range(runs)]
    found.sort(key=lambda run: (run["group"], run["seed"]))
    tables = [_group(name, found) for name in sorted({run["group"] for run in found})]
    tables.sort(key=lambda table: -table["auc_mean"])
    rank = [table["name"] for table in tables]
    found.sort(key=lambda run: (rank.index(run["group"]), run["seed"]))
    tables = [_group(name, found) for name in rank]
    return {
        "made": "2030-01-02T03:04:05+0000",
        "version": "0.1.0",
        "title": "motion_rtfm & others <b>on</b> test",
        "split": "test",
        "protocol": "frames",
        "protocol_about": "every decoded frame counts, labels [s, e); the default where true lengths are known",
        "num_videos": videos,
        "num_frames": sum(lengths),
        "num_positive": int(sum(x.sum() for x in labels)),
        "warnings": ["motion_rtfm-s0: features of an untrained net <random weights>", "sfa-s1 is left out: unfinished"],
        "runs": found,
        "groups": tables,
        "videos": rows,
        "stops": _base64(np.concatenate(stops), "<u4"),
    }


def decoded(data: dict[str, Any], run: int, video: int) -> NDArray[np.float64]:
    """Frame scores (F,) of one video in one run, as a page draws them."""
    one, where = data["runs"][run], data["videos"][video]
    part = slice(where["first"], where["first"] + where["count"])
    stops = np.frombuffer(base64.b64decode(data["stops"]), "<u4")[part].astype(np.int64)
    steps = np.frombuffer(base64.b64decode(one["values"]), "<u2")[part]
    scores = one["low"] + steps / 65535 * (one["high"] - one["low"])
    return np.repeat(scores, np.diff(stops, prepend=0))


def _video(v: int, name: str, frames: int, first: int, count: int, rng: np.random.Generator) -> dict[str, Any]:
    label = (v + 1) % 2
    events: list[list[Any]] = []
    if label:
        cuts = sorted(rng.choice(np.arange(1, frames), size=4, replace=False).tolist())
        events = [[a, b, "Arson" if i else "A<b>"] for i, (a, b) in enumerate(pairwise(cuts)) if i != 1]
    grid = {"len": CLIP, "stride": CLIP, "step": 1, "rate": 1.0, "tail": "repeat", "count": count}
    return {
        "id": name,
        "label": label,
        "classes": sorted({kind for *_, kind in events}),
        "fps": None if v % 5 == 3 else FPS,
        "frames": frames,
        "events": events,
        "src": None if v % 3 == 2 else f"videos/{v}%20%23.mp4",
        "first": first,
        "count": count,
        "clip": None if v % 4 == 1 else grid,
    }


def _labels(row: dict[str, Any]) -> NDArray[np.uint8]:
    labels = np.zeros(row["frames"], np.uint8)
    for start, stop, _ in row["events"]:
        labels[start:stop] = 1
    return labels


def _run(
    i: int, group: int, labels: Sequence[NDArray[np.uint8]], stops: Sequence[NDArray[np.int64]], seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, i])
    head = _HEADS[group % len(_HEADS)] + str(group // len(_HEADS) or "")
    values = []
    for y, ends in zip(labels, stops, strict=True):
        share = np.add.reduceat(y.astype(np.float64), np.append(0, ends[:-1])) / np.diff(ends, prepend=0)
        wave = np.convolve(rng.normal(0, 1.5, len(ends) + 4), np.ones(5) / 5, "valid")
        values.append(1 / (1 + np.exp(-(2.5 * share - 1 + wave))))
    low, high = min(x.min() for x in values), max(x.max() for x in values)
    spread = [np.repeat(x, np.diff(ends, prepend=0)) for x, ends in zip(values, stops, strict=True)]
    y, s = np.concatenate(labels), np.concatenate(spread)
    fpr, tpr, _ = roc_curve(y, s)
    precision, recall, _ = precision_recall_curve(y, s)
    edges = np.linspace(low, high, 41)
    threshold = None if i % 4 == 3 else 0.5
    normal = np.concatenate([s[y == 0], []])
    scored = [FrameScores(str(v), *one) for v, one in enumerate(zip(spread, labels, strict=True))]
    levels = Levels.of(scored, threshold)
    last = np.cumsum(np.concatenate([np.diff(ends, prepend=0) for ends in stops])) - 1
    steps = list(range(10, 410, 10))
    losses = {
        name: [float(np.exp(-t / 150) + rng.normal(0, 0.03)) for t in steps] for name in ("total", "mil", "sparse")
    }
    terms: dict[str, list[float | None]] = {name: list(line) for name, line in losses.items()}
    terms["sparse"][3] = None
    rule = ("last", "val", "test")[group % 3]
    looks = {"last": {}, "val": {"val/video_auc": 0.7}, "test": {"OPTIMISTIC/test_auc": 0.8}}[rule]
    return {
        "name": f"motion_{head}-s{i}",
        "group": f"motion_{head}",
        "recipe": f"motion_{head}",
        "head": head,
        "seed": i,
        "rule": rule,
        "selected_by": {"last": "last step (400), fixed beforehand", "val": "val video AUC 0.7 (step 300)"}.get(
            rule, "test AUC (step 300), OPTIMISTIC: chosen on test labels"
        ),
        "step": 400,
        "optimistic": rule == "test",
        "random_weights": i == 0,
        "features": ["motion-random-9d994be5" if i == 0 else "motion-9d994be5"],
        "specs": [{"id": "motion-9d994be5", "text": "motion, flow, 470 numbers, clips of 16 frames every 16, 160x120"}],
        "crops": "mean of 1",
        "smooth": 3,
        "warnings": ["selected on test labels"] if rule == "test" else [],
        "numbers": {
            "auc": float(roc_auc_score(y, s)),
            "ap": float(average_precision_score(y, s)),
            "pr_auc": float(average_precision_score(y, s)),
            "ano_auc": 0.7586279625171264,
            "ano_ap": None if i == 1 else 0.5641218457358421,
            "far": float((normal >= 0.5).mean()),
            "far_strict": float((normal > 0.5).mean()),
            "far_threshold": 0.5,
            "eer": 0.26408292023433977,
            "best_f1": 0.5332766319370614,
            "best_f1_threshold": 0.5518646736939748,
            "score_gap": float(s[y == 1].mean() - normal.mean()),
            "video_auc": 0.8075,
            "delay_frames": 2.526315789473684,
            "events_detected": 0.6785714285714286,
            "map_iou_0.1": 0.678217513087412,
            "map_iou_0.5": 0.19042603359751858,
            "map_iou": 0.45559335828572917,
            "frames": len(y),
            "positives": int(y.sum()),
            "videos": len(labels),
            "anomalous_videos": sum(int(x.any()) for x in labels),
        },
        "threshold": threshold,
        "threshold_about": "0.5: training features not reachable"
        if threshold
        else "none: scores without bounds, and training features not reachable",
        "classes": [
            {"kind": "A<b>", "videos": 3, "auc_own": 0.75, "auc_rest": 0.8, "ap_own": 0.5, "ap_rest": 0.3},
            {"kind": "Arson", "videos": 2, "auc_own": 0.65, "auc_rest": 0.7, "ap_own": None, "ap_rest": 0.2},
        ],
        "roc": _thinned(fpr, tpr),
        "pr": _thinned(recall[::-1], precision[::-1]),
        "loss": {
            "steps": steps,
            "terms": terms,
            "looks": {
                name: {"steps": steps[4::5], "values": [value + t / 4000 for t in steps[4::5]]}
                for name, value in looks.items()
            },
        },
        "histogram": {
            "edges": edges.tolist(),
            "normal": np.histogram(s[y == 0], edges)[0].tolist(),
            "anomalous": np.histogram(s[y == 1], edges)[0].tolist(),
        },
        "low": levels.low,
        "high": levels.high,
        "reach": levels.reach,
        "values": _base64(levels.levels[last], "<u2"),
        "per_video": per_video(scored, threshold),
    }


def _group(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [i for i, run in enumerate(runs) if run["group"] == name]
    table: dict[str, Any] = {"name": name, "head": runs[own[0]]["head"], "runs": own}
    for metric in ("auc", "ap", "pr_auc"):
        values = np.array([runs[i]["numbers"][metric] for i in own])
        table[f"{metric}_mean"] = float(values.mean())
        table[f"{metric}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
    return table


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, list[float]]:
    keep = np.unique(np.linspace(0, len(x) - 1, 300).astype(int))
    return {"x": x[keep].tolist(), "y": y[keep].tolist()}


def _base64(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()
