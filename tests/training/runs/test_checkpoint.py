"""Checkpoints are intact, or reported and skipped (FAULTS 1, 2, 5, 6, 7, 9): every file, every way to damage it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.atomic import file_hash
from t2i.errors import CheckpointError
from t2i.training.runs import checkpoint as module
from t2i.training.runs.checkpoint import PARTS, Checkpoint, load_checkpoint, save_checkpoint, tensors_hash
from t2i.training.runs.run_folder import RunFolder

FILES = [*(f"{part}.safetensors" for part in PARTS), "state.json", "manifest.json"]


def make(images_seen: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(images_seen)
    tensors: dict[str, dict[str, Tensor]] = {
        "model": {"w": torch.randn(4, 3, generator=draw), "count": torch.tensor(images_seen)},
        # in memory in another order than it is stored
        "ema": {"w": torch.randn(2, 3, 4, 4, generator=draw).to(memory_format=torch.channels_last)},
        "optimizer": {"w.step": torch.tensor(3.0), "w.exp_avg": torch.randn(4, 3, generator=draw) * 1e-30},
    }
    return Checkpoint(tensors, {"images_seen": images_seen, "note": "ü", "rate": 0.1})


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    for part in a.tensors:
        assert tensors_hash(a.tensors[part].items()) == tensors_hash(b.tensors[part].items())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints at 10 and 20 images."""
    run = RunFolder(tmp_path / "run")
    for images_seen in (10, 20):
        run.save(make(images_seen), keep=9)
    return run


