"""What pictures of scores share: names shown as they are, ranges, time axes, and long rows thinned without loss."""

from io import BytesIO
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.files import aside
from mil.clock import clock

INK, FAINT, GRID = "#17324d", "#5b6770", "#e4e8ec"
ALARM, TRUTH = "#c0392b", "#2a9d8f"
_STEPS_S = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
    3600, 7200, 14400, 21600, 43200, 86400,
)  # fmt: skip
_COLUMNS = 2000  # pairs of extremes in a row of scores: more than a picture has pixels
_MORE_SCRIPTS = (  # DejaVu Sans, matplotlib's own, has no Chinese, Japanese, Korean or Indian letters
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "PingFang SC", "Hiragino Sans", "Microsoft YaHei",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Arial Unicode MS",
)  # fmt: skip


class Picture(Figure):
    """A figure with a canvas of its own: no display, no pyplot, and notebooks show it all the same."""

    def __init__(self, width: float, height: float) -> None:
        """Inches."""
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def save(self, path: Path, dpi: int = 150) -> Path:
        """Writes a .png or .svg, by the suffix, in one step; the text of an SVG stays text."""
        kind = path.suffix.lower()[1:]
        if kind not in ("png", "svg"):
            raise ValueError(f"a picture is a .png or an .svg, got '{path.name}'")
        with aside(path) as temporary:
            self._write(temporary, kind, dpi)
        return path

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self._write(file, "png", 110)
        return file.getvalue()

    def _write(self, target: Any, kind: str, dpi: int) -> None:
        dateless = {"Date": None} if kind == "svg" else None  # the same scores give the same bytes
        with catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "wsvad"}):
            filterwarnings("ignore", "Glyph .* missing from font")  # a box in its place says enough
            self.savefig(target, format=kind, dpi=dpi, metadata=dateless)


def families() -> list[str]:
    """Fonts for text that may be in any script: matplotlib's own, then what is installed."""
    installed = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _MORE_SCRIPTS if name in installed), "sans-serif"]


def literal(text: str, most: int = 100) -> str:
    """A name as one line: what cannot be printed becomes U+FFFD, the middle of a long one an ellipsis."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(line) <= most:
        return line
    tail = most // 3
    return f"{line[: most - tail - 1]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"


def extent(scores: NDArray[np.floating], *lines: float | None) -> tuple[float, float]:
    """A range that holds scores and lines: 0 to 1 where that shows them well, else their own."""
    values = [float(scores.min()), float(scores.max()), *(line for line in lines if line is not None)]
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and (high >= 0.1 or high == 0):
        return 0.0, 1.0
    return (0.0 if 0 <= low < 0.5 * high else low), high


def limits(scores: NDArray[np.floating], *lines: float | None) -> tuple[float, float]:
    """`extent` with a little room above and below, for an axis."""
    low, high = extent(scores, *lines)
    room = (high - low) or max(abs(high), 1e-12)
    return low - 0.02 * room, high + 0.03 * room


def thinned(
    scores: NDArray[np.floating], times: NDArray[np.floating], columns: int = _COLUMNS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row of scores (F,) with its edges (F + 1,) in at most 2 x `columns` pieces that look the same.

    Equal neighbours become one piece; where that is not enough, the pieces that begin in the same column of time
    become two, with their lowest and their highest score.
    """
    values, edges = np.asarray(scores, np.float64), np.asarray(times, np.float64)
    kept = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    values, edges = values[kept], np.append(edges[kept], edges[-1])
    if len(values) <= 2 * columns:
        return values, edges
    column = np.minimum((edges[:-1] - edges[0]) * (columns / (edges[-1] - edges[0])), columns - 1).astype(np.int64)
    first = np.flatnonzero(np.diff(column, prepend=-1))
    lows, highs = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
    falls = values[first] > values[np.append(first[1:], len(values)) - 1]
    pairs = np.where(falls[:, None], np.stack([highs, lows], 1), np.stack([lows, highs], 1))
    begin = edges[first]
    middle = (begin + np.append(begin[1:], edges[-1])) / 2
    return pairs.ravel(), np.append(np.stack([begin, middle], 1).ravel(), edges[-1])


def time_axis(axis: Axes, start_s: float, stop_s: float, most: int = 10) -> None:
    """Ticks at round times, as a player shows them."""
    length = stop_s - start_s
    step = next((s for s in _STEPS_S if length / s <= most), 86400.0 * np.ceil(length / most / 86400))
    ticks = np.arange(np.ceil(start_s / step - 1e-9), np.floor(stop_s / step + 1e-9) + 1) * step
    decimals = 0 if step >= 1 else 1 if step >= 0.1 else 2
    axis.set_xlim(start_s, stop_s)
    axis.set_xticks(ticks, [clock(t, decimals) for t in ticks.tolist()])
