import csv
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_kit import BAD, SIZE, encoded, expected, parquet, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2i.config import Data, Source
from t2i.data.memory_table import load_memory
from t2i.data.sources import open_source
from t2i.errors import DataError

needs_symlinks = pytest.mark.skipif(os.name == "nt", reason="symlinks need a privilege on Windows")


def load(*paths, size=SIZE, bad="stop", **source):
    data = Data(sources=tuple(Source(path=str(path), **source) for path in paths), size=size, bad_images=bad)
    return load_memory(data, progress=False)


def fails(*says: str, **how):
    """Run load and check that the error says each of these."""
    with pytest.raises(DataError) as caught:
        load(how.pop("path"), **how)
    for part in says:
        assert part in str(caught.value), str(caught.value)


# Parquet


def test_parquet_images_are_decoded_fitted_and_in_order(tmp_path):
    table = load(parquet(tmp_path / "a.parquet", [encoded(k) for k in range(600)]))
    assert table.pixels.dtype == torch.uint8
    assert table.pixels.shape == (600, 3, SIZE, SIZE)
    for k in (0, 1, 255, 256, 599):
        assert torch.equal(table.pixels[k], expected(k))
    assert torch.equal(table.visits, torch.arange(600))
    assert len(table) == 600
    assert table.skipped == []


def test_class_numbers_become_names_and_missing_values_become_empty(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        [encoded(k) for k in range(4)],
        label=[1, 0, -1, None],
        text=["two", None, "", "ü"],
        year=[1889, None, 1, 2],
        tags=[["x"], ["y"], [], None],
    )
    table = load(path)
    assert table.columns == {
        "label": ["dog", "cat", "", ""],
        "text": ["two", "", "", "ü"],
        "year": ["1889", "", "1", "2"],
    }
    assert table.row(1) == {"label": "cat", "text": "", "year": ""}


def test_another_image_column_and_bare_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"picture": [encoded(3)], "text": ["three"]}), path)
    assert torch.equal(load(path, image="picture").pixels[0], expected(3))
    fails("no column 'image'", "picture, text", path=path)
    fails("column 'text' holds string", path=path, image="text")


def test_a_glob_reads_sorted_files_and_missing_columns_are_empty(tmp_path):
    parquet(tmp_path / "b.parquet", [encoded(2)], text=["b"])
    parquet(tmp_path / "a.parquet", [encoded(1)], title=["a"])
    table = load(tmp_path / "*.parquet")
    assert torch.equal(table.pixels, torch.stack([expected(1), expected(2)]))
    assert table.columns == {"title": ["a", ""], "text": ["", "b"]}


def test_repeat_makes_visits_of_the_same_rows(tmp_path):
    a = parquet(tmp_path / "a.parquet", [encoded(0), encoded(1)])
    b = parquet(tmp_path / "b.parquet", [encoded(2)])
    data = Data(sources=(Source(path=str(a)), Source(path=str(b), repeat=3)), size=SIZE)
    table = load_memory(data, progress=False)
    assert table.visits.tolist() == [0, 1, 2, 2, 2]
    assert len(table) == 5
    assert len(table.pixels) == 3


