"""Adapters of a run: their tokens, hints about them, and exchanging them on a loaded model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from t2i.pipelines.adapters.files import find_all
from t2i.pipelines.adapters.specs import Adapters
from t2i.pipelines.adapters.textual_inversion import Word, read_word

if TYPE_CHECKING:
    from t2i.model_files.locate import ModelFiles
    from t2i.pipelines.loading.plan import MemoryPlan
    from t2i.pipelines.text_to_image.pipeline import TextToImage

NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>")


def read_embedding_words(adapters: Adapters, offline: bool) -> list[Word]:
    """Return the new words of all textual inversions.  Finds and checks the files; raises as `find_all` does."""
    found = find_all(adapters, offline)
    return [read_word(*pair) for pair in zip(adapters.embeddings, found.embeddings, strict=True)]


def adapter_hints(words: Collection[Word], texts: Collection[str]) -> Iterator[str]:
    """Yield hints on embeddings and LoRA tags that have no effect.  texts: all prompts and negative prompts."""
    for word in words:
        if not any(word.token.lower() in text.lower() for text in texts):
            yield f"hint: no prompt contains {word.token}, the token of an embedding: it has no effect"
    if network := next(filter(None, map(NETWORK.search, texts)), None):
        yield f"hint: {network[0][:80]} is read as plain text here; `lora` loads a LoRA"


def load_or_set_adapters(
    model: TextToImage | None, files: ModelFiles, adapters: Adapters, plan: Callable[[], MemoryPlan], **how: Any
) -> TextToImage:
    """Return a model with these adapters attached.  model: a loaded one with the same base, to reuse; None: load.

    plan: makes the memory plan, called only where the model is loaded.  how: keyword arguments of `load`.
    """
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    if model is None:
        return TextToImage.load(files, adapters=adapters, plan=plan(), **how)
    model.set_adapters(adapters, how["offline"])
    return model
