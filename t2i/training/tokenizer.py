"""A CLIP-format byte-pair tokenizer, trained on the captions (Sennrich et al. 2016; Radford et al. 2021).

The vocabulary is laid out as CLIP's: 256 byte symbols, the same at the end of a word, the merges in the order they were
learned, then the two markers. Any text can be encoded; words of the captions are one token, or few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, tokens: int) -> CLIPTokenizer:
    """Learn merges from the captions until the vocabulary is full or nothing is left to merge.

    vocabulary: most entries, markers included.  tokens: length every text is padded or cut to.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rules = CLIPTokenizer().backend_tokenizer  # an empty one, for its normaliser and its splitting into words
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=symbols, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = _merges(learner)[: vocabulary - 2 * len(symbols) - 2]
    words = [*symbols, *(s + END_OF_WORD for s in symbols), *(a + b for a, b in merges), START, END]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokens)


def _merges(tokenizer: object) -> list[tuple[str, str]]:
    """The merges a tokenizer has learned, first learned first."""
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]  # type: ignore[attr-defined]
