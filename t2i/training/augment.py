"""Translation and cutout of each image by its own random numbers; differentiable.  Images are (B, C, S, S)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def translate(x: Tensor, shift: Tensor) -> Tensor:
    """Move each image; the gap is 0.  shift: (B, 2) int64, rows up and columns left that it is read from, < S."""
    side, most = x.shape[-1], int(shift.abs().max())
    # One gather from padded images instead of a loop: every image moves by another shift.
    place = torch.arange(side, device=x.device) + most
    rows, columns = (place + shift[:, k, None] for k in (0, 1))  # (B, S) in the padded images
    padded = F.pad(x, (most,) * 4).permute(0, 2, 3, 1)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def erase(x: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set a square of each image to 0 (DeVries and Taylor 2017).  centre: (B, 2) int64.

    side: of the square, pixels.
    """
    place = torch.arange(x.shape[-1], device=x.device)
    begin = centre - side // 2
    rows, columns = ((place >= begin[:, k, None]) & (place < begin[:, k, None] + side) for k in (0, 1))
    return x * ~(rows[:, :, None] & columns[:, None, :])[:, None]
