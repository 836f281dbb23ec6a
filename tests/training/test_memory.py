"""Memory while training: kept from step to step, and laid out as the convolutions like it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from t2i.config import Optimizer, Run
from t2i.training.engine import Engine
from t2i.training.runs.run_folder import Launch, RunFolder

PAGES_OF_TEN_TENSORS = """
import resource, torch
from t2i.training.memory import keep_freed_memory
{call}
for _ in range(4):  # the heap finds its size in the first rounds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """Ten times 64 MiB: without the call every one of their pages comes anew from the system."""
    fresh, kept = (
        int(subprocess.check_output([sys.executable, "-c", PAGES_OF_TEN_TENSORS.format(call=call)]))
        for call in ("", "keep_freed_memory()")
    )
    assert fresh > 10 * (64 << 20) / 65536
    assert kept < fresh / 5


def engine(net: nn.Module, path: Path) -> Engine:
    config = Run(images=8, batch=4, precision="no", save_every=4, ema=4, optimizer=Optimizer(lr=0.1))
    folder = RunFolder(path)
    folder.begin(config, Launch(progress=False))
    return Engine(config, folder, net, "data", Launch(progress=False))


@pytest.mark.parametrize(
    ("norm", "together"), [(nn.BatchNorm2d(8), True), (nn.GroupNorm(2, 8), False)], ids=["batch norm", "group norm"]
)
def test_channels_lie_together_where_that_is_faster(tmp_path: Path, norm: nn.Module, together: bool) -> None:
    run = engine(nn.Sequential(nn.Conv2d(3, 8, 3), norm), tmp_path)
    out = run.module(torch.randn(2, 3, 8, 8))
    assert out.is_contiguous(memory_format=torch.channels_last) == together


def test_a_resumed_optimizer_lies_in_memory_as_the_weights_do(tmp_path: Path) -> None:
    """torch's fused AdamW walks weights and moments side by side, in the order of memory."""
    run = engine(nn.Conv2d(3, 8, 3), tmp_path)
    for step in run.steps():
        run.update(step, run.module(torch.ones(step.batch, 3, 4, 4)).square().mean())
    again = engine(nn.Conv2d(3, 8, 3), tmp_path)
    weight = again.raw.weight
    assert weight.stride() != weight.contiguous().stride()
    for name in ("exp_avg", "exp_avg_sq"):
        now, before = again.optimizer.state[weight][name], run.optimizer.state[run.raw.weight][name]
        assert now.stride() == weight.stride()
        assert torch.equal(now, before)
