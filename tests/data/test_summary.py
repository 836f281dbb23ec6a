"""`t2i data info`: what it counts, what it names, and that it names it where it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_kit import BAD, encoded, parquet, picture, save
from PIL import Image

from t2i.cli.main import main
from t2i.config import Source
from t2i.data import summary as module
from t2i.data.summary import Column, lines, summarize


def summary_of(path: Path | str, sheet: bool = False) -> module.Summary:
    return summarize(Source(path=str(path)), sheet, progress=False)[0]


def test_everything_is_counted(tmp_path: Path) -> None:
    cells = [encoded(k) for k in range(6)] + [encoded(2), *BAD.values()]
    labels = [k % 2 for k in range(6)] + [None] * (1 + len(BAD))
    texts = [f"text {k % 3}" for k in range(6)] + [""] * (1 + len(BAD))
    found = summary_of(parquet(tmp_path / "a.parquet", cells, label=labels, text=texts))
    assert (found.rows, found.images, found.broken_count) == (7 + len(BAD), 7, len(BAD))
    assert found.bytes == sum(len(cell) for cell in cells[:7] if cell)
    assert found.sizes == {"12 x 10": 7}
    assert found.short_sides == {8: 7}
    assert found.columns == {
        "label": Column(6, {"cat": 3, "dog": 3}, classes=True),
        "text": Column(6, {"text 0": 2, "text 1": 2, "text 2": 2}),
    }
    assert (found.duplicates, found.compared) == (1, 7)
    assert found.duplicated == [f"{tmp_path / 'a.parquet'} row 6"]
    for k, line in enumerate(found.broken, 7):
        assert f"a.parquet row {k}" in line
        assert "\n" not in line


def test_a_folder_has_sizes_classes_and_a_sheet(tmp_path: Path) -> None:
    for k, (folder, size) in enumerate([("cat", (12, 10)), ("cat", (40, 33)), ("dog", (12, 10))]):
        path = tmp_path / folder / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        picture(k, size).save(path)
    (tmp_path / "dog" / "bad.jpg").write_text("text as JPEG")
    found, sheet = summarize(Source(path=str(tmp_path)), True, False)
    assert found.sizes == {"12 x 10": 2, "40 x 33": 1}
    assert found.short_sides == {8: 2, 32: 1}
    assert found.columns["label"] == Column(4, {"cat": 2, "dog": 2}, classes=True)
    assert sheet is not None
    assert sheet.size == (2 * 96 + 2, 2 * 96 + 2)
    assert sheet.getpixel((2 * 96, 2 * 96)) == (255, 255, 255)  # three of four: the bad one is not there
    shown = dict(lines(found))
    assert shown["short side"] == "8..15: 2, 32..63: 1"
    assert shown["broken"].startswith("1\n")


def test_what_is_kept_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("NAMED", 2), ("VALUES", 3), ("COMPARED", 4), ("SHOWN", 5), ("EXAMPLES", 1)):
        monkeypatch.setattr(module, name, most)
    cells = [encoded(0)] * 6 + [b"x"] * 5
    path = parquet(tmp_path / "a.parquet", cells, text=[f"text {k}" for k in range(11)])
    found, sheet = summarize(Source(path=str(path)), True, False)
    assert (found.broken_count, len(found.broken)) == (5, 2)
    assert (found.duplicates, found.compared, len(found.duplicated)) == (3, 4, 2)
    assert found.columns["text"] == Column(11, None)
    assert sheet is not None
    assert sheet.width < 3 * 98
    shown = dict(lines(found))
    assert shown["broken"].endswith("and 4 more")
    assert shown["duplicates"].startswith("3 among the first 4")
    assert shown["text"] == "11 values, more than 3 different"


def test_many_sizes_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES", 2)
    for k in range(5):
        picture(k, (8 + k, 8)).save(tmp_path / f"{k}.png")
    assert summary_of(tmp_path).sizes == {"other": 3, "8 x 8": 1, "9 x 8": 1}


def test_the_command_prints_a_table_and_writes_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "data" / "cat" / "a.png", 1)
    (tmp_path / "data" / "cat" / "b\x1b[2J.png").write_text("text")
    sheet = tmp_path / "sheet.png"
    assert main(["data", "info", str(tmp_path / "data"), "-o", str(sheet)]) == 0
    said = capsys.readouterr()
    assert "images      1 of 2 rows" in said.out
    assert "text, not an image" in said.out
    assert "\x1b" not in said.out
    assert str(sheet) in said.out
    assert "reading images" in said.err
    with Image.open(sheet) as written:
        assert written.size == (96, 96)
    assert main(["data", "info", str(tmp_path / "data"), "-o", str(sheet)]) == 2
    assert main(["data", "info", str(tmp_path / "data"), "-o", str(sheet), "--overwrite", "--quiet", "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["images"], facts["broken_count"], facts["sheet"]) == (1, 1, str(sheet))
    assert facts["columns"]["label"] == {"filled": 2, "values": {"cat": 2}, "classes": True}


def test_the_command_takes_globs_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        parquet(tmp_path / f"{name}.parquet", [encoded(1)])
    assert main(["data", "info", str(tmp_path / "*.parquet"), "--quiet"]) == 0
    assert "images      2 of 2 rows" in capsys.readouterr().out
    assert main(["data", "info", str(tmp_path / "nothing"), "--quiet"]) == 1
    assert main(["data", "info", str(tmp_path / "a.parquet"), "--image", "picture", "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no such data" in said.err
    assert "no column 'picture'" in said.err
