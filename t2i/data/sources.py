"""Data sources: image folder, parquet files or Hub id -> rows, with errors per file.

Every kind of source is a `Rows`: a count and an iterator of undecoded rows, of which few are in memory at a time. Their
readers are `memory_table.py`, `arrow_store.py`, `shard_store.py` and `summary.py`.
"""

from __future__ import annotations

import glob
import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from t2i import config
from t2i.data.folders import folder_rows
from t2i.data.parquet import Parquet, one_line, open_parquet
from t2i.data.rows import Layout, Rows, merge_classes
from t2i.errors import DataError

if TYPE_CHECKING:
    import datasets


def open_source(source: config.Source) -> Rows:
    """Open one source, according to its path: `hub:owner/name`, an image folder, parquet files.

    Raises DataError.
    """
    if is_hub(source):
        dataset, layout = hub_dataset(source)
        where = f"{source.path}[{source.split}]"
        found = (layout.row(f"{where} row {i}", values) for i, values in enumerate(dataset))
        return Rows(len(dataset), found, layout.classes, tuple(layout.readers))
    if is_folder(source):
        return folder_rows(Path(source.path))
    files = parquet_files(source)
    rows = chain.from_iterable(file.rows() for file in files)
    classes = merge_classes(file.layout.classes for file in files)
    names = dict.fromkeys(name for file in files for name in file.layout.readers)
    return Rows(sum(file.count for file in files), rows, classes, tuple(names))


def is_hub(source: config.Source) -> bool:
    """Return whether a source is a Hub data set."""
    return source.path.startswith("hub:")


def is_folder(source: config.Source) -> bool:
    """Return whether a source is an image folder."""
    return not is_hub(source) and Path(source.path).is_dir()


def parquet_files(source: config.Source) -> list[Parquet]:
    """Return the parquet files of a path or glob, sorted, with their footers read.  Raises DataError."""
    # sorted: the order of glob depends on the file system
    paths = sorted(map(Path, glob.glob(config.shipped_data(source.path), recursive=True)))
    if not paths:
        raise DataError(
            f"no such data: {source.path}",
            "a source is an image folder, a parquet file or glob, or hub:owner/name; the comments in a config that"
            " comes with t2i describe how to make its data",
        )
    for path in paths:
        if path.suffix.lower() not in (".parquet", ".pq"):
            raise DataError(f"{path} is neither a folder nor a parquet file")
    return [open_parquet(str(path), source.image) for path in paths]


def hub_dataset(source: config.Source) -> tuple[datasets.Dataset, Layout]:
    """Load a Hub data set through `datasets`, which downloads it or finds it in its cache; undecoded.

    Raises DataError.
    """
    name = hub_name(source)
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=source.split)
    except Exception as e:  # datasets and huggingface_hub raise a dozen unrelated types
        raise not_available(source, e) from None
    layout = Layout.of(source.path, dataset.features.arrow_schema, source.image)
    return undecoded(dataset, layout), layout


def hub_shards(source: config.Source) -> list[Parquet]:
    """Open the parquet files of a Hub data set in place, without downloading them.  Raises DataError."""
    name = hub_name(source)
    import datasets

    try:
        builder = datasets.load_dataset_builder(name)
        files = (builder.config.data_files or {}).get(source.split, [])
    except Exception as e:
        raise not_available(source, e) from None
    urls = [str(url) for url in files]
    if not urls or not all(url.lower().endswith((".parquet", ".pq")) for url in urls):
        raise DataError(
            f"{source.path}[{source.split}] cannot be streamed: it is not kept as parquet files",
            "set data.storage=mapped, which downloads it",
        )
    try:
        return [open_parquet(url, source.image) for url in urls]
    except DataError:
        raise
    except Exception as e:
        raise not_available(source, e) from None


def undecoded(dataset: datasets.Dataset, layout: Layout) -> datasets.Dataset:
    """Select the columns of a layout, with the images as stored bytes, for our own decoder."""
    import datasets

    if isinstance(dataset.features[layout.image], datasets.Image):
        dataset = dataset.cast_column(layout.image, datasets.Image(decode=False))
    return dataset.select_columns(layout.columns)


def hub_name(source: config.Source) -> str:
    """Return owner/name of a Hub source.  Raises DataError."""
    name = source.path.removeprefix("hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(f"{source.path!r} is not a Hub data set", "write hub:owner/name")
    return name


def not_available(source: config.Source, e: Exception) -> DataError:
    """Return the error for any failure between here and the Hub."""
    name = hub_name(source)
    return DataError(
        f"data set {name!r}, split {source.split!r}, is not available: {type(e).__name__}: {one_line(e)}",
        f"with a network: hf download --repo-type dataset {name}; or name a local folder or parquet file instead",
    )
