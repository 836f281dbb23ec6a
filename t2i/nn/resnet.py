"""A residual network for classification (He et al. 2016), for images of 32 to 128 pixels.

With channels (64, 128, 256, 512) and two blocks per level it is ResNet-18 with the stem for small images: 3 x 3
convolutions only, and no pooling before the first level.
"""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """A basic residual block, relu(x + f(x)): two 3 x 3 convolutions with batch norm.

    Where the shape changes, x goes through a 1 x 1 convolution.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.  x: (B, c_in, H, W).  Returns (B, c_out, H / stride, W / stride)."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ResNet(ModelMixin, ConfigMixin):
    """The classifier: logits of classes, and the features below them."""

    @register_to_config
    def __init__(
        self,
        num_classes: int = 10,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        blocks: int = 2,
        stem_stride: int = 1,
    ) -> None:
        """Build the levels.  channels: of each level, every one but the first halving the side.  blocks: per level.

        stem_stride: 1 for 32 pixels; 2 or 4 halve larger images before the first level.
        """
        super().__init__()
        first = channels[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        levels, c_in = [], first
        for number, c in enumerate(channels):
            strides = [1 if number == 0 else 2] + [1] * (blocks - 1)
            levels.append(nn.Sequential(*(BasicBlock(c if k else c_in, c, s) for k, s in enumerate(strides))))
            c_in = c
        self.levels = nn.Sequential(*levels)
        self.head = nn.Linear(c_in, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):  # keeps the variance through ReLUs (He et al. 2015)
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Return the last level averaged over its pixels, (B, C).  x: (B, 3, S, S) in [-1, 1]."""
        return self.levels(self.stem(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, num_classes).  x: (B, 3, S, S) in [-1, 1]."""
        return self.head(self.features(x))
