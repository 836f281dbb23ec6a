"""`t2i doctor`: report on this installation and its problems."""

from __future__ import annotations

import json

import click

from t2i.cli.tables import aligned
from t2i.cli.user_config import config_path, default_map
from t2i.errors import ConfigError, T2IError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: facts by name, and the problems.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Find problems with this installation, and how to fix them.

    Versions, device and precision, free memory and disk, cache and network, extras, your config file, and whether the
    models in the package are intact. Uses no network and changes nothing. Exit code 1 means that something is broken.
    """
    from t2i.diagnostics.doctor import Finding, examine

    findings = [*examine()]
    path, problem, hint = config_path(), None, None
    try:
        default_map(click.Context(ctx.find_root().command, info_name="t2i", resilient_parsing=True))
    except ConfigError as e:
        problem, hint = e.message, e.hint
    text = str(path) if path.exists() else f"none ({path})"
    findings.append(Finding("config", str(path), text, problem, hint))
    broken = [finding for finding in findings if finding.problem]
    if as_json:
        problems = [{"name": f.name, "problem": f.problem, "hint": f.hint} for f in broken]
        click.echo(json.dumps({"facts": {f.name: f.value for f in findings}, "problems": problems}))
    else:
        click.echo(aligned("t2i doctor", [(f.name, f.text + (" <- broken" if f.problem else "")) for f in findings]))
    if broken:
        message = "\n  ".join([f"broken: {len(broken)}", *(str(f.problem) for f in broken)])
        raise T2IError(message, "; ".join(dict.fromkeys(f.hint for f in broken if f.hint)))
    if not as_json:
        click.echo("nothing is broken", err=True)
