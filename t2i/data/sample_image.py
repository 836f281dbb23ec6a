"""One example image of a data set."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from t2i import config
from t2i.data.sources import is_hub, open_source
from t2i.errors import ImageError
from t2i.imaging import images

if TYPE_CHECKING:
    from PIL.Image import Image


def example(data: config.Data, column: str | None = None, value: str = "") -> Image | None:
    """Return the first readable image, of those with this value in a column where one is given; None: there is none.

    Data sets on the Hub are skipped: one image is not worth a download.  Raises DataError: the data is not here.
    """
    for source in data.sources:
        if is_hub(source):
            continue
        for row in open_source(source).rows:
            if row.image is not None and (column is None or row.columns.get(column) == value):
                with suppress(ImageError):
                    return images.decode(row.image, row.where)
    return None
