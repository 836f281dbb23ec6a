"""`t2i models`: the Hub's cache as the Hub's library lays it out, and a small Hub that answers over HTTP."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_kit import COMMIT, REFUSED, WEIGHTS, HubServer, cache, hub, put_into_cache, run_models

from t2i.cli.main import main
from t2i.cli.models import in_units
from t2i.model_files import registry

__all__ = ["cache", "hub"]  # fixtures

CARD = "---\nlicense: openrail\ntags: [x]\n---\n# A model\n"


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    code, out, err = ask(capsys, *words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def filled(cache: Path, tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A cache with a model of the zoo, one that is not, one whose weights are missing, and no pipeline at all."""
    put_into_cache(cache, registry.ZOO["sd15"].id, tiny_pipeline)
    other = put_into_cache(cache, "owner/tiny", tiny_pipeline)
    (other / "snapshots" / COMMIT / "README.md").write_text(CARD)
    partly = put_into_cache(cache, "owner/partly", tiny_pipeline)
    (partly / "snapshots" / COMMIT / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    put_into_cache(cache, "gpt2", encoder)
    return cache


def test_list_shows_the_zoo_and_what_else_is_in_the_cache(
    filled: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {fact["name"]: fact for fact in facts(capsys, "list")}
    assert list(found) == [*registry.NAMES, "gpt2", "owner/partly", "owner/tiny"]
    size = sum(path.stat().st_size for path in tiny_pipeline.rglob("*") if path.is_file())
    states = {name: fact["state"] for name, fact in found.items() if fact["state"] != "absent"}
    assert states == {
        "mini": "built in",
        "sd15": "here",
        "gpt2": "no pipeline",
        "owner/partly": "partly here",
        "owner/tiny": "here",
    }
    assert found["sd15"]["bytes"] == size
    assert found["owner/tiny"]["license"] == "openrail"  # from the model's own card
    assert (found["flux-dev"]["gated"], found["flux-dev"]["license"]) == (True, "non-commercial")
    assert (found["sdxl"]["gated"], found["sdxl"]["license"], found["sdxl"]["pinned"]) == (None, None, None)
    code, out, _ = ask(capsys, "list")
    assert code == 0
    assert str(filled) in out
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()[1:]}
    assert rows["sd15"] == f"here {in_units(size)}"
    assert rows["flux-dev"] == "absent · non-commercial · gated"


def test_an_empty_cache_and_a_damaged_one_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    assert len(facts(capsys, "list")) == len(registry.NAMES)
    (tmp_path / "hub" / "models--owner--broken").mkdir(parents=True)
    (tmp_path / "hub" / "stray.txt").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert len(facts(capsys, "list")) == len(registry.NAMES)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "stray.txt"))
    code, _, said = ask(capsys, "list")
    assert (code, "HF_HUB_CACHE sets the folder" in said) == (1, True)


def test_info_shows_id_defaults_and_files(
    filled: Path, capsys: pytest.CaptureFixture[str], tiny_pipeline: Path
) -> None:
    (found,) = facts(capsys, "info", "sd15")
    assert (found["id"], found["pinned"]) == (registry.ZOO["sd15"].id, None)
    assert found["defaults"]["steps"] == 50
    (revision,) = found["revisions"]
    assert (revision["commit"], revision["refs"]) == (COMMIT, ["main"])
    expected = {p.relative_to(tiny_pipeline).as_posix(): p.stat().st_size for p in tiny_pipeline.rglob("*.*")}
    assert revision["files"] == expected
    (mini,) = facts(capsys, "info", "mini")
    assert (mini["id"], mini["state"], mini["defaults"]["steps"]) == (None, "built in", 20)
    assert "unet/config.json" in mini["revisions"][0]["files"]
    code, out, _ = ask(capsys, "info", "sdxl")
    assert code == 0
    assert "stabilityai/stable-diffusion-xl-base-1.0" in out
    assert "size 1024x1024" in out
    assert facts(capsys, "info", "gpt2")[0]["state"] == "no pipeline"


