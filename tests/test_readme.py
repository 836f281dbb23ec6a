"""README and docs keep their word: commands exist, links lead somewhere, and what can be pasted is pasted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from paste_kit import NEEDS, blocks, lines, paste, script

from t2i.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", *(page for page in DOCS if not page.startswith("docs/results/"))]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
GUIDE = ("generate", "prompts", "editing", "adapters", "batches", "replay-and-metadata", "models-and-memory", "setup")
TRAINING = ("train", "sample", "data", "evaluation", "report", "python")


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `t2i` name, and the words that are left."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


def called(page: str) -> Iterator[list[str]]:
    """The words after `t2i` of every call on a page, whatever starts it and whatever it is piped from or into."""
    for line in lines(TEXTS[page]):
        for part in re.findall(r"\$\(([^()]*)\)", line) or re.split(r"\s(?:\|\||&&|\||;)\s", line):
            words = shlex.split(part, comments=True)
            if "t2i" in words:
                yield words[words.index("t2i") + 1 :]


CALLS = [(page, words) for page in PAGES for words in called(page)]


@pytest.mark.parametrize("name", ["generate", "test"])
def test_the_two_promises_are_one_line_each_and_complete(name: str) -> None:
    found = re.findall(rf"^<!-- ci: {name} -->\n```bash\n(.*?)```$", README, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    (line,) = found[0].splitlines()
    steps = [step.strip() for step in line.split("&&")]
    assert steps[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert steps[2].startswith("pip install -c constraints.txt")
    assert steps[3] == {"generate": 't2i generate "a horse in Van Gogh style"', "test": "scripts/test"}[name]


def test_ci_takes_its_commands_from_here() -> None:
    """The awk line of .ci/run finds the same two lines as this file does."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    program = re.search(r"awk -v mark=\"<!-- ci: \$1 -->\" '(.*?)'", ci)
    assert program is not None
    for name in ("generate", "test"):
        awk = ["awk", "-v", f"mark=<!-- ci: {name} -->", program[1], str(ROOT / "README.md")]
        line = subprocess.run(awk, capture_output=True, text=True, check=True).stdout
        assert line.strip() in lines(README)
        assert line.count("\n") == 1


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in CALLS])
def test_every_command_shown_exists_with_its_options(page: str, words: list[str]) -> None:
    command, left = find(words)
    known = options(command)
    unknown = [word for word in left if re.match(r"--?[a-zA-Z]", word) and word.partition("=")[0] not in known]
    assert not unknown


def test_every_command_is_in_the_table_with_its_help() -> None:
    rows = dict(re.findall(r"^\| `t2i (\w+)` \| (.*?) \| \[", README, re.MULTILINE))
    assert rows == {name: line for name, (_, line) in COMMANDS.items()}


def test_every_command_is_shown_on_a_page_of_the_guide() -> None:
    shown = {words[0] for page, words in CALLS if page != "README.md" and words}
    assert shown >= COMMANDS.keys()


def test_the_page_of_commands_is_what_help_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/help_pages.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert TEXTS["docs/commands.md"] == done.stdout, "run: python scripts/help_pages.py > docs/commands.md"


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_lead_somewhere(page: str) -> None:
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", TEXTS[page]):
        if re.match(r"[a-z]+:", target):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in slugs(path.read_text(encoding="utf-8"))):
            missing.append(f"{target}#{anchor}")
    if page not in ("docs/commands.md",):
        named = re.findall(r"`((?:t2i|configs|scripts|docs|\.ci|tests)/[\w./-]*)`", TEXTS[page])
        missing += [target for target in named if not (ROOT / target).exists()]
    assert not missing


def test_every_file_of_the_package_is_described() -> None:
    page = TEXTS["docs/architecture.md"]
    for path in sorted((ROOT / "t2i").iterdir()):
        if path.name.startswith("__") or path.name in ("py.typed", "version.py"):
            continue
        assert f"t2i/{path.name}" in page, path.name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_block_needs_is_known_and_said_in_words(page: str) -> None:
    for block in blocks(TEXTS[page]):
        for need in block.needs:
            assert need in NEEDS, f"{page}: {need}"
            near = block.before.rsplit("\n#", 1)[-1] + block.text
            assert any(word in near for word in NEEDS[need]), f"{page}: {need} is not said beside\n{block.text}"


def test_blocks_are_found_with_what_they_need() -> None:
    page = "In words.\n\n```bash\na\n```\n\nA GPU:\n\n<!-- needs: gpu, hours -->\n```bash\nb \\\n  c # why\n```\n"
    page += "```python\nd = 1\n```\n<!-- ci: test -->\n```bash\ne\n```\n```text\nf\n```\n"
    found = blocks(page)
    assert [(block.kind, block.needs) for block in found] == [
        ("bash", ()),
        ("bash", ("gpu", "hours")),
        ("python", ()),
        ("bash", ("clone", "network")),
        ("text", ()),
    ]
    assert "A GPU:" in found[1].before
    assert lines(page) == ["a", "b    c", "e"]
    assert script(found) == "a\n\npython - <<'END_OF_BLOCK'\nd = 1\nEND_OF_BLOCK\n"


def check_paste(page: str, folder: Path) -> Path:
    """Paste a page; the folder in which its commands ran."""
    done = paste(TEXTS[page], folder)
    assert done.returncode == 0, f"{page}\n{done.stderr[-3000:]}"
    return folder / "here"


# A class each, since these run for minutes and pytest-xdist gives a class to one process.
@pytest.mark.slow
class TestPasted:
    def test_readme(self, tmp_path: Path) -> None:
        here = check_paste("README.md", tmp_path)
        made = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
        assert {"horse.png", "again.png", "from-python.png", "giraffes/00001-grid.png", "report.html"} <= {
            re.sub(r"-\d+-grid", "-grid", name) for name in made
        }

    def test_the_network_is_refused(self, tmp_path: Path) -> None:
        page = "```python\nimport socket\n\nsocket.create_connection(('192.0.2.1', 80))\n```\n"
        done = paste(page, tmp_path)
        assert done.returncode != 0
        assert "this test has no network" in done.stderr


@pytest.mark.slow
class TestPastedGuide:
    @pytest.mark.parametrize("page", GUIDE)
    def test_guide(self, page: str, tmp_path: Path) -> None:
        check_paste(f"docs/{page}.md", tmp_path)


@pytest.mark.slow
class TestPastedTraining:
    @pytest.mark.parametrize("page", TRAINING)
    def test_training(self, page: str, tmp_path: Path) -> None:
        check_paste(f"docs/{page}.md", tmp_path)


def test_every_page_with_commands_is_pasted() -> None:
    pasted = {"README.md", *(f"docs/{page}.md" for page in (*GUIDE, *TRAINING))}
    here = {page for page in PAGES if script(blocks(TEXTS[page])) and page not in ("docs/speed.md", "docs/index.md")}
    assert here <= pasted
