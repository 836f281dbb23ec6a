"""`t2i train autoencoder`: the KL autoencoder that gives latent diffusion its space (Rombach et al. 2022, section 3.1).

diffusers' AutoencoderKL, our losses and loop: reconstruction terms and, as the config asks, a perceptual distance
between ImageNet features and a late discriminator of patches (Esser et al. 2021, section 3.1). The export is an
ordinary AutoencoderKL folder of averaged weights, whose latents have mean 0 and deviation 1 per channel: the measured
mean and deviation are folded into its 1x1 convolutions. Beside it is facts.json, where the config has held-out images:
how near their reconstructions are.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from t2i import atomic
from t2i.config import AutoencoderConfig, AutoencoderModel
from t2i.data.batches import corners
from t2i.data.tables import Table, load_table
from t2i.distributed import is_main
from t2i.errors import ModelUnavailable
from t2i.imaging import images
from t2i.model_files.imagenet import imagenet_file, load_efficientnet
from t2i.nn.efficientnet import EfficientNetLite0
from t2i.nn.patchgan import PatchDiscriminator
from t2i.randomness import derive_seed, generator
from t2i.training.adversarial import GAMES, frozen
from t2i.training.batch import pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank, size, work
from t2i.training.engine import Engine, Step
from t2i.training.losses import feature_distance, gradient_loss, kl_to_standard_normal, psnr, ssim
from t2i.training.runs.run_folder import Launch, RunFolder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FACTS = "facts.json"
SHOWN = 14  # images of the sample grid, or all there are, each above its reconstruction
LABELLED = 64  # least pixels per side of a picture on the sheet, beside whose words smaller ones are lost
AT_ONCE = 32  # held-out images measured at once
MEASURED = 4096  # images whose latents give the mean and deviation
SCALE = 2.0**10  # a power of two: exact in float32 and bfloat16


class Codec(nn.Module):
    """Encode, sample the latent, decode: all that is trained, in one call, as distributed training wants it.

    discriminator: there where the config asks for an adversarial term.
    """

    def __init__(self, vae: AutoencoderKL, discriminator: PatchDiscriminator | None = None) -> None:
        super().__init__()
        self.vae = vae
        if discriminator is not None:
            self.discriminator = discriminator

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, 3, H, W) in [-1, 1].  eps: (B, C, h, w), standard normal.

        Returns the reconstruction, and mean and log variance of the latent.
        """
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * eps
        return self.vae.decode(z).sample, posterior.mean, posterior.logvar


def build_codec(config: AutoencoderConfig) -> Codec:
    """All networks that this config trains, freshly initialised; the weights depend on the seed alone."""
    vae = build_autoencoder(config.model, config.data.size, config.seed)
    if not config.loss.adversarial:
        return Codec(vae)
    torch.manual_seed(derive_seed(config.seed, "discriminator weights"))
    return Codec(vae, PatchDiscriminator(config.discriminator.channels))


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


def estimate_cost(config: AutoencoderConfig) -> CostEstimate:
    """Estimate the cost of this config.  Work that begins with the discriminator is spread over the whole run.

    Raises ModelUnavailable: the loss needs ImageNet features, whose weights are not installed.
    """
    codec, side = build_codec(config), config.crop or config.data.size
    parameters = {"encoder": size(codec.vae.encoder), "decoder": size(codec.vae.decoder)}
    if config.loss.adversarial:
        parameters["discriminator"] = size(codec.discriminator)
    codec, x = codec.to("meta"), blank(1, 3, side, side)
    flops = FORWARD_AND_BACKWARD * work(lambda: codec(x, blank(1, *latent_size(config))))
    playing = max(0, config.images - config.loss.adversarial_from) / config.images if config.loss.adversarial else 0.0
    if config.loss.perceptual:
        imagenet_file()
        net = EfficientNetLite0().eval().to("meta")
        # forward for the image and its reconstruction, and back to that; once more for the length of the gradient
        flops += round((3 + playing) * work(lambda: net.scales(x)))
    if config.loss.adversarial:
        # the discriminator's turn, with an image and its reconstruction; the autoencoder's: forward and back, twice
        flops += round(playing * (2 * FORWARD_AND_BACKWARD + 3) * work(lambda: codec.discriminator(x)))
    return CostEstimate(parameters, flops)


