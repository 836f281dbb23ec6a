"""Two networks against each other: their losses, the penalties on the discriminator's slope, and DiffAugment.

real, fake: logits of the discriminator, (B,), high for what looks real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.training.augment import erase, translate

Judge = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> logits (B,)


class Game(NamedTuple):
    """What each side minimises.  discriminator: (real, fake) -> scalar.  generator: (fake) -> scalar.

    winnable: whether a discriminator that is always right has little left to teach. A critic of Wasserstein's has not
    won by being right: only the differences of its answers count, and zero is no border.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    winnable: bool = True


GAMES: dict[str, Game] = {
    # cross-entropy, the generator's not saturating (Goodfellow et al. 2014, section 3)
    "bce": Game(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(), lambda fake: F.softplus(-fake).mean()
    ),
    # Lim and Ye 2017; Miyato et al. 2018, eq. 16 and 17
    "hinge": Game(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
    # the distance of Wasserstein, with `gradient_penalty` (Gulrajani et al. 2017, eq. 3)
    "wgan-gp": Game(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), winnable=False),
}


def gradient_penalty(judge: Judge, real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """How far the slope between real and fake images is from 1, squared, as a mean (Gulrajani et al. 2017, eq. 3).

    real, fake: (B, 3, S, S).  u: (B,) in [0, 1), where between them.
    """
    between = torch.lerp(real, fake, u[:, None, None, None]).requires_grad_()
    return (_slopes(judge, between).norm(dim=1) - 1).square().mean()


def r1(judge: Judge, real: Tensor) -> Tensor:
    """Half the squared slope at real images, as a mean (Mescheder et al. 2018, eq. 9, without its weight)."""
    return 0.5 * _slopes(judge, real.detach().requires_grad_()).square().sum(1).mean()


def _slopes(judge: Judge, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(judge(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients go through a network, and none to its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


NUMBERS = 7  # uniform numbers that DiffAugment needs for an image


def diff_augment(x: Tensor, u: Tensor, policies: Sequence[str]) -> Tensor:
    """Change images at random, in a way that gradients pass, before the discriminator sees them (Zhao et al. 2020).

    x: (B, 3, S, S) in [-1, 1].  u: (B, NUMBERS) in [0, 1).  policies: keys of POLICIES, in that order.
    """
    for name, policy in POLICIES.items():
        if name in policies:
            x = policy(x, u)
    return x


def _colour(x: Tensor, u: Tensor) -> Tensor:
    """Brightness by -0.5 to 0.5, saturation by 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = u[:, :3, None, None].unbind(1)
    x = x + (brightness[:, None] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(grey, x, 2 * saturation[:, None])
    mean = x.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, contrast[:, None] + 0.5)


def _translation(x: Tensor, u: Tensor) -> Tensor:
    """By up to an eighth of the side, each way; what comes in is 0."""
    most = x.shape[-1] // 8
    return translate(x, (u[:, 3:5] * (2 * most + 1)).long() - most)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of half the side is 0; its centre may be anywhere."""
    side = x.shape[-1]
    return erase(x, (u[:, 5:7] * side).long(), 2 * (side // 4))


POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _colour,
    "translation": _translation,
    "cutout": _cutout,
}
