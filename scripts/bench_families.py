"""Benchmark the complete trainers of dcgan, vae and classifier against plain loops around the same networks.

`python scripts/bench.py families`. The plain loops follow PyTorch's own examples: a DataLoader over the images in
memory, the loss, backward, AdamW; no EMA, no log, no checks. Their networks, losses and augmentations are t2i's, so
that only the loop differs. Each side of a round is a process of its own that prints its images per second after a
warm-up; ours is read from the run's log.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.config import load_config
from t2i.data.tables import load_table
from t2i.imaging import images
from t2i.training.adversarial import GAMES, NUMBERS, diff_augment
from t2i.training.augment import erase, translate
from t2i.training.batch import class_names, class_numbers, pictures
from t2i.training.device import choose_precision
from t2i.training.elbo import dequantise, kl_nats, reconstruction_nats
from t2i.training.engine import Step
from t2i.training.families.classifier import build_resnet, train_classifier
from t2i.training.families.dcgan import AdversarialPair, train_dcgan
from t2i.training.families.vae import build_vae, train_vae
from t2i.training.runs.run_folder import Launch

Batches = Iterator[tuple[Tensor, Tensor]]  # images (B, 3, S, S) in [-1, 1], and their classes (B,)
TRAINERS: dict[str, Callable[..., Path]] = {"dcgan": train_dcgan, "vae": train_vae, "classifier": train_classifier}
WARM, TIMED = 10, 60  # steps before the measurement, and in it


def config_of(family: str, data: str, label: str) -> Any:
    """Return the shipped CIFAR-10 config of a family, for these images, without samples or checkpoints."""
    path = Path(__file__).resolve().parents[1] / "configs" / f"{family}-cifar10.yaml"
    first = load_config(path, family)
    count = (WARM + TIMED) * first.batch
    changes = [f"data.path={data}", f"images={count}", f"sample_every={10 * count}", f"save_every={10 * count}"]
    changes += [f"log_every={WARM * first.batch}", f"label={label}", "optimizer.cooldown=0"]
    if family != "dcgan":
        changes += [f"held_out.path={data}"]
    return load_config(path, family, tuple(changes))


def plain_dcgan(config: Any, batches: Batches, classes: int, device: torch.device) -> Iterator[None]:
    """Train like pytorch/examples/dcgan, with classes and `d_steps`."""
    networks, game = AdversarialPair(config, classes).to(device), GAMES[config.loss.game]
    g, d = networks.generator, networks.discriminator
    make = {"lr": config.optimizer.lr, "betas": config.optimizer.betas, "weight_decay": 0.0}
    g_optimizer, d_optimizer = torch.optim.AdamW(g.parameters(), **make), torch.optim.AdamW(d.parameters(), **make)

    def discriminate(x: Tensor, labels: Tensor) -> Tensor:
        return d(diff_augment(x, torch.rand(len(x), NUMBERS, device=device), config.loss.augment), labels).float()

    for number, (real, labels) in enumerate(batches):
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                fake = g(torch.randn(len(real), config.model.latent, device=device), labels).float()
            loss = game.discriminator(discriminate(real, labels), discriminate(fake, labels))
        d_optimizer.zero_grad()
        loss.backward()
        d_optimizer.step()
        if (number + 1) % config.d_steps == 0:
            d.requires_grad_(False)
            with torch.autocast(device.type, torch.bfloat16):
                fake = g(torch.randn(len(real), config.model.latent, device=device), labels).float()
                loss = game.generator(discriminate(fake, labels))
            g_optimizer.zero_grad()
            loss.backward()
            g_optimizer.step()
            d.requires_grad_(True)
        loss.item()
        yield


def plain_vae(config: Any, batches: Batches, classes: int, device: torch.device) -> Iterator[None]:
    """Train like pytorch/examples/vae, with a calibrated decoder."""
    net = build_vae(config, classes).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), config.optimizer.lr, config.optimizer.betas, weight_decay=0.0)
    for x, labels in batches:
        x = dequantise(x, torch.rand_like(x))
        with torch.autocast(device.type, torch.bfloat16):
            x_hat, mean, log_variance = net(x, torch.randn(len(x), config.model.latent, device=device), labels)
        error = (x_hat.float() - x).square().mean()
        kl = kl_nats(mean.float(), log_variance.float()).sum(1).mean() / x[0].numel()
        loss = reconstruction_nats(error, error.detach()) + kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        loss.item()
        yield


def plain_classifier(config: Any, batches: Batches, classes: int, device: torch.device) -> Iterator[None]:
    """Train like the common CIFAR-10 scripts, with translation and cutout."""
    net = build_resnet(config, classes).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), config.optimizer.lr, config.optimizer.betas)
    most, side = config.augment.shift, config.data.size
    for x, labels in batches:
        x = translate(x, torch.randint(-most, most + 1, (len(x), 2), device=device))
        x = erase(x, torch.randint(side, (len(x), 2), device=device), config.augment.erase)
        with torch.autocast(device.type, torch.bfloat16):
            logits = net(x)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.smoothing)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        loss.item()
        yield


PLAIN = {"dcgan": plain_dcgan, "vae": plain_vae, "classifier": plain_classifier}


def plain(family: str, data: str, label: str) -> float:
    """Return the images per second of the plain loop."""
    config, device = config_of(family, data, label), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = load_table(config.data, False)
    rows = torch.arange(table.count)
    dataset = torch.utils.data.TensorDataset(table.images(rows), class_numbers(table, config, rows))
    loader = torch.utils.data.DataLoader(dataset, config.batch, shuffle=True, drop_last=True)
    batches = (
        (images.from_uint8(torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x).to(device)), labels.to(device))
        for x, labels in chain.from_iterable(repeat(loader))
    )
    steps = PLAIN[family](config, batches, len(class_names(config, table)), device)
    for _ in range(WARM):
        next(steps)
    start = time.perf_counter()
    for _ in range(TIMED):
        next(steps)
    return TIMED * config.batch / (time.perf_counter() - start)


def ours(family: str, data: str, label: str) -> float:
    """Return the images per second of the trainer, from its own log without the first row."""
    config = config_of(family, data, label)
    with tempfile.TemporaryDirectory() as folder:
        TRAINERS[family](config, Path(folder), Launch(progress=False))
        with (Path(folder) / "log.csv").open(newline="") as f:
            _, *rows = csv.DictReader(f)
    return len(rows) / sum(1 / float(row["images_per_second"]) for row in rows)


def data_path(family: str, data: str, label: str) -> float:
    """Return the images per second of the data path alone."""
    config = config_of(family, data, label)
    table = load_table(config.data, False)
    start = time.perf_counter()
    for number in range(WARM + TIMED):
        step = Step(number, number * config.batch, config.batch, slice(0, config.batch))
        _, rows = pictures(table, config, step)
        class_numbers(table, config, rows)
        if number == WARM - 1:
            start = time.perf_counter()
    return TIMED * config.batch / (time.perf_counter() - start)


SIDES = {"t2i": ours, "plain": plain, "data": data_path}

if __name__ == "__main__":  # called by `bench.py families`, in a fresh process for each side
    side, family, data, label = sys.argv[1:]
    assert choose_precision("auto") == "bf16", "both sides compute in bf16"
    print(SIDES[side](family, data, label))
