"""Find the adapters that a record names, near the image or in the Hub's cache.

A file must be the one that was used: its sha256 is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.errors import ImageError, ModelError, ModelUnavailable, T2IError
from t2i.jobs.replay.search_paths import places
from t2i.pipelines.adapters.files import HUB, find
from t2i.pipelines.settings.image_input import ImageInput

FIELDS = {"lora": "lora", "embedding": "embedding", "ip-adapter": "ip_adapter"}
FORMATS = {"lora": "PATH:SCALE", "embedding": "PATH:TOKEN", "ip_adapter": "PATH:IMAGE:SCALE"}


def find_adapters_of_record(
    image: Path, adapters: Sequence[Mapping[str, Any]], given: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return {option: its values} for the adapters of a record; all three options are there.

    image: the file with the record.  given: options that the user sets: their files are not searched for.
    Raises ModelUnavailable, naming file and hash, where one is not here; ModelError where another is in its place.
    """
    found: dict[str, list[str]] = {name: [] for name in FIELDS.values()}
    for record in adapters:
        kind = str(record.get("kind"))
        if kind not in FIELDS or not isinstance(record.get("name"), str):
            raise ImageError(f"`replay={image}`: its record names an adapter of no known kind: {kind[:40]!r}")
        if FIELDS[kind] not in given:
            found[FIELDS[kind]].append(_spec(image, kind, record))
    return {name: tuple(specs) for name, specs in found.items()}


def adapter_rows(adapters: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the adapters of a record as rows: kind; name, use and hash."""
    formats = {"scale": "scale {:g}", "token": "token {}", "image": "sees {}"}
    rows = []
    for one in adapters:
        words = [text.format(one[name]) for name, text in formats.items() if name in one]
        digest = f"sha256 {str(one.get('sha256'))[:10]}"
        rows.append((str(one.get("kind")), ", ".join([str(one.get("name")), *words, digest])))
    return rows


def _spec(image: Path, kind: str, record: Mapping[str, Any]) -> str:
    """Return one adapter as the value of its option."""
    name, digest = str(record["name"]), str(record.get("sha256", ""))
    path = _search(image, kind, name, digest, lambda path: find(path, FIELDS[kind], offline=True).sha256)
    if kind == "embedding":
        return f"{path}:{record.get('token', '')}"
    scale = float(record.get("scale", 1.0))
    if kind == "lora":
        return f"{path}:{scale!r}"
    name, digest = str(record.get("image", "")), str(record.get("image_hash", ""))
    prompt_image = _search(image, "image", name, digest, lambda path: ImageInput.of(path).hash)
    return f"{path}:{prompt_image}:{scale!r}"


def _search(image: Path, kind: str, name: str, digest: str, measure: Callable[[str], str]) -> str:
    """Return the path of the file with this name and hash.  measure: returns a file's hash."""
    option = FIELDS.get(kind, "ip_adapter")
    what = f"its {kind}" if kind in FIELDS else "the image prompt of its ip-adapter,"
    other = ""
    for place in _places(image, name):
        try:
            there = measure(place)
        except T2IError:
            continue
        if there == digest:
            return place
        other = other or f"{place} is another one, sha256 {there[:10]}"
    message = f"`replay={image}`: {what} {name} (sha256 {digest[:10]}) is not here"
    hint = f"put it next to the image or into this folder, or give its place: `{option}={FORMATS[option]}`"
    if other:
        raise ModelError(f"{message}: {other}", hint)
    raise ModelUnavailable(message, hint)


def _places(image: Path, name: str) -> Iterator[str]:
    """Yield places where an adapter may be: near the image, or a file on the Hub."""
    yield from map(str, places(image, name))
    # A record may come from anyone: a name with ".." must not reach other files of the Hub's cache.
    if HUB.fullmatch(name) and name.count("/") > 1 and ".." not in name:
        yield name
