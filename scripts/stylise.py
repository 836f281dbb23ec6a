"""Stylise photographs in the manner of a given painting: palette by optimal transport, strokes by convolution.

No network and no weights: everything is taken from the two images and from random noise.

1. Orientation. The photo's structure tensor gives the direction along its edges. Where the photo is flat there is no
   such direction, and the strokes follow a swirling field instead.
2. Strokes. Noise smeared along that field (line-integral convolution, Cabral and Leedom 1993) gives the streaks of a
   loaded brush; the photo's colours are smeared likewise, so that a stroke has one colour.
3. Palette. The colours are mapped to those of the painting by sliced optimal transport (Rabin et al. 2011) between
   smoothed quantiles in Oklab. The streaks are added before, so that neighbouring strokes of a flat wall get
neighbouring colours of the painting. The photo's light and shade are kept in part: they keep a horse recognisable.
4. Dark contours along strong edges, and the streaks once more as relief of the paint.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Linear sRGB -> cone responses, and their cube roots -> Oklab (Ottosson 2020).
LMS = torch.tensor(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = torch.tensor(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def stylise(photos: Tensor, paintings: Tensor, generator: torch.Generator) -> Tensor:
    """Paint each photo in the palette and the strokes of the painting at the same place of the batch.

    photos, paintings: (B, 3, S, S) uint8; the tuning below is for S = 128.  Returns (B, 3, S, S) uint8.
    """
    lab, palette = to_oklab(photos), to_oklab(paintings)
    lines = trace(orientation(blur(lab[:, :1], 1.0), generator), reach=7)
    streaks = brush(lab, lines, generator)
    edges = contours(lab, lines)
    streaks = streaks * (1 - 0.6 * blur(edges, 1.0))  # a steadier hand where there is something to see
    drawing = smear(lab, lines, 2)
    light = standardise(drawing[:, :1])
    standout = salience(drawing)
    lean = torch.where((light * standout).mean((2, 3), keepdim=True) < 0, -1.0, 1.0)  # the object is lighter or darker
    light = standardise(light + 0.5 * lean * standout)
    hues = drawing[:, 1:] / (drawing[:, 1:].std((1, 2, 3), keepdim=True) + 0.02)
    hues = hues + 0.6 * lean * standout  # object and background lean to the warm and the cool side of the palette
    colours = torch.cat([0.2 * light + 0.028 * streaks[:, :1], 0.06 * hues + 0.014 * streaks[:, 1:]], 1)
    small = F.avg_pool2d(colours, 2)  # the map is smooth in colour: a quarter of the pixels shows it as well
    moved = transport(small, F.avg_pool2d(palette, 2), generator) - small
    painted = colours + F.interpolate(moved, scale_factor=2, mode="bilinear")
    own = light * palette[:, :1].std((2, 3), keepdim=True).clamp(min=0.12) + palette[:, :1].mean((2, 3), keepdim=True)
    painted[:, :1] = 0.35 * painted[:, :1] + 0.65 * own
    painted = smear(painted, lines, 3)
    painted[:, :1] += 0.03 * streaks[:, :1] + 0.03 * relief(streaks[:, :1])
    painted[:, 1:] = 1.05 * painted[:, 1:] + 0.008 * streaks[:, 1:]
    ink = lab.new_tensor([0.22, 0.0, -0.05]).view(1, 3, 1, 1)  # the dark blue of his outlines
    painted = painted + 0.6 * edges * (ink - painted)
    return from_oklab(painted)


def salience(lab: Tensor) -> Tensor:
    """Return how much each pixel differs from the image's border, (B, 1, S, S), mean 0, standard deviation 1.

    It is an estimate of the object.
    """
    b, c, h, w = lab.shape
    rim = max(h // 10, 1)
    flat = lab.flatten(2)
    border = torch.cat([lab[..., :rim, :].flatten(2), lab[..., :, :rim].flatten(2), lab[..., :, -rim:].flatten(2)], 2)
    centre = border.mean(2, keepdim=True)
    spread = (border - centre) @ (border - centre).transpose(1, 2) / border.shape[2] + 2e-4 * torch.eye(c)
    distance = ((flat - centre) * torch.linalg.solve(spread, flat - centre)).sum(1).sqrt().view(b, 1, h, w)
    line = torch.linspace(-1, 1, h)
    middle = torch.exp(-(line[:, None] ** 2 + line[None, :] ** 2) / 0.8)
    return standardise(blur(distance.clamp(max=5) * middle, 1.5))


def orientation(light: Tensor, generator: torch.Generator) -> Tensor:
    """Return unit vectors (B, 2, S, S) along the edges of `light`, (B, 1, S, S); swirling where there is no edge.

    Directions have no sign, so they are averaged as doubled angles.
    """
    gx, gy = gradient(light)
    edge = torch.cat([gy**2 - gx**2, -2 * gx * gy], 1)  # (cos, sin) of twice the angle of the edge, times its strength
    edge = sum(weight * blur(edge, sigma) for weight, sigma in ((1.0, 1.2), (0.5, 2.5), (0.3, 5.0)))
    heights = blur(torch.randn(light.shape, generator=generator), light.shape[-1] / 6)
    hx, hy = gradient(standardise(heights))
    swirl = torch.atan2(hx, -hy)  # around the hills of a smooth landscape
    fallback = torch.cat([torch.cos(2 * swirl), torch.sin(2 * swirl)], 1)
    double = blur(edge / (edge.norm(dim=1, keepdim=True) + 2e-4) + 0.3 * blur(fallback, 3.0), 1.5)
    angle = 0.5 * torch.atan2(double[:, 1:], double[:, :1])
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1)


def brush(like: Tensor, lines: Tensor, generator: torch.Generator) -> Tensor:
    """Return streaks along the field, (B, 3, S, S), mean 0 and standard deviation 1: noise of a stroke's width."""
    noise = torch.randn(like.shape, generator=generator)
    band = blur(noise, 1.1) - blur(noise, 3.0)
    return standardise(smear(band, lines, 7)).clamp(-2, 2)


