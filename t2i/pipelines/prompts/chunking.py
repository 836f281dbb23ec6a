"""Chunking of prompts: how a model's text encoders read them, with or without weights, in one piece or in chunks.

It needs the tokenizers and not the weights, so that users are warned before these are loaded.

CLIP encoders (Stable Diffusion 1, 2 and XL) give a sequence of embeddings, one per token, and an image attends to each.
So a token can be scaled by itself, and a prompt that is longer than the encoder's context becomes several sequences,
concatenated. T5 (Stable Diffusion 3, FLUX) reads whole sentences at length; nothing of the kind is known to work there,
so weights are removed from the text, and long prompts are truncated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t2i.errors import UsageError
from t2i.model_files.library_logging import silence_libraries
from t2i.pipelines.prompts.attention_weights import Fragment, check_weights, words

Family = Literal["sd", "sdxl", "sd3", "flux"]
USUAL = 77  # tokens that CLIP reads, begin and end among them
MAX_CHUNKS = 20  # 1,500 tokens
# Beginnings of a pipeline's class name, in this order: image-to-image and so on are named alike and encode alike.
_PREFIXES: dict[str, Family] = {
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "StableDiffusion": "sd",
    "Flux": "flux",
}
# Pipelines with such names that encode in another way.
_OTHERS = ("Flux2", "InstructPix2Pix", "LatentUpscale", "ImageVariation", "Onnx")


def family(pipeline: str) -> Family | None:
    """Return the family of a pipeline's text encoders by its class name; None: not known."""
    known = (name for prefix, name in _PREFIXES.items() if pipeline.startswith(prefix))
    return None if any(other in pipeline for other in _OTHERS) else next(known, None)


@dataclass(frozen=True)
class PromptChunker:
    """Splits prompts for the text encoders of a model.  tokenizers: of all its encoders."""

    family: Family | None
    tokenizers: tuple[Any, ...]

    @classmethod
    def of(cls, pipeline: str, tokenizers: Collection[Any]) -> PromptChunker:
        """Create one for a pipeline, given by the name of its class."""
        return cls(family(pipeline), tuple(tokenizers))

    @property
    def weighs(self) -> bool:
        """Return whether weights are applied and long prompts can be read in chunks."""
        clip = all(type(tokenizer).__name__.startswith("CLIPTokenizer") for tokenizer in self.tokenizers)
        return self.family in ("sd", "sdxl") and bool(self.tokenizers) and clip

    @property
    def chunk(self) -> int:
        """Return the tokens of one chunk, without its begin and end tokens."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers) - 2

    def chunked(self, weights: bool = True, chunks: bool | None = None) -> bool:
        """Return whether a long prompt is read in chunks.  chunks: the user's choice; None: where it is usual.

        weights: False: everything is done as diffusers does it.
        """
        usual = weights and self.weighs and self.chunk == USUAL - 2
        return self.weighs and (usual if chunks is None else chunks)

    def fragments(self, prompt: str, weights: bool = True) -> Sequence[Fragment]:
        """Split a prompt as it is encoded.  Raises UsageError for a weight out of range."""
        if not weights:
            return [Fragment(prompt)]
        return check_weights(prompt) if self.weighs else [Fragment(words(prompt))]

    def is_long(self, fragments: Sequence[Fragment]) -> bool:
        """Return whether this is more than one chunk."""
        text = "".join(fragment.text for fragment in fragments)
        added = any(map(_has_added_words, self.tokenizers))
        if not added and len(text.encode("utf-8", "replace")) <= self.chunk:  # no token is less than a byte
            return False
        return any(self._count(tokenizer, text) > self.chunk for tokenizer in self.tokenizers)

    def chunks(self, fragments: Sequence[Fragment]) -> int:
        """Return in how many chunks this is read.  Raises UsageError where they are too many."""
        if not self.is_long(fragments):
            return 1
        text = "".join(fragment.text for fragment in fragments)
        most = max(self._count(tokenizer, text) for tokenizer in self.tokenizers)
        found = MAX_CHUNKS + 1
        if most <= self.chunk * MAX_CHUNKS:
            found = max(_pieces(tokenizer, fragments) for tokenizer in self.tokenizers)
        if found > MAX_CHUNKS:
            message = f"prompt: more than {MAX_CHUNKS} chunks of {self.chunk} tokens"
            raise UsageError(message, "shorten it; `chunks=False` truncates it to one")
        return found

    def _count(self, tokenizer: Any, text: str) -> int:
        with silence_libraries():
            return len(tokenizer(spelled(text, tokenizer), add_special_tokens=False, truncation=False)["input_ids"])


def spelled(text: str, tokenizer: Any) -> str:
    """Return the text as a pipeline tokenizes it: a textual inversion of several vectors becomes several words."""
    if not _has_added_words(tokenizer):
        return text
    from diffusers.loaders import TextualInversionLoaderMixin

    return str(TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer))


def _has_added_words(tokenizer: Any) -> bool:
    """Return whether a tokenizer knows a textual inversion of several vectors."""
    return any(token.endswith("_1") for token in tokenizer.get_added_vocab())


def _pieces(tokenizer: Any, fragments: Sequence[Fragment]) -> int:
    """Return how many chunks compel makes of it, which splits at commas and full stops where it can."""
    provider = compel_provider(tokenizer, None, device="cpu", truncate=False)
    with silence_libraries():
        texts, weights = [spelled(fragment.text, tokenizer) for fragment in fragments], [1.0] * len(fragments)
        ids, _, _ = provider.get_token_ids_and_expand_weights(texts, weights, "cpu")
    return len(ids) // int(tokenizer.model_max_length)


def compel_provider(tokenizer: Any, encoder: Any, *, device: Any, truncate: bool, last: bool = True) -> Any:
    """Make compel's encoder of weighted text.  last: use the last layer (SD 1), else the one before it (SD XL)."""
    from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode

    layers = ReturnedEmbeddingsType
    return EmbeddingsProvider(
        tokenizer,
        encoder,
        truncate=truncate,
        returned_embeddings_type=(
            layers.LAST_HIDDEN_STATES_NORMALIZED if last else layers.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        ),
        split_long_text_mode=SplitLongTextMode.PHRASES,
        device=device,
    )
