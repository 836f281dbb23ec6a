"""Names, phrases, docstrings and folders follow LAYOUT's rules. Each rule is shown to fail on a bad example.

Only names and fixed phrases are banned, never plain English words in prose.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Parts of names, split at underscores and capitals, that told a newcomer nothing; and the name that the field has.
WORDS = {
    "asking": "from_options",
    "besides": "assets",
    "conditioner": "prompt_encoder",
    "dress": "attach adapters",
    "dressed": "attach adapters",
    "entries": "change_log",
    "essence": "comparable",
    "fitted": "attached",
    "fitting": "attach",
    "foreign": "imported",
    "forewarn": "check_prompts",
    "forewarned": "check_prompts",
    "forewarning": "prompt_checks",
    "held": "slot, cached",
    "holding": "model_slot",
    "judging": "evaluation",
    "ladder": "fallback chain",
    "looked": "extracted, inspected",
    "looking": "extraction, progress_bar",
    "nearby": "search_paths",
    "opening": "image_sources",
    "outline": "skeleton, estimate",
    "painter": "model",
    "reading": "chunking",
    "restoring": "find_images",
    "rig": "runner",
    "rung": "level",
    "rungs": "levels",
    "speaks": "has_weights",
    "spelling": "spec_strings",
    "still": "image_input",
    "stills": "image_inputs",
    "told": "settings_by_override, described",
    "uncollected": "gc_paused",
    "undress": "detach adapters",
    "verdict": "verify",
    "wear": "set_adapters",
    "wearing": "adapter_swap",
    "wears": "has_adapters",
    "wish": "overrides",
    "wishes": "overrides, options",
    "worn": "attached",
}
# Whole names; their words are plain English elsewhere.
NAMES = {
    "Edit": "ImageInputs",
    "Editor": "ImagePasses",
    "Loaded": "RetryingLoader",
    "Reader": "PromptChunker",
    "put_in_place": "apply_plan",
    "way_out": "suggestion",
}

# In messages, option help, first lines of docstrings, README and docs.
PHRASES = {
    r"bit for bit but for": "reproduce it exactly, overriding any option",
    r"(is|are|was|were|be) made (again|anew)": "recreate, rebuild, generate again",
    r"go(es|ing)? on where": "resume",
    r"gone on with": "resumable after a kill",
    r"killed and (run again|gone on)": "resumable after a kill",
    r"\bway out\b": "suggestion, hint",
    r"\bbroke off\b": "interrupted",
    r"asked for, and shown": "prompt accuracy",
    r"averaged weights": "EMA weights",
    r"mean square error": "mean squared error",
    r"what real (pictures|images) get": "beside the same of real images",
    r"judged? along (training|the way)": "evaluation during training",
    r"error functions": "loss curves",
    r"lower bound in bits": "negative ELBO (bits/dim)",
    r"laid side by side": "compared",
}

# Docstrings are imperative sentences; classes and modules may be noun phrases. None begins with a relative clause.
BEGINNING = re.compile(r"(What|Whether|How|Where|Which|Who|Whose|When|Of|As|The same)\b")

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

MOST_FILES = {"t2i/cli": 25}  # in a folder; others:
MOST_FILES_ELSEWHERE = 20
MOST_SAME_NAME = 3
MOST_LINES = 400
MOST_CLI_LINES = 3_000
LONG_FILES = {"t2i/config/options.py"}  # one table: every option of generate and sample, with its help

OF_ALL = {"/layers", "/readme", "/v0_1", "/vocabulary", "pipelines/prompts/clip_skip"}  # tests that mirror no file
SHARED_TESTS = {"tests/kits", "tests/data/v0_1"}  # helpers, no tests

# What is still to be renamed: rule -> files and folders that it does not hold for yet. Only ever made shorter: an item
# for which the rule holds fails the test too.
PENDING: dict[str, set[str]] = {"names": set(), "docstrings": set(), "phrases": set()}


@dataclass(frozen=True)
class File:
    """A file by its path from the root, with its text."""

    path: str
    text: str

    @property
    def nodes(self) -> tuple[ast.AST, ...]:
        return _nodes(self.text, self.path)

    @property
    def python(self) -> bool:
        return self.path.endswith(".py")


@cache
def _nodes(text: str, path: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text, path)))


@cache
def files() -> tuple[File, ...]:
    """Return the Python files of t2i, scripts and tests, and the README and docs."""
    paths = [path for top in ("t2i", "scripts", "tests") for path in sorted((ROOT / top).rglob("*.py"))]
    paths += [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(File(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def listing_of(folder: str) -> list[str]:
    """Return the paths of the files below a folder, without caches."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(p[0] in "._" and p[1:2] != "_" for p in path.parts[:-1]))


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


