"""The VAE's network: shapes, the reparametrised sample, and what the class does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2i.nn.vae import Block, VAENetwork

SMALL = {"channels": (8, 16), "latent": 6, "groups": 4}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_block_begins_as_the_identity() -> None:
    x = noise(2, 8, 5, 5)
    assert torch.equal(Block(8, 4)(x), x)


@pytest.mark.parametrize("size", [16, 32])
def test_forward_is_encode_sample_decode(size: int) -> None:
    net = VAENetwork(size, **SMALL).eval()
    x, eps = noise(3, 3, size, size), noise(3, 6, seed=1)
    x_hat, mean, log_variance = net(x, eps)
    assert x_hat.shape == x.shape
    assert mean.shape == log_variance.shape == (3, 6)
    again = net.encode(x)
    assert torch.equal(again[0], mean)
    z = mean + (log_variance / 2).exp() * eps
    assert (net.decode(z) - x_hat).abs().max() < 1e-6
    at_mean, *_ = net(x, torch.zeros_like(eps))
    assert (net.decode(mean) - at_mean).abs().max() < 1e-6


def test_both_halves_are_told_the_class() -> None:
    net = VAENetwork(16, **SMALL, num_classes=2).eval()
    x, labels = noise(1, 3, 16, 16).expand(2, -1, -1, -1), torch.tensor([0, 1])
    mean, _ = net.encode(x, labels)
    assert not torch.equal(mean[0], mean[1])
    a, b = net.decode(noise(1, 6).expand(2, -1), labels)
    assert not torch.equal(a, b)


def test_saved_network_comes_back(tmp_path: Path) -> None:
    net = VAENetwork(16, **SMALL).eval()
    net.save_pretrained(tmp_path)
    again = VAENetwork.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert torch.equal(net.decode(noise(2, 6)), again.decode(noise(2, 6)))
