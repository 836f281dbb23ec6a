"""`t2i train vae`: maximise the variational lower bound (Kingma and Welling 2014), with classes or not.

Our network, our bound. The export is a folder of averaged weights that draws samples and reconstructs, and beside it
facts.json: the bound on all training and all held-out images, with its two terms apart.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from t2i import atomic
from t2i.config import VAEConfig
from t2i.data.tables import Table, load_table
from t2i.distributed import is_main
from t2i.errors import DataError
from t2i.imaging import images
from t2i.nn.vae import VAENetwork
from t2i.pipelines.class_conditional.vae import VAE
from t2i.randomness import derive_seed, generator
from t2i.training.batch import class_names, class_numbers, pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank, blank_batch, class_count, size, work
from t2i.training.elbo import bits, density_bits, dequantise, free, kl_nats, reconstruction_nats
from t2i.training.engine import Engine
from t2i.training.periodic_evaluation import Judging
from t2i.training.runs.run_folder import Launch, RunFolder

FACTS = "facts.json"
SCALE = 64  # least pixels per side of a picture on the sheet, beside whose words smaller ones are lost


def estimate_cost(config: VAEConfig) -> CostEstimate:
    """What this config trains."""
    vae = build_vae(config, class_count(config))
    parameters = {"encoder and decoder": size(vae)}
    x, label = blank_batch(config)
    vae = vae.to("meta")
    return CostEstimate(parameters, FORWARD_AND_BACKWARD * work(lambda: vae(x, blank(1, config.model.latent), label)))


def train_vae(config: VAEConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, a variational autoencoder.  Returns the exported folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    progress = launch.progress and is_main()
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, progress)
    held_out = load_table(config.held_out, progress) if config.held_out else None
    classes = class_names(config, table)
    if held_out and class_names(config, held_out) != classes:
        raise DataError(f"held_out has other classes of {config.label!r} than data has")
    engine = Engine(config, folder, build_vae(config, len(classes)), table.hash, launch)
    judging = Judging.of(engine, config, lambda weights: pipeline(engine, weights, config, classes))
    table = table.to(engine.device)
    free_nats = config.loss.free_bits * math.log(2)
    for step in engine.steps():
        x, rows = pictures(table, config, step)
        labels = class_numbers(table, config.label, rows).to(engine.device) if config.label else None
        draw = generator(config.seed, "vae noise", step.index)
        eps = torch.randn(step.batch, config.model.latent, generator=draw)[step.share]
        x = dequantise(x, torch.rand(step.batch, *x.shape[1:], generator=draw)[step.share].to(engine.device))
        x_hat, mean, log_variance = engine.module(x, eps.to(engine.device), labels)
        error = (x_hat - x).square().mean()
        # The best variance is the error itself, over all processes; as a number, it gives log(error) its gradient.
        variance = (
            engine.accelerator.reduce(error.detach(), "mean") if config.loss.sigma is None else config.loss.sigma**2
        )
        nats = reconstruction_nats(error, variance)
        kl = kl_nats(mean, log_variance).mean(0)  # of each latent number
        size = x[0].numel()
        terms = {"reconstruction": density_bits(nats.detach()), "kl": bits(kl.detach().sum() / size)}
        if free_nats:
            kl = free(kl, engine.accelerator.reduce(kl.detach(), "mean"), free_nats)
        loss = nats + config.loss.beta * kl.sum() / size
        engine.update(step, loss, bits_per_dim=terms["reconstruction"] + terms["kl"], **terms, mse=error)
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                model = pipeline(engine, average, config, classes)
                draw_samples(model, config, table, folder.samples / f"{engine.images_seen:012d}.png")
                facts = report(model, config, table, held_out, config.measured)
                folder.write_evaluation(engine.images_seen, flat(facts))
        if judging:
            judging.after(engine)
    average = engine.average()
    if is_main():
        model = pipeline(engine, average, config, classes)
        model.save_pretrained(folder.export)
        facts = report(model, config, table, held_out)
        text = json.dumps({"images_seen": engine.images_seen, **facts}, indent=1)
        atomic.write(text.encode(), folder.export / FACTS, overwrite=True)
    return folder.export


def build_vae(config: VAEConfig, classes: int) -> VAENetwork:
    """A freshly initialised network; the weights depend on the seed alone.  classes: 0 for unconditional."""
    torch.manual_seed(derive_seed(config.seed, "vae weights"))
    net = config.model
    return VAENetwork(config.data.size, net.channels, net.latent, net.groups, classes)


def pipeline(engine: Engine, weights: dict[str, Tensor], config: VAEConfig, classes: tuple[str, ...]) -> VAE:
    """Averaged weights as a pipeline on the engine's device."""
    vae = build_vae(config, len(classes))
    vae.load_state_dict(weights)
    return VAE(vae.to(engine.device), classes)


