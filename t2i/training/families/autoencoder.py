"""`t2i train autoencoder`: the KL autoencoder that gives latent diffusion its space (Rombach et al. 2022, section 3.1).

diffusers' AutoencoderKL, our losses and loop. The export is an ordinary AutoencoderKL folder of averaged weights, whose
latents have mean 0 and deviation 1 per channel: the measured mean and deviation are folded into its 1x1 convolutions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from t2i import atomic
from t2i.config import AutoencoderConfig, AutoencoderModel
from t2i.data.tables import Table, load_table
from t2i.distributed import is_main
from t2i.imaging import images
from t2i.randomness import derive_seed, generator
from t2i.training.batch import pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, Outline, blank, size, work
from t2i.training.engine import Engine
from t2i.training.losses import gradient_loss, kl_to_standard_normal, psnr, ssim
from t2i.training.runs.run_folder import Launch, RunFolder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHOWN = 14  # images of the sample grid, or all there are, each above its reconstruction
MEASURED = 4096  # images whose latents give the mean and deviation


class Codec(nn.Module):
    """Encode, sample the latent, decode: all that is trained, in one call, as distributed training wants it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, 3, H, W) in [-1, 1].  eps: (B, C, h, w), standard normal.

        Returns the reconstruction, and mean and log variance of the latent.
        """
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * eps
        return self.vae.decode(z).sample, posterior.mean, posterior.logvar


def build_autoencoder(config: AutoencoderModel, size: int, seed: int) -> AutoencoderKL:
    """A freshly initialised AutoencoderKL; the weights depend on the seed alone."""
    from diffusers import AutoencoderKL

    torch.manual_seed(derive_seed(seed, "autoencoder weights"))
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        mid_block_add_attention=config.attention,
        sample_size=size,
        scaling_factor=1.0,
    )


def outline(config: AutoencoderConfig) -> Outline:
    """What this config trains."""
    vae = build_autoencoder(config.model, config.data.size, config.seed)
    parameters = {"encoder": size(vae.encoder), "decoder": size(vae.decoder)}
    codec, x = Codec(vae).to("meta"), blank(1, 3, config.data.size, config.data.size)
    return Outline(parameters, FORWARD_AND_BACKWARD * work(lambda: codec(x, blank(1, *latent_size(config)))))


def train_autoencoder(config: AutoencoderConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, an autoencoder.  Returns the exported folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    progress = launch.progress and is_main()
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, progress)
    codec = Codec(build_autoencoder(config.model, config.data.size, config.seed))
    engine = Engine(config, folder, codec, table.hash, launch)
    table = table.to(engine.device)
    latent_shape = latent_size(config)
    weights = config.loss
    for step in engine.steps():
        x = pictures(table, config, step)[0].to(engine.device)
        eps = torch.randn(step.batch, *latent_shape, generator=generator(config.seed, "latent noise", step.index))
        x_hat, mean, log_variance = engine.module(x, eps[step.share].to(engine.device))
        l1 = (x_hat - x).abs().mean()
        edges = gradient_loss(x_hat, x)
        likeness = ssim(x_hat, x)
        kl = kl_to_standard_normal(mean, log_variance) / x[0].numel()
        loss = weights.l1 * l1 + weights.gradient * edges + weights.ssim * (1 - likeness) + weights.kl * kl
        engine.update(step, loss, l1=l1, gradient=edges, ssim=likeness, kl=kl, psnr=psnr(x_hat.detach(), x))
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                vae = autoencoder(engine, average, config)
                draw_reconstructions(vae, table, folder.samples / f"{engine.images_seen:012d}.png")
    average = engine.average()
    if is_main():
        export(autoencoder(engine, average, config), table, engine.images_seen, folder.export)
    return folder.export


def latent_size(config: AutoencoderConfig) -> tuple[int, int, int]:
    """Channels, height and width of one latent: every level but the last halves the image."""
    side = config.data.size // 2 ** (len(config.model.channels) - 1)
    return config.model.latent_channels, side, side


def autoencoder(engine: Engine, weights: dict[str, Tensor], config: AutoencoderConfig) -> AutoencoderKL:
    """Weights of a codec as an autoencoder on the engine's device, for looking and for keeping."""
    codec = Codec(build_autoencoder(config.model, config.data.size, config.seed))
    codec.load_state_dict(weights)
    return codec.vae.to(engine.device).eval()


@torch.inference_mode()
def draw_reconstructions(vae: AutoencoderKL, table: Table, path: Path) -> None:
    """Save a grid of fixed training images, each above its reconstruction."""
    x = images.from_uint8(table.images(table.spread(SHOWN))).to(vae.device)
    x_hat = vae.decode(vae.encode(x).latent_dist.mode()).sample
    pairs = images.from_tensor(torch.cat([x, x_hat]).cpu().clamp(-1, 1))
    images.save(images.grid(pairs, columns=len(x)), path, overwrite=True)


@torch.inference_mode()
def measure_latents(vae: AutoencoderKL, table: Table) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent channel over (at most MEASURED) training images: (C,), (C,) float64."""
    rows = table.spread(MEASURED)
    device = next(vae.parameters()).device
    moments = torch.zeros(2, vae.config.latent_channels, dtype=torch.float64)
    for some in rows.split(64):
        z = vae.encode(images.from_uint8(table.images(some)).to(device)).latent_dist.mode().cpu().double()
        moments += torch.stack([z.mean((2, 3)).sum(0), (z**2).mean((2, 3)).sum(0)])
    mean, square = moments / len(rows)
    return mean, (square - mean**2).sqrt()


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Make the latents of an autoencoder standard, without changing what it reconstructs.

    z' = (z - mean) / deviation goes into the encoder's last 1x1 convolution (its second half gives log variances, which
    shift by -2 log deviation), and z = z' * deviation + mean into the decoder's first.  mean, deviation: (C,).
    """
    mean, deviation = mean.float(), deviation.float()
    into, out = vae.quant_conv, vae.post_quant_conv
    c = len(mean)
    out.bias += out.weight[:, :, 0, 0] @ mean.to(out.weight)
    out.weight *= deviation.to(out.weight)[None, :, None, None]
    into.weight[:c] /= deviation.to(into.weight)[:, None, None, None]
    into.bias[:c] = (into.bias[:c] - mean.to(into.bias)) / deviation.to(into.bias)
    into.bias[c:] -= 2 * deviation.log().to(into.bias)


def export(vae: AutoencoderKL, table: Table, images_seen: int, path: Path) -> None:
    """Write the autoencoder in diffusers' format, its latents made standard, and beside it what was measured."""
    mean, deviation = measure_latents(vae, table)
    fold_latent_scale(vae, mean, deviation)
    vae.cpu().save_pretrained(path)
    facts = {
        "images_seen": images_seen,
        "latent_mean_folded": mean.tolist(),
        "latent_deviation_folded": deviation.tolist(),
    }
    atomic.write(json.dumps(facts, indent=1).encode(), path / "latent_scale.json", overwrite=True)