# The rules: each yields what is wrong with one file


def split(name: str) -> list[str]:
    """Split a name at underscores and capitals: `_has_LoRATags` -> has, lo, ra, tags."""
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+", name)
    return [word.lower() for word in words]


def defined(file: File) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of the file itself, its classes, functions and methods. Names of tests are sentences."""
    path = Path(file.path)
    yield 0, path.stem
    for node in file.nodes:
        named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and not (within(file.path, "tests") and node.name.startswith("test_")):
            yield node.lineno, node.name


def names(file: File) -> Iterator[str]:
    """No file, class, function or method has an old name."""
    if not file.python:
        return
    for line, name in defined(file):
        if name in NAMES:
            yield f"{file.path}:{line} {name}: say {NAMES[name]}"
        for word in split(name):
            if word in WORDS:
                yield f"{file.path}:{line} {name} has {word!r}: say {WORDS[word]}"


def docstrings(file: File) -> Iterator[str]:
    """No docstring of t2i or scripts begins with a relative clause."""
    if not file.python or within(file.path, "tests"):
        return
    for node, text in documented(file):
        if BEGINNING.match(text):
            name = getattr(node, "name", "module")
            yield f"{file.path}:{getattr(node, 'lineno', 1)} {name} begins with {text.split()[0]!r}: {text[:60]}"


def documented(file: File) -> Iterator[tuple[ast.AST, str]]:
    """Yield (node, docstring) of the module, its classes and its functions."""
    for node in file.nodes:
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node, text


def phrases(file: File) -> Iterator[str]:
    """No message, option help, first line of a docstring, README or page of the docs has an old phrase."""
    if within(file.path, "tests"):
        return
    for line, text in shown(file):
        for phrase, better in PHRASES.items():
            if re.search(phrase, text, re.IGNORECASE):
                yield f"{file.path}:{line} has {phrase!r}: say {better}"


def shown(file: File) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of everything that a reader is shown."""
    if not file.python:
        # A phrase may cross the end of a line: paragraphs are joined.
        for match in re.finditer(r"(?:[^\n]+\n?)+", file.text):
            yield file.text[: match.start()].count("\n") + 1, " ".join(match[0].split())
        return
    long = {id(node.body[0].value) for node, _ in documented(file) if isinstance(node.body[0], ast.Expr)}  # type: ignore[attr-defined]
    for node, text in documented(file):
        yield getattr(node, "lineno", 1), text.partition("\n")[0]
    for node in file.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in long:
            yield node.lineno, " ".join(node.value.split())


RULES = [names, docstrings, phrases]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_vocabulary_keeps(rule) -> None:  # type: ignore[no-untyped-def]
    wrong, unneeded = [], set(PENDING[rule.__name__])
    for file in files():
        pending = {place for place in PENDING[rule.__name__] if within(file.path, place)}
        found = list(rule(file))
        if found:
            unneeded -= pending
        if not pending:
            wrong += found
    assert not wrong, "\n".join(wrong)
    assert not unneeded, f"{rule.__name__} holds here now, take it out of PENDING: {sorted(unneeded)}"


# The rules of folders and files, over lists of paths


def crowded(paths: Iterable[str]) -> list[str]:
    """Folders with more files than one finds at a glance."""
    count = Counter(path.rpartition("/")[0] for path in paths)
    return [
        f"{folder} has {n} files, allowed are {MOST_FILES.get(folder, MOST_FILES_ELSEWHERE)}"
        for folder, n in sorted(count.items())
        if n > MOST_FILES.get(folder, MOST_FILES_ELSEWHERE)
    ]


