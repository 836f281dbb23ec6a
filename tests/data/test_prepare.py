"""`t2i data prepare`: what it writes is what was there, and the trainers and `datasets` read it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_kit import BAD, encoded, parquet, picture
from PIL import Image
from training_kit import ddpm_config, read_log, train

from t2i import config
from t2i.cli.main import main
from t2i.data import prepare as module
from t2i.data import writing
from t2i.data.memory_table import load_memory
from t2i.data.prepare import PrepareOptions, prepare
from t2i.data.rows import Row, Rows
from t2i.imaging import images


def folder(place: Path, count: int = 12) -> Path:
    """Two classes, captions beside some images, a metadata file that adds a column; sizes differ."""
    for k in range(count):
        path = place / ("cat" if k % 2 else "dog") / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k, (12 + k, 10)).save(path)
        if k % 3 == 0:
            path.with_suffix(".txt").write_text(f"caption {k}")
    line = {"file_name": "dog/02.png", "year": 1889}
    (place / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    return place


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["data", "prepare", *map(str, words), "--quiet"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))


def test_a_folder_becomes_a_file_that_trainers_and_datasets_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = folder(tmp_path / "pictures"), tmp_path / "new" / "out.parquet"
    code, said, _ = run(capsys, source, "-o", out, "--size", 16)
    assert (code, said) == (0, f"{out}\n")
    direct = load_memory(config.Data(sources=(config.Source(path=str(source)),), size=16), progress=False)
    table = load_memory(config.Data(sources=(config.Source(path=str(out)),), size=16), progress=False)
    assert torch.equal(table.pixels, direct.pixels)
    assert table.columns == direct.columns
    assert table.columns["label"][:7] == ["cat"] * 6 + ["dog"]
    assert table.columns["text"].count("caption 3") == 1
    assert table.columns["year"].count("1889") == 1
    assert table.classes == direct.classes == {"label": ("cat", "dog")}
    theirs = datasets.load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert theirs.features == datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
            "year": datasets.Value("string"),
        }
    )
    first = theirs[0]
    assert (first["image"].size, first["label"], first["text"]) == ((16, 16), 0, None)
    assert np.array_equal(np.asarray(first["image"]), np.asarray(images.fit(picture(1, (13, 10)), 16)))
    assert main(["data", "info", str(out), "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["broken_count"], facts["sizes"]) == (12, 0, {"16 x 16": 12})
    assert facts["columns"]["label"] == {"filled": 12, "values": {"cat": 6, "dog": 6}, "classes": True}
    assert [row["image"]["path"] for row in rows(out)][:2] == [
        "cat/01.png",
        "cat/03.png",
    ]  # and no path of this machine


def test_training_starts_from_it_as_from_the_folder(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "pictures"), tmp_path / "out.parquet"
    prepare(config.Source(path=str(source)), out, PrepareOptions(size=16), progress=False)
    logs = [
        read_log(
            train(ddpm_config(data, images=16, label="label", sample_every=16, save_every=16), tmp_path / name).parent
        )
        for name, data in (("folder", source), ("parquet", out))
    ]
    assert logs[0] == logs[1]


def test_bytes_are_the_same_every_time_and_without_size_those_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "pictures")
    for name in ("a", "b"):
        assert run(capsys, source, "-o", tmp_path / f"{name}.parquet", "--size", 9, "--format", "jpg")[0] == 0
        assert run(capsys, source, "-o", tmp_path / f"{name}-as-is.parquet")[0] == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    for row in rows(tmp_path / "a-as-is.parquet"):
        assert row["image"]["bytes"] == (source / row["image"]["path"]).read_bytes()


def test_jpeg_has_the_quality_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "pictures")
    for quality in (30, 95):
        out = tmp_path / f"{quality}.parquet"
        assert run(capsys, source, "-o", out, "--format", "jpg", "--quality", quality)[0] == 0
        buffer = io.BytesIO()
        picture(1, (13, 10)).save(buffer, "JPEG", quality=quality, subsampling=0)
        assert rows(out)[0]["image"]["bytes"] == buffer.getvalue()
    code, _, said = run(capsys, source, "-o", tmp_path / "c.parquet", "--quality", 30)
    assert (code, "add --format jpg" in said) == (2, True)


def test_parquet_columns_come_along_and_an_image_column_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet(tmp_path / "b.parquet", [encoded(1), encoded(2)], text=["x", None])
    source = parquet(tmp_path / "a.parquet", [encoded(3, "BMP"), encoded(4)], label=[1, None], year=[7, 8])
    out = tmp_path / "out" / "all.parquet"
    assert run(capsys, tmp_path / "*.parquet", "-o", out)[0] == 0
    assert [[row[name] for name in ("label", "year", "text")] for row in rows(out)] == [
        [1, "7", None],
        [None, "8", None],
        [None, None, "x"],
        [None, None, None],
    ]
    assert [row["image"]["bytes"] for row in rows(out)] == [encoded(3, "BMP"), encoded(4), encoded(1), encoded(2)]
    table = pq.read_table(source).rename_columns(["picture", "label", "image"])
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "c.parquet")
    code, _, said = run(capsys, tmp_path / "c.parquet", "--image", "picture", "-o", tmp_path / "d.parquet")
    assert (code, "a column 'image' that holds no images is in the way" in said) == (1, True)


def test_bad_pictures_stop_or_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "a.parquet", [encoded(0), *BAD.values(), encoded(1)])
    out = tmp_path / "out.parquet"
    code, said, err = run(capsys, source, "-o", out)
    assert (code, said) == (1, "")
    assert "a.parquet row 1: " in err
    assert "--bad-images skip" in err
    assert sorted(os.listdir(tmp_path)) == ["a.parquet"]  # no part of a file is left
    code, said, _ = run(capsys, source, "-o", out, "--bad-images", "skip", "--json")
    facts = json.loads(said)
    assert (code, facts["rows"], facts["bad_count"], len(facts["bad"])) == (0, 2 + len(BAD), len(BAD), len(BAD))
    assert [f"row {k}" in line for k, line in enumerate(facts["bad"], 1)] == [True] * len(BAD)
    assert facts["parts"] == [{"path": str(out), "rows": 2, "bytes": out.stat().st_size}]
    assert [row["image"]["bytes"] for row in rows(out)] == [encoded(0), encoded(1)]
    code, _, err = run(capsys, parquet(tmp_path / "b.parquet", [b"x"]), "-o", tmp_path / "c", "--bad-images", "skip")
    assert (code, "must end in .parquet" in err) == (2, True)
    code, _, err = run(capsys, tmp_path / "b.parquet", "-o", tmp_path / "c.parquet", "--bad-images", "skip")
    assert (code, "no image could be read; the first of 1: " in err) == (1, True)
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.parquet", "out.parquet"]


def test_duplicates_are_pictures_of_the_same_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = [Image.new("RGB", size, "white") for size in ((12, 10), (10, 12))]  # as many white pixels, another picture
    cells = [encoded(0), encoded(1), encoded(0, "BMP"), encoded(1)]
    for image in flat:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        cells.append(buffer.getvalue())
    source, out = parquet(tmp_path / "a.parquet", cells), tmp_path / "out.parquet"
    code, said, _ = run(capsys, source, "-o", out, "--drop-duplicates", "--json")
    assert (code, json.loads(said)["duplicates"]) == (0, 2)
    assert [row["image"]["bytes"] for row in rows(out)] == [cells[k] for k in (0, 1, 4, 5)]
    assert json.loads(run(capsys, source, "-o", tmp_path / "b.parquet", "--json")[1])["duplicates"] is None


def test_a_limit_is_spread_over_all_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.parquet"
    assert run(capsys, folder(tmp_path / "pictures"), "-o", out, "--limit", 4)[0] == 0
    assert [row["image"]["path"] for row in rows(out)] == ["cat/01.png", "cat/07.png", "dog/02.png", "dog/10.png"]
    assert run(capsys, tmp_path / "pictures", "-o", out, "--limit", 99, "--overwrite")[0] == 0
    assert len(rows(out)) == 12


def sides(tmp_path: Path, name: str, cells: list[bytes], **how: Any) -> dict[str, set[bytes]]:
    """{part: pixels of its pictures}."""
    source = parquet(tmp_path / f"{name}.parquet", cells)
    prepare(config.Source(path=str(source)), tmp_path / f"{name}-out.parquet", PrepareOptions(**how), progress=False)
    parts = {part: rows(tmp_path / f"{name}-out-{part}.parquet") for part in ("train", "test")}
    return {part: {pixels(row).tobytes() for row in found} for part, found in parts.items()}


def test_the_split_is_decided_by_each_picture_alone(tmp_path: Path) -> None:
    cells = [encoded(k) for k in range(200)]
    whole = sides(tmp_path, "whole", cells, test_fraction=0.3)
    assert len(whole["train"]) + len(whole["test"]) == 200
    assert 40 <= len(whole["test"]) <= 80  # within three deviations of 60
    fewer = sides(tmp_path, "fewer", [encoded(k, "BMP") for k in reversed(range(100))], test_fraction=0.3)
    assert fewer["test"] < whole["test"]
    assert fewer["train"] < whole["train"]
    more = sides(tmp_path, "more", cells, test_fraction=0.5)
    assert more["test"] > whole["test"]
    small = sides(tmp_path, "small", cells, test_fraction=0.3, size=8)
    assert [len(small[part]) for part in ("train", "test")] == [len(whole[part]) for part in ("train", "test")]
    assert small["test"] == {
        np.asarray(images.fit(Image.frombytes("RGB", (12, 10), data), 8)).tobytes() for data in whole["test"]
    }


def test_an_empty_side_is_an_error_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "a.parquet", [encoded(0)])
    code, _, said = run(capsys, source, "-o", tmp_path / "b.parquet", "--test-fraction", 0.5)
    assert (code, "part would be empty: 1 in all" in said) == (1, True)
    assert os.listdir(tmp_path) == ["a.parquet"]


@pytest.mark.parametrize("part", ["-train", "-test", ""])
def test_nothing_is_overwritten_unasked(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, taken = folder(tmp_path / "pictures"), tmp_path / f"out{part}.parquet"
    taken.write_text("mine")
    how = ["-o", tmp_path / "out.parquet", *(["--test-fraction", 0.6] if part else [])]
    code, _, said = run(capsys, source, *how)
    assert (code, f"{taken} exists already" in said, taken.read_text()) == (2, True, "mine")
    assert sorted(os.listdir(tmp_path)) == sorted(["pictures", taken.name])
    assert run(capsys, source, *how, "--overwrite")[0] == 0
    assert rows(taken)


def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "a.parquet", [encoded(0)])
    before = source.read_bytes()
    code, _, said = run(capsys, tmp_path / "*.parquet", "-o", source, "--overwrite")
    assert (code, "is part of what is to be read" in said, source.read_bytes()) == (2, True, before)


def test_row_groups_are_bounded_and_rows_are_not_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 5)
    read, written = 0, 0
    most = 0

    def endless() -> Any:
        nonlocal read, most
        for k in range(200):
            read += 1
            most = max(most, read - written)
            yield Row(f"row {k}", encoded(k), {})

    add = writing.Writer.add

    def counted(self: writing.Writer, *row: Any) -> None:
        nonlocal written
        written += 1
        add(self, *row)

    monkeypatch.setattr(writing.Writer, "add", counted)
    monkeypatch.setattr(module, "open_source", lambda source: Rows(200, endless()))
    prepare(config.Source(path="anything"), tmp_path / "a.parquet", PrepareOptions(size=8), progress=False)
    groups = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [5] * 40
    assert most <= module.AHEAD
    monkeypatch.setattr(writing, "GROUP_BYTES", 2 * len(encoded(0)) - 50)
    monkeypatch.setattr(module, "open_source", lambda source: Rows(4, (Row("r", encoded(0), {}) for _ in range(4))))
    prepare(config.Source(path="anything"), tmp_path / "b.parquet", PrepareOptions(), progress=False)
    assert pq.ParquetFile(tmp_path / "b.parquet").metadata.num_row_groups == 2


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    source = parquet(tmp_path / "a.parquet", [encoded(k) for k in range(300)])
    done = subprocess.run(
        [sys.executable, "-m", "t2i", "data", "prepare", str(source), "-o", str(tmp_path / "out.parquet"), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write {tmp_path / 'out.parquet'}: File too large\nhint: free some")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_a_hub_data_set_is_prepared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "a.parquet", [encoded(5), b"broken"], label=[1, 0], text=["five", None])
    found = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    asked = []

    def load_dataset(name: str, split: str) -> Any:
        asked.append((name, split))
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    out = tmp_path / "out.parquet"
    words = ("hub:someone/pictures", "-o", out, "--split", "test")
    code, _, said = run(capsys, *words)
    assert (code, "hub:someone/pictures[test] row 1: " in said, out.exists()) == (1, True, False)
    assert run(capsys, *words, "--bad-images", "skip")[0] == 0
    assert asked == [("someone/pictures", "test")] * 2
    assert rows(out) == [{"image": {"bytes": encoded(5), "path": None}, "label": 1, "text": "five"}]


def test_a_value_that_is_no_class_of_its_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet(tmp_path / "a.parquet", [encoded(0)], label=[1])
    table = pq.read_table(parquet(tmp_path / "b.parquet", [encoded(1)], text=["bird"])).rename_columns(
        ["image", "label"]
    )
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "b.parquet")
    code, _, said = run(capsys, tmp_path / "*.parquet", "-o", tmp_path / "c.parquet")
    assert code == 1
    assert f"{tmp_path / 'b.parquet'} row 0: label 'bird' is none of the classes of this column" in said
    assert not (tmp_path / "c.parquet").exists()
