"""`t2i train FAMILY [CONFIG]`: parse, call the family's loop, print where the result is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FAMILIES = {
    "autoencoder": "Train the KL autoencoder that latent diffusion works in.",
    "text2image": "Train text-conditioned latent diffusion from scratch.",
}


@click.group()
def train() -> None:
    """Train a model from scratch. The same command again resumes.

    A run is a function of its config, its seed and the images seen: stop it when you like (Ctrl-C saves first), and
    start it again with the same command. Under `accelerate launch` the same command runs on all devices.
    """


def _family(name: str, summary: str) -> click.Command:
    """The command of one family; all families take the same options."""

    def body(**options: Any) -> None:
        from t2i.processes import is_main

        result = _train(name, **options)
        if is_main():
            click.echo(result)

    parameters: list[Callable[[Any], Any]] = [
        click.argument("config", type=click.Path(dir_okay=False, path_type=Path), required=False),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the config."),
        click.option("--run", type=click.Path(file_okay=False, path_type=Path), help="Run folder [runs/CONFIG NAME]."),
        click.option("--resume", is_flag=True, help="Insist on a checkpoint to go on from."),
        click.option("--fresh", is_flag=True, help="Move an old run aside and start over."),
        click.option("--force", is_flag=True, help="Go on although config or data have changed."),
        click.option("--dry-run", is_flag=True, help="Say what would be trained, for how long, and stop."),
        click.option("--quiet", is_flag=True, help="No progress bars."),
    ]
    for parameter in reversed(parameters):
        body = parameter(body)
    example = f"\n\nWithout CONFIG the one behind `mini` is used: configs/mini-{name}.yaml."
    return click.command(name, help=summary + example, short_help=summary)(body)


def _train(
    family: str,
    config: Path | None,
    overrides: tuple[str, ...],
    run: Path | None,
    resume: bool,
    fresh: bool,
    force: bool,
    dry_run: bool,
    quiet: bool,
) -> str:
    """Run one family; returns what goes to stdout: the exported folder, or the plan."""
    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    from t2i.config import load_config, shipped_config
    from t2i.pipelines.quiet import prepare_libraries
    from t2i.pipelines.quiet import quiet as silence

    prepare_libraries()
    path = config or shipped_config(f"mini-{family}")
    settings = load_config(path, family, overrides)
    run = run or Path("runs") / path.stem
    if dry_run:
        from t2i.training.plan import describe

        return describe(settings, run)
    import diffusers  # noqa: F401  both are imported first, so that `silence` reaches them
    import transformers  # noqa: F401

    import t2i.training as training

    loop = getattr(training, training.TRAINERS[family])
    start = "resume" if resume else "fresh" if fresh else "auto"
    with silence():
        return str(loop(settings, run, start=start, force=force, progress=not quiet))


for _name, _summary in FAMILIES.items():
    train.add_command(_family(_name, _summary))
