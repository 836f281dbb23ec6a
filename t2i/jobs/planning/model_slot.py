"""The one model that is loaded at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i.jobs.events import Emit, Loading, messages
from t2i.jobs.planning.plan import DrawGroup, ModelGroup, prepare
from t2i.jobs.spec.request import GenerateRequest
from t2i.jobs.spec.resolve import ModelKey
from t2i.threads import FifoLock

if TYPE_CHECKING:
    from t2i.model_files.locate import ModelFiles
    from t2i.pipelines.text_to_image.pipeline import TextToImage


class ModelSlot:
    """Hold the model that was used last; it is released before another one is loaded.

    A model stays loaded while only its adapters change.
    lock: held by whoever loads and draws. Runs that share a slot come one after the other, in the order in which they
    were started, since adapters that one has set would be drawn with by another.
    """

    def __init__(self, key: ModelKey | None = None, model: TextToImage | None = None) -> None:
        """Fill the slot with a model that is loaded already, or leave it empty."""
        self.key = key  # None while it is not certain which adapters are attached
        self.model = model
        self._base = key and key.base()
        self.files: dict[tuple[str, str | None], ModelFiles] = {}  # of models found so far
        self.lock = FifoLock("the loaded model")

    def load(
        self, group: ModelGroup, request: GenerateRequest, emit: Emit, steady: bool = False
    ) -> tuple[TextToImage, list[DrawGroup]]:
        """Return the model of a group, loaded and with its adapters, and the images in groups of equal settings.

        steady: as of `prepare`.  Raises as `prepare` does; a model that was loaded before stays loaded then.
        """
        self.key = None
        if self._base != group.key.base():
            self._base = self.model = None  # before the next one needs its memory
            emit(Loading(group.files.model.name))
        self.model, draws = prepare(group, request, messages(emit), self.model, steady)
        self.key, self._base = group.key, group.key.base()
        return self.model, draws
