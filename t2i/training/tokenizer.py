"""A CLIP-format byte-pair tokenizer, trained on the captions (Sennrich et al. 2016; Radford et al. 2021).

The vocabulary has CLIP's order: 256 byte symbols, the same at the end of a word, the merges in the order they were
learned, then the two markers. Any text can be encoded; words of the captions are one token, or few.

The merges are learned here, not by `tokenizers`: its trainer breaks ties by the order of a hash table, so that two runs
of one config would not have the same vocabulary.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, tokens: int) -> CLIPTokenizer:
    """Learn merges from the captions until the vocabulary is full or nothing is left to merge.

    vocabulary: maximum size, markers included.  tokens: length to which every text is padded or truncated.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    rules = CLIPTokenizer().backend_tokenizer  # an empty one, for its normaliser and its pre-tokenizer
    words: Counter[str] = Counter()
    for caption in captions:
        pieces = rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(caption))
        words.update(piece for piece, _ in pieces)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words, vocabulary - 2 * len(symbols) - 2)
    entries = [*symbols, *(s + END_OF_WORD for s in symbols), *(a + b for a, b in merges), START, END]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokens)


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Learn `count` merges of the most frequent neighbours, one after the other; ties go to the first in the alphabet.

    words: frequency of each word, in byte symbols.  Sennrich et al. 2016, algorithm 1.
    """
    symbols_of = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    frequency = list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # words that contain a pair, or once did
    for i, symbols in enumerate(symbols_of):
        for pair in pairwise(symbols):
            pairs[pair] += frequency[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < count:
        n, best = heapq.heappop(heap)
        if not n or -n != pairs[best]:  # stale: merges since then have reduced the count, and pushed a new item
            continue
        merges.append(best)
        changed: set[tuple[str, str]] = set()
        for i in where.pop(best):
            for pair in pairwise(symbols_of[i]):
                pairs[pair] -= frequency[i]
                changed.add(pair)
            symbols_of[i] = _merge(symbols_of[i], best)
            for pair in pairwise(symbols_of[i]):
                pairs[pair] += frequency[i]
                where[pair].add(i)
                changed.add(pair)
        for pair in changed - {best}:
            heapq.heappush(heap, (-pairs[pair], pair))
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Replace every occurrence of the pair in a word by one symbol, from the left."""
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
