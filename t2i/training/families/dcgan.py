"""`t2i train dcgan`: a generator against a discriminator (Goodfellow et al. 2014; Radford et al. 2015).

Our networks, our games. One step shows the discriminator a batch of real images and one of generated ones; after every
`d_steps` of them the generator makes a step of its own. The export is the averaged generator.
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
from t2i.training.periodic_evaluation import Judging
from t2i.training.runs.run_folder import Launch, RunFolder

SETTLING = 64  # batches over which the batch norms of the averaged generator are measured
PINNED = 0.99  # share of right answers from which on a discriminator teaches its generator little
ALIKE = 0.4  # spread of generated images, as a part of the real ones', below which too many look the same
WON = f"the discriminator is right about {100 * PINNED:.0f} % and more of both kinds: the generator learns little"
COLLAPSED = f"generated images differ less than {ALIKE:g} times as much as real ones: the generator collapses"


class Players(nn.Module):
    """Both networks: what is trained, averaged and saved."""

    def __init__(self, config: DCGANConfig, classes: int) -> None:
        """Freshly initialised; the weights depend on the seed alone.  classes: 0 for unconditional."""
        super().__init__()
        torch.manual_seed(derive_seed(config.seed, "dcgan weights"))
        model = config.model
        self.generator = Generator(model.kind, model.generator, model.latent, classes)
        self.discriminator = Discriminator(model.kind, model.discriminator, model.norm, classes)
        initialise(self)


@dataclass(frozen=True)
class Turn:
    """One step of the game on this process: the networks, the classes of its images, and what is drawn for it.

    Draws are made for the global batch, then sliced: the same numbers on any number of processes.
    """

    config: DCGANConfig
    step: Step
    players: Players
    labels: Tensor | None
    device: torch.device

    def generate(self, purpose: str) -> Tensor:
        """Images of the step's classes, (b, 3, S, S) in [-1, 1]."""
        z = torch.randn(self.step.batch, self.config.model.latent, generator=self._draw(purpose))
        return self.players.generator(z[self.step.share].to(self.device), self.labels).float()

    def judge(self, x: Tensor, purpose: str) -> Tensor:
        """The discriminator's logits for images, after DiffAugment: (b,)."""
        u = self._uniform(purpose, NUMBERS)
        return self.players.discriminator(diff_augment(x, u, self.config.loss.augment), self.labels).float()

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the discriminator pays for its slope: a scalar, 0 where the config asks for none."""
        loss, zero = self.config.loss, torch.zeros((), device=self.device)

        def plain(x: Tensor) -> Tensor:
            return self.players.discriminator(x, self.labels)

        if loss.game == "wgan-gp":
            u = self._uniform("between", 1).squeeze(1)
            zero = zero + loss.gradient_penalty * gradient_penalty(plain, real, fake, u)
        return zero + loss.r1 * r1(plain, real) if loss.r1 else zero

    def _uniform(self, purpose: str, width: int) -> Tensor:
        u = torch.rand(self.step.batch, width, generator=self._draw(purpose))
        return u[self.step.share].to(self.device)

    def _draw(self, purpose: str) -> torch.Generator:
        return generator(self.config.seed, purpose, self.step.index)


def estimate_cost(config: DCGANConfig) -> CostEstimate:
    """What this config trains; penalties are not counted."""
    players = Players(config, class_count(config))
    parameters = {"generator": size(players.generator), "discriminator": size(players.discriminator)}
    players = players.to("meta").eval()
    x, label = blank_batch(config)
    g = work(lambda: players.generator(blank(1, config.model.latent), label))
    d = work(lambda: players.discriminator(x, label))
    judging = 2 * FORWARD_AND_BACKWARD * d + g  # a real and a generated image
    turn = FORWARD_AND_BACKWARD * g + 2 * d  # of the generator: the discriminator's weights need no gradients
    return CostEstimate(parameters, judging + turn // config.d_steps)


def train_dcgan(config: DCGANConfig, run: Path, launch: Launch = Launch()) -> Path:
    """Train, or go on training, a generator against a discriminator.  Returns the exported pipeline folder.

    Raises T2IError: data, config, checkpoint and non-finite faults.
    """
    folder = RunFolder(run)
    folder.begin(config, launch)
    table = load_table(config.data, launch.progress and is_main())
    classes = class_names(config, table)
    players = Players(config, len(classes))
    engine = Engine(config, folder, players, table.hash, launch, {"discriminator.": config.d_rate}, wrapped=False)
    judging = Judging.of(engine, config, lambda weights: pipeline(engine, weights, config, classes))
    table = table.to(engine.device)
    game, autocast = GAMES[config.loss.game], engine.accelerator.autocast
    for step in engine.steps():
        real, rows = pictures(table, config, step)
        labels = class_numbers(table, config.label, rows).to(engine.device) if config.label else None
        turn = Turn(config, step, players, labels, engine.device)
        with autocast():
            with torch.no_grad():
                fake = turn.generate("latent")
            on_real, on_fake = turn.judge(real, "augment real"), turn.judge(fake, "augment fake")
        loss = game.discriminator(on_real, on_fake) + turn.penalty(real, fake)
        engine.backward(step, loss, "d_loss", **reading(on_real.detach(), on_fake.detach(), real, fake, labels))
        engine.descend(step, "d_gradient_norm")
        if (step.index + 1) % config.d_steps == 0:
            with frozen(players.discriminator):
                with autocast():
                    answer = turn.judge(turn.generate("generator latent"), "augment generator")
                engine.backward(step, game.generator(answer), "g_loss")
            engine.descend(step, "g_gradient_norm")
        engine.advance(step)
        if engine.crossed(config.sample_every):
            average = engine.average()
            if is_main():
                path = folder.samples / f"{engine.images_seen:012d}.png"
                draw_samples(pipeline(engine, average, config, classes), config, path)
                # the row of the step that drew the last sheet was written after it
                since = engine.images_seen - config.sample_every - config.batch
                warn_of_collapse(folder, since, game.winnable)
        if judging:
            judging.after(engine)
    average = engine.average()
    if is_main():
        pipeline(engine, average, config, classes).save_pretrained(folder.export)
    return folder.export


def reading(on_real: Tensor, on_fake: Tensor, real: Tensor, fake: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What tells how the game stands: the discriminator's accuracy on both kinds, and how much images differ.

    spread: the deviation of generated images, as a part of that of the real ones.
    """
    return {
        "d_accuracy_real": (on_real > 0).float().mean(),
        "d_accuracy_fake": (on_fake < 0).float().mean(),
        "spread": deviation(fake, labels) / deviation(real, labels),
    }


