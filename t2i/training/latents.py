"""Cached latents: every training image encoded once, unmirrored and mirrored.

latents.safetensors    {"latents": (2, N, C, h, w) float16}; [1] is of the mirrored images
manifest.json          their origin: hash of the autoencoder, hash of the pixels, size; written last
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2i import atomic
from t2i.data.memory_table import ImageTable
from t2i.data.tables import Table
from t2i.errors import DataError
from t2i.imaging import images
from t2i.training.runs.checkpoint import tensors_hash

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FORMAT = 1
BATCH = 64


def cached_latents(vae: AutoencoderKL, table: Table, folder: Path, precision: str, progress: bool) -> Tensor:
    """Read the scaled posterior means of all images from `folder`, or encode and store them.

    Returns (2, N, C, h, w) float16, on the CPU.

    precision: "no" or "bf16", of the encoder's forward pass.
    Raises DataError when the folder holds latents of another autoencoder, other data or another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    wanted: dict[str, Any] = {
        "format": FORMAT,
        "autoencoder": tensors_hash(vae.state_dict().items()),
        "scaling_factor": vae.config.scaling_factor,
        "data": _pixels_hash(table),
        "size": table.size,
        "precision": precision,
    }
    manifest, file = folder / "manifest.json", folder / "latents.safetensors"
    if manifest.exists():
        _check(manifest, wanted)
        try:
            return load_file(file)["latents"]
        except (OSError, SafetensorError, KeyError) as e:
            raise DataError(f"cannot read {file}: {e}", "remove its folder to encode again") from None
    latents = encode(vae, table, precision, progress)
    # The manifest comes last: without it, latents that were cut short are encoded again.
    atomic.write(save({"latents": latents}), file, overwrite=True)
    atomic.write(json.dumps(wanted, indent=1).encode(), manifest, overwrite=True)
    return latents


@torch.inference_mode()
def encode(vae: AutoencoderKL, table: Table, precision: str, progress: bool) -> Tensor:
    """Encode all images and their mirror images: (2, N, C, h, w) float16, z = scaling_factor * posterior mean."""
    device = next(vae.parameters()).device
    latents: Tensor | None = None
    with tqdm(total=2 * table.count, desc="encoding images", unit="img", unit_scale=True, disable=not progress) as bar:
        for start in range(0, table.count, BATCH):
            rows = torch.arange(start, min(start + BATCH, table.count))
            x = images.from_uint8(table.images(rows)).to(device)
            for half, some in enumerate((x, x.flip(3))):
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    z = vae.encode(some).latent_dist.mode()
                if latents is None:
                    latents = torch.empty(2, table.count, *z.shape[1:], dtype=torch.float16)
                latents[half, rows] = (z * vae.config.scaling_factor).half().cpu()
                bar.update(len(rows))
    assert latents is not None, "a table has images"
    return latents


def _pixels_hash(table: Table) -> str:
    """Return the identity of the pixels; in memory of them alone, so that captions and repeats may change."""
    return tensors_hash([("pixels", table.pixels)]) if isinstance(table, ImageTable) else table.hash


def _check(manifest: Path, wanted: dict[str, Any]) -> None:
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        found = {}
    stale = [key for key, value in wanted.items() if found.get(key) != value]
    if stale:
        lines = "; ".join(f"{key} is {str(found.get(key))[:12]}, now {str(wanted[key])[:12]}" for key in stale)
        raise DataError(
            f"the latents in {manifest.parent} are stale: {lines}",
            f"remove the folder to encode again, or --set latents=ANOTHER_FOLDER ({manifest.parent} stays as it is)",
        )
