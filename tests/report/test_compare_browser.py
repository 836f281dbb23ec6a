"""The page of a comparison in a real browser: dark and light, a narrow screen, not one word on the console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_kit import SCREENS, check_contrast, is_as_wide_as_the_screen, opened, started, unroll
from evaluation_kit import make_place

from t2i.cli.main import main

LONG = "a-run-whose-name-is-much-longer-than-a-narrow-screen-is-wide"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model and a folder of pictures, with curves and the closest pairs."""
    place = make_place(tmp_path_factory.mktemp("compare"), LONG)
    ref = ["--ref", str(place / "ref.safetensors"), "--features", str(place / "judge-run")]
    curves = ["--steps", "2,4,8", "--guidance", "1,2", "--data", str(place / "real"), "--curve-n", "12"]
    subjects = [str(place / LONG), str(place / "alike")]
    assert main(["eval", "compare", *subjects, *ref, "--n", "30", *curves, "--quiet", "-o", str(place / "out")]) == 0
    return place / "out" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as chromium:
        yield chromium


@pytest.fixture(params=SCREENS, ids=str)
def page(request: pytest.FixtureRequest, browser: Any, comparison: Path) -> Iterator[Any]:
    with opened(browser, comparison, *request.param) as tab:
        yield tab


def test_nothing_is_wider_than_the_screen_and_tables_scroll_by_themselves(page: Any) -> None:
    unroll(page)
    assert is_as_wide_as_the_screen(page)
    frame = page.locator(".wide").first
    if page.evaluate("innerWidth") < 700:
        first = frame.locator("tbody th").first.bounding_box()
        frame.evaluate("e => e.scrollLeft = 1e6")
        assert frame.evaluate("e => e.scrollLeft") > 0
        assert is_as_wide_as_the_screen(page)
        assert frame.locator("tbody th").first.bounding_box() == first, "what a number is stays in sight"


def test_every_picture_is_there_and_fits(page: Any) -> None:
    pictures = page.evaluate("[...document.images].map(e => [e.complete && e.naturalWidth, e.clientWidth, innerWidth])")
    assert len(pictures) == 4, "two grids, two sheets of the closest pairs"
    for pixels, shown, screen in pictures:
        assert pixels > 0
        assert 0 < shown <= screen


def test_text_and_lines_stand_out_from_the_ground(page: Any) -> None:
    check_contrast(page, curves=1)


def test_the_pointer_reads_the_points_that_were_measured(page: Any) -> None:
    figure = page.locator("figure", has_text="Frechet distance against sampling steps")
    values, title = figure.locator("b"), figure.locator("h4")
    before = values.all_inner_texts()
    box = figure.locator(".frame").bounding_box()
    figure.locator(".frame").hover(position={"x": box["width"] * 0.55, "y": box["height"] / 2})
    assert title.inner_text() == "Frechet distance against sampling steps: 4"
    assert values.all_inner_texts()[0] != before[0]
    page.mouse.move(0, 0)
    assert values.all_inner_texts() == before