def test_the_hash_sees_pixels_columns_and_visits_and_nothing_else(tmp_path):
    def digest(file, cells, repeat=1, **columns):
        return load(parquet(tmp_path / file, cells, **columns), repeat=repeat).hash

    first = digest("a.parquet", [encoded(0), encoded(1)], text=["a", "b"])
    assert len(first) == 64
    assert digest("other-name.parquet", [encoded(0, "BMP"), encoded(1)], text=["a", "b"]) == first
    different = [
        digest("b.parquet", [encoded(0), encoded(2)], text=["a", "b"]),
        digest("c.parquet", [encoded(1), encoded(0)], text=["a", "b"]),
        digest("d.parquet", [encoded(0), encoded(1)], text=["ab", ""]),
        digest("e.parquet", [encoded(0), encoded(1)], name=["a", "b"]),
        digest("f.parquet", [encoded(0), encoded(1)], text=["a", "b"], repeat=2),
    ]
    assert len({first, *different}) == 6


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + bytes(64) + b"PAR1"])
def test_a_file_that_is_not_parquet_is_named(tmp_path, content):
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    fails("broken.parquet", path=path)


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = parquet(tmp_path / "cut.parquet", [encoded(k) for k in range(50)])
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(len(whole) // 2) + whole[200 + len(whole) // 2 :])  # the footer is whole
    fails("cut.parquet", path=path)
    path.write_bytes(whole[: len(whole) // 2])
    fails("cut.parquet", path=path)


def test_missing_empty_and_unknown_sources(tmp_path):
    fails("no such data", "nothing", "hub:owner/name", path=tmp_path / "nothing")
    fails("no such data", path=tmp_path / "*.parquet")
    fails("has no rows", path=parquet(tmp_path / "empty.parquet", []))
    (tmp_path / "notes.txt").write_text("hello")
    fails("notes.txt", "neither a folder nor a parquet file", path=tmp_path / "notes.txt")


# Bad images


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_stops_and_is_named_or_is_skipped_and_listed(tmp_path, kind):
    path = parquet(tmp_path / "a.parquet", [encoded(0), BAD[kind], encoded(2)], text=["a", "b", "c"])
    fails("a.parquet row 1", "bad_images=skip", path=path)
    table = load(path, bad="skip", repeat=2)
    assert len(table.skipped) == 1
    assert "a.parquet row 1" in table.skipped[0]
    assert "\n" not in table.skipped[0]
    assert torch.equal(table.pixels, torch.stack([expected(0), expected(2)]))
    assert table.columns == {"text": ["a", "c"]}
    assert table.visits.tolist() == [0, 1, 0, 1]


def test_nothing_left_after_skipping_is_an_error(tmp_path):
    fails("no image could be read", "row 0", path=parquet(tmp_path / "a.parquet", [b"x"]), bad="skip")


def test_the_first_of_several_bad_files_is_named_and_how_many_there_are(tmp_path, capsys):
    for name in ("a", "c", "b"):
        (tmp_path / f"{name}.jpg").write_text("text as JPEG")
    save(tmp_path / "d.png", 4)
    fails("a.jpg", path=tmp_path)
    table = load(tmp_path, bad="skip")
    assert [Path(line.split(".jpg")[0]).name for line in table.skipped] == ["a", "b", "c"]
    assert torch.equal(table.pixels[0], expected(4))
    assert "left out 3 of 4 images; the first: " in capsys.readouterr().err


# Folders


def test_a_folder_is_walked_in_order_and_stray_files_are_ignored(tmp_path):
    save(tmp_path / "dog" / "2.png", 2)
    save(tmp_path / "cat" / "inner" / "1.PNG", 1)
    save(tmp_path / "0.png", 0)
    save(tmp_path / ".hidden" / "3.png", 3)
    save(tmp_path / "dog" / "._2.png", 3)
    for stray in ("notes", ".DS_Store", "Thumbs.db", "dog/readme.md"):
        (tmp_path / stray).write_text("stray")
    table = load(tmp_path)
    assert torch.equal(table.pixels, torch.stack([expected(0), expected(1), expected(2)]))
    assert table.columns == {"label": ["", "inner", "dog"]}


def test_captions_from_text_files_and_metadata(tmp_path):
    for k in range(4):
        save(tmp_path / f"{k}.png", k)
    save(tmp_path / "sub" / "4.png", 4)
    (tmp_path / "0.txt").write_text("\ufeffa caption\n  over lines \n", encoding="utf-8")
    (tmp_path / "1.txt").write_text("loses", encoding="utf-8")
    lines = [
        {"file_name": "1.png", "text": "wins", "year": 1889},
        {"file_name": "sub/4.png", "label": "four", "boxes": [1, 2]},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    table = load(tmp_path)
    assert table.columns == {
        "label": ["", "", "", "", "four"],
        "text": ["a caption over lines", "wins", "", "", ""],
        "year": ["", "1889", "", "", ""],
    }


def test_metadata_csv_in_a_sub_folder_is_relative_to_it(tmp_path):
    save(tmp_path / "sub" / "a.png", 1)
    with (tmp_path / "sub" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "text"], ["a.png", 'a "quoted", caption']])
    assert load(tmp_path).columns == {"label": ["sub"], "text": ['a "quoted", caption']}


def test_an_image_named_in_the_metadata_but_missing_counts_as_bad(tmp_path):
    save(tmp_path / "a.png", 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "gone"}\n')
    fails("b.png", "named in the metadata", path=tmp_path)
    table = load(tmp_path, bad="skip")
    assert len(table.skipped) == 1
    assert "b.png" in table.skipped[0]
    assert len(table) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "x"}', "no file_name"),
        ('["a.png"]', "no file_name"),
        ('{"file_name": 3}', "no file_name"),
        ('{"file_name": "a.png"', "metadata.jsonl"),
        ('{"file_name": "a.png"}\n{"file_name": "./a.png"}', "described twice"),
        ("[" * 100_000, "metadata.jsonl"),
    ],
)
def test_broken_metadata_is_named(tmp_path, line, says):
    save(tmp_path / "a.png", 1)
    (tmp_path / "metadata.jsonl").write_text(line)
    fails(says, path=tmp_path, bad="skip")


