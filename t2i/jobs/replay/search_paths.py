"""Search paths for files that an image's record names; the caller verifies their hash.

A record may come from anyone: of a name in it, only the last part is a file here.
"""

from __future__ import annotations

from collections.abc import Iterator
from glob import escape
from itertools import islice
from pathlib import Path

MOST_PLACES = 20  # candidates in the folders below one


def last_part(name: str) -> str:
    """Return the file name in a path of a record, which may come from Windows."""
    return Path(name.replace("\\", "/")).name


def places(image: Path, name: str) -> Iterator[Path]:
    """Yield existing files with this name: next to the image, in the working folder, one folder below these."""
    last = last_part(name)
    for folder in dict.fromkeys((image.parent, Path())) if last else ():
        if (folder / last).is_file():
            yield folder / last
        yield from islice(sorted(folder.glob(f"*/{escape(last)}")), MOST_PLACES)
