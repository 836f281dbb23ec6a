"""The prompts of one run: from the command line, a file or stdin; and the seed of every image."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from t2i.errors import UsageError
from t2i.pipelines.limits import check_prompt, check_seeds
from t2i.pipelines.settings import Job

MAX_FILE_BYTES = 100_000_000
EXAMPLE = 't2i generate "a horse in Van Gogh style"'


@dataclass(frozen=True)
class Prompt:
    """A prompt and its row in the file it came from (0 on the command line), which shifts its seeds."""

    text: str
    row: int = 0


def read_prompts(arguments: Sequence[str], options: Sequence[str], file: str | None, stdin: BinaryIO) -> list[Prompt]:
    """All prompts, in the order: arguments, -p, the file. An argument or file `-` is stdin, one prompt per line.

    Raises UsageError: none at all, over 1 MB, not UTF-8, unreadable or unsupported file, stdin named twice.
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
    if not prompts:
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


def choose_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a run: -1, or none at all, becomes a random one.  Raises UsageError for what is out of range."""
    return check_seeds([secrets.randbelow(2**32) if seed == -1 else seed for seed in seeds or (-1,)])


def make_jobs(prompts: Sequence[Prompt], seeds: Sequence[int], count: int) -> list[Job]:
    """One job per image: image k of a prompt has seed + k, for each prompt anew; row r of a file starts at r x count.

    Raises UsageError where a seed would leave its range.
    """
    jobs = [
        Job(prompt.text, seed + prompt.row * count + k) for prompt in prompts for seed in seeds for k in range(count)
    ]
    check_seeds([job.seed for job in jobs])
    return jobs


def _read_file(path: Path) -> list[Prompt]:
    if path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"):
        raise UsageError(f"--prompts {path.name}: {path.suffix} files are not read yet", "give one prompt per line")
    try:
        with path.open("rb") as file:
            return _lines(_read(file, str(path)), str(path))
    except OSError as e:
        raise UsageError(f"cannot read --prompts {path}: {e.strerror}") from None


def _read(file: BinaryIO, where: str) -> bytes:
    raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{where}: more than {MAX_FILE_BYTES} bytes of prompts")
    return raw


def _lines(raw: bytes, where: str) -> list[Prompt]:
    """One prompt per line that is not blank."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{where}: not UTF-8 text (byte {e.start})") from None
    texts = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    return [Prompt(line, row) for row, line in enumerate(line for line in texts if line)]
