"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation and with ReLU6): features of photographs.

A stem, sixteen inverted-residual blocks (Sandler et al. 2018) and a head; 4.65M parameters. Padding is TensorFlow's
"SAME", as the published weights were trained with: where padding is odd, the extra pixel is on the right and bottom.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (blocks, expansion, channels, kernel, stride of the first block) of each stage: EfficientNet-B0's table.
STAGES = (
    (1, 1, 16, 3, 1),
    (2, 6, 24, 3, 2),
    (2, 6, 40, 5, 2),
    (3, 6, 80, 3, 2),
    (3, 6, 112, 5, 1),
    (4, 6, 192, 5, 2),
    (1, 6, 320, 3, 1),
)
# The last block of each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32 of the side.
SCALES = (0, 2, 4, 10, 15)
CHANNELS = (16, 24, 40, 112, 320)  # of the features at those blocks
EPSILON = 1e-3  # of the batch norms, as in TensorFlow


class ConvNorm(nn.Module):
    """Convolution with "SAME" padding, batch norm, and ReLU6 unless the block is linear."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=EPSILON)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and rectify.  x: (B, c_in, H, W).

        Returns (B, c_out, ceil(H / stride), ceil(W / stride)).
        """
        (kernel, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        padding: list[int] = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        x = self.norm(self.conv(F.pad(x, padding) if any(padding) else x))
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """An inverted residual block: expand by a 1 x 1 convolution, filter each channel alone, project.

    The input is added where the shape allows.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        c = c_in * expansion
        self.expand = ConvNorm(c_in, c, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(c, c, kernel, stride, groups=c)
        self.project = ConvNorm(c, c_out, 1, linear=True)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.  x: (B, c_in, H, W).  Returns (B, c_out, H / stride, W / stride)."""
        h = x if self.expand is None else self.expand(x)
        h = self.project(self.depthwise(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """The classifier: logits of ImageNet's 1000 classes, and the features below them."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        c_in = 32
        for count, expansion, channels, kernel, stride in STAGES:
            for k in range(count):
                blocks.append(InvertedResidual(c_in, channels, kernel, stride if k == 0 else 1, expansion))
                c_in = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(c_in, 1280, 1)
        self.classifier = nn.Linear(1280, num_classes)

    def scales(self, x: Tensor) -> list[Tensor]:
        """Return the features at each of SCALES.  x: (B, 3, H, W) in [-1, 1].

        Returns (B, CHANNELS[k], H / 2^(k + 1), W / 2^(k + 1)) for each k.
        """
        found = []
        h = self.stem(normalise(x))
        for number, block in enumerate(self.blocks):
            h = block(h)
            if number in SCALES:
                found.append(h)
        return found

    def features(self, x: Tensor) -> Tensor:
        """Return the head's output averaged over its pixels, (B, 1280).  x: (B, 3, H, W) in [-1, 1]."""
        return self.head(self.scales(x)[-1]).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, num_classes).  x: (B, 3, H, W) in [-1, 1]."""
        return self.classifier(self.features(x))


def normalise(x: Tensor) -> Tensor:
    """Map [-1, 1] to the input range of the published weights: (pixel - 127) / 128 of pixels in 0..255."""
    return ((x + 1) * 127.5 - 127) / 128


@torch.no_grad()
def fold_norms(net: EfficientNetLite0) -> EfficientNetLite0:
    """Fold every batch norm into the convolution before it, in place: the same function, faster.  Returns the net."""
    for part in net.modules():
        if isinstance(part, ConvNorm) and isinstance(part.norm, nn.BatchNorm2d):
            part.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(part.conv.eval(), part.norm.eval())
            part.norm = nn.Identity()
    return net