def repeated(paths: Iterable[str]) -> list[str]:
    """File names that one must ask the folder of."""
    count = Counter(path.rpartition("/")[2] for path in paths if path.endswith(".py"))
    return [f"{n} files are called {name}" for name, n in count.items() if n > MOST_SAME_NAME and name != "__init__.py"]


def long(lines: dict[str, int]) -> list[str]:
    """Files that hold too much, or that no longer do."""
    wrong = [f"{path} has {n} lines" for path, n in lines.items() if n > MOST_LINES and path not in LONG_FILES]
    return wrong + [f"{path} is short: take it out of LONG_FILES" for path in LONG_FILES if lines[path] <= MOST_LINES]


def ambiguous(sources: Iterable[File]) -> list[str]:
    """Class names with more than one meaning."""
    where: dict[str, list[str]] = {}
    for file in sources:
        for node in file.nodes:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(file.path)
    return [f"{name} is a class in {' and '.join(paths)}" for name, paths in where.items() if len(paths) > 1]


def astray(tests: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Tests that are not found from the file they test: tests/FOLDER/test_NAME*.py of t2i/FOLDER/NAME.py."""
    known: dict[str, set[str]] = {}
    for path in sources:
        path = path.removeprefix("t2i/").removesuffix(".py")
        while path:  # a test may also be of a whole folder
            folder, _, name = path.rpartition("/")
            known.setdefault(folder, set()).add(name)
            path = folder
    wrong = []
    for path in tests:
        folder, _, name = path.removeprefix("tests").lstrip("/").rpartition("/")
        if not name.startswith("test_") or not name.endswith(".py"):
            continue
        name = name.removeprefix("test_").removesuffix(".py")
        if folder not in known:
            wrong.append(f"{path}: there is no folder {folder!r} to test")
        elif not any(f"{name}_".startswith(f"{one}_") for one in known[folder]) and f"{folder}/{name}" not in OF_ALL:
            wrong.append(f"{path}: there is no file to test by that name")
    return wrong


def test_folders_are_not_crowded() -> None:
    fixtures = "tests/data/v0_1/"  # what an earlier version wrote, by its own names
    listed = [*listing_of("t2i"), *listing_of("tests")]
    assert not crowded(path for path in listed if not path.startswith(fixtures))


def test_no_file_name_is_repeated() -> None:
    assert not repeated(listing_of("t2i"))
    assert not repeated(listing_of("tests"))


def test_no_file_is_long_and_the_command_line_is_thin() -> None:
    lines = {file.path: file.text.count("\n") for file in files() if file.python and within(file.path, "t2i")}
    assert not long(lines)
    assert sum(n for path, n in lines.items() if within(path, "t2i/cli")) < MOST_CLI_LINES


def test_a_class_name_has_one_meaning() -> None:
    assert not ambiguous(file for file in files() if file.python and within(file.path, "t2i"))


def test_tests_have_the_folders_of_the_package() -> None:
    sources = [*listing_of("t2i"), *(path for path in listing_of("scripts") if path.endswith(".py"))]
    assert not astray(listing_of("tests"), sources)
    helpers = [p for p in listing_of("tests") if p.endswith(".py") and "/test_" not in p and p != "tests/conftest.py"]
    assert {path.rpartition("/")[0] for path in helpers} <= SHARED_TESTS


# Each rule fails on a bad example, and lets pass what is plain English

BAD = [
    (names, "t2i/jobs/besides.py", "x = 1"),
    (names, "t2i/jobs/plan.py", "def _forewarn(): ..."),
    (names, "t2i/jobs/plan.py", "class ModelWish: ..."),
    (names, "t2i/jobs/plan.py", "class A:\n    def is_dressed(self): ..."),
    (names, "t2i/jobs/plan.py", "def f():\n    async def wear(): ..."),
    (names, "t2i/jobs/plan.py", "class RigForEdits: ..."),
    (names, "t2i/jobs/plan.py", "class Edit: ..."),
    (names, "t2i/errors.py", "def way_out(): ..."),
    (names, "tests/jobs/test_verdict.py", "x = 1"),
    (names, "tests/kits/a_kit.py", "def told(): ..."),
    (docstrings, "t2i/a.py", '"""What is done."""'),
    (docstrings, "t2i/a.py", 'def f():\n    """Whether it is."""'),
    (docstrings, "t2i/a.py", 'class A:\n    def f(self):\n        """\n        How it is done.\n        """'),
    (docstrings, "t2i/a.py", 'async def f():\n    """Of which there are many."""'),
    (docstrings, "scripts/a.py", 'def f():\n    """The same, sorted."""'),
    (phrases, "t2i/a.py", "raise E('delete what is to be made again')"),
    (phrases, "t2i/a.py", "option('--from', help='Again, bit for bit'\n' but for what you say.')"),
    (phrases, "t2i/a.py", "raise E(f'{x} broke off')"),
    (phrases, "t2i/a.py", 'def f():\n    """Print the cause and the way out."""'),
    (phrases, "README.md", "A batch is shared, and gone\non with."),
    (phrases, "docs/a.md", "# A\n\nThe averaged weights are kept.\n"),
]
GOOD = [
    (
        names,
        "t2i/jobs/plan.py",
        "class StillnessError: ...\ndef editing(): ...\ndef original(): ...",
    ),
    (names, "t2i/jobs/plan.py", "told = 1\nx.wishes = 2\nprint('wearing a hat, besides')"),
    (names, "tests/a/test_b.py", "def test_users_are_told(): ..."),
    (names, "README.md", "foreign besides"),
    (docstrings, "t2i/a.py", '"""Whatever."""\nclass A:\n    """A row.\n\n    What it is."""\n    def f(self): ...'),
    (docstrings, "t2i/a.py", 'def f():\n    """Officially, return it."""\n    x = "What"'),
    (docstrings, "tests/a.py", '"""What holds."""'),
    (phrases, "t2i/a.py", 'def f():\n    """Do it.\n\n    It goes on where it was."""\n    x = "we made it, again"'),
    (phrases, "t2i/a.py", "x = 1  # the way out\n"),
    (phrases, "tests/a.py", "x = 'the way out'"),
    (phrases, "docs/a.md", "The weights are averaged.\n\nWeights"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_each_rule_catches(rule, path: str, text: str) -> None:  # type: ignore[no-untyped-def]
    assert list(rule(File(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_each_rule_lets_pass(rule, path: str, text: str) -> None:  # type: ignore[no-untyped-def]
    assert not list(rule(File(path, text)))


def test_names_are_split_at_underscores_and_capitals() -> None:
    assert split("_model_wish") == ["model", "wish"]
    assert split("ModelWish2") == ["model", "wish", "2"]
    assert split("HTTPRig") == ["http", "rig"]
    assert split("DISTILL") == ["distill"]


def test_folder_rules_catch() -> None:
    assert crowded(f"t2i/data/f{k}.py" for k in range(21)) == ["t2i/data has 21 files, allowed are 20"]
    assert not crowded(f"t2i/cli/f{k}.py" for k in range(25))
    assert crowded(f"t2i/cli/f{k}.py" for k in range(26))
    assert repeated(f"t2i/{k}/plan.py" for k in range(4)) == ["4 files are called plan.py"]
    assert not repeated(f"t2i/{k}/{name}" for k in range(4) for name in ("__init__.py", "config.json"))
    short = dict.fromkeys(LONG_FILES, MOST_LINES + 1)
    assert long(short | {"t2i/a.py": MOST_LINES + 1}) == ["t2i/a.py has 401 lines"]
    assert len(long(dict.fromkeys(LONG_FILES, 10))) == len(LONG_FILES)
    assert ambiguous([File("t2i/a.py", "class A: ..."), File("t2i/b.py", "class A: ...\nclass B: ...")])
    sources = ["t2i/errors.py", "t2i/data/tables.py", "t2i/mini/unet/a.json", "scripts/bench.py"]
    good = [
        "tests/test_errors.py",
        "tests/data/test_tables_large.py",
        "tests/test_mini.py",
        "tests/scripts/test_bench.py",
    ]
    assert not astray([*good, "tests/test_layers.py", "tests/data/a/b.json", "tests/conftest.py"], sources)
    assert len(astray(["tests/test_table.py", "tests/dat/test_tables.py", "tests/data/test_bench.py"], sources)) == 3
