"""Options in messages: the library names fields, the command line its flags."""

from __future__ import annotations

import click
import pytest

from t2i.cli.generate import generate
from t2i.cli.main import cli
from t2i.cli.options import spelled


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("`steps`: got 0", "--steps: got 0"),
        ("`output=out/`: a pattern", "--output out/: a pattern"),
        ("`replay=x.png`: no such file", "--from x.png: no such file"),
        ("`replay=my folder/x.png`: no such file", "--from 'my folder/x.png': no such file"),
        ("cannot read `prompt_file=C:\\a\\1.txt`: gone", "cannot read --prompts C:\\a\\1.txt: gone"),
        ("`output`: unknown field {sed}", "--output: unknown field {sed}"),
        ("`output=out/{job}=1.png`", "--output out/{job}=1.png"),
        ("give `num_images=4`, not `negative_prompt`", "give --batch-count 4, not --negative-prompt"),
        ("`raw=True`, `chunks=True`, `chunks=False`", "--raw, --chunks, --no-chunks"),
        ("`json_lines`, `ip_adapter=PATH:IMAGE:SCALE`", "--json, --ip-adapter PATH:IMAGE:SCALE"),
        ("`t2i info` shows `evaluate`", "`t2i info` shows `evaluate`"),
        ("`output=", "`output="),
    ],
)
def test_fields_in_backticks_become_flags(text: str, shown: str) -> None:
    assert spelled(text, generate) == shown


def test_a_group_knows_the_options_of_its_commands() -> None:
    command = cli.get_command(click.Context(cli), "eval")
    assert command is not None
    assert spelled("cannot read `prompt_file=a.txt`", command) == "cannot read --prompts a.txt"
