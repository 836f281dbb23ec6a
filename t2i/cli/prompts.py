"""The prompts of one run: from the command line, a file or stdin; and the seed of every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from t2i.cli.rows import read_rows
from t2i.cli.tasks import Prompt
from t2i.errors import UsageError
from t2i.pipelines.limits import check_prompt

MAX_FILE_BYTES = 100_000_000
EXAMPLE = 't2i generate "a horse in Van Gogh style"'


def read_prompts(
    arguments: Sequence[str], options: Sequence[str], file: str | None, stdin: BinaryIO, needed: bool = True
) -> list[Prompt]:
    """All prompts, in the order: arguments, -p, the file. An argument or file `-` is stdin, one prompt per line.

    Raises UsageError: none at all (where one is needed), over 1 MB, not UTF-8, unreadable or unsupported file, stdin
    named twice.
    """
    if [*arguments, file].count("-") > 1:
        raise UsageError("stdin (-) can be read once only")
    prompts = []
    for argument in arguments:
        prompts += _lines(_read(stdin, "stdin"), "stdin") if argument == "-" else [Prompt(argument)]
    prompts += [Prompt(option) for option in options]
    if file == "-":
        prompts += _lines(_read(stdin, "stdin"), "stdin")
    elif file is not None:
        prompts += _read_file(Path(file))
    if not prompts and needed:
        raise UsageError("no prompt", f"for example: {EXAMPLE}")
    for prompt in prompts:
        check_prompt(prompt.text)
    return prompts


def hints(arguments: Sequence[str], negative: str) -> list[str]:
    """What to say to someone who wrote a prompt without quotes, or took -n for a number of images."""
    said = []
    if len(arguments) > 1 and all(len(argument.split()) < 2 for argument in arguments):
        words = " ".join(arguments)[:60]
        said.append(f'{len(arguments)} prompts of one word each; one prompt is one argument: "{words}"')
    if negative.strip().isdecimal():
        said.append(f"-n is the negative prompt; {negative.strip()} images are -b {negative.strip()}")
    return said


def _read_file(path: Path) -> list[Prompt]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UsageError(f"--prompts {path.name}: expected one JSON object per line", "name such a file .jsonl")
    try:
        with path.open("rb") as file:
            raw = _read(file, str(path))
    except OSError as e:
        raise UsageError(f"cannot read --prompts {path}: {e.strerror}") from None
    if suffix in (".jsonl", ".csv", ".tsv"):
        return read_rows(_decode(raw, str(path)), suffix, path.name)
    return _lines(raw, str(path))


def _read(file: BinaryIO, where: str) -> bytes:
    raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{where}: more than {MAX_FILE_BYTES} bytes of prompts")
    return raw


def _lines(raw: bytes, where: str) -> list[Prompt]:
    """One prompt per line that is not blank."""
    texts = [line.strip() for line in _decode(raw, where).split("\n")]
    return [Prompt(line, row) for row, line in enumerate(line for line in texts if line)]


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise UsageError(f"{where}: not UTF-8 text (byte {e.start})") from None
