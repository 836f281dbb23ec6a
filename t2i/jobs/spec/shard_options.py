"""Rules for the options that make a long batch, and for those that go with shards."""

from __future__ import annotations

import os
from pathlib import Path

from t2i.config.options import GenerateOptions
from t2i.errors import UsageError


def is_batch(file: str, output: str | None, grid: bool) -> bool:
    """Return whether a prompt file makes a long batch: a real file (a pipe cannot be read twice), into a folder
    or a pattern with {job}.
    """
    if grid or not Path(file).is_file():
        return False
    return output is None or output.endswith(("/", os.sep)) or os.path.isdir(output) or "{job}" in output


def check_shards(options: GenerateOptions, alone: bool) -> None:
    """Raise UsageError where shards are asked for and cannot be made.

    alone: there are no other prompts or images than those of the prompt file.
    """
    kind, output, file = options.shards, options.output, options.prompt_file
    if kind is None:
        if options.shard_size is not None:
            message = f"`shard_size={options.shard_size}` without shards"
            raise UsageError(message, "add `shards=parquet`, or `shards=webdataset`")
        return
    example = f"for example `prompt_file=FILE` `shards={kind}` `output=FOLDER/`"
    if not alone or file is None or file == "-":
        raise UsageError("`shards` packs the images of a prompt file, and of nothing else", example)
    if not Path(file).is_file():
        raise UsageError(f"`prompt_file={file}`: no such file")
    if options.grid:
        raise UsageError("`grid` makes one sheet of images, `shards` files to train on", "leave out one of them")
    if output is None:
        raise UsageError("`shards` needs an output folder", example)
    if "{" in output:
        raise UsageError(f"`output={output}`: a pattern names single images, `shards` packs them", example)
    if not (output.endswith(("/", os.sep)) or os.path.isdir(output)):
        raise UsageError(f"`output={output}`: `shards` needs a folder", f"`output={output}/`")
