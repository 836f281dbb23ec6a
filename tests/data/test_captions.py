import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.config import Captions
from t2i.data.captions import all_captions, caption, check, fill, with_article
from t2i.errors import DataError

TEMPLATES = {
    "photo": ("a photo of {a object}", "{object}", "a photo"),
    "vangogh": ("{a object} in Van Gogh style", "in Van Gogh style"),
    "none": (),
}
BY_STYLE = Captions(by="style", templates=TEMPLATES, drop=0)
COLUMNS = {"object": ["horse", "elephant", "", "dog"], "style": ["photo", "vangogh", "vangogh", "none"]}
ROWS = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]


def drawn(row, captions, count=200, seed=0):
    return [caption(row, captions, seed, index) for index in range(count)]


@pytest.mark.parametrize(
    ("noun", "with_a"),
    [
        ("horse", "a horse"),
        ("elephant", "an elephant"),
        ("Old English sheepdog", "an Old English sheepdog"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("sunflowers", "sunflowers"),
        ("school bus", "a school bus"),
        ("albatross", "an albatross"),
        ("", "a "),
    ],
)
def test_article(noun, with_a):
    assert with_article(noun) == with_a


def test_fields_are_filled_with_and_without_article():
    assert fill("{a object}: {object}, {style}", {"object": "elephant", "style": "photo"}) == (
        "an elephant: elephant, photo"
    )
    assert fill("{object}", {"object": "{style}"}) == "{style}"  # a value is never a template


def test_the_value_of_by_picks_the_templates():
    assert set(drawn(ROWS[0], BY_STYLE)) == {"a photo of a horse", "horse", "a photo"}
    assert set(drawn(ROWS[1], BY_STYLE)) == {"an elephant in Van Gogh style", "in Van Gogh style"}


def test_a_template_with_an_empty_field_is_not_eligible():
    assert set(drawn(ROWS[2], BY_STYLE)) == {"in Van Gogh style"}
    only = Captions(by="style", templates={"vangogh": ("{a object}",)}, drop=0)
    assert set(drawn(ROWS[2], only)) == {""}
    assert set(drawn(ROWS[3], BY_STYLE)) == {""}


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 2**40), which=st.sampled_from(range(4)))
def test_a_caption_is_a_pure_function_and_one_of_all_captions(seed, index, which):
    text = caption(ROWS[which], BY_STYLE, seed, index)
    assert text == caption(dict(ROWS[which]), BY_STYLE.model_copy(), seed, index)
    assert text in {"", *all_captions(COLUMNS, BY_STYLE)}


def test_templates_come_equally_often_and_seeds_differ():
    texts = drawn(ROWS[0], BY_STYLE, count=3000)
    for text in set(texts):
        assert abs(texts.count(text) / 3000 - 1 / 3) < 0.05
    assert texts != drawn(ROWS[0], BY_STYLE, count=3000, seed=1)


@pytest.mark.parametrize("drop", [0, 0.1, 1])
def test_captions_are_dropped_as_often_as_asked(drop):
    captions = Captions(by="style", templates=TEMPLATES, drop=drop)
    texts = drawn(ROWS[0], captions, count=4000)
    assert abs(texts.count("") / 4000 - drop) < 0.03
    kept = [(a, b) for a, b in zip(texts, drawn(ROWS[0], BY_STYLE, count=4000), strict=True) if a]
    assert all(a == b for a, b in kept)  # dropping some changes none of the others


def test_ready_captions_from_a_column():
    captions = Captions(column="text", drop=0)
    assert caption({"text": "two horses"}, captions, 0, 5) == "two horses"
    assert list(all_captions({"text": ["b", "a", "", "b"]}, captions)) == ["b", "a"]


def test_all_captions_are_each_there_once():
    texts = list(all_captions(COLUMNS, BY_STYLE))
    assert sorted(texts) == sorted(
        ["a photo of a horse", "horse", "a photo", "an elephant in Van Gogh style", "in Van Gogh style"]
    )
    assert texts == list(all_captions(COLUMNS, BY_STYLE))
    seen = {text for row in ROWS for text in drawn(row, BY_STYLE)} - {""}
    assert seen == set(texts)


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        (Captions(column="text"), ["'text'", "'object', 'style'"]),
        (Captions(by="kind", templates=TEMPLATES), ["'kind'", "'object', 'style'"]),
        (Captions(by="style", templates=TEMPLATES | {"none": ("{colour}",)}), ["'colour'", "'{colour}'", "'none'"]),
        (Captions(by="style", templates={"photo": ()}), ["no templates", "'none', 'vangogh'", "'photo'"]),
    ],
)
def test_captions_that_do_not_fit_the_table_are_named(captions, says):
    with pytest.raises(DataError) as caught:
        check(COLUMNS, captions)
    assert all(part in caught.value.message for part in says), caught.value.message
    with pytest.raises(DataError):
        list(all_captions(COLUMNS, captions))


def test_a_row_without_the_column_is_an_error():
    with pytest.raises(DataError, match="no column 'text'"):
        caption({"object": "horse"}, Captions(column="text", drop=0), 0, 0)