def newest(run: RunFolder) -> tuple[int | None, list[str]]:
    """Images seen of the newest whole checkpoint, and what was said."""
    said: list[str] = []
    found = run.newest(said.append)
    return (None if found is None else found.state["images_seen"]), said


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "000000000010", make(10))
    assert_equal(load_checkpoint(tmp_path / "000000000010"), make(10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000010"]
    assert sorted(p.name for p in (tmp_path / "000000000010").iterdir()) == sorted(FILES)


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "10", make(99))
    save_checkpoint(tmp_path / "10", make(10))
    assert_equal(load_checkpoint(tmp_path / "10"), make(10))


def test_tensors_hash_sees_every_difference() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    variants = [
        base,
        base | {"a": torch.tensor([1.0, 2.0000002])},
        base | {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        base | {"b": torch.zeros(3, 2)},
        base | {"b": -torch.zeros(2, 3)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
    ]
    assert len({tensors_hash(v.items()) for v in variants}) == len(variants)
    assert tensors_hash(base.items()) == tensors_hash(reversed(base.items()))


def test_manifest_describes_every_file_and_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is forced to the disk, then the manifest, then the folder, and only then does the rename show it."""
    final = tmp_path / "000000000010"
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "_sync", lambda path: synced.append((path.name, final.exists())))
    save_checkpoint(final, make(10))
    *files, manifest, folder, parent = synced
    assert sorted(files) == sorted((name, False) for name in FILES if name != "manifest.json")
    assert manifest == ("manifest.json", False)
    assert folder == (f"{final.name}.partial", False)
    assert parent == (tmp_path.name, True)
    described = json.loads((final / "manifest.json").read_text())["files"]
    assert described == {
        name: {"size": (final / name).stat().st_size, "sha256": file_hash(final / name)}
        for name in FILES
        if name != "manifest.json"
    }


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_a_checksum_mismatch(run: RunFolder, name: str) -> None:
    """FAULTS 5: whatever the file, and the one before is used."""
    folder = run.saved()[0]
    data = bytearray((folder / name).read_bytes())
    place = data.index(b'"sha256": "') + 15 if name == "manifest.json" else len(data) // 2
    data[place] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert caught.value.message == f"checksum mismatch: {name}"
    assert newest(run) == (10, [f"skipped {folder}: checksum mismatch: {name}"])


@pytest.mark.parametrize("bit", [1, 128])
def test_any_flipped_byte_of_the_manifest_is_noticed_or_harmless(tmp_path: Path, bit: int) -> None:
    folder = tmp_path / "10"
    save_checkpoint(folder, make(10))
    whole = (folder / "manifest.json").read_bytes()
    messages = []
    for place in range(len(whole)):
        (folder / "manifest.json").write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            assert_equal(load_checkpoint(folder), make(10))
        except CheckpointError as e:
            messages.append(e.message)
    assert all("manifest.json" in message or "format" in message for message in messages)
    assert len(messages) > 0.7 * len(whole)  # the rest is white space, and the name of the manifest's own checksum


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[: len(data) // 2], "cut short"),
    "empty": (lambda _: b"", "is empty"),
    "git-lfs pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "git-lfs pointer",
    ),
    "longer": (lambda data: data + b"\0", "checksum mismatch"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_by_kind_and_file(run: RunFolder, name: str, kind: str) -> None:
    """FAULTS 6: three different messages."""
    folder = run.saved()[0]
    damage, message = DAMAGE[kind]
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert name in caught.value.message
    if name != "manifest.json":
        assert message in caught.value.message
        assert sum(text in caught.value.message for _, text in DAMAGE.values()) == 1
    assert newest(run)[0] == 10


@pytest.mark.parametrize("name", FILES)
def test_missing_part_is_refused_by_name(run: RunFolder, name: str) -> None:
    """FAULTS 7: an optimiser or average that is gone is never made anew in silence."""
    for folder in run.saved():
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(run.saved()[0])
    said: list[str] = []
    with pytest.raises(CheckpointError, match="no intact checkpoint is left") as caught:
        run.newest(said.append)
    assert "--fresh" in str(caught.value)
    assert len(said) == 2
    assert all(name in line for line in said)


def test_part_missing_from_the_manifest_too(run: RunFolder) -> None:
    """A writer that never had an EMA would leave this."""
    folder = run.saved()[0]
    (folder / "ema.safetensors").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["ema.safetensors"], manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing"):
        load_checkpoint(folder)


def test_other_format_version_is_refused(run: RunFolder) -> None:
    folder = run.saved()[0]
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "files": {}}))
    with pytest.raises(CheckpointError, match="format 2; this version of t2i reads 1"):
        load_checkpoint(folder)


def test_stray_files_are_ignored_and_kept(run: RunFolder) -> None:
    """FAULTS 9."""
    for place in (run.checkpoints, run.saved()[0]):
        (place / "notes").write_text("mine")
        (place / ".DS_Store").write_bytes(b"\0")
    (run.checkpoints / "old").mkdir()
    (run.checkpoints / "000000000099").write_text("a file, not a folder")
    assert newest(run) == (20, [])
    run.save(make(30), keep=1)
    assert newest(run) == (30, [])
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        ".DS_Store",
        "000000000030",
        "000000000099",
        "notes",
        "old",
    ]


def test_unfinished_one_is_named_passed_over_and_written_anew(run: RunFolder) -> None:
    """FAULTS 1: what a process that was killed while writing leaves behind."""
    partial = run.checkpoints / "000000000030.partial"
    shutil.copytree(run.saved()[0], partial)
    (partial / "manifest.json").unlink()
    assert newest(run) == (20, [f"skipped {partial}: it was not finished"])
    run.save(make(30), keep=2)
    assert newest(run) == (30, [])
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["000000000020", "000000000030"]


def test_no_checkpoint_yet_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nothing").newest() is None


def test_keeps_the_newest(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for images_seen in (10, 20, 30, 40):
        run.save(make(images_seen), keep=2)
    assert [int(p.name) for p in run.saved()] == [40, 30]


def test_prunes_only_after_the_new_one_is_complete(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 4: a disk that is full when the new one is written leaves the old ones, and nothing half-written."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(CheckpointError) as caught:
        run.save(make(30), keep=1)
    assert "No space left on device" in caught.value.message
    assert "it needs 0.0 MB" in caught.value.message
    assert "same command again" in str(caught.value.hint)
    assert newest(run) == (20, [])
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["000000000010", "000000000020"]


def test_says_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_sync", full)
    big = Checkpoint({part: {"w": torch.zeros(10**6)} for part in PARTS}, {"images_seen": 1})
    with pytest.raises(CheckpointError, match=r"it needs 12\.0 MB"):
        save_checkpoint(tmp_path / "1", big)


def test_nothing_is_unpickled(run: RunFolder, tmp_path: Path) -> None:
    """A pickle under the right name, with the right checksum, is refused by its content."""
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "canary",)  # type: ignore[return-value]

    folder = run.saved()[0]
    file = folder / "model.safetensors"
    file.write_bytes(pickle.dumps(Payload()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": file_hash(file)}
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert newest(run)[0] == 10
    assert not (tmp_path / "canary").exists()
