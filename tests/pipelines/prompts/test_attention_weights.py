"""Weights in a prompt: what may be written, that nothing of the words is lost, and that prose is left alone."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.errors import UsageError
from t2i.pipelines.prompts.attention_weights import (
    MAX_WEIGHT,
    Fragment,
    check_weights,
    has_weights,
    parse,
    with_numbers,
    words,
)

PIECES = st.sampled_from(["(", ")", "[", "]", "\\", ":", "1", "1.2", ".5", " ", "a", "red horse", "é", "{", "|"])
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=30).map("".join))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (red:1.2) horse", [("a ", 1), ("red", 1.2), (" horse", 1)]),
        ("(a red barn:0.7), (sky: .5 )", [("a red barn", 0.7), (", ", 1), ("sky", 0.5)]),
        ("(red:2) (brown) [old]", [("red", 2), (" ", 1), ("brown", 1.1), (" ", 1), ("old", 1 / 1.1)]),
        ("((red)) horse", [("red", 1.1 * 1.1), (" horse", 1)]),
        ("[[red]] horse", [("red", 1 / 1.1 / 1.1), (" horse", 1)]),
        ("(a (red:1.5) horse:0.5)", [("a ", 0.5), ("red", 0.75), (" horse", 0.5)]),
        ("(a:0)(b:0)", [("ab", 0)]),
        (r"\(red\) \[b\] (c)", [("(red) [b] ", 1), ("c", 1.1)]),
        ("(red:1)", [("red", 1)]),
        ("(:1.2)", [("", 1)]),
        # no partner: the bracket itself
        ("a) (red:1.2) (b", [("a) ", 1), ("red", 1.2), (" (b", 1)]),
        ("(a [b:1.3) c]", [("a [b", 1.3), (" c]", 1)]),
        (":) :( (red:1.2)", [(":) ", 1), (":( ", 1), ("red", 1.2)]),
    ],
)
def test_what_is_written_and_what_it_means(prompt: str, expected: list[tuple[str, float]]) -> None:
    joined: list[tuple[str, float]] = []
    for text, weight in expected:  # neighbours of one weight are one
        if joined and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + text, weight
        else:
            joined.append((text, weight))
    found = parse(prompt)
    assert [fragment.text for fragment in found] == [text for text, _ in joined]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in joined], rel=1e-12)
    assert has_weights(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "a horse (brown) in a field [detail]",
        "a map (scale 1:50), a screen (16:9)",
        "a note at (12:30)",
        "((unclosed",
        "a smile :) and :( ",
        "a {red|blue} horse",
        "back\\slash",
        "(a)(b)",
        "",
    ],
)
def test_prose_is_left_alone(prompt: str) -> None:
    assert parse(prompt) == [Fragment(prompt, 1.0)]
    assert words(prompt) == prompt
    assert not has_weights(prompt)


@given(TEXTS)
def test_every_text_is_read_and_nothing_of_its_words_is_lost(prompt: str) -> None:
    fragments = parse(prompt)
    assert words(prompt) == "".join(text for text, _ in fragments)
    if not has_weights(prompt):
        assert fragments == [Fragment(prompt)]
    rest = iter(prompt)  # what is left stands in the prompt in this order
    assert all(letter in rest for letter in words(prompt))
    gone = Counter(prompt) - Counter(words(prompt))
    assert all(letter in "()[]\\:.0123456789" or letter.isspace() for letter in gone)
    assert all(a.weight != b.weight for a, b in pairwise(fragments))
    assert all(text for text, _ in fragments) or fragments == [Fragment("")]
    assert all(weight >= 0 or weight != weight for _, weight in fragments)


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\:")), st.floats(0, MAX_WEIGHT))
def test_any_words_have_the_weight_that_is_written(text: str, weight: float) -> None:
    number = f"{weight:.4f}"
    expected = [Fragment(text, float(number))] if text else [Fragment("")]
    assert parse(f"({text}:{number})") == expected


@pytest.mark.parametrize("prompt", ["(red:11)", "(a (red:4.0):4.0)", "(" * 40 + "red" + ")" * 40])
def test_a_weight_out_of_range_is_refused(prompt: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_weights(prompt)
    assert "of 'red', expected 0 to 10" in caught.value.message
    assert "`raw`" in str(caught.value.hint)


def test_brackets_without_end_are_read_in_a_moment() -> None:
    start = time.perf_counter()
    for prompt in ("(" * 100_000 + ")" * 100_000, "[(" * 100_000, ":1" * 100_000, " " * 200_000, "(:" * 100_000):
        parse(prompt)
    assert time.perf_counter() - start < 20  # seconds; in time squared it would be hours


@pytest.mark.parametrize(
    ("theirs", "meant"),
    [
        ("a (red) [old] horse", [("a ", 1), ("red", 1.1), (" ", 1), ("old", 0.9091), (" horse", 1)]),
        ("(a [b] c)", [("a ", 1.1), ("b", 1.1 * 0.9091), (" c", 1.1)]),
        ("a (red:1.2) (b)", [("a ", 1), ("red", 1.2), (" ", 1), ("b", 1.1)]),
        ("a ) ( b", [("a ) ( b", 1)]),
    ],
)
def test_single_brackets_of_another_tool_are_weights(theirs: str, meant: list[tuple[str, float]]) -> None:
    found = parse(with_numbers(theirs))
    assert [fragment.text for fragment in found] == [text for text, _ in meant]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in meant], rel=1e-9)
