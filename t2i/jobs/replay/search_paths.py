"""Files that an image's record names, looked for near the image and known by their hash.

A record may come from anyone: of a name in it, only the last part is a file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from glob import escape
from itertools import islice
from pathlib import Path

MOST_PLACES = 20  # folders below one that are looked into


def last_part(name: str) -> str:
    """What a record's name is called here."""
    return Path(name.replace("\\", "/")).name


def places(image: Path, name: str) -> Iterator[Path]:
    """Where such a file may be: beside the image, in the working folder, one folder below either of these."""
    last = last_part(name)
    for folder in dict.fromkeys((image.parent, Path())) if last else ():
        if (folder / last).is_file():
            yield folder / last
        yield from islice(sorted(folder.glob(f"*/{escape(last)}")), MOST_PLACES)
