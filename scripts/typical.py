"""Select the images that show an object best: the usual outline, before a plain background.

From a few dozen of them per object and style `mini` learns shapes in the time it has; ending the training on few,
well-chosen images is the idea of Dai et al. 2023 (Emu). Outlines are compared as histograms of oriented gradients
(Dalal and Triggs 2005), the better of an image and its mirror image.
"""

from __future__ import annotations

import torch

CELL, BINS = 8, 9  # pixels per side of a cell, and orientations between 0 and 180 degrees
NEIGHBOURS = 12  # an image is typical when it is similar to this many others
SAME = 0.95  # outlines more alike than this are copies of one image
FRAME = 10  # pixels at the left, the right and the top that should be plain


def typical(pictures: torch.Tensor, count: int) -> list[tuple[int, bool]]:
    """Return the `count` most typical of (N, 3, H, W) images in [0, 255], best first, without copies.

    Each is its index, and whether it must be mirrored to face as those before it do.
    The score is the rank of the mean similarity to the nearest neighbours, less the rank of the unrest in the frame.
    """
    strength, angle = gradients(pictures.float().mean(1) / 255)
    outlines, mirrored = histograms(strength, angle), histograms(strength.flip(2), (torch.pi - angle).flip(2))
    likeness = torch.maximum(outlines @ outlines.T, outlines @ mirrored.T).fill_diagonal_(0.0)
    copies = (likeness.tril() > SAME).any(1)
    usual = likeness.masked_fill(likeness > SAME, 0.0).topk(min(NEIGHBOURS, len(likeness))).values.mean(1)
    sides = (strength[:, :FRAME], strength[:, :, :FRAME], strength[:, :, -FRAME:])
    unrest = torch.cat([side.flatten(1) for side in sides], dim=1).mean(1)
    score = (ranks(usual) - ranks(unrest)).masked_fill(copies, -torch.inf)
    chosen = []
    common = torch.zeros_like(outlines[0])
    for i in score.argsort(descending=True, stable=True)[: min(count, int((~copies).sum()))].tolist():
        mirror = bool(mirrored[i] @ common > outlines[i] @ common)
        common += mirrored[i] if mirror else outlines[i]
        chosen.append((i, mirror))
    return chosen


def gradients(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, H, W) strength, and angle in [0, pi), of the brightness gradient."""
    dy, dx = torch.gradient(grey, dim=(1, 2))
    return torch.hypot(dx, dy), torch.atan2(dy, dx).remainder(torch.pi)


def histograms(strength: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Return (N, cells x BINS) of unit length: gradient strength per cell and orientation, interpolated."""
    place = angle.remainder(torch.pi) / torch.pi * BINS
    lower = place.floor()
    part = place - lower
    bins = [
        (strength * ((lower == b) * (1 - part) + (lower == (b - 1) % BINS) * part)).unfold(1, CELL, CELL)
        for b in range(BINS)
    ]
    cells = torch.stack([bin.unfold(2, CELL, CELL).sum((3, 4)) for bin in bins], dim=-1)
    faint = strength.mean((1, 2)) * CELL**2  # a cell with less than the mean strength does not count in full
    cells = cells / torch.sqrt((cells**2).sum(-1, keepdim=True) + (faint**2)[:, None, None, None])
    return torch.nn.functional.normalize(cells.flatten(1), dim=1)


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the place of each value in their order, from 0 to 1."""
    return values.argsort().argsort() / max(1, len(values) - 1)
