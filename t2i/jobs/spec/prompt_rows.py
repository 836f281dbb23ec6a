"""Prompt files whose rows set options: one JSON object per line, or a table with a header (csv, tsv).

{"prompt": "a horse", "seed": 7, "steps": 30}
{"prompt": "a cat", "size": "512x768", "output": "cats/{seed}.png"}
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from t2i.config.option import Known, read_size
from t2i.config.options import OPTIONS, ROW, GenerateOptions
from t2i.errors import UsageError
from t2i.jobs.spec.request import parse
from t2i.jobs.spec.tasks import Prompt, PromptOverrides, choose_seeds


def read_rows(lines: Iterable[str], suffix: str, where: str) -> Iterator[Prompt]:
    """Yield the prompts of a file's lines.  suffix: ".jsonl", ".csv" or ".tsv".  where: the file, for messages.

    A value that is empty or null is not set.  Raises UsageError naming file and line: no prompt, an unknown option
    (with those there are), a value outside its range.
    """
    rows = _json_lines(lines, where) if suffix == ".jsonl" else _table(lines, suffix, where)
    for number, (line, row) in enumerate(rows):
        yield _prompt(row, number, f"{where}, line {line}")


def _json_lines(lines: Iterable[str], where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"{where}, line {line}: not valid JSON: {str(e)[:100]}") from None
        if not isinstance(row, str | dict):
            kind = type(row).__name__
            raise UsageError(f"{where}, line {line}: expected a JSON object, got {kind}", 'as {"prompt": "a horse"}')
        yield line, {"prompt": row} if isinstance(row, str) else row


def _table(lines: Iterable[str], suffix: str, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        head = next(reader, [])
        if "prompt" not in map(_key, head):
            raise UsageError(f"{where}: its first line names no column 'prompt'", f"columns: {', '.join(NAMES)}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(head):
                message = f"{where}, line {reader.line_num}: {len(cells)} values for {len(head)} columns"
                raise UsageError(message, 'put a prompt with a comma into quotes: "a horse, oil on canvas"')
            yield reader.line_num, {name: cell for name, cell in zip(head, cells, strict=True) if cell.strip()}
    except csv.Error as e:
        raise UsageError(f"{where}, line {reader.line_num}: {e}") from None


def _prompt(row: Mapping[str, Any], number: int, where: str) -> Prompt:
    values: dict[str, Any] = {}
    for name, value in row.items():
        option = _option(name, where)
        if value is None:
            continue
        try:
            new = _read(option, value)
        except UsageError as e:
            raise UsageError(f"{where}: {e.message}", e.hint) from None
        if twice := values.keys() & new.keys():
            raise UsageError(f"{where}: {min(twice)} is given twice ({name!r})")
        values |= new
    if "prompt" not in values:
        raise UsageError(f"{where}: no prompt")
    parsed = parse(values, where)
    return Prompt(parsed.pop("prompt"), number, PromptOverrides(parsed), where=where)


def _option(name: str, where: str) -> Known:
    """Look up what a column or key stands for.  Raises UsageError that suggests the nearest name."""
    key = _key(name)
    option = GenerateOptions.find(key)
    if option is not None and (option.option.scope == "row" or key == "prompt"):
        return option
    if option is not None and option.option.scope != "source":
        raise UsageError(
            f"{where}: {name[:40]} is an option of the whole run, not of a row", f"set `{option.name}` for the run"
        )
    near = difflib.get_close_matches(key, NAMES, n=1)
    guess = f", did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{where}: unknown option {name[:40]!r}{guess}", f"options: {', '.join(NAMES)}")


def _read(option: Known, value: Any) -> dict[str, Any]:
    """Read one cell or value: options by name, as `PromptOverrides` holds them."""
    name = option.name
    if name == "prompt":
        if not isinstance(value, str):
            raise UsageError(f"prompt: got {str(value)[:40]!r}, expected text")
        return {"prompt": value}
    if name in ("image", "mask") and not isinstance(value, str):  # in Python these may be images, in a row only paths
        raise UsageError(f"{name}: got {str(value)[:40]!r}, expected text")
    if name == "size":
        width, height = read_size(value)
        return {"width": OPTIONS["width"].convert(width), "height": OPTIONS["height"].convert(height)}
    if name == "upscale":
        return {"upscale": str(value)}
    read = option.convert(value)
    if option.kind is object:  # an image in memory is for Python; a row names a file
        for one in read if option.option.many else (read,):
            if not isinstance(one, str):
                raise UsageError(f"{name}: got {str(one)[:40]!r}, expected text")
    if name == "seed":
        if len(read) != 1:
            raise UsageError(f"seed: got {str(value)[:40]!r}, expected one number")
        # -1: no seed of its own. A random one would be another at each pass over the list of a batch.
        return {} if read == (-1,) else {"seed": choose_seeds(read)[0]}
    if name == "output":
        _check_inside(read)
    return {name: read}


def _key(name: str) -> str:
    return name.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")


def _check_inside(text: str) -> None:
    """Check that a row names a file below the output folder: the prompts may come from someone else."""
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() or path.drive or ".." in path.parts or text[:1] in ("~", "/", "\\") or "\0" in text:
            raise UsageError(f"output: {text[:60]!r} leads out of the output folder", "give a relative name")


NAMES: tuple[str, ...] = ("prompt", *(OPTIONS[name].row_name for name in ROW))
