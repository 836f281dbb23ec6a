"""`t2i sample RUN`: draw images with a trained run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

EXAMPLES = """\b
Examples:
  t2i sample runs/ddpm-cifar10-10m
  t2i sample runs/ddpm-cifar10-10m --label horse --label ship -b 20 --guidance 2 --grid
  t2i sample runs/ddpm-cifar10-10m --trajectory
  t2i sample runs/dcgan-cifar10 --label horse --interpolate 1:9
  accelerate launch t2i sample runs/ddpm-cifar10-10m -b 50000 --batch-size 500 -o samples/50k
"""


@click.command(epilog=EXAMPLES)
@click.argument("run", metavar="RUN")
@click.option("--label", "labels", metavar="CLASS", multiple=True, help="A class, by name or number; may be repeated.")
@click.option("-b", "--batch-count", "--num-images", "count", type=int, help="How many images.  [16]")
@click.option("--batch-size", type=int, default=64, help="Images drawn at once.  [64]")
@click.option("--sampler", metavar="NAME", help="ddpm, ddpm-large, ddim, dpm++2m, heun, euler.  [dpm++2m]")
@click.option("--spacing", metavar="NAME", help="Which times: leading, trailing, linspace, karras.  [trailing]")
@click.option("--steps", type=int, help="Sampling steps, 1 to 1000.  [20]")
@click.option("--guidance", type=float, help="How closely to follow the class; 1 or less is off.  [1]")
@click.option("-s", "--seed", type=int, default=0, help="Seed of the first image; image k has SEED + k.  [0]")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder [samples/RUN NAME].")
@click.option("--grid", is_flag=True, help="Also save all images on one sheet, grid.png.")
@click.option("--trajectory", is_flag=True, help="Instead, show both processes: noise added, noise removed.")
@click.option(
    "--photo",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture --trajectory dissolves.  [a training image, where they are here]",
)
@click.option("--interpolate", metavar="A:B", help="Instead, the way from seed A to seed B, on a strip and as a film.")
@click.option("--animation", type=click.Choice(["webp", "gif"]), default="webp", help="Form of the film.  [webp]")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the fastest there is.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option("--offline", is_flag=True, help="Do not use the network.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def sample(**options: Any) -> None:
    """Draw images with RUN: a run of `ddpm`, `dcgan` or `vae`, a folder in diffusers' format, or a Hub id.

    Image k has seed SEED + k, and its class in turn. The same command again makes only what is missing; under
    `accelerate launch` all processes share the work, and the images are the same. Sampler, spacing, steps and guidance
    are those of diffusion: the others draw in one step.
    """
    for path in _sample(**options):
        click.echo(path)


def _sample(
    run: str,
    output: Path | None,
    grid: bool,
    trajectory: bool,
    interpolate: str | None,
    photo: Path | None,
    animation: str,
    device: str | None,
    revision: str | None,
    offline: bool,
    quiet: bool,
    labels: tuple[str, ...],
    seed: int,
    count: int | None,
    batch_size: int,
    **given: Any,
) -> Any:
    from tqdm import tqdm

    from t2i.distributed import is_main, processes
    from t2i.errors import UsageError
    from t2i.model_files.library_logging import prepare_libraries
    from t2i.pipelines.class_conditional.sample_folder import SampleRequest, load_model, sample_folder

    prepare_libraries()
    if trajectory and interpolate:
        raise UsageError("give either --trajectory or --interpolate")
    settings = {name: value for name, value in given.items() if value is not None}
    wanted = SampleRequest(16 if count is None else count, labels, seed, batch_size)
    ends = None if interpolate is None else _ends(interpolate)
    model = load_model(run, device=device, revision=revision, offline=offline)
    kind = "-trajectory" if trajectory else "-interpolation" if ends else ""
    folder = output or Path("samples") / f"{model.name}{kind}"
    if trajectory:
        yield from _trajectory(model, run, wanted, folder, photo, animation, settings)
        return
    if ends:
        from t2i.pipelines.class_conditional.interpolation import save_interpolation

        label = labels[0] if labels else None
        yield from save_interpolation(model, ends, count or 10, label, folder, animation, **settings)
        return
    hidden = None if is_main() and not quiet else True
    with tqdm(total=wanted.count, unit="img", desc="drawing", leave=False, file=sys.stderr, disable=hidden) as bar:
        for group in sample_folder(model, wanted, folder, **settings):
            bar.update(len(group))
            yield from group
    if grid:
        processes().wait_for_everyone()  # the sheet shows what all of them drew
        if is_main():
            yield _grid([folder / f"{k:06d}.png" for k in range(wanted.count)], folder / "grid.png")


def _ends(text: str) -> tuple[int, int]:
    """Two seeds.  Raises UsageError."""
    from t2i.errors import UsageError
    from t2i.pipelines.settings.limits import check_ends

    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"--interpolate: got {text[:40]!r}, expected two seeds, for example 1:9")
    return check_ends(int(first), int(last))


def _trajectory(
    model: Any, run: str, wanted: Any, folder: Path, photo: Path | None, animation: str, settings: dict[str, Any]
) -> list[Path]:
    from t2i.errors import UsageError
    from t2i.imaging.images import decode
    from t2i.pipelines.class_conditional.ddpm import DDPM
    from t2i.pipelines.class_conditional.trajectory import save_trajectory, trajectory

    if not isinstance(model, DDPM):
        raise UsageError(
            f"--trajectory: a {type(model).__name__} draws in one step", "--interpolate 1:9 shows its noise"
        )
    if other := set(settings) - {"steps"}:
        raise UsageError(f"--trajectory shows the ddpm sampler in even steps, without {', '.join(sorted(other))}")
    label = wanted.labels[0] if wanted.labels else (0 if model.classes else None)
    numbers = model.label_numbers(1, label)
    class_name = None if numbers is None else model.classes[int(numbers[0])]
    picture = decode(photo) if photo else _training_image(Path(run), class_name)
    if picture is None:
        click.echo("the training images are not here: the sample itself dissolves; or give a --photo", err=True)
    made = trajectory(model, wanted.seed, label, picture, settings.get("steps", 100))
    return save_trajectory(*made, folder, animation)


def _training_image(run: Path, class_name: str | None) -> Any:
    """The first image that a run of ddpm learned from, of this class; None where run or data are not here."""
    from contextlib import suppress

    from t2i.config import DDPMConfig, load_config
    from t2i.data.sample_image import example
    from t2i.errors import T2IError

    with suppress(T2IError):
        config = load_config(run.expanduser() / "config.yaml", "ddpm")
        if isinstance(config, DDPMConfig):
            return example(config.data, config.label, class_name or "")
    return None


def _grid(paths: list[Path], path: Path) -> Path:
    from t2i.imaging import images
    from t2i.metadata.recipe import Mark

    return images.save(images.grid([images.decode(p) for p in paths]), path, recipe=Mark(), overwrite=True)
