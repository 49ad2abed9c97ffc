"""The report's page as text: escaping, the policy in its head, colours. What it does: tests/test_report_browser.py."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from jinja2 import UndefinedError

from mil.report_page import SCRIPTS, STYLES, island, render
from tests.report_helpers import example

MISSING = "\u2013"  # an en dash stands where there is no number
NASTY = "</script><script>alert(1)</script><!-- \u2028\u2029 & \" ' \ud800"


class _Parts(HTMLParser):
    """Texts of the elements that hold scripts, styles and headings, as a browser splits them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag in ("script", "style", "h1", "meta", "title", "li", "dd")
        if self._open:
            self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, attrs, text = self.found.pop()
            self.found.append((tag, attrs, text + data))

    def handle_endtag(self, tag: str) -> None:
        self._open = False


def _parts(page: str) -> list[tuple[str, dict[str, str | None], str]]:
    parser = _Parts()
    parser.feed(page)
    return parser.found


def _poisoned() -> dict[str, object]:
    data = example(runs=2, videos=3)
    data["title"] = NASTY
    data["protocol_about"] = NASTY
    data["warnings"] = [NASTY] * 7
    data["videos"][0]["id"] = NASTY
    data["runs"][0]["name"] = NASTY
    data["groups"][0]["name"] = NASTY
    return data


def test_the_data_comes_back_whole_and_ends_no_element() -> None:
    data = _poisoned()
    page = render(data)
    blocks = [text for tag, attrs, text in _parts(page) if tag == "script" and attrs.get("id") == "data"]
    assert json.loads(blocks[0]) == data
    assert not set(blocks[0]) & set("<>&\u2028\u2029")
    assert blocks[0].isascii()


def test_names_are_text_wherever_the_template_shows_them() -> None:
    parts = _parts(render(_poisoned()))
    assert len([1 for tag, *_ in parts if tag == "script"]) == 3  # theme, data, page
    shown = NASTY.replace("\ud800", "?")
    assert next(text for tag, _, text in parts if tag == "h1") == shown
    assert [text for tag, _, text in parts if tag == "li"] == [shown] * 7
    assert shown in [text for tag, _, text in parts if tag == "dd"]


def test_the_policy_names_exactly_the_inline_elements() -> None:
    parts = _parts(render(example()))
    policy = next(a["content"] for tag, a, _ in parts if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}

    def digests(tag: str) -> list[str]:
        texts = [text for found, attrs, text in parts if found == tag and "type" not in attrs]
        return [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]

    assert rules["script-src"] == digests("script")
    assert rules["style-src"] == digests("style")
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["media-src"] == ["'self'", "file:"]
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_loads_nothing_from_elsewhere_and_writes_no_markup() -> None:
    data = example()
    page = render(data).replace(island(data), "")
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert not re.search(r"@import|url\(", page)
    assert not re.search(r"\son\w+=", page)
    sources = {name: files("mil").joinpath("page", name).read_text(encoding="utf-8") for name in SCRIPTS}
    for name, text in sources.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert "</script" not in text.lower(), name
        assert "<!--" not in text, name
    on_disk = {p.name for p in files("mil").joinpath("page").iterdir() if p.name.endswith((".js", ".css"))}
    assert on_disk == {*SCRIPTS, *STYLES, "theme.js"}  # a file that the page forgets


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    data = example()
    data["runs"][0]["numbers"]["auc"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        render(data)
    with pytest.raises(ValueError, match="JSON"):
        island({"x": float("inf")})


def test_a_missing_field_is_an_error_not_a_gap() -> None:
    data = example()
    del data["protocol_about"]
    with pytest.raises(UndefinedError, match="protocol_about"):
        render(data)


def test_without_a_script_the_numbers_are_there() -> None:
    data = example()
    data["groups"][0]["ap_mean"] = None
    page = render(data)
    table = page[page.index("<noscript>") : page.index("</noscript>")]
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", table)[1:]
    for group, (name, cells) in zip(data["groups"], rows, strict=True):
        values = re.findall(r'<td class="num">(.*?)</td>', cells)
        wanted = [group[key] for key in ("auc_mean", "ap_mean", "pr_auc_mean")]
        assert name == group["name"]
        assert values == [str(len(group["runs"])), *(MISSING if v is None else f"{v:.3f}" for v in wanted)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_that_reading_needs(theme: str) -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for lines and controls that mean something."""
    style = files("mil").joinpath("page", "colours.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in _blocks(style))
    colours = light | (dark if theme == "dark" else {})
    backs = ("paper", "sheet", "sunken")
    text = [(ink, back) for ink in ("ink", "soft", "accent") for back in backs]
    text += [("warn-ink", "warn-sheet"), ("bad", "bad-sheet"), ("bad", "paper"), ("truth-ink", "truth-sheet")]
    lines = [(f"run-{i}", back) for i in range(8) for back in ("paper", "sheet")]
    lines += [("truth-bar", "sheet"), ("normal", "paper"), ("faint-ink", "sheet")]
    poor = {(a, b): _contrast(colours[a], colours[b]) for a, b in text if _contrast(colours[a], colours[b]) < 4.5}
    poor |= {(a, b): _contrast(colours[a], colours[b]) for a, b in lines if _contrast(colours[a], colours[b]) < 3}
    assert not poor


def _blocks(style: str) -> tuple[str, str]:
    first = style[style.index(":root {") :]
    second = style[style.index(':root[data-theme="dark"] {') :]
    return first[: first.index("}")], second[: second.index("}")]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