def test_info_of_what_nobody_knows_is_4(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("owner/absent", "sd51", "./nowhere"):
        code, out, said = ask(capsys, "info", name)
        assert (code, out) == (4, ""), said
    code, _, said = ask(capsys, "info", "sdxl", "--online")
    assert (code, "leave --online out" in said) == (4, True)


def test_rm_deletes_after_a_yes_and_says_how_much(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That all models here have the same commit is a trap: by it alone, the wrong one would go."""
    folder = filled / "models--owner--tiny"
    size = sum(path.stat().st_size for path in (folder / "blobs").iterdir()) + len(CARD)
    for typed, code in (("n\n", 1), ("", 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        got, out, said = ask(capsys, "rm", "owner/tiny")
        assert (got, out, folder.exists()) == (code, "", True)
        assert f"Delete owner/tiny ({in_units(size)}) from the cache?" in said
    assert "--yes" in said
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, out, said = ask(capsys, "rm", "owner/tiny")
    assert (code, out, "error" in said) == (0, f"deleted owner/tiny: {in_units(size)} freed\n", False), said
    assert not folder.exists()
    (gone,) = facts(capsys, "rm", "sd15", "--yes")
    assert (gone["id"], gone["revisions"], gone["freed"] > 100_000) == (registry.ZOO["sd15"].id, [COMMIT], True)
    assert (filled / "models--owner--partly").exists()
    assert {fact["name"] for fact in facts(capsys, "list")} == {*registry.NAMES, "gpt2", "owner/partly"}


def test_rm_of_one_revision_leaves_what_the_other_shares(
    cache: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put_into_cache(cache, "owner/tiny", tiny_pipeline)
    older = "f" * 40
    (folder / "snapshots" / older / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):
        link = folder / "snapshots" / COMMIT / name
        (folder / "snapshots" / older / name).symlink_to(link.readlink())
    code, _, said = ask(capsys, "rm", "owner/tiny", "--revision", "v9", "--yes")
    assert (code, "at revision v9" in said) == (4, True)
    (gone,) = facts(capsys, "rm", "owner/tiny", "--revision", older, "--yes")
    assert (gone["revisions"], gone["freed"]) == ([older], 0)
    assert facts(capsys, "info", "owner/tiny")[0]["state"] == "here"


def test_rm_refuses_mini_folders_and_what_is_not_there(
    cache: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = ask(capsys, "rm", "mini", "--yes")
    assert (code, "mini is part of t2i" in said) == (2, True)
    code, _, said = ask(capsys, "rm", str(tiny_pipeline), "--yes")
    assert (code, "nothing was deleted" in said) == (2, True)
    code, _, said = ask(capsys, "rm", "sdxl", "--yes")
    assert (code, "nothing to delete" in said) == (4, True)
    assert registry.MINI.is_dir()
    assert tiny_pipeline.is_dir()


def test_pull_without_a_network_is_4_and_says_what_gets_it(
    cache: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, said = ask(capsys, "pull", "sd15", "--revision", "v1")
    assert (code, out) == (4, "")
    assert "`t2i models pull sd15 --revision v1` gets it" in said
    code, _, said = ask(capsys, "pull", str(tiny_pipeline))
    assert (code, "on this machine already" in said) == (2, True)
    assert ask(capsys, "pull", "mini")[:2] == (0, f"{registry.MINI}\n")
    put_into_cache(cache, "owner/tiny", tiny_pipeline)
    (found,) = facts(capsys, "pull", "owner/tiny")
    assert (found["id"], found["revision"]) == ("owner/tiny", COMMIT)


def test_a_pinned_revision_is_what_a_name_means(
    cache: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_into_cache(cache, "owner/tiny", tiny_pipeline)
    known = registry.Entry("owner/tiny", registry.Defaults(), revision=COMMIT)
    monkeypatch.setitem(registry.ZOO, "sd15", known)
    assert facts(capsys, "pull", "sd15")[0]["revision"] == COMMIT
    monkeypatch.setitem(registry.ZOO, "sd15", registry.Entry("owner/tiny", registry.Defaults(), revision="0" * 40))
    code, _, said = ask(capsys, "pull", "sd15")
    assert (code, f"at revision {'0' * 40}" in said) == (4, True)
    assert ask(capsys, "pull", "owner/tiny")[0] == 0  # the id itself means the newest


@pytest.mark.slow  # a process of its own, over HTTP
def test_pull_gets_safetensors_and_configs_alone(hub: HubServer, tmp_path: Path) -> None:
    """From a Hub that has much else, and says of what it has not why."""
    junk = ("unet/diffusion_pytorch_model.bin", "model.ckpt", "photo.png", "unet/diffusion_pytorch_model.onnx")
    hub.models["owner/tiny"] = hub.models["owner/tiny"] | dict.fromkeys(junk, b"junk")
    calls = [["back", "pull", "owner/tiny", "--json"], *(["back", "pull", model] for model in REFUSED)]
    pulled, *refused, online, gone = run_models(
        hub,
        tmp_path,
        *calls,
        ["back", "info", "owner/tiny", "--online", "--json"],
        ["gone", "info", "sdxl", "--online"],
    )
    assert pulled[0] == 0, pulled[2]
    found = json.loads(pulled[1])
    assert found["revision"] == "0123456789abcdef0123456789abcdef01234567"
    here = {path.relative_to(found["path"]).as_posix() for path in Path(found["path"]).rglob("*") if path.is_file()}
    assert here.isdisjoint(junk)
    assert {WEIGHTS, "model_index.json", "tokenizer/tokenizer.json"} <= here
    assert set(hub.asked).isdisjoint(junk)
    for (code, out, said), word in zip(refused, ("is gated", "no model", "answered 500"), strict=True):
        assert (code, out, word in said) == (4, "", True), said
    said = json.loads(online[1])
    assert (said["gated"], said["newest"], said["state"]) == (False, found["revision"], "here")
    assert (gone[0], gone[1]) == (4, "")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_999, "1.0 MB"), (5_240_000_000, "5.2 GB")]
)
def test_sizes_are_said_in_units(size: int, text: str) -> None:
    assert in_units(size) == text