def report(
    model: VAE, config: VAEConfig, table: Table, held_out: Table | None, most: int | None = None
) -> dict[str, dict[str, float]]:
    """The bound in bits per dimension with its two terms, and sigma: on training images and on held-out ones.

    Sigma is measured on the training images, and is the one both are judged by.  most: images of each; None: all.
    """
    error, kl = measure(model, config, table, most)
    variance = error if config.loss.sigma is None else config.loss.sigma**2
    facts = {"train": _terms(error, kl, variance)}
    if held_out:
        error, kl = measure(model, config, held_out, most)
        facts["held_out"] = _terms(error, kl, variance)
    return facts


def flat(facts: dict[str, dict[str, float]]) -> dict[str, float]:
    """{train_bits_per_dim: ...} of {train: {bits_per_dim: ...}}."""
    return {f"{part}_{name}": value for part, terms in facts.items() for name, value in terms.items()}


def _terms(error: float, kl: float, variance: float) -> dict[str, float]:
    reconstruction, kl = float(density_bits(reconstruction_nats(error, variance))), float(bits(kl))
    return {
        "bits_per_dim": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "sigma": math.sqrt(variance),
    }


@torch.inference_mode()
def measure(model: VAE, config: VAEConfig, table: Table, most: int | None = None) -> tuple[float, float]:
    """Mean squared error of a sampled reconstruction, and KL in nats, both per number of an image, in float64.

    Over all images of the table or at most so many, the same every time and with the same draws.
    """
    net, device = model.network, model.network.device
    rows = table.spread(most or table.count)
    sums = torch.zeros(2, dtype=torch.float64)
    for number, some in enumerate(rows.split(250)):
        x = images.from_uint8(table.images(some)).to(device)
        labels = class_numbers(table, config.label, some).to(device) if config.label else None
        draw = generator(config.seed, "vae measure", number)
        eps = torch.randn(len(x), config.model.latent, generator=draw).to(device)
        x = dequantise(x, torch.rand(x.shape, generator=draw).to(device))
        x_hat, mean, log_variance = net(x, eps, labels)
        sums[0] += (x_hat - x).double().square().sum().cpu()
        sums[1] += kl_nats(mean.double(), log_variance.double()).sum().cpu()
    error, kl = (sums / (len(rows) * 3 * config.data.size**2)).tolist()
    return error, kl


def draw_samples(model: VAE, config: VAEConfig, table: Table, path: Path) -> None:
    """Save a sheet: two rows of samples, training images above their reconstructions, two ways between seeds."""
    columns = config.samples.columns
    drawn = model(2 * columns, None, config.seed)
    rows = table.spread(columns)
    x = images.from_uint8(table.images(rows)).to(model.network.device)
    labels = class_numbers(table, config.label, rows).to(x.device) if config.label else None
    drawn += images.from_tensor(torch.cat([x, model.reconstruct(x, labels).clamp(-1, 1)]).cpu())
    for k in range(2):
        drawn += model.interpolate(config.seed + 2 * k, config.seed + 2 * k + 1, columns, k if model.classes else None)
    names = ["samples", "", "images", "through z", "seed to seed", ""]
    drawn = [images.enlarge(picture, SCALE) for picture in drawn]
    images.save(images.grid(drawn, columns=columns, row_labels=names), path, overwrite=True)
