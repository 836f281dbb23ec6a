"""Long batches, `t2i generate --prompts FILE -o FOLDER/`: killed, shared, run again, and always the same images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from batch_kit import ROOT, TORCHRUN, start, write_rows
from generate_kit import Run
from PIL import Image

from t2i.errors import NonFinite
from t2i.imaging import images
from t2i.jobs.batch.batch_models import FIRST
from t2i.jobs.batch.file_locks import claim
from t2i.pipelines.text_to_image.runner import PipelineRunner


def pictures(folder: Path) -> dict[str, bytes]:
    """Every image's name and pixels."""
    return {path.relative_to(folder).as_posix(): images.decode(path).tobytes() for path in folder.rglob("*.png")}


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def kill_when(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """SIGKILL to it and all that it has started, once so many images are there."""
    family = psutil.Process(process.pid)
    while len(list(folder.glob("*.png"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    for one in [*family.children(recursive=True), family]:
        one.kill()
    process.communicate()


@pytest.mark.slow
def test_killed_twice_and_run_on_one_and_two_processes_it_ends_as_in_one_go(t2i: Run, here: Path) -> None:
    rows = write_rows(here, 120)
    options = ["--prompts", rows, "-s", "5", "--batch-size", "3"]
    ran = t2i(*options, "-o", "whole/")
    assert (ran.code, len(ran.lines)) == (0, 120), ran.err
    whole, folder = pictures(here / "whole"), here / "out"
    kill_when(start(*options, "-o", "out/"), folder, 4)
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert not (folder / "manifest.jsonl").exists()
    kill_when(start(*options, "-o", "out/", launcher=TORCHRUN), folder, len(first) + 4)
    assert len(list(folder.glob("*.png"))) < 120
    last = start(*options, "-o", "out/", launcher=TORCHRUN)
    out, err = last.communicate(timeout=900)
    assert last.returncode == 0, err
    assert "images drawn" in err
    assert pictures(folder) == whole
    assert all(path.stat().st_mtime_ns == before for path, before in first.items())  # what was there stayed
    assert len(set(out.split())) == len(out.split()) == int(err.partition(" images drawn")[0].split()[-1])
    assert manifest(folder) == manifest(here / "whole")
    assert not list((folder / ".t2i-batch" / "claims").iterdir())


def test_the_manifest_tells_of_every_image_in_the_order_of_the_list(t2i: Run, here: Path) -> None:
    rows = write_rows(here, 13)
    assert t2i("--prompts", rows, "-s", "5", "--batch-size", "3", "-o", "out/").code == 0
    lines = manifest(here / "out")
    assert [(line["index"], line["seed"], line["status"]) for line in lines] == [(k, 5 + k, "done") for k in range(13)]
    assert [line["prompt"].split()[-1] for line in lines] == [str(k) for k in range(13)]
    for line in lines:
        path = here / "out" / line["file"]
        assert path.name == f"{line['index'] + 1:06d}-{line['job']}.png"
        assert images.pixel_hash(images.decode(path)) == line["hash"]
    assert len({line["job"] for line in lines}) == 13


def test_the_same_command_again_makes_what_is_missing_or_broken_alone(t2i: Run, here: Path) -> None:
    """FAULTS 25. Without a seed the folder's own holds; what is broken is drawn beside the same others, bit for bit."""
    call = ["--prompts", write_rows(here, 9), "--batch-size", "4", "-o", "out/"]
    first = t2i(*call)
    whole = pictures(here / "out")
    again = t2i(*call)
    assert (first.code, len(first.lines), again.code, again.lines) == (0, 9, 0, []), again.err
    assert "0 images drawn, 9 were there" in again.err
    gone, torn = (here / line for line in (first.lines[1], first.lines[6]))
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:200])
    mended = t2i(*call)
    assert (mended.code, mended.lines) == (0, [first.lines[1], first.lines[6]])
    assert pictures(here / "out") == whole


def test_what_a_killed_run_had_half_written_is_swept_away(t2i: Run, here: Path) -> None:
    (here / "list.txt").write_text("a horse\na cat\n")
    call = ["--prompts", "list.txt", "-s", "1", "-o", "out/{prompt}/{job}.png"]
    assert t2i(*call).code == 0
    left = [here / "out" / name / ".t2i-0123456789abcdef.tmp" for name in ("", "a-cat", ".t2i-batch/groups")]
    mine, of_now = here / "out" / ".t2i-notes", here / "out" / "a-horse" / ".t2i-fedcba9876543210.tmp"
    for path in (*left, mine, of_now):
        path.write_bytes(b"half")
    os.utime(of_now, (time.time() + 60, time.time() + 60))  # as if it had come after the run began
    assert t2i(*call).code == 0
    assert {path for path in (here / "out").rglob(".t2i-*") if path.is_file()} == {mine, of_now}


def test_without_its_records_a_folder_is_not_drawn_again(t2i: Run, here: Path) -> None:
    """A kill between an image and its group's record; a record that a failing disk has torn."""
    call = ["--prompts", write_rows(here, 9), "-s", "1", "--batch-size", "4", "-o", "out/"]
    t2i(*call)
    lines, (lost, torn, _) = manifest(here / "out"), sorted((here / "out/.t2i-batch/groups").iterdir())
    lost.unlink()
    torn.write_text(torn.read_text()[:-30])
    (here / "out" / "manifest.jsonl").unlink()
    ran = t2i(*call)
    assert (ran.code, ran.lines, manifest(here / "out")) == (0, [], lines)


def test_a_changed_row_is_drawn_and_the_others_stay(t2i: Run, here: Path) -> None:
    (here / "list.txt").write_text("a horse\na cat\na dog\n")
    t2i("--prompts", "list.txt", "-s", "1", "-o", "out/")
    (here / "list.txt").write_text("a horse\na bird\na dog\n")
    ran = t2i("--prompts", "list.txt", "-s", "1", "-o", "out/")
    assert [path.split("-")[0] for path in ran.lines] == ["out/000002"]
    assert [line["prompt"] for line in manifest(here / "out")] == ["a horse", "a bird", "a dog"]


def test_a_folder_is_of_one_batch_and_the_default_folder_of_one_command(t2i: Run, here: Path) -> None:
    (here / "list.txt").write_text("a horse\na cat\n")
    call = ["--prompts", "list.txt", "-s", "1"]
    t2i(*call, "-o", "out/")
    for more, said in ((["-n", "a dog"], "negative was '', now 'a dog'"), (["-s", "2"], "seed was 1, now 1, 2")):
        ran = t2i(*call, *more, "-o", "out/")
        assert (ran.code, ran.lines) == (2, [])
        assert said in ran.err
    a, b, c = t2i(*call), t2i(*call), t2i(*call, "-n", "a dog")
    assert (len(a.lines), len(b.lines), len(c.lines)) == (2, 0, 2)
    assert a.lines[0].startswith("outputs/list-")
    assert Path(a.lines[0]).parent != Path(c.lines[0]).parent


def test_patterns_with_a_job_are_batches_and_those_without_are_as_ever(t2i: Run, here: Path) -> None:
    (here / "list.txt").write_text("a horse\na cat\n")
    ran = t2i("--prompts", "list.txt", "-s", "1", "-o", "out/{prompt}/{seed}-{job}.webp", "--json")
    record = json.loads(ran.lines[1])
    assert record["path"].startswith("out/a-cat/2-")
    assert (here / record["path"]).is_file()
    assert len(manifest(here / "out")) == 2
    assert t2i("--prompts", "list.txt", "-s", "1", "-o", "x/{prompt}-{seed}.png").lines == [
        "x/a-horse-1.png",
        "x/a-cat-2.png",
    ]
    assert "--output: {job} is for batches only" in t2i("a horse", "-o", "out/{job}.png").err
    assert "{date}" in t2i("--prompts", "list.txt", "-o", "out/{date}/{job}").err


# --- failures ---


def test_what_cannot_be_drawn_is_exit_3_and_listed_and_tried_again(
    t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "list.txt").write_text("a horse\na cat\na dog\na bird\na fish\n")
    call = ["--prompts", "list.txt", "-s", "1", "--batch-size", "2", "-o", "out/"]
    draw_batch = PipelineRunner.draw

    def broken(self: PipelineRunner, batch: Any, *rest: Any) -> Any:
        x, blanked = draw_batch(self, batch, *rest)
        for k, job in enumerate(batch):
            if "dog" in job.prompt:
                x[k] = float("nan")
        return x, blanked

    with monkeypatch.context() as patch:
        patch.setattr(PipelineRunner, "draw", broken)
        ran = t2i(*call)
    assert (ran.code, len(ran.lines)) == (3, 4), ran.err
    assert "failed: 000003-" in ran.err
    assert "1 of 5 images could not be drawn" in ran.err
    lines = manifest(here / "out")
    assert [line["status"] for line in lines] == ["done", "done", "failed", "done", "done"]
    assert "non-finite" in lines[2]["error"]
    again = t2i(*call)
    assert (again.code, [path[:10] for path in again.lines]) == (0, ["out/000003"])
    assert [line["status"] for line in manifest(here / "out")] == ["done"] * 5


def test_where_nothing_can_be_drawn_the_cause_is_the_exit(
    t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "list.txt").write_text("a horse\n" * 40)

    def broken(*_: Any) -> Any:
        tried.append(1)
        raise NonFinite("non-finite image", "try --dtype float32")

    tried: list[int] = []
    monkeypatch.setattr(PipelineRunner, "draw", broken)
    ran = t2i("--prompts", "list.txt", "-s", "1", "--batch-size", "1", "-o", "out/")
    assert (ran.code, "try --dtype float32" in ran.err, len(tried)) == (1, True, 8)


def test_a_file_that_another_picture_has_is_never_overwritten(t2i: Run, here: Path) -> None:
    (here / "out").mkdir()
    Image.new("RGB", (8, 8), "red").save(here / "out" / "mine.png")
    before = (here / "out" / "mine.png").read_bytes()
    rows = [{"prompt": "a horse", "output": "mine.png"}, {"prompt": "a cat", "output": "b.png", "batch_count": 2}]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = t2i("--prompts", "rows.jsonl", "-s", "1", "-o", "out/")
    assert (ran.code, ran.lines) == (3, ["out/b-1.png", "out/b-2.png"])
    assert "mine.png exists already" in ran.err
    assert (here / "out" / "mine.png").read_bytes() == before


def test_several_processes_share_only_what_can_be_shared(t2i: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = t2i("a horse", "-o", "out/")
    assert (ran.code, "--prompts FILE --output FOLDER/" in ran.err) == (2, True)


def test_what_the_model_cannot_take_is_said_before_anything_is_drawn(t2i: Run, here: Path) -> None:
    rows = [{"prompt": "a horse"}] * FIRST + [{"prompt": "a cat", "size": size} for size in ("40x32", "33x32")]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = t2i("--prompts", "rows.jsonl", "-o", "out/")
    assert (ran.code, ran.lines, (here / "out").exists()) == (2, [], False)
    assert f"error: rows.jsonl, line {FIRST + 2}: width: got 33, this model needs a multiple of 8" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("refused", [["--size", "33x32"], ["-o", "{date}/{job}"], ["--overwrite"]])
def test_what_is_refused_is_said_once_and_all_processes_leave(t2i: Run, here: Path, refused: list[str]) -> None:
    (here / "list.txt").write_text("a horse\na cat\n")
    process = start("--prompts", "list.txt", "-o", "out/", *refused, launcher=TORCHRUN)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out, (here / "out").exists()) == (1, "", False)  # torchrun's own code is always 1
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
    assert "gloo" not in err.lower()
    assert "exitcode  : 2" in err.partition("Root Cause")[2]
    assert "rank      : 0" in err.partition("Root Cause")[2]


# --- claims ---


def test_a_claim_is_free_as_soon_as_its_owner_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    code = "import sys, time; from pathlib import Path; from t2i.jobs.batch.file_locks import claim\n"
    code += "with claim(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(600)"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"True\n"
    with claim(path) as ours:
        assert not ours
    other.kill()
    other.communicate()
    assert path.exists()  # it was left behind, and is taken over
    with claim(path) as ours:
        assert ours
        with claim(path) as again:
            assert not again
    assert not path.exists()


# --- a long list ---

DRY = """
import resource, sys
from t2i.jobs.batch.job_list import make_job_list
from t2i.jobs.from_options import make_request

request = make_request({"prompt_file": sys.argv[1], "seed": 5, "output": "big/", "shards": "parquet"})
job_list = make_job_list(request)
count = 0
for share in job_list.shares(lambda item: 8):
    for group in share:
        count += len(group.items)
print(count, group.items[-1].index, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_million_rows_are_planned_grouped_and_named_in_the_memory_of_a_thousand(here: Path) -> None:
    """Into shards: what is drawn into files holds a group at a time, and not all groups of a shard."""
    peaks = []
    for count in (1000, 1_000_000):
        with (here / "rows.jsonl").open("w") as file:
            file.writelines(f'{{"prompt": "a {{red|blue}} horse, number {k}"}}\n' for k in range(count))
        env = os.environ | {"PYTHONPATH": str(ROOT), "T2I_MODEL": "mini"}
        ran = subprocess.run(
            [sys.executable, "-c", DRY, "rows.jsonl"], env=env, capture_output=True, text=True, check=True
        )
        found, last, peak = map(int, ran.stdout.split())
        assert (found, last) == (count, count - 1)
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8  # MB; the texts alone are 40
