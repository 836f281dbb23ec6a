"""The prompts of a run, read from arguments, a file or stdin."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from t2i.errors import UsageError
from t2i.jobs.spec.prompt_rows import read_rows
from t2i.jobs.spec.tasks import Prompt
from t2i.pipelines.settings.limits import check_prompt

MAX_FILE_BYTES = 100_000_000  # of what is held in memory
MAX_LINE_BYTES = 8_000_000  # a prompt of 1 MB, every character of it escaped
EXAMPLE = 't2i generate "a horse in Van Gogh style"'


def read_prompts(
    arguments: Sequence[str], options: Sequence[str], file: str | None, stdin: BinaryIO | None, needed: bool = True
) -> list[Prompt]:
    """Return all prompts, in the order: arguments, options, file.

    An argument or file "-" is stdin, one prompt per line.

    Raises UsageError: none at all (where one is needed), over 1 MB, not UTF-8, unreadable or unsupported file, stdin
    named twice.
    """
    if stdin is None and file == "-":
        raise UsageError("prompts from stdin (-) are for the command line")
    if stdin and [*arguments, file].count("-") > 1:
        raise UsageError("stdin (-) can be read once only")
    prompts = []
    for argument in arguments:
        prompts += _lines(_read(stdin, "stdin"), "stdin") if argument == "-" and stdin else [Prompt(argument)]
    prompts += [Prompt(option) for option in options]
    if file == "-" and stdin:
        prompts += _lines(_read(stdin, "stdin"), "stdin")
    elif file is not None:
        prompts += _read_file(Path(file))
    if not prompts and needed:
        raise UsageError("no prompt", f"for example: {EXAMPLE}")
    for prompt in prompts:
        check_prompt(prompt.text)
    return prompts


def stream_prompts(path: Path) -> Iterator[Prompt]:
    """Yield the prompts of a file of any length, never holding all of them in memory.

    Raises UsageError as `read_prompts` does, at the line that is wrong.
    """
    try:
        with path.open("rb") as file:
            yield from _prompts(_stream(file, str(path)), path)
    except OSError as e:
        raise UsageError(f"cannot read `prompt_file={path}`: {e.strerror}") from None


def usage_hints(arguments: Sequence[str], negative: str) -> list[str]:
    """Return hints for a prompt without quotes, and for a negative prompt that was meant as a number of images.

    Other tools use -n for the number.
    """
    said = []
    if len(arguments) > 1 and all(len(argument.split()) < 2 for argument in arguments):
        words = " ".join(arguments)[:60]
        said.append(f'{len(arguments)} prompts of one word each; one prompt is one argument: "{words}"')
    if (number := negative.strip()).isdecimal():
        said.append(f"the negative prompt is {number!r}; for {number} images give `num_images={number}`")
    return said


def _read_file(path: Path) -> list[Prompt]:
    try:
        with path.open("rb") as file:
            raw = _read(file, str(path))
    except OSError as e:
        raise UsageError(f"cannot read `prompt_file={path}`: {e.strerror}") from None
    return list(_prompts(_stream(io.BytesIO(raw), str(path)), path))


def _prompts(lines: Iterable[str], path: Path) -> Iterator[Prompt]:
    """Yield the prompts of a file's lines, read by the format that its suffix names."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UsageError(f"`prompt_file={path.name}`: expected one JSON object per line", "name such a file .jsonl")
    if suffix in (".jsonl", ".csv", ".tsv"):
        yield from read_rows(lines, suffix, path.name)
        return
    for row, line in enumerate(line for line in map(str.strip, lines) if line):
        yield Prompt(check_prompt(line), row)


def _stream(file: BinaryIO, where: str) -> Iterator[str]:
    """Yield the lines of a file with their ends.  Raises UsageError: not UTF-8, a line too long for any prompt."""
    at = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            raise UsageError(f"{where}: a line of more than {MAX_LINE_BYTES} bytes (from byte {at})")
        try:
            line = raw.decode("utf-8-sig" if at == 0 else "utf-8")
        except UnicodeDecodeError as e:
            raise UsageError(f"{where}: not UTF-8 text (byte {at + e.start})") from None
        at += len(raw)
        yield line.replace("\r\n", "\n")


def _read(file: BinaryIO, where: str) -> bytes:
    raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{where}: more than {MAX_FILE_BYTES} bytes of prompts")
    return raw


def _lines(raw: bytes, where: str) -> list[Prompt]:
    """Return one prompt per line that is not blank."""
    texts = [line.strip() for line in _stream(io.BytesIO(raw), where)]
    return [Prompt(line, row) for row, line in enumerate(line for line in texts if line)]
