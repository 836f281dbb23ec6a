"""What pipelines that draw in one step from a vector of noise have in common: DCGAN and VAE.

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

if TYPE_CHECKING:
    from PIL.Image import Image


class LatentPipeline(DiffusionPipeline):
    """Draws images with one network; what it is and how it decodes, a final class says.

    network: with `config.latent`, the numbers of noise, and `config.num_classes`.
    classes: names, in the order of their numbers; none for an unconditional model.
    """

    name, hash = "model", None  # of the model and of its weights, for the records of what it draws

    def __init__(self, classes: Sequence[str], **network: Any) -> None:
        """network: one, by the name of its folder.  Raises ModelError: classes that do not fit."""
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
        """z: (B, latent).  labels: (B,) int64, for models that have classes.  Returns (B, 3, S, S), about [-1, 1]."""

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
        """Load a model that has been located.  Raises UsageError, ModelError."""
        if found.kind != cls.__name__:
            raise ModelError(f"{found.model.name} is a {found.kind}, not a {cls.__name__}")
        with silence_libraries():
            pipe: Any = super().from_pretrained(found.path, use_safetensors=True, local_files_only=True)
        pipe.name, pipe.hash = found.model.name, found.hash()
        return pipe.to(choose_device(device))

    def __call__(self, batch: int = 1, labels: Labels = None, seed: int = 0, *, batch_size: int = 64) -> list[Image]:
        """Draw `batch` pictures; picture k has seed + k, whatever is drawn beside it.

        labels: names or numbers of classes, one for all or a list that is gone through in turn; None: all in turn.
        batch_size: how many are drawn at once.  Raises UsageError, NonFinite.
        """
        return draw_batches(self, batch, labels, seed, batch_size)

    def settings(self, **given: Any) -> dict[str, Any]:
        """What `draw` takes besides seeds and labels: nothing.  Raises UsageError where something is given."""
        if given:
            raise UsageError(f"{', '.join(given)}: a {type(self).__name__} draws in one step", "leave it out")
        return {}

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a picture's recipe says of how it was drawn."""
        kind = type(self).__name__
        return {"steps": 1, "sampler": kind, "scheduler": kind, "guidance": 1.0, "device": str(self.network.device)}

    def draw(self, seeds: Sequence[int], labels: Tensor | None = None) -> list[Image]:
        """One batch of pictures.  seeds: one per image.  labels: (B,) int64, for models that have classes."""
        return self.pictures(self.latents(seeds), labels)

    def interpolate(self, first: int, last: int, count: int = 10, label: str | int | None = None) -> list[Image]:
        """`count` pictures on the way from one seed to another, all of one class: the first where there are any.

        Raises UsageError: one seed twice, no such class.
        """
        a, b = self.latents(limits.check_ends(first, last))
        given = 0 if label is None and self.classes else label
        return self.pictures(great_circle(a, b, count), self.label_numbers(count, given))

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The noise of these seeds: (B, latent)."""
        return torch.stack([torch.randn(self.network.config.latent, generator=g) for g in make_generators(seeds)])

    @torch.inference_mode()
    def pictures(self, z: Tensor, labels: Tensor | None) -> list[Image]:
        """z: (B, latent).  labels: (B,) int64, for models that have classes.  Raises NonFinite."""
        device = self.network.device
        x = self.decode(z.to(device), None if labels is None else labels.to(device))
        if not x.isfinite().all():
            raise NonFinite("non-finite image", "the weights are damaged: take an earlier checkpoint")
        return images.from_tensor(x.clamp(-1, 1).cpu())

    def label_numbers(self, batch: int, labels: Labels) -> Tensor | None:
        """Class numbers of a batch, (B,) int64; None for an unconditional model.  Raises UsageError: no such class."""
        return label_numbers(self.classes, batch, labels)
