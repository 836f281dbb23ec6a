"""`t2i generate --dry-run`: print what a request would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from t2i.cli.dry_run_table import model_rows, output_rows
from t2i.cli.tables import aligned

if TYPE_CHECKING:
    from t2i.jobs.spec.request import GenerateRequest


def dry_run(
    request: GenerateRequest, say: Callable[[str], None], as_json: bool, spell: Callable[[str], str] = str
) -> None:
    """Print what a run would do.  Raises as the run itself would; for a missing model or adapter, after printing.

    spell: writes a message with options as the command line has them.
    """
    from t2i.jobs.preflight import preflight

    found = preflight(request)
    for line in found.messages:
        say(line)
    if as_json:
        models = [
            facts | {"notes": list(map(spell, facts["notes"]))} if "notes" in facts else facts for facts in found.models
        ]
        click.echo(json.dumps({"models": models} | found.output))
    else:
        for facts in found.models:
            click.echo(aligned(facts["model"], model_rows(facts)))
        click.echo(aligned("output", output_rows(found.output)))
    if found.problem is not None:
        raise found.problem
