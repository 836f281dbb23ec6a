"""Import of A1111's text: its settings as our options, and a list of those that have no equivalent here.

A1111, Forge, SD.Next and many more write the same line; what each of them adds to it is listed, not restored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from t2i.config.option import Known
from t2i.config.options import OPTIONS
from t2i.errors import UsageError
from t2i.pipelines.prompts.attention_weights import with_numbers
from t2i.pipelines.settings import limits
from t2i.pipelines.settings.edit import check_strength, read_upscale
from t2i.pipelines.settings.schedulers import scheduler_name

# Checkpoints that a model of the registry was converted from: the first ten digits of their sha256, and their names.
CHECKPOINTS = {"6ce0161689": "sd15", "cc6cb27103": "sd15", "31e35c80fc": "sdxl"}
CHECKPOINT_NAMES = {"v1-5-pruned-emaonly": "sd15", "sd_xl_base_1.0": "sdxl", "sd_xl_turbo_1.0_fp16": "sdxl-turbo"}

IMPORTED = ("Prompt", "Negative prompt", "Sampler", "Schedule type", "Size-1", "Size-2", "Model", "Model hash", "RNG")
HARMLESS = ("Version", "User", "Template", "Negative Template", "Created Date", "Date")
NETWORK = re.compile(r"<(lora|lyco|hypernet):([^:>]+)[^>]*>")
EDITING = re.compile(r"\[[^\[\]]*:[^\[\]]*\]|\bAND\b|\bBREAK\b")
DEFAULT_SCHEDULES = ("Automatic", "Uniform", "automatic", "")
LANCZOS = (None, "Lanczos")
LONGEST = 60  # characters of one value in a message


@dataclass
class ImportedSettings:
    """A parsed text.  values: by the names of options.  lost: what could not be restored, a line each.

    ours: t2i wrote it, into a file that has lost our own record.
    """

    prompt: str
    values: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    model_hash: str = ""
    ours: bool = False
    lost: list[str] = field(default_factory=list)


def import_settings(settings: Mapping[str, str], from_picture: bool = False) -> ImportedSettings:
    """Translate A1111's settings, as `a1111.parse` returns them.  Never fails: a malformed value is listed as lost.

    from_picture: the user gives the input image of image-to-image, which no file holds.
    """
    text = ImportedSettings(
        settings["Prompt"], model=settings.get("Model", ""), model_hash=settings.get("Model hash", "")
    )
    text.ours = settings.get("Version", "").startswith("t2i")
    negative = settings["Negative prompt"]
    text.prompt, text.values["negative_prompt"] = (
        _without_network_tags(prompt, text.lost) for prompt in (text.prompt, negative)
    )
    if EDITING.search(f"{text.prompt} {negative}"):
        text.lost.append("prompt editing ([a:b:0.5], AND, BREAK): read as plain words")
    elif not text.ours:  # to A1111 (red) is a weight of 1.1, to us plain text: weights are written as numbers
        text.prompt, text.values["negative_prompt"] = (
            with_numbers(text.prompt),
            with_numbers(text.values["negative_prompt"]),
        )
    for key, option in _LABELLED.items():
        if key in settings and settings[key] != option.option.a1111_unset:
            try:
                value = option.convert(settings[key])
                text.values[option.name] = limits.check_seeds(value)[0] if option.name == "seed" else value
            except (ValueError, UsageError):
                text.lost.append(f"{key}: {_short(settings[key])} (not a value that can be used)")
    if settings.get("Sampler"):
        _read_sampler(settings["Sampler"], settings.get("Schedule type", ""), text)
    restored = _read_edit(settings, from_picture, text)
    if settings.get("RNG") != "CPU":
        text.lost.append("the first noise (drawn on a GPU there, on the CPU here): expect another image")
    _list_the_rest(settings, text.lost, restored)
    return text


def _without_network_tags(prompt: str, lost: list[str]) -> str:
    """Return the prompt without `<lora:name:weight>` tags, which are listed as lost."""
    for kind, name in NETWORK.findall(prompt):
        lost.append(f"{'hypernetwork' if kind == 'hypernet' else 'LoRA'} {_short(name)}")
    return re.sub(r"\s{2,}", " ", NETWORK.sub("", prompt)).strip() if NETWORK.search(prompt) else prompt


def _read_sampler(sampler: str, schedule: str, text: ImportedSettings) -> None:
    for spelling in (f"{sampler} {schedule}", sampler):
        try:
            text.values["scheduler"] = scheduler_name(spelling)
        except UsageError:
            continue
        if spelling == sampler and schedule not in DEFAULT_SCHEDULES:
            text.lost.append(f"Schedule type: {_short(schedule)}")
        return
    text.lost.append(f"Sampler: {_short(f'{sampler} {schedule}'.strip())} (the model's own is used)")


def _read_edit(settings: Mapping[str, str], from_picture: bool, text: ImportedSettings) -> tuple[str, ...]:
    """Read a second pass, or the strength of image-to-image; return the keys that this restores."""
    strength, factor = settings.get("Denoising strength", ""), settings.get("Hires upscale", "")
    try:
        if factor and strength:
            text.values["upscale"] = read_upscale(f"{factor}:{strength}")
            same = settings.get("Hires upscaler") in LANCZOS
            return ("Denoising strength", "Hires upscale", *(["Hires upscaler"] if same else []))
        if strength and from_picture and not any(key.startswith("Hires") for key in settings):
            text.values["strength"] = check_strength("strength", float(strength))
            return ("Denoising strength",)
    except (ValueError, UsageError):
        pass  # listed with the rest
    return ()


def _list_the_rest(settings: Mapping[str, str], lost: list[str], restored: Collection[str]) -> None:
    """Add a line to `lost` for each group of related settings, and for every unknown one."""
    groups: dict[str, list[str]] = {}
    for key, value in settings.items():
        if key in (*IMPORTED, *HARMLESS, *_LABELLED, *restored) or (key == "Clip skip" and value == "1"):
            continue
        meaning = next((words for pattern, words in _MEANINGS.items() if re.match(pattern, key)), "")
        if key == "Denoising strength":
            hires = any(other.startswith("Hires") for other in settings)
            meaning = _HIRES if hires else "image-to-image: the input image is not in the file; give it with `image`"
        if meaning == _HIRES and "Hires upscale" in restored:
            meaning = "of the second pass; it is drawn, from an image enlarged by Lanczos"
        groups.setdefault(meaning or key, []).append(f"{key}: {_short(value)}")
    for meaning, pairs in groups.items():
        about = f" ({meaning})" if not pairs[0].startswith(f"{meaning}:") else ""
        lost.append(", ".join(pairs[:6]) + (", ..." if len(pairs) > 6 else "") + about)


def _short(value: str) -> str:
    """Return a value on one line, printable and cut: a record may hold anything."""
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


_LABELLED: dict[str, Known] = {one.option.a1111: one for one in OPTIONS.values() if one.option.a1111}
_HIRES = "a second pass: the image is that of the first pass, and smaller"
_MEANINGS = {
    r"Hires": _HIRES,
    r"Lora hashes|Lyco": "of the LoRAs",
    r"TI hashes": "textual inversions",
    r"VAE": "another image decoder",
    r"Clip skip": "the text encoder's last layers left out",
    r"Variation seed": "noise mixed from two seeds",
    r"ControlNet|AddNet": "guided by another image",
    r"Refiner": "a second model for the last steps",
    r"ADetailer|Face restoration": "faces drawn again",
}
