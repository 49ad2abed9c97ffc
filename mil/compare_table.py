"""A comparison as text, Markdown, LaTeX or JSON."""

import math
from collections.abc import Sequence
from itertools import combinations

from mil.compare import Comparison, Row
from mil.compare_json import OPTIMISTIC, as_json, weights
from mil.compare_rank import Difference
from mil.compare_read import Group
from mil.compare_rules import RulesComparison
from mil.rules import RULES

FORMATS = ("text", "markdown", "latex", "json")
_TITLES = {"auc": "AUC", "ap": "AP", "pr_auc": "PR-AUC", "ano_auc": "AUC in anomalous videos"}
_LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "±": r"$\pm$", "^": r"\^{}", "~": r"\~{}",
}  # fmt: skip


def render(found: Comparison | RulesComparison, form: str = "text") -> str:
    """The table, and beneath it what the numbers are. `form` is one of FORMATS."""
    if form == "json":
        return as_json(found)
    titles, rows, note = _rules_lines(found) if isinstance(found, RulesComparison) else _lines(found)
    if form == "markdown":
        bars = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        lines = [titles, ["---"] * len(titles), *([f"`{r[0]}`", *r[1:]] for r in bars)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}"
    if form == "latex":
        body = [" & ".join(_latex(c) for c in line) + r" \\" for line in [titles, *rows]]
        table = [rf"\begin{{tabular}}{{ll{'r' * (len(titles) - 3)}c}}", r"\hline", body[0], r"\hline", *body[1:]]
        return "\n".join([*table, r"\hline", r"\end{tabular}", f"% {note}"])
    return _text([titles, *rows]) + f"\n{note}"


def _lines(found: Comparison) -> tuple[list[str], list[list[str]], str]:
    """Titles, rows, and what they are."""
    metric = _TITLES[found.metric]
    rules = list(dict.fromkeys(row.group.rule for row in found.rows))
    notes = [
        "rows that share a letter are not told apart: the 95 % of their difference, each pair by itself, reach 0",
        f"weights: {'; '.join(dict.fromkeys(row.group.selected_by for row in found.rows))}",
    ]
    if len(rules) > 1:
        notes.append(f"ROWS OF DIFFERENT RULES ({', '.join(rules)}): they differ in what selected the weights, too")
    if not all(difference.paired_by_seed for difference in found.differences.values()):
        notes.append("rows of other seeds are not paired by seed")
    titles = ["recipe", "head", "seeds", "weights", "AUC", "AP", _TITLES["ano_auc"], f"behind in {metric} [95 %]", ""]
    groups = [row.group for row in found.rows]
    return titles, [_cells(row) for row in found.rows], _note(found, groups, notes)


def _rules_lines(found: RulesComparison) -> tuple[list[str], list[list[str]], str]:
    metric = _TITLES[found.metric]
    groups = [group for row in found.rows for group in row.groups.values()]
    rules = [rule for rule in RULES if any(rule in row.groups for row in found.rows)]
    pairs = [(b, a) for a, b in combinations(RULES, 2) if any((b, a) in row.gains for row in found.rows)]
    rows = []
    for row in found.rows:
        one = next(iter(row.groups.values()))
        counts = [len(group.seeds) for group in row.groups.values()]
        cells = [row.name, one.head, ", ".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))]
        for rule in rules:
            group = row.groups.get(rule)
            shown = "-" if group is None else _value(group, found.metric, row.intervals[rule])
            cells.append(f"{shown} {OPTIMISTIC}" if group and group.optimistic else shown)
        rows.append(cells + [_difference(row.gains.get(pair)) for pair in pairs])
    titles = ["recipe", "head", "seeds", *(f"{metric}, {weights(rule)}" for rule in rules)]
    titles += [f"{late} - {early} [95 %]" for late, early in pairs]
    notes = ["the weights of one training by each rule of selection, and their differences"]
    if not all(gain.paired_by_seed for row in found.rows for gain in row.gains.values()):
        notes.append("RULES OF OTHER SEEDS in one row are not paired by seed")
    return titles, rows, _note(found, groups, notes)


def _note(found: Comparison | RulesComparison, groups: Sequence[Group], notes: Sequence[str]) -> str:
    """What the numbers are, in one line."""
    parts = [
        f"{found.videos} videos, protocol '{found.protocol}', evaluated in {found.precision}",
        "mean ± deviation over the seeds",
        "in brackets 95 % over draws of videos, and of seeds by Student's t "
        f"({found.resamples} draws, the same for all rows)",
        *notes,
    ]
    if any(len(group.seeds) == 1 for group in groups):
        parts.append(
            "rows of one seed: the noise of seeds is unknown, intervals are over videos alone, and no row is told "
            "apart from them"
        )
    if any(group.optimistic for group in groups):
        parts.append(f"{OPTIMISTIC}: test labels selected these weights")
    if found.left_out:
        some = ", ".join(found.left_out[:3]) + (", ..." if len(found.left_out) > 3 else "")
        parts.append(f"LEFT OUT, unfinished or not evaluated like that: {len(found.left_out)} runs ({some})")
    return "; ".join(parts) + "."


def _cells(row: Row) -> list[str]:
    group = row.group
    values = [_value(group, metric, row.intervals.get(metric)) for metric in ("auc", "ap", "ano_auc")]
    own = [group.name, group.head, str(len(group.seeds)), weights(group.rule)]
    return [*own, *values, _difference(row.behind), row.letters]


def _value(group: Group, metric: str, interval: tuple[float, float] | None) -> str:
    mean, deviation = group.mean(metric), group.deviation(metric)
    if math.isnan(mean):
        return "-"
    shown = f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
    return shown + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _difference(found: Difference | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:.3f}" + (f" [{found.interval[0]:.3f}, {found.interval[1]:.3f}]" if found.interval else "")


def _text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
