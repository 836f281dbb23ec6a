"""A report in a real browser: the slider, the pointer, dark and light, a narrow screen, not one word on the console."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_kit import SCREENS, check_contrast, is_as_wide_as_the_screen, opened, started, unroll
from PIL import Image
from report_kit import COLOURS, add_scores, make_run, some_log

from t2i.cli.main import main


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report on two runs, whose sheets have different colours; one was evaluated during training."""
    folder = tmp_path_factory.mktemp("report")
    sheets = {100 * (k + 1): colour for k, colour in enumerate(COLOURS)}
    long = "a-run-whose-name-is-much-longer-than-a-narrow-screen-is-wide-and-has-no-space"
    one = make_run(folder / "one", some_log(), samples=sheets, note="x" * 300)
    add_scores(one)
    two = make_run(folder / long, some_log(30, 0.5), samples={200: "#ffffff"}, seed=1)
    assert main(["report", str(one), str(two), "-o", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as chromium:
        yield chromium


@pytest.fixture(params=SCREENS, ids=str)
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    with opened(browser, report, *request.param) as tab:
        yield tab


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
    figure = page.locator("figure", has_text="Diffusion loss: unweighted")
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
    unroll(page)
    assert is_as_wide_as_the_screen(page)


def test_text_and_lines_stand_out_from_the_ground(page: Any) -> None:
    check_contrast(page, curves=2)
