"""The prompt language: what may be written, how often each choice comes, and that a seed decides it alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2i.errors import UsageError
from t2i.pipelines.prompts.dynamic_prompts import Wildcards, is_template, resolve

SEEDS = range(3000)


def shares(prompt: str, wildcards: Path | None = None) -> dict[str, float]:
    """How often each prompt comes, over 3,000 seeds."""
    known = Wildcards(wildcards)
    counted = Counter(resolve(prompt, seed, known) for seed in SEEDS)
    return {text: number / len(SEEDS) for text, number in counted.items()}


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    (tmp_path / "big").mkdir()
    (tmp_path / "animals.txt").write_bytes("\ufeff# comment\nhorse\n\n  ein Käfer \n{red|blue} __animals2__\n".encode())
    (tmp_path / "animals2.txt").write_text("fish\n")
    (tmp_path / "big" / "cats.txt").write_text("lion\ntiger\n")
    (tmp_path / "big" / "cars.txt").write_text("lorry\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "loop.txt").write_text("a __loop__\n")
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {red|blue} horse", {"a red horse": 1 / 2, "a blue horse": 1 / 2}),
        ("{0.5::a|b}", {"a": 1 / 3, "b": 2 / 3}),
        ("{3::a|b}", {"a": 3 / 4, "b": 1 / 4}),
        ("{0::a|b}", {"b": 1}),
        ("{a}", {"a": 1}),
        ("x{}y", {"xy": 1}),
        ("{|very }big", {"big": 1 / 2, "very big": 1 / 2}),
        ("{2$$a|b}", {"a,b": 1 / 2, "b,a": 1 / 2}),
        ("{2$$ and $$a|b|c}", {f"{x} and {y}": 1 / 6 for x, y in ("ab", "ac", "ba", "bc", "ca", "cb")}),
        ("{0-1$$a}", {"": 1 / 2, "a": 1 / 2}),
        ("{-1$$a}", {"": 1 / 2, "a": 1 / 2}),
        ("{1-$$ $$a|b}", {"a": 1 / 4, "b": 1 / 4, "a b": 1 / 4, "b a": 1 / 4}),
        ("{9$$-$$a|b}", {"a-b": 1 / 2, "b-a": 1 / 2}),
        ("{a|{b|{c|d}}}", {"a": 1 / 2, "b": 1 / 4, "c": 1 / 8, "d": 1 / 8}),
        (r"\{a\|b\}", {"{a|b}": 1}),
        (r"{a\|b}", {"a|b": 1}),
        ("__animals2__", {"fish": 1}),
        ("a __big/cats__!", {"a lion!": 1 / 2, "a tiger!": 1 / 2}),
        ("__big/c*__", {"lorry": 1 / 3, "lion": 1 / 3, "tiger": 1 / 3}),
        ("{__big/cats__|b}", {"lion": 1 / 4, "tiger": 1 / 4, "b": 1 / 2}),
        ("__animals__", {"horse": 1 / 3, "ein Käfer": 1 / 3, "red fish": 1 / 6, "blue fish": 1 / 6}),
    ],
)
def test_each_choice_comes_as_often_as_it_should(prompt: str, expected: dict[str, float], wildcards: Path) -> None:
    found = shares(prompt, wildcards)
    assert found.keys() == expected.keys()
    for text, share in expected.items():
        assert abs(found[text] - share) < 0.04, text  # four standard deviations of 3,000 draws


@pytest.mark.parametrize("prompt", ["a horse", "(a:1.2) [b] <c>", "50% of $5 | 3 :: 4 # 5", "snake_case", "a\0b", ""])
def test_a_prompt_without_choices_is_left_alone(prompt: str) -> None:
    assert not is_template(prompt)
    assert resolve(prompt, 7) == prompt


def test_choices_are_independent_of_each_other() -> None:
    found = shares("{a|b}{c|d}")
    assert all(abs(found[x + y] - 1 / 4) < 0.04 for x in "ab" for y in "cd")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a {b", "'{' without '}'"),
        ("a } b", "'}' without '{'"),
        ("{a|{b}", "'{' without '}'"),
        ("{" * 50 + "}" * 50, "levels"),
        ("{!a|b}", "all combinations"),
        ("{@a|b}", "one after the other"),
        ("{$$a|b}", "names no number"),
        ("{3-1$$a|b|c}", "backwards"),
        ("{a|b}" * 1001, "1000 choices"),
        ("__nothing__", "no wildcard __nothing__ (there are: animals, animals2, big/cars, big/cats"),
        ("__../animals__", "no wildcard"),
        ("__empty__", "has no lines"),
        ("__loop__", "levels"),
    ],
)
def test_what_cannot_be_chosen_is_said(prompt: str, said: str, wildcards: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(prompt, 7, Wildcards(wildcards / "big" if prompt.startswith("__..") else wildcards))
    assert said in caught.value.message


@given(st.text(alphabet="ab{}|$:_-0123456789\\. ", max_size=40), st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_text_becomes_a_prompt_or_a_usage_error(prompt: str, seed: int) -> None:
    try:
        first = resolve(prompt, seed)
    except UsageError:
        return
    assert first == resolve(prompt, seed)
