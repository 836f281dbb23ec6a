"""Warnings about how text encoders will read prompts, given before a model's weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from t2i.errors import UsageError
from t2i.jobs.spec.tasks import Task
from t2i.pipelines.prompts.attention_weights import has_weights
from t2i.pipelines.prompts.chunking import PromptChunker
from t2i.pipelines.prompts.tokenizers import cut_words


def warn_of_prompts(
    model: str, chunker: PromptChunker, tasks: Iterable[tuple[Task, Mapping[str, Any]]], say: Callable[[str], None]
) -> None:
    """Warn about words that are truncated, prompts read in chunks, and weights without effect.

    tasks: each with its settings, as `TextToImage.settings` takes them.  say: takes a line for the user.
    Raises UsageError for a weight out of range and for more chunks than are read, naming the row.
    """
    texts: dict[tuple[str, bool, bool | None], str] = {}
    for task, settings in tasks:
        negative = settings["negative_prompt"] if task.job.negative_prompt is None else task.job.negative_prompt
        for text in (task.job.prompt, negative):
            texts.setdefault((text, settings.get("weights", True), settings.get("chunks")), task.prompt.where)
    most, idle = 1, ""  # chunks of the longest prompt; a prompt whose weights have no effect
    for (text, weights, chunks), where in texts.items():
        try:
            fragments = chunker.fragments(text, weights)
            if chunker.chunked(weights, chunks):
                most = max(most, chunker.chunks(fragments))
                continue
        except UsageError as e:
            raise UsageError(f"{where}: {e.message}", e.hint) if where else e from None
        if cut := cut_words("".join(fragment.text for fragment in fragments), chunker.tokenizers):
            say(f"warning: the model reads no further than its text encoder; cut off: {shorten(cut)}")
        if weights and not chunker.weighs and has_weights(text):
            idle = idle or text
    if most > 1:
        say(f"note: longer than the text encoder reads at once: {most} chunks of {chunker.chunk} tokens")
    if idle:
        say(f"note: {model} takes no attention weights: {shorten(idle, 60)} is read without them")


def shorten(text: str, limit: int = 200) -> str:
    """Return the text on one line in quotes, cut to `limit` characters."""
    text = " ".join(text.split())
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
