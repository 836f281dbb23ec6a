"""Adapters in a run: their words told to the tokenizers, and what a user should know of them."""

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


def read_words(adapters: Adapters, offline: bool) -> list[Word]:
    """The new words of all textual inversions, all files being found and checked.  Raises as `find_all` does."""
    found = find_all(adapters, offline)
    return [read_word(*pair) for pair in zip(adapters.embeddings, found.embeddings, strict=True)]


def hints(words: Collection[Word], texts: Collection[str]) -> Iterator[str]:
    """What is likely not as it was meant.  texts: all prompts, and what is not to be drawn."""
    for word in words:
        if not any(word.token.lower() in text.lower() for text in texts):
            yield f"hint: no prompt says {word.token}, the word of an embedding: it does nothing there"
    if network := next(filter(None, map(NETWORK.search, texts)), None):
        yield f"hint: {network[0][:80]} is read as plain text there; --lora puts a LoRA on"


def load_or_set_adapters(
    model: TextToImage | None, files: ModelFiles, adapters: Adapters, plan: Callable[[], MemoryPlan], **how: Any
) -> TextToImage:
    """A model that wears these adapters.  model: one with the same base, to be used on.

    plan: makes the plan of the machine, where the model is still to be loaded.  how: to load it.
    """
    from t2i.pipelines.text_to_image.pipeline import TextToImage

    if model is None:
        return TextToImage.load(files, adapters=adapters, plan=plan(), **how)
    model.set_adapters(adapters, how["offline"])
    return model
