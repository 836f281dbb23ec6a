"""The evidence lower bound (ELBO) of an image's log-likelihood, in bits per dimension (Kingma and Welling 2014).

log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z)), with p(x | z) normal around the decoder's output, with one
standard deviation sigma for all pixels. Calibrated means the sigma that maximises the likelihood: the root of the mean
squared error (Rybkin et al. 2021, eq. 7).

Images have 256 levels per dimension. Each is spread evenly over its level's width (uniform dequantisation; Theis et al.
2016, section 3.1), so that densities bound probabilities, and everything is divided by the dimensions of an image and
stated in bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVEL = 1 / 127.5  # width of one of the 256 levels, of pixels in [-1, 1]


def dequantise(x: Tensor, u: Tensor) -> Tensor:
    """Spread pixels over the width of their levels.  x: (B, 3, S, S) in [-1, 1].  u: the same shape, in [0, 1)."""
    return x + LEVEL * (u - 0.5)


def reconstruction_nats(error: Tensor | float, variance: Tensor | float) -> Tensor:
    """Return -log p(x | z) per dimension, in nats, of a normal density.  error: mean squared.

    variance: sigma squared.
    """
    error, variance = _as_tensor(error), _as_tensor(variance)
    return 0.5 * (error / variance + torch.log(2 * math.pi * variance))


def bits(nats: Tensor | float) -> Tensor:
    """Convert a KL term from nats to bits per dimension."""
    return _as_tensor(nats) / math.log(2)


def density_bits(nats: Tensor | float) -> Tensor:
    """Convert a density over [-1, 1] from nats to bits per dimension of the 8-bit image."""
    return _as_tensor(nats) / math.log(2) - math.log2(LEVEL)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) of every latent dimension, in nats: the same shape.  Appendix B."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def apply_free_bits(kl: Tensor, batch_kl: Tensor, free_nats: float) -> Tensor:
    """Raise the KL of each latent dimension to at least `free_nats`, without a gradient below (Kingma et al. 2016).

    kl: means over this process's images, (latent,).  batch_kl: over the global batch, which decides where the KL is
    free. Returns the same shape.
    """
    return torch.where(batch_kl > free_nats, kl, free_nats)


def _as_tensor(number: Tensor | float) -> Tensor:
    """Return a tensor as it is, a Python number in float64."""
    return number if isinstance(number, Tensor) else torch.tensor(number, dtype=torch.float64)
