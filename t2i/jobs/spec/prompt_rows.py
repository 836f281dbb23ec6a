"""Prompt files whose rows set options of their own: one JSON object per line, or a table with a head (csv, tsv).

{"prompt": "a horse", "seed": 7, "steps": 30}
{"prompt": "a cat", "size": "512x768", "output": "cats/{seed}.png"}
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from t2i.errors import ImageError, UsageError
from t2i.jobs.spec.tasks import Prompt, PromptOverrides, choose_seeds, read_size
from t2i.pipelines.adapters.specs import read_embedding, read_ip_adapter, read_lora
from t2i.pipelines.loading.load import DTYPES
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import NO_IMAGE_INPUTS, check_strength, make_image_inputs
from t2i.pipelines.settings.schedulers import scheduler_name
from t2i.pipelines.text_to_image.step_cache import parse_cache


def read_rows(lines: Iterable[str], suffix: str, where: str) -> Iterator[Prompt]:
    """The prompts of a file's lines, one by one.  suffix: ".jsonl", ".csv" or ".tsv".  where: the file, for messages.

    A value that is empty or null is not said.  Raises UsageError naming file and line: no prompt, an unknown option
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
            raise UsageError(f"{where}: its first line names no column 'prompt'", f"columns: {', '.join(OPTIONS)}")
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
        key = _key(name)
        if key not in READERS:
            if key in WHOLE_RUN:
                hint = f"--{key.replace('_', '-')} on the command line"
                raise UsageError(f"{where}: {name[:40]} is an option of the whole run, not of a row", hint)
            near = difflib.get_close_matches(key, READERS, n=1)
            guess = f", did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{where}: unknown option {name[:40]!r}{guess}", f"options: {', '.join(OPTIONS)}")
        if value is None:
            continue
        field, read = READERS[key]
        try:
            new = read(value)
        except UsageError as e:
            raise UsageError(f"{where}: {e.message}", e.hint) from None
        new = new if isinstance(new, dict) else {field: new}
        if twice := values.keys() & new.keys():
            raise UsageError(f"{where}: {min(twice)} is said twice ({name!r})")
        values |= new
    if "prompt" not in values:
        raise UsageError(f"{where}: no prompt")
    started = {name: values.pop(name) for name in EDITING if name in values}
    try:
        edit = make_image_inputs(**started) if started else NO_IMAGE_INPUTS
    except (UsageError, ImageError) as e:
        raise type(e)(f"{where}: {e.message}", e.hint) from None
    return Prompt(values.pop("prompt"), number, PromptOverrides(**values, edit=edit), where=where)


def _key(name: str) -> str:
    return name.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")


def _whole(name: str, check: Callable[[int], int]) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            if isinstance(value, bool | float):
                raise ValueError
            return check(int(value))
        except (TypeError, ValueError):
            raise UsageError(f"{name}: got {str(value)[:40]!r}, expected a whole number") from None

    return read


