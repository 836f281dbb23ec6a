"""The moving average: its half-life in images is one, whatever the batch; buffers come along."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2i.training.ema import Ema, ema_decay


class Net(nn.Module):
    """A weight, a float buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("count", torch.tensor(0))


def change(net: Net, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for value in net.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=draw) if value.is_floating_point() else torch.tensor(step))


@pytest.mark.parametrize("batch", [4, 32, 500])
def test_half_is_forgotten_after_a_half_life(batch: int) -> None:
    kept, seen, half_life = 1.0, 1_000_000, 8_000
    for _ in range(half_life // batch):
        seen += batch
        kept *= ema_decay(batch, seen, half_life)
    assert abs(kept - 0.5) < 1e-9


def test_half_life_grows_with_the_run_and_stops() -> None:
    """At the beginning a twentieth of the images seen, so that the first weights are soon forgotten."""
    assert abs(ema_decay(10, 200, 50_000) - 0.5) < 1e-12  # 0.05 * 200 = 10 images
    assert abs(ema_decay(10, 10**9, 10) - 0.5) < 1e-12
    decays = [ema_decay(10, seen, 50_000) for seen in range(10, 2_000_000, 10_000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.5 ** (10 / 50_000)


def test_half_life_zero_keeps_no_average() -> None:
    net = Net()
    ema = Ema(net, 0)
    change(net, 1)
    ema.update(net, 4, 4)
    assert all(torch.equal(ema.values[name], value) for name, value in net.state_dict().items())


def test_update_equals_a_plain_loop() -> None:
    net = Net()
    ema = Ema(net, half_life=16)
    expected = {name: value.double() for name, value in net.state_dict().items()}
    for step in range(1, 40):
        change(net, step)
        seen = 4 * step
        ema.update(net, 4, seen)
        beta = 0.5 ** (4 / min(16, 0.05 * seen))
        for name, value in net.state_dict().items():
            expected[name] = beta * expected[name] + (1 - beta) * value.double()
    for name in ("layer.weight", "layer.bias", "scale"):
        assert (ema.values[name].double() - expected[name]).abs().max() < 1e-5, name


def test_counters_are_copied_not_averaged() -> None:
    net = Net()
    ema = Ema(net, half_life=10_000)
    change(net, 5)
    ema.update(net, 4, 1_000_000)
    assert ema.values["count"].item() == 5


def test_the_average_is_a_copy() -> None:
    net = Net()
    before = net.layer.weight.detach().clone()
    ema = Ema(net, 16)
    change(net, 1)
    assert torch.equal(ema.values["layer.weight"], before)
    kept = {name: value.clone() for name, value in ema.values.items()}
    ema.update(net, 4, 4_000)
    other = Ema(net, 16)
    other.load(kept)
    kept["layer.weight"].zero_()
    assert torch.equal(other.values["layer.weight"], before)
