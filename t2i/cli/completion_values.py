"""Completion of option values in a shell. It runs at every press of Tab, so nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

DEVICES = ("cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")
_PATHS = CompletionItem("", type="file")  # the shell itself completes paths


def models(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete names of the registry and ids in the Hub's cache; paths otherwise."""
    return _starting(typed, _known_models()) or [_PATHS]


def model_names(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete names of the registry and ids in the Hub's cache."""
    return _starting(typed, _known_models())


def schedulers(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete names of schedulers."""
    from t2i.pipelines.settings.schedulers import SCHEDULERS

    return _starting(typed, SCHEDULERS)


def caches(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete names of step caching methods."""
    from t2i.pipelines.text_to_image.step_cache import CACHES

    return _starting(typed, [*CACHES, "none"])


def devices(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete kinds of devices, present or not: asking torch which of them are would take seconds."""
    return _starting(typed, DEVICES)


def dtypes(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Complete names of dtypes."""
    return _starting(typed, DTYPES)


def _starting(typed: str, values: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(value) for value in values if value.startswith(typed)]


def _known_models() -> list[str]:
    from t2i.model_files.registry import NAMES

    return [*NAMES, *_cached_ids()]


def _cached_ids() -> list[str]:
    """Return Hub ids, read from the names of the cache's folders: importing the Hub's library would take a second."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("models--"))
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/") for name in names]
