"""The classifier's network."""

from __future__ import annotations

from pathlib import Path

import torch

from t2i.nn.resnet import BasicBlock, ResNet


def test_it_is_resnet_18_for_small_images() -> None:
    """11,173,962 parameters, as the ResNet-18 for CIFAR-10 that everyone trains has."""
    assert sum(p.numel() for p in ResNet().parameters()) == 11_173_962


def test_a_block_that_adds_nothing_is_a_relu() -> None:
    block = BasicBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.relu())


def test_logits_are_read_from_the_features() -> None:
    net = ResNet(3, (8, 16), 1).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = net.features(x)
    assert features.shape == (2, 16)
    assert torch.equal(net(x), net.head(features))


def test_larger_images_are_halved_first() -> None:
    x = torch.zeros(1, 3, 128, 128)
    assert ResNet(2, (8, 16), 1, stem_stride=4).stem(x).shape == (1, 8, 32, 32)


def test_saved_network_comes_back(tmp_path: Path) -> None:
    net = ResNet(3, (8, 16), 1).eval()
    net.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), ResNet.from_pretrained(tmp_path, use_safetensors=True).eval()(x))
