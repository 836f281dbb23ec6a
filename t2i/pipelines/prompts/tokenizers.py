"""Which words of a prompt are beyond what the text encoder reads; needs the tokenizers, not the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i.model_files import single_file
from t2i.model_files.library_logging import silence_libraries
from t2i.model_files.locate import ModelFiles
from t2i.model_files.registry import read_json
from t2i.pipelines.prompts.chunking import spelled


def load_tokenizers(files: ModelFiles) -> dict[str, Any]:
    """The tokenizers of a model by component name, ready to be handed to `load_pipeline`.

    Empty where it is not known yet where they are; one that cannot be loaded is left to `load_pipeline` to explain.
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
            except Exception:  # said better, and once, when the pipeline is loaded
                return {}
    return tokenizers


def cut_words(prompt: str, tokenizers: Sequence[Any]) -> str:
    """The end of the prompt that no text encoder of the model reads; empty where all of it is read.

    Several encoders may read to different lengths: what the longest one reads is read.
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
            ends.append(rest.replace("</w>", " ").strip())  # CLIP's end of a word stays where words were added
    return min(ends, key=len, default="")
