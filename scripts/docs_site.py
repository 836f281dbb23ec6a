"""Additions of mkdocs.yml to MkDocs: pages outside docs/, their links, and docstrings in the style of this code.

MkDocs loads this file as a hook, and Griffe as an extension (`scripts/docs` calls both).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# file of the repository -> its place on the site
OUTSIDE = {
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "t2i/mini/README.md": "mini.md",
    "t2i/mini/grid.png": "pictures/mini-grid.png",
    "t2i/mini/neighbours.png": "pictures/mini-neighbours.png",
}
PLACES = OUTSIDE | {"README.md": "index.md"}  # where links lead; the site has a front page of its own
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside docs/."""
    for source, target in OUTSIDE.items():
        content = (ROOT / source).read_bytes()
        page = _page(source, content.decode("utf-8")) if target.endswith(".md") else content
        files.append(File.generated(config, target, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that lead out of docs/ to where the site has these files."""
    if page.file.src_uri in OUTSIDE.values():
        return markdown
    return _relink(markdown, Path("docs") / page.file.src_uri, page.file.src_uri)


def _page(source: str, text: str) -> str:
    """A page that lies outside docs/, with links as the site needs them."""
    return _relink(FRONT.sub("", text), Path(source), OUTSIDE[source])


def _relink(text: str, source: Path, target: str) -> str:
    """Rewrite relative links of a file of the repository for its place on the site; others stay."""
    up = "../" * target.count("/")

    def new(match: re.Match[str]) -> str:
        link = match[2]
        if re.match(r"[a-z]+:", link):
            return match[0]
        path = (ROOT / source.parent / link).resolve().relative_to(ROOT).as_posix()
        place = PLACES.get(path) or path.removeprefix("docs/")
        return f"{match[1]}{up}{place}{match[3]}"

    return LINK.sub(new, text)


class HouseStyle(griffe.Extension):
    """Show `name: meaning` in a docstring as a list of parameters or fields.

    A docstring here says what its names mean in plain lines, `x0, eps: (B, C, H, W)`, and puts several on one line
    with two spaces between. Markdown would run them together.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_lists(obj.docstring.value, set(_names(obj)))


def _names(obj: griffe.Object) -> Iterator[str]:
    """The names that a docstring may explain: parameters of a function, fields of a class and of its constructor."""
    if isinstance(obj, griffe.Function):
        yield from (parameter.name.lstrip("*") for parameter in obj.parameters)
    elif isinstance(obj, griffe.Class):
        yield from obj.members
        init = obj.members.get("__init__")
        if isinstance(init, griffe.Function):
            yield from _names(init)


def as_lists(text: str, names: Iterable[str]) -> str:
    """A docstring with its lines `name: meaning`, for these names, as Markdown lists."""
    known = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    if not known:
        return text
    item = re.compile(rf"(?:(?<=^)|(?<=\.  )|(?<=\)  ))((?:{known})(?:, (?:{known}))*): (?=\S)")
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if "```" in paragraph or "\n    " in paragraph else _list(paragraph, item) for paragraph in paragraphs
    )


def _list(paragraph: str, item: re.Pattern[str]) -> str:
    plain: list[str] = []
    items: list[str] = []
    for line in paragraph.split("\n"):
        starts = [match.start() for match in item.finditer(line)]
        before = line[: starts[0]] if starts else line
        if line.startswith("Raises "):
            items.append(f"- {line}")
        elif before.strip() and items:
            items[-1] += f"\n  {before.strip()}"
        elif before.strip():
            plain.append(before.rstrip())
        for start, end in pairwise([*starts, len(line)]):
            said, _, meaning = line[start:end].strip().partition(": ")
            items.append(f"- {', '.join(f'`{name}`' for name in said.split(', '))}: {meaning}")
    if not items:
        return paragraph
    return "\n".join(plain) + ("\n\n" if plain else "") + "\n".join(items)
