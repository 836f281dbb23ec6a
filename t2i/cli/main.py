"""The root command `t2i`, and the one place where errors become exit codes.

Subcommands are imported when they are called, never before: `t2i --help` reads the table below and Click, nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import click

from t2i.cli.user_config import UNTOUCHED, config_path, default_map
from t2i.errors import ConfigError, OutOfMemory, T2IError, UsageError, one_line

# name: ("module:attribute", one line of help), in the order of a user's first day
COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("t2i.cli.generate:generate", "Draw images from text prompts."),
    "train": ("t2i.cli.train:train", "Train a model from scratch, or resume an interrupted run."),
    "sample": ("t2i.cli.sample:sample", "Draw images with a trained run."),
    "eval": ("t2i.cli.evaluate:evaluate", "Evaluate generated images against real ones."),
    "report": ("t2i.cli.report:report", "Show runs on one page: curves, samples, metrics, config."),
    "data": ("t2i.cli.data:data", "Inspect a data set, or build one for training."),
    "info": ("t2i.cli.info:info", "Show how an image was made, or describe a run or a model."),
    "models": ("t2i.cli.models:models", "List, describe, download and delete models."),
    "lora": ("t2i.cli.lora:lora", "Inspect LoRAs, or merge them into a model."),
    "config": ("t2i.cli.config:config", "Show and change your defaults for the options of every command."),
    "doctor": ("t2i.cli.doctor:doctor", "Find problems with this installation, and how to fix them."),
    "completion": ("t2i.cli.completion:completion", "Print the completion script for your shell."),
}


@dataclass
class Session:
    """State of one call of `t2i` beyond its parameters; Click's `ctx.obj`."""

    debug: bool = False
    defaults: bool = False  # whether the user's config file sets options of this command
    command: click.Command | None = None  # the one that runs

    def spelled(self, text: str) -> str:
        """Return a message of the library with options as they are written on the command line."""
        if self.command is None or "`" not in text:
            return text
        from t2i.cli.options import spelled

        return spelled(text, self.command)


class LazyGroup(click.Group):
    """A group whose subcommands are imported when called, and listed from COMMANDS without being imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        from importlib import import_module

        from t2i.model_files.library_logging import prepare_libraries

        prepare_libraries()  # whichever command imports diffusers, and wherever
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        _accept_debug(command)
        ctx.ensure_object(Session).command = command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(_no_such_command(*args))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


_debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,  # set before another option can fail
    callback=_set_debug,
    help="Show the traceback of an error (also: T2I_DEBUG=1).",
)


def _accept_debug(command: click.Command) -> None:
    """Let `command`, and every command below it, take --debug as the root does."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        _debug_option(command)
    for child in getattr(command, "commands", {}).values():
        _accept_debug(child)


def _no_such_command(name: str, *rest: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if near:
        return f"no command {name!r}, did you mean {near[0]!r}?"
    words = " " in name or any(word[:1].isalpha() for word in rest)
    prompt = ' (to draw a prompt: t2i generate "...")' if words else ""
    return f"no command {name!r}; there are: {', '.join(COMMANDS)}{prompt}"


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from t2i.version import __version__

        click.echo(f"t2i {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`t2i COMMAND --help` explains a command. There is no telemetry.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@_debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run, train and evaluate text-to-image and diffusion models.

    \b
    Draw:   t2i generate "a horse in Van Gogh style"
    Ask:    t2i info outputs/2026-01-31/00001-0.png
    Train:  t2i train text2image configs/mini-text2image.yaml
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    elif ctx.invoked_subcommand not in UNTOUCHED and config_path().exists():
        ctx.default_map = default_map(ctx, ctx.invoked_subcommand)
        ctx.ensure_object(Session).defaults = bool(ctx.default_map)


def main(args: Sequence[str] | None = None) -> int:
    """Run `t2i` with these arguments (default: the process's own) and return its exit code.

    0 done, 1 failed, 2 wrong usage, 3 part of a batch failed, 4 model not available, 5 out of memory,
    130 interrupted, 143 terminated.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    session = Session(debug=os.environ.get("T2I_DEBUG", "") not in ("", "0"))
    try:
        with _terminate_cleanly():
            code = cli.main(args, prog_name="t2i", standalone_mode=False, obj=session)
            sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
            return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", None, 130)
    except BrokenPipeError:
        return _close_stdout()
    except Exception as e:
        if session.debug:
            import traceback

            click.echo(_redact(traceback.format_exc()), err=True, nl=False)
        return _explain(e, session)


def _explain(e: Exception, session: Session) -> int:
    """Print an error and its hint on stderr; return the exit code."""
    if isinstance(e, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since Click 8.2: a group called alone
        click.echo(str(e))
        return 0
    if isinstance(e, click.ClickException):
        return _say(*_usage(e), e.exit_code)
    from t2i.pipelines.loading.device import is_out_of_memory

    if not isinstance(e, T2IError) and is_out_of_memory(e):
        hint = "ask for less at once (--batch-size 1, a smaller --size, a smaller batch), or --dtype bfloat16"
        e = OutOfMemory(f"out of memory: {one_line(e, 300)}", hint)
    if isinstance(e, T2IError):
        suggestion = e.hint
        if session.defaults and isinstance(e, UsageError) and not isinstance(e, ConfigError):
            suggestion = f"{f'{e.hint}; ' if e.hint else ''}some defaults are yours, from {config_path()}"
        return _say(session.spelled(e.message), suggestion and session.spelled(suggestion), e.exit_code)
    what = f"{type(e).__name__}: {one_line(e, 300)}" if str(e) else type(e).__name__
    return _say(f"unexpected {what}", "--debug shows where", 1)


def _usage(e: click.ClickException) -> tuple[str, str | None]:
    """Return the message of one of Click's own errors in our style, and the help page that explains it."""
    ctx = getattr(e, "ctx", None)
    message = e.format_message()
    message = message[:1].lower() + message[1:]
    if ctx and ctx.command is not cli and message.startswith("no such command"):
        message = f"{message} There are: {', '.join(ctx.command.list_commands(ctx))}"
    return message, f"see {ctx.command_path} --help" if ctx else None


def _say(message: str, hint: str | None, code: int) -> int:
    label = "error: " if code != 130 else ""
    with suppress(BrokenPipeError):
        click.echo(_redact(label + message), err=True)
        if hint:
            click.echo(_redact(f"hint: {hint}"), err=True)
    return code


def _redact(text: str) -> str:
    """Replace the user's token in a message: a library may quote the request that failed, with its headers."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "")
        if len(token) >= 8:
            text = text.replace(token, f"<{name}>")
    return text


def _close_stdout() -> int:
    """Redirect stdout to nowhere after its reader has closed (`| head`), so that flushing at exit cannot fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


@contextmanager
def _terminate_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files are removed, and exit with 143.

    Training installs its own handler.
    """

    def leave(*_: object) -> NoReturn:
        raise SystemExit(143)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: signals are the host program's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
