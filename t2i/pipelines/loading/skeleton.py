"""A pipeline without weights: its class and configs, enough to choose settings and estimate memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from t2i.errors import UsageError
from t2i.model_files.locate import ModelFiles
from t2i.pipelines.loading.load import pipeline_class
from t2i.pipelines.loading.memory_estimate import Networks, networks
from t2i.pipelines.loading.plan import ImageBatch
from t2i.pipelines.settings.settings import PipelineTraits, Settings, batch_size_for, choose_settings

OWN_SIZE = 128  # positions of a side, of the transformers whose configs name none (FLUX.1, Qwen-Image, Chroma)


class PipelineSkeleton:
    """The facts about a model's pipeline without its weights.  Raises ModelError as `pipeline_class` does."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.networks: Networks = networks(files.weights, _folder(files), files.config)
        kind = pipeline_class(files.kind)
        parts: dict[str, Any] = {"vae_scale_factor": self.networks.vae_scale}
        for name, config in self.networks.configs.items():
            config = {"sample_size": OWN_SIZE if name == "transformer" else None} | dict(config)
            parts[name] = SimpleNamespace(config=SimpleNamespace(**config))
        # An object with the arguments and the parts of the real one is all that traits are read from.
        self.traits = PipelineTraits.of(type(kind.__name__, (), {"__call__": kind.__call__, **parts})())

    def settings(self, **chosen: Any) -> Settings:
        """Complete settings, as `TextToImage.settings` does but for checks of the scheduler.  Raises UsageError."""
        return choose_settings(self.traits, self.files.defaults, **chosen)

    def batch_size(self, width: int, height: int) -> int:
        """Return the default number of images drawn at once."""
        return batch_size_for(self.networks.elements, width, height)

    def largest(
        self, asked: Iterable[Mapping[str, Any]], batch_size: int | None, images: int | None = None
    ) -> ImageBatch:
        """Return the largest batch of several settings; invalid ones are left out, and are reported elsewhere.

        asked: as `settings` takes it.  batch_size: None: the default.  images: how many there are at most.
        """
        found = []
        for chosen in asked:
            try:
                made = self.settings(**chosen)
            except UsageError:
                continue
            at_once = batch_size or self.batch_size(*made.final)
            found.append(ImageBatch(*made.final, min(at_once, images or at_once)))
        return max(found, key=lambda p: p.width * p.height * p.batch, default=ImageBatch())


def _folder(files: ModelFiles) -> Path:
    return files.path if files.path.is_dir() else files.path.parent
