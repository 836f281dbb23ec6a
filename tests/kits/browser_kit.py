"""A real browser for the tests of pages: Chromium without a window, which tells of all that goes wrong in it.

Needs Chromium (Debian: `apt install chromium`) and playwright, which drives it; tests that use it are skipped where one
is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)
PATIENCE = 120_000  # milliseconds; a busy machine is no fault
SCREENS = [("light", 1280), ("dark", 1280), ("light", 380), ("dark", 380)]  # colour scheme and width


@contextmanager
def started() -> Iterator[Any]:
    """Chromium."""
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"], "timeout": PATIENCE}
        chromium = driver.chromium.launch(**options)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, page: Path, scheme: str, width: int) -> Iterator[Any]:
    """A page; whatever the console says, or the page asks the network for, is a fault."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.set_default_timeout(PATIENCE)
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
    tab.goto(page.as_uri())
    yield tab
    tab.close()
    assert not said


def unroll(page: Any) -> None:
    """Show what is folded away."""
    for details in page.locator("summary").all():
        details.click()


def is_as_wide_as_the_screen(page: Any) -> bool:
    return bool(page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"))


def check_contrast(page: Any, curves: int) -> None:
    """Contrast by WCAG: 4.5 for text, 3 for lines; as many curves are drawn, in the first colours."""
    found = page.evaluate(
        """() => {
            const lines = [...document.querySelectorAll("svg path")].map(e => getComputedStyle(e).stroke);
            const texts = [...document.querySelectorAll("svg text, p, h2, dt, dd, th, td, li, b")];
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
    assert {tuple(numbers(line)) for line in found["curves"][:curves]} <= drawn


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
