"""Shards, `t2i generate --prompts FILE --shards parquet -o FOLDER/`: ready to train on, the same however they came."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow.parquet as pq
import pytest
from batch_kit import TORCHRUN, start, write_rows
from generate_kit import Run
from PIL import Image

from t2i import config
from t2i.data.sources import open_source
from t2i.errors import UsageError
from t2i.imaging import images
from t2i.jobs.batch import shard_index as shards_module
from t2i.jobs.batch.ledger import Ledger
from t2i.jobs.batch.shard_formats import FORMATS, ShardImage
from t2i.jobs.batch.shard_index import Shards
from t2i.metadata import recipe
from t2i.pipelines.text_to_image.runner import PipelineRunner

LIST = ["a horse", "a {cat|dog}", "a house", "a dog", "a bird"]
CAPTIONS = {"column": "text", "by": None, "templates": {}}
KINDS_OF_FILES = pytest.mark.parametrize("kind", ["parquet", "webdataset"])


def shards(folder: Path) -> dict[str, str]:
    """Every file of the folder that is meant for the user, and the hash of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def keys(path: Path) -> list[str]:
    """Of the images of a shard, without the job."""
    kind = FORMATS["parquet" if path.suffix == ".parquet" else "webdataset"]
    return [key.partition("-")[0].lstrip("0") for key, _ in kind.read(path)]


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture
def call(here: Path) -> list[str]:
    """Five images, three of a shard, two of a group."""
    (here / "list.txt").write_text("\n".join(LIST))
    return ["--prompts", "list.txt", "-s", "1", "--batch-size", "2", "--shard-size", "3", "-o", "out/"]