def _guidance(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return limits.check_guidance(float(value))
    except (TypeError, ValueError):
        raise UsageError(f"guidance: got {str(value)[:40]!r}, expected a number") from None


def _strength(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return check_strength("strength", float(value))
    except (TypeError, ValueError):
        raise UsageError(f"strength: got {str(value)[:40]!r}, expected a number") from None


def _controls(value: Any) -> list[str]:
    """One TYPE:IMAGE[:SCALE], or a list of them."""
    return [_text("control")(one) for one in (value if isinstance(value, list) else [value])]


def _flag(name: str) -> Callable[[Any], bool]:
    """true or false; in a table, where all is text, also in words."""

    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        raise UsageError(f"{name}: got {str(value)[:40]!r}, allowed true, false")

    return read


def _quantize(value: Any) -> str:
    if isinstance(value, bool) or str(value) not in QUANTIZE:
        raise UsageError(f"quantize: got {str(value)[:40]!r}, allowed {', '.join(QUANTIZE)}")
    return str(value)


def _text(name: str, check: Callable[[str], Any] = lambda text: text) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise UsageError(f"{name}: got {str(value)[:40]!r}, expected text")
        check(value)
        return value

    return read


def _size(value: Any) -> dict[str, int | None]:
    width, height = read_size(str(value), None, None)
    return {"width": limits.check_side("width", width or 0), "height": limits.check_side("height", height or 0)}


def _negative(text: str) -> None:
    limits.check_prompt(text, "negative prompt")


def _dtype(text: str) -> None:
    if text.lower() not in DTYPES:
        raise UsageError(f"dtype: got {text[:40]!r}, allowed {', '.join(DTYPES)}")


def _specs(name: str, check: Callable[[str], Any]) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        specs = [value] if isinstance(value, str) else value
        if not isinstance(specs, list) or not all(isinstance(spec, str) for spec in specs):
            raise UsageError(f"{name}: got {str(value)[:40]!r}, expected text, or a list of texts")
        for spec in specs:
            check(spec)
        return tuple(specs)

    return read


def _inside(text: str) -> None:
    """A row names a file below the folder of --output: the prompts may come from someone else."""
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() or path.drive or ".." in path.parts or text[:1] in ("~", "/", "\\") or "\0" in text:
            raise UsageError(f"output: {text[:60]!r} leads out of the folder of --output", "give a relative name")


QUANTIZE = ("none", "8", "4")
WHOLE_RUN: tuple[str, ...] = (
    "device",
    "batch_size",
    "compile",
    "offload",
    "auto_retry",
    "preview",
    "wildcards",
    "lora_folder",
)
WHOLE_RUN += ("config", "offline", "format", "overwrite", "grid", "columns", "shards", "shard_size", "json", "quiet")
# option: (field of Wish, how its value is read)
READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "prompt": ("prompt", _text("prompt", limits.check_prompt)),
    "negative_prompt": ("negative", _text("negative prompt", _negative)),
    "seed": ("seed", _whole("seed", lambda seed: choose_seeds([seed])[0])),
    "steps": ("steps", _whole("steps", limits.check_steps)),
    "guidance": ("guidance", _guidance),
    "width": ("width", _whole("width", lambda pixels: limits.check_side("width", pixels))),
    "height": ("height", _whole("height", lambda pixels: limits.check_side("height", pixels))),
    "size": ("size", _size),
    "scheduler": ("scheduler", _text("scheduler", scheduler_name)),
    "batch_count": ("count", _whole("batch_count", limits.check_image_count)),
    "model": ("model", _text("model")),
    "revision": ("revision", _text("revision")),
    "dtype": ("dtype", _text("dtype", _dtype)),
    "lora": ("loras", _specs("lora", read_lora)),
    "embedding": ("embeddings", _specs("embedding", read_embedding)),
    "ip_adapter": ("ip_adapters", _specs("ip_adapter", read_ip_adapter)),
    "cache": ("cache", _text("cache", parse_cache)),
    "quantize": ("quantize", _quantize),
    "tiling": ("tiling", _flag("tiling")),
    "deterministic": ("deterministic", _flag("deterministic")),
    "no_safety": ("no_safety", _flag("no_safety")),
    "raw": ("raw", _flag("raw")),
    "chunks": ("chunks", _flag("chunks")),
    "output": ("output", _text("output", _inside)),
    "image": ("image", _text("image")),
    "mask": ("mask", _text("mask")),
    "strength": ("strength", _strength),
    "control": ("control", _controls),
    "upscale": ("upscale", lambda value: str(value)),
}
EDITING = ("image", "mask", "strength", "control", "upscale")
OPTIONS = tuple(READERS)
READERS |= {
    "negative": READERS["negative_prompt"],
    "num_inference_steps": READERS["steps"],
    "cfg_scale": READERS["guidance"],
    "guidance_scale": READERS["guidance"],
    "sampler": READERS["scheduler"],
    "num_images": READERS["batch_count"],
    "init_image": READERS["image"],
}
