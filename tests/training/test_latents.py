"""Cached latents: right, reused, and refused when they are of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from training_kit import AUTOENCODER, SIZE

from t2i.config import AutoencoderModel
from t2i.data.memory_table import ImageTable
from t2i.errors import DataError
from t2i.training import latents as module
from t2i.training.families.autoencoder import build_autoencoder
from t2i.training.latents import cached_latents, encode
from t2i.training.runs.checkpoint import tensors_hash


def make_table(size: int = SIZE, seed: int = 0, count: int = 5) -> ImageTable:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    return ImageTable(pixels, {}, torch.arange(count), "data")


def make_vae(seed: int = 0, scaling_factor: float = 1.0) -> AutoencoderKL:
    vae = build_autoencoder(AutoencoderModel(**AUTOENCODER["model"]), SIZE, seed).eval()
    vae.register_to_config(scaling_factor=scaling_factor)
    return vae


@torch.no_grad()
def one_by_one(vae: AutoencoderKL, table: ImageTable) -> torch.Tensor:
    """The slow way: each image and each mirrored image alone."""
    x = table.pixels.float() / 127.5 - 1
    rows = [torch.cat([vae.encode(i[None]).latent_dist.mean for i in half]) for half in (x, x.flip(3))]
    return torch.stack(rows) * vae.config.scaling_factor


@pytest.mark.parametrize("batch", [2, 64])
def test_both_flips_are_encoded_with_the_scale_and_in_order(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """(2, N, C, h, w) float16; the number of images at once does not matter."""
    monkeypatch.setattr(module, "BATCH", batch)
    table, vae = make_table(), make_vae(scaling_factor=0.5)
    found = encode(vae, table, "no", False)
    expected = one_by_one(vae, table)
    assert found.shape == (2, 5, 4, SIZE // 2, SIZE // 2)
    assert found.dtype == torch.float16
    assert (found.float() - expected).abs().max() < 1e-3 * expected.abs().max()
    # and the two halves differ: the mirrored image is encoded, not its latent mirrored
    assert (found[1].float() - expected[0]).abs().max() > 0.1 * expected.abs().max()
    assert (found[1].float() - expected[0].flip(3)).abs().max() > 0.01 * expected.abs().max()


def test_encoded_once_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table, vae = tmp_path / "latents", make_table(), make_vae()
    made = cached_latents(vae, table, folder, "no", False)
    monkeypatch.setattr(module, "encode", None)  # would fail if it were called
    read = cached_latents(make_vae(), make_table(), folder, "no", False)
    assert torch.equal(made, read)
    assert sorted(p.name for p in folder.iterdir()) == ["latents.safetensors", "manifest.json"]


def test_manifest_says_what_they_are_of(tmp_path: Path) -> None:
    vae = make_vae(scaling_factor=0.5)
    table = make_table()
    cached_latents(vae, table, tmp_path, "no", False)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "format": 1,
        "autoencoder": tensors_hash(vae.state_dict().items()),
        "scaling_factor": 0.5,
        "data": tensors_hash([("pixels", table.pixels)]),
        "size": SIZE,
        "precision": "no",
    }


def test_half_written_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is written last: without it what lies there is not trusted."""
    order: list[str] = []
    write = module.atomic.write
    monkeypatch.setattr(module.atomic, "write", lambda d, p, **k: (order.append(p.name), write(d, p, **k))[1])
    made = cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    assert order == ["latents.safetensors", "manifest.json"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "latents.safetensors").write_bytes(b"half")
    assert torch.equal(cached_latents(make_vae(), make_table(), tmp_path, "no", False), made)


STALE: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "autoencoder": (lambda: (make_vae(seed=1), make_table()), "autoencoder is "),
    "scale": (lambda: (make_vae(scaling_factor=0.18215), make_table()), "scaling_factor is 1.0, now 0.18215"),
    "data": (lambda: (make_vae(), make_table(seed=1)), "data is "),
    "size": (lambda: (make_vae(), make_table(size=32)), "data is "),  # and the size
}


def test_captions_and_repeats_leave_latents_as_they_are(tmp_path: Path) -> None:
    """Latents are of pixels: to visit an image more often, or to caption it anew, encodes nothing again."""
    made = cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    changed = replace(make_table(), columns={"object": ["horse"] * 5}, visits=torch.arange(5).repeat(3), hash="others")
    assert torch.equal(cached_latents(make_vae(), changed, tmp_path, "no", False), made)


@pytest.mark.parametrize("kind", STALE)
def test_stale_latents_are_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    before = (tmp_path / "latents.safetensors").read_bytes()
    make, reason = STALE[kind]
    vae, table = make()
    with pytest.raises(DataError) as caught:
        cached_latents(vae, table, tmp_path, "no", False)
    assert f"the latents in {tmp_path} are stale: {reason}" in caught.value.message
    assert caught.value.message.count(" now ") == (2 if kind == "size" else 1)  # nothing else is blamed
    assert "--set latents=" in str(caught.value.hint)
    assert (tmp_path / "latents.safetensors").read_bytes() == before


def test_precision_is_part_of_what_they_are(tmp_path: Path) -> None:
    cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    with pytest.raises(DataError, match="precision is no, now bf16"):
        cached_latents(make_vae(), make_table(), tmp_path, "bf16", False)


def test_damaged_manifest_is_stale(tmp_path: Path) -> None:
    cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="stale"):
        cached_latents(make_vae(), make_table(), tmp_path, "no", False)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_latents_are_named(damage: str, tmp_path: Path) -> None:
    cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    file = tmp_path / "latents.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*latents\.safetensors") as caught:
        cached_latents(make_vae(), make_table(), tmp_path, "no", False)
    assert "encode again" in str(caught.value.hint)