# --- what is in them ---


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_a_parquet_shard_holds_the_very_files_of_a_folder(t2i: Run, here: Path, call: list[str], format: str) -> None:
    ran = t2i(*call, "--shards", "parquet", "--format", format)
    assert (ran.code, ran.lines) == (0, ["out/data-000000.parquet", "out/data-000001.parquet"]), ran.err
    files = ["--prompts", "list.txt", "-s", "1", "--batch-size", "2", "-o", "files/", "--format", format]
    rows = [row for name in ran.lines for row in pq.read_table(here / name).to_pylist()]
    assert t2i(*files).code == 0
    # those of the first group: the next ends with the shard, and so is another than in the folder
    for row, path in zip(rows[:2], sorted((here / "files").glob(f"*.{format}"))[:2], strict=True):
        assert (row["image"]["bytes"], row["image"]["path"]) == (path.read_bytes(), path.name)
    for row, line in zip(rows, manifest(here / "out"), strict=True):
        made = recipe.read(row["image"]["bytes"]).recipe
        assert made is not None
        assert recipe.Recipe.from_json(row["recipe"]) == made
        assert (row["text"], row["seed"], row["key"]) == (line["prompt"], line["seed"], line["key"])
        assert (row["width"], row["height"], row["hash"]) == (32, 32, line["hash"])
        assert line["file"] == f"data-{line['index'] // 3:06d}.parquet"
    assert [row["seed"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[1]["text"] in ("a cat", "a dog")
    assert not list((here / "out" / ".t2i-batch" / "spool").iterdir())


def test_a_tar_holds_picture_caption_and_recipe_and_nothing_of_time_or_user(
    t2i: Run, here: Path, call: list[str]
) -> None:
    assert t2i(*call, "--shards", "webdataset").lines == ["out/000000.tar", "out/000001.tar"]
    lines = manifest(here / "out")
    with tarfile.open(here / "out" / "000000.tar") as tar:
        assert tar.getnames() == [f"{line['key']}.{end}" for line in lines[:3] for end in ("png", "txt", "json")]
        for entry in tar:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")
            file = tar.extractfile(entry)
            assert file is not None
            data, line = file.read(), next(line for line in lines if line["key"] == entry.name.rpartition(".")[0])
            if entry.name.endswith(".png"):
                assert images.pixel_hash(images.decode(data, entry.name)) == line["hash"]
            elif entry.name.endswith(".txt"):
                assert data.decode() == line["prompt"]
            else:
                assert recipe.Recipe.from_json(data.decode()).image_hash == line["hash"]


def test_what_reads_data_sets_reads_them(t2i: Run, here: Path, call: list[str], tmp_path: Path) -> None:
    t2i(*call, "--shards", "parquet")
    t2i(*call, "--shards", "webdataset", "-o", "tars/")
    lines = manifest(here / "out")
    rows = open_source(config.Source(path="out/*.parquet"))
    assert [row.columns["text"] for row in rows.rows] == [line["prompt"] for line in lines]
    cache = str(tmp_path / "cache")
    found = datasets.load_dataset("parquet", data_files="out/*.parquet", split="train", cache_dir=cache)
    assert isinstance(found.features["image"], datasets.Image)
    assert [images.pixel_hash(row["image"]) for row in found] == [line["hash"] for line in lines]
    tars = datasets.load_dataset("webdataset", data_files="tars/*.tar", split="train", cache_dir=cache)
    assert [images.pixel_hash(row["png"]) for row in tars] == [line["hash"] for line in lines]
    assert [(row["txt"], row["json"]["seed"]) for row in tars] == [(line["prompt"], line["seed"]) for line in lines]


def test_runs_learn_from_them(t2i: Run, here: Path, call: list[str]) -> None:
    from training_kit import ddpm_config, read_log, save_autoencoder, text2image_config, train

    t2i(*call, "--shards", "parquet")
    for settings in (
        ddpm_config(here / "out" / "*.parquet", label=None),
        text2image_config(here / "out" / "*.parquet", save_autoencoder(here / "vae"), captions=CAPTIONS),
    ):
        run = here / settings.family
        assert (train(settings, run) / "unet" / "config.json").is_file()
        assert read_log(run)[-1]["images"] == 32


def test_a_row_group_is_bounded_in_rows_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader has to hold; and a shard of many groups is read back in its order."""
    path = tmp_path / "a.png"
    images.save(Image.new("RGB", (8, 8)), path)
    data = path.read_bytes()
    many = [ShardImage(f"{k:06d}", ".png", data, "a horse") for k in range(250)]
    for most, groups in ((10**9, [100, 100, 50]), (60 * len(data), [60, 60, 60, 60, 10])):
        monkeypatch.setattr("t2i.jobs.batch.shard_formats.ROW_BYTES", most)
        with (tmp_path / "a.parquet").open("wb") as file:
            FORMATS["parquet"].write(file, iter(many))
        footer = pq.read_metadata(tmp_path / "a.parquet")
        assert [footer.row_group(k).num_rows for k in range(footer.num_row_groups)] == groups
        assert list(FORMATS["parquet"].read(tmp_path / "a.parquet")) == [(p.key, p.data) for p in many]


# --- the same however they came ---


@pytest.mark.slow
def test_killed_twice_and_finished_on_two_processes_they_are_those_of_one_go(t2i: Run, here: Path) -> None:
    """Of one kind of file: who packs a shard does not depend on it, and below both are killed at every step."""
    call = ["--prompts", write_rows(here, 70), "-s", "5", "--batch-size", "3"]
    options = [*call, "--shards", "parquet", "--shard-size", "8"]
    assert t2i(*options, "-o", "whole/").code == 0
    folder = here / "out"
    kill_when_packed(start(*options, "-o", "out/"), folder, 1)
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    kill_when_packed(start(*options, "-o", "out/", launcher=TORCHRUN), folder, len(first) + 1)
    assert not (folder / "manifest.jsonl").exists()
    last = start(*options, "-o", "out/", launcher=TORCHRUN)
    out, err = last.communicate(timeout=900)
    assert last.returncode == 0, err
    assert shards(folder) == shards(here / "whole")
    assert len(shards(folder)) == 9 + 1
    assert all(path.stat().st_mtime_ns == before for path, before in first.items())  # what was there stayed
    assert len(out.split()) == len(set(out.split()))
    assert not [path for name in ("claims", "groups", "spool") for path in (folder / ".t2i-batch" / name).iterdir()]


def kill_when_packed(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """SIGKILL to it and all that it has started, once so many shards are there."""
    family = psutil.Process(process.pid)
    while len([path for path in folder.glob("*.*") if path.suffix in (".parquet", ".tar")]) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    for one in [*family.children(recursive=True), family]:
        one.kill()
    process.communicate()


class Killed(BaseException):
    """As SIGKILL, nothing catches it."""


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Be killed before the step-th change of a shard's files: its records, its name, what is cleared away."""
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return function(*arguments)

        return run

    patch.setattr(Shards, "_write_record", counted(Shards._write_record))
    patch.setattr(shards_module, "_give_name", counted(shards_module._give_name))
    patch.setattr(Ledger, "clear", counted(Ledger.clear))


@KINDS_OF_FILES
@pytest.mark.parametrize(("mended", "step"), [*((False, k) for k in range(1, 10)), *((True, k) for k in range(1, 7))])
def test_killed_at_any_step_of_packing_it_ends_as_in_one_go(
    t2i: Run, here: Path, call: list[str], kind: str, mended: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps make two shards; five make one anew that was without a picture.  One step later nothing is killed."""
    call += ["--shards", kind]
    t2i(*call, "-o", "whole/")
    with monkeypatch.context() as patch:
        if mended:
            fail_on("house", patch)
            assert t2i(*call).code == 3
            assert keys(next(iter(sorted((here / "out").glob("*0.*"))))) == ["1", "2"]
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        if step <= (5 if mended else 9):
            with pytest.raises(Killed):
                t2i(*call)
        else:
            assert t2i(*call).code == 0
    again = t2i(*call)
    assert again.code == 0, again.err
    assert shards(here / "out") == shards(here / "whole")
    assert not [path for name in ("claims", "groups", "spool") for path in (here / "out/.t2i-batch" / name).iterdir()]


# --- what is missing, broken, changed, another's ---


def fail_on(word: str, patch: pytest.MonkeyPatch) -> None:
    """Let pictures of prompts with this word come out as NaN."""
    draw_batch = PipelineRunner.draw

    def broken(self: PipelineRunner, batch: Any, *rest: Any) -> Any:
        x, blanked = draw_batch(self, batch, *rest)
        for k, job in enumerate(batch):
            if word in job.prompt:
                x[k] = float("nan")
        return x, blanked

    patch.setattr(PipelineRunner, "draw", broken)


@KINDS_OF_FILES
def test_what_failed_is_left_out_and_listed_and_a_later_run_makes_that_shard_anew(
    t2i: Run, here: Path, call: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call += ["--shards", kind]
    with monkeypatch.context() as patch:
        fail_on("house", patch)
        ran = t2i(*call)
        assert (ran.code, len(ran.lines)) == (3, 2), ran.err
        assert f"failed: {manifest(here / 'out')[2]['key']}: non-finite" in ran.err
        first, second = (here / line for line in ran.lines)
        assert (keys(first), keys(second)) == (["1", "2"], ["4", "5"])
        before = second.stat().st_mtime_ns
        tried = t2i(*call)  # and fails again: nothing changes
        assert (tried.code, tried.lines) == (3, []), tried.err
    assert [line["status"] for line in manifest(here / "out")] == ["done", "done", "failed", "done", "done"]
    again = t2i(*call, "--json")
    assert (again.code, json.loads(again.out)) == (0, {"path": str(first.relative_to(here)), "images": 3})
    assert "1 images drawn, 4 were there" in again.err
    assert keys(first) == ["1", "2", "3"]
    assert second.stat().st_mtime_ns == before
    t2i(*call, "-o", "whole/")
    assert shards(here / "out") == shards(here / "whole")


def test_blanked_pictures_are_left_out_and_a_shard_of_none_is_no_file(
    t2i: Run, here: Path, call: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_batch = PipelineRunner.draw

    def blank(self: PipelineRunner, batch: Any, *rest: Any) -> Any:
        return draw_batch(self, batch, *rest)[0], [job.seed > 3 for job in batch]

    monkeypatch.setattr(PipelineRunner, "draw", blank)
    for lines in (["out/data-000000.parquet"], []):
        ran = t2i(*call, "--shards", "parquet")
        assert (ran.code, ran.lines) == (3, lines), ran.err
        assert sorted(shards(here / "out")) == ["data-000000.parquet", "manifest.jsonl"]


@KINDS_OF_FILES
def test_a_shard_that_is_gone_or_torn_is_made_again(t2i: Run, here: Path, call: list[str], kind: str) -> None:
    """FAULTS 25."""
    call += ["--shards", kind]
    first, second = (here / line for line in t2i(*call).lines)
    whole = shards(here / "out")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-700])
    ran = t2i(*call)
    assert (ran.code, len(ran.lines)) == (0, 2), ran.err
    assert shards(here / "out") == whole
    assert t2i(*call).lines == []


def test_a_changed_list_changes_its_shards_alone(t2i: Run, here: Path, call: list[str]) -> None:
    call += ["--shards", "parquet"]
    first, second = (here / line for line in t2i(*call).lines)
    before = first.stat().st_mtime_ns
    (here / "list.txt").write_text("\n".join([*LIST[:4], "a fish", "a ship"]))
    ran = t2i(*call)
    assert (ran.code, ran.lines, first.stat().st_mtime_ns) == (0, ["out/data-000001.parquet"], before)
    assert "2 images drawn, 4 were there" in ran.err  # "a dog" is taken from the shard as it was
    assert [row["text"] for row in pq.read_table(second).to_pylist()] == ["a dog", "a fish", "a ship"]
    (here / "list.txt").write_text("\n".join(LIST[:2]))
    shorter = t2i(*call)
    assert (shorter.lines, keys(first)) == (["out/data-000000.parquet"], ["1", "2"])
    assert "data-000001.parquet belongs to an earlier, longer list" in shorter.err


@KINDS_OF_FILES
def test_nothing_of_anothers_is_overwritten(t2i: Run, here: Path, call: list[str], kind: str) -> None:
    """FAULTS 26."""
    call += ["--shards", kind]
    first, second = (here / line for line in t2i(*call).lines)
    (here / "new").mkdir()
    there = here / "new" / second.name
    there.write_bytes(b"mine")
    ran = t2i(*call, "-o", "new/")
    assert (ran.code, ran.lines, there.read_bytes()) == (2, [], b"mine")
    assert f"new/{second.name} exists already, and not from this batch" in ran.err
    assert list((here / "new").iterdir()) == [there]
    second.write_bytes(first.read_bytes())
    ran = t2i(*call)
    assert (ran.code, second.read_bytes()) == (2, first.read_bytes())
    assert f"{second.relative_to(here)} has been changed since" in ran.err


def test_a_file_that_comes_while_a_shard_is_packed_stays(here: Path) -> None:
    for name in ("shards", "spool"):
        (here / ".t2i-batch" / name).mkdir(parents=True)
    line = {"index": 0, "status": "done", "bytes": 3, "key": "1", "prompt": ""}
    shards = Shards(here, "webdataset", 3)
    path = shards.spool / "1.png"
    images.save(Image.new("RGB", (8, 8)), path)
    line["bytes"] = path.stat().st_size
    shards.check = lambda _: None  # type: ignore[method-assign]  # it has come after
    shards.path(0).write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        shards.pack(0, [(path, line)])
    assert shards.path(0).read_bytes() == b"mine"
    assert not list(here.rglob("*.tmp"))


def test_a_full_disk_loses_nothing_that_is_drawn(
    t2i: Run, here: Path, call: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call += ["--shards", "webdataset"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_give_name", full)
        ran = t2i(*call)
    assert (ran.code, ran.lines) == (1, [])
    assert "error: cannot write out/000000.tar: No space left on device\nhint: free some space" in ran.err
    assert not list((here / "out").rglob("*.tmp"))
    again = t2i(*call)
    assert (again.code, again.lines) == (0, ["out/000000.tar", "out/000001.tar"])
    assert "2 images drawn, 3 were there" in again.err


def test_another_kind_or_size_is_another_batch(t2i: Run, here: Path, call: list[str]) -> None:
    t2i(*call, "--shards", "parquet")
    for more, said in (
        (["--shards", "webdataset"], "shards was 'parquet', now 'webdataset'"),
        (["--shards", "parquet", "--shard-size", "2"], "shard_size was 3, now 2"),
    ):
        ran = t2i(*call, *more)
        assert (ran.code, ran.lines) == (2, [])
        assert said in ran.err
    assert "holds another batch" in t2i("--prompts", "list.txt", "-s", "1", "--batch-size", "2", "-o", "out/").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a horse", "--shards", "parquet", "-o", "x/"], "of a prompt file, and of nothing else"),
        (["--prompts", "list.txt", "a cat", "--shards", "parquet", "-o", "x/"], "and of nothing else"),
        (["--from", "a.png", "--shards", "parquet", "-o", "x/"], "and of nothing else"),
        (["--prompts", "-", "--shards", "parquet", "-o", "x/"], "and of nothing else"),
        (["--prompts", "no.txt", "--shards", "parquet", "-o", "x/"], "no.txt: no such file"),
        (["--prompts", "list.txt", "--shards", "parquet"], "--shards needs an output folder"),
        (["--prompts", "list.txt", "--shards", "parquet", "-o", "x"], "hint: --output x/"),
        (["--prompts", "list.txt", "--shards", "parquet", "-o", "x/{job}"], "a pattern names single images"),
        (["--prompts", "list.txt", "--shards", "parquet", "-o", "x/", "--grid"], "--grid makes one sheet"),
        (
            ["--prompts", "list.txt", "--shards", "parquet", "-o", "x/", "--overwrite"],
            "--overwrite: a batch draws missing images only",
        ),
        (["--prompts", "list.txt", "--shards", "zip", "-o", "x/"], "'zip' is not one of"),
        (["--prompts", "list.txt", "--shard-size", "5", "-o", "x/"], "--shard-size 5 without shards"),
        (
            ["--prompts", "list.txt", "--shards", "parquet", "--shard-size", "0", "-o", "x/"],
            "shard_size: got 0, allowed 1 to 100000",
        ),
        (["--prompts", "rows.jsonl", "--shards", "parquet", "-o", "x/"], "rows.jsonl, line 2: names its own file"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_made(
    t2i: Run, here: Path, call: list[str], arguments: list[str], said: str
) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "output": "b.png"}\n')
    ran = t2i(*arguments)
    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert sorted(path.name for path in here.iterdir()) == ["list.txt", "rows.jsonl"]
