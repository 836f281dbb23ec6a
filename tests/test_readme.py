"""The README keeps its word: its commands exist, its links lead somewhere, its two promises are one line each."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from t2i.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line.partition(" #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `t2i` name, and the words that are left."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("name", ["generate", "test"])
def test_the_two_commands_are_one_line_each_and_complete(name: str) -> None:
    blocks = re.findall(rf"^<!-- ci: {name} -->\n```bash\n(.*?)```$", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    (line,) = blocks[0].splitlines()
    steps = [step.strip() for step in line.split("&&")]
    assert steps[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert steps[2].startswith("pip install -c constraints.txt")
    assert steps[3] == {"generate": 't2i generate "a horse in Van Gogh style"', "test": "scripts/test"}[name]


def test_ci_takes_its_commands_from_here() -> None:
    """The awk line of .ci/run finds the same two lines as this file does."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    program = re.search(r"awk -v mark=\"<!-- ci: \$1 -->\" '(.*?)'", script)
    assert program is not None
    for name in ("generate", "test"):
        awk = ["awk", "-v", f"mark=<!-- ci: {name} -->", program[1], str(ROOT / "README.md")]
        line = subprocess.run(awk, capture_output=True, text=True, check=True).stdout
        assert line.strip() in SHELL
        assert line.count("\n") == 1


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("t2i ")])
def test_every_command_shown_exists_with_its_options(line: str) -> None:
    command, words = find(shlex.split(line)[1:])
    known = options(command)
    unknown = [word for word in words if re.match(r"--?[a-zA-Z]", word) and word not in known]
    assert not unknown


def test_every_command_is_in_the_table_with_its_help() -> None:
    rows = dict(re.findall(r"^\| `t2i (\w+)` \| (.*?) \|$", README, re.MULTILINE))
    assert rows == {name: line for name, (_, line) in COMMANDS.items()}


def test_the_page_of_commands_is_what_help_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/help_pages.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == done.stdout, "run: python scripts/help_pages.py > docs/commands.md"


def test_links_and_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    targets += re.findall(r"`((?:t2i|configs|scripts|docs|\.ci|tests)/[\w./-]*)`", README)
    assert len(targets) > 15
    missing = [target for target in targets if not target.startswith("https:") and not (ROOT / target).exists()]
    assert not missing


def test_every_file_of_the_package_is_described() -> None:
    table = README[README.index("## The house") :]
    for path in sorted((ROOT / "t2i").iterdir()):
        if path.name.startswith("__") or path.name == "py.typed":
            continue
        assert f"t2i/{path.name}" in table or f"`{path.name}`" in table, path.name


def test_python_examples_name_what_exists() -> None:
    import t2i

    examples = [block for kind, block in BLOCKS if kind == "python"]
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "t2i":
                assert hasattr(t2i, node.attr)


@pytest.mark.slow
def test_python_example_runs(tmp_path: Path) -> None:
    if not (ROOT / "t2i" / "mini").is_dir():
        pytest.skip("mini is not packed here")
    for family in ("ddpm", "dcgan"):
        smoke = ["train", family, f"{family}-smoke", "--set", "images=64", "--set", "sample_every=1000", "--quiet"]
        command = [sys.executable, "-m", "t2i", *smoke]
        subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    code = "\n".join(block for kind, block in BLOCKS if kind == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["circle.png", "horse.png"]
