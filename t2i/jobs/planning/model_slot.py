"""The one model that is loaded at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i.jobs.events import Emit, Loading, messages
from t2i.jobs.planning.plan import DrawGroup, ModelGroup, prepare
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey

if TYPE_CHECKING:
    from t2i.model_files.locate import ModelFiles
    from t2i.pipelines.text_to_image.pipeline import TextToImage


class ModelSlot:
    """Hold the model that was used last; it is released before another one is loaded.

    A model stays loaded while only its adapters change.
    """

    def __init__(self, key: ModelKey | None = None, model: TextToImage | None = None) -> None:
        """Fill the slot with a model that is loaded already, or leave it empty."""
        self.key = key
        self.model = model
        self.files: dict[tuple[str, str | None], ModelFiles] = {}  # of models found so far

    def load(
        self, group: ModelGroup, request: GenerateRequest, emit: Emit, steady: bool = False
    ) -> tuple[TextToImage, list[DrawGroup]]:
        """Return the model of a group, loaded and with its adapters, and the images in groups of equal settings.

        steady: as of `prepare`.  Raises as `prepare` does; then the slot is empty.
        """
        before = self.model if self.key is not None and self.key.base() == group.key.base() else None
        self.key = self.model = None  # before the next one needs its memory
        if before is None:
            emit(Loading(group.files.model.name))
        model, draws = prepare(group, request, messages(emit), before, steady)
        self.key, self.model = group.key, model
        return model, draws
