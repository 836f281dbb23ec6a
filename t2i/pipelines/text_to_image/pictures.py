"""Images with a recipe, for Python: a Pillow image that records how it was made, and a list of them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, SupportsIndex, overload

from PIL import Image

from t2i.imaging import images
from t2i.metadata.recipe import Recipe


class Picture(Image.Image):
    """A Pillow image in mode RGB with its recipe.

    Images that Pillow derives from it (`resize`, `crop`, `copy`) have none, since the recipe holds for these pixels.
    recipe: as it is written into files.  blanked: the model's own safety checker has painted it black.
    """

    recipe: Recipe
    blanked: bool

    @classmethod
    def of(cls, image: Image.Image, recipe: Recipe, blanked: bool = False) -> Picture:
        """Wrap an image, sharing its pixels."""
        picture = cls()
        picture.__dict__.update(image.__dict__)
        picture.recipe, picture.blanked = recipe, blanked
        return picture

    def save(self, fp: str | bytes | os.PathLike[Any] | IO[bytes], format: str | None = None, **params: Any) -> None:
        """Save as Pillow does, with the recipe in every PNG, JPEG and WebP file.  An existing file is replaced."""
        kind = format
        if kind is None and isinstance(fp, str | bytes | os.PathLike):
            kind = images.SAVE_FORMATS.get(os.path.splitext(os.fsdecode(fp))[1].lower())
        if kind in images.SAVE_OPTIONS:
            params = images.SAVE_OPTIONS[kind] | self.recipe.save_options(kind) | params
        super().save(fp, format, **params)

    def __repr__(self) -> str:
        prompt = " ".join(self.recipe.prompt.split())
        shown = prompt if len(prompt) <= 40 else f"{prompt[:37]}..."
        return f"<Picture {self.width}x{self.height}, seed {self.recipe.seed}: {shown!r}>"

    def __getstate__(self) -> list[Any]:
        return [super().__getstate__(), self.recipe, self.blanked]

    def __setstate__(self, state: list[Any]) -> None:
        own, self.recipe, self.blanked = state
        super().__setstate__(own)


class Pictures(list[Picture]):
    """The images of one call, ordered by prompt and then seed.  A notebook shows them as one sheet."""

    def grid(self, columns: int | None = None) -> Image.Image:
        """Arrange all on one sheet; columns: by default nearly square.  Raises UsageError where there are none."""
        return images.grid(self, columns)

    def save(self, folder: str | Path, format: str = "png", *, overwrite: bool = False) -> list[Path]:
        """Save each into `folder` as `00001-SEED.png`, with its recipe.  Returns the paths.

        Raises UsageError: a file exists (unless overwrite); ImageError: the disk fails.
        """
        names = [f"{k:05d}-{picture.recipe.seed}.{format}" for k, picture in enumerate(self, 1)]
        return [
            images.save(picture, Path(folder).expanduser() / name, recipe=picture.recipe, overwrite=overwrite)
            for picture, name in zip(self, names, strict=True)
        ]

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        buffer = io.BytesIO()
        self.grid().save(buffer, "PNG")
        return buffer.getvalue()

    @overload
    def __getitem__(self, index: SupportsIndex) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> Pictures: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Picture | Pictures:
        return Pictures(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def __add__(self, other: Iterable[Picture]) -> Pictures:  # type: ignore[override]  # a list's own may hold anything
        return Pictures([*self, *other])
