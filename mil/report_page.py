"""The report's page: its data as one self-contained HTML file, made from the template, styles and scripts in mil/page.

Names in the data are other people's. Jinja2 escapes what stands in the page's text; everything else travels as JSON in
a data block that no name can end, and is shown with `textContent` alone. A policy in the page's head names the two
scripts and the style by their SHA-256, so that nothing else could run or load even if it got in.
"""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

STYLES = (
    "colours.css",
    "base.css",
    "controls.css",
    "top.css",
    "tables.css",
    "figures.css",
    "videos.css",
    "video.css",
    "screens.css",
)
# in this order: a later file uses what an earlier one defines; together they are one function
SCRIPTS = (
    "dom.js",
    "data.js",
    "state.js",
    "figure.js",
    "chart.js",
    "detail.js",
    "summary.js",
    "curves.js",
    "histogram.js",
    "classes.js",
    "steps.js",
    "videos.js",
    "highlights.js",
    "rulers.js",
    "timeline.js",
    "gestures.js",
    "player.js",
    "readout.js",
    "video.js",
    "keys.js",
    "main.js",
)
# what would end the data block, or a script in old browsers; as JSON escapes they mean the same
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(data: dict[str, Any]) -> str:
    """The page of a report, HTML that needs no network and no other file than the videos it links to.

    Args:
        data: what `mil.report_data.report_data` gives.

    Raises:
        ValueError: a number that is NaN or infinite, which JSON has no name for.
        jinja2.UndefinedError: a field that the page's head shows is missing.
    """
    style, early = "\n".join(_asset(name) for name in STYLES), _asset("theme.js")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_asset("report.html.j2")).render(
        data=data,
        policy=_policy(style, early, script),
        style=Markup(style),  # noqa: S704 - these three are ours
        early=Markup(early),  # noqa: S704
        script=Markup(script),  # noqa: S704
        island=Markup(island(data)),  # noqa: S704 - escaped by `island`
    )
    # a folder's name may be no UTF-8 at all: lone surrogates, which no file can hold
    return page.encode("utf-8", "replace").decode("utf-8")


def island(data: dict[str, Any]) -> str:
    """The data as JSON, in ASCII, that cannot end the script element it stands in.

    Raises ValueError for NaN and infinity.
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_ESCAPED)


def _policy(style: str, *scripts: str) -> str:
    """A Content-Security-Policy that allows the page's own style and scripts, videos, and nothing else."""
    allowed = " ".join(_digest(text) for text in scripts)
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {allowed}",
            f"style-src {_digest(style)}",
            "media-src 'self' file:",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _digest(text: str) -> str:
    """The source expression of an inline element: the text between its tags, to the byte."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _asset(name: str) -> str:
    return files("mil").joinpath("page", name).read_text(encoding="utf-8")