def trace(direction: Tensor, reach: int) -> Tensor:
    """Follow each pixel's stream line: flat pixel numbers (reach, 2, B, 1, S * S), both ways from the pixel.

    direction: (B, 2, S, S) unit vectors without sign, x then y.
    """
    b, _, h, w = direction.shape
    field = direction.flatten(2)
    y0, x0 = torch.meshgrid(torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32), indexing="ij")
    places = torch.empty(reach, 2, b, 1, h * w, dtype=torch.long)
    for way, sign in enumerate((1.0, -1.0)):
        x, y, heading = x0.flatten().expand(b, -1), y0.flatten().expand(b, -1), sign * field
        for step in range(reach):
            x, y = (x + heading[:, 0]).clamp(0, w - 1), (y + heading[:, 1]).clamp(0, h - 1)
            places[step, way, :, 0] = (y.round() * w + x.round()).long()
            here = field.gather(2, places[step, way].expand(b, 2, -1))
            heading = here * torch.where((here * heading).sum(1, keepdim=True) < 0, -1.0, 1.0)  # do not turn back
    return places


def smear(image: Tensor, lines: Tensor, reach: int) -> Tensor:
    """Convolve along lines: the weighted mean of (B, C, S, S) over `reach` pixels to either side on its line."""
    flat = image.flatten(2)
    total, weights = flat.clone(), 1.0
    for step in range(reach):
        weight = 1 - ((step + 1) / (reach + 1)) ** 2
        for places in lines[step]:
            total = total + weight * flat.gather(2, places.expand(flat.shape))
            weights += weight
    return (total / weights).view(image.shape)


def transport(colours: Tensor, palette: Tensor, generator: torch.Generator, rounds: int = 8) -> Tensor:
    """Move colours (B, 3, S, S) until they are spread like those of `palette`, by 1-D transport along random axes."""
    b, _, h, w = colours.shape
    moved, goal = colours.flatten(2), palette.flatten(2)
    level = torch.linspace(0.01, 0.99, 25)
    for _ in range(rounds):
        axes = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
        here, there = axes @ moved, axes @ goal
        some = torch.randperm(h * w, generator=generator)[:1024]
        a, z = (torch.quantile(x[:, :, some], level, dim=2).permute(1, 2, 0).contiguous() for x in (here, there))
        moved = moved + 0.7 * axes.T @ (piecewise(here, a, z) - here)
    return moved.view(b, 3, h, w)


def piecewise(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Map x (B, C, N) through the line with the given knots and values, (B, C, K); constant beyond the ends."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, knots.shape[2] - 1)
    k0, k1 = knots.gather(2, right - 1), knots.gather(2, right)
    v0, v1 = values.gather(2, right - 1), values.gather(2, right)
    return v0 + (v1 - v0) * ((x - k0) / (k1 - k0).clamp(min=1e-4)).clamp(0, 1)


def contours(lab: Tensor, lines: Tensor) -> Tensor:
    """Return how strongly each pixel is part of a contour, (B, 1, S, S) in [0, 1]."""
    strength = sum(gx**2 + gy**2 for gx, gy in (gradient(blur(lab[:, i : i + 1], 1.0)) for i in range(3)))
    strength = smear(strength.sqrt(), lines, 4)
    strong = torch.quantile(strength.flatten(1), 0.96, dim=1).clamp(min=0.02).view(-1, 1, 1, 1)
    return ((strength / strong - 0.5) / 0.6).clamp(0, 1)


def relief(heights: Tensor) -> Tensor:
    """Light the heights from the upper left: (B, 1, S, S), about -1 to 1."""
    gx, gy = gradient(blur(heights, 0.7))
    return standardise(gx + gy).clamp(-2, 2)


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return central differences of (B, 1, S, S) along x and y."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, S, S) by a Gaussian, the image mirrored beyond its edges."""
    kernel = gaussian(x.shape[-1], sigma)
    return kernel @ x @ kernel.T


@lru_cache(maxsize=32)
def gaussian(size: int, sigma: float) -> Tensor:
    """Return (size, size): row i holds the weights of all places for place i.

    As a matrix it is three times as fast.
    """
    reach = torch.arange(-size, 2 * size)
    weights = torch.exp(-((torch.arange(size)[:, None] - reach) ** 2) / (2 * sigma**2))
    left, middle, right = weights.split(size, dim=1)
    folded = left.flip(1) + middle + right.flip(1)
    return folded / folded.sum(1, keepdim=True)


def standardise(x: Tensor) -> Tensor:
    """Return x with mean 0 and standard deviation 1 for each image and channel."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-6)


def to_oklab(rgb: Tensor) -> Tensor:
    """Convert (B, 3, H, W) uint8 sRGB to Oklab (Ottosson 2020): lightness 0..1, green-red, blue-yellow."""
    x = rgb.float() / 255
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return torch.einsum("ij,bjhw->bihw", LAB, torch.einsum("ij,bjhw->bihw", LMS, linear) ** (1 / 3))


def from_oklab(lab: Tensor) -> Tensor:
    """Convert Oklab to (B, 3, H, W) uint8 sRGB; colours outside of sRGB are clipped."""
    linear = torch.einsum("ij,bjhw->bihw", LMS.inverse(), torch.einsum("ij,bjhw->bihw", LAB.inverse(), lab) ** 3)
    x = linear.clamp(0, 1)
    x = torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
