"""The tokenizer: any text, CLIP's layout, known words in few tokens, the same from the same captions."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from t2i.training.tokenizer import END, END_OF_WORD, START, learn_merges, train_tokenizer

WORDS = ("horse", "elephant", "giraffe", "guitar", "house", "person", "dog")
CAPTIONS = [
    text
    for word in WORDS
    for text in (
        f"a photo of a {word}",
        f"{word}, sketch",
        f"a {word} in Van Gogh style",
        f"an oil painting of a {word}",
    )
]
TOKENS = 16
VOCABULARY = 800


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, VOCABULARY, TOKENS)


@pytest.fixture(scope="module")
def saved(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def encode(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Encode like StableDiffusionPipeline."""
    encoded = tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return list(encoded.input_ids)


def words(tokenizer: CLIPTokenizer, text: str) -> str:
    """The text back from its tokens, without the markers."""
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip()


def test_layout_is_clips(tokenizer: CLIPTokenizer) -> None:
    """256 bytes, the same at the end of a word, the merges as learned, the two markers; numbered without a gap."""
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert all(len(word) == 1 for word in vocabulary[:256])
    assert vocabulary[256:512] == [byte + END_OF_WORD for byte in vocabulary[:256]]
    assert vocabulary[-2:] == [START, END] == ["<|startoftext|>", "<|endoftext|>"]
    assert len(vocabulary) <= VOCABULARY
    assert len(vocabulary) > 550


def test_every_merge_joins_what_was_there_before(saved: Path) -> None:
    """In the file that plain transformers reads: a merge's parts have smaller numbers than what it makes."""
    model = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["end_of_word_suffix"] == END_OF_WORD
    for a, b in model["merges"]:
        assert model["vocab"][a] < model["vocab"][a + b] > model["vocab"][b]


def test_a_text_is_markers_around_tokens_padded_to_the_length(tokenizer: CLIPTokenizer) -> None:
    ids = encode(tokenizer, "a dog")
    first, last = len(tokenizer) - 2, len(tokenizer) - 1
    assert len(ids) == TOKENS
    assert ids[0] == first == tokenizer.bos_token_id
    assert ids[1:3] == [tokenizer.get_vocab()["a" + END_OF_WORD], tokenizer.get_vocab()["dog" + END_OF_WORD]]
    assert ids[3:] == [last] * (TOKENS - 3)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == last
    assert encode(tokenizer, "") == [first] + [last] * (TOKENS - 1)


def test_words_of_the_captions_are_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in (*WORDS, "photo", "van", "gogh", "style", "painting"):
        assert tokenizer.tokenize(word) == [word + END_OF_WORD]


def test_a_small_vocabulary_is_kept_to() -> None:
    small = train_tokenizer(CAPTIONS, 540, TOKENS)
    assert len(small) == 540
    assert len(small.tokenize("elephant")) > 1
    assert words(small, "an elephant") == "an elephant"


@pytest.mark.parametrize("text", ["a photo of a horse", "a giraffe in van gogh style", "an unseen zebra, drawn"])
def test_captions_come_back(tokenizer: CLIPTokenizer, text: str) -> None:
    assert words(tokenizer, text).replace(" ,", ",") == text


def test_case_and_white_space_do_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert encode(tokenizer, "A  Dog in\nVAN GOGH Style ") == encode(tokenizer, "a dog in van gogh style")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_encoded(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert len(ids) == TOKENS
    assert all(0 <= i < len(tokenizer) for i in ids)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids
    if tokenizer.tokenize(text):
        assert ids[1] != tokenizer.eos_token_id  # nothing is unknown: every byte has a symbol


def test_long_text_is_cut(tokenizer: CLIPTokenizer) -> None:
    ids = encode(tokenizer, "dog " * 500)
    assert len(ids) == TOKENS
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == [tokenizer.get_vocab()["dog" + END_OF_WORD]] * (TOKENS - 2)


def test_deterministic(tokenizer: CLIPTokenizer, saved: Path, tmp_path: Path) -> None:
    train_tokenizer(CAPTIONS, VOCABULARY, TOKENS).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (saved / "tokenizer.json").read_bytes()


def test_loads_again_with_the_same_numbers(tokenizer: CLIPTokenizer, saved: Path) -> None:
    again = CLIPTokenizer.from_pretrained(saved)
    assert again.model_max_length == TOKENS
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in [*CAPTIONS, "", "Übergröße 象 🐘!", "<|endoftext|> x", "it's 3,5"]:
        assert encode(again, text) == encode(tokenizer, text)


def test_no_captions_at_all_still_encode() -> None:
    """Every image without a caption: the byte symbols and the markers are left."""
    empty = train_tokenizer([], VOCABULARY, TOKENS)
    assert len(empty) == 514
    assert words(empty, "dog") == "dog"


def naive_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Count all pairs anew before every merge."""
    spelled = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelled.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, symbols in spelled.items():
            k = 0
            while k + 1 < len(symbols):
                if (symbols[k], symbols[k + 1]) == best:
                    symbols[k : k + 2] = [best[0] + best[1]]
                k += 1
            spelled[word] = symbols
    return merges


@given(st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 20), max_size=12), st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_merges_are_those_of_the_naive_algorithm(words: dict[str, int], count: int) -> None:
    assert learn_merges(Counter(words), count) == naive_merges(Counter(words), count)
