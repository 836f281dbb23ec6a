"""Reconstruction losses between images, each a mean over the batch; float32, images (B, C, H, W) in [-1, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.training.elbo import kl_nats


def gradient_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the L1 distance between differences of neighbouring pixels, horizontal and vertical: a scalar.

    It weighs edges apart from brightness.
    """
    horizontal = (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    vertical = (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    return horizontal + vertical


def ssim(x: Tensor, y: Tensor, window: int = 7) -> Tensor:
    """Return the structural similarity in [-1, 1], 1 for equal images, with a uniform window.

    Wang et al. 2004, eq. 13.

    Its constants are for a dynamic range of 2: C1 = (0.01 * 2)^2, C2 = (0.03 * 2)^2.
    """
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, window, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean()


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) in nats, summed over a latent, averaged over the batch.

    Kingma & Welling 2014, appendix B.
    """
    return kl_nats(mean, log_variance).flatten(1).sum(1).mean()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, peak 2, from the mean squared error over the whole batch."""
    return 10 * (4 / F.mse_loss(x, y)).log10()  # 4: the squared peak of a range of 2


def feature_distance(real: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the mean over scales and pixels of the squared distance between unit feature vectors: (B,), in [0, 4].

    real, other: features of two batches of images at several scales, each (B, C, H, W).
    Zhang et al. 2018 (LPIPS), eq. 1, with equal weights for all channels.
    """
    total = real[0].new_zeros(len(real[0]))
    for a, b in zip(real, other, strict=True):
        total = total + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
    return total / len(real)


def by_noise_level(errors: Tensor, t: Tensor, end: float) -> dict[str, Tensor]:
    """Return {mse_quarter1: (sum, number), ...} of the samples whose time is in each quarter of (0, end]: (2,) float32.

    errors: (B,) of each sample.  t: (B,).  Of discrete steps 1 .. T each quarter has the same number.
    """
    quarter = (4 * t / end).ceil().clamp(1, 4).to(errors.device)
    errors = errors.detach().float()
    found = {}
    for k in range(1, 5):
        there = quarter == k
        # sums, not means: parts of a batch may have different numbers of samples in a quarter
        found[f"mse_quarter{k}"] = torch.stack([errors.where(there, 0).sum(), there.sum().to(errors)])
    return found
