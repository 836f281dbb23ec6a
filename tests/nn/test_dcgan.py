"""Generator and discriminator: against the published networks layer by layer, and what their parts promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.nn.dcgan import ClassBatchNorm, Discriminator, Generator, initialise

CLASSIC = {"kind": "classic", "channels": (16, 8, 4)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_classic_generator_is_the_published_one() -> None:
    """The first layer of the paper's code, a transposed convolution of one pixel, is our linear one."""
    ours = Generator(**CLASSIC, latent=10).eval()
    theirs = nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        theirs[0].weight.copy_(ours.project.weight.T.unflatten(1, (16, 4, 4)))
        for k, up in enumerate([*ours.ups, ours.last]):
            theirs[3 * k + 3].weight.copy_(up.weight)
        z = noise(5, 10)
        assert (ours(z) - theirs(z[:, :, None, None])).abs().max() < 1e-6
    assert ours.size == ours(z).shape[-1] == 32


def test_classic_discriminator_is_the_published_one() -> None:
    ours = Discriminator(kind="classic", channels=(4, 8, 16), norm="batch")
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(4, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False),
    )  # fmt: skip
    theirs.load_state_dict(
        {f"{k}.{n}": v for k, m in enumerate([*ours.features, ours.last]) for n, v in m.state_dict().items()}
    )
    x = noise(5, 3, 32, 32)
    assert (ours(x) - theirs(x).flatten()).abs().max() < 1e-6
    assert ours.size == 32


@pytest.mark.parametrize(("channels", "size"), [((64, 32, 16, 8), 32), ((64, 32, 16, 8, 8), 64)])
def test_conditional_networks_fit_together(channels: tuple[int, ...], size: int) -> None:
    generator = Generator(channels=channels, latent=6, num_classes=3)
    discriminator = Discriminator(channels=channels[::-1], num_classes=3)
    labels = torch.tensor([0, 1, 2, 2])
    x = generator(noise(4, 6), labels)
    assert x.shape == (4, 3, size, size)
    assert x.abs().max() <= 1
    assert discriminator(x, labels).shape == (4,)
    assert generator.size == discriminator.size == size


def test_class_batch_norm_scales_and_shifts_by_the_class() -> None:
    norm = ClassBatchNorm(5, 3)
    with torch.no_grad():
        norm.scale.weight.copy_(noise(3, 5, seed=1))
        norm.shift.weight.copy_(noise(3, 5, seed=2))
    x, labels = noise(6, 5, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    out = norm(x, labels)
    plain = F.batch_norm(x, None, None, training=True)
    for k, label in enumerate(labels.tolist()):
        expected = plain[k] * norm.scale.weight[label, :, None, None] + norm.shift.weight[label, :, None, None]
        assert (out[k] - expected).abs().max() < 1e-5


def test_labels_change_pictures_and_judgement() -> None:
    generator, discriminator = (
        Generator(channels=(16, 8), num_classes=2),
        Discriminator(channels=(8, 16), num_classes=2),
    )
    nn.init.normal_(generator.norms[0].scale.weight)
    z, x = noise(1, 128).expand(2, -1), noise(1, 3, 8, 8).expand(2, -1, -1, -1)
    labels = torch.tensor([0, 1])
    a, b = generator.eval()(z, labels)
    assert (a - b).abs().max() > 1e-3
    a, b = discriminator.eval()(x, labels)
    assert a != b


def test_spectral_norm_bounds_every_layer() -> None:
    """After a few power iterations the largest singular value of each weight is one."""
    discriminator = Discriminator(channels=(8, 16), num_classes=3)
    x, labels = noise(2, 3, 8, 8), torch.tensor([0, 1])
    for _ in range(200):
        discriminator(x, labels)
    weights = [m.weight for m in discriminator.modules() if hasattr(m, "parametrizations")]
    assert len(weights) == 5
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.detach().flatten(1), 2) == pytest.approx(1, abs=1e-3)


def test_initialise_draws_what_the_paper_says() -> None:
    generator, discriminator = Generator(kind="classic"), Discriminator()
    for module in (generator, discriminator):
        initialise(module)
    up = generator.ups[0].weight.detach()
    assert up.mean().abs() < 1e-4
    assert up.std() == pytest.approx(0.02, rel=0.01)
    assert generator.norms[0].weight.detach().mean() == pytest.approx(1, abs=0.01)
    assert generator.norms[0].bias.abs().max() == 0
    assert discriminator.features[2].parametrizations.weight.original.detach().std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"kind": "classic"}], ids=str)
def test_saved_networks_come_back(changes: dict[str, Any], tmp_path: Path) -> None:
    for name, made, x in (
        ("generator", Generator(channels=(16, 8), latent=6, **changes), noise(2, 6)),
        (
            "discriminator",
            Discriminator(channels=(8, 16), **changes),
            noise(2, 3, 16 if changes else 8, 16 if changes else 8),
        ),
    ):
        made.eval().save_pretrained(tmp_path / name)
        again = type(made).from_pretrained(tmp_path / name, use_safetensors=True).eval()
        assert (made(x) - again(x)).abs().max() < 1e-6
