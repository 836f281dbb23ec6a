"""The base of pipelines that draw in one step from a latent vector: DCGAN and VAE.

A diffusers pipeline of one network: its folder has diffusers' layout, and needs t2i to be loaded.
An image is a function of the model, its class and its seed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from t2i.errors import ModelError, NonFinite, UsageError
from t2i.imaging import images
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.locate import ModelFiles, locate
from t2i.pipelines.class_conditional.labels import Labels, label_numbers
from t2i.pipelines.class_conditional.protocol import draw_batches
from t2i.pipelines.loading.load import choose_device
from t2i.pipelines.noise import great_circle, make_generators
from t2i.pipelines.settings import limits
from t2i.threads import LOADING

if TYPE_CHECKING:
    from PIL.Image import Image


class LatentPipeline(DiffusionPipeline):
    """Draws images with one network; final classes say which one, and how it decodes.

    network: with `config.latent`, the numbers of noise, and `config.num_classes`.
    classes: names, in the order of their numbers; none for an unconditional model.
    """

    name, hash = "model", None  # of the model and of its weights, for records

    def __init__(self, classes: Sequence[str], **network: Any) -> None:
        """Set up the pipeline.  network: one, by the name of its folder.  Raises ModelError: classes do not match."""
        super().__init__()
        ((_, self.network),) = network.items()
        if self.network.config.num_classes != len(classes):
            raise ModelError(f"the network knows {self.network.config.num_classes} classes, {len(classes)} are named")
        self.network.eval()
        self.register_modules(**network)
        self.register_to_config(classes=list(classes))
        self.classes = tuple(classes)

    @abstractmethod
    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Decode z (B, latent), with labels (B,) int64 for models that have classes: (B, 3, S, S), about [-1, 1]."""

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str | None = None, revision: str | None = None, offline: bool = False
    ) -> Self:
        """Load a run, a folder, or a Hub id, in float32.

        device: default CUDA, else MPS, else CPU.  Raises UsageError, ModelUnavailable, ModelError.
        """
        return cls.from_files(locate(str(model), revision=revision, offline=offline), device)

    @classmethod
    def from_files(cls, found: ModelFiles, device: str | None = None) -> Self:
        """Load located files.  Raises UsageError, ModelError."""
        if found.kind != cls.__name__:
            raise ModelError(f"{found.model.name} is a {found.kind}, not a {cls.__name__}")
        with LOADING, silence_libraries():
            pipe: Any = super().from_pretrained(found.path, use_safetensors=True, local_files_only=True)
        pipe.name, pipe.hash = found.model.name, found.hash()
        return pipe.to(choose_device(device))

    def __call__(self, batch: int = 1, labels: Labels = None, seed: int = 0, *, batch_size: int = 64) -> list[Image]:
        """Draw `batch` images; image k has seed + k, whatever the batch size.

        labels: names or numbers of classes, one for all or a list that is cycled through; None: all in turn.
        batch_size: how many are drawn at once.  Raises UsageError, NonFinite.
        """
        return draw_batches(self, batch, labels, seed, batch_size)

    def settings(self, **given: Any) -> dict[str, Any]:
        """Return the settings of `draw`, which has none.  Raises UsageError where one is given."""
        if given:
            raise UsageError(f"{', '.join(given)}: a {type(self).__name__} draws in one step", "leave it out")
        return {}

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a recipe that depend on the pipeline."""
        kind = type(self).__name__
        return {"steps": 1, "sampler": kind, "scheduler": kind, "guidance": 1.0, "device": str(self.network.device)}

    def draw(self, seeds: Sequence[int], labels: Tensor | None = None) -> list[Image]:
        """Draw one batch.  seeds: one per image.  labels: (B,) int64, for models that have classes."""
        return self.decode_images(self.latents(seeds), labels)

    def interpolate(self, first: int, last: int, count: int = 10, label: str | int | None = None) -> list[Image]:
        """Draw `count` images on the way from one seed to another, all of one class: by default the first.

        Raises UsageError: one seed twice, no such class.
        """
        a, b = self.latents(limits.check_ends(first, last))
        given = 0 if label is None and self.classes else label
        return self.decode_images(great_circle(a, b, count), self.label_numbers(count, given))

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """Draw the noise of these seeds: (B, latent)."""
        # The dtype is named: the default one belongs to the process, and other threads change it while they load.
        size, dtype = self.network.config.latent, torch.float32
        return torch.stack([torch.randn(size, generator=g, dtype=dtype) for g in make_generators(seeds)])

    @torch.inference_mode()
    def decode_images(self, z: Tensor, labels: Tensor | None) -> list[Image]:
        """Decode z (B, latent) to images.  labels: (B,) int64, for models that have classes.  Raises NonFinite."""
        device = self.network.device
        x = self.decode(z.to(device), None if labels is None else labels.to(device))
        if not x.isfinite().all():
            raise NonFinite("non-finite image", "the weights are damaged: take an earlier checkpoint")
        return images.from_tensor(x.clamp(-1, 1).cpu())

    def label_numbers(self, batch: int, labels: Labels) -> Tensor | None:
        """Return class numbers of a batch, (B,) int64; None for an unconditional model.  Raises UsageError."""
        return label_numbers(self.classes, batch, labels)
