"""The sheets of samples a run drew as it learned, as pictures a page can hold."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from t2i.errors import T2IError
from t2i.imaging import images
from t2i.report.runs import Run

MOST = 40  # sheets of a run; of more, so many are taken evenly, the first and the last among them
QUALITY = 92  # of WebP: a fifth of the bytes; the originals stay in the run folder
WIDE = 640  # pixels that a small sheet is enlarged to, at most, by a whole factor


@dataclass(frozen=True)
class SampleImage:
    """images: seen when it was drawn.  uri: the picture itself.  shown: pixels across where there is room."""

    images: int
    uri: str
    width: int
    height: int

    @property
    def shown(self) -> int:
        return self.width * max(1, WIDE // self.width)


def pictures(run: Run) -> list[SampleImage]:
    """The run's sheets, oldest first; one that cannot be read is left out."""
    found = []
    for k in evenly(len(run.samples), MOST):
        seen, path = run.samples[k]
        try:
            sheet = images.decode(path)
        except (T2IError, OSError):
            continue
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=QUALITY)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        found.append(SampleImage(seen, uri, *sheet.size))
    return found


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 .. count - 1, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]
