"""Names of output files: safe on every system, inside the folder that was meant, never taken before."""

from __future__ import annotations

import datetime
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i.errors import UsageError
from t2i.jobs.spec.output_paths import RESERVED, Outputs, safe_name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first(outputs: Outputs, prompt: str = "a horse", seed: int = 7) -> Path:
    return next(outputs.candidates(prompt, seed))


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    return path


TODAY = datetime.date.today().isoformat()


# --- names made from text ---


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a horse in Van Gogh style", "a-horse-in-Van-Gogh-style"),
        ("../../x", "x"),
        ("/etc/x", "etc-x"),
        ("C:\\Windows\\x", "C-Windows-x"),
        ("a\0b\nc\td", "a-b-c-d"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("Com1", "_Com1"),
        ("", "untitled"),
        (" . . ", "untitled"),
        ("-rf", "rf"),
        (".hidden", "hidden"),
        ("trailing. ", "trailing"),
        ("\u202egnp.exe", "gnp.exe"),  # right-to-left override
        ("سعيد", "سعيد"),
        ("e\u0301te\u0301", "été"),
        ("\udcff", "untitled"),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text(st.characters()), st.integers(10, 200))
def test_any_text_gives_a_safe_name(text: str, limit: int) -> None:
    name = safe_name(text, limit)
    assert 0 < len(name.encode("utf-8")) <= max(limit, len("untitled"))
    assert not set(name) & set('/\\:*?"<>|\0\n\r\t')
    assert name[0] not in "-. "
    assert name[-1] not in ". "
    assert not RESERVED.match(name)
    assert name.isprintable()


def test_three_hundred_emoji_fit() -> None:
    path = first(Outputs("{prompt}.png"), "\U0001f40e" * 300)
    assert len(path.name.encode()) <= 255
    touch(path)  # the file system agrees


# --- where images go ---


@pytest.mark.parametrize(
    ("target", "format", "path"),
    [
        (None, None, f"outputs/{TODAY}/00001-7.png"),
        (None, "webp", f"outputs/{TODAY}/00001-7.webp"),
        ("cat.png", None, "cat.png"),
        ("cat.JPEG", "jpg", "cat.JPEG"),
        ("cat", None, "cat.png"),
        ("cat", "jpg", "cat.jpg"),
        ("new/", None, "new/00001-7.png"),
        ("a/b/{seed}", None, "a/b/7.png"),
        ("{date}/{model}/{index}-{prompt}-{seed}.webp", None, f"{TODAY}/mini/00001-a-horse-7.webp"),
        ("v1.5-{seed}", None, "v1.5-7.png"),
    ],
)
def test_what_output_may_say(target: str | None, format: str | None, path: str) -> None:
    assert first(Outputs(target, format=format, model="mini")) == Path(path)


def test_a_tilde_is_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("USERPROFILE", str(here / "home"))
    assert first(Outputs("~/x.png")) == here / "home" / "x.png"  # of --output=~/x.png no shell makes it


def test_an_existing_folder_needs_no_slash(here: Path) -> None:
    (here / "pictures").mkdir()
    assert first(Outputs("pictures")) == Path("pictures/00001-7.png")


@pytest.mark.parametrize(
    ("target", "format", "said"),
    [
        ("cat.tiff", None, "cannot write '.tiff'"),
        ("cat.png", "jpg", "`output=cat.png` and `format=jpg` do not agree"),
        ("{sed}.png", None, "unknown field {sed}"),
        ("{seed.__class__}.png", None, "unknown brace"),
        ("", None, "`output`: '' is not a file"),
        ("-", None, "not a file"),
        ("x" * 300 + ".png", None, "output name of 304 bytes"),
    ],
)
def test_what_output_may_not_say(target: str, format: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Outputs(target, format=format).check([("a", 1)])


def test_numbers_go_on_after_the_highest(here: Path) -> None:
    touch(here / "out" / "00041-9.png")
    touch(here / "out" / "notes.txt")
    outputs = Outputs("out/")
    assert [first(outputs, seed=seed).name for seed in (1, 2, 3)] == ["00042-1.png", "00043-2.png", "00044-3.png"]


def test_a_name_taken_at_the_last_moment_has_a_successor() -> None:
    names = [path.name for path in itertools.islice(Outputs("out/").candidates("a", 5), 3)]
    assert names == ["00001-5.png", "00002-5.png", "00003-5.png"]


def test_several_images_of_one_name_are_numbered() -> None:
    outputs = Outputs("cat.png", count=3)
    assert [first(outputs).name for _ in range(3)] == ["cat-1.png", "cat-2.png", "cat-3.png"]
    assert outputs.grid_path(Path("cat-1.png")) == Path("cat-grid.png")
    same = Outputs("{prompt}.png", count=2)
    assert [first(same).name for _ in range(2)] == ["a-horse.png", "a-horse-2.png"]


def test_nothing_is_overwritten_unless_asked(here: Path) -> None:
    touch(here / "cat.png")
    with pytest.raises(UsageError, match=r"cat\.png exists already"):
        Outputs("cat.png").check([("a", 1)])
    with pytest.raises(UsageError, match=r"cat\.png exists already"):
        Outputs("{prompt}").check([("dog", 1), ("cat", 1)])
    touch(here / "dog-grid.png")
    with pytest.raises(UsageError, match=r"dog-grid\.png exists"):
        Outputs("dog.png").check([("a", 1)], grid=True)
    outputs = Outputs("cat.png", overwrite=True)
    outputs.check([("a", 1)])
    assert first(outputs) == Path("cat.png")


def test_a_dangling_link_is_not_followed(here: Path) -> None:
    (here / "cat.png").symlink_to(here / "elsewhere")
    with pytest.raises(UsageError, match="exists already"):
        Outputs("cat.png").check([("a", 1)])


@pytest.mark.parametrize("target", [None, "{model}/{seed}.png", "out/{date}/{prompt}.png"])
def test_a_symlinked_folder_that_leads_out_is_refused(here: Path, target: str | None) -> None:
    outside = here / "outside"
    outside.mkdir()
    for link in (here / "outputs" / TODAY, here / "mini", here / "out" / TODAY):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
    if target and target.startswith("{"):
        (here / "mini").unlink()
        (here / "mini").symlink_to("/usr")
    with pytest.raises(UsageError, match="leads out of"):
        Outputs(target, model="mini").check([("a", 1)])


def test_the_users_own_folder_may_be_a_link(here: Path) -> None:
    (here / "disk").mkdir()
    (here / "outputs").symlink_to(here / "disk")
    assert first(Outputs(None)) == Path(f"outputs/{TODAY}/00001-7.png")


def test_climbing_out_behind_a_field_is_refused() -> None:
    with pytest.raises(UsageError, match="leads out of"):
        Outputs("out/{date}/../../../{seed}.png").check([("a", 1)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_drawing(here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot write into"):
        Outputs("locked/x/")


def test_a_file_in_place_of_the_folder_is_refused(here: Path) -> None:
    touch(here / "file")
    with pytest.raises(UsageError, match="cannot write into file"):
        Outputs("file/x/")
