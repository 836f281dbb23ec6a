"""Tokenizers of a model, loaded without its weights, and the words of a prompt that will be truncated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i.model_files import single_file
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.locate import ModelFiles
from t2i.model_files.registry import read_json
from t2i.pipelines.prompts.chunking import spelled


def load_tokenizers(files: ModelFiles) -> dict[str, Any]:
    """Load the tokenizers of a model by component name, as components for `load_pipeline`.

    Empty where their folder is not known yet, or one cannot be loaded: `load_pipeline` then says why.
    """
    folder = files.path if files.path.is_dir() else files.config
    if folder is None:
        return {}
    if folder.parent == single_file.CARRIED:
        return single_file.tokenizers(folder)
    import transformers

    tokenizers = {}
    for name, value in read_json(folder / "model_index.json").items():
        if isinstance(value, list) and len(value) == 2 and value[0] == "transformers" and "Tokenizer" in str(value[1]):
            try:
                with silence_libraries():
                    kind = getattr(transformers, str(value[1]))
                    tokenizers[name] = kind.from_pretrained(folder / name, local_files_only=True)
            except Exception:  # loading the pipeline will say it better, and once
                return {}
    return tokenizers


def cut_words(prompt: str, tokenizers: Sequence[Any]) -> str:
    """Return the end of a prompt that is truncated by all text encoders of a model; empty where one reads all of it.

    Of several encoders the one with the longest context counts.
    """
    ends = []
    for tokenizer in tokenizers:
        limit = getattr(tokenizer, "model_max_length", None)
        if not isinstance(limit, int) or limit > 100_000:  # transformers' way of saying that there is none
            return ""
        with silence_libraries():
            ids = tokenizer(spelled(prompt, tokenizer), add_special_tokens=False, truncation=False)["input_ids"]
            room = limit - tokenizer.num_special_tokens_to_add()
            rest = tokenizer.decode(ids[room:], skip_special_tokens=True) if len(ids) > room else ""
            ends.append(rest.replace("</w>", " ").strip())  # CLIP's mark of a word's end remains where words were added
    return min(ends, key=len, default="")