def train_autoencoder(config: AutoencoderConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, an autoencoder.  Returns the exported folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    progress = launch.progress and is_main()
    network = imagenet_features(config)
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, progress)
    held_out = load_table(config.held_out, progress) if config.held_out else None
    codec = build_codec(config)
    weights = config.loss
    adversarial = bool(weights.adversarial)
    rates = {"discriminator.": config.discriminator.rate}
    engine = Engine(config, folder, codec, table.hash, launch, rates, wrapped=not adversarial)
    features = Features(network, engine.device) if network else None
    table = table.to(engine.device)
    latent_shape = latent_size(config)
    autocast = engine.accelerator.autocast if adversarial else nullcontext
    for step in engine.steps():
        x = pictures(table, config, step)[0].to(engine.device)
        if config.crop is not None:
            x = crop(x, config.crop, config.seed, step)
        eps = torch.randn(step.batch, *latent_shape, generator=generator(config.seed, "latent noise", step.index))
        with autocast():
            x_hat, mean, log_variance = engine.module(x, eps[step.share].to(engine.device))
        x_hat = x_hat.float()
        terms = {
            "l1": (x_hat - x).abs().mean(),
            "gradient": gradient_loss(x_hat, x),
            "ssim": ssim(x_hat, x),
            "kl": kl_to_standard_normal(mean.float(), log_variance.float()) / x[0].numel(),
        }
        if features and weights.perceptual:
            terms["perceptual"] = features.distance(x, x_hat).mean()
        loss = (
            weights.l1 * terms["l1"]
            + weights.gradient * terms["gradient"]
            + weights.ssim * (1 - terms["ssim"])
            + weights.kl * terms["kl"]
            + weights.perceptual * terms.get("perceptual", 0.0)
        )
        terms["psnr"] = psnr(x_hat.detach(), x)
        if adversarial and step.first >= weights.adversarial_from:
            play(engine, step, config, loss, terms, x, x_hat)
        else:
            engine.update(step, loss, **terms)
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                vae = autoencoder(engine, average, config)
                draw_reconstructions(vae, table, held_out, folder.samples / f"{engine.images_seen:012d}.png")
                if held_out:
                    found = measure(vae, features, held_out, config.measured)
                    folder.write_evaluation(engine.images_seen, {f"held_out_{name}": x for name, x in found.items()})
    average = engine.average()
    if is_main():
        vae = autoencoder(engine, average, config)
        facts = {"images_seen": engine.images_seen, "held_out": measure(vae, features, held_out)} if held_out else None
        export(vae, table, engine.images_seen, folder.export)
        if facts:
            atomic.write(json.dumps(facts, indent=1).encode(), folder.export / FACTS, overwrite=True)
    return folder.export


def imagenet_features(config: AutoencoderConfig) -> EfficientNetLite0 | None:
    """Load the network of the perceptual distance, where the loss needs it, or where held-out images can have it.

    Raises ModelUnavailable: the loss needs it, and its weights are not installed.
    """
    if config.loss.perceptual:
        return load_efficientnet()
    if config.held_out:
        with suppress(ModelUnavailable):
            return load_efficientnet()
    return None


