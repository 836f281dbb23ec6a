"""A trained DCGAN generator, with or without classes (Radford et al. 2015).

draw = DCGAN.from_pretrained("runs/dcgan-cifar10")
draw(8, labels=["horse"], seed=0)[0].save("horse.png")
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from t2i.nn.dcgan import Generator
from t2i.pipelines.class_conditional.latent import LatentPipeline


class DCGAN(LatentPipeline):
    """From noise to images in one step."""

    def __init__(self, generator: Generator, classes: Sequence[str] = ()) -> None:
        """Set up the pipeline.  classes: names, in the order of their numbers; none for an unconditional generator."""
        super().__init__(classes, generator=generator)

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Decode z (B, latent), with labels (B,) int64 for models that have classes: (B, 3, S, S) in [-1, 1]."""
        return self.network(z, labels)
