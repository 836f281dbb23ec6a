"""A trained variational autoencoder, with or without classes (Kingma and Welling 2014): samples and reconstructions.

draw = VAE.from_pretrained("runs/vae-cifar10")
draw(8, seed=0)[0].save("sample.png")
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2i.nn.vae import VAENetwork
from t2i.pipelines.class_conditional.latent import LatentPipeline


class VAE(LatentPipeline):
    """From noise of the prior to the mean of the decoder: images in one step, without the pixels' noise."""

    def __init__(self, vae: VAENetwork, classes: Sequence[str] = ()) -> None:
        """Set up the pipeline.  classes: names, in the order of their numbers; none for an unconditional model."""
        super().__init__(classes, vae=vae)

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Decode z (B, latent), with labels (B,) int64 for models that have classes: (B, 3, S, S), about [-1, 1]."""
        return self.network.decode(z, labels)

    @torch.inference_mode()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstruct images, (B, 3, S, S) in [-1, 1], from the mean of their posterior."""
        mean, _ = self.network.encode(x, labels)
        return self.network.decode(mean, labels)
