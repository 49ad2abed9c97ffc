"""A comparison as text, Markdown, LaTeX or JSON."""

import json
from collections.abc import Sequence

from mil.compare import Comparison, Row

FORMATS = ("text", "markdown", "latex", "json")
_TITLES = {"auc": "AUC", "ap": "AP", "pr_auc": "PR-AUC", "ano_auc": "AUC in anomalous videos"}


def render(found: Comparison, form: str = "text") -> str:
    """The table, and beneath it what the numbers are."""
    if form == "json":
        return json.dumps(_as_dict(found), indent=2)
    metric = _TITLES[found.metric]
    titles = ["recipe", "head", "seeds", "AUC", "AP", "AUC in anomalous videos", f"behind in {metric} [95 %]", ""]
    rows = [_cells(row) for row in found.rows]
    note = (
        f"{found.videos} videos, protocol '{found.protocol}'; mean ± deviation over the seeds; in brackets 95 % of "
        f"{found.resamples} draws of videos and seeds; = : not told apart from the first by that interval. "
        f"Weights: {'; '.join(dict.fromkeys(r.group.selected_by for r in found.rows))}."
    )
    if form == "markdown":
        lines = [titles, ["---"] * len(titles), *([f"`{r[0]}`", *r[1:]] for r in rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}"
    if form == "latex":
        body = [" & ".join(_latex(c) for c in line) + r" \\" for line in [titles, *rows]]
        columns = "ll" + "r" * (len(titles) - 3) + "c"
        table = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", body[0], r"\hline", *body[1:]]
        return "\n".join([*table, r"\hline", r"\end{tabular}", f"% {note}"])
    return _text([titles, *rows]) + f"\n{note}"


def _cells(row: Row) -> list[str]:
    group = row.group

    def value(metric: str) -> str:
        deviation = group.deviation(metric)
        low_high = row.intervals.get(metric)
        shown = f"{group.mean(metric):.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
        return shown + (f" [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else "")

    gap = row.behind_interval
    behind = f"{row.behind:.3f} [{gap[0]:.3f}, {gap[1]:.3f}]" if gap else "-"
    numbers = [value("auc"), value("ap"), value("ano_auc")]
    return [group.name, group.head, str(len(group.seeds)), *numbers, behind, "=" if row.within_noise else ""]


def _text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _latex(text: str) -> str:
    for sign, written in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("±", r"$\pm$")):
        text = text.replace(sign, written)
    return text


def _as_dict(found: Comparison) -> dict[str, object]:
    return {
        "metric": found.metric,
        "protocol": found.protocol,
        "videos": found.videos,
        "resamples": found.resamples,
        "rows": [
            {
                "name": row.group.name,
                "head": row.group.head,
                "features": list(row.group.features),
                "selected_by": row.group.selected_by,
                "seeds": list(row.group.seeds),
                "values": {m: v.tolist() for m, v in row.group.values.items()},
                "mean": {m: row.group.mean(m) for m in row.group.values},
                "deviation": {m: row.group.deviation(m) for m in row.group.values},
                "ci95": {m: list(v) if v else None for m, v in row.intervals.items()},
                "behind": row.behind,
                "behind_ci95": list(row.behind_interval) if row.behind_interval else None,
                "within_noise": row.within_noise,
            }
            for row in found.rows
        ],
    }