ESCAPES = [
    "../secret.png",
    "sub/../../secret.png",
    "/etc/passwd",
    "..\\secret.png",
    "C:\\x.png",
    "C:x.png",
    "\\\\host\\x",
    "a\0.png",
]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_cannot_leave_the_folder(tmp_path, name, kind):
    save(tmp_path / "secret.png", 9)
    save(tmp_path / "data" / "a.png", 1)
    path = tmp_path / "data" / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps({"file_name": name, "text": "x"}))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["file_name", "text"], [name, "x"]])
    fails("metadata", path=tmp_path / "data", bad="skip")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.lists(
        st.sampled_from(["..", ".", "/", "\\", "a.png", "sub", "secret.png", "\0", "C:", "~"]), max_size=6
    ).map("".join)
)
def test_whatever_metadata_names_lies_inside_or_is_refused(tmp_path, name):
    save(tmp_path / "secret.png", 9)
    save(tmp_path / "data" / "a.png", 1)
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    try:
        rows = list(open_source(Source(path=str(tmp_path / "data"))).rows)
    except DataError:
        return
    inside = (tmp_path / "data").resolve()
    assert all(row.image is None or row.image.resolve().is_relative_to(inside) for row in rows)


@needs_symlinks
@pytest.mark.parametrize("link", ["link.png", "link.txt", "link"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    save(tmp_path / "outside" / "secret.png", 9)
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    save(tmp_path / "data" / "link.jpg", 1) if link == "link.txt" else save(tmp_path / "data" / "a.png", 1)
    targets = {"link.png": "secret.png", "link.txt": "secret.txt", "link": "."}
    (tmp_path / "data" / link).symlink_to((tmp_path / "outside" / targets[link]).resolve())
    fails(link, "leads out of the folder", path=tmp_path / "data", bad="skip")


@needs_symlinks
def test_symlink_loops_are_refused_and_links_inside_are_read(tmp_path):
    save(tmp_path / "data" / "sub" / "a.png", 1)
    (tmp_path / "data" / "b.png").symlink_to("sub/a.png")
    assert len(load(tmp_path / "data")) == 2
    (tmp_path / "data" / "sub" / "up").symlink_to("..")
    fails("symlink loop", path=tmp_path / "data")
    (tmp_path / "data" / "sub" / "up").unlink()
    (tmp_path / "data" / "x").symlink_to("y")
    (tmp_path / "data" / "y").symlink_to("x")
    fails("symlink loop", path=tmp_path / "data")


def test_empty_folders_say_what_was_looked_for(tmp_path):
    fails("no images in this folder", ".png", path=tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    fails("no images in this folder", path=tmp_path)
    parquet(tmp_path / "a.parquet", [encoded(0)])
    fails("*.parquet", path=tmp_path)


def test_a_file_that_may_not_be_read_is_named_or_skipped(tmp_path, monkeypatch):
    for k in range(3):
        save(tmp_path / "data" / f"{k}.png", k)
    read = Path.read_bytes

    def refuse(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # not chmod: root reads everything
    fails("1.png", "cannot be read", "Permission denied", "bad_images=skip", path=tmp_path / "data")
    table = load(tmp_path / "data", bad="skip")
    assert len(table) == 2
    assert "1.png" in table.skipped[0]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"x" * 100_000])
def test_a_caption_file_that_holds_no_caption_is_named(tmp_path, content):
    save(tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_bytes(content)
    fails("a.txt", path=tmp_path)


# The Hub


def test_a_hub_data_set_is_read_as_raw_bytes(monkeypatch):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": encoded(5), "path": "5.png"}, {"bytes": b"broken", "path": "6.png"}],
        "label": [1, 0],
        "text": ["five", None],
    }
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fails("hub:someone/pictures[test] row 1", "6.png", path="hub:someone/pictures", split="test")
    table = load("hub:someone/pictures", split="test", bad="skip")
    assert asked == [("someone/pictures", "test")] * 2
    assert torch.equal(table.pixels[0], expected(5))
    assert table.columns == {"label": ["dog"], "text": ["five"]}
    fails("no column 'picture'", "image, label, text", path="hub:someone/pictures", image="picture")


def test_a_hub_data_set_that_cannot_be_had_names_the_way_out(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("offline\nmode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fails("'someone/pictures'", "offline mode", "hf download", path="hub:someone/pictures")


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:a/b/c", "hub:../x/y", "hub:a b/c"])
def test_what_is_no_hub_id_is_refused_before_asking(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    fails("hub:owner/name", path=name)


def test_progress_goes_to_stderr_and_can_be_silent(tmp_path, capsys):
    path = parquet(tmp_path / "a.parquet", [encoded(0)])
    data = Data(sources=(Source(path=str(path)),), size=SIZE)
    load_memory(data, progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "reading images" in said.err
    load_memory(data, progress=False)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ""
