"""Image sets of text-to-image models: the prompts in turn, one image of each, then from the beginning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from t2i.errors import UsageError
from t2i.imaging import images
from t2i.pipelines.settings.settings import Job, Settings
from t2i.pipelines.text_to_image.pipeline import TextToImage


@dataclass(frozen=True)
class PromptedSet:
    """Images of a text-to-image model: image k has prompt k in turn, and seed + k."""

    model: TextToImage
    settings: Settings
    prompts: tuple[str, ...]
    count: int
    size: int
    seed: int = 0
    formats: tuple[str, ...] = ()
    prompted: bool = True

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return {
            "kind": "model",
            "name": self.name,
            "hash": self.model.weights_hash,
            "seed": self.seed,
            "prompts": {"count": len(self.prompts), "sha256": digest},
            "settings": asdict(self.settings) | {"scheduler": self.model.runner.scheduler_name(self.settings)},
        }

    @property
    def sides(self) -> tuple[int, ...]:
        return (min(self.settings.width, self.settings.height),)

    def pixels(self, which: Sequence[int]) -> Tensor:
        jobs = [Job(prompt, self.seed + k) for k, prompt in zip(which, self.labels(which), strict=True)]
        drawn = [result.image for result in self.model.draw(jobs, self.settings)]
        return torch.stack([images.pixels(images.fit(image, self.size)) for image in drawn])

    def labels(self, which: Sequence[int], question: str = "") -> list[str]:
        return [self.prompts[k % len(self.prompts)] for k in which]


def open_prompted(
    what: str,
    size: int,
    count: int,
    seed: int,
    prompts: Sequence[str],
    *,
    device: str | None = None,
    offline: bool = False,
    **given: Any,
) -> PromptedSet:
    """Load a text-to-image model for evaluation.  Raises UsageError: no prompts; ModelError, ModelUnavailable."""
    if not prompts:
        raise UsageError(f"{what} draws from text: it needs prompts", "--prompts FILE, one prompt per line")
    model = TextToImage.load(what, device=device, offline=offline, scheduler=given.pop("sampler", None))
    # weights=False: prompts are plain text here, so that they mean the same to every model
    return PromptedSet(model, model.settings(**given, weights=False), tuple(prompts), count, size, seed)