class Features:
    """ImageNet features of images, for the perceptual distance: EfficientNet-Lite0, frozen, in float32."""

    def __init__(self, network: EfficientNetLite0, device: torch.device) -> None:
        # channels_last: 3.6 -> 2.5 ms per 64-pixel image, forward and backward; bf16 is slower (one core, Zen 4)
        self.network = network.to(device, memory_format=torch.channels_last)

    def distance(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """The `feature_distance` of each pair, (B,).  x, x_hat: (B, 3, H, W) in [-1, 1]; x gets no gradient."""
        with torch.no_grad():
            real = self.network.scales(x.contiguous(memory_format=torch.channels_last))
        found = self.network.scales(x_hat.contiguous(memory_format=torch.channels_last))
        return feature_distance(real, found)


def play(
    engine: Engine,
    step: Step,
    config: AutoencoderConfig,
    loss: Tensor,
    terms: dict[str, Tensor],
    x: Tensor,
    x_hat: Tensor,
) -> None:
    """One step of the discriminator, then one of the autoencoder against it (hinge; Lim and Ye 2017).

    The adversarial term's weight makes its gradient at the decoder's last layer `loss.adversarial` times as long as
    that of all other terms (Esser et al. 2021, eq. 7). At the image itself it would not do: there the reconstruction's
    gradients point every way and cancel in the weights, the discriminator's agree, and the first steps of mini's run
    had gradients twenty times as long as before.
    """
    codec, game = engine.raw, GAMES["hinge"]
    discriminator = codec.discriminator
    with engine.accelerator.autocast():
        on_real, on_fake = discriminator(x).float(), discriminator(x_hat.detach()).float()
    right = {"d_accuracy_real": (on_real > 0).float().mean(), "d_accuracy_fake": (on_fake < 0).float().mean()}
    engine.backward(step, game.discriminator(on_real, on_fake), "d_loss", **right)
    engine.descend(step, "d_gradient_norm")
    with frozen(discriminator):
        with engine.accelerator.autocast():
            answer = discriminator(x_hat).float()
        against = game.generator(answer)
        weight = config.loss.adversarial * gradient_ratio(engine, loss, against, codec.vae.decoder.conv_out.weight)
        total = loss + weight * against
        engine.backward(step, total, "total_loss", loss=loss, **terms, g_loss=against, g_weight=weight)
    engine.descend(step)
    engine.advance(step)


def gradient_ratio(engine: Engine, loss: Tensor, against: Tensor, where: Tensor) -> Tensor:
    """Return how much longer the gradient of `loss` with respect to `where` is than that of `against`.

    A scalar; the gradients are those of the global batch, so that the number of processes does not matter.
    """
    # SCALE: in float16, where the discriminator may compute, the gradient of a mean over all patches would underflow
    slopes = [torch.autograd.grad(SCALE * term, where, retain_graph=True)[0] / SCALE for term in (loss, against)]
    ours, theirs = engine.accelerator.reduce(torch.stack(slopes), "mean").flatten(1).norm(dim=1)
    return ours / (theirs + 1e-12)


def crop(x: Tensor, side: int, seed: int, step: Step) -> Tensor:
    """A random square of each image of this process's share; where depends on the image's global index alone.

    x: (b, 3, S, S).  Returns (b, 3, side, side).
    """
    places = corners(seed, step.first, step.batch, x.shape[-1] - side + 1)[step.share].tolist()
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, (top, left) in zip(x, places, strict=True)]
    )


def latent_size(config: AutoencoderConfig) -> tuple[int, int, int]:
    """Channels, height and width of one latent: every level but the last halves the image."""
    side = (config.crop or config.data.size) // 2 ** (len(config.model.channels) - 1)
    return config.model.latent_channels, side, side


def autoencoder(engine: Engine, weights: dict[str, Tensor], config: AutoencoderConfig) -> AutoencoderKL:
    """Weights of a codec as an autoencoder on the engine's device, for looking and for keeping."""
    codec = build_codec(config)
    codec.load_state_dict(weights)
    return codec.vae.to(engine.device).eval()


def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Reconstruct images from the means of their latents.  x: (B, 3, S, S) in [-1, 1].  Returns the same shape."""
    return vae.decode(vae.encode(x).latent_dist.mode()).sample.float().clamp(-1, 1)


@torch.inference_mode()
def draw_reconstructions(vae: AutoencoderKL, table: Table, held_out: Table | None, path: Path) -> None:
    """Save a grid of fixed training images, each above its reconstruction; below them held-out ones, if there are."""
    tables = [table, held_out] if held_out else [table]
    columns = min(SHOWN, *(some.count for some in tables))
    shown = []
    for some in tables:
        x = images.from_uint8(some.images(some.spread(columns))).to(vae.device)
        shown += images.from_tensor(torch.cat([x, reconstruct(vae, x)]).cpu())
    names = ["training", "reconstructed", "held out", "reconstructed"] if held_out else None
    if names:
        shown = [images.enlarge(picture, LABELLED) for picture in shown]
    images.save(images.grid(shown, columns=columns, row_labels=names), path, overwrite=True)


@torch.inference_mode()
def measure(vae: AutoencoderKL, features: Features | None, table: Table, most: int | None = None) -> dict[str, float]:
    """Measure how near the reconstructions of whole images are: psnr, and where there are features, perceptual.

    most: images; None: all.  psnr: in dB, from the mean square error over all of them, of pixels within [-1, 1].
    perceptual: the mean of `feature_distance`.
    """
    rows = table.spread(most or table.count)
    errors, distances = [], []
    for some in rows.split(AT_ONCE):
        x = images.from_uint8(table.images(some)).to(vae.device)
        x_hat = reconstruct(vae, x)
        errors.append((x_hat - x).square().mean((1, 2, 3)).cpu().double())
        if features:
            distances.append(features.distance(x, x_hat).cpu().double())
    found = {"psnr": 10 * math.log10(4 / float(torch.cat(errors).mean()))}
    return found | ({"perceptual": float(torch.cat(distances).mean())} if features else {})


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
