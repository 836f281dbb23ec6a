"""DCGAN: a generator and a discriminator of strided convolutions, with classes or without (Radford et al. 2015).

generator       noise (B, latent) -> images (B, 3, S, S) in [-1, 1]: from 4 x 4 pixels every level doubles the side
discriminator   images -> logits (B,), high for real: every level halves the side, down to 4 x 4

With classes, the generator's batch norms scale and shift by class (de Vries et al. 2017), and the discriminator adds
the projection of its features on the class (Miyato and Koyama 2018, eq. 3). Spectral norm bounds the discriminator's
slope (Miyato et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SIDE = 4  # pixels per side of the smallest level
SLOPE = {"classic": 0.2, "conditional": 0.1}  # of the leaky ReLUs, as in the papers


class ClassBatchNorm(nn.Module):
    """Batch norm with a scale and shift per class (de Vries et al. 2017)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalise, then scale and shift by class.  x: (B, C, H, W).  labels: (B,) int64.  Returns (B, C, H, W)."""
        h = self.norm(x)
        scale, shift = (table(labels)[:, :, None, None].to(h.dtype) for table in (self.scale, self.shift))
        return torch.addcmul(shift, scale, h)  # in h's precision: tables of float32 would make it float32


class Generator(ModelMixin, ConfigMixin):
    """The generator: from noise, and a class, to images."""

    @register_to_config
    def __init__(
        self,
        kind: str = "conditional",
        channels: tuple[int, ...] = (512, 256, 128, 64),
        latent: int = 128,
        num_classes: int = 0,
    ) -> None:
        """Build the levels.

        kind: "classic" ends with a transposed convolution to colours, "conditional" with a 3 x 3 one.
        channels: of each level, from 4 x 4 pixels up.  latent: length of the noise vector.  num_classes: 0 for none.
        """
        super().__init__()
        first, *others = channels
        self.project = nn.Linear(latent, first * SIDE**2, bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
            for c_in, c_out in zip(channels, others, strict=False)
        )
        norm: Callable[[int], nn.Module] = (lambda c: ClassBatchNorm(c, num_classes)) if num_classes else nn.BatchNorm2d
        self.norms = nn.ModuleList(norm(c) for c in channels)
        self.last: nn.Module = (
            nn.ConvTranspose2d(channels[-1], 3, 4, stride=2, padding=1, bias=False)
            if kind == "classic"
            else nn.Conv2d(channels[-1], 3, 3, padding=1)
        )

    @property
    def size(self) -> int:
        """Return the side of the images, in pixels."""
        doublings = len(self.ups) + isinstance(self.last, nn.ConvTranspose2d)
        return int(SIDE * 2**doublings)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate images, (B, 3, S, S).  z: (B, latent), standard normal.

        labels: (B,) int64, where there are classes.
        """
        condition = () if labels is None else (labels,)
        x = self.project(z).unflatten(1, (-1, SIDE, SIDE))
        x = F.relu(self.norms[0](x, *condition))
        for up, norm in zip(self.ups, self.norms[1:], strict=True):
            x = F.relu(norm(up(x), *condition))
        return torch.tanh(self.last(x))


class Discriminator(ModelMixin, ConfigMixin):
    """The discriminator: from images, and a class, to one logit each, high for real."""

    @register_to_config
    def __init__(
        self,
        kind: str = "conditional",
        channels: tuple[int, ...] = (64, 128, 256, 512),
        norm: str = "spectral",
        num_classes: int = 0,
    ) -> None:
        """Build the levels.

        kind: "classic" halves at every level and reads the last 4 x 4 pixels; "conditional" has a 3 x 3
        convolution before each halving and one after the last, and sums its features over the pixels.

        channels: of each level, from the images down.  norm: "batch", "spectral" or "none".  num_classes: 0 for none.
        """
        super().__init__()
        self.slope = SLOPE[kind]
        wrap: Callable[[nn.Module], nn.Module] = spectral_norm if norm == "spectral" else (lambda module: module)
        biased = norm != "batch"  # batch norm subtracts the mean, and any bias with it

        def conv(c_in: int, c_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
            return wrap(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=biased))

        layers: list[nn.Module] = []
        c_in = 3
        for level, c in enumerate(channels):
            if kind == "classic":
                layers.append(conv(c_in, c, 4, 2, 1))
                normed = norm == "batch" and level > 0  # not on the images themselves
                layers += [nn.BatchNorm2d(c)] if normed else []
            else:
                layers.append(conv(c_in, c, 3, 1, 1))
                if level < len(channels) - 1:
                    layers += [nn.LeakyReLU(self.slope), conv(c, c, 4, 2, 1)]
            layers.append(nn.LeakyReLU(self.slope))
            c_in = c
        self.features = nn.Sequential(*layers)
        self.last = conv(c_in, 1, SIDE, 1, 0) if kind == "classic" else wrap(nn.Linear(c_in, 1))
        self.embedding = wrap(nn.Embedding(num_classes, c_in)) if num_classes else None

    @property
    def size(self) -> int:
        """Return the side of the images, in pixels."""
        halvings = sum(1 for layer in self.features if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2))
        return int(SIDE * 2**halvings)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits, (B,).  x: (B, 3, S, S) in [-1, 1].  labels: (B,) int64, where there are classes."""
        h = self.features(x)
        if isinstance(self.last, nn.Conv2d):
            return self.last(h).flatten()
        h = h.sum((2, 3))
        logits = self.last(h).squeeze(1)
        return logits if self.embedding is None else logits + (self.embedding(labels) * h).sum(1)


def initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and scales of batch norms from N(1, 0.02) (Radford et al. 2015, section 4)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # With spectral norm `weight` is computed on every access; `original` is the parameter behind it.
            original = part.parametrizations.weight.original if hasattr(part, "parametrizations") else part.weight
            nn.init.normal_(original, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.normal_(part.weight, 1.0, 0.02)
