"""The report in a real headless Chromium, opened as a file: what is drawn, played, pressed, and what must not run.

Every page is watched: a message on the console, a dialog, an error or a request for anything but the page and its video
fails the test. With WSVAD_SCREENSHOTS=DIR pictures of the page are kept there.
"""

import base64
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.grid import ClipGrid
from mil.report_page import render
from tests.helpers import write_small
from tests.report_helpers import decoded, example

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright for Python is not installed: pip install playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium in PATH: apt-get install chromium", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MISSING = "\u2013"  # an en dash stands where there is no number
DESKTOP, PHONE = (1400, 900), (390, 844)
# in every text that a page could show; `window.pwned` says whether one ran
PAYLOAD = "\"'><img src=x onerror=window.pwned=1><script>window.pwned=1;alert(1)</script></script>"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """Four runs of two groups; the first video has a file that browsers play, the second one that they cannot."""
    found = example(runs=4, videos=8, seed=3)
    for video in found["videos"][2:]:
        video["src"] = None
    return found


@pytest.fixture(scope="module")
def report(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "videos").mkdir()
    write_small(folder / "videos" / "0 #.mp4", data["videos"][0]["frames"], gop=10)
    (folder / "videos" / "1 #.mp4").write_text("not a video")
    page = folder / "report.html"
    page.write_text(render(data), encoding="utf-8")
    return page


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file, watched; what was seen is looked at when the test is over."""
    contexts: list[Any] = []
    seen: list[str] = []

    def open_(path: Path, hash_: str = "", size: tuple[int, int] = DESKTOP, theme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        allowed = path.parent.as_uri()
        page.on("console", lambda m: seen.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: seen.append(f"error: {e}"))
        page.on("dialog", lambda d: (seen.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith((allowed, "data:,")) or seen.append(f"request: {r.url}"))
        page.goto(path.as_uri() + hash_)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not seen


def _at(data: dict[str, Any], video: int, **parts: object) -> str:
    """The address of a video."""
    more = "".join(f"&{key}={value}" for key, value in parts.items())
    return f"#video={quote(data['videos'][video]['id'], safe='')}{more}"


def _keep(page: Any, name: str) -> None:
    if folder := os.environ.get("WSVAD_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def _timeline(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("wsvad.timeline()")
    return found


def _cursor(page: Any) -> float:
    return float(_timeline(page)["cursor"])


def _has_colour(page: Any, picture: NDArray[Any], colour: str, points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether a picture of the timeline (H, W, 3) shows a colour of the style sheet within 2 pixels of each (x, y)."""
    name = page.evaluate("(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()", colour)
    wanted = np.array([int(name[i : i + 2], 16) for i in (1, 3, 5)])
    columns = [picture[max(round(y) - 2, 0) : round(y) + 3, round(x)].astype(int) for x, y in points]
    return [bool((np.abs(column - wanted).sum(axis=1) < 40).any()) for column in columns]


