"""The discriminator of patches: how much of an image a logit sees, and that it sees nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from t2i.nn.patchgan import PatchDiscriminator


def build(channels: tuple[int, ...] = (4, 6, 8)) -> PatchDiscriminator:
    """In evaluation mode, where spectral norm's estimate stands still."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PatchDiscriminator(channels).eval()


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("levels", "patch"), [(1, 8), (2, 18), (3, 38), (4, 78)])
def test_a_logit_sees_a_patch(levels: int, patch: int) -> None:
    """The pixels that move the middle logit: a square of the receptive field, 3 x 3 on top of 4 x 4 with stride 2."""
    net = build((4,) * levels)
    x = noise(1, 3, 128, 128).requires_grad_()
    logits = net(x)
    side = 128 // 2**levels
    assert logits.shape == (1, 1, side, side)
    (slope,) = torch.autograd.grad(logits[0, 0, side // 2, side // 2], x)
    rows, columns = (slope.abs().sum((0, 1, k)).nonzero().flatten() for k in (3, 2))
    assert (len(rows), int(rows[-1] - rows[0]) + 1) == (patch, patch)
    assert (len(columns), int(columns[-1] - columns[0]) + 1) == (patch, patch)


def test_a_logit_depends_on_no_other_image() -> None:
    net, x = build(), noise(5, 3, 32, 32)
    others = torch.cat([x[:1], -x[1:]])
    with torch.no_grad():
        assert torch.equal(net(x)[0], net(others)[0])
        assert (net(x)[:1] - net(x[:1])).abs().max() < 1e-6
        assert (net(x)[3:] - net(x[3:])).abs().max() < 1e-6


def test_every_layer_stretches_by_one_at_most() -> None:
    """Spectral norm, once its estimate has settled: the largest singular value of each kernel as a matrix is 1."""
    net = build().train()
    with torch.no_grad():
        for _ in range(50):
            net(noise(1, 3, 16, 16))
    layers = [part for part in net.eval().modules() if isinstance(part, nn.Conv2d)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) == pytest.approx(1, abs=1e-3)
