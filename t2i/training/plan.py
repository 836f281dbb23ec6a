"""What a run would be, before it is one: `--dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t2i.config import AutoencoderConfig, Run, Text2ImageConfig, config_hash
from t2i.data.sources import open_source
from t2i.training.run import RunFolder

if TYPE_CHECKING:
    from torch import nn


def describe(config: Run, run: Path) -> str:
    """The plan of a run as text: data, model, steps, disk, and where it would begin.  Trains and writes nothing.

    Raises T2IError where the run itself would: missing data, no autoencoder.
    """
    assert isinstance(config, AutoencoderConfig | Text2ImageConfig)
    sources = config.data.sources
    counts = [open_source(source).count for source in sources]
    visits = sum(count * source.repeat for count, source in zip(counts, sources, strict=True))
    parts = _parts(config)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    total = sum(parameters.values())
    checkpoint = 4 * total * 4  # float32: weights, their average, two moments
    saved = RunFolder(run).saved()
    lines = {
        "run": f"{run}  (config {config_hash(config)})",
        "data": f"{sum(counts):,} images in {len(sources)} sources, {config.data.size} x {config.data.size} pixels",
        "epoch": f"{visits:,} visits; the run is {config.images / visits:.1f} epochs",
        "model": f"{total / 1e6:.1f}M parameters: " + ", ".join(f"{k} {v / 1e6:.1f}M" for k, v in parameters.items()),
        "steps": f"{-(-config.images // config.batch):,} of {config.batch} images, {config.images:,} images in all",
        "disk": f"{checkpoint * (config.keep + 1) / 1e6:,.0f} MB for {config.keep} checkpoints and one being written",
        "begins": f"at {int(saved[0].name):,} images, from {saved[0]}" if saved else "anew",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def _parts(config: AutoencoderConfig | Text2ImageConfig) -> dict[str, nn.Module]:
    """The trained networks by name."""
    if isinstance(config, AutoencoderConfig):
        from t2i.training.autoencoder import build_autoencoder

        vae = build_autoencoder(config.model, config.data.size, config.seed)
        return {"encoder": vae.encoder, "decoder": vae.decoder}
    from t2i.training.text2image import Denoiser, load_autoencoder

    # The tokenizer is not trained yet: its vocabulary is at most this large.
    net = Denoiser(config, config.text_encoder.vocabulary, load_autoencoder(config.autoencoder))
    return {"text encoder": net.text_encoder, "U-Net": net.unet}
