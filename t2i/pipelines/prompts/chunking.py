"""How a model's text encoders read a prompt: with weights or without, in one piece or in chunks.

It needs the tokenizers and not the weights, so that a user is told before these are loaded.

CLIP encoders (Stable Diffusion 1, 2 and XL) see a sequence of embeddings, one per token, and a picture attends to each.
So a token can be scaled by itself, and a prompt that is longer than the encoder reads becomes several sequences, one
behind the other. T5 (Stable Diffusion 3, FLUX) reads whole sentences at length; nothing of the kind is known to work
there, so weights are left out of the text, and what is too long is cut.
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
# Of a pipeline's class name, in this order: image-to-image and so on are named alike and encode alike.
_PREFIXES: dict[str, Family] = {
    "StableDiffusionXL": "sdxl",
    "StableDiffusion3": "sd3",
    "StableDiffusion": "sd",
    "Flux": "flux",
}
# Pipelines that are called like these and encode in another way.
_OTHERS = ("Flux2", "InstructPix2Pix", "LatentUpscale", "ImageVariation", "Onnx")


def family(pipeline: str) -> Family | None:
    """What a pipeline's class name says of its encoders; None: nothing is known of them."""
    known = (name for prefix, name in _PREFIXES.items() if pipeline.startswith(prefix))
    return None if any(other in pipeline for other in _OTHERS) else next(known, None)


@dataclass(frozen=True)
class PromptChunker:
    """A model's way to read.  tokenizers: of all its encoders."""

    family: Family | None
    tokenizers: tuple[Any, ...]

    @classmethod
    def of(cls, pipeline: str, tokenizers: Collection[Any]) -> PromptChunker:
        """pipeline: its class by name."""
        return cls(family(pipeline), tuple(tokenizers))

    @property
    def weighs(self) -> bool:
        """Whether weights are applied and long prompts can be read in chunks."""
        clip = all(type(tokenizer).__name__.startswith("CLIPTokenizer") for tokenizer in self.tokenizers)
        return self.family in ("sd", "sdxl") and bool(self.tokenizers) and clip

    @property
    def chunk(self) -> int:
        """Words' tokens in one chunk."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers) - 2

    def chunked(self, weights: bool = True, chunks: bool | None = None) -> bool:
        """Whether a long prompt is read in chunks.  chunks: what the user says; None: where it is usual.

        weights: False: everything is to be as diffusers does it.
        """
        usual = weights and self.weighs and self.chunk == USUAL - 2
        return self.weighs and (usual if chunks is None else chunks)

    def fragments(self, prompt: str, weights: bool = True) -> Sequence[Fragment]:
        """The prompt as it is encoded.  Raises UsageError for a weight out of range."""
        if not weights:
            return [Fragment(prompt)]
        return check_weights(prompt) if self.weighs else [Fragment(words(prompt))]

    def is_long(self, fragments: Sequence[Fragment]) -> bool:
        """Whether this is more than one chunk."""
        text = "".join(fragment.text for fragment in fragments)
        taught = any(map(_taught, self.tokenizers))
        if not taught and len(text.encode("utf-8", "replace")) <= self.chunk:  # no token is less than a byte
            return False
        return any(self._count(tokenizer, text) > self.chunk for tokenizer in self.tokenizers)

    def chunks(self, fragments: Sequence[Fragment]) -> int:
        """In how many chunks this is read.  Raises UsageError where they are too many."""
        if not self.is_long(fragments):
            return 1
        text = "".join(fragment.text for fragment in fragments)
        most = max(self._count(tokenizer, text) for tokenizer in self.tokenizers)
        found = MAX_CHUNKS + 1
        if most <= self.chunk * MAX_CHUNKS:
            found = max(_pieces(tokenizer, fragments) for tokenizer in self.tokenizers)
        if found > MAX_CHUNKS:
            message = f"prompt: more than {MAX_CHUNKS} chunks of {self.chunk} tokens"
            raise UsageError(message, "shorten it; --no-chunks cuts it to one")
        return found

    def _count(self, tokenizer: Any, text: str) -> int:
        with silence_libraries():
            return len(tokenizer(spelled(text, tokenizer), add_special_tokens=False, truncation=False)["input_ids"])


def spelled(text: str, tokenizer: Any) -> str:
    """The text as a pipeline hands it on: a word of several vectors (textual inversion) is written as several."""
    if not _taught(tokenizer):
        return text
    from diffusers.loaders import TextualInversionLoaderMixin

    return str(TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer))


def _taught(tokenizer: Any) -> bool:
    """Whether a tokenizer has learned a word of several vectors."""
    return any(token.endswith("_1") for token in tokenizer.get_added_vocab())


def _pieces(tokenizer: Any, fragments: Sequence[Fragment]) -> int:
    """How many chunks compel makes of it, which parts at commas and full stops where it can."""
    provider = compel_provider(tokenizer, None, device="cpu", truncate=False)
    with silence_libraries():
        texts, weights = [spelled(fragment.text, tokenizer) for fragment in fragments], [1.0] * len(fragments)
        ids, _, _ = provider.get_token_ids_and_expand_weights(texts, weights, "cpu")
    return len(ids) // int(tokenizer.model_max_length)


def compel_provider(tokenizer: Any, encoder: Any, *, device: Any, truncate: bool, last: bool = True) -> Any:
    """compel's encoding of weighted text.  last: the encoder's last layer (SD 1), else the one before it (SD XL)."""
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
