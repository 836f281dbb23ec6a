"""Prompt embeddings: each text is encoded alone and once, with its weights, a long one in chunks.

Encoded alone, a text has the same embedding whatever else is in the batch and whatever was drawn before, so caching
cannot change an image. Plain text is encoded by the pipeline itself, the rest by compel, which scales a token's
distance from the empty prompt by a weight above 1, and for one below 1 also blends with the embedding in which these
words are masked (0: only that is left). The pooled embedding of SD XL is that of the plain words' first chunk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.errors import ModelError, UsageError
from t2i.model_files.library_logging import silence_libraries
from t2i.pipelines.prompts.attention_weights import Fragment, has_weights
from t2i.pipelines.prompts.chunking import PromptChunker, compel_provider, spelled
from t2i.pipelines.settings.settings import Job, Settings, call_parameters

if TYPE_CHECKING:
    import torch

CACHE_BYTES = 64_000_000  # 400 prompts of SD 1, 100 of SD XL, 16 of FLUX.1 in half precision


class Encoded(NamedTuple):
    """The embedding of one text.  embeds: (1, tokens, width).  pooled: (1, width), where there is one."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Return the size in memory."""
        return sum(part.numel() * part.element_size() for part in self if part is not None)


class PromptEncoder:
    """Encodes the prompts of one loaded pipeline.  Call `clear` whenever adapters change its text encoders."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.chunker = chunker_of(pipe)
        self._cache: OrderedDict[tuple[Any, ...], Encoded] = OrderedDict()
        self._providers: dict[tuple[bool, int], list[Any]] = {}

    @property
    def bytes(self) -> int:
        """Return the size of the cache."""
        return sum(known.bytes for known in self._cache.values())

    def clear(self) -> None:
        """Empty the cache, and count tokens with the tokenizers that the pipeline has now."""
        self._cache.clear()
        self._providers.clear()  # compel caches the empty prompt
        if self.pipe is not None:
            self.chunker = chunker_of(self.pipe)  # detaching adapters replaces tokenizers

    def release(self) -> None:
        """Release the pipeline, whose memory is needed; the tokenizers stay."""
        self.pipe = None
        self.clear()

    def runs(self, jobs: Sequence[Job], settings: Settings, guided: bool) -> Iterator[list[Job]]:
        """Split jobs into runs that can be drawn at once with each image as it is alone: all have as many chunks.

        Where a pipeline gets no negative prompt if it is empty, images with and without one are drawn apart.
        """
        apart = guided and self.chunker.family in (None, "flux")

        def kind(job: Job) -> tuple[int, bool]:
            return self.chunks(job, settings, guided), apart and bool(settings.negative_of(job))

        for _, run in groupby(jobs, kind):
            yield list(run)

    def chunks(self, job: Job, settings: Settings, guided: bool) -> int:
        """Return the number of chunks of an image's prompts: that of the longer of the two."""
        if not settings.chunks:
            return 1
        texts = [job.prompt, settings.negative_of(job)] if guided else [job.prompt]
        return max(self.chunker.chunks(self._fragments(text, settings)) for text in texts)

    def describe(self, job: Job, settings: Settings, guided: bool) -> dict[str, Any]:
        """Describe how an image's prompts are read, for its record; empty: as plain text, truncated where too long."""
        texts = [job.prompt, settings.negative_of(job)] if guided else [job.prompt]
        found: dict[str, Any] = {}
        if settings.weights and any(map(has_weights, texts)):
            found["weights"] = "applied" if self.chunker.weighs else "left out"
        if (chunks := self.chunks(job, settings, guided)) > 1:
            found["chunks"] = chunks
        return found

    def options(self, jobs: Sequence[Job], settings: Settings, guided: bool) -> dict[str, Any]:
        """Return the prompts of one batch as arguments of the pipeline: embeddings for the families known here.

        guided: whether negative prompts have an effect.
        """
        if self.chunker.family is None:
            return self._texts(jobs, settings, guided)
        length = max(self.chunks(job, settings, guided) for job in jobs)
        prompts = [self._encode(job.prompt, settings, length) for job in jobs]
        options = _rows(prompts, "")
        if guided and (self.chunker.family != "flux" or any(settings.negative_of(job) for job in jobs)):
            negatives = [
                self._negative(settings.negative_of(job), settings, length, prompt)
                for job, prompt in zip(jobs, prompts, strict=True)
            ]
            options |= _rows(negatives, "negative_")
        return options

    def _texts(self, jobs: Sequence[Job], settings: Settings, guided: bool) -> dict[str, Any]:
        """Return the prompts as texts without weights."""

        def text(written: str) -> str:
            return "".join(fragment.text for fragment in self._fragments(written, settings))

        options: dict[str, Any] = {"prompt": [text(job.prompt) for job in jobs]}
        if settings.clip_skip is not None:
            options["clip_skip"] = settings.clip_skip - 1  # as diffusers counts
        negatives = [text(settings.negative_of(job)) for job in jobs]
        return options | ({"negative_prompt": negatives} if guided and any(negatives) else {})

    def _fragments(self, text: str, settings: Settings) -> Sequence[Fragment]:
        return self.chunker.fragments(text, settings.weights)

    def _negative(self, text: str, settings: Settings, length: int, prompt: Encoded) -> Encoded:
        """Encode a negative prompt; an empty one of SD XL is zeros, as in its training, where its config says so."""
        if not text and self.chunker.family == "sdxl" and self.pipe.config.get("force_zeros_for_empty_prompt"):
            return Encoded(*(part if part is None else part.new_zeros(part.shape) for part in prompt))
        return self._encode(text, settings, length)

    def _encode(self, text: str, settings: Settings, length: int) -> Encoded:
        """Encode one text, padded to `length` chunks with chunks of the empty prompt."""
        import torch

        fragments, layer = self._fragments(text, settings), self._layer(settings)
        long = settings.chunks and self.chunker.is_long(fragments)
        known = self._cached(fragments, long, layer)
        missing = length * (self.chunker.chunk + 2) - known.embeds.shape[1] if length > 1 else 0
        if missing <= 0:
            return known
        empty = self._cached([Fragment("")], False, layer).embeds
        return known._replace(embeds=torch.cat([known.embeds] + [empty] * (missing // empty.shape[1]), dim=1))

    def _layer(self, settings: Settings) -> int:
        """Return which layer of the text encoders is read, counted from the end; 0: the model's own.

        Raises UsageError where an encoder has fewer.
        """
        wanted, own = settings.clip_skip or 0, 1 if self.chunker.family == "sd" else 2
        if wanted <= own:
            return 0
        encoders = [getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
        layers = min(encoder.config.num_hidden_layers for encoder in encoders if encoder is not None)
        if wanted > layers:
            raise UsageError(f"`clip_skip={wanted}`: this model's text encoder has {layers} layers")
        return wanted

    def _cached(self, fragments: Sequence[Fragment], long: bool, layer: int) -> Encoded:
        """Encode fragments, or return their cached embedding; the least recently used one leaves first."""
        key = (*fragments, long, layer)
        if key not in self._cache:
            weighted = any(fragment.weight != 1 for fragment in fragments)
            encode = partial(self._by_compel, long=long) if weighted or long else self._by_pipeline
            self._cache[key] = encode(fragments, layer=layer)
        self._cache.move_to_end(key)
        found = self._cache[key]
        while self.bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cache.popitem(last=False)
        return found

    def _by_pipeline(self, fragments: Sequence[Fragment], layer: int) -> Encoded:
        """Encode as diffusers does: a prompt longer than the encoder's context is truncated.

        layer: as `_layer` returns it.
        """
        import torch

        pipe, text = self.pipe, "".join(fragment.text for fragment in fragments)
        device = pipe._execution_device
        with silence_libraries(), torch.no_grad():
            if self.chunker.family == "sd":
                return Encoded(
                    self._read_layer(text, layer) if layer else pipe.encode_prompt(text, device, 1, False)[0]
                )
            if self.chunker.family == "flux":
                return Encoded(*pipe.encode_prompt(text, None, device=device)[:2])
            others: dict[str, Any] = {"prompt_3": None} if self.chunker.family == "sd3" else {}
            others["clip_skip"] = layer - 2 if layer else None  # these leave out the last layer by themselves
            found = pipe.encode_prompt(text, None, **others, device=device, do_classifier_free_guidance=False)
        return Encoded(found[0], found[2])

    def _read_layer(self, text: str, layer: int) -> torch.Tensor:
        """Return another layer of the one encoder of SD 1 and 2: (1, tokens, width).

        As `encode_prompt` would with `clip_skip`, which in diffusers 0.42 fails on the encoders of transformers 5.
        """
        pipe, tokenizer, device = self.pipe, self.pipe.tokenizer, self.pipe._execution_device
        longest = tokenizer.model_max_length
        text = pipe.maybe_convert_prompt(text, tokenizer)  # an embedding of several vectors is several tokens
        read = tokenizer(text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        masked = getattr(pipe.text_encoder.config, "use_attention_mask", False)
        encoder = _Encoder(pipe.text_encoder, device, layer)
        embeds: torch.Tensor = encoder(
            read.input_ids.to(device), read.attention_mask.to(device) if masked else None
        ).last_hidden_state
        return embeds.to(pipe.text_encoder.dtype)

    def _by_compel(self, fragments: Sequence[Fragment], long: bool, layer: int) -> Encoded:
        """Encode weighted or long text.  Raises ModelError where compel cannot match words and tokens."""
        import torch

        if (long, layer) not in self._providers:
            self._providers[long, layer] = self._make_providers(long, layer)
        providers = self._providers[long, layer]
        with silence_libraries(), torch.no_grad():
            parts = [self._weigh(fragments, provider) for provider in providers]
            length = max(part.shape[1] for part in parts)  # two encoders may split a text in two ways
            for k, part in enumerate(parts):
                parts[k] = torch.cat([part] + [providers[k].empty_z] * (length // part.shape[1] - 1), dim=1)
        plain = self._by_pipeline(fragments, layer)
        return Encoded(torch.cat(parts, dim=-1).to(plain.embeds), plain.pooled)

    def _weigh(self, fragments: Sequence[Fragment], provider: Any) -> torch.Tensor:
        """Encode by one encoder: (1, tokens, width).  Fragments without tokens, such as a blank, are left out."""
        texts = [spelled(fragment.text, provider.tokenizer) for fragment in fragments]
        tokens = provider.get_token_ids(texts, include_start_and_end_markers=False)
        kept = [k for k, ids in enumerate(tokens) if ids]
        weighted = [texts[k] for k in kept], [fragments[k].weight for k in kept]
        try:
            embeds: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
                [weighted[0]], [weighted[1]], device=self.pipe._execution_device
            )
        except RuntimeError as e:
            if "token sequence" not in str(e):
                raise
            raise ModelError(f"prompt: its weights cannot be told apart: {str(e)[:100]}", "try `raw`") from None
        return embeds

    def _make_providers(self, long: bool, layer: int) -> list[Any]:
        """Make one per text encoder of the pipeline, in its order."""
        names = ("", "_2")
        pairs = [
            (getattr(self.pipe, f"tokenizer{n}", None), getattr(self.pipe, f"text_encoder{n}", None)) for n in names
        ]
        device, last = self.pipe._execution_device, self.chunker.family == "sd"
        return [
            compel_provider(
                tokenizer, _Encoder(encoder, device, layer, last), device=device, truncate=not long, last=last
            )
            for tokenizer, encoder in pairs
            if encoder is not None
        ]


class _Encoder:
    """A text encoder for compel, with the device on which it computes: offloaded weights may be elsewhere until then.

    A mask that hides nothing is left out, as diffusers does, so that words of weight 1 are the same bit for bit.
    layer: the one that stands in for the one that compel reads, counted from the end; 0: none.
    last: compel reads the last one, normalised; else the one before, as it is.
    """

    def __init__(self, encoder: Any, device: Any, layer: int = 0, last: bool = True) -> None:
        self.encoder = encoder
        self.device = device
        self.layer = layer
        self.last = last

    @property
    def dtype(self) -> Any:
        """Return the dtype of the weights."""
        return self.encoder.dtype

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> Any:
        mask = None if mask is None or bool(mask.all()) else mask
        if not self.layer:
            return self.encoder(ids, mask, **options)
        found = self.encoder(ids, mask, **(options | {"output_hidden_states": True}))
        read = found.hidden_states[-self.layer]
        if not self.last:
            return SimpleNamespace(hidden_states=(*found.hidden_states[:-2], read, found.hidden_states[-1]))
        # the norm was trained for the last layer; A1111 and diffusers use it for whichever is read
        norm = getattr(self.encoder, "text_model", self.encoder).final_layer_norm
        return SimpleNamespace(last_hidden_state=norm(read))


def chunker_of(pipe: Any) -> PromptChunker:
    """Return the chunker of a loaded pipeline; its family is unknown where the call takes no embeddings."""
    takes = call_parameters(pipe)
    name = type(pipe).__name__ if "prompt_embeds" in takes and hasattr(pipe, "encode_prompt") else ""
    parts = [getattr(pipe, f"tokenizer{n}", None) for n in ("", "_2", "_3")]
    return PromptChunker.of(name, [part for part in parts if part is not None])


def _rows(encoded: Sequence[Encoded], which: str) -> dict[str, torch.Tensor]:
    """Stack embeddings, one row per image, as arguments of a pipeline.  which: "" or "negative_"."""
    import torch

    options = {f"{which}prompt_embeds": torch.cat([one.embeds for one in encoded])}
    pooled = [one.pooled for one in encoded if one.pooled is not None]
    return options | ({f"{which}pooled_prompt_embeds": torch.cat(pooled)} if pooled else {})
