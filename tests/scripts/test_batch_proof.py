"""The proof of long batches: it passes where both batches are whole and the same, and fails for everything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts are run as files, so they are no package

import batch_proof


def draw(folder: Path, count: int, changed: str = "") -> None:
    """Write the files of a batch of `count` images, one of which differs."""
    (folder / ".t2i-batch").mkdir(parents=True)
    (folder / ".t2i-batch" / "begun").write_text(folder.name)  # of no interest
    for k in range(count):
        (folder / f"{k}.png").write_text(changed if k == 1 else str(k))
    (folder / "manifest.jsonl").write_text(count * '{"status": "done"}\n')


@pytest.mark.parametrize(
    ("counts", "changed", "said", "passed"),
    [
        ((3, 3), "1", "4 equal byte for byte, 0 not", True),
        ((3, 3), "x", "3 equal byte for byte, 1 not\ndiffers: 1.png", False),
        ((3, 2), "1", "2 equal byte for byte, 2 not\ndiffers: 2.png\ndiffers: manifest.jsonl", False),
        ((2, 2), "1", "3 equal byte for byte, 0 not", False),  # the same, and not whole
    ],
)
def test_it_passes_where_both_are_whole_and_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: tuple[int, int], changed: str, said: str, passed: bool
) -> None:
    draw(tmp_path / "A", counts[0], "1")
    draw(tmp_path / "B", counts[1], changed)
    attempt = batch_proof.Attempt("A", 1, "done", batch_proof.images(tmp_path / "A"), 12.4)
    assert batch_proof.report(tmp_path, 3, [attempt]) == passed
    out = capsys.readouterr().out
    assert said in out
    assert f"| A | 1 | done at {counts[0]} | 12 |" in out


def test_its_list_is_the_same_for_every_run_and_no_two_rows_are_alike(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        batch_proof.write_prompts(tmp_path / name, 1000)
    text = (tmp_path / "a.jsonl").read_text()
    assert text == (tmp_path / "b.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len({(row["prompt"], row["seed"]) for row in rows}) == 1000
    assert {row["seed"] for row in rows} == set(range(20))


def test_a_command_that_fails_or_ends_too_early_ends_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(code: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(batch_proof, "start", lambda *_: start(3))
    with pytest.raises(SystemExit, match="A: exit 3"):
        batch_proof.run(tmp_path / "list", tmp_path / "A", 1, [])
    monkeypatch.setattr(batch_proof, "start", lambda *_: start(0))
    with pytest.raises(SystemExit, match="it ended with 0 images, before it was to be killed at 5"):
        batch_proof.run(tmp_path / "list", tmp_path / "A", 1, [], kill_at=5)
