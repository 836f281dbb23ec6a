"""A convolutional variational autoencoder (Kingma and Welling 2014).

encoder   images (B, 3, S, S) -> mean and log variance (B, latent) of the posterior q(z | x)
decoder   z (B, latent) -> the mean of p(x | z), (B, 3, S, S); its standard deviation belongs to the loss

Every level is a strided convolution and a residual block. With classes, both are conditioned on the class
(Sohn et al. 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block, x + f(x): two 3 x 3 convolutions, each after group norm and SiLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the block begins as the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.  x: (B, C, H, W).  Returns the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class VAENetwork(ModelMixin, ConfigMixin):
    """Encoder and decoder, saved as one model."""

    @register_to_config
    def __init__(
        self,
        size: int = 32,
        channels: tuple[int, ...] = (64, 128, 256),
        latent: int = 128,
        groups: int = 8,
        num_classes: int = 0,
    ) -> None:
        """Build the levels.  size: pixels per side, a multiple of 2 ** len(channels).

        channels: of each level, from the images down.  latent: length of z.  groups: of the group norms.
        num_classes: 0 for none.
        """
        super().__init__()
        first, last = channels[0], channels[-1]
        self.side = size // 2 ** len(channels)
        self.label_in = nn.Embedding(num_classes, first) if num_classes else None
        self.label_out = nn.Embedding(num_classes, latent) if num_classes else None
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        widths = [first, *channels]
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), Block(c_out, groups))
            for c_in, c_out in zip(widths, channels, strict=False)
        )
        self.norm_in, self.norm_out = nn.GroupNorm(groups, last), nn.GroupNorm(groups, first)
        self.posterior = nn.Linear(last * self.side**2, 2 * latent)
        self.project = nn.Linear(latent, last * self.side**2)
        self.up = nn.ModuleList(
            nn.Sequential(Block(c_in, groups), nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1))
            for c_in, c_out in zip(reversed(channels), reversed(widths[:-1]), strict=True)
        )
        self.last = nn.Conv2d(first, 3, 3, padding=1)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | x), each (B, latent).

        x: (B, 3, S, S) in [-1, 1].  labels: (B,) int64, where there are classes.
        """
        h = self.stem(x)
        if self.label_in is not None:
            h = h + self.label_in(labels)[:, :, None, None]
        for level in self.down:
            h = level(h)
        mean, log_variance = self.posterior(F.silu(self.norm_in(h)).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of p(x | z), (B, 3, S, S).  z: (B, latent).  labels: (B,) int64, where there are classes."""
        if self.label_out is not None:
            z = z + self.label_out(labels)
        h = self.project(z).unflatten(1, (-1, self.side, self.side))
        for level in self.up:
            h = level(h)
        return self.last(F.silu(self.norm_out(h)))

    def forward(self, x: Tensor, eps: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw one reparametrised sample, decode (eq. 4).  eps: (B, latent), standard normal.

        Returns the mean of p(x | z), and mean and log variance of q(z | x).
        """
        mean, log_variance = self.encode(x, labels)
        z = torch.addcmul(mean, (0.5 * log_variance).exp(), eps)
        return self.decode(z, labels), mean, log_variance
