"""What a run would train, told before its images are read: parameters by network, and the work of one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from t2i.data.rows import merge_classes
from t2i.data.sources import is_hub, open_source

FORWARD_AND_BACKWARD = 3  # backward computes the gradient of the input and that of the weights, each as costly


@dataclass(frozen=True)
class CostEstimate:
    """Every family's `outline(config)` gives one.

    parameters: by the name of the network.  flops: floating-point operations of one training image, forward and
    backward, a multiplication and an addition being two.
    """

    parameters: dict[str, int]
    flops: int


def size(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


def work(compute: Callable[[], object]) -> int:
    """Floating-point operations of a forward pass, as torch counts them; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compute()
    return int(counter.get_total_flops())


def blank(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on the meta device: of a shape, of no numbers."""
    return torch.zeros(shape, dtype=dtype, device="meta")


def blank_batch(config: Any) -> tuple[Tensor, Tensor | None]:
    """One image, (1, 3, S, S), and its class, (1,), where the config has classes; on the meta device."""
    label = blank(1, dtype=torch.long) if config.label else None
    return blank(1, 3, config.data.size, config.data.size), label


def class_count(config: Any) -> int:
    """How many classes the sources here have, of all label columns, before their images are read; 0 without `label`."""
    columns = [config.label] if isinstance(config.label, str) else config.label or ()
    parts = [open_source(source).classes for source in config.data.sources if columns and not is_hub(source)]
    merged = merge_classes(parts)
    return sum(len(merged.get(column, ())) for column in columns)
