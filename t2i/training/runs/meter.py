"""Averages of a run's numbers between two rows of its log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class Meter:
    """Means of the logged numbers since the last row of the log.

    sums, counts: of numbers that each step has.  tallies: (2,), sum and count of samples, which a step may lack.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, numbers: dict[str, Tensor]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over steps, or samples, and all processes; NaN where there was no sample.

        Every process must call this.
        """
        # one reduction for all numbers: each costs a round trip between processes
        means = [self.sums[name] / self.counts[name] for name in self.sums]
        totals = torch.stack(means).to(accelerator.device)
        found = dict(zip(self.sums, accelerator.reduce(totals, "mean").tolist(), strict=True))
        if self.tallies:
            sums, counts = accelerator.reduce(torch.stack([*self.tallies.values()], 1), "sum")
            found |= zip(self.tallies, (sums / counts).tolist(), strict=True)
        return found
