"""`t2i train FAMILY [CONFIG]`: parse options, run the family's training loop, print the path of the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FAMILIES = {
    "autoencoder": "Train the KL autoencoder of latent diffusion.",
    "text2image": "Train text-conditioned latent diffusion from scratch.",
    "ddpm": "Train pixel-space diffusion (DDPM) from scratch.",
    "dcgan": "Train a GAN (DCGAN): a generator against a discriminator.",
    "vae": "Train a variational autoencoder.",
    "classifier": "Train an image classifier (ResNet).",
}
# the config of a family that is used without CONFIG
DEFAULTS = {
    "autoencoder": "mini-autoencoder",
    "text2image": "mini-text2image",
    "ddpm": "ddpm-cifar10-10m",
    "dcgan": "dcgan-cifar10",
    "vae": "vae-cifar10",
    "classifier": "classifier-cifar10",
}


@click.group()
def train() -> None:
    """Train a model from scratch, or resume an interrupted run.

    A run is a function of its config, its seed and the images seen: stop it at any time (Ctrl-C saves first), and
    resume it with the same command. Under `accelerate launch` the same command runs on all devices.
    """


def _family(name: str, summary: str) -> click.Command:
    """Return the command of one family; all families take the same options."""

    def body(**options: Any) -> None:
        from t2i.distributed import is_main

        result = _train(name, **options)
        if is_main():
            click.echo(result)

    parameters: list[Callable[[Any], Any]] = [
        click.argument("config", required=False),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the config."),
        click.option("--run", type=click.Path(file_okay=False, path_type=Path), help="Run folder [runs/CONFIG NAME]."),
        click.option("--resume", is_flag=True, help="Require a checkpoint to resume from."),
        click.option("--fresh", is_flag=True, help="Move an old run aside and start over."),
        click.option("--force", is_flag=True, help="Resume although config or data have changed."),
        click.option(
            "--dry-run", is_flag=True, help="Print what would be trained, and for how long, without training."
        ),
        click.option("--verify-resume", is_flag=True, help="Verify that a resumed run equals an uninterrupted one."),
        click.option("--compile", is_flag=True, help="Compile the network first (torch.compile)."),
        click.option("--deterministic", is_flag=True, help="Bit-exact on a GPU too; slower."),
        click.option("--quiet", is_flag=True, help="No progress bars."),
    ]
    for parameter in reversed(parameters):
        body = parameter(body)
    example = f"\n\nCONFIG is a file, or the name of a config that comes with t2i. Default: {DEFAULTS[name]}."
    return click.command(name, help=summary + example, short_help=summary)(body)


def _train(
    family: str,
    config: str | None,
    overrides: tuple[str, ...],
    run: Path | None,
    resume: bool,
    fresh: bool,
    force: bool,
    dry_run: bool,
    verify_resume: bool,
    compile: bool,
    deterministic: bool,
    quiet: bool,
) -> str:
    """Train one family; return the line for stdout: the exported folder, the plan, or the verification."""
    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    from t2i.config import find_config, load_config
    from t2i.model_files.library_logging import prepare_libraries
    from t2i.model_files.library_logging import silence_libraries as silence

    prepare_libraries()
    path = find_config(config or DEFAULTS[family])
    flags = [f"{name}=true" for name, on in (("compile", compile), ("deterministic", deterministic)) if on]
    settings = load_config(path, family, (*overrides, *flags))
    run = run or Path("runs") / path.stem
    import diffusers  # noqa: F401  both are imported first, so that `silence` reaches them
    import transformers  # noqa: F401

    import t2i.training as training
    from t2i.training import verify

    loop = getattr(training, training.TRAINERS[family])
    from t2i.training.dry_run import describe
    from t2i.training.memory import advice
    from t2i.training.runs.run_folder import Launch

    launch = Launch("resume" if resume else "fresh" if fresh else "auto", force, progress=not quiet)
    with silence(), advice(settings):
        if dry_run:
            return describe(settings, run)
        if verify_resume:
            return verify.verify_resume(settings, run.with_name(f"{run.name}.verify"), progress=not quiet)
        return str(loop(settings, run, launch))


for _name, _summary in FAMILIES.items():
    train.add_command(_family(_name, _summary))
