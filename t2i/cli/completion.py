"""`t2i completion SHELL`: Click's own completion script."""

from __future__ import annotations

import click

SHELLS = {
    "bash": '~/.bashrc:                     eval "$(t2i completion bash)"',
    "zsh": '~/.zshrc:                      eval "$(t2i completion zsh)"',
    "fish": "~/.config/fish/config.fish:    t2i completion fish | source",
}
WHERE = "\b\nAdd to\n" + "\n".join(f"  {line}" for line in SHELLS.values())


@click.command(epilog=WHERE)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, models and schedulers in your shell.

    bash needs version 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "t2i", "_T2I_COMPLETE").source())
