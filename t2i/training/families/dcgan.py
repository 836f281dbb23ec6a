"""`t2i train dcgan`: a generator against a discriminator (Goodfellow et al. 2014; Radford et al. 2015).

Our networks and losses. A step shows the discriminator a batch of real images and one of generated ones; after every
`d_steps` steps the generator is updated too. The export is the generator with EMA weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.config import DCGANConfig
from t2i.data.tables import load_table
from t2i.distributed import is_main
from t2i.imaging import images
from t2i.nn.dcgan import Discriminator, Generator, initialise
from t2i.pipelines.class_conditional.dcgan import DCGAN
from t2i.randomness import derive_seed, generator
from t2i.training.adversarial import GAMES, NUMBERS, diff_augment, frozen, gradient_penalty, r1
from t2i.training.batch import class_names, class_numbers, pictures
from t2i.training.cost_estimate import FORWARD_AND_BACKWARD, CostEstimate, blank, blank_batch, class_count, size, work
from t2i.training.engine import Engine, Step
from t2i.training.periodic_evaluation import PeriodicEvaluation
from t2i.training.runs.run_folder import Launch, RunFolder

BATCH_NORM_BATCHES = 64  # batches over which the statistics of the EMA generator's batch norms are measured
SATURATED = 0.99  # accuracy from which on a discriminator gives its generator little gradient
COLLAPSE_SPREAD = 0.4  # standard deviation of generated images relative to real ones that indicates mode collapse
DISCRIMINATOR_SATURATED = (
    f"the discriminator's accuracy is {100 * SATURATED:.0f} % or more on real and generated images:"
    " the generator learns little"
)
GENERATOR_COLLAPSED = (
    f"the standard deviation of generated images is below {COLLAPSE_SPREAD:g} of that of real ones: mode collapse"
)


class AdversarialPair(nn.Module):
    """Generator and discriminator, trained, averaged and saved as one module."""

    def __init__(self, config: DCGANConfig, classes: int) -> None:
        """Initialise both; the weights depend on the seed alone.  classes: 0 for unconditional."""
        super().__init__()
        torch.manual_seed(derive_seed(config.seed, "dcgan weights"))
        model = config.model
        self.generator = Generator(model.kind, model.generator, model.latent, classes)
        self.discriminator = Discriminator(model.kind, model.discriminator, model.norm, classes)
        initialise(self)


@dataclass(frozen=True)
class GameStep:
    """One training step on this process: the networks, the classes of its images, and its random draws.

    Draws are made for the global batch, then sliced: the same numbers on any number of processes.
    """

    config: DCGANConfig
    step: Step
    networks: AdversarialPair
    labels: Tensor | None
    device: torch.device

    def generate(self, purpose: str) -> Tensor:
        """Generate images of the step's classes, (b, 3, S, S) in [-1, 1]."""
        z = torch.randn(self.step.batch, self.config.model.latent, generator=self._draw(purpose))
        return self.networks.generator(z[self.step.share].to(self.device), self.labels).float()

    def discriminate(self, x: Tensor, purpose: str) -> Tensor:
        """Return the discriminator's logits for images, after DiffAugment: (b,)."""
        u = self._uniform(purpose, NUMBERS)
        return self.networks.discriminator(diff_augment(x, u, self.config.loss.augment), self.labels).float()

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's gradient penalties: a scalar, 0 where the config has none."""
        loss, total = self.config.loss, torch.zeros((), device=self.device)

        def unaugmented(x: Tensor) -> Tensor:
            return self.networks.discriminator(x, self.labels)

        if loss.game == "wgan-gp":
            u = self._uniform("between", 1).squeeze(1)
            total = total + loss.gradient_penalty * gradient_penalty(unaugmented, real, fake, u)
        return total + loss.r1 * r1(unaugmented, real) if loss.r1 else total

    def _uniform(self, purpose: str, width: int) -> Tensor:
        u = torch.rand(self.step.batch, width, generator=self._draw(purpose))
        return u[self.step.share].to(self.device)

    def _draw(self, purpose: str) -> torch.Generator:
        return generator(self.config.seed, purpose, self.step.index)


