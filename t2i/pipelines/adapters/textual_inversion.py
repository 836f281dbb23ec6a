"""Textual inversions: new words for a pipeline's text encoders, from .safetensors files of diffusers or A1111."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.errors import ModelError, UsageError
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.weight_files import tensor_shapes
from t2i.pipelines.adapters.files import AdapterFile
from t2i.pipelines.adapters.specs import Attached, Embedding

NAMELESS = ("emb_params", "*", "string_to_param.*")  # A1111 and kohya: the word is the file's name
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}  # of XL, both in one file
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the second encoder of Stable Diffusion XL"}


@dataclass(frozen=True)
class Word:
    """The new word of a file.  tensors: {name in the file: (vectors, width)}."""

    token: str
    tensors: Mapping[str, tuple[int, int]]

    @property
    def vectors(self) -> int:
        """Return the number of tokens that it takes in the encoder."""
        return max(count for count, _ in self.tensors.values())

    def spelled(self) -> list[str]:
        """Return the tokens that stand for it, as diffusers names them: word, word_1, word_2, ..."""
        return [self.token, *(f"{self.token}_{k}" for k in range(1, self.vectors))]


def read_word(wanted: Embedding, file: AdapterFile) -> Word:
    """Read the word of a verified file, without its vectors.  Raises ModelError: not a textual inversion."""
    shapes = {name: shape if len(shape) == 2 else (1, *shape) for name, shape in tensor_shapes(file.path).items()}
    names = set(shapes)
    ours = names <= set(ENCODERS) or len(names) == 1
    if not ours or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        few = ", ".join(sorted(names)[:3])
        hint = "a LoRA belongs to `lora`" if any("lora" in name for name in names) else "expected one tensor of vectors"
        raise ModelError(f"{file.name} holds no textual inversion (its tensors: {few[:120]})", hint)
    inside = next(iter(names)) if len(names) == 1 and not names & {*NAMELESS, *ENCODERS} else ""
    token = wanted.token or inside or file.stem
    if len(token.split()) != 1:
        raise UsageError(
            f"`embedding={file.name}`: its token {token!r} is not one word", "give one: `embedding=PATH:TOKEN`"
        )
    return Word(token, {name: (shape[0], shape[1]) for name, shape in shapes.items()})


def attach(pipe: Any, model: str, wanted: Sequence[tuple[Embedding, AdapterFile]]) -> list[Attached]:
    """Add these words to the tokenizers and text encoders.  model: its name, for messages.

    Raises UsageError (the pipeline takes none, the word exists), ModelError (made for another text encoder).
    """
    if not wanted:
        return []
    if not hasattr(pipe, "load_textual_inversion"):
        raise UsageError(f"`embedding`: {model} (a {type(pipe).__name__}) takes none", "leave `embedding` out")
    from safetensors.torch import load_file

    done = []
    for embedding, file in wanted:
        word = read_word(embedding, file)
        tensors = load_file(file.path)
        for name, encoder in _encoders(pipe, model, word, file).items():
            tokenizer = getattr(pipe, encoder.replace("text_encoder", "tokenizer"))
            _check_free(word, tokenizer, file)
            value = tensors[name].reshape(word.tensors[name])
            with silence_libraries():
                pipe.load_textual_inversion(
                    {word.token: value}, token=word.token, tokenizer=tokenizer, text_encoder=getattr(pipe, encoder)
                )
        record = {"kind": "embedding", "name": file.name, "token": word.token, "sha256": file.sha256}
        count = f"{word.vectors} vectors" if word.vectors > 1 else "1 vector"
        done.append(Attached(record, f"embedding {file.name}: say {word.token} ({count})"))
    return done


@dataclass(frozen=True)
class Before:
    """Tokenizers and embedding tables from before, with the sizes of their vocabularies."""

    tokenizers: Mapping[str, Any]
    tables: Mapping[str, tuple[Any, int]]


def remember(pipe: Any) -> Before:
    """Save the tokenizers and embedding tables for `restore`; call it before `attach`."""
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder") and part}
    return Before(
        {name: copy.deepcopy(part) for name, part in pipe.components.items() if name.startswith("tokenizer") and part},
        {name: (part.get_input_embeddings(), part.config.vocab_size) for name, part in encoders.items()},
    )


def restore(pipe: Any, before: Before) -> None:
    """Remove the words: the embedding tables are the very objects from before."""
    for name, tokenizer in before.tokenizers.items():
        setattr(pipe, name, tokenizer)
    for name, (table, size) in before.tables.items():
        encoder = getattr(pipe, name)
        encoder.set_input_embeddings(table)
        encoder.config.vocab_size = size


def with_words(tokenizers: Sequence[Any], words: Sequence[Word]) -> list[Any]:
    """Return copies of tokenizers that know these words, to count tokens before a model is loaded."""
    copies = [copy.deepcopy(tokenizer) for tokenizer in tokenizers] if words else list(tokenizers)
    for tokenizer in copies if words else ():
        for word in words:
            for token in word.spelled():  # one by one, as diffusers does
                tokenizer.add_tokens(token)
    return copies


def _encoders(pipe: Any, model: str, word: Word, file: AdapterFile) -> dict[str, str]:
    """Return {tensor of the file: its text encoder}.  Raises ModelError where no encoder has its width."""
    widths = {}
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipe, name, None) is not None:
            widths[name] = int(getattr(pipe, name).get_input_embeddings().weight.shape[1])
    found: dict[str, str] = {}
    for name, (_, width) in word.tensors.items():
        fitting = [encoder for encoder, size in widths.items() if size == width and encoder not in found.values()]
        if name in ENCODERS:
            fitting = [encoder for encoder in fitting if encoder == ENCODERS[name]]
        if not fitting:
            here = " and ".join(map(str, dict.fromkeys(widths.values())))
            made = "Stable Diffusion XL" if len(word.tensors) > 1 else WIDTHS.get(width, "another text encoder")
            message = f"{file.name} has vectors {width} wide, the text encoder of {model} reads {here}"
            raise ModelError(message, f"it was made for {made}: use it with such a model")
        found[name] = fitting[0]
    return found


def _check_free(word: Word, tokenizer: Any, file: AdapterFile) -> None:
    vocabulary = tokenizer.get_vocab()
    taken = next((token for token in word.spelled() if token in vocabulary), None)
    if taken is not None:
        message = f"`embedding={file.name}`: its token {taken!r} is a word of the model already"
        raise UsageError(message, f"give it another: `embedding={file.name}:TOKEN`")
