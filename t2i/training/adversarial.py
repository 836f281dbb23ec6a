"""Adversarial training: losses, penalties on the discriminator's gradient, and DiffAugment.

real, fake: logits of the discriminator, (B,), high for real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.training.augment import erase, translate

LogitFunction = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> logits (B,)


class Game(NamedTuple):
    """The losses of both sides.  discriminator: (real, fake) -> scalar.  generator: (fake) -> scalar.

    winnable: a discriminator that is always right has little left to teach. That does not hold for a Wasserstein
    critic: only the differences of its outputs count, and zero is no decision boundary.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    winnable: bool = True


GAMES: dict[str, Game] = {
    # cross-entropy, non-saturating for the generator (Goodfellow et al. 2014, section 3)
    "bce": Game(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(), lambda fake: F.softplus(-fake).mean()
    ),
    # Lim and Ye 2017; Miyato et al. 2018, eq. 16 and 17
    "hinge": Game(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
    # Wasserstein distance, with `gradient_penalty` (Gulrajani et al. 2017, eq. 3)
    "wgan-gp": Game(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), winnable=False),
}


def gradient_penalty(discriminate: LogitFunction, real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """Return the mean squared deviation of the gradient's norm from 1, between real and fake images: a scalar.

    real, fake: (B, 3, S, S).  u: (B,) in [0, 1), the position between them.  Gulrajani et al. 2017, eq. 3.
    """
    between = torch.lerp(real, fake, u[:, None, None, None]).requires_grad_()
    return (_slopes(discriminate, between).norm(dim=1) - 1).square().mean()


def r1(discriminate: LogitFunction, real: Tensor) -> Tensor:
    """Return half the mean squared gradient norm at real images (Mescheder et al. 2018, eq. 9, without its weight)."""
    return 0.5 * _slopes(discriminate, real.detach().requires_grad_()).square().sum(1).mean()


def _slopes(discriminate: LogitFunction, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(discriminate(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without computing those of its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


NUMBERS = 7  # uniform random numbers of DiffAugment per image


def diff_augment(x: Tensor, u: Tensor, policies: Sequence[str]) -> Tensor:
    """Augment images at random and differentiably, before the discriminator (Zhao et al. 2020).

    x: (B, 3, S, S) in [-1, 1].  u: (B, NUMBERS) in [0, 1).  policies: keys of POLICIES, applied in its order.
    """
    # Each policy has its own columns of u, so that leaving one out does not change the others.
    for name, policy in POLICIES.items():
        if name in policies:
            x = policy(x, u)
    return x


def _colour(x: Tensor, u: Tensor) -> Tensor:
    """Change brightness by -0.5 to 0.5, saturation by a factor of 0 to 2, contrast by one of 0.5 to 1.5."""
    brightness, saturation, contrast = u[:, :3, None, None].unbind(1)
    x = x + (brightness[:, None] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(grey, x, 2 * saturation[:, None])
    mean = x.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, contrast[:, None] + 0.5)


def _translation(x: Tensor, u: Tensor) -> Tensor:
    """Move by up to an eighth of the side, each way; the gap is 0."""
    limit = x.shape[-1] // 8
    return translate(x, (u[:, 3:5] * (2 * limit + 1)).long() - limit)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a square of half the side to 0; its centre may be anywhere."""
    side = x.shape[-1]
    return erase(x, (u[:, 5:7] * side).long(), 2 * (side // 4))


POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _colour,
    "translation": _translation,
    "cutout": _cutout,
}