def estimate_cost(config: DCGANConfig) -> CostEstimate:
    """Estimate the cost of this config, without penalties."""
    networks = AdversarialPair(config, class_count(config))
    parameters = {"generator": size(networks.generator), "discriminator": size(networks.discriminator)}
    networks = networks.to("meta").eval()
    x, label = blank_batch(config)
    g = work(lambda: networks.generator(blank(1, config.model.latent), label))
    d = work(lambda: networks.discriminator(x, label))
    d_update = 2 * FORWARD_AND_BACKWARD * d + g  # a real and a generated image
    g_update = FORWARD_AND_BACKWARD * g + 2 * d  # of the generator: the discriminator's weights need no gradients
    return CostEstimate(parameters, d_update + g_update // config.d_steps)


def train_dcgan(config: DCGANConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train a generator against a discriminator, resuming if there is a checkpoint.

    Returns the exported pipeline folder.
    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, launch.progress and is_main())
    classes = class_names(config, table)
    networks = AdversarialPair(config, len(classes))
    engine = Engine(config, folder, networks, table.hash, launch, {"discriminator.": config.d_rate}, wrapped=False)
    evaluation = PeriodicEvaluation.create(engine, config, lambda weights: pipeline(engine, weights, config, classes))
    table = table.to(engine.device)
    game, autocast = GAMES[config.loss.game], engine.accelerator.autocast
    for step in engine.steps():
        real, rows = pictures(table, config, step)
        labels = class_numbers(table, config.label, rows).to(engine.device) if config.label else None
        game_step = GameStep(config, step, networks, labels, engine.device)
        with autocast():
            with torch.no_grad():
                fake = game_step.generate("latent")
            on_real, on_fake = (
                game_step.discriminate(real, "augment real"),
                game_step.discriminate(fake, "augment fake"),
            )
        loss = game.discriminator(on_real, on_fake) + game_step.penalty(real, fake)
        engine.backward(step, loss, "d_loss", **step_metrics(on_real.detach(), on_fake.detach(), real, fake, labels))
        engine.descend(step, "d_gradient_norm")
        if (step.index + 1) % config.d_steps == 0:
            with frozen(networks.discriminator):
                with autocast():
                    answer = game_step.discriminate(game_step.generate("generator latent"), "augment generator")
                engine.backward(step, game.generator(answer), "g_loss")
            engine.descend(step, "g_gradient_norm")
        engine.advance(step)
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                path = folder.samples / f"{engine.images_seen:012d}.png"
                draw_samples(pipeline(engine, average, config, classes), config, path)
                # the log row of the step of the last sheet was written after that sheet
                since = engine.images_seen - config.sample_every - config.batch
                warn_of_collapse(folder, since, game.winnable)
        if evaluation:
            evaluation.evaluate_if_due(engine)
    average = engine.average()
    if is_main():
        pipeline(engine, average, config, classes).save_pretrained(folder.export)
    return folder.export


def step_metrics(
    on_real: Tensor, on_fake: Tensor, real: Tensor, fake: Tensor, labels: Tensor | None
) -> dict[str, Tensor]:
    """Return the discriminator's accuracy on real and generated images, and their relative spread.

    spread: the standard deviation of generated images, relative to that of the real ones.
    """
    return {
        "d_accuracy_real": (on_real > 0).float().mean(),
        "d_accuracy_fake": (on_fake < 0).float().mean(),
        "spread": mean_std(fake, labels) / mean_std(real, labels),
    }


def mean_std(x: Tensor, labels: Tensor | None) -> Tensor:
    """Return the standard deviation of images, within a class where there are any, averaged over all pixels: a scalar.

    Over the whole batch, a generator with a single image per class would vary as real images do.
    x: (B, 3, S, S).  labels: (B,) int64.  Where no class occurs twice, over the whole batch.
    """
    if labels is None:
        return x.std(0).mean()
    member = F.one_hot(labels).to(x.dtype)  # (B, classes)
    count = member.sum(0)
    means = (member.T @ x.flatten(1)) / count.clamp(min=1)[:, None]
    freedom = len(x) - (count > 0).sum()
    variance = (x.flatten(1) - means[labels]).square().sum(0) / freedom.clamp(min=1)
    return torch.where(freedom > 0, variance, x.flatten(1).var(0)).sqrt().mean()


@torch.no_grad()
def recompute_batch_norms(net: Generator, config: DCGANConfig, classes: int, device: torch.device) -> None:
    """Measure the batch norms' mean and variance again: EMA weights have other statistics than the trained weights."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    net.train()
    for k in range(BATCH_NORM_BATCHES):
        draw = generator(config.seed, "settle", k)
        z = torch.randn(config.batch, config.model.latent, generator=draw).to(device)
        labels = torch.randint(classes, (config.batch,), generator=draw).to(device) if classes else None
        net(z, labels)
    net.eval()


def pipeline(engine: Engine, weights: dict[str, Tensor], config: DCGANConfig, classes: tuple[str, ...]) -> DCGAN:
    """Return a pipeline with EMA weights on the engine's device, its batch norms measured."""
    networks = AdversarialPair(config, len(classes))
    networks.load_state_dict(weights)
    net = networks.generator.to(engine.device)
    recompute_batch_norms(net, config, len(classes), engine.device)
    return DCGAN(net, classes)


def draw_samples(model: DCGAN, config: DCGANConfig, path: Path) -> None:
    """Save the grid of fixed seeds, and classes in turn."""
    samples = model(config.samples.count, None, config.seed)
    images.save(images.grid(samples, columns=config.samples.columns), path, overwrite=True)


def warn_of_collapse(folder: RunFolder, since: int, winnable: bool = True) -> None:
    """Warn, on stderr and in the run folder, if the log after `since` images shows saturation or mode collapse.

    winnable: of the Game.
    """
    rows = [row for row in folder.read_log() if int(row["images"]) > since]
    if not rows:
        return
    names = ("d_accuracy_real", "d_accuracy_fake", "spread")
    real, fake, spread = (sum(float(row[name]) for row in rows) / len(rows) for name in names)
    seen = int(rows[-1]["images"])
    if winnable and min(real, fake) > SATURATED:
        folder.warn(seen, DISCRIMINATOR_SATURATED)
    # Early in training, too, images are similar; whether they still are, the newest row shows.
    if max(spread, float(rows[-1]["spread"])) < COLLAPSE_SPREAD:
        folder.warn(seen, GENERATOR_COLLAPSED)
