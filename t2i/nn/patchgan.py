"""PatchGAN: a discriminator that judges every patch of an image by itself (Isola et al. 2017, section 3.2.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2  # of the leaky ReLUs


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping patch, high for real; with the default channels of 38 x 38 pixels.

    Strided 4 x 4 convolutions, as published; spectral norm (Miyato et al. 2018) in place of batch norm, so that a
    patch's logit depends on its own pixels alone: neither on the batch nor on the number of processes.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256)) -> None:
        """channels: of each level, every one halving the side."""
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for c in channels:
            layers += [spectral_norm(nn.Conv2d(c_in, c, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
            c_in = c
        self.features = nn.Sequential(*layers)
        self.last = spectral_norm(nn.Conv2d(c_in, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [-1, 1].  Returns logits (B, 1, h, w), each side halved len(channels) times."""
        return self.last(self.features(x))
