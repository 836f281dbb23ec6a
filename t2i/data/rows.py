"""Rows: undecoded images with their columns, the common output of every kind of source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from t2i.errors import DataError, ImageError
from t2i.imaging import images

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from PIL.Image import Image

Classes = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Row:
    """One undecoded image and its columns."""

    where: str  # its place, for error messages
    image: bytes | Path | None
    columns: dict[str, str]
    problem: str | None = None  # an error known before decoding


@dataclass(frozen=True)
class Rows:
    """The rows of one source, in a fixed order.

    classes: the class names of its class columns.  names: all columns in which a row may have a value.
    """

    count: int
    rows: Iterable[Row]
    classes: Classes = field(default_factory=dict)
    names: tuple[str, ...] = ()


def decode(row: Row, size: int) -> Tensor:
    """Return the pixels of a row, (3, size, size) uint8.  Raises ImageError whose message names the row."""
    return images.pixels(images.fit(picture(row), size))


def picture(row: Row) -> Image:
    """Return the image as it is, upright and RGB.  Raises ImageError whose message names the row."""
    if row.problem is not None or row.image is None:
        raise ImageError(f"{row.where}: {row.problem or 'no image'}")
    try:
        return images.decode(row.image, row.where)
    except ImageError as e:
        raise e if row.where in e.message else ImageError(f"{row.where}: {e.message}") from None


@dataclass(frozen=True)
class Layout:
    """The conversion of an Arrow table's values to rows.

    readers: converts each plain column to text: class numbers become names; lists and binary columns are left out.
    classes: the names behind the numbers of each class column.
    """

    image: str
    readers: dict[str, Callable[[Any], str]]
    classes: Classes

    @classmethod
    def of(cls, where: str, schema: pa.Schema, image: str | None) -> Layout:
        """Derive the layout from a schema.

        image: None takes the only column of images.  Raises DataError: no such column, or several.
        """
        import datasets
        import pyarrow.types as types

        image = image or _only_image_column(where, schema)
        _check_image_column(where, image, schema)
        readers: dict[str, Callable[[Any], str]] = {}
        classes: Classes = {}
        plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        for column, feature in datasets.Features.from_arrow_schema(schema).items():
            if column == image:
                continue
            if isinstance(feature, datasets.ClassLabel) and feature.names:
                readers[column] = _class_name(feature)
                classes[column] = tuple(feature.names)
            elif any(test(schema.field(column).type) for test in plain):
                readers[column] = str
        return cls(image, readers, classes)

    @property
    def columns(self) -> list[str]:
        """Return the columns to read."""
        return [self.image, *self.readers]

    def row(self, where: str, values: dict[str, Any]) -> Row:
        """Return the row of one line of the table.  A path beside the image is named in errors, never opened."""
        columns = {name: self.text(name, values[name]) for name in self.readers}
        cell = values[self.image]
        if isinstance(cell, dict):
            where = f"{where} ({cell['path']})" if cell.get("path") else where
            cell = cell.get("bytes")
        return Row(where, cell, columns, None if cell else "no image bytes")

    def text(self, column: str, value: Any) -> str:
        """Return one value as text: "" where there is none."""
        return "" if value is None else self.readers[column](value)


def merge_classes(parts: Iterable[Classes]) -> Classes:
    """Merge the classes of several sources, in the order of their first occurrence."""
    merged: dict[str, dict[str, None]] = {}
    for part in parts:
        for column, names in part.items():
            merged.setdefault(column, {}).update(dict.fromkeys(names))
    return {column: tuple(names) for column, names in merged.items()}


def class_numbers(classes: Classes, column: str, values: Iterable[str]) -> list[int]:
    """Return each value's number among the classes of a column, -1 for a row without one.  Raises DataError."""
    if column not in classes:
        raise DataError(
            f"column {column!r} has no classes; there are {', '.join(map(repr, classes)) or 'none'}",
            "classes are a ClassLabel column of a parquet file, or the sub-folders of an image folder (column 'label')",
        )
    numbers = {name: k for k, name in enumerate(classes[column])}
    return [numbers.get(value, -1) for value in values]


def _only_image_column(where: str, schema: pa.Schema) -> str:
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) > 1 and "image" not in found:
        names = ", ".join(map(repr, found))
        raise DataError(f"{where}: several columns of images: {names}", "name one with `image:` of the source")
    return found[0] if len(found) == 1 else "image"


def _check_image_column(where: str, image: str, schema: pa.Schema) -> None:
    import pyarrow.types as types

    if image not in schema.names:
        raise DataError(
            f"{where}: no column {image!r}; there are {', '.join(schema.names)}", "name it with `image:` of the source"
        )
    kind = schema.field(image).type
    struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (struct or types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataError(f"{where}: column {image!r} holds {kind}, not encoded images")


def _class_name(feature: datasets.ClassLabel) -> Callable[[Any], str]:
    names = list(feature.names)
    return lambda number: names[number] if 0 <= number < len(names) else ""  # -1 is "no label"
