"""A report in a real browser: the slider, the pointer, dark and light, a narrow screen, not one word on the console.

Needs Chromium (Debian: `apt install chromium`) and playwright, which drives it; skipped where one is missing.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_kit import COLOURS, make_run, some_log

from t2i.cli.main import main

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
PATIENCE = 120_000  # milliseconds; a busy machine is no fault


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two runs, each of whose sheets has a colour of its own."""
    folder = tmp_path_factory.mktemp("report")
    sheets = {100 * (k + 1): colour for k, colour in enumerate(COLOURS)}
    long = "a-run-whose-name-is-much-longer-than-a-narrow-screen-is-wide-and-has-no-space"
    one = make_run(folder / "one", some_log(), samples=sheets, note="x" * 300)
    two = make_run(folder / long, some_log(30, 0.5), samples={200: "#ffffff"}, seed=1)
    assert main(["report", str(one), str(two), "-o", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"], "timeout": PATIENCE}
        chromium = driver.chromium.launch(**options)
        yield chromium
        chromium.close()


@pytest.fixture(params=[("light", 1280), ("dark", 1280), ("light", 380), ("dark", 380)], ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened; whatever the console says, or the page asks the network for, is a fault."""
    scheme, width = request.param
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.set_default_timeout(PATIENCE)
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    tab.goto(report.as_uri())
    yield tab
    tab.close()
    assert not said


def colour(element: Any) -> list[int]:
    """The mean colour of what the screen shows of an element, in its middle."""
    picture = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"), dtype=float)
    height, width, _ = picture.shape
    middle = picture[height // 4 : -height // 4, width // 4 : -width // 4]
    return [round(value) for value in middle.mean((0, 1))]


def near(found: list[int], wanted: str) -> bool:
    return all(abs(a - int(wanted[k : k + 2], 16)) < 16 for a, k in zip(found, (1, 3, 5), strict=True))


def test_the_slider_shows_each_moment(page: Any) -> None:
    """By mouse and by keyboard; the other run stays at its only sheet."""
    slider, sheet = page.locator("#slider"), page.locator("#sheet0")
    assert near(colour(sheet), COLOURS[3])
    box = slider.bounding_box()
    slider.click(position={"x": 2, "y": box["height"] / 2})
    assert near(colour(sheet), COLOURS[0])
    assert page.locator("#stop").inner_text() == "100"
    assert page.locator("#at0").inner_text() == "100 images"
    assert "after 100 images" in sheet.get_attribute("alt")
    slider.press("ArrowRight")
    assert near(colour(sheet), COLOURS[1])
    assert slider.get_attribute("aria-valuetext") == "200 images"
    assert near(colour(page.locator("#sheet1")), "#ffffff")


def test_the_pointer_reads_the_numbers(page: Any) -> None:
    figure = page.locator("figure", has_text="Diffusion loss: plain")
    values = figure.locator("b")
    before = values.all_inner_texts()
    box = figure.locator(".frame").bounding_box()
    page.mouse.move(0, 0)
    figure.locator(".frame").hover(position={"x": box["width"] * 0.2, "y": box["height"] / 2})
    assert values.all_inner_texts() != before
    assert float(values.first.inner_text()) > float(before[0])  # the loss fell from there on
    assert "images" in figure.locator("h4").inner_text()
    page.mouse.move(0, 0)
    assert values.all_inner_texts() == before


def test_a_small_sheet_is_enlarged_as_far_as_there_is_room(page: Any) -> None:
    width = page.evaluate("innerWidth")
    shown = page.locator("#sheet0").bounding_box()["width"]
    assert shown == 640 if width > 700 else 300 < shown <= width


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_text_and_lines_stand_out_from_the_ground(page: Any) -> None:
    """Contrast by WCAG: 4.5 for text, 3 for lines."""
    found = page.evaluate(
        """() => {
            const lines = [...document.querySelectorAll("svg path")].map(e => getComputedStyle(e).stroke);
            const texts = [...document.querySelectorAll("svg text, p, h2, dt, dd, th, td, .legend li, b")];
            const style = getComputedStyle(document.documentElement);
            const curves = [0, 1, 2, 3, 4, 5].map(k => style.getPropertyValue(`--line${k}`).trim());
            return {
                ground: getComputedStyle(document.body).backgroundColor,
                texts: [...new Set(texts.map(e => getComputedStyle(e)[e.closest("svg") ? "fill" : "color"]))],
                drawn: [...new Set(lines)], curves,
            };
        }"""
    )
    assert all(contrast(text, found["ground"]) >= 4.5 for text in found["texts"]), found
    assert all(contrast(line, found["ground"]) >= 3 for line in found["curves"]), found
    drawn = {tuple(numbers(line)) for line in found["drawn"] if line != "none"}
    assert {tuple(numbers(line)) for line in found["curves"][:2]} <= drawn


def numbers(css: str) -> list[float]:
    """Red, green, blue of #rrggbb or rgb(r, g, b)."""
    if css.startswith("#"):
        return [float(int(css[k : k + 2], 16)) for k in (1, 3, 5)]
    return [float(part) for part in css[css.index("(") + 1 : css.index(")")].split(",")[:3]]


def contrast(a: str, b: str) -> float:
    def luminance(css: str) -> float:
        parts = [c / 255 for c in numbers(css)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
