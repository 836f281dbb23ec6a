"""AUTOMATIC1111's text form of generation settings, which every other tool reads: render and parse.

    a horse, oil on canvas
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: mini, ...

The form is ambiguous by design: a prompt may hold a line that looks like the last one. The parser follows A1111's own
rule: the last line holds the settings if at least three `key: value` pairs are found in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

NEGATIVE = "Negative prompt:"
MAX_LENGTH = 1_000_000  # characters; a longer text is not parsed
# Starting at a word, and with a bound on its length, the work stays linear in a hostile text.
_PAIR = re.compile(r'(?<!\w)(\w[\w \-/]{1,63}):\s*("(?:[^"\\]|\\.)+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"([0-9]+)x([0-9]+)")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def render(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """Render the text of one image; settings that are None are left out.

    NUL, which PNG text cannot hold, and lone surrogates, which no encoding holds, become U+FFFD.
    """
    last = ", ".join(f"{key}: {quote(value)}" for key, value in settings.items() if value is not None)
    lines = [prompt, *([f"{NEGATIVE} {negative}"] if negative else []), last]
    return _UNWRITABLE.sub("\ufffd", "\n".join(lines)).strip()


def quote(value: object) -> str:
    """Quote a value for the last line: as JSON where it would be cut or misread otherwise."""
    text = _UNWRITABLE.sub("\ufffd", str(value))
    plain = text == text.strip() and not any(c in text for c in ',:\n"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def parse(text: str) -> dict[str, str]:
    """Parse settings by name, with "Prompt" and "Negative prompt"; a `512x768` value gives "Size-1" and "Size-2".

    Never fails: text that cannot be parsed is taken as the prompt.
    """
    if len(text) > MAX_LENGTH:
        return {"Prompt": text, "Negative prompt": ""}
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    lines = [line.strip() for line in lines]
    start = next((k for k, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = [line.removeprefix(NEGATIVE).strip() for line in lines[start:]]
    found: dict[str, str] = {}
    for key, value in pairs:
        value = _unquote(value)
        if size := _SIZE.fullmatch(value):
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    return found | {"Prompt": "\n".join(lines[:start]), "Negative prompt": "\n".join(negative).lstrip("\n")}


def _unquote(value: str) -> str:
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    try:
        plain = json.loads(value)
    except ValueError:
        return value
    return plain if isinstance(plain, str) else value