def _picture(page: Any) -> NDArray[Any]:
    """The timeline's canvas as it is seen, (H, W, 3) RGB, without its border."""
    page.mouse.move(0, 0)
    seen = cv2.imdecode(np.frombuffer(page.locator("#timeline").screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return seen[1:-1, 1:-1, ::-1]


def _wait(page: Any, condition: str, arg: object = None) -> None:
    """Until it holds. Playwright's own waiting evaluates text inside the page, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(f"(arg) => {condition}", arg):
            return
        page.wait_for_timeout(40)
    pytest.fail(f"never: {condition}")


def _press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_scores_and_truth_are_drawn_where_the_data_say(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0, runs=1))
    frames = data["videos"][0]["frames"]
    scores = decoded(data, 1, 0)
    ids = [video["id"] for video in data["videos"]]
    for run, video, frame in [(0, 0, 0), (1, 0, frames - 1), (2, 5, 15), (2, 5, 16), (3, 7, 32), (3, 7, 33)]:
        wanted = decoded(data, run, video)[frame]
        assert page.evaluate("(a) => wsvad.scoreAt(...a)", [ids[video], run, frame]) == pytest.approx(wanted, abs=1e-6)
    stops = np.flatnonzero(np.diff(scores)) + 1
    middles = [(a + b) / 2 for a, b in zip([0, *stops], [*stops, frames], strict=True)]
    picture, area = _picture(page), _timeline(page)
    low, high = area["ranges"]["1"]

    def y_of(score: float) -> float:
        return float(area["bottom"] - (score - low) / (high - low) * (area["bottom"] - area["top"]))

    def x_of(frame: float) -> float:
        return float(area["left"] + frame / frames * (area["right"] - area["left"]))

    drawn = [[x_of(m), y_of(scores[int(m)])] for m in middles]
    assert all(_has_colour(page, picture, "--run-0", drawn))
    beside = [[x, y + 25 if y + 40 < area["bottom"] else y - 25] for x, y in drawn]
    assert sum(_has_colour(page, picture, "--run-0", beside)) <= len(beside) // 10  # risers of neighbours alone
    bars = [[x_of((start + stop) / 2), area["top"] - 2] for start, stop, _ in data["videos"][0]["events"]]
    assert all(_has_colour(page, picture, "--truth-bar", bars))
    start = data["videos"][0]["events"][0][0]
    assert not any(_has_colour(page, picture, "--truth-bar", [[x_of(start) - 4, area["top"] - 2]]))


def test_hours_are_drawn_with_every_peak_and_only_once(open_page: Open, tmp_path: Path) -> None:
    data = example(runs=1, videos=1)
    clips, peak = 31_250, 20_000  # almost six hours, some thirty clips in each pixel
    (run,), (video,) = data["runs"], data["videos"]
    levels = np.random.default_rng(0).integers(9000, 11000, clips).astype("<u2")
    levels[peak] = 65535
    video |= {"frames": 16 * clips, "count": clips, "src": None, "events": []}
    video["clip"]["count"] = clips
    data["stops"] = base64.b64encode((16 * np.arange(1, clips + 1)).astype("<u4").tobytes()).decode()
    run |= {"values": base64.b64encode(levels.tobytes()).decode(), "low": 0.0, "high": 1.0}
    run |= {"threshold": 1.0, "reach": 65535}
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    page = open_page(path, _at(data, 0, t=(16 * peak + 8) / 25))
    assert page.locator(".verdict").inner_text().endswith("above")
    _press(page, "Shift+ArrowRight")
    assert page.locator(".verdict").inner_text() == "below"
    _press(page, "Home")
    picture, area = _picture(page), _timeline(page)
    width, height = area["right"] - area["left"], area["bottom"] - area["top"]
    x = np.floor(area["left"] + (peak + 0.5) / clips * width)
    assert all(_has_colour(page, picture, "--run-0", [[x, area["bottom"] - part * height] for part in (0.3, 0.6, 1)]))
    along = [[column, area["bottom"] - height * 10 / 65.535] for column in range(60, int(area["right"]) - 10)]
    assert all(_has_colour(page, picture, "--run-0", along))
    assert not any(_has_colour(page, picture, "--run-0", [[x - 30, area["bottom"] - 0.6 * height]]))
    drawn = page.evaluate(
        """async () => {
            let count = 0;
            for (const name of ["lineTo", "fillRect"]) {
                const known = CanvasRenderingContext2D.prototype[name];
                CanvasRenderingContext2D.prototype[name] = function (...place) {
                    count += 1;
                    return known.apply(this, place);
                };
            }
            document.getElementById("play").click();
            for (let i = 0; i < 4; i += 1) await new Promise(requestAnimationFrame);
            document.getElementById("play").click();
            return count;
        }"""
    )
    assert 4 <= drawn <= 100  # the cursor alone moves
    assert _cursor(page) > 0


def test_a_click_seeks_and_playing_moves_the_cursor(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0))
    fps = data["videos"][0]["fps"]
    _wait(page, "document.querySelector('video').readyState >= 2")
    area = _timeline(page)
    per_frame = (area["right"] - area["left"]) / data["videos"][0]["frames"]
    wanted = data["videos"][0]["frames"] // 3
    page.locator("#timeline").click(position={"x": area["left"] + wanted * per_frame + 1, "y": 80})
    assert _cursor(page) == pytest.approx(wanted, abs=1 / per_frame + 1)
    _wait(page, "!document.querySelector('video').seeking")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(wanted / fps, abs=1.5 / fps)
    _keep(page, "video")

    _press(page, "Space")
    _wait(page, "wsvad.timeline().cursor > arg + 6", _cursor(page))
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    _press(page, "Space")
    _wait(page, "document.querySelector('video').paused")
    _wait(page, "Math.abs(document.querySelector('video').currentTime * arg - wsvad.timeline().cursor) < 1", fps)
    # and the player's own slider moves the cursor
    page.evaluate("document.querySelector('video').currentTime = 1")
    _wait(page, "Math.abs(wsvad.timeline().cursor - arg) < 0.5", fps)


def test_the_keyboard_does_what_the_help_says(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0))
    video = data["videos"][0]
    starts = sorted(start for start, *_ in video["events"])

    def after(*keys: str) -> float:
        _press(page, *keys)
        return _cursor(page)

    assert after("ArrowRight") == pytest.approx(25)
    assert after("Shift+ArrowRight") == 32  # the clip of frames 16 to 32 is left
    assert after("Shift+ArrowLeft") == 16
    assert after(".", ".", ".") == 19
    assert after(",") == 18
    assert after("Shift+ArrowLeft") == 16  # first to the clip's own start
    assert after("ArrowLeft") == 0
    assert [after("e") for _ in range(3)] == [*starts, starts[0]]
    assert after("Shift+E") == starts[-1]
    assert after("End") == video["frames"] - 1
    assert after("Home") == 0
    assert page.evaluate("document.querySelector('video').paused")

    whole = _timeline(page)
    _press(page, "ArrowRight", "+", "+")
    near = _timeline(page)
    assert near["to"] - near["from"] == pytest.approx((whole["to"] - whole["from"]) / 1.6**2)
    assert near["from"] <= 25 <= near["to"]
    _press(page, "-")
    assert _timeline(page)["to"] - _timeline(page)["from"] == pytest.approx((whole["to"] - whole["from"]) / 1.6)
    _press(page, "0")
    assert (_timeline(page)["from"], _timeline(page)["to"]) == (0, video["frames"])

    _press(page, "?")
    assert page.locator("#help").is_visible()
    _press(page, "ArrowRight", "Escape")
    assert not page.locator("#help").is_visible()
    assert _cursor(page) == 25  # keys behind the dialog do nothing

    title = page.locator("#video-title")
    place = page.locator("#video-place").inner_text()
    _press(page, "n")
    _wait(page, "document.getElementById('video-title').textContent !== arg", video["id"])
    assert page.locator("#video-place").inner_text() != place
    _press(page, "p")
    _wait(page, "document.getElementById('video-title').textContent === arg", video["id"])
    _press(page, "Escape")
    page.wait_for_selector("#overview:not([hidden])")
    assert not title.is_visible()
    page.locator("#video-search").focus()
    page.keyboard.type("n?p")
    assert page.locator("#video-search").input_value() == "n?p"


def test_zooming_in_keeps_the_frame_below_the_pointer(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0))
    area = _timeline(page)
    box = page.locator("#timeline").bounding_box()
    x = area["left"] + 0.7 * (area["right"] - area["left"])

    def frame_at_x() -> float:
        now = _timeline(page)
        return float(now["from"] + (x - now["left"]) / (now["right"] - now["left"]) * (now["to"] - now["from"]))

    before = frame_at_x()
    page.locator("#timeline").focus()
    page.mouse.move(box["x"] + x, box["y"] + 60)
    page.mouse.wheel(0, -240)
    _wait(page, "wsvad.timeline().to < arg", area["to"])
    assert frame_at_x() == pytest.approx(before, abs=0.5)
    # a drag pans: what was below the pointer follows it, and the cursor stays
    page.mouse.down()
    page.mouse.move(box["x"] + x - 60, box["y"] + 60, steps=3)
    page.mouse.up()
    x -= 60
    assert frame_at_x() == pytest.approx(before, abs=0.5)
    assert _cursor(page) == 0


def test_names_are_shown_and_nothing_in_them_runs(open_page: Open, tmp_path: Path) -> None:
    data = example(runs=2, videos=4)
    data |= {"title": PAYLOAD, "split": PAYLOAD, "protocol": PAYLOAD, "protocol_about": PAYLOAD, "warnings": [PAYLOAD]}
    for i, video in enumerate(data["videos"]):
        video |= {"id": PAYLOAD + str(i), "classes": [PAYLOAD] * video["label"], "src": None}
        video["events"] = [[a, b, PAYLOAD] for a, b, _ in video["events"]]
    for group in data["groups"]:
        group |= {"name": PAYLOAD + group["name"], "head": PAYLOAD}
    for run in data["runs"]:
        run |= dict.fromkeys(("selected_by", "crops", "threshold_about", "rule"), PAYLOAD)
        run |= {"name": PAYLOAD + run["name"], "group": PAYLOAD + run["group"], "warnings": [PAYLOAD]}
        run |= {"specs": [{"id": PAYLOAD, "text": PAYLOAD}], "optimistic": True}
        run["classes"] = [row | {"kind": PAYLOAD} for row in run["classes"][:1]]
        run["loss"]["terms"] = {PAYLOAD: next(iter(run["loss"]["terms"].values()))}
        run["loss"]["looks"] = {PAYLOAD: {"steps": [1, 2], "values": [0.1, 0.2]}}
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    page = open_page(path)
    assert page.locator("h1#title").inner_text() == PAYLOAD
    for opener in page.locator(".opener").all():
        if opener.get_attribute("aria-expanded") == "false":
            opener.click()
    assert page.locator("#class-table tbody th").inner_text() == PAYLOAD
    chart = page.locator("#curve-figures svg").first
    chart.hover()
    assert PAYLOAD in page.locator("#curve-figures .tip").first.text_content()
    page.locator("#video-list a").first.click()
    page.locator("#timeline").hover()
    _press(page, "n", "e")
    assert page.locator("#video-title").text_content() == PAYLOAD + page.locator("#video-title").text_content()[-1]
    page.evaluate("location.hash = '#video=' + encodeURIComponent('<img src=x onerror=window.pwned=1>')")
    page.wait_for_selector("#notice:not([hidden])")
    assert "<img" in page.locator("#notice").inner_text()
    assert page.evaluate("[typeof window.pwned, document.images.length, document.scripts.length]") == [
        "undefined",
        0,
        3,
    ]


def test_what_gets_in_all_the_same_cannot_run_or_load(browser: Any, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    tried = page.evaluate(
        """async () => {
            const found = [];
            const attempt = (what) => {
                try { what(); found.push("ran"); } catch (error) { found.push(error.name); }
            };
            // not from in here: what the debugger evaluates may evaluate more
            await new Promise((done) => setTimeout(() => {
                attempt(() => { document.body.innerHTML += "<img src=x onerror='window.pwned=1'>"; });
                attempt(() => { document.createElement("script").text = "window.pwned = 2"; });
                attempt(() => new Function("window.pwned = 3")());
                const script = document.createElement("script");
                script.append("window.pwned = 4");
                try { document.body.append(script); } catch { /* or it is left out in silence */ }
                done();
            }));
            await fetch("http://127.0.0.1:9/").catch((error) => found.push(error.name));
            return [...found, typeof window.pwned];
        }"""
    )
    page.close()
    assert tried == ["TypeError", "TypeError", "EvalError", "TypeError", "undefined"]


def test_eight_hundred_videos_draw_what_is_in_sight(open_page: Open, tmp_path: Path) -> None:
    data = example(runs=1, videos=800)
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    page = open_page(path)
    assert page.locator("#video-list li").count() == 800
    assert page.evaluate("wsvad.sparks()") <= 40  # none of the long list yet
    page.locator("#video-list").scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, document.getElementById('video-list').offsetTop)")
    _wait(page, "wsvad.sparks() > 10")
    assert page.evaluate("wsvad.sparks()") <= 60
    page.evaluate("window.scrollTo(0, document.body.scrollHeight / 2)")
    _wait(page, "document.querySelectorAll('#video-list li canvas')[400].width >= 0 && wsvad.sparks() > 10")
    assert page.evaluate("wsvad.sparks()") <= 60
    held = page.evaluate(
        "[...document.querySelectorAll('canvas.spark')].filter((c) => c.width !== 300 && c.width > 0).length"
    )
    assert held <= 60  # those out of sight hold no pixels

    page.locator("#video-search").fill("VIDEO_07")
    wanted = [v["id"] for v in data["videos"] if "video_07" in v["id"].lower()]
    assert page.locator("#video-list li:visible").count() == len(wanted)
    page.locator("#video-kind").select_option("normal")
    normal = [v["id"] for v in data["videos"] if "video_07" in v["id"] and not v["label"]]
    assert sorted(page.locator("#video-list li:visible .name").evaluate_all("(n) => n.map((x) => x.title)")) == normal
    assert page.locator("#video-count").inner_text() == f"{len(normal)} of 800 videos"
    page.locator("#video-kind").select_option("class:Arson")
    arson = [v["id"] for v in data["videos"] if "video_07" in v["id"] and "Arson" in v["classes"]]
    assert page.locator("#video-list li:visible").count() == len(arson)
    page.locator("#video-search").fill("no such name")
    assert page.locator("#video-none").is_visible()


def test_a_report_without_numbers_and_with_endless_names(open_page: Open, tmp_path: Path) -> None:
    data = example(runs=2, videos=2)
    for i, run in enumerate(data["runs"]):
        run |= {"name": "r" * 200 + str(i), "threshold": None, "reach": None, "classes": []}
        run |= {"roc": {"x": [], "y": []}, "pr": {"x": [], "y": []}, "loss": {"steps": [], "terms": {}, "looks": {}}}
        run["numbers"] = dict.fromkeys(run["numbers"])
        run["per_video"] = {key: [None] * 2 for key in run["per_video"]} | {"peak": [0.5, 0.5]}
    for group in data["groups"]:
        group |= {key: None for key in group if key.endswith(("_mean", "_sd"))}
    data["videos"][0]["id"] = "🎬" * 13 + "-end-of-it"
    data["videos"][1]["id"] = "\u0645\u0631\u062d\u0628\u0627 12.mp4"
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    page = open_page(path, "#runs=7,8")  # a link of another report
    assert page.evaluate("wsvad.runs()") == [0]
    text = page.locator("body").text_content().split('{"made"')[0]
    assert not [word for word in ("Infinity", "NaN", "undefined", "null") if word in text]
    parts = page.locator("#video-list [data-index='0'] .name span").all_text_contents()
    assert parts == ["🎬" * 11, "🎬🎬-end-of-it"]
    assert page.locator("#video-list [data-index='1'] .name").evaluate("(n) => getComputedStyle(n).direction") == "rtl"
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_scrolls_down_alone(open_page: Open, report: Path, data: dict[str, Any], theme: str) -> None:
    page = open_page(report, size=PHONE, theme=theme)
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (int(paper[4:].split(",")[0]) < 60) == (theme == "dark")
    for opener in page.locator(".opener").all():
        opener.click()
    _keep(page, f"phone-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(report.as_uri() + _at(data, 5))  # the longest name
    assert page.locator("#video-title").is_visible()
    _keep(page, f"phone-video-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_chosen_theme_is_remembered(open_page: Open, report: Path) -> None:
    page = open_page(report, theme="dark")
    _keep(page, "dark")
    colour = "getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()"
    dark = page.evaluate(colour)
    page.locator("#theme").click()
    light = page.evaluate(colour)
    assert light != dark
    page.reload()
    assert page.evaluate(colour) == light


def test_choosing_runs_changes_everything_drawn(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report)
    _keep(page, "desktop")
    lines = page.locator("#curve-figures figure").first.locator("path.line")
    default = [group["runs"][0] for group in data["groups"]]
    assert page.evaluate("wsvad.runs()") == default
    assert lines.count() == len(default)
    before = page.locator("#curve-figures path.line").first.get_attribute("d")
    page.locator(".opener").first.click()
    page.get_by_label(data["runs"][1]["name"], exact=True).check()
    assert page.evaluate("wsvad.runs()") == sorted({*default, 1})
    assert lines.count() == len(default) + 1
    assert page.locator("#histogram-figures figure").count() == len(default) + 1
    assert page.evaluate("location.hash") == f"#runs={','.join(map(str, sorted({*default, 1})))}"
    for run in default:
        page.get_by_label(f"Hide {data['runs'][run]['name']}", exact=True).click()
    assert page.evaluate("wsvad.runs()") == [1]
    assert lines.count() == 1
    assert page.locator("#curve-figures path.line").first.get_attribute("d") != before
    page.get_by_label(data["runs"][1]["name"], exact=True).click()  # the last one stays
    assert page.evaluate("wsvad.runs()") == [1]
    assert page.get_by_label(data["runs"][1]["name"], exact=True).is_checked()
    # numbers beside the videos are of that run now
    for row in page.locator("#video-list li").all():
        index = int(row.locator("a").get_attribute("data-index"))
        own = {key: data["runs"][1]["per_video"][key][index] for key in ("auc", "peak", "missed")}
        shown = [row.locator(f"[data-of={key}]").text_content() for key in own]
        missed = MISSING if own["missed"] is None else f"{_half_up(100 * own['missed'])} %"
        auc = MISSING if own["auc"] is None else f"{own['auc']:.3f}"
        assert shown == [auc, f"{own['peak']:.3f}", missed]


def _half_up(x: float) -> str:
    return str(int(np.floor(x + 0.5)))


def test_false_alarms_are_those_of_the_normal_frames(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report)
    run = page.evaluate("wsvad.runs()")[0]
    threshold = data["runs"][run]["threshold"]
    for index, video in enumerate(data["videos"]):
        normal = np.ones(video["frames"], bool)
        for start, stop, _ in video["events"]:
            normal[start:stop] = False
        share = (decoded(data, run, index)[normal] >= threshold).mean()
        cell = page.locator(f"#video-list [data-index='{index}'] [data-of=alarms]")
        assert cell.text_content() == f"{_half_up(100 * share)} %"


def test_tables_and_lists_sort(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report)

    def groups() -> list[str]:
        found: list[str] = page.locator("#summary-table .group .name").all_inner_texts()
        return found

    names = [group["name"] for group in data["groups"]]
    assert groups() == names
    page.locator("#summary-table [data-key=auc]").click()
    assert groups() == names[::-1]
    page.locator("#summary-table [data-key=ap]").click()
    assert groups() == [g["name"] for g in sorted(data["groups"], key=lambda g: -g["ap_mean"])]
    assert page.locator("#summary-table th[aria-sort=descending]").inner_text().startswith("AP")

    run = page.evaluate("wsvad.runs()")[0]
    for key, way in [("auc", "down"), ("auc", "up"), ("peak", "down"), ("missed", "up")]:
        page.locator("#video-order").select_option(f"{key} {way}")
        order = page.locator("#video-list a").evaluate_all("(a) => a.map((x) => Number(x.dataset.index))")
        values = [data["runs"][run]["per_video"][key][i] for i in order]
        numbers = [v for v in values if v is not None]
        assert numbers == sorted(numbers, reverse=way == "down")
        assert values[: len(numbers)] == numbers  # what has no value stands last
        assert sorted(order) == list(range(len(data["videos"])))


def test_a_link_opens_its_video_and_back_returns(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0, t=1.2, runs="0,3"))
    assert page.locator("#video-title").text_content() == data["videos"][0]["id"]
    assert _cursor(page) == pytest.approx(1.2 * 25)
    assert page.evaluate("wsvad.runs()") == [0, 3]
    _wait(page, "document.querySelector('video').readyState >= 2")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(1.2, abs=0.05)
    page.goto(report.as_uri())
    page.locator("#video-list [data-index='5']").click()
    _wait(page, "document.getElementById('video-title').textContent === arg", data["videos"][5]["id"])
    _press(page, "ArrowRight")
    _wait(page, "location.hash.includes('&t=1')")
    page.go_back()
    page.wait_for_selector("#overview:not([hidden])")
    assert page.evaluate("wsvad.timeline()") is None
    page.go_forward()
    page.wait_for_selector("#video:not([hidden])")
    assert page.locator("#video-title").text_content() == data["videos"][5]["id"]
    assert _cursor(page) == pytest.approx(25)


def test_a_file_that_cannot_be_played_leaves_the_timeline(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 1))  # a text file by the name of a video
    _wait(page, "document.getElementById('player-note').textContent.includes('cannot play')")
    assert page.locator("video").count() == 0
    _press(page, "Space")
    _wait(page, "wsvad.timeline().cursor > 3")
    _press(page, "Space")
    _press(page, "Home")
    assert _cursor(page) == 0
    page.goto(report.as_uri() + _at(data, 3, f=7))  # no frame rate: frames are the unit
    _wait(page, "wsvad.timeline()?.cursor === 7")


def test_clip_boundaries_are_the_grids(open_page: Open, tmp_path: Path) -> None:
    data = example(runs=2, videos=6)
    frames = data["videos"][0]["frames"]
    grids = [
        ClipGrid(frames),
        ClipGrid(frames, 16, 8, "drop"),
        ClipGrid(frames, 8, 4, "repeat", step=2),
        ClipGrid(frames, 16, 16, "repeat", rate=24 / 30),
        ClipGrid(frames, 10, 10, "drop", rate=25 / 23.976),
        ClipGrid(frames, tail="equal", count=7),
    ]
    for video, grid in zip(data["videos"], grids, strict=True):
        video["frames"] = frames
        video["clip"] = {"len": grid.clip_len, "stride": grid.stride, "step": grid.step, "rate": grid.rate}
        video["clip"] |= {"tail": grid.tail, "count": len(grid)}
    path = tmp_path / "report.html"
    path.write_text(render(data), encoding="utf-8")
    page = open_page(path)
    for video, grid in zip(data["videos"], grids, strict=True):
        spans = page.evaluate(
            "([id, n]) => [...Array(n).keys()].map((i) => wsvad.clip(id, i))", [video["id"], len(grid)]
        )
        assert spans == grid.spans.tolist(), grid


def test_every_control_has_a_name_and_the_cursor_speaks(open_page: Open, report: Path, data: dict[str, Any]) -> None:
    page = open_page(report, _at(data, 0))
    unnamed = """() => [...document.querySelectorAll("button, a, input, select, canvas[tabindex], svg[role=img]")]
        .filter((n) => !(n.getAttribute("aria-label") || n.textContent.trim() || n.labels?.[0]?.textContent.trim()))
        .map((n) => n.outerHTML)"""
    assert page.evaluate(unnamed) == []
    for landmark in ("banner", "navigation", "main", "contentinfo", "article"):
        assert page.get_by_role(landmark).count() == 1, landmark
    page.locator("#timeline").focus()
    _press(page, "ArrowRight")
    slider = page.locator("#timeline")
    assert slider.get_attribute("aria-valuenow") == "25"
    runs = page.evaluate("wsvad.runs()")
    for run in runs:
        assert f"{data['runs'][run]['name']} {decoded(data, run, 0)[25]:.2f}" in slider.get_attribute("aria-valuetext")
    page.locator("#video-title").focus()
    _press(page, "ArrowRight")
    _wait(page, "document.getElementById('live').textContent.includes('frame 50')")
    page.goto(report.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