def deviation(x: Tensor, labels: Tensor | None) -> Tensor:
    """How much images differ, within a class where there are any: the standard deviation, a mean over all numbers.

    Over all of the batch a generator that has one picture for each class would differ as real images do.
    x: (B, 3, S, S).  labels: (B,) int64.  Where no class is there twice, over all of the batch.
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
def settle(net: Generator, config: DCGANConfig, classes: int, device: torch.device) -> None:
    """Measure the batch norms' mean and variance anew: averaged weights have others than the weights they come from."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    net.train()
    for k in range(SETTLING):
        draw = generator(config.seed, "settle", k)
        z = torch.randn(config.batch, config.model.latent, generator=draw).to(device)
        labels = torch.randint(classes, (config.batch,), generator=draw).to(device) if classes else None
        net(z, labels)
    net.eval()


def pipeline(engine: Engine, weights: dict[str, Tensor], config: DCGANConfig, classes: tuple[str, ...]) -> DCGAN:
    """Averaged weights as a pipeline on the engine's device, their batch norms measured."""
    players = Players(config, len(classes))
    players.load_state_dict(weights)
    net = players.generator.to(engine.device)
    settle(net, config, len(classes), engine.device)
    return DCGAN(net, classes)


def draw_samples(model: DCGAN, config: DCGANConfig, path: Path) -> None:
    """Save the grid of fixed seeds, and classes in turn."""
    drawn = model(config.samples.count, None, config.seed)
    images.save(images.grid(drawn, columns=config.samples.columns), path, overwrite=True)


def warn_of_collapse(folder: RunFolder, since: int, winnable: bool = True) -> None:
    """Say so, to the user and in the run folder, when the log after `since` images shows a game that is won, or a
    generator that repeats itself.

    winnable: as the Game says.
    """
    rows = [row for row in folder.read_log() if int(row["images"]) > since]
    if not rows:
        return
    names = ("d_accuracy_real", "d_accuracy_fake", "spread")
    real, fake, spread = (sum(float(row[name]) for row in rows) / len(rows) for name in names)
    seen = int(rows[-1]["images"])
    if winnable and min(real, fake) > PINNED:
        folder.warn(seen, WON)
    # A young generator draws alike too, and learns to differ: its newest row shows it.
    if max(spread, float(rows[-1]["spread"])) < ALIKE:
        folder.warn(seen, COLLAPSED)
